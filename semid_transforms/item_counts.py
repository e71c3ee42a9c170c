"""What is counted over all items of a generation, in one pass over its parts."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc

from models.metrics import collisions_of_counts
from models.runs import runs
from schemas.arrays import bytes_from_fixed_binary, matrix_from_list
from semid_transforms import files


@dataclasses.dataclass(frozen=True, eq=False)
class CodeCounts:
    """Counts of one of the two code columns.

    Attributes:
      use: items per code, an array a level.
      collisions: see `models.metrics.collisions`.
    """

    use: tuple[np.ndarray, ...]
    collisions: dict[str, float]


@dataclasses.dataclass(frozen=True, eq=False)
class ItemCounts:
    """Counts over all items.

    Attributes:
      items: how many.
      placements: items per kind of placement.
      before: of base codes.
      after: of codes as published.
      shared_sids: collisions of whole SIDs.
      contents: collisions of content hashes.
      distinct_contents: different content hashes.
    """

    items: int
    placements: Counter[str]
    before: CodeCounts
    after: CodeCounts
    shared_sids: dict[str, float]
    contents: dict[str, float]
    distinct_contents: int


def count_items(items: Sequence[str], codebook_sizes: Sequence[int]) -> ItemCounts:
    """Reads every part of `items` once; memory is that of a part and 80 bytes an item.

    Args:
      items: paths of `items` parts, in SID order.
      codebook_sizes: K_1..K_L, their product at most 2**64.
    """
    placements = Counter[str]()
    columns = ("base_codes", "codes")
    use = {name: [np.zeros(size, np.int64) for size in codebook_sizes] for name in columns}
    keys: dict[str, list[np.ndarray]] = {name: [] for name in (*columns, "sid", "content_hash")}
    for part in items:
        table = files.read_table(part, [*keys, "placement"])
        for row in pc.value_counts(table["placement"]).to_pylist():
            placements[row["values"]] += row["counts"]
        for name in columns:
            codes = matrix_from_list(table[name], len(codebook_sizes))
            packed = np.zeros(len(codes), np.uint64)
            for column, size, counts in zip(codes.T, codebook_sizes, use[name], strict=True):
                counts += np.bincount(column, minlength=size)
                packed = packed * np.uint64(size) + column.astype(np.uint64)
            keys[name].append(packed)
        keys["sid"].append(table["sid"].to_numpy())
        hashes = np.ascontiguousarray(bytes_from_fixed_binary(table["content_hash"]))
        keys["content_hash"].append(hashes.view(np.uint64))
    whole = {name: np.concatenate(keys.pop(name)) for name in list(keys)}
    contents = count_contents(whole["content_hash"])
    whole["base_codes"].sort()  # the others are in SID order
    before, after = (
        CodeCounts(tuple(use[name]), collisions_of_counts(_run_lengths(whole[name])))
        for name in columns
    )
    return ItemCounts(
        items=len(whole["sid"]),
        placements=placements,
        before=before,
        after=after,
        shared_sids=collisions_of_counts(_run_lengths(whole["sid"])),
        contents=collisions_of_counts(contents),
        distinct_contents=len(contents),
    )


def _run_lengths(ordered: np.ndarray) -> np.ndarray:
    """Returns how often each value, or row, of an array occurs whose equal ones are together."""
    starts, ends = runs(ordered)
    return ends - starts


def count_contents(hashes: np.ndarray) -> np.ndarray:
    """Returns how many rows have each distinct content hash, in no order.

    Args:
      hashes: (N, 2) uint64, the halves of content hashes.
    """
    order = np.argsort(hashes[:, 0])
    same = hashes[order[1:], 0] == hashes[order[:-1], 0]
    # Contents that share half a hash are all but always the same; only they are compared whole.
    doubtful = np.append(same, False) | np.append(False, same)
    twice = hashes[order[doubtful[: len(order)]]]
    counts = _run_lengths(twice[np.lexsort(twice.T)])
    return np.concatenate([counts, np.ones(len(hashes) - len(twice), np.int64)])
