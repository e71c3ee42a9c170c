"""Measures the prefix trie against other ways to know which token may come next.

  python -m benchmarks.trie                        # 1e5, 1e6 and 1e7 random IDs, 4 levels of 2048
  python -m benchmarks.trie --sizes 100000 --device cuda
  python -m benchmarks.trie --dict-limit 10000000 # also the dict of dicts at 1e7
  pip install marisa-trie                          # adds its column

IDs are random with Zipf-like codes: every level draws code floor(2048**u) - 1 with u uniform, so
that low codes are frequent and prefixes are shared unevenly. `next` is `TrieDecoder.allowed_next`,
(beams, 2048) booleans for beams at random prefixes of existing IDs, `list` is `list_next`, whose
answer is as long as nodes are wide; a decode is one step per level. Times are the
best of several repeats; the baselines that need seconds a step run on fewer beams and are scaled,
which the table says.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch

from models.sid import SidLayout
from models.trie import Trie
from models.trie_build import build_trie
from models.trie_decoder import TrieDecoder

NUM_LEVELS, NUM_CODES = 4, 2048
SHAPES = ((1, 1), (1, 70), (8, 70), (64, 70))
SCALED_BEAMS = 16
LARGEST = "next_ms_64x70"


def random_sids(count: int, layout: SidLayout, seed: int) -> np.ndarray:
    """Draws `count` distinct sorted SIDs with Zipf-like codes."""
    rng = np.random.default_rng(seed)
    sids = np.empty(0, layout.dtype)
    while len(sids) < count:
        codes = np.floor(NUM_CODES ** rng.random((count, NUM_LEVELS))).astype(np.int64) - 1
        sids = np.unique(np.concatenate([sids, layout.pack(codes)]))
    return np.sort(rng.choice(sids, count, replace=False))


def best_seconds(function: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Returns the shortest wall time of a call."""
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def measure_trie(sids: np.ndarray, layout: SidLayout) -> tuple[Trie, dict[str, float]]:
    """Measures building, size and lookups."""
    start = time.process_time()
    trie = build_trie([sids], layout)
    build = time.process_time() - start
    rng = np.random.default_rng(1)
    queries = rng.choice(sids, 1_000_000)
    queries[::2] ^= 1 << layout.suffix_bits
    seconds = best_seconds(lambda: trie.contains(queries), torch.device("cpu"), 3)
    return trie, {
        "build_cpu_s": build,
        "bytes_per_id": trie.nbytes / len(sids),
        "contains_per_s": len(queries) / seconds,
    }


def measure_decoding(
    tries: dict[int, Trie], codes: dict[int, np.ndarray], device: torch.device, repeats: int
) -> dict[int, dict[str, float]]:
    """Measures a whole decode, in ms, per batch x beams.

    Sizes take turns, so that a machine that slows down for a while slows all of them.
    """
    decoders = {size: TrieDecoder(trie, device) for size, trie in tries.items()}
    result: dict[int, dict[str, float]] = {size: {} for size in tries}
    for batch, beams in SHAPES:
        best: dict[tuple[str, int, int], float] = {}
        for _ in range(repeats):
            for size, decoder in decoders.items():
                chosen = torch.from_numpy(codes[size][: batch * beams].astype(np.int64)).to(device)
                states = decoder.root(len(chosen))
                for level in range(NUM_LEVELS):
                    steps = {
                        "next": lambda d=decoder, s=states, n=level: d.allowed_next(s, n),
                        "list": lambda d=decoder, s=states, n=level: d.list_next(s, n),
                        "advance": lambda d=decoder, s=states, n=level, t=chosen: d.advance(
                            s, n, t[:, n]
                        ),
                    }
                    for name, step in steps.items():
                        seconds = best_seconds(step, device, 2)
                        key = (name, size, level)
                        best[key] = min(best.get(key, seconds), seconds)
                    states = decoder.advance(states, level, chosen[:, level])
        for size in tries:
            for name in ("next", "list", "advance"):
                total = sum(best[name, size, level] for level in range(NUM_LEVELS))
                result[size][f"{name}_ms_{batch}x{beams}"] = 1e3 * total
    return result


def measure_dict_trie(codes: np.ndarray, beams: np.ndarray) -> dict[str, float]:
    """Measures nested dictionaries, the usual constraint function of generative retrieval."""
    start = time.process_time()
    root: dict = {}
    for code in codes.tolist():
        node = root
        for token in code:
            node = node.setdefault(token, {})
    build = time.process_time() - start
    total = 0.0
    nodes = [root] * len(beams)
    for level in range(NUM_LEVELS):

        def fill(here: list[dict] = nodes) -> np.ndarray:
            mask = np.zeros((len(here), NUM_CODES), bool)
            for row, node in enumerate(here):
                mask[row, list(node)] = True
            return mask

        total += best_seconds(fill, torch.device("cpu"), 3)
        nodes = [node[token] for node, token in zip(nodes, beams[:, level].tolist(), strict=True)]
    return {"build_cpu_s": build, LARGEST: 1e3 * total}


