"""Putting a finished generation together: its files, its manifest, its summary."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import pyarrow.compute as pc

from models.sid import SidLayout
from pipelines.root import Published, Root
from pipelines.runs import Run
from schemas.manifest import FileEntry, Fingerprints, Manifest
from schemas.rejects import SourceCounts
from schemas.tables import Change
from semid_transforms import files
from semid_transforms.measuring import metrics_bytes
from semid_transforms.shard_plan import is_delta

TABLES = ("items", "reserved", "nodes", "ngrams", "embeddings", "catalog", "rejects", "changes")
"""Parquet tables of a generation; `metrics.json` and, where codes have levels,
`trie/trie.safetensors` stand beside them."""


SPM_FILE = "ngrams/spm.model"
"""The learned pieces of the `spm` feature, where it is configured."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A published generation.

    Attributes:
      manifest: as published.
      metrics: its quality table.
      results: what each link reported.
    """

    manifest: Manifest
    metrics: dict[str, Any]
    results: dict[str, dict[str, Any]]


def table_paths(root: Root, published: Published, table: str) -> list[str]:
    """Returns the paths of a table's parts in a published generation; [] without one.

    Parts that backfills appended come last, in their order.
    """
    if published.manifest is None or published.generation is None:
        return []
    folder = root.folder(published.generation)
    parts = sorted(published.manifest.table(table), key=lambda part: is_delta(part.path))
    return [files.join(folder, file.path) for file in parts]


def release_before(generation: str, release_after: int | None) -> str:
    """Returns what the generations of reserved IDs that are kept in a generation sort from.

    Args:
      generation: id of the one that is built: a running number and a digest.
      release_after: generations after which an ID is released; None is never.
    """
    if release_after is None:
        return ""
    kept = int(generation.split("-")[0]) - release_after + 1
    return f"{kept:06d}" if kept > 0 else ""


def link_tables(root: Root, parent: Published, run: Run, tables: Iterable[str]) -> None:
    """Carries whole folders of the parent generation over without copying bytes where possible."""
    assert parent.manifest is not None and parent.generation is not None
    folder = root.folder(parent.generation)
    for file in parent.manifest.files:
        if file.path.split("/")[0] in tables:
            files.copy(files.join(folder, file.path), run.output(*file.path.split("/")))


def carry_metrics(source: str, target: str) -> None:
    """Copies the quality table, without what it said of the step to the generation before it."""
    document = json.loads(files.read_bytes(source))
    if document.pop("kept", None) is None:
        files.copy(source, target)
    else:
        files.write_bytes(target, metrics_bytes(document))


def build_manifest(
    run: Run,
    parent: Published,
    results: dict[str, dict[str, Any]],
    fingerprints: Fingerprints,
    encoder: dict[str, Any],
    config: dict[str, Any],
    command: Literal["tokenize", "backfill"] = "tokenize",
) -> Manifest:
    """Describes every file of a complete generation."""
    carried = {}
    if parent.manifest is not None:
        carried = {file.path: file for file in parent.manifest.files}
    paths = _files(run, SidLayout.from_json(fingerprints.layout).hierarchical)
    with ThreadPoolExecutor() as threads:  # digests are computed without the interpreter's lock
        entries = list(threads.map(lambda path: _describe(run, path, carried, parent), paths))
    rows = Counter[str]()
    for entry in entries:
        rows[entry.path.split("/")[0]] += entry.rows or 0
    return Manifest(
        generation=run.generation,
        parent=parent.generation,
        created=run.time.isoformat(),
        counts={
            "items": rows["items"],
            "reserved": rows["reserved"],
            **_count_changes(run),
        },
        sources={
            source: SourceCounts.from_json(counts)
            for source, counts in results["read"]["sources"].items()
        },
        rejects=results["read"]["rejects"],
        fingerprints=fingerprints,
        encoder=encoder,
        config=config,
        shards=results["place"]["shards"],
        files=entries,
        command=command,
        parent_manifest_sha256=parent.manifest_sha256,
    )


def _files(run: Run, has_trie: bool) -> list[str]:
    """Returns the generation's files, relative to its folder, in order."""
    found = [
        f"{table}/{files.base_name(path)}"
        for table in TABLES
        for path in files.list_files(run.output(table), ".parquet")
    ]
    pieces = [SPM_FILE] if files.exists(run.output(*SPM_FILE.split("/"))) else []
    trie = ["trie/trie.safetensors"] if has_trie else []
    return [*found, *pieces, *trie, "metrics.json"]


def _describe(run: Run, path: str, carried: dict[str, FileEntry], parent: Published) -> FileEntry:
    full = run.output(*path.split("/"))
    size = files.size(full)
    rows = None
    if path.endswith(".parquet"):
        with files.parquet_file(full) as file:
            rows = file.metadata.num_rows
    if (before := carried.get(path)) and parent.generation is not None:
        original = files.join(run.root.folder(parent.generation), path)
        if files.is_same_file(original, full):
            return before
    return FileEntry(path, rows, size, files.sha256(full))


def _count_changes(run: Run) -> dict[str, int]:
    counts = dict.fromkeys((change.value for change in Change), 0)
    for path in files.list_files(run.output("changes"), ".parquet"):
        for row in pc.value_counts(files.read_table(path, ["change"])["change"]).to_pylist():
            counts[row["values"]] += row["counts"]
    return counts
