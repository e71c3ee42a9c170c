"""Catalogs and roots on Google Cloud Storage, also while it fails, and two runs at once there."""

import contextlib
import dataclasses
import json
import os
import time

import pytest
from google.cloud.storage.retry import DEFAULT_RETRY

from pipelines import leases
from pipelines.errors import CommandError, ConflictError
from pipelines.gcs_objects import ABSENT, ObjectChangedError, read_object, write_object
from pipelines.published_tables import PublishedTables
from pipelines.root import Root
from pipelines.runs import claim_run, is_running, open_run
from pipelines.verify import verify
from semid_transforms import files
from tests.gcs_emulator import Fault
from tests.pipelines import jobs
from tests.pipelines.processes import publish_at_once, run_killed_after

CONFIG = {**jobs.SETTINGS, "shards": {"rows_per_shard": 60}}


@pytest.fixture
def bucket(gcs):
    return gcs.new_bucket()


@pytest.fixture
def impatient(monkeypatch):
    """Gives up retrying after two seconds instead of two minutes."""
    from apache_beam.io.gcp.gcsio_retry import DEFAULT_RETRY_WITH_THROTTLING_COUNTER as BEAMS

    monkeypatch.setattr(DEFAULT_RETRY, "_timeout", 2.0)
    monkeypatch.setattr(BEAMS, "_timeout", 2.0)


@pytest.fixture(scope="module")
def published(gcs, tmp_path_factory):
    """A root with one generation; tests copy it before they change it."""
    bucket = gcs.new_bucket()
    folder = tmp_path_factory.mktemp("catalog")
    upload(folder, bucket, jobs.vector_rows({f"item-{n:02d}": n % 50 for n in range(60)}))
    jobs.run(f"{bucket}/catalog/*.parquet", f"{bucket}/ids", CONFIG)
    return bucket


@pytest.fixture
def copied(gcs, bucket, published):
    for name in gcs.objects(published):
        files.copy(f"{published}/{name}", f"{bucket}/{name}")
    return bucket


def upload(folder, bucket, rows):
    """Replaces the catalog in a bucket."""
    with open(jobs.write_rows(folder / "part-0.parquet", rows), "rb") as file:
        files.write_bytes(f"{bucket}/catalog/part-0.parquet", file.read())


def environment(gcs):
    """Returns what leads other processes to the emulator."""
    names = ("STORAGE_EMULATOR_HOST", "GCE_METADATA_HOST", "GCE_METADATA_IP")
    return {name: os.environ[name] for name in names}


def command(tmp_path, bucket, *arguments, config=CONFIG):
    job = arguments[0] == "tokenize"
    extra = ["--catalog", f"{bucket}/catalog/*.parquet"] if job else []
    return jobs.command(
        tmp_path, *arguments, "--root", f"{bucket}/ids", *extra, config=config if job else None
    )


def sids(bucket):
    root = Root(f"{bucket}/ids")
    items = PublishedTables(root, *root.require_published()).read("items")
    return dict(zip(items["item_id"].to_pylist(), items["sid"].to_pylist(), strict=True))


def test_three_nights_on_a_bucket(tmp_path, bucket, gcs, capsys):
    """What the commands print and publish is what they do on a local disk."""
    contents = {f"item-{n:03d}": f"{n % 100}" for n in range(120)}
    changed = {**contents, "item-007": "changed", "late": "late"}
    del changed["item-000"], changed["item-001"]
    nights = [jobs.vector_rows(night) for night in (contents, changed, changed)]
    seen = []
    for night in nights:
        upload(tmp_path, bucket, night)
        assert command(tmp_path, bucket, "tokenize", "--as-of", "2026-03-01", "--json") == 0
        summary = json.loads(capsys.readouterr().out)
        local = jobs.write_rows(tmp_path / "local.parquet", night)
        jobs.run(local, tmp_path / "local", CONFIG)
        assert sids(bucket) == jobs.sids(tmp_path / "local")
        seen.append(summary["generation"])
    assert [name.split("-")[0] for name in seen] == ["000001", "000002", "000003"]
    for generation in seen:
        assert command(tmp_path, bucket, "verify", "--generation", generation) == 0
    capsys.readouterr()
    assert command(tmp_path, bucket, "show", "--item", "late", "--json") == 0
    assert "late" in json.dumps(json.loads(capsys.readouterr().out))
    assert command(tmp_path, bucket, "metrics", "--json") == 0
    assert json.loads(capsys.readouterr().out)["items"] == 119
    assert not [name for name in gcs.objects(bucket) if name.startswith("ids/runs/")]


