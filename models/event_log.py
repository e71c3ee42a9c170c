"""Training scalars in the event format that TensorBoard reads, without TensorBoard."""

from __future__ import annotations

import struct
from collections.abc import Mapping

# CRC-32C (Castagnoli), reflected polynomial; TFRecord masks it as (rot15(crc) + constant).
_POLYNOMIAL = 0x82F63B78
_MASK = 0xA282EAD8


def header_record() -> bytes:
    """Returns the record that an event file starts with."""
    return _record(_varint_field(2, 0) + _bytes_field(3, b"brain.Event:2"))


def scalar_record(step: int, scalars: Mapping[str, float], wall_time: float) -> bytes:
    """Returns one record with all scalars of a step.

    A file of `header_record()` and such records, named `events.out.tfevents.<anything>`, is a
    TensorBoard run.

    Args:
      step: training step, 0 or more.
      scalars: values by tag.
      wall_time: seconds since the epoch.

    Returns:
      An `Event` message framed as a TFRecord.
    """
    values = b"".join(
        _bytes_field(1, _bytes_field(1, tag.encode()) + b"\x15" + struct.pack("<f", value))
        for tag, value in scalars.items()
    )
    event = b"\x09" + struct.pack("<d", wall_time) + _varint_field(2, step)
    return _record(event + _bytes_field(5, values))


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return b"".join(
        [length, struct.pack("<I", _masked(length)), data, struct.pack("<I", _masked(data))]
    )


def _masked(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + _MASK) & 0xFFFFFFFF


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()


def _varint_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
