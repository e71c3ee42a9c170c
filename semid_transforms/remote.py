"""What stores do that disks do not: end a file early, fail in their own words, finish halves."""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Iterator
from typing import BinaryIO

from apache_beam.io.filesystem import BeamIOError


@contextlib.contextmanager
def naming(action: str, path: str) -> Iterator[None]:
    """Turns what a store's client raises, each its own, into an OSError that names the path."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        if is_absence(error):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
        raise OSError(errno.EIO, f"cannot {action}: {error}", path) from error


def is_absence(error: BaseException) -> bool:
    """True for what object stores answer when a bucket or object is not there."""
    if isinstance(error, BeamIOError):  # holds an error for each path it was asked about
        return any(map(is_absence, (error.exception_details or {}).values()))
    return isinstance(error, FileNotFoundError) or getattr(error, "code", None) == 404


def abandon(file: BinaryIO) -> None:
    """Ends an upload that failed; Google's writer would begin it anew when it is collected."""
    if terminate := getattr(file, "terminate", None):
        with contextlib.suppress(Exception):  # it asks the store, which just failed, to forget it
            terminate()


class WholeFile(io.BufferedIOBase):
    """A remote file that never ends early.

    Readers of object stores take an answer that is too short for the end of the file; the rest of
    a line-based catalog would be lost without a word.
    """

    def __init__(self, file: BinaryIO, path: str):
        self._file, self._path = file, path
        self._size = file.seek(0, os.SEEK_END)
        file.seek(0)

    def read(self, size: int | None = -1, /) -> bytes:
        """Returns `size` bytes, fewer only at the end of the file.

        Raises:
          OSError: the store sent less than there is.
        """
        start = self._file.tell()
        left = max(0, self._size - start)
        wanted = left if size is None or size < 0 else min(size, left)
        parts: list[bytes] = []
        with naming("read", self._path):
            while wanted and (part := self._file.read(wanted)):
                parts.append(part)
                wanted -= len(part)
        if wanted:
            reached = start + sum(map(len, parts))
            text = f"the store ended the file at byte {reached:,} of {self._size:,}"
            raise OSError(errno.EIO, text, self._path)
        return b"".join(parts)

    def read1(self, size: int = -1, /) -> bytes:
        """Returns up to `size` bytes."""
        return self.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Moves to a position."""
        self._file.seek(offset, whence)
        return self._file.tell()

    def tell(self) -> int:
        """Returns the position."""
        return self._file.tell()

    def readable(self) -> bool:
        """It is for reading."""
        return True

    def seekable(self) -> bool:
        """Positions can be chosen."""
        return True

    def close(self) -> None:
        """Closes the remote file."""
        self._file.close()
        super().close()
