"""Files through which the worker processes of one machine hand each other what they shuffle."""

from __future__ import annotations

import os
import struct
import tempfile
import threading
from collections.abc import Sequence

import pyarrow as pa

_PLACE = struct.Struct("<8sIQQ")
_MARK = b"semid@\x00\x00"
"""What a place begins with; an Arrow IPC stream begins with four bytes of ones."""


class ShuffleFiles:
    """One file per process, to which it appends and from which all read.

    Attributes:
      descriptors: of the files, the same in every process.
    """

    def __init__(self, descriptors: Sequence[int], own: int):
        """Shares files.

        Args:
          descriptors: of open files, one per process.
          own: which of them is written to here.
        """
        self.descriptors = tuple(descriptors)
        self._own = own
        self._end = 0
        self._lock = threading.Lock()

    def append(self, content: pa.Buffer) -> bytes:
        """Writes bytes down and returns their place.

        Raises:
          OSError: there is no room for them; the message names the folder.
        """
        with self._lock:
            start = self._end
            self._end += content.size
        try:
            self._write(memoryview(content), start)
        except OSError as error:
            raise OSError(
                f"{error.strerror}: what workers hand each other is kept in {tempfile.gettempdir()}"
                " meanwhile; set TMPDIR to a folder with more room"
            ) from error
        return _PLACE.pack(_MARK, self._own, start, content.size)

    def resolve(self, place: bytes) -> bytes:
        """Returns the bytes at a place; those that are no place as they are."""
        if not place.startswith(_MARK):
            return place
        _, number, start, size = _PLACE.unpack(place)
        parts = []
        while size:
            part = os.pread(self.descriptors[number], size, start)
            if not part:
                raise RuntimeError("a shuffle file ends before what was written to it")
            parts.append(part)
            start, size = start + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _write(self, content: memoryview, start: int) -> None:
        while content:
            written = os.pwrite(self.descriptors[self._own], content, start)
            content, start = content[written:], start + written