def test_a_night_of_failing_requests_gives_the_same_ids(tmp_path, copied, gcs):
    """Every kind of request is refused once or twice, and every kind of answer lost or cut."""
    rows = jobs.vector_rows({f"item-{n:02d}": n % 50 for n in range(3, 70)})
    upload(tmp_path, copied, rows)
    faults = [
        Fault("GET", "/o?", "refused", 429),
        Fault("GET", "/o/ids%2Fgenerations", "refused", 503),
        Fault("POST", "uploadType=resumable", "refused", 503),
        Fault("PUT", "upload_id", "refused", 429),
        Fault("POST", "uploadType=multipart", "unheard", 503),
        Fault("GET", "/download/", "cut"),
        Fault("GET", "/download/", "short"),
        Fault("POST", "/batch/", "refused", 503),
    ]
    with gcs.failing(*faults):
        assert command(tmp_path, copied, "tokenize") == 0
    assert [fault for fault in faults if not fault.hits] == []
    first = jobs.vector_rows({f"item-{n:02d}": n % 50 for n in range(60)})
    for night in (first, rows):
        jobs.run(jobs.write_rows(tmp_path / "a.parquet", night), tmp_path / "local", CONFIG)
    assert sids(copied) == jobs.sids(tmp_path / "local")
    assert verify(Root(f"{copied}/ids")).problems == []


@pytest.mark.parametrize(
    "fault",
    [
        Fault("GET", "/download/storage/v1/b/{bucket}/o/catalog", "short", times=10**6),
        Fault("GET", "/o/ids%2Fgenerations", "refused", 503, times=10**6),
        Fault("POST", "uploadType=resumable", "refused", 429, times=10**6),
    ],
    ids=["truncated", "unreadable", "unwritable"],
)
def test_a_store_that_stays_broken_is_an_error_and_changes_nothing(
    tmp_path, copied, gcs, capsys, impatient, fault
):
    upload(tmp_path, copied, jobs.vector_rows({f"item-{n:02d}": n % 50 for n in range(10, 70)}))
    before = gcs.objects(f"{copied}/ids/CURRENT")
    name = copied.removeprefix("gs://")
    fault = dataclasses.replace(fault, part=fault.part.replace("{bucket}", name))
    with gcs.failing(fault):
        assert command(tmp_path, copied, "tokenize") == 1
    message = capsys.readouterr().err
    assert "nothing that was published changed" in message
    assert f"{copied}/" in message
    assert gcs.objects(f"{copied}/ids/CURRENT") == before
    assert verify(Root(f"{copied}/ids")).problems == []


def test_a_run_that_another_overtakes_fails_and_can_be_run_again(
    tmp_path, copied, gcs, capsys, monkeypatch
):
    root, other = (
        Root(f"{copied}/ids"),
        jobs.write_rows(tmp_path / "other.parquet", jobs.vector_rows({"a": 1, "b": 2})),
    )
    publish, winner = Root.publish, []

    def overtaken(self, manifest, expected):
        if not winner:
            winner.append(None)
            winner[0] = jobs.run(other, root.path, CONFIG).manifest.generation
        publish(self, manifest, expected)

    monkeypatch.setattr(Root, "publish", overtaken)
    upload(tmp_path, copied, jobs.vector_rows({"c": 3}))
    assert command(tmp_path, copied, "tokenize") == 1
    assert "another run published" in capsys.readouterr().err
    assert root.published().generation == winner[0]
    assert command(tmp_path, copied, "tokenize") == 0
    assert set(sids(copied)) == {"c"}
    assert verify(root).problems == []


