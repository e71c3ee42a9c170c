import dataclasses

import pytest

from schemas.config import (
    InputConfig,
    JobConfig,
    ShardConfig,
    TextConfig,
    canonical_json,
    fingerprint,
    parse,
    template_fields,
)


def test_the_empty_configuration_is_the_default_one():
    assert parse(JobConfig, {}) == JobConfig()
    assert JobConfig().text.fields == ("title", "brand", "category_path", "description")


def test_values_arrive_in_their_place():
    job = parse(
        JobConfig,
        {
            "input": {"columns": {"item_id": "sku", "colour": "color"}, "max_reject_share": 0},
            "text": {"parts": ["{title}", "in {colour}"]},
            "encoder": {"precision": "float32", "max_length": None},
            "ngrams": [{"name": "unigram"}],
            "shards": {"batch_rows": 7},
        },
    )
    assert job.input.column("item_id") == "sku"
    assert job.input.column("title") == "title"
    assert job.input.max_reject_share == 0
    assert job.text == TextConfig(parts=("{title}", "in {colour}"))
    assert job.encoder.precision == "float32"
    assert job.ngrams == ({"name": "unigram"},)
    assert job.shards == ShardConfig(batch_rows=7)
    with pytest.raises(dataclasses.FrozenInstanceError):
        job.input = InputConfig()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"inputs": {}}, "inputs: unknown key"),
        ({"input": {"column": {}}}, "input.column: unknown key"),
        ({"input": {"columns": {"colour": "c"}}}, "input.columns.colour is used by nothing"),
        ({"input": {"columns": {"title": ["a", "b"]}}}, "columns.title must be one column name"),
        ({"input": {"columns": {"title": " "}}}, "columns.title must be a column name, got ' '"),
        ({"input": {"columns": {"embedding": ["a", ""]}}}, "columns.embedding must be a column"),
        ({"input": {"columns": {"title": 3}}}, "input.columns.title.str: Input should be a valid"),
        ({"input": {"max_reject_share": 1.5}}, "less than or equal to 1 (got 1.5)"),
        ({"input": {"max_reject_share": float("nan")}}, "input.max_reject_share"),
        ({"input": {"category_delimiter": ""}}, "category_delimiter must not be empty"),
        ({"input": {"embedding_weights": [1]}}, "1 weights for 0 embedding columns"),
        ({"text": {"parts": []}}, "parts must name at least one field"),
        ({"text": {"parts": ["words"]}}, "part 'words' names no field"),
        ({"text": {"parts": ["{title"]}}, "part '{title': expected '}'"),
        ({"text": {"parts": ["{title!r}"]}}, "write {title} without a format or conversion"),
        ({"text": {"parts": ["{title:>9}"]}}, "write {title} without a format or conversion"),
        ({"text": {"parts": ["{0}"]}}, "'0' is not a text field"),
        ({"text": {"parts": ["{}"]}}, "'' is not a text field"),
        ({"text": {"parts": ["{a.b}"]}}, "'a.b' is not a text field"),
        ({"text": {"parts": ["{embedding}"]}}, "'embedding' is not a text field"),
        ({"encoder": {"precision": "int4"}}, "encoder.precision: Input should be 'auto'"),
        ({"encoder": {"precision": "int8", "backend": "torch"}}, "int8 needs OpenVINO"),
        ({"encoder": {"precision": "int8", "device": "cuda"}}, "int8 runs on processors"),
        (
            {"encoder": {"backend": "openvino", "trust_remote_code": True}},
            "backend: openvino runs no code of a model",
        ),
        ({"shards": {"batch_rows": 0}}, "shards.batch_rows: Input should be greater than or equal"),
        ({"shards": None}, "shards: Input should be a dictionary"),
        ({1: 2}, "1: Keys should be strings"),
        (["input"], "configuration: must be keys and values, got ['input']"),
        (None, "configuration: must be keys and values, got None"),
    ],
)
def test_bad_values_are_named(value, message):
    with pytest.raises(ValueError, match=r"^bad configuration:") as error:
        parse(JobConfig, value)
    assert message in str(error.value)


def test_every_problem_is_listed_and_values_are_cut():
    with pytest.raises(ValueError) as error:
        parse(JobConfig, {"a": 1, "fit": {"sample_rows": "x" * 500}, "gates": {"b": 2}})
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) < 200


def test_messages_name_the_place_of_a_part():
    with pytest.raises(ValueError, match=r"input\.batch: unknown key"):
        parse(InputConfig, {"batch": 1}, "input")
    with pytest.raises(ValueError, match="input: must be keys and values"):
        parse(InputConfig, 7, "input")


def test_embedding_columns():
    assert InputConfig().embedding_columns is None
    assert InputConfig(columns={"embedding": "v"}).embedding_columns == ["v"]
    assert InputConfig(columns={"embedding": []}).embedding_columns == []
    two = InputConfig(columns={"embedding": ["v", "w"]}, embedding_weights=[1, 2.5])
    assert two.embedding_columns == ["v", "w"]
    with pytest.raises(ValueError, match=r"input\.columns\.embedding names several columns"):
        two.column("embedding")
    for weights in ([1, 0], [1, -1], [1, float("nan")], [1, float("inf")]):
        with pytest.raises(ValueError, match="must be positive and finite"):
            InputConfig(columns={"embedding": ["v", "w"]}, embedding_weights=weights)


def test_template_fields():
    assert template_fields("a {b} {{c}} {d}{b}") == ["b", "d", "b"]
    assert TextConfig(parts=("{b} {a}", "{b}")).fields == ("b", "a")


def test_fingerprints_follow_the_value_only():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint(TextConfig()) != fingerprint(TextConfig(parts=("{title}",)))
    assert fingerprint(ShardConfig()) == fingerprint(dataclasses.asdict(ShardConfig()))
    assert canonical_json({"é": (1, None), "a": True}) == '{"a":true,"é":[1,null]}'.encode()