def measure_binary_search(sids: np.ndarray, layout: SidLayout, beams: np.ndarray) -> float:
    """Measures looking every candidate prefix up in the sorted SIDs; ms per decode."""
    total = 0.0
    for level in range(NUM_LEVELS):
        shift = layout.shift(level + 1)
        prefix = layout.pack(np.pad(beams[:, :level], ((0, 0), (0, NUM_LEVELS - level))))
        first = prefix[:, None] + (np.arange(NUM_CODES) << shift)

        def check(low: np.ndarray = first, width: int = 1 << shift) -> np.ndarray:
            found = np.minimum(np.searchsorted(sids, low), len(sids) - 1)
            return (sids[found] >= low) & (sids[found] < low + width)

        total += best_seconds(check, torch.device("cpu"), 2)
    return 1e3 * total


def measure_marisa(codes: np.ndarray, beams: np.ndarray) -> dict[str, float] | None:
    """Measures marisa-trie with one character per code; None when it is not installed."""
    try:
        import marisa_trie
    except ImportError:
        return None
    letters = [chr(0x100 + code) for code in range(NUM_CODES)]
    keys = ["".join(letters[token] for token in code) for code in codes.tolist()]
    start = time.process_time()
    trie = marisa_trie.Trie(keys)
    build = time.process_time() - start
    queries = keys[:: max(1, len(keys) // 100_000)]
    lookups = best_seconds(lambda: [key in trie for key in queries], torch.device("cpu"), 2)
    total = 0.0
    for level in range(NUM_LEVELS):
        starts = ["".join(letters[token] for token in code[:level]) for code in beams.tolist()]
        total += best_seconds(
            lambda here=starts: [
                [next(trie.iterkeys(start + letter), None) is not None for letter in letters]
                for start in here
            ],
            torch.device("cpu"),
            2,
        )
    return {
        "build_cpu_s": build,
        "bytes_per_id": len(trie.tobytes()) / len(keys),
        "contains_per_s": len(queries) / lookups,
        LARGEST: 1e3 * total,
    }


def main() -> None:
    """Runs every size and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--dict-limit", type=int, default=10**6, help="largest dict trie: 1e7 needs some 8 GB"
    )
    parser.add_argument(
        "--marisa-limit", type=int, default=10**7, help="largest marisa trie: 1e7 needs some 3 GB"
    )
    parser.add_argument("--json", help="also write the figures here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    layout, device = SidLayout.fitting((NUM_CODES,) * NUM_LEVELS), torch.device(args.device)
    largest = max(batch * beams for batch, beams in SHAPES)
    figures: dict[int, dict[str, dict[str, float]]] = {}
    tries, beams = {}, {}
    for size in args.sizes:
        sids = random_sids(size, layout, seed=0)
        beams[size], _ = layout.unpack(np.random.default_rng(2).choice(sids, largest))
        tries[size], ours = measure_trie(sids, layout)
        few, scale = beams[size][:SCALED_BEAMS], largest / SCALED_BEAMS
        found = measure_binary_search(sids, layout, few) * scale
        row = {"semid": ours, "sorted array": {f"{LARGEST} (scaled)": found}}
        if size <= max(args.dict_limit, args.marisa_limit):
            everything, _ = layout.unpack(sids)
            if size <= args.dict_limit:
                row["dict of dicts"] = measure_dict_trie(everything, beams[size])
            if size <= args.marisa_limit and (marisa := measure_marisa(everything, few)):
                marisa[f"{LARGEST} (scaled)"] = marisa.pop(LARGEST) * scale
                row["marisa-trie"] = marisa
        figures[size] = row
    for size, decoding in measure_decoding(tries, beams, device, args.repeats).items():
        figures[size]["semid"] |= decoding
        for name, values in figures[size].items():
            text = "  ".join(f"{key} {value:,.4g}" for key, value in values.items())
            print(f"{size:>11,}  {name:<14} {text}", flush=True)
    steps = [row["semid"][LARGEST] for row in figures.values()]
    print(f"{LARGEST} at the largest size over the smallest: {steps[-1] / steps[0]:.2f}")
    for size, row in figures.items():
        if "dict of dicts" in row:
            ratio = row["dict of dicts"][LARGEST] / row["semid"][LARGEST]
            print(f"{LARGEST} of dict of dicts over semid at {size:,}: {ratio:.0f}")
    if args.json:
        with open(args.json, "w") as file:
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    main()
