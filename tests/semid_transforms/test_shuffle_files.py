import os
import tempfile

import pyarrow as pa
import pytest

from semid_transforms.coders import RecordBatchCoder, share_files
from semid_transforms.shuffle_files import ShuffleFiles

CODER = RecordBatchCoder()
BATCH = pa.record_batch({"item_id": [f"i{n}" for n in range(3000)], "code": list(range(3000))})


@pytest.fixture
def two_files():
    with tempfile.TemporaryFile() as one, tempfile.TemporaryFile() as other:
        yield one, other
        share_files(None)


def test_what_one_process_lays_down_another_reads(two_files):
    descriptors = [file.fileno() for file in two_files]
    first, second = (ShuffleFiles(descriptors, own) for own in (0, 1))
    places = []
    for writer, batch in ((first, BATCH), (second, BATCH.slice(5, 7)), (first, BATCH.slice(0, 0))):
        share_files(writer)
        places.append(CODER.encode(batch))
    assert all(len(place) < 64 for place in places)
    for reader in (first, second):
        share_files(reader)
        again = [CODER.decode(place) for place in places]
        assert [batch.num_rows for batch in again] == [3000, 7, 0]
        assert again[0].equals(BATCH)
        assert again[1].equals(BATCH.slice(5, 7))


def test_batches_from_before_the_files_were_shared_are_read_too(two_files):
    inline = CODER.encode(BATCH)
    share_files(ShuffleFiles([file.fileno() for file in two_files], 0))
    assert CODER.decode(inline).equals(BATCH)


def test_an_emptied_file_goes_on_behind_its_old_end(two_files):
    shared = ShuffleFiles([file.fileno() for file in two_files], 0)
    share_files(shared)
    before = CODER.encode(BATCH)
    two_files[0].truncate(0)
    with pytest.raises(RuntimeError, match="shuffle file ends before"):
        CODER.decode(before)
    after = CODER.encode(BATCH)
    assert CODER.decode(after).equals(BATCH)
    assert after != before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="2026-11-22: needs /dev/full")
def test_no_room_names_the_folder_and_what_to_set(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with open("/dev/full", "wb", buffering=0) as full:
        share_files(ShuffleFiles([full.fileno()], 0))
        try:
            with pytest.raises(OSError, match=f"{tmp_path} meanwhile; set TMPDIR"):
                CODER.encode(BATCH)
        finally:
            share_files(None)
