"""The Arrow schema of every table, published or between two links of the job.

Every PCollection between two stages is a stream of `pa.RecordBatch` of one of these schemas, so the
job can be stopped at any arrow, written to Parquet and read back.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import pyarrow as pa

TIMESTAMP = pa.timestamp("us", tz="UTC")
CONTENT_HASH = pa.binary(16)


class Change(enum.StrEnum):
    """What became of an item since the parent generation."""

    NEW = "new"
    UPDATED = "updated"
    MOVED = "moved"
    RETIRED = "retired"


class Placement(enum.StrEnum):
    """How an item came to its codes."""

    NEAREST = "nearest"
    REASSIGNED = "reassigned"
    SPILLED = "spilled"
    SUFFIXED = "suffixed"


PARSED = pa.schema(
    [
        pa.field("item_id", pa.string()),
        pa.field("text", pa.string()),
        pa.field("title", pa.string()),
        pa.field("category_path", pa.list_(pa.string())),
        pa.field("popularity", pa.float64()),
        pa.field("updated_at", TIMESTAMP),
        pa.field("content_hash", CONTENT_HASH, nullable=False),
        pa.field("source", pa.int32(), nullable=False),
        pa.field("split", pa.int64(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
    ]
)
"""A valid catalog row: the text to embed (null when the catalog brings embeddings) and where it
stands: source file, split number inside the file, row number inside the split. The file is its
number among those of the catalog, in order of path: paths were a third of what is shuffled."""

CATALOG = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("content_hash", CONTENT_HASH, nullable=False),
        pa.field("title", pa.string()),
        pa.field("category_path", pa.list_(pa.string())),
        pa.field("popularity", pa.float64()),
        pa.field("updated_at", TIMESTAMP),
        pa.field("source", pa.string(), nullable=False),
    ]
)
"""The validated catalog a generation was made from, one row per live item."""

REJECTS = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("item_id", pa.string()),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("payload", pa.binary()),
    ]
)
"""One refused row. `payload` is the row as it was read (UTF-8 JSON, or the raw bytes when they are
not valid UTF-8), cut at the configured length."""

SOURCE_COUNTS = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("read", pa.int64(), nullable=False),
        pa.field("live", pa.int64(), nullable=False),
        pa.field("rejected", pa.int64(), nullable=False),
        pa.field("duplicate", pa.int64(), nullable=False),
    ]
)
"""Rows per source file as one stage saw them; the sum over stages balances."""

REJECTED_PAYLOAD_BYTES = 1 << 20
"""Longest payload kept of a refused row, in bytes."""


def parent_schema(sid_type: pa.DataType) -> pa.Schema:
    """What the diff needs of an item that already has an ID: live, or retired and reserved.

    `base_sid` packs its base codes; `retired_generation` is set when the ID is only reserved.
    """
    return pa.schema(
        [
            pa.field("item_id", pa.string(), nullable=False),
            pa.field("content_hash", CONTENT_HASH, nullable=False),
            pa.field("sid", sid_type, nullable=False),
            pa.field("base_sid", sid_type, nullable=False),
            pa.field("retired_generation", pa.string()),
        ]
    )


def changed_schema(sid_type: pa.DataType) -> pa.Schema:
    """An item that needs an embedding and codes.

    `change` is `new`, `updated`, or, for every other item when a new tokenizer starts a new ID
    space, `moved`; `sid` is the ID it had in the parent generation: null for an item never seen,
    set for an updated or moved one and for one that returns after it was retired.
    `source`, `split` and `row` say where its embedding stands when the catalog brings one.
    """
    return pa.schema(
        [
            pa.field("item_id", pa.string(), nullable=False),
            pa.field("content_hash", CONTENT_HASH, nullable=False),
            pa.field("text", pa.string()),
            pa.field("source", pa.string(), nullable=False),
            pa.field("split", pa.int64(), nullable=False),
            pa.field("row", pa.int64(), nullable=False),
            pa.field("change", pa.string(), nullable=False),
            pa.field("sid", sid_type),
            pa.field("base_sid", sid_type),
        ]
    )


def embedding_schema() -> pa.Schema:
    """`embeddings/`: one row per item, a list of D float32 values."""
    return pa.schema(
        [
            pa.field("item_id", pa.string(), nullable=False),
            pa.field("content_hash", CONTENT_HASH, nullable=False),
            pa.field("embedding", pa.list_(pa.float32()), nullable=False),
        ]
    )


def origin_schema(sid_type: pa.DataType) -> pa.Schema:
    """Row i says why row i of the embedding part of the same name was embedded."""
    return pa.schema(
        [
            pa.field("change", pa.string(), nullable=False),
            pa.field("sid", sid_type),
            pa.field("base_sid", sid_type),
        ]
    )


def coded_schema(sid_type: pa.DataType) -> pa.Schema:
    """A changed item with its base codes and where its embedding stands (part and row).

    A retired item has no codes: it only gives back its row.
    """
    return pa.schema(
        [
            pa.field("item_id", pa.string(), nullable=False),
            pa.field("content_hash", CONTENT_HASH, nullable=False),
            pa.field("change", pa.string(), nullable=False),
            pa.field("sid", sid_type),
            pa.field("base_sid", sid_type),
            pa.field("base_codes", pa.list_(pa.int32())),
            pa.field("quantization_error", pa.float32()),
            pa.field("part", pa.string()),
            pa.field("part_row", pa.int64()),
        ]
    )


def items_schema(sid_type: pa.DataType, features: Sequence[str]) -> pa.Schema:
    """`items/`: one row per live item, sorted by SID across parts."""
    return pa.schema(
        [
            pa.field("item_id", pa.string(), nullable=False),
            pa.field("sid", sid_type, nullable=False),
            pa.field("codes", pa.list_(pa.int32()), nullable=False),
            pa.field("base_codes", pa.list_(pa.int32()), nullable=False),
            pa.field("suffix", pa.int32(), nullable=False),
            pa.field("placement", pa.string(), nullable=False),
            pa.field("quantization_error", pa.float32(), nullable=False),
            pa.field("content_hash", CONTENT_HASH, nullable=False),
            pa.field("tokenizer_id", pa.string(), nullable=False),
            pa.field("first_generation", pa.string(), nullable=False),
            pa.field("event_timestamp", TIMESTAMP, nullable=False),
            pa.field("created_timestamp", TIMESTAMP, nullable=False),
            pa.field("path_labels", pa.list_(pa.string()), nullable=False),
            *(pa.field(name, pa.list_(pa.int64()), nullable=False) for name in features),
        ]
    )


def reserved_schema(sid_type: pa.DataType) -> pa.Schema:
    """`reserved/`: the ID of every retired item, kept so that it is never given to another.

    `base_sid` packs the base codes it had, so that an item that returns unchanged is known as such.
    """
    return pa.schema(
        [
            pa.field("item_id", pa.string(), nullable=False),
            pa.field("sid", sid_type, nullable=False),
            pa.field("base_sid", sid_type, nullable=False),
            pa.field("content_hash", CONTENT_HASH, nullable=False),
            pa.field("retired_generation", pa.string(), nullable=False),
            pa.field("retired_timestamp", TIMESTAMP, nullable=False),
        ]
    )


def changes_schema(sid_type: pa.DataType, old_type: pa.DataType | None = None) -> pa.Schema:
    """`changes/`: one row per item that differs from the parent generation.

    `old_type` is that of the parent's SIDs, where a new tokenizer has another layout.
    """
    return pa.schema(
        [
            pa.field("item_id", pa.string(), nullable=False),
            pa.field("change", pa.string(), nullable=False),
            pa.field("old_sid", old_type or sid_type),
            pa.field("new_sid", sid_type),
        ]
    )


def nodes_schema(sid_type: pa.DataType) -> pa.Schema:
    """`nodes/`: one row per trie node, depth 1 to L, in trie order.

    `prefix` is the packed prefix without the bits below it: `sid >> shift(depth)`.
    """
    return pa.schema(
        [
            pa.field("depth", pa.int32(), nullable=False),
            pa.field("codes", pa.list_(pa.int32()), nullable=False),
            pa.field("prefix", sid_type, nullable=False),
            pa.field("item_count", pa.int64(), nullable=False),
            pa.field("label", pa.string()),
            pa.field("exemplar_item_id", pa.string(), nullable=False),
        ]
    )


NGRAMS = pa.schema(
    [
        pa.field("feature", pa.string(), nullable=False),
        pa.field("id", pa.int64(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),
        pa.field("codes", pa.list_(pa.int32()), nullable=False),
        pa.field("item_count", pa.int64(), nullable=False),
    ]
)
"""`ngrams/`: every n-gram in use; `position` is its place in the feature's list column."""


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Returns the batch unchanged when it has exactly this schema.

    Raises:
      TypeError: names, order or types differ; the message shows both sides.
    """
    if not batch.schema.equals(schema):
        raise TypeError(
            f"batch of {batch.num_rows} rows does not have the schema of its table.\n"
            f"expected: {_one_line(schema)}\n     got: {_one_line(batch.schema)}"
        )
    return batch


def _one_line(schema: pa.Schema) -> str:
    return ", ".join(
        f"{field.name}: {field.type}{'' if field.nullable else ' not null'}" for field in schema
    )
