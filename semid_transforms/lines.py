"""Whole lines out of a byte stream, in blocks of bounded size."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import BinaryIO

from schemas.tables import REJECTED_PAYLOAD_BYTES
from semid_transforms.sources import DAMAGE


@dataclasses.dataclass(frozen=True)
class Block:
    """Whole lines, line ends included; only the last line of a file may lack one.

    Attributes:
      data: the lines.
      offset: of the first byte in the decompressed file.
    """

    data: bytes
    offset: int


@dataclasses.dataclass(frozen=True)
class LongLine:
    """A line that is over the limit and was skipped without being held.

    Attributes:
      head: its beginning, at most `REJECTED_PAYLOAD_BYTES`.
      length: in bytes, without the line end.
      offset: of its first byte in the decompressed file.
    """

    head: bytes
    length: int
    offset: int


@dataclasses.dataclass(frozen=True)
class Damage:
    """The stream cannot be decoded further.

    Attributes:
      tail: what could still be decoded of the line where it ends, possibly nothing, at most
        `REJECTED_PAYLOAD_BYTES`.
      error: what the decoder said.
      offset: of the tail in the decompressed file.
    """

    tail: bytes
    error: str
    offset: int


class LineSource:
    """Reads the lines that begin in a byte range of a stream.

    Args:
      stream: plain or decompressing; seekable when `start` is not 0.
      block_bytes: bytes read at a time, so about the size of a block.
      max_line_bytes: a longer line is skipped; one that is only found to be too long inside a
        block is left to the caller.
      start: first byte of the range.
      stop: end of the range, exclusive; None reads all.
    """

    def __init__(
        self,
        stream: BinaryIO,
        block_bytes: int,
        max_line_bytes: int,
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        self._stream = stream
        self._block_bytes = block_bytes
        self._max_line_bytes = max_line_bytes
        self._stop = stop
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._offset = start
        self._error: str | None = None
        self._ended = False
        if start:
            stream.seek(start - 1)
            self._offset = start - 1
            self._skip_line()

    def __iter__(self) -> Iterator[Block | LongLine | Damage]:
        """Yields blocks in file order; `Damage` comes last."""
        while self._stop is None or self._offset < self._stop:
            chunk = b"" if self._ended else self._read()
            if not chunk and not self._held:
                break
            if not self._ended and b"\n" not in chunk and not self._holds_a_line():
                self._hold(chunk)
                if self._held_bytes > self._max_line_bytes + 1:  # 1 for a carriage return
                    yield self._skip_line()
                continue
            data = b"".join([*self._held, chunk])
            cut = self._cut(data)
            self._held, self._held_bytes = [], 0
            if cut:
                yield Block(data[:cut], self._offset)
                self._offset += cut
            if cut < len(data):
                self._hold(data[cut:])
            if self._ended:
                break
        if self._error is not None and (self._stop is None or self._offset < self._stop):
            tail = b"".join(self._held)[:REJECTED_PAYLOAD_BYTES]
            yield Damage(tail, self._error, self._offset)

    def _holds_a_line(self) -> bool:
        return any(b"\n" in piece for piece in self._held)

    def _hold(self, piece: bytes) -> None:
        self._held.append(piece)
        self._held_bytes += len(piece)

    def _cut(self, data: bytes) -> int:
        """Returns how much of the data, which starts a line, is whole lines of the range."""
        if self._stop is not None and self._stop - self._offset <= len(data):
            end = data.find(b"\n", max(self._stop - 1 - self._offset, 0))
            if end >= 0:
                return end + 1
        if self._ended and self._error is None:
            return len(data)
        return data.rfind(b"\n") + 1

    def _read(self) -> bytes:
        """Returns about a block of bytes, less when the stream ends or breaks."""
        pieces: list[bytes] = []
        missing = self._block_bytes
        # gzip's read() forgets what it had decoded when it then raises; read1() does not.
        read = getattr(self._stream, "read1", self._stream.read)
        while missing > 0:
            try:
                piece = read(missing)
            except DAMAGE as error:
                self._error = f"{type(error).__name__}: {error}"
                piece = b""
            if not piece:
                self._ended = True
                break
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)

    def _skip_line(self) -> LongLine:
        """Reads past the end of the line at the current offset."""
        head = b"".join(self._held)
        begin = self._offset
        length = self._held_bytes
        self._held, self._held_bytes = [], 0
        while not self._ended:
            chunk = self._read()
            end = chunk.find(b"\n")
            if len(head) < REJECTED_PAYLOAD_BYTES:
                head += chunk if end < 0 else chunk[:end]
            if end >= 0:
                length += end
                self._offset = begin + length + 1
                if rest := chunk[end + 1 :]:
                    self._hold(rest)
                break
            length += len(chunk)
            self._offset = begin + length
        return LongLine(head[:REJECTED_PAYLOAD_BYTES], length, begin)