def test_a_swap_whose_answer_was_lost_is_known_to_have_happened(copied, gcs):
    """It is tried again, and then its own success breaks its precondition."""
    root = Root(f"{copied}/ids")
    before = root.published()
    with gcs.failing(Fault("POST", "ifGenerationMatch", "unheard", 503)) as _:
        root.publish(before.manifest, before)
    assert root.published().token != before.token
    with pytest.raises(ConflictError, match="another run published"):
        root.publish(dataclasses.replace(before.manifest, created="later"), before)


def test_a_swap_that_keeps_failing_says_what_is_not_known(copied, gcs, impatient):
    root = Root(f"{copied}/ids")
    before = root.published()
    with (
        gcs.failing(Fault("POST", "ifGenerationMatch", "refused", 503, times=99)),
        pytest.raises(CommandError, match=r"could not be swapped .*or its answer was lost"),
    ):
        root.publish(before.manifest, before)
    assert root.published().token == before.token


def test_a_pointer_that_changes_while_it_is_read_is_read_again(copied, gcs):
    path = f"{copied}/ids/CURRENT"
    fault = Fault("GET", "ids/CURRENT?", "refused", 412)
    with gcs.failing(fault):
        assert read_object(path).data == gcs.objects(path)[""]
    assert fault.hits == 1
    with (
        gcs.failing(dataclasses.replace(fault, times=99, hits=0)),
        pytest.raises(ObjectChangedError, match="arrives damaged, each time it is read"),
    ):
        read_object(path)


@pytest.mark.parametrize("kind", ["cut", "short"])
def test_a_pointer_cut_short_is_never_taken_for_one(copied, gcs, kind):
    path = f"{copied}/ids/CURRENT"
    fault = Fault("GET", "ids/CURRENT?", kind)
    with gcs.failing(fault):
        assert read_object(path).data == gcs.objects(path)[""]
    assert fault.hits == 1
    with (
        gcs.failing(dataclasses.replace(fault, times=99, hits=0, kind="short")),
        pytest.raises(ObjectChangedError, match="arrives damaged"),
    ):
        read_object(path)


def test_an_object_is_written_only_over_what_was_expected(bucket, gcs):
    path = f"{bucket}/object"
    first = write_object(path, b"first", ABSENT)
    with pytest.raises(ObjectChangedError):
        write_object(path, b"second", ABSENT)
    second = write_object(path, b"second", first.generation)
    with pytest.raises(ObjectChangedError):
        write_object(path, b"third", first.generation)
    assert read_object(path) == second
    assert read_object(f"{bucket}/none") is None


def test_a_run_holds_a_lease_until_it_ends(bucket, gcs):
    root, inputs = Root(f"{bucket}/ids"), {"catalog": "the same"}
    with open_run(root, inputs, 1, jobs.AS_OF) as run:
        lease = f"{run.folder}/lock"
        assert is_running(root, run.key)
        with (
            pytest.raises(ConflictError, match=r"process \d+ on .* renewed its lease .* s ago"),
            open_run(root, inputs, 1, jobs.AS_OF),
        ):
            pass
        with claim_run(root, run.key) as idle:
            assert not idle
        gcs.age(lease, leases.LEASE_SECONDS - 20)
        assert is_running(root, run.key)
        run.check_held()
    assert not is_running(root, run.key)
    with claim_run(root, run.key) as idle:
        assert idle
        assert is_running(root, run.key)
    assert list(gcs.objects(f"{bucket}/ids/runs")) == [f"{run.key}/run.json"]


def test_a_lease_is_renewed_and_a_failed_renewal_is_tried_again(bucket, gcs, monkeypatch):
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(DEFAULT_RETRY, "_timeout", 0.02)
    with open_run(Root(f"{bucket}/ids"), {}, 1, jobs.AS_OF) as run:
        lease = f"{run.folder}/lock"
        seen = {gcs.generation(lease)}
        fault = Fault("POST", "ifGenerationMatch", "refused", 503, times=2)
        with gcs.failing(fault):
            wait_until(lambda: fault.hits == 2)
        wait_until(lambda: seen.add(gcs.generation(lease)) or len(seen) > 3)
        run.check_held()


