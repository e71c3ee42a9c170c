"""Disks that fill up, files that cannot be read, workers that fail: nothing published changes."""

import errno
import os
import re
import resource
import shutil

import pytest
import yaml

from pipelines.root import Root
from pipelines.verify import verify
from tests.pipelines import jobs
from tests.pipelines.processes import commands_at_once, run_limited

CONFIG = {**jobs.SETTINGS, "shards": {"rows_per_shard": 100}}


def generation_of(root):
    """Returns {path: bytes} of the published generation, and CURRENT."""
    folder = root / "generations" / str(Root(str(root)).published().generation)
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    return found | {"CURRENT": jobs.current(root)}


def written(folder):
    """Writes the configuration; returns the arguments that name it."""
    path = folder / "semid.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return ["--config", str(path)]


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """A published root, the arguments of the next night, and what that night should give."""
    folder = tmp_path_factory.mktemp("failures")
    contents = {f"item-{n:03d}": f"content {n % 100}" for n in range(120)}
    first = jobs.write_rows(folder / "first.parquet", jobs.vector_rows(contents))
    contents |= {"item-007": "changed", "late": "late"}
    second = jobs.write_rows(folder / "second.parquet", jobs.vector_rows(contents))
    jobs.run(first, folder / "root", CONFIG)
    shutil.copytree(folder / "root", folder / "undisturbed")
    jobs.run(second, folder / "undisturbed", CONFIG)
    arguments = ["tokenize", "--catalog", second, "--as-of", jobs.AS_OF.isoformat()]
    return folder / "root", arguments, generation_of(folder / "undisturbed")


@pytest.fixture
def root(night, tmp_path):
    return shutil.copytree(night[0], tmp_path / "root")


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        ("catalog", MemoryError("cannot allocate"), "out of memory cannot allocate"),
        ("embeddings", OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        ("items", RuntimeError("a worker failed"), "RuntimeError: a worker failed"),
        ("nodes", OSError(errno.EIO, "Input/output error"), "Input/output error"),
        ("manifest.json", OSError(errno.ENOSPC, "No space left on device"), "manifest.json"),
    ],
)
def test_what_a_failing_worker_leaves_is_finished_by_the_next_run(
    night, root, tmp_path, capsys, monkeypatch, table, error, message
):
    """The error comes out of the write, in the middle of a stage of the pipeline."""
    _, arguments, expected = night
    before = jobs.current(root)
    fsync = os.fsync

    def failing(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if re.search(rf"/{re.escape(table)}/|/\.{re.escape(table)}\.", path):
            raise error
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    assert jobs.command(tmp_path, *arguments, "--root", str(root), config=CONFIG) == 1
    said = capsys.readouterr().err
    assert message in said
    assert "nothing that was published changed" in said
    assert jobs.current(root) == before
    assert verify(Root(str(root))).problems == []

    monkeypatch.setattr(os, "fsync", fsync)
    assert jobs.command(tmp_path, *arguments, "--root", str(root), config=CONFIG) == 0
    assert generation_of(root) == expected
    jobs.assert_sound(root)


def test_a_disk_that_takes_no_more_is_named_and_loses_nothing(night, root, tmp_path):
    """The kernel itself refuses: no file of the process may grow beyond 4,000 bytes."""
    _, arguments, expected = night
    before = jobs.current(root)
    arguments = [*arguments, "--root", str(root), *written(tmp_path)]
    code, said = run_limited(arguments, resource.RLIMIT_FSIZE, 4_000)
    assert code == 1
    assert "File too large" in said and str(root) in said
    assert jobs.current(root) == before
    assert verify(Root(str(root))).problems == []
    assert run_limited(arguments, resource.RLIMIT_FSIZE, 1 << 30) == (0, "")
    assert generation_of(root) == expected


def test_a_catalog_file_that_cannot_be_read_is_no_smaller_catalog(root, tmp_path, capsys):
    """Reading the start of a process's memory is an input/output error on every Linux."""
    catalog = tmp_path / "catalog"
    jobs.write_rows(catalog / "a.jsonl", jobs.vector_rows({"item-000": "content 0"}))
    (catalog / "b.jsonl").symlink_to("/proc/self/mem")
    before = jobs.current(root)
    arguments = ["tokenize", "--catalog", f"{catalog}/*.jsonl", "--root", str(root)]
    assert jobs.command(tmp_path, *arguments, config=CONFIG) == 1
    said = capsys.readouterr().err
    assert "Input/output error" in said and "b.jsonl" in said
    assert jobs.current(root) == before
    (catalog / "b.jsonl").unlink()
    jobs.write_rows(catalog / "b.jsonl", jobs.vector_rows({"item-001": "content 1"}))
    assert jobs.command(tmp_path, *arguments, config=CONFIG) == 0
    assert set(jobs.sids(root)) == {"item-000", "item-001"}
    jobs.assert_sound(root)


def test_of_ten_runs_that_publish_at_once_one_wins_and_nine_can_be_run_again(root, tmp_path):
    """Ten processes, each with a catalog of its own, reach the swap at the same moment."""
    config = written(tmp_path)
    kept = {f"item-{n:03d}": f"content {n % 100}" for n in range(119)}
    commands = []
    for number in range(10):
        rows = jobs.vector_rows({**kept, f"of-run-{number}": number})
        catalog = jobs.write_rows(tmp_path / f"{number}.parquet", rows)
        commands.append(["tokenize", "--catalog", catalog, "--root", str(root), *config])
    old = jobs.sids(root)
    said = commands_at_once(commands)
    assert sorted(code for code, _ in said) == [0] + [1] * 9, said
    for code, message in said:
        assert code == 0 or "another run published" in message
    winner = [code for code, _ in said].index(0)
    assert set(jobs.sids(root)) == {*kept, f"of-run-{winner}"}
    jobs.assert_sound(root)
    for loser in [number for number in range(10) if number != winner][:2]:
        assert jobs.command(tmp_path, *commands[loser]) == 0
        assert set(jobs.sids(root)) == {*kept, f"of-run-{loser}"}
        jobs.assert_sound(root)
    now = jobs.sids(root)
    assert {name: now[name] for name in kept} == {name: old[name] for name in kept}
    assert f"of-run-{winner}" in jobs.reserved(root).values()
