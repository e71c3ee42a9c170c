"""Runs that die, and runs that meet: CURRENT stays valid and nothing is lost or mixed."""

import contextlib
import dataclasses
import json
import os
import shutil
import threading
from pathlib import Path

import pytest

import pipelines.tokenize
from pipelines.errors import ConflictError
from pipelines.root import Published, Root
from pipelines.runs import Run, open_run
from pipelines.verify import verify
from semid_transforms import files
from tests.pipelines import jobs

LINKS = ("read", "embed", "fit", "assign", "place", "index")


class Killed(BaseException):
    """Not an Exception, so that nothing tidies up after it as it would after an error."""


def contents_of(folder):
    """Returns {relative path: bytes} of a generation, without leftovers of dead writers."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def identities(folder):
    """Returns what a file gets anew when it is written again, for every file of a generation."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [(str(path), path.stat().st_ino, path.stat().st_mtime_ns) for path in paths]


def generation(root):
    return root / "generations" / str(Root(str(root)).published().generation)


@pytest.fixture(scope="module")
def nights(tmp_path_factory, vector_catalog):
    """A published root, tomorrow's catalog, and what an undisturbed run makes of it."""
    folder = tmp_path_factory.mktemp("recovery")
    first = jobs.write_rows(folder / "first.parquet", vector_catalog[:200])
    second = jobs.write_rows(
        folder / "second.parquet",
        [*vector_catalog[1:250], *jobs.vector_rows({"item-000": "changed", "late": "late"})],
    )
    config = {"shards": {"rows_per_shard": 100}}
    jobs.run(first, folder / "root", config)
    undisturbed = copy_tree(folder / "root", folder / "undisturbed")
    jobs.run(second, undisturbed, config)
    return folder / "root", second, config, contents_of(generation(undisturbed))


def copy_tree(source, target):
    return Path(shutil.copytree(source, target))


@pytest.mark.parametrize("last", LINKS)
def test_a_run_killed_after_a_link_resumes_there(tmp_path, monkeypatch, nights, last):
    base, catalog, config, expected = nights
    root = copy_tree(base, tmp_path / "root")
    before = jobs.current(root)
    done = []
    link = Run.link

    def dying(self, name, work):
        def noted():
            done.append(name)
            return work()

        result = link(self, name, noted)
        if name == last:
            raise Killed
        return result

    monkeypatch.setattr(Run, "link", dying)
    with pytest.raises(Killed):
        jobs.run(catalog, root, config)
    assert done == list(LINKS[: LINKS.index(last) + 1])
    assert jobs.current(root) == before
    assert verify(Root(str(root))).problems == []

    last = ""
    done.clear()
    jobs.run(catalog, root, config)
    assert done == list(LINKS[len(LINKS) - len(done) :])
    assert contents_of(generation(root)) == expected
    jobs.assert_sound(root)
    assert not list((root / "runs").glob("*"))


def test_a_run_killed_at_any_write_gives_what_an_undisturbed_one_gives(
    tmp_path, monkeypatch, nights
):
    """Attempt after attempt dies at a later write, by turns before it and after it.

    What was half written stays where it was.
    """
    base, catalog, config, expected = nights
    root = copy_tree(base, tmp_path / "root")
    before = jobs.current(root)
    writer = files.atomic_writer
    state = {"left": 0}
    deaths = 0

    @contextlib.contextmanager
    def dying(path):
        state["left"] -= 1
        if state["left"] == 0 and deaths % 2 == 0:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            folder, name = os.path.split(path)
            with open(os.path.join(folder, f".{name}.0123456789abcdef.tmp"), "wb") as half:
                half.write(b"PAR1 half a fi")
            raise Killed
        with writer(path) as file:
            yield file
        if state["left"] == 0:
            raise Killed

    monkeypatch.setattr(files, "atomic_writer", dying)
    while jobs.current(root) == before:
        state["left"] = deaths + 1
        try:
            jobs.run(catalog, root, config)
        except BaseException as error:  # the runner wraps what its stages raise
            assert "Killed" in f"{error!r}{error}"
            deaths += 1
            if jobs.current(root) == before:
                assert verify(Root(str(root))).problems == []
        assert deaths < 60
    assert deaths > 8
    assert contents_of(generation(root)) == expected
    jobs.assert_sound(root)


def test_a_crash_between_manifest_and_pointer_is_finished_by_the_next_run(
    tmp_path, monkeypatch, nights
):
    base, catalog, config, expected = nights
    root = copy_tree(base, tmp_path / "root")
    write = files.write_bytes

    def dying(path, data):
        if os.path.basename(path) == "CURRENT":
            raise Killed
        write(path, data)

    monkeypatch.setattr(files, "write_bytes", dying)
    before = jobs.current(root)
    with pytest.raises(Killed):
        jobs.run(catalog, root, config)
    assert jobs.current(root) == before
    assert len(list(root.glob("generations/*/manifest.json"))) == 2
    monkeypatch.setattr(files, "write_bytes", write)
    jobs.run(catalog, root, config)
    assert contents_of(generation(root)) == expected


