"""The Flex Template's pipeline runs the whole chain on its worker."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path

import pytest
import yaml

from pipelines import flex_template
from pipelines.arguments import timestamp
from pipelines.errors import UsageError
from pipelines.flex_template import build_parser, main
from tests.pipelines.jobs import AS_OF, SETTINGS, assert_sound, sids, table, vector_rows, write_rows


def test_the_template_publishes_a_generation(tmp_path: Path) -> None:
    contents = {f"i{number}": number for number in range(60)}
    rows = vector_rows(contents)
    write_rows(tmp_path / "a.jsonl", rows[:30])
    write_rows(tmp_path / "b.jsonl", rows[30:])
    config = tmp_path / "semid.yaml"
    config.write_text(yaml.safe_dump(SETTINGS), "utf-8")
    patterns = f"{tmp_path}/a.jsonl;{tmp_path}/b.jsonl"
    root = tmp_path / "root"
    where = ["--catalog", patterns, "--root", str(root), "--config", str(config)]
    main([*where, "--as_of", "2026-03-01T02:00:00Z", "--runner", "FnApiRunner"])
    assert set(sids(root)) == set(contents)
    stamped = AS_OF + datetime.timedelta(hours=2)
    assert set(table(root, "items")["event_timestamp"].to_pylist()) == {stamped}
    assert_sound(root)


def test_a_bad_configuration_fails_the_launch(tmp_path: Path) -> None:
    config = tmp_path / "semid.yaml"
    config.write_text("encoder: {modle: x}", "utf-8")
    with pytest.raises(UsageError, match=r"encoder\.modle: unknown key"):
        main(["--catalog", "x", "--root", str(tmp_path / "root"), "--config", str(config)])
    assert not (tmp_path / "root").exists()


def test_a_bad_time_fails_the_launch(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--as_of: 'tonight' is not an ISO 8601 time"):
        main(["--catalog", "x", "--root", str(tmp_path / "root"), "--as_of", "tonight"])
    assert not (tmp_path / "root").exists()


def described() -> dict[str, dict]:
    """Returns what Dataflow is told of each parameter."""
    path = Path(flex_template.__file__).with_suffix(".json")
    parameters = json.loads(path.read_text("utf-8"))["parameters"]
    return {parameter["name"]: parameter for parameter in parameters}


def test_dataflow_is_told_of_the_parameters_that_the_template_takes() -> None:
    taken = {
        action.dest: action for action in build_parser()._actions if action.dest not in ("help",)
    }
    told = described()
    assert set(told) == set(taken)
    for name, action in taken.items():
        assert told[name]["isOptional"] == (not action.required)
        assert told[name].get("defaultValue") == action.default
    arguments = [f"--{name}=gs://x/{name}" for name in told]
    assert vars(build_parser().parse_args(arguments)) == {name: f"gs://x/{name}" for name in told}


@pytest.mark.parametrize(
    ("name", "value", "good"),
    [
        ("catalog", "gs://shop/catalog/*.parquet", True),
        ("catalog", "gs://shop/a/*.jsonl.gz;gs://shop/b/2026-??.csv", True),
        ("catalog", "gs://shop/a/*.jsonl;", False),
        ("catalog", "gs://shop/a.csv, gs://shop/b.csv", False),
        ("catalog", "/home/me/catalog.csv", False),
        ("catalog", "", False),
        ("root", "gs://shop/ids", True),
        ("root", "gs://my.shop-2/nightly/ids/", True),
        ("root", "gs://shop/ids*", False),
        ("root", "s3://shop/ids", False),
        ("root", "shop/ids", False),
        ("config", "", True),
        ("config", "gs://shop/semid.yaml", True),
        ("config", "gs://shop/semid.yml", True),
        ("config", "gs://shop/semid.json", False),
        ("config", "semid.yaml", False),
        ("as_of", "", True),
        ("as_of", "2026-03-01", True),
        ("as_of", "2026-03-01T02:00:00Z", True),
        ("as_of", "2026-03-01T02:00:00.5+01:00", True),
        ("as_of", "2026-3-1", False),
        ("as_of", "tonight", False),
    ],
)
def test_dataflow_checks_parameters_before_it_starts(name: str, value: str, good: bool) -> None:
    expressions = described()[name]["regexes"]
    assert expressions
    assert all(re.fullmatch(text, value) for text in expressions) == good
    if name == "as_of" and value and good:
        assert timestamp(value).tzinfo
    if value in ("", described()[name].get("defaultValue")):
        assert good == described()[name]["isOptional"]
