"""Do local workers pay: the assign link with one worker of one thread, two threads, two processes.

    python -m benchmarks.workers EMBEDDINGS.parquet [--rows 500000] [--kind rqkmeans] [--repeats 3]

Takes the `embedding` column of a catalog, repeats it under new ids with noise until there are
enough rows, fits a tokenizer on the first ones, and runs the link's whole pipeline (read parts,
quantize, write codes, histogram) in a new process for every figure. Start-up of worker processes is
part of it; importing Beam and torch in the launching process is not. Fails when two modes differ in
a byte of what they write.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

MODES = {
    "one worker, one thread": ("in_memory", 1, "1"),
    "one worker, every core's thread": ("in_memory", 1, ""),
    "two threads": ("multi_threading", 2, ""),
    "two processes": ("multi_processing", 2, ""),
}
"""Running mode, workers, and OMP_NUM_THREADS; "" leaves it to semid."""

_NOISE = 0.3
_PART_ROWS = 8192


def main() -> None:
    """Prints the median seconds of every mode and their ratio to the first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("catalog")
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--kind", default="rqkmeans")
    parser.add_argument("--fit-rows", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", help="keep and reuse what was prepared here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="semid-workers-") as temporary:
        folder = options.folder or temporary
        if not Path(folder, "tokenizer").exists():
            _in_new_process(_prepare, "", folder, vars(options))
        seconds: dict[str, list[float]] = {name: [] for name in MODES}
        written = set()
        for _ in range(options.repeats):
            for name, (mode, workers, threads) in MODES.items():
                wall, digest = _in_new_process(_assign, threads, folder, mode, workers)
                seconds[name].append(wall)
                written.add(digest)
        assert len(written) == 1, "the modes wrote different codes"
    base = statistics.median(seconds["one worker, one thread"])
    print(f"{options.kind}, {options.rows:,} rows, {os.cpu_count()} cores")
    for name, walls in seconds.items():
        median = statistics.median(walls)
        spread = " ".join(f"{wall:.1f}" for wall in walls)
        print(f"  {name:<34} {median:6.1f} s  {base / median:5.2f} x   ({spread})")


def _in_new_process(target: Any, threads: str, *arguments: Any) -> Any:
    """Calls a function in a process that loads its libraries with a number of threads."""
    before = os.environ.pop("OMP_NUM_THREADS", None)
    if threads:
        os.environ["OMP_NUM_THREADS"] = threads
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=_answer, args=(answers, target, arguments))
    process.start()
    answer = answers.get()
    process.join()
    if before is not None:
        os.environ["OMP_NUM_THREADS"] = before
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _answer(answers: Any, target: Any, arguments: tuple[Any, ...]) -> None:
    try:
        answers.put(target(*arguments))
    except BaseException as error:
        answers.put(RuntimeError(repr(error)))
        raise


def _prepare(folder: str, options: dict[str, Any]) -> None:
    """Writes `embeddings/`, `origin/` and `tokenizer/`."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from models.tokenizers import fit_quantizer, quantizer_config, to_files
    from schemas.arrays import fixed_binary, list_from_matrix, matrix_from_list
    from schemas.tables import Change, embedding_schema, origin_schema
    from semid_transforms import files

    column = pq.read_table(options["catalog"], columns=["embedding"])["embedding"]
    real = matrix_from_list(column.combine_chunks())
    quantizer, _ = fit_quantizer(
        quantizer_config(options["kind"])(), np.ascontiguousarray(real[: options["fit_rows"]])
    )
    for start in range(0, options["rows"], _PART_ROWS):
        rng = np.random.default_rng(start)
        rows = np.arange(start, min(start + _PART_ROWS, options["rows"]))
        vectors = real[rows % len(real)]
        if start >= len(real):
            step = rng.normal(size=vectors.shape) / np.sqrt(vectors.shape[1])
            vectors = (vectors + _NOISE * step).astype(np.float32)
        name = f"part-{start // _PART_ROWS:05d}.parquet"
        digests = [hashlib.blake2b(b"%d" % row, digest_size=16).digest() for row in rows]
        hashes = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)
        embeddings = pa.RecordBatch.from_arrays(
            [
                pa.array([f"i{row}" for row in rows]),
                fixed_binary(hashes, 16),
                list_from_matrix(vectors, pa.float32()),
            ],
            schema=embedding_schema(),
        )
        schema = origin_schema(pa.int64())
        origin = {
            "change": pa.array([Change.NEW.value] * len(rows)),
            "sid": pa.nulls(len(rows), pa.int64()),
            "base_sid": pa.nulls(len(rows), pa.int64()),
        }
        batch = pa.RecordBatch.from_arrays([origin[f.name] for f in schema], schema=schema)
        files.write_table(f"{folder}/embeddings/{name}", embedding_schema(), [embeddings])
        files.write_table(f"{folder}/origin/{name}", schema, [batch])
    for name, data in to_files(quantizer, {}).items():
        files.write_bytes(f"{folder}/tokenizer/{name}", data)


def _assign(folder: str, mode: str, workers: int) -> tuple[float, str]:
    """Runs the link; returns its seconds and a digest of the codes it wrote."""
    from models.sid import SidLayout
    from pipelines.beam_options import build_options, run_pipeline
    from pipelines.definitions import define_assign
    from semid_transforms import files
    from semid_transforms.quantizing import AssignCodes, load_tokenizer

    sizes = load_tokenizer(f"{folder}/tokenizer").codebook_sizes
    assign = AssignCodes(
        embeddings_folder=f"{folder}/embeddings",
        origin_folder=f"{folder}/origin",
        codes_folder=f"{folder}/codes",
        latents_folder=f"{folder}/latents",
        tokenizer_folder=f"{folder}/tokenizer",
        layout=SidLayout.fitting(sizes, hierarchical=True),
    )
    parts = [files.base_name(path) for path in files.list_files(assign.embeddings_folder)]
    options = build_options([f"--direct_running_mode={mode}", f"--direct_num_workers={workers}"])
    files.remove_tree(assign.codes_folder)
    started = time.monotonic()
    run_pipeline(options, lambda root: define_assign(root, parts, assign))
    seconds = time.monotonic() - started
    digest = hashlib.sha256()
    for path in files.list_files(assign.codes_folder):
        digest.update(files.read_bytes(path))
    return seconds, digest.hexdigest()


if __name__ == "__main__":
    main()
