"""N-gram features of code tuples: integer ids for embedding tables of ranking models.

An n-gram is a window of consecutive codes. With c_1..c_L the codes of an item, K_1..K_L the
codebook sizes and [a, b] a window, the window's number is its mixed-radix value

    packed(a, b) = (...((c_a) K_{a+1} + c_{a+1}) K_{a+2} + ...) + c_b

which is sum over t in a..b of K^(b-t) c_t when all sizes are K. Column p of a feature adds a shift,
the number of values all columns before it can take, so that windows at different positions never
share an id:

    id_p = shift_p + packed(window p),   shift_p = sum over q < p of product of K_t in window q

| feature         | windows                                             | source              |
|-----------------|-----------------------------------------------------|---------------------|
| unigram         | [1,1] [2,2] ... [L,L]                               | 2306.08121          |
| bigram          | [1,2] [2,3] ... [L-1,L], overlapping                | 2504.02137          |
| bigram_disjoint | [1,2] [3,4] ..., a last odd level stands alone      | 2306.08121          |
| trigram         | [1,3] [2,4] ..., overlapping; the first is the      | 2504.02137          |
|                 | published one                                       |                     |
| fourgram        | [1,4] [2,5] ..., likewise                           | 2504.02137          |
| prefix_ngram    | [1,1] [1,2] ... [1,n], n = max_length or L          | 2504.02137          |

For `prefix_ngram` with equal sizes the id of prefix i is exactly the published
sum over t <= i of K^(i-t) (c_t + 1) - 1, because the sum over t <= i of K^(i-t), less 1, is
K + K^2 + ... + K^(i-1), the shift.

With a table smaller than the vocabulary the id is taken modulo the table size, in steps, so that
nothing overflows on the way.

Example: K = (4, 4, 4), codes (2, 0, 3).
  unigram: 2, 4 + 0, 8 + 3 = [2, 4, 11] of 12. bigram: 2*4 + 0, 16 + 0*4 + 3 = [8, 19] of 32.
  bigram_disjoint: 2*4 + 0, 16 + 3 = [8, 19] of 20. trigram: (2*4 + 0)*4 + 3 = [35] of 64.
  prefix_ngram: 3 - 1, 4*3 + 1 - 1, 16*3 + 4*1 + 4 - 1 = [2, 12, 55] of 4 + 16 + 64 = 84.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import numpy as np

from models.runs import runs

_WIDTHS = {"unigram": 1, "bigram": 2, "bigram_disjoint": 2, "trigram": 3, "fourgram": 4}
NGRAM_FEATURES = (*_WIDTHS, "prefix_ngram")
MAX_ID = np.iinfo(np.int64).max

_FEW_WINDOWS = 1 << 20
"""Windows of which a table of counts takes less time than sorting."""


@dataclasses.dataclass(frozen=True)
class NgramFeature:
    """Configuration of one n-gram feature.

    Attributes:
      name: one of `NGRAM_FEATURES`, also the column name.
      table_size: rows of the embedding table; ids are taken modulo it when the vocabulary is
        larger. None keeps exact ids.
      max_length: longest prefix of `prefix_ngram`; None means all levels.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    table_size: int | None = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        if self.name not in NGRAM_FEATURES:
            raise ValueError(
                f"n-gram feature {self.name!r} is not one of {[*NGRAM_FEATURES, 'spm']}"
            )
        if self.table_size is not None and self.table_size < 1:
            raise ValueError(f"{self.name}: table_size must be at least 1, got {self.table_size}")
        if self.max_length is not None and self.name != "prefix_ngram":
            raise ValueError(f"{self.name}: max_length applies to prefix_ngram only")
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"{self.name}: max_length must be at least 1, got {self.max_length}")


@dataclasses.dataclass(frozen=True)
class NgramColumn:
    """One column of a feature.

    Attributes:
      start: 0-based first level of the window.
      stop: one past its last level, so that `codes[:, start:stop]` is the window.
      shift: added to the window's mixed-radix value, before any modulo.
      size: number of values of the window, the product of its codebook sizes.
    """

    start: int
    stop: int
    shift: int
    size: int


@dataclasses.dataclass(frozen=True)
class NgramCounts:
    """The n-grams of one column that occur, for the vocabulary table.

    Attributes:
      ids: (U,) int64. Under a modulo two n-grams may share an id.
      codes: (U, stop - start) int32, distinct windows in ascending order.
      counts: (U,) int64 items that have the window.
    """

    ids: np.ndarray
    codes: np.ndarray
    counts: np.ndarray


def ngram_columns(codebook_sizes: Sequence[int], feature: NgramFeature) -> tuple[NgramColumn, ...]:
    """Lays out the P columns of a feature; see the module's table.

    Raises:
      ValueError: the feature needs more levels than there are.
    """
    levels = len(codebook_sizes)
    if feature.name == "prefix_ngram":
        longest = feature.max_length or levels
        windows = [(0, stop) for stop in range(1, longest + 1)]
    else:
        longest = _WIDTHS[feature.name]
        step = longest if feature.name == "bigram_disjoint" else 1
        last = levels if feature.name == "bigram_disjoint" else levels - longest + 1
        windows = [(start, min(start + longest, levels)) for start in range(0, last, step)]
    if longest > levels:
        raise ValueError(
            f"{feature.name} needs {longest} levels, the tokenizer has {levels}: drop the feature"
            + (", or lower max_length" if feature.name == "prefix_ngram" else "")
        )
    columns, shift = [], 0
    for start, stop in windows:
        size = math.prod(int(size) for size in codebook_sizes[start:stop])
        columns.append(NgramColumn(start, stop, shift, size))
        shift += size
    return tuple(columns)


