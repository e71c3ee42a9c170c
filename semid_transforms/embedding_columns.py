"""Embeddings that the catalog brings: finding, checking, combining and reading them again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.arrays import mask_from_bool
from schemas.config import InputConfig, ShardConfig
from semid_transforms.coercion import Kind
from semid_transforms.files import SourceFile
from semid_transforms.formats import read_rows
from semid_transforms.rows import Field
from semid_transforms.sources import SourceSplit, file_columns, list_splits

DEFAULT_COLUMN = "embedding"

_SEARCHED_ROWS = 100_000
_SEARCHED_AT_ONCE = 256
_BLOCK_VALUES = 1 << 16  # 512 KB as float64
_LEAST_SQUARES = 1e-30
"""Rows whose squared length in float32 is below, or not finite, are looked at in float64."""


@dataclasses.dataclass(frozen=True)
class EmbeddingSpec:
    """Which columns of the catalog make the embedding.

    Attributes:
      columns: their names.
      widths: length of the vectors of each.
      weights: of each; only their ratio matters, since the result has unit length.
      optional: how many of the columns, the last ones, may be null.
      text: True when the embedding of the text stands before the columns, with weight 1.
    """

    columns: tuple[str, ...]
    widths: tuple[int, ...]
    weights: tuple[float, ...]
    optional: int = 0
    text: bool = False

    @property
    def embedding_dim(self) -> int:
        """Length D of the combined columns, without the text."""
        return sum(self.widths)

    @property
    def hash_seed(self) -> int:
        """64 bits that tell apart what the same values make under other specs."""
        spec = json.dumps([self.widths, self.weights, self.optional, self.text])
        return int.from_bytes(hashlib.blake2b(spec.encode(), digest_size=8).digest(), "big")

    @property
    def norm(self) -> float:
        """What weights are divided by, so that an item with every part has unit length."""
        return float(np.sqrt(np.sum(np.square(self.weights)) + self.text))


def vector_fields(columns: Sequence[str]) -> list[Field]:
    """Returns the fields that read embedding columns."""
    return [Field(vector_name(i), column, Kind.VECTOR) for i, column in enumerate(columns)]


def vector_name(position: int) -> str:
    """Returns the field of an embedding column; no template field can have this name."""
    return f"embedding {position}"


def vector_columns(fields: pa.RecordBatch, spec: EmbeddingSpec) -> list[pa.Array]:
    """Returns the embedding columns of rows that were read with `vector_fields`, in order."""
    return [fields.column(vector_name(i)) for i in range(len(spec.columns))]


def check(columns: Sequence[pa.Array], spec: EmbeddingSpec) -> tuple[np.ndarray, dict[int, str]]:
    """Finds what is wrong with embeddings without making them, which takes ten times as long.

    Args:
      columns: N lists of float32 or float64 each, in the order of the spec.
      spec: widths.

    Returns:
      (N, D) float32, what a row's content hash is made of: the values as the catalog has them, or
      the row that `combine` makes where a part is null or too long or short for float32. Zero
      where a row has a problem. And what is wrong by row, as `combine` says it.
    """
    parts = []
    odd = np.zeros(len(columns[0]), bool)
    for array, width in zip(columns, spec.widths, strict=True):
        with np.errstate(over="ignore"):
            values = _dense(array, width)[0].astype(np.float32, copy=False)
            squares = np.einsum("nd,nd->n", values, values)
        odd |= ~(np.isfinite(squares) & (squares >= _LEAST_SQUARES))
        parts.append(values)
    contents = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    rows = np.flatnonzero(odd)
    if not len(rows):
        return contents, {}
    made, problems = combine([array.take(pa.array(rows)) for array in columns], spec)
    contents = np.array(contents)
    contents[rows] = made
    return contents, {int(rows[row]): text for row, text in problems.items()}


def combine(columns: Sequence[pa.Array], spec: EmbeddingSpec) -> tuple[np.ndarray, dict[int, str]]:
    """Makes embeddings: every column to unit length, times its weight, side by side, unit length.

    The arithmetic is float64 row by row and rounded once, so that a row's embedding does not
    depend on the rows around it. An optional column that is null is a part of zeros, and the
    other parts stay as long as they are: the item is then equally far, in that part, from all
    items that have it, and no farther from those that also lack it.

    Args:
      columns: N lists of float32 or float64 each, in the order of the spec.
      spec: widths and weights.

    Returns:
      (N, D) float32, zero where a row has a problem; and what is wrong by row.
    """
    rows = len(columns[0])
    matrix = np.empty((rows, spec.embedding_dim), np.float32)
    problems: dict[int, str] = {}
    first_optional = len(spec.columns) - spec.optional
    stop = 0
    for number, (name, array, width, weight) in enumerate(
        zip(spec.columns, columns, spec.widths, spec.weights, strict=True)
    ):
        values, wrong = _dense(array, width)
        absent = np.zeros(rows, bool)
        if number >= first_optional:
            absent = mask_from_bool(array.is_null())
            wrong = {row: text for row, text in wrong.items() if not absent[row]}
        start, stop = stop, stop + width
        bad, zero = _scale_rows(values, weight / spec.norm, matrix[:, start:stop])
        for row in np.flatnonzero(bad).tolist():
            place = int(np.flatnonzero(~np.isfinite(values[row]))[0])
            wrong.setdefault(row, f"value {place} is missing, NaN or infinite")
        for row in np.flatnonzero(zero & ~absent).tolist():
            wrong.setdefault(row, "all its values are zero")
        for row, text in wrong.items():
            problems.setdefault(row, f"column {name}: {text}")
    matrix[list(problems)] = 0
    return matrix, problems


def _scale_rows(
    values: np.ndarray, length: float, out: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scales rows to one length, a few at a time so that all passes but the first are in cache.

    Args:
      values: (N, D) floats; what is not finite counts as zero.
      length: that rows get.
      out: (N, D) float32 to fill; rows of zeros stay zeros, and zero is never negative.

    Returns:
      (N,) bool, which rows have a value that is not finite, and which have only zeros.
    """
    bad, zero = np.zeros(len(values), bool), np.zeros(len(values), bool)
    block_rows = max(1, _BLOCK_VALUES // values.shape[1])
    for start in range(0, len(values), block_rows):
        block = slice(start, start + block_rows)
        wide = values[block].astype(np.float64)
        scratch = np.abs(wide)
        largest = scratch.max(axis=1)  # NaN if one is
        if not np.isfinite(largest).all():
            finite = np.isfinite(wide)
            bad[block] = ~finite.all(axis=1)
            wide[~finite] = 0
            largest = np.abs(wide).max(axis=1)
        zero[block] = largest == 0
        wide /= np.where(largest > 0, largest, 1)[:, None]
        np.multiply(wide, wide, out=scratch)
        norms = np.sqrt(np.add.reduce(scratch, axis=1))  # at least 1 unless all are zero
        wide /= np.where(norms > 0, norms, 1)[:, None]
        if length != 1:
            wide *= length
        out[block] = wide
        out[block] += np.float32(0)  # -0.0 becomes 0.0
    return bad, zero


def fuse_texts(texts: np.ndarray, columns: np.ndarray, spec: EmbeddingSpec) -> np.ndarray:
    """Puts the embeddings of texts before the columns.

    Args:
      texts: (N, T) float32 embeddings of the items' texts; they are brought to unit length.
      columns: (N, D) float32 from `combine`; zeros for items without any of the columns.
      spec: with `text`.

    Returns:
      (N, T + D) float32, of unit length where an item has every part.
    """
    wide = texts.astype(np.float64)
    norms = np.sqrt(np.add.reduce(wide * wide, axis=1, keepdims=True)) * spec.norm
    return np.concatenate([(wide / norms).astype(np.float32), columns], axis=1)


def _dense(array: pa.Array, width: int) -> tuple[np.ndarray, dict[int, str]]:
    """Returns lists as (N, width) floats, zero rows where a list does not have that length.

    Where nothing is wrong that is the column's own memory.
    """
    lengths = pc.fill_null(pc.list_value_length(array), -1).to_numpy(zero_copy_only=False)
    right = lengths == width
    if right.all():
        return _floats(array, width), {}
    wrong = {
        int(row): "no embedding"
        if lengths[row] < 0
        else f"{int(lengths[row])} values, expected {width}"
        for row in np.flatnonzero(~right)
    }
    kept = _floats(array.filter(pa.array(right)), width)
    values = np.zeros((len(array), width), kept.dtype)
    values[right] = kept
    return values, wrong


def _floats(lists: pa.Array, width: int) -> np.ndarray:
    """Returns lists of one length as (N, width); nulls become NaN."""
    return pc.list_flatten(lists).to_numpy(zero_copy_only=False).reshape(-1, width)


def find_embedding(
    sources: Sequence[SourceFile], input_config: InputConfig, shard_config: ShardConfig
) -> EmbeddingSpec | None:
    """Finds out whether the catalog brings embeddings, and how long they are.

    The first row that has a vector in every column decides; at most 100,000 rows are looked at.
    Without a mapping a column called `embedding` is taken where the first file with rows has one.
    Columns that are fused may be null everywhere, so their length is what the configuration says;
    they are ordered by name.

    Returns:
      The columns with their lengths, or None when only text is to be embedded.

    Raises:
      ValueError: embedding columns are mapped or found, and no row has a vector in all of them.
      OSError: a file cannot be opened or read; the message names it.
    """
    found = _find_required(sources, input_config, shard_config)
    fused = sorted(input_config.fuse.items())
    if not fused:
        return found
    before = found or EmbeddingSpec((), (), ())
    return EmbeddingSpec(
        (*before.columns, *(name for name, _ in fused)),
        (*before.widths, *(column.dimension for _, column in fused)),
        (*before.weights, *(column.weight for _, column in fused)),
        optional=len(fused),
        text=found is None,
    )


def _find_required(
    sources: Sequence[SourceFile], input_config: InputConfig, shard_config: ShardConfig
) -> EmbeddingSpec | None:
    """Finds the columns that replace text; None when text is embedded or there are no rows."""
    mapped = input_config.embedding_columns
    if mapped == []:
        return None
    columns = mapped or [DEFAULT_COLUMN]
    fields = vector_fields(columns)
    few = dataclasses.replace(
        shard_config, batch_rows=min(shard_config.batch_rows, _SEARCHED_AT_ONCE)
    )
    seen = 0
    present = mapped is not None
    for split in list_splits(sources, shard_config.split_bytes):
        if not present:
            names = file_columns(split.path)
            if names is not None and DEFAULT_COLUMN not in names:
                return None
            present = names is not None
        for rows in read_rows(split, fields, input_config, few):
            lengths = [rows.fields.column(i).value_lengths() for i in range(len(fields))]
            present = present or bool(rows.problems) or lengths[0].null_count < len(lengths[0])
            widths = np.array([array.fill_null(0).to_numpy() for array in lengths])
            if (full := np.flatnonzero((widths > 0).all(axis=0))).size:
                first = tuple(int(width) for width in widths[:, full[0]])
                weights = tuple(input_config.embedding_weights or [1.0] * len(columns))
                return EmbeddingSpec(tuple(columns), first, weights)
            seen += rows.fields.num_rows
            if seen >= _SEARCHED_ROWS:
                break
        if seen >= _SEARCHED_ROWS or (seen and not present):
            break
    if seen == 0 or not present:  # an empty catalog is refused by what reads it
        return None
    raise ValueError(
        f"no row among the first {seen} has an embedding in {', '.join(columns)}: set "
        "input.columns.embedding to the columns that hold lists of numbers, or to [] to embed text"
    )


def read_vectors(
    split: SourceSplit,
    rows: np.ndarray,
    input_config: InputConfig,
    shard_config: ShardConfig,
    embedding: EmbeddingSpec,
) -> np.ndarray:
    """Reads embeddings again by where they stand.

    Args:
      split: the split that `PARSED.split` numbers in the file `PARSED.source`.
      rows: (n,) values of `PARSED.row`, in any order, repeats allowed.
      input_config: field mapping and limits.
      shard_config: the same `split_bytes` as when the splits were listed.
      embedding: the same as when the rows were read.

    Returns:
      (n, D) float32 from `combine`, in the order of `rows`.

    Raises:
      ValueError: a row is not there or has no valid embedding: the file has changed.
      OSError: the file cannot be opened or read; the message names it.
    """
    rows = np.asarray(rows, np.int64)
    order = np.argsort(rows, kind="stable")
    wanted = rows[order]
    found = np.zeros(len(rows), bool)
    vectors = np.empty((len(rows), embedding.embedding_dim), np.float32)
    for some in read_rows(split, vector_fields(embedding.columns), input_config, shard_config):
        if found.all():
            break
        if not len(some.numbers):
            continue
        first, stop = np.searchsorted(wanted, some.numbers[[0, -1]] + [0, 1])
        place = np.searchsorted(some.numbers, wanted[first:stop])
        here = some.numbers[place] == wanted[first:stop]
        place, targets = place[here], order[first:stop][here]
        if not len(place):
            continue
        columns = vector_columns(some.fields, embedding)
        if len(place) < len(some.numbers) // 2:
            columns = [column.take(pa.array(place)) for column in columns]
            place = np.arange(len(place))
        matrix, bad = combine(columns, embedding)
        if bad:
            good = ~np.isin(place, list(bad))
            place, targets = place[good], targets[good]
        every = np.array_equal(place, np.arange(len(matrix)))
        vectors[targets] = matrix if every else matrix[place]
        found[targets] = True
    if not found.all():
        raise ValueError(
            f"{split.path} has changed while it was read: row {rows[~found].min()} of split "
            f"{split.number} has no valid embedding any more. Start the run again"
        )
    return vectors
