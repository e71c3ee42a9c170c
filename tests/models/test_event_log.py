import struct

from apache_beam.io.tfrecordio import _TFRecordUtil

from models.event_log import header_record, scalar_record


def test_records_are_framed_as_tensorflow_does(tmp_path):
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(header_record() + scalar_record(300, {"loss": 0.5, "use": 1.0}, 1e9))
    with path.open("rb") as handle:
        # Beam checks both checksums while it reads.
        header, event = _TFRecordUtil.read_record(handle), _TFRecordUtil.read_record(handle)
        assert _TFRecordUtil.read_record(handle) is None
    assert header == b"\x10\x00\x1a\x0dbrain.Event:2"
    assert event[:9] == b"\x09" + struct.pack("<d", 1e9)
    assert event[9:12] == b"\x10\xac\x02"
    loss = b"\x0a\x04loss\x15" + struct.pack("<f", 0.5)
    use = b"\x0a\x03use\x15" + struct.pack("<f", 1.0)
    values = bytes([0x0A, len(loss)]) + loss + bytes([0x0A, len(use)]) + use
    assert event[12:] == bytes([0x2A, len(values)]) + values