def test_who_lost_the_lease_stops_and_leaves_the_new_holder_alone(bucket, gcs, monkeypatch):
    """A process that slept through its lease may wake up beside the one that took over."""
    root = Root(f"{bucket}/ids")
    with open_run(root, {}, 1, jobs.AS_OF) as sleeper:
        gcs.age(f"{sleeper.folder}/lock", leases.LEASE_SECONDS + 1)
        assert not is_running(root, sleeper.key)
        with open_run(root, {}, 1, jobs.AS_OF) as heir:
            assert heir == sleeper
            monkeypatch.setattr(leases, "_GIVE_UP_SECONDS", 0.0)
            with pytest.raises(ConflictError, match="lost the lease"):
                sleeper.link("read", lambda: pytest.fail("it works on what is not its own"))
    assert gcs.objects(f"{bucket}/ids/runs").keys() == {f"{heir.key}/run.json"}


def test_a_renewal_notices_who_took_over(bucket, gcs, monkeypatch):
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.1)
    taken = None

    def take(lease):
        with contextlib.suppress(ObjectChangedError):  # renewed just then
            return write_object(lease, b"another holder", gcs.generation(lease))

    def is_lost(run):
        try:
            run.check_held()
        except ConflictError:
            return True
        return False

    with open_run(Root(f"{bucket}/ids"), {}, 1, jobs.AS_OF) as sleeper:
        lease = f"{sleeper.folder}/lock"
        while taken is None:
            taken = take(lease)
        wait_until(lambda: is_lost(sleeper))
    assert read_object(lease) == taken


def test_a_killed_run_blocks_the_next_until_its_lease_ends(tmp_path, copied, gcs, capsys, caplog):
    """SIGKILL in the middle: the lease stays, runs out, and the next run resumes the work."""
    rows = jobs.vector_rows({f"item-{n:02d}": n % 50 for n in range(3, 70)})
    upload(tmp_path, copied, rows)
    catalog, root = f"{copied}/catalog/*.parquet", Root(f"{copied}/ids")
    before = root.published()
    assert run_killed_after(catalog, root.path, CONFIG, "place", environment(gcs)) == -9
    assert root.published() == before
    (name,) = {name.split("/")[0] for name in gcs.objects(f"{root.path}/runs")}
    assert is_running(root, name)
    arguments = ("tokenize", "--as-of", jobs.AS_OF.isoformat())
    assert command(tmp_path, copied, *arguments) == 1
    error = capsys.readouterr().err
    assert "another process is building generation 000002" in error
    assert "if it was killed, the lease runs out in" in error
    gcs.age(f"{root.path}/runs/{name}/lock", leases.LEASE_SECONDS)
    assert not is_running(root, name)
    assert command(tmp_path, copied, *arguments) == 0
    assert "taking over from process" in caplog.text
    assert "place    done by an earlier attempt" in caplog.text
    assert verify(root).problems == []
    assert not gcs.objects(f"{root.path}/runs")


def test_of_ten_publishing_processes_one_wins(copied, gcs):
    """Each has a generation of its own and the same idea of what is current."""
    root = Root(f"{copied}/ids")
    before = root.published()
    for number in range(10):
        for file in before.manifest.files:
            name = f"generations/000002-{number:08d}/{file.path}"
            files.copy(f"{root.folder(before.generation)}/{file.path}", f"{root.path}/{name}")
    said = publish_at_once(root, before, environment(gcs))
    assert sorted(code for code, _ in said) == [0] + [1] * 9
    messages = [message for code, message in said if code]
    assert all("another run published" in message for message in messages)
    assert all("was not published and nothing changed" in message for message in messages)
    won = root.published()
    assert said[int(won.generation.split("-")[1])][0] == 0
    assert verify(root).problems == []


def wait_until(done):
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)
