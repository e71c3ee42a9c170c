"""The whole job away from this process: a job service, workers that share nothing, staged code.

Catalog, encoder and root are in a bucket. Workers have no working directory, no environment and no
PYTHONPATH of the tests; the package they run is the one that Beam staged and they installed.
"""

import os
from pathlib import Path

import pytest

from pipelines.root import Root
from pipelines.verify import verify
from semid_transforms import files
from tests.job_service import running_job_service
from tests.pipelines import jobs

CHECKOUT = Path(__file__).parents[2]
CLOUD = ("STORAGE_EMULATOR_HOST", "GCE_METADATA_HOST", "GCE_METADATA_IP", "GOOGLE_CLOUD_PROJECT")
HANGS_SECONDS = 300
"""A night of this size takes 20 s on idle cores."""


@pytest.fixture(scope="module")
def service(gcs, tmp_path_factory):
    environment = {name: os.environ[name] for name in CLOUD} | {"OMP_NUM_THREADS": "1"}
    with running_job_service(tmp_path_factory.mktemp("service"), environment) as service:
        yield service


@pytest.fixture
def bucket(gcs, tiny_model):
    """A bucket with an encoder; the catalog is put there night by night."""
    bucket = gcs.new_bucket()
    for path in Path(tiny_model).rglob("*"):
        if path.is_file():
            files.copy(str(path), f"{bucket}/encoder/{path.relative_to(tiny_model)}")
    return bucket


def nights():
    """Yields the catalogs of two nights: the second has new, changed and fewer items."""
    first = jobs.products(300)
    yield first
    second = [dict(row) for row in first[3:]] + jobs.products(306)[300:]
    second[0]["title"] = "A title of another item altogether"
    yield second


def tokenize(bucket, root, *beam):
    config = {
        "encoder": {"model": f"{bucket}/encoder", "rows_per_part": 128, "batch_size": 16},
        "shards": {"rows_per_shard": 100},
    }
    return jobs.run(f"{bucket}/catalog/*.jsonl", root, config, beam=beam)


def published_files(root):
    """Returns {path: (bytes, rows, digest)} of everything that is published."""
    _, manifest = Root(root).require_published()
    return {file.path: (file.bytes, file.rows, file.sha256) for file in manifest.files}


def counted(outcome):
    """Returns what the links counted, but for time and for memory, which depend on the workers."""
    counters = [link.get("counters", {}) for link in outcome.results.values()]
    measured = ("-bytes", "-milliseconds")
    return [
        {name: n for name, n in of_link.items() if not any(what in name for what in measured)}
        for of_link in counters
    ]


def test_workers_that_share_nothing_publish_the_same_bytes(tmp_path, bucket, service, monkeypatch):
    monkeypatch.chdir(CHECKOUT)
    remote, local = f"{bucket}/remote", f"{bucket}/local"
    for night in nights():
        rows = jobs.write_rows(tmp_path / "part-0.jsonl", night)
        files.write_bytes(f"{bucket}/catalog/part-0.jsonl", Path(rows).read_bytes())
        with service.limited(HANGS_SECONDS):
            there = tokenize(bucket, remote, *service.options, "--setup_file", "./setup.py")
        here = tokenize(bucket, local)
        assert published_files(remote) == published_files(local)
        assert there.manifest.generation == here.manifest.generation
        assert verify(Root(remote)).problems == []
        assert counted(there) == counted(here)
    imported = service.imported()
    assert len(imported) == service.workers() >= 11, service.logs()
    for modules in imported:
        assert any(name.startswith("semid_transforms.") for name in modules)
        folders = {Path(file).relative_to(service.folder).parts[0] for file in modules.values()}
        assert [name.partition("-")[0] for name in folders] == ["site"]
