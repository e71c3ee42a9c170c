"""What the command does when its result cannot be printed."""

import os
import sys

import pytest

from tests.pipelines import jobs


def test_a_reader_that_leaves_early_is_no_failure(tmp_path, monkeypatch, capsys):
    catalog = jobs.write_rows(tmp_path / "c.parquet", jobs.vector_rows({"a": 1, "b": 2, "c": 3}))
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        arguments = ["tokenize", "--catalog", catalog, "--root", str(tmp_path / "root"), "--quiet"]
        assert jobs.command(tmp_path, *arguments, config=jobs.SETTINGS) == 0
    assert capsys.readouterr().err == ""
    jobs.assert_sound(tmp_path / "root")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="2026-11: only Linux has /dev/full")
def test_a_result_that_does_not_fit_on_the_disk_is_a_failure(vector_root, monkeypatch, capsys):
    with open("/dev/full", "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert jobs.command(vector_root, "show", "--root", str(vector_root)) == 1
    said = capsys.readouterr().err
    assert "cannot be printed: No space left on device" in said
    assert "nothing that was published changed" not in said