def vocabulary_size(codebook_sizes: Sequence[int], feature: NgramFeature) -> int:
    """Returns the rows an embedding table needs: every id lies in 0..vocabulary_size - 1.

    Raises:
      ValueError: too few levels, or ids do not fit in int64; the message says which table size
        would do.
    """
    last = ngram_columns(codebook_sizes, feature)[-1]
    exact = last.shift + last.size
    # Horner's step holds at most table_size * K + K.
    largest_table = MAX_ID // (int(max(codebook_sizes)) + 1)
    if feature.table_size is None or exact <= feature.table_size:
        if exact > MAX_ID:
            raise ValueError(
                f"{feature.name} over codebook_sizes {list(codebook_sizes)} has {exact} ids, int64 "
                f"holds {MAX_ID}: set table_size, at most {largest_table}"
            )
        return exact
    if feature.table_size > largest_table:
        raise ValueError(
            f"{feature.name}: table_size {feature.table_size} overflows int64 with codebook_sizes "
            f"{list(codebook_sizes)}: use at most {largest_table}"
        )
    return feature.table_size


def ngram_ids(
    codes: np.ndarray, codebook_sizes: Sequence[int], feature: NgramFeature
) -> np.ndarray:
    """Computes the ids of one feature, as published in its column of `items`.

    Args:
      codes: (N, L) integers, `0 <= codes[:, l] < codebook_sizes[l]`.
      codebook_sizes: K_1..K_L.
      feature: which n-grams.

    Returns:
      (N, P) int64, `0 <= id < vocabulary_size(codebook_sizes, feature)`, column p as laid out by
      `ngram_columns`.

    Raises:
      ValueError: the shape of codes differs from L, or see `vocabulary_size`.
    """
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.shape[1] != len(codebook_sizes):
        raise ValueError(f"codes must have shape (N, {len(codebook_sizes)}), got {codes.shape}")
    columns = ngram_columns(codebook_sizes, feature)
    table = vocabulary_size(codebook_sizes, feature)
    # Below the exact vocabulary the modulo changes nothing; it is taken after every step so that
    # a prefix of six codes of 2048, 2**66 values, never leaves int64.
    ids = np.empty((len(codes), len(columns)), np.int64)
    for position, column in enumerate(columns):
        packed = np.zeros(len(codes), np.int64)
        for level in range(column.start, column.stop):
            packed = (packed * int(codebook_sizes[level]) + codes[:, level]) % table
        ids[:, position] = (packed + column.shift % table) % table
    return ids


def count_windows(
    chunks: Iterable[np.ndarray],
    codebook_sizes: Sequence[int],
    feature: NgramFeature,
    position: int,
) -> Iterator[NgramCounts]:
    """Counts the items per n-gram of one column.

    The windows of a prefix come in order and are let go as they end; of other windows the distinct
    ones are held, 16 bytes each.

    Args:
      chunks: (n, L) codes in SID order, within and across chunks.
      codebook_sizes: K_1..K_L, their product at most 2**64.
      feature: which n-grams.
      position: of the column, from 0.

    Yields:
      Ascending windows in pieces; none comes twice.
    """
    column = ngram_columns(codebook_sizes, feature)[position]
    sizes = [int(size) for size in codebook_sizes[column.start : column.stop]]
    few = math.prod(sizes) <= _FEW_WINDOWS
    numbers, counts = np.empty(0, np.uint64), np.empty(0, np.int64)
    for codes in chunks:
        packed = np.zeros(len(codes), np.uint64)
        for offset, size in enumerate(sizes):
            packed = packed * np.uint64(size) + codes[:, column.start + offset].astype(np.uint64)
        if few:
            new, new_counts = _count_few(packed)
        else:  # prefixes are in order as they come
            new, new_counts = _count_ordered(np.sort(packed) if column.start else packed)
        numbers, counts = _add_up(numbers, counts, new, new_counts)
        if column.start == 0 and len(numbers) > 1:  # the last one may go on in the next chunk
            yield _describe(numbers[:-1], counts[:-1], codebook_sizes, feature, position)
            numbers, counts = numbers[-1:], counts[-1:]
    if len(numbers):
        yield _describe(numbers, counts, codebook_sizes, feature, position)


def _count_few(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct ones of small uint64 numbers, ascending, and how often each occurs."""
    counts = np.bincount(numbers.astype(np.int64))
    distinct = np.flatnonzero(counts)
    return distinct.astype(np.uint64), counts[distinct]


def _count_ordered(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the same of ascending numbers of any size."""
    starts, ends = runs(numbers)
    return numbers[starts], ends - starts


def _add_up(
    numbers: np.ndarray, counts: np.ndarray, new: np.ndarray, new_counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Joins two ascending lists of distinct numbers and adds the counts of those in both."""
    place = np.searchsorted(numbers, new)
    known = place < len(numbers)
    known[known] = numbers[place[known]] == new[known]
    counts = counts.copy()
    counts[place[known]] += new_counts[known]
    fresh = ~known
    return (
        np.insert(numbers, place[fresh], new[fresh]),
        np.insert(counts, place[fresh], new_counts[fresh]),
    )


def _describe(
    numbers: np.ndarray,
    counts: np.ndarray,
    codebook_sizes: Sequence[int],
    feature: NgramFeature,
    position: int,
) -> NgramCounts:
    """Turns mixed-radix window numbers back into codes and ids."""
    column = ngram_columns(codebook_sizes, feature)[position]
    codes = np.zeros((len(numbers), len(codebook_sizes)), np.int32)
    rest = numbers
    for level in reversed(range(column.start, column.stop)):
        rest, codes[:, level] = np.divmod(rest, np.uint64(codebook_sizes[level]))
    ids = ngram_ids(codes, codebook_sizes, feature)[:, position]
    return NgramCounts(ids, codes[:, column.start : column.stop], counts)
