"""The Flex Template's pipeline runs the whole chain on its worker."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipelines.errors import UsageError
from pipelines.flex_template import main
from tests.pipelines.jobs import SETTINGS, assert_sound, sids, vector_rows, write_rows


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
    main([*where, "--runner", "FnApiRunner"])
    assert set(sids(root)) == set(contents)
    assert_sound(root)


def test_a_bad_configuration_fails_the_launch(tmp_path: Path) -> None:
    config = tmp_path / "semid.yaml"
    config.write_text("encoder: {modle: x}", "utf-8")
    with pytest.raises(UsageError, match=r"encoder\.modle: unknown key"):
        main(["--catalog", "x", "--root", str(tmp_path / "root"), "--config", str(config)])
    assert not (tmp_path / "root").exists()
