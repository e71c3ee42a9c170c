import gzip
import io
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.tables import REJECTED_PAYLOAD_BYTES
from semid_transforms.lines import Block, Damage, LineSource, LongLine


def lines_of(items: list) -> list[bytes]:
    return [line for item in items if isinstance(item, Block) for line in io.BytesIO(item.data)]


@settings(deadline=None)
@given(
    st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"")), max_size=20),
    st.booleans(),
    st.integers(1, 40),
    st.integers(1, 60),
)
def test_ranges_give_every_line_once(lines, ends_with_newline, block_bytes, range_bytes):
    data = b"\n".join(lines) + b"\n" * ends_with_newline
    found = []
    for start in range(0, len(data), range_bytes):
        source = LineSource(io.BytesIO(data), block_bytes, 100, start, start + range_bytes)
        for item in source:
            assert isinstance(item, Block)
            assert data[item.offset :].startswith(item.data)
            assert start <= item.offset < start + range_bytes
            found += lines_of([item])
    assert found == list(io.BytesIO(data))


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 30), st.integers(1, 50))
def test_long_lines_are_skipped_wherever_ranges_fall(lengths, block_bytes, range_bytes):
    data = b"".join(b"x" * length + b"\n" for length in lengths)
    starts = [i for i, byte in enumerate(b"\n" + data[:-1]) if byte == ord("\n")][: len(lengths)]
    found = {}
    for start in range(0, len(data), range_bytes):
        for item in LineSource(io.BytesIO(data), block_bytes, 8, start, start + range_bytes):
            if isinstance(item, LongLine):
                found[item.offset] = item.length
                assert item.head == b"x" * item.length
                assert item.length > 8
                continue
            offset = item.offset
            for line in lines_of([item]):
                found[offset] = len(line) - 1
                offset += len(line)
    assert found == dict(zip(starts, lengths, strict=True))


def test_a_line_far_over_the_limit_is_not_held():
    class Endless(io.RawIOBase):
        """Two gigabytes of one line."""

        left = 2 << 30

        def read(self, size: int = -1) -> bytes:
            size = min(size, self.left)
            Endless.left -= size
            return b"x" * size

    tracemalloc.start()
    [line] = LineSource(Endless(), 1 << 24, 1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (line.length, len(line.head)) == (2 << 30, REJECTED_PAYLOAD_BYTES)
    assert peak < 120 << 20


DATA = b"".join(b"line %d of the file\n" % i for i in range(20_000))


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.999])
def test_a_cut_gzip_gives_all_whole_lines(kept):
    packed = gzip.compress(DATA)
    cut = io.BytesIO(packed[: int(len(packed) * kept)])
    *blocks, damage = LineSource(gzip.GzipFile(fileobj=cut), 1000, 1000)
    text = b"".join(block.data for block in blocks)
    assert DATA.startswith(text)
    assert text.endswith(b"\n")
    assert isinstance(damage, Damage)
    assert damage.offset == len(text)
    assert "EOFError" in damage.error
    assert DATA.startswith(text + damage.tail)


def test_garbage_after_gzip_is_damage_after_all_lines():
    packed = gzip.compress(DATA) + b"garbage"
    *blocks, damage = LineSource(gzip.GzipFile(fileobj=io.BytesIO(packed)), 5000, 1000)
    assert b"".join(block.data for block in blocks) == DATA
    assert damage == Damage(b"", "BadGzipFile: Not a gzipped file (b'ga')", len(DATA))


def test_joined_gzip_files_are_one():
    packed = gzip.compress(DATA) + gzip.compress(b"more\n") + b"\0" * 100
    blocks = list(LineSource(gzip.GzipFile(fileobj=io.BytesIO(packed)), 5000, 1000))
    assert b"".join(block.data for block in blocks) == DATA + b"more\n"


def test_flipped_bits_are_damage():
    packed = bytearray(gzip.compress(DATA))
    packed[len(packed) // 2] ^= 0xFF
    *_, damage = LineSource(gzip.GzipFile(fileobj=io.BytesIO(bytes(packed))), 5000, 1000)
    assert isinstance(damage, Damage)
