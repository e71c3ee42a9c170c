"""Which rows become items: the checks of the reading stage and the columns it passes on."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.arrays import bytes_from_fixed_binary, fixed_binary, mask_from_bool
from schemas.config import InputConfig, TextConfig
from schemas.rejects import RejectReason
from schemas.tables import CONTENT_HASH, PARSED
from semid_transforms import text
from semid_transforms.coercion import Kind, Problem
from semid_transforms.embedding_columns import EmbeddingSpec, check, vector_columns, vector_fields
from semid_transforms.hashing import blake2b_digests, xxh3_digests
from semid_transforms.rows import Field, Reject, Rows, reject_batch
from semid_transforms.sources import SourceSplit

HASH_BYTES = CONTENT_HASH.byte_width
_TEXT_DOMAIN = b"semid text"
_FUSED_DOMAIN = b"semid fused"

_PASSED_ON = ["item_id", "popularity", "updated_at"]
"""Fields that a parsed row has as they were read."""

_KINDS = {
    "item_id": Kind.TEXT,
    "title": Kind.TEXT,
    "category_path": Kind.PATH,
    "popularity": Kind.NUMBER,
    "updated_at": Kind.TIME,
}


def plan_fields(
    input_config: InputConfig, text_config: TextConfig, embedding: EmbeddingSpec | None
) -> list[Field]:
    """Returns what is read of every row: the fixed fields, then text, embeddings or both."""
    rendered = embedding is None or embedding.text
    names = dict.fromkeys([*_KINDS, *(text_config.fields if rendered else ())])
    fields = [Field(name, input_config.column(name), _KINDS.get(name, Kind.TEXT)) for name in names]
    return fields + ([] if embedding is None else vector_fields(embedding.columns))


def hash_texts(texts: pa.Array) -> pa.Array:
    """Returns the content hash of N rendered texts: BLAKE2b-16, personalised `semid text`."""
    return _hashes([value.encode() for value in texts.to_pylist()], _TEXT_DOMAIN)


def hash_vectors(vectors: np.ndarray, spec: EmbeddingSpec) -> pa.Array:
    """Returns the content hash of (N, D) float32 values from `embedding_columns.check`.

    XXH3-128 over their little-endian bytes, seeded by how they are combined: it takes a seventh of
    BLAKE2b's time, and a catalog that makes its vectors collide on purpose harms itself alone.
    """
    return fixed_binary(xxh3_digests(vectors, spec.hash_seed), HASH_BYTES)


def hash_fused(texts: pa.Array, vectors: np.ndarray, spec: EmbeddingSpec) -> pa.Array:
    """Returns the content hash of N texts and the (N, D) values that are fused with them.

    BLAKE2b-16, personalised `semid fused`, over the hash of the text and that of the values.
    """
    parts = [bytes_from_fixed_binary(hash_texts(texts)), xxh3_digests(vectors, spec.hash_seed)]
    return _hashes(map(memoryview, np.concatenate(parts, axis=1)), _FUSED_DOMAIN)


def _hashes(contents: Iterable[bytes | memoryview], domain: bytes) -> pa.Array:
    return fixed_binary(blake2b_digests(contents, HASH_BYTES, domain), HASH_BYTES)


def validate(
    rows: Rows, split: SourceSplit, text_config: TextConfig, embedding: EmbeddingSpec | None
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Judges rows.

    A row with several faults is refused for the first of: a field that cannot be read, no id, no
    text or a bad embedding.

    Args:
      rows: from a file.
      split: where they come from.
      text_config: the template of the text, unless the catalog's embeddings replace it.
      embedding: how the catalog's embeddings are combined, or None to render text alone.

    Returns:
      A `PARSED` batch and a `REJECTS` batch that together hold every row once.
    """
    fields = rows.fields
    number = fields.num_rows
    problems = dict(rows.problems)
    blank_id = _is_blank(fields.column("item_id"))
    for row in np.flatnonzero(blank_id).tolist():
        problems.setdefault(row, Problem(RejectReason.MISSING_ID, "item_id is missing or blank"))
    titles = text.clean(fields.column("title"))
    paths = text.clean_paths(fields.column("category_path"))
    texts = pa.nulls(number, pa.string())
    vectors = np.zeros((number, 0), np.float32)
    if embedding is None or embedding.text:
        texts = _render(fields, titles, paths, text_config)
        used = ", ".join(text_config.fields)
        for row in np.flatnonzero(mask_from_bool(pc.equal(texts, ""))).tolist():
            problems.setdefault(row, Problem(RejectReason.NO_TEXT, f"all of {used} are empty"))
    if embedding is not None:
        vectors, bad = check(vector_columns(fields, embedding), embedding)
        for row, detail in bad.items():
            problems.setdefault(row, Problem(RejectReason.BAD_EMBEDDING, detail))
    valid = np.ones(number, bool)
    valid[list(problems)] = False
    numbers, plain = rows.numbers, fields.select(_PASSED_ON)
    if problems:  # else copies of everything would be for nothing
        kept = pa.array(np.flatnonzero(valid))
        texts, titles, paths, plain = (
            column.take(kept) for column in (texts, titles, paths, plain)
        )
        vectors, numbers = vectors[valid], numbers[valid]
    if embedding is None:
        hashes = hash_texts(texts)
    elif embedding.text:
        hashes = hash_fused(texts, vectors, embedding)
    else:
        hashes = hash_vectors(vectors, embedding)
    parsed = pa.RecordBatch.from_arrays(
        [
            plain["item_id"],
            texts,
            pc.if_else(pc.equal(titles, ""), pa.scalar(None, pa.string()), titles),
            paths,
            plain["popularity"],
            plain["updated_at"],
            hashes,
            pa.repeat(pa.scalar(split.source, pa.int32()), len(numbers)),
            pa.repeat(pa.scalar(split.number, pa.int64()), len(numbers)),
            pa.array(numbers),
        ],
        schema=PARSED,
    )
    return parsed, reject_batch(split.path, [*rows.refused, *_rejects(rows, problems, blank_id)])


def _render(
    fields: pa.RecordBatch, titles: pa.Array, paths: pa.Array, text_config: TextConfig
) -> pa.Array:
    cleaned = {"title": titles, "category_path": text.join_paths(paths)}
    for name in text_config.fields:
        if name not in cleaned:
            cleaned[name] = text.clean(fields.column(name))
    return text.render(cleaned, text_config)


def _rejects(rows: Rows, problems: dict[int, Problem], blank_id: np.ndarray) -> list[Reject]:
    ids = rows.fields.column("item_id")
    return [
        Reject(
            problem,
            rows.place(row),
            rows.payload(row),
            None if blank_id[row] else ids[row].as_py(),
        )
        for row, problem in sorted(problems.items())
    ]


def _is_blank(texts: pa.Array) -> np.ndarray:
    return mask_from_bool(pc.equal(pc.utf8_trim_whitespace(pc.fill_null(texts, "")), ""))
