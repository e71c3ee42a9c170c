import pyarrow as pa
import pytest

from schemas import tables

SID = pa.int64()
ALL = {
    "parsed": tables.PARSED,
    "catalog": tables.CATALOG,
    "rejects": tables.REJECTS,
    "source counts": tables.SOURCE_COUNTS,
    "ngrams": tables.NGRAMS,
    "embeddings": tables.embedding_schema(),
    "items": tables.items_schema(SID, ["unigram", "bigram"]),
    **{
        name: getattr(tables, f"{name}_schema")(SID)
        for name in ("parent", "changed", "origin", "coded", "reserved", "changes", "nodes")
    },
}


@pytest.mark.parametrize("schema", ALL.values(), ids=ALL)
def test_every_table_can_pass_between_stages(schema):
    """Beam's row coders and other engines cannot read these types, so no table uses them."""
    assert len(set(schema.names)) == len(schema)
    for field in schema:
        type_ = field.type.value_type if pa.types.is_list(field.type) else field.type
        assert not pa.types.is_dictionary(type_)
        assert not pa.types.is_nested(type_)
        assert not pa.types.is_large_string(type_)
        assert type_ not in (pa.float16(), pa.uint16(), pa.string_view(), pa.binary_view())


def test_published_items_are_as_the_contract_says():
    fields = {field.name: str(field.type) for field in ALL["items"]}
    assert fields == {
        "item_id": "string",
        "sid": "int64",
        "codes": "list<item: int32>",
        "base_codes": "list<item: int32>",
        "path_labels": "list<item: string>",
        "suffix": "int32",
        "placement": "string",
        "quantization_error": "float",
        "content_hash": "fixed_size_binary[16]",
        "tokenizer_id": "string",
        "first_generation": "string",
        "event_timestamp": "timestamp[us, tz=UTC]",
        "created_timestamp": "timestamp[us, tz=UTC]",
        "unigram": "list<item: int64>",
        "bigram": "list<item: int64>",
    }
    assert not any(field.nullable for field in ALL["items"])
    assert tables.items_schema(pa.uint64(), []).field("sid").type == pa.uint64()
    assert [str(change) for change in tables.Change] == ["new", "updated", "moved", "retired"]
    placements = ["nearest", "reassigned", "spilled", "suffixed"]
    assert [str(placement) for placement in tables.Placement] == placements


def test_conform_returns_the_same_batch():
    schema = pa.schema([pa.field("a", pa.int64(), nullable=False), pa.field("b", pa.string())])
    batch = pa.RecordBatch.from_arrays([pa.array([1]), pa.array(["x"])], schema=schema)
    assert tables.conform(batch, schema) is batch


@pytest.mark.parametrize(
    "wrong",
    [
        pa.schema([pa.field("a", pa.int64()), pa.field("b", pa.string())]),
        pa.schema([pa.field("b", pa.string()), pa.field("a", pa.int64(), nullable=False)]),
        pa.schema([pa.field("a", pa.int32(), nullable=False), pa.field("b", pa.string())]),
        pa.schema([pa.field("a", pa.int64(), nullable=False)]),
    ],
    ids=["nullable", "order", "type", "missing"],
)
def test_conform_shows_both_sides(wrong):
    schema = pa.schema([pa.field("a", pa.int64(), nullable=False), pa.field("b", pa.string())])
    batch = wrong.empty_table().to_batches() or [pa.RecordBatch.from_pylist([], wrong)]
    with pytest.raises(TypeError) as error:
        tables.conform(batch[0], schema)
    assert "expected: a: int64 not null, b: string" in str(error.value)
    assert f"got: {wrong.names[0]}: " in str(error.value)