def test_of_two_runs_that_meet_one_publishes(tmp_path, capsys, monkeypatch, nights):
    """The loser exits with 1 and says what to do; what the winner published stays."""
    base, catalog, config, _ = nights
    root = copy_tree(base, tmp_path / "root")
    publish = Root.publish
    other = jobs.write_rows(tmp_path / "other.parquet", jobs.vector_rows({"a": 1, "b": 2}))
    winner = []

    def overtaken(self, manifest, expected):
        if not winner:
            winner.append(None)
            winner[0] = jobs.run(other, root, config).manifest.generation
        publish(self, manifest, expected)

    monkeypatch.setattr(Root, "publish", overtaken)
    arguments = ["tokenize", "--catalog", catalog, "--root", str(root)]
    whole = jobs.merged(jobs.SETTINGS, config)
    assert jobs.command(tmp_path, *arguments, config=whole) == 1
    assert "another run published" in capsys.readouterr().err
    assert generation(root).name == winner[0]
    jobs.assert_sound(root)
    assert jobs.command(tmp_path, *arguments, config=whole) == 0
    assert set(jobs.reserved(root).values()) >= {"a", "b"}
    jobs.assert_sound(root)


def test_an_equal_run_that_comes_late_leaves_the_published_one_alone(
    tmp_path, capsys, monkeypatch, nights
):
    """It read CURRENT before the other published, and finds that run's lock free."""
    base, catalog, config, expected = nights
    root = copy_tree(base, tmp_path / "root")
    opened = pipelines.tokenize.open_input
    published = []

    def late(job):
        if not published:
            published.append(None)
            jobs.run(catalog, root, config)
            published.extend(identities(generation(root)))
        return opened(job)

    monkeypatch.setattr(pipelines.tokenize, "open_input", late)
    arguments = ["--catalog", catalog, "--root", str(root), "--as-of", jobs.AS_OF.isoformat()]
    whole = jobs.merged(jobs.SETTINGS, config)
    assert jobs.command(tmp_path, "tokenize", *arguments, config=whole) == 1
    assert "another run published" in capsys.readouterr().err
    assert contents_of(generation(root)) == expected
    assert identities(generation(root)) == published[1:], "a published file was written again"
    jobs.assert_sound(root)


def test_the_same_run_twice_at_once_is_refused(tmp_path, nights):
    root = Root(str(tmp_path / "root"))
    inputs = {"catalog": "the same"}
    with open_run(root, inputs, 1, jobs.AS_OF) as run:
        with (
            pytest.raises(ConflictError, match=f"is building generation {run.generation}"),
            open_run(root, inputs, 1, jobs.AS_OF),
        ):
            pass
        with open_run(root, {"catalog": "another"}, 1, jobs.AS_OF) as other:
            assert other.key != run.key
    with open_run(root, inputs, 1, jobs.AS_OF) as again:
        assert again == run


def test_a_resumed_run_keeps_the_time_of_its_first_attempt(tmp_path):
    root = Root(str(tmp_path / "root"))
    with open_run(root, {"catalog": 1}, 1, None) as first:
        pass
    with open_run(root, {"catalog": 1}, 1, None) as second:
        assert second.time == first.time
    with open_run(root, {"catalog": 1}, 2, jobs.AS_OF) as third:
        assert third.time == jobs.AS_OF
        assert third.generation.startswith("000002-")


def test_ten_publishers_at_once_have_one_winner(tmp_path, copied, vector_root):
    """Each has a complete generation of its own and the same idea of what is current."""
    root = Root(str(copied(vector_root)))
    before = root.published()
    manifest = before.manifest
    barrier = threading.Barrier(10)
    won, lost = [], []

    def publish(number):
        mine = dataclasses.replace(
            manifest, generation=f"000002-{number:08d}", parent=before.generation
        )
        barrier.wait()
        try:
            root.publish(mine, before)
            won.append(mine.generation)
        except ConflictError as error:
            lost.append(str(error))

    threads = [threading.Thread(target=publish, args=[number]) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 9)
    assert root.published().generation == won[0]
    assert all("was not published and nothing changed" in message for message in lost)


def test_the_pointer_and_manifest_are_checked_when_read(copied, vector_root, capsys, tmp_path):
    root = copied(vector_root)
    whole = json.loads((root / "CURRENT").read_text())
    manifest = generation(root) / "manifest.json"
    kept = manifest.read_bytes()

    def refused():
        code = jobs.command(tmp_path, "verify", "--root", str(root))
        return code, capsys.readouterr().err

    manifest.write_bytes(kept.replace(b'"live": 300', b'"live": 299'))
    assert refused()[0] == 2
    assert "was altered after it was published" in refused()[1]
    manifest.write_bytes(kept[: len(kept) // 2])
    assert "damaged" in refused()[1]
    manifest.unlink()
    assert "no complete generation" in refused()[1]
    manifest.write_bytes(kept.replace(b'"schema_version": 2', b'"schema_version": 99'))
    assert "schema version 99" in refused()[1]
    manifest.write_bytes(kept)
    (root / "CURRENT").write_text("{}")
    assert "CURRENT is damaged" in refused()[1]
    (root / "CURRENT").write_text(json.dumps({**whole, "generation": "000009-aaaaaaaa"}))
    assert refused()[0] == 2
    assert "000009-aaaaaaaa" in refused()[1]


def test_a_root_that_cannot_be_swapped_is_refused_before_any_work(tmp_path, capsys):
    rows = jobs.write_rows(tmp_path / "catalog.parquet", jobs.vector_rows({"a": 1}))
    arguments = ["tokenize", "--catalog", rows, "--root", "s3://bucket/root"]
    assert jobs.command(tmp_path, *arguments) == 2
    assert "only a local folder or gs:// can be published to" in capsys.readouterr().err


def test_nothing_is_published_is_a_state(tmp_path):
    assert Root(str(tmp_path)).published() == Published(None, None, None)
