import dataclasses
import hashlib

import numpy as np
import pyarrow as pa
import xxhash

from schemas.config import InputConfig, TextConfig
from schemas.rejects import RejectReason
from schemas.tables import PARSED, REJECTED_PAYLOAD_BYTES, REJECTS
from semid_transforms.coercion import Kind, Problem
from semid_transforms.embedding_columns import EmbeddingSpec
from semid_transforms.rows import Field, Reject, Rows, fields_schema
from semid_transforms.sources import Format, SourceSplit
from semid_transforms.validation import (
    hash_fused,
    hash_texts,
    hash_vectors,
    plan_fields,
    validate,
)

SPLIT = SourceSplit("a.jsonl", Format.JSON_LINES, source=5, number=3)


def rows(values: list[dict], embedding=None, problems=None, refused=()) -> Rows:
    fields = plan_fields(InputConfig(), TextConfig(), embedding)
    batch = pa.RecordBatch.from_pylist(values, fields_schema(fields))
    numbers = np.arange(len(values), dtype=np.int64) * 10
    return Rows(numbers, batch, problems or {}, "line {}".format, b"payload %d".__mod__, refused)


def test_the_plan_reads_what_the_template_and_the_tables_need():
    config = InputConfig(columns={"item_id": "sku", "colour": "color", "embedding": "v"})
    fields = plan_fields(config, TextConfig(parts=("{title} in {colour}", "{title}")), None)
    assert fields == [
        Field("item_id", "sku", Kind.TEXT),
        Field("title", "title", Kind.TEXT),
        Field("category_path", "category_path", Kind.PATH),
        Field("popularity", "popularity", Kind.NUMBER),
        Field("updated_at", "updated_at", Kind.TIME),
        Field("colour", "color", Kind.TEXT),
    ]
    embedding = EmbeddingSpec(("v",), (2,), (1.0,))
    assert plan_fields(config, TextConfig(), embedding)[5:] == [
        Field("embedding 0", "v", Kind.VECTOR)
    ]


def test_valid_rows_become_parsed_rows():
    values = [
        {"item_id": "1", "title": " A <b>b</b> ", "category_path": ["x", " "], "popularity": 2.0},
        {"item_id": " 2", "brand": "B"},
    ]
    parsed, rejects = validate(rows(values), SPLIT, TextConfig(), None)
    assert parsed.schema.equals(PARSED)
    assert rejects.num_rows == 0
    hashes = [hashlib.blake2b(t, digest_size=16, person=b"semid text") for t in (b"A b. x", b"B")]
    assert parsed.to_pylist() == [
        {
            "item_id": "1",
            "text": "A b. x",
            "title": "A b",
            "category_path": ["x"],
            "popularity": 2.0,
            "updated_at": None,
            "content_hash": hashes[0].digest(),
            "source": 5,
            "split": 3,
            "row": 0,
        },
        {
            "item_id": " 2",
            "text": "B",
            "title": None,
            "category_path": None,
            "popularity": None,
            "updated_at": None,
            "content_hash": hashes[1].digest(),
            "source": 5,
            "split": 3,
            "row": 10,
        },
    ]


def test_every_row_is_passed_on_or_refused_for_its_first_fault():
    bad = Problem(RejectReason.BAD_FIELD, "column title: no text")
    values = [
        {"item_id": None, "title": "t"},
        {"item_id": "2", "title": "t"},
        {"item_id": "3", "title": "&nbsp;"},
        {"item_id": "\u2003", "title": None},
        {"item_id": "5", "title": "t"},
        {"item_id": None},
    ]
    refused = [
        Reject(Problem(RejectReason.UNPARSABLE, "no \ud800 row"), "line 9", b"x" * (2 << 20))
    ]
    given = rows(values, problems={4: bad, 5: bad}, refused=refused)
    parsed, rejects = validate(given, SPLIT, TextConfig(), None)
    assert rejects.schema.equals(REJECTS)
    assert parsed["item_id"].to_pylist() == ["2"]
    assert parsed.num_rows + rejects.num_rows == given.read == 7
    assert [(r["reason"], r["item_id"], r["detail"]) for r in rejects.to_pylist()] == [
        ("unparsable", None, "line 9: no \\ud800 row"),
        ("missing_id", None, "line 0: item_id is missing or blank"),
        (
            "no_text",
            "3",
            "line 2: all of title, brand, category_path, description are empty",
        ),
        ("missing_id", None, "line 3: item_id is missing or blank"),
        ("bad_field", "5", "line 4: column title: no text"),
        ("bad_field", None, "line 5: column title: no text"),
    ]
    payloads = rejects["payload"].to_pylist()
    assert payloads[0] == b"x" * REJECTED_PAYLOAD_BYTES
    assert payloads[1] == b"payload 0"


def test_embeddings_replace_the_text():
    embedding = EmbeddingSpec(("v",), (2,), (1.0,))
    values = [
        {"item_id": "1", "embedding 0": [3.0, 4.0]},
        {"item_id": "2", "title": "t", "embedding 0": [6.0, 8.0]},
        {"item_id": "3", "title": "t", "embedding 0": [1.0]},
        {"item_id": None, "embedding 0": None},
    ]
    parsed, rejects = validate(rows(values, embedding), SPLIT, TextConfig(), embedding)
    assert parsed["text"].null_count == 2
    assert parsed["title"].to_pylist() == [None, "t"]
    contents = [np.array(values, "<f4").tobytes() for values in ([3, 4], [6, 8])]
    digests = [xxhash.xxh3_128_digest(content, embedding.hash_seed) for content in contents]
    assert parsed["content_hash"].to_pylist() == digests
    assert rejects["reason"].to_pylist() == ["bad_embedding", "missing_id"]


def test_hashes_are_of_the_values_and_of_how_they_are_combined():
    spec = EmbeddingSpec(("image", "words"), (1, 1), (1.0, 2.0))
    vector = np.frombuffer(b"abcdefgh", "<f4")[None]
    hashes = hash_vectors(vector, spec)
    assert hashes[0] != hash_texts(pa.array(["abcdefgh"]))[0]
    assert hash_vectors(vector.astype(">f4"), spec).equals(hashes)
    assert hash_vectors(np.asfortranarray(vector), spec).equals(hashes)
    assert hash_vectors(vector, dataclasses.replace(spec, columns=("i", "w"))).equals(hashes)
    texts = pa.array(["t"])
    others = [
        hash_vectors(vector[:, ::-1], spec),
        hash_vectors(vector, dataclasses.replace(spec, weights=(2.0, 1.0))),
        hash_vectors(vector, dataclasses.replace(spec, widths=(2, 0))),
        hash_vectors(vector, dataclasses.replace(spec, optional=1)),
        hash_vectors(vector, dataclasses.replace(spec, text=True)),
        hash_fused(texts, vector, spec),
        hash_fused(texts, vector[:, ::-1], spec),
        hash_fused(pa.array(["u"]), vector, spec),
    ]
    assert len({hashes[0], *(other[0] for other in others)}) == 1 + len(others)
    assert len(hash_texts(pa.array([], pa.string()))) == 0
    assert len(hash_vectors(np.empty((0, 2), "f4"), spec)) == 0


def test_no_rows_at_all():
    parsed, rejects = validate(rows([]), SPLIT, TextConfig(), None)
    assert (parsed.num_rows, rejects.num_rows) == (0, 0)
