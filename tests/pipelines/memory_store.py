"""A Beam filesystem that is neither local nor Google's: objects in memory, without folders."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata, FileSystem

OBJECTS: dict[str, tuple[bytes, float]] = {}
"""Content and time of writing of every object, by path."""


class _Upload(io.BytesIO):
    """Becomes an object when it is closed, also after an error, as in some stores."""

    def __init__(self, path: str):
        super().__init__()
        self._path = path

    def close(self) -> None:
        if not self.closed:
            OBJECTS[self._path] = (self.getvalue(), time.time())
        super().close()


class MemoryFileSystem(FileSystem):
    """Serves `shelf://` paths."""

    @classmethod
    def scheme(cls) -> str:
        return "shelf"

    def join(self, basepath: str, *paths: str) -> str:
        return "/".join([basepath.rstrip("/"), *(path.strip("/") for path in paths)])

    def split(self, path: str) -> tuple[str, str]:
        head, _, tail = path.rpartition("/")
        return head, tail

    def mkdirs(self, path: str) -> None:
        raise BeamIOError(f"{path}: there are no folders here")

    def has_dirs(self) -> bool:
        return False

    def _list(self, dir_or_prefix: str) -> Iterator[FileMetadata]:
        for path, (data, at) in sorted(OBJECTS.items()):
            if path.startswith(dir_or_prefix):
                yield FileMetadata(path, len(data), at)

    def create(
        self,
        path: str,
        mime_type: str = "application/octet-stream",
        compression_type: str = CompressionTypes.AUTO,
    ) -> BinaryIO:
        return _Upload(path)

    def open(
        self,
        path: str,
        mime_type: str = "application/octet-stream",
        compression_type: str = CompressionTypes.AUTO,
    ) -> BinaryIO:
        return io.BytesIO(self._object(path)[0])

    def copy(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        for source, destination in zip(source_file_names, destination_file_names, strict=True):
            OBJECTS[destination] = (self._object(source)[0], time.time())

    def rename(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        raise BeamIOError("nothing here is renamed")

    def exists(self, path: str) -> bool:
        return path in OBJECTS

    def size(self, path: str) -> int:
        return len(self._object(path)[0])

    def last_updated(self, path: str) -> float:
        return self._object(path)[1]

    def checksum(self, path: str) -> str:
        raise BeamIOError("nothing here has a checksum")

    def metadata(self, path: str) -> FileMetadata:
        data, at = self._object(path)
        return FileMetadata(path, len(data), at)

    def delete(self, paths: list[str]) -> None:
        for path in paths:
            OBJECTS.pop(path, None)

    def _object(self, path: str) -> Any:
        if path not in OBJECTS:
            raise BeamIOError("no such object", {path: FileNotFoundError(path)})
        return OBJECTS[path]
