"""Stores that only Beam knows, such as S3 and HDFS: everything but the swap and the lease works."""

import contextlib
import datetime

import pytest

from pipelines import leases
from pipelines import root as roots
from pipelines.gcs_objects import ABSENT, ObjectChangedError, StoredObject
from pipelines.published_tables import PublishedTables
from pipelines.root import Root
from pipelines.verify import verify
from semid_transforms import files
from tests.pipelines import jobs
from tests.pipelines.memory_store import OBJECTS

CONFIG = {**jobs.SETTINGS, "shards": {"rows_per_shard": 60}}
CONTENTS = {f"item-{n:02d}": n % 50 for n in range(80)}


@pytest.fixture
def shelf(tmp_path):
    """A folder in the store, with a catalog."""
    folder = f"shelf://{tmp_path.name}"
    put_catalog(tmp_path, folder, CONTENTS)
    yield folder
    OBJECTS.clear()


def put_catalog(tmp_path, folder, contents):
    path = jobs.write_rows(tmp_path / "part.parquet", jobs.vector_rows(contents))
    files.copy(path, f"{folder}/catalog/part.parquet")


def sids(root):
    items = PublishedTables(root, *root.require_published()).read("items")
    return dict(zip(items["item_id"].to_pylist(), items["sid"].to_pylist(), strict=True))


@pytest.mark.parametrize("command", ["tokenize", "fit"])
def test_publishing_there_is_refused_before_any_work(tmp_path, shelf, capsys, command):
    before = dict(OBJECTS)
    arguments = [command, "--catalog", f"{shelf}/catalog/*", "--root", f"{shelf}/ids"]
    assert jobs.command(tmp_path, *arguments, config=CONFIG) == 2
    said = capsys.readouterr().err
    assert "only a local folder or gs:// can be published to" in said
    assert "copy the generation" in said
    assert before == OBJECTS


def test_a_catalog_is_read_there_and_a_copied_generation_served(tmp_path, shelf, capsys):
    local = tmp_path / "ids"
    jobs.run(f"{shelf}/catalog/*.parquet", local, CONFIG)
    for path in local.rglob("*"):
        if path.is_file():
            files.copy(str(path), f"{shelf}/ids/{path.relative_to(local)}")
    assert sids(Root(f"{shelf}/ids")) == jobs.sids(local)
    assert verify(Root(f"{shelf}/ids")).problems == []
    for arguments in (["show", "--item", "item-07"], ["metrics"], ["verify"]):
        assert jobs.command(tmp_path, *arguments, "--root", f"{shelf}/ids") == 0
    assert "item-07" in capsys.readouterr().out


def test_only_swap_and_lease_need_more_than_beam(tmp_path, shelf, monkeypatch):
    """Given those two, a store that Beam alone reaches is published to like any other."""
    conditional: dict[str, StoredObject] = {}

    def read(path):
        return conditional.get(path)

    def write(path, data, expected):
        held = conditional.get(path)
        if (held.generation if held else ABSENT) != expected:
            raise ObjectChangedError(path)
        now = datetime.datetime.now(datetime.UTC)
        conditional[path] = StoredObject(data, expected + 1, now)
        return conditional[path]

    for module in (roots, leases):
        monkeypatch.setattr(module, "read_object", read)
        monkeypatch.setattr(module, "write_object", write)
    monkeypatch.setattr(leases, "delete_object", lambda path, _: conditional.pop(path, None))
    monkeypatch.setattr(roots, "_scheme", lambda path: None if files.is_local(path) else "gs")
    root = Root(f"{shelf}/ids")
    nights = [CONTENTS, {**CONTENTS, "late": "late", "item-03": "changed"}, {"item-05": 5}]
    for contents in nights:
        put_catalog(tmp_path, shelf, contents)
        jobs.run(f"{shelf}/catalog/*.parquet", root.path, CONFIG)
        local = jobs.write_rows(tmp_path / "local.parquet", jobs.vector_rows(contents))
        jobs.run(local, tmp_path / "ids", CONFIG)
        assert sids(root) == jobs.sids(tmp_path / "ids")
        assert verify(root).problems == []
    assert list(conditional) == [f"{root.path}/CURRENT"]
    assert not [path for path in OBJECTS if path.startswith(f"{root.path}/runs/")]


def test_an_error_while_writing_there_publishes_no_half(shelf):
    """This store makes an object of whatever was written when the file is closed."""
    with contextlib.suppress(RuntimeError), files.atomic_writer(f"{shelf}/object") as file:
        file.write(b"half")
        raise RuntimeError
    assert f"{shelf}/object" not in OBJECTS
