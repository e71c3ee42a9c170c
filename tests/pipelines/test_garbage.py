"""What `semid gc` removes, and what it leaves alone."""

import json
import os
import shutil
import time

import pytest

from pipelines.garbage import find_garbage, remove_garbage
from pipelines.root import Root
from pipelines.runs import Run, open_run
from pipelines.verify import verify
from tests.pipelines import jobs


def names(root, folder):
    return sorted(path.name for path in (root / folder).glob("*"))


def grow(root, *contents):
    """Publishes one generation per content on top of what is there; returns all their names."""
    for content in contents:
        catalog = jobs.write_rows(
            root.parent / f"{content}.parquet", jobs.vector_rows({f"new {content}": content})
        )
        jobs.add(catalog, root)
    return names(root, "generations")


def age(path, hours):
    """Makes every file of a folder look as if nobody had touched it for hours."""
    then = time.time() - hours * 3600
    for file in path.rglob("*"):
        os.utime(file, (then, then))


@pytest.fixture
def root(copied, vector_root):
    return copied(vector_root)


def test_the_newest_of_the_chain_stay(root, tmp_path, capsys):
    first, second, third = grow(root, "a", "b")
    age(root / "tokenizers", 100)
    arguments = ["gc", "--root", str(root), "--keep", "2"]
    assert jobs.command(tmp_path, *arguments, "--dry-run") == 0
    assert "would remove" in capsys.readouterr().out
    assert names(root, "generations") == [first, second, third]
    assert jobs.command(tmp_path, *arguments, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["generations"], said["kept"]) == ([first], [third, second])
    assert names(root, "generations") == [second, third]
    assert len(names(root, "tokenizers")) == 1
    jobs.assert_sound(root)
    assert verify(Root(str(root)), second).problems == []
    assert len(jobs.sids(root)) == 302
    assert jobs.command(tmp_path, *arguments[:-1], "1") == 0
    jobs.assert_sound(root)
    assert jobs.command(tmp_path, *arguments[:-1], "0") == 2
    assert "--keep must be at least 1" in capsys.readouterr().err
    assert jobs.command(tmp_path, "gc", "--root", str(tmp_path / "none"), "--keep", "1") == 2


def test_a_killed_run_is_cleaned_when_it_cannot_be_resumed_or_nobody_does(root, monkeypatch):
    catalog = jobs.write_rows(root.parent / "c.parquet", jobs.vector_rows({"killed": 1}))
    link = Run.link

    def dying(self, name, work):
        result = link(self, name, work)
        if name == "place":
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(Run, "link", dying)
    with pytest.raises(KeyboardInterrupt):
        jobs.add(catalog, root)
    monkeypatch.undo()
    at = Root(str(root))
    (key,), (first, half) = names(root, "runs"), names(root, "generations")
    assert find_garbage(at, 1).kept == [first, half]
    assert find_garbage(at, 1).generations == []

    # Nobody took it up for two days.
    twin = root.parent / "twin"
    shutil.copytree(root, twin)
    age(twin / "runs", 48)
    found = find_garbage(Root(str(twin)), 1)
    assert (found.runs, found.generations, found.kept) == ([key], [half], [first])
    assert remove_garbage(Root(str(twin)), found) == found
    assert (names(twin, "runs"), names(twin, "generations")) == ([], [first])
    jobs.assert_sound(twin)

    # Or another run published: it grows from what is no longer current.
    grow(root, "a")
    found = find_garbage(at, 5)
    assert (found.runs, found.generations) == ([key], [half])
    remove_garbage(at, found)
    assert names(root, "runs") == []
    jobs.assert_sound(root)


def test_a_running_run_keeps_what_it_reads_and_writes(root):
    at = Root(str(root))
    first = at.published().generation
    inputs = {"command": "tokenize", "parent": first}
    with open_run(at, inputs, 2) as run:
        (root / "generations" / run.generation).mkdir()
        grow(root, "a", "b")
        age(root / "runs", 100)
        found = find_garbage(at, 1)
        assert first in found.kept and run.generation in found.kept
        assert (found.runs, found.busy) == ([], [run.key])
        second = [name for name in names(root, "generations") if name.startswith("000002-")]
        (middle,) = set(second) - {run.generation}
        assert found.generations == [middle]
        # A run that is taken up between looking and removing stops the removal.
        late = find_garbage(at, 1)
        late = type(late)(**{**late.to_json(), "runs": [run.key], "generations": [first]})
        assert remove_garbage(at, late).generations == []
        assert (root / "generations" / first).exists()


def test_tokenizers_wait_for_a_full_run(root, tmp_path):
    at = Root(str(root))
    catalog = jobs.write_rows(
        tmp_path / "c.parquet", jobs.vector_rows({f"i{n}": n for n in range(60)})
    )
    (published,) = names(root, "tokenizers")
    config = {"quantizer": {"kind": "rqkmeans", "iterations": 2, "codebook_sizes": [4, 4, 4]}}
    arguments = ["fit", "--catalog", catalog, "--root", str(root)]
    assert jobs.command(tmp_path, *arguments, config=jobs.merged(jobs.SETTINGS, config)) == 0
    (fitted,) = set(names(root, "tokenizers")) - {published}
    (key,) = names(root, "runs")
    broken = root / "tokenizers" / ("f" * 64)
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    age(root / "tokenizers", 30)
    assert find_garbage(at, 1).tokenizers == [broken.name], "its fit is not a day old"
    age(root / "runs", 30)
    found = find_garbage(at, 1)
    assert (found.runs, found.tokenizers) == ([key], [broken.name]), "newer than what is published"
    metrics = root / "tokenizers" / fitted / "metrics.json"
    document = json.loads(metrics.read_text())
    document["origin"]["fitted_at"] = "2000-01-01T00:00:00+00:00"
    metrics.write_text(json.dumps(document))
    assert find_garbage(at, 1, stale_hours=1000).tokenizers == []
    age(root / "tokenizers", 30)
    assert find_garbage(at, 1).tokenizers == sorted([fitted, broken.name])


def test_half_written_files_go_once_no_run_works_there(root):
    at = Root(str(root))
    (tokenizer,) = names(root, "tokenizers")
    halves = [".CURRENT.0123456789abcdef.tmp", f"tokenizers/{tokenizer}/.metrics.json.01ab.tmp"]
    for name in halves:
        (root / name).write_bytes(b"{")
    whole = {path for path in root.rglob("*") if path.is_file()} - {root / n for n in halves}
    assert find_garbage(at, 1).leftovers == [], "their writers may be alive"
    for name in halves:
        then = time.time() - 30 * 3600
        os.utime(root / name, (then, then))
    with open_run(at, {"command": "tokenize", "parent": at.published().generation}, 2) as run:
        assert find_garbage(at, 1).leftovers == []
        assert find_garbage(at, 1).busy == [run.key]
    run.discard()
    found = find_garbage(at, 1)
    assert found.leftovers == halves
    remove_garbage(at, found)
    assert {path for path in root.rglob("*") if path.is_file()} == whole
    assert find_garbage(at, 1).leftovers == []
    jobs.assert_sound(root)
