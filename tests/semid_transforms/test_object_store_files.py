"""Files on an object store that answers late, in part, or not at all."""

import errno

import pytest
from google.cloud.storage.retry import DEFAULT_RETRY

from semid_transforms import files
from tests.gcs_emulator import Fault

LINES = b"".join(b'{"item_id": "%d"}\n' % n for n in range(200))


@pytest.fixture
def folder(gcs):
    return gcs.new_bucket() + "/folder"


@pytest.fixture
def impatient(monkeypatch):
    """Gives up retrying after two seconds instead of two minutes."""
    monkeypatch.setattr(DEFAULT_RETRY, "_timeout", 2.0)
    from apache_beam.io.gcp.gcsio_retry import DEFAULT_RETRY_WITH_THROTTLING_COUNTER as BEAMS

    monkeypatch.setattr(BEAMS, "_timeout", 2.0)


@pytest.mark.parametrize("status", [429, 503])
def test_a_request_that_is_refused_is_made_again(gcs, folder, status):
    path = f"{folder}/lines"
    with gcs.failing(Fault("POST", "/upload/", "refused", status)):
        files.write_bytes(path, LINES)
    with gcs.failing(Fault("GET", "/o/folder", "refused", status)):
        assert files.read_bytes(path) == LINES
    with gcs.failing(Fault("GET", "/o?", "refused", status)):
        assert files.list_files(folder) == [path]


def test_patience_has_an_end_and_the_error_says_what_failed(gcs, folder, impatient):
    path = f"{folder}/lines"
    files.write_bytes(path, LINES)
    with (
        gcs.failing(Fault("GET", "/o/", "refused", 503, times=99)),
        pytest.raises(OSError, match=r"cannot open: .*503") as caught,
    ):
        files.read_bytes(path)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, path)
    with (
        gcs.failing(Fault("POST", "/upload/", "refused", 429, times=99)),
        pytest.raises(OSError, match=r"cannot write: .*429") as caught,
    ):
        files.write_bytes(f"{folder}/more", LINES)
    assert caught.value.filename == f"{folder}/more"
    assert list(gcs.objects(folder)) == ["lines"]


def test_a_listing_that_fails_is_not_an_empty_folder(gcs, folder, impatient):
    files.write_bytes(f"{folder}/part-0.parquet", b"")
    with gcs.failing(Fault("GET", "/o?", "refused", 503, times=99)):
        with pytest.raises(OSError, match="cannot list"):
            files.list_files(folder)
        with pytest.raises(OSError, match="cannot list") as caught:
            files.match([f"{folder}/*"])
        assert not isinstance(caught.value, FileNotFoundError)
        with pytest.raises(OSError, match="cannot list"):
            files.remove_tree(folder)
    assert files.list_files(folder) == [f"{folder}/part-0.parquet"]
    assert files.list_files(f"{folder}/nothing") == []


def test_what_is_not_there_is_said_so(gcs, folder):
    with pytest.raises(FileNotFoundError, match="folder/none"):
        files.read_bytes(f"{folder}/none")
    with pytest.raises(FileNotFoundError, match="cannot list gs://no-such-bucket"):
        files.match(["gs://no-such-bucket/*.parquet"])


@pytest.mark.parametrize("kind", ["cut", "short"])
def test_an_answer_that_ends_early_is_asked_for_again(gcs, folder, kind):
    path = f"{folder}/lines"
    files.write_bytes(path, LINES)
    fault = Fault("GET", "/download/", kind, times=2)
    with gcs.failing(fault):
        assert files.read_bytes(path) == LINES
    assert fault.hits == 2


def test_a_file_that_stays_short_is_an_error_never_a_shorter_file(gcs, folder):
    """The reader underneath takes the first answer without bytes for the end of the file."""
    path = f"{folder}/lines"
    files.write_bytes(path, LINES)
    with (
        gcs.failing(Fault("GET", "/download/", "short", times=99)),
        pytest.raises(OSError, match=rf"ended the file at byte [\d,]+ of {len(LINES):,}") as caught,
    ):
        files.read_bytes(path)
    assert caught.value.filename == path


def test_a_remote_file_reads_and_seeks_like_a_local_one(gcs, folder):
    path = f"{folder}/lines"
    files.write_bytes(path, LINES)
    with files.open_raw(path) as file:
        assert file.read(10) == LINES[:10]
        assert file.tell() == 10
        assert file.seek(-7, 2) == len(LINES) - 7
        assert file.read(100) == LINES[-7:]
        assert file.read() == b""
        assert file.seek(0) == 0
        assert file.readlines() == LINES.splitlines(keepends=True)


def test_an_error_while_writing_leaves_what_was_there(gcs, folder):
    path = f"{folder}/lines"
    files.write_bytes(path, b"old")
    with pytest.raises(RuntimeError, match="halfway"), files.atomic_writer(path) as file:
        file.write(LINES)
        raise RuntimeError("halfway")
    assert gcs.objects(folder) == {"lines": b"old"}


def test_a_server_side_copy_is_known_to_be_one_without_reading_it(gcs, folder):
    one, two, other = (f"{folder}/{name}" for name in ("one", "two", "other"))
    files.write_bytes(one, LINES)
    files.write_bytes(other, LINES[::-1])
    files.copy(one, two)
    before = len(gcs.requests)
    assert files.is_same_file(one, two)
    assert not files.is_same_file(one, other)
    assert not any("download" in path for _, path in gcs.requests[before:])
    assert files.read_bytes(two) == LINES


def test_a_removed_tree_takes_no_neighbour_with_it(gcs, folder):
    for name in ("run/a", "run/deep/er/b", "run-2/c"):
        files.write_bytes(f"{folder}/{name}", b"x")
    files.remove_tree(f"{folder}/run")
    assert list(gcs.objects(folder)) == ["run-2/c"]
    files.remove_tree(f"{folder}/run")
