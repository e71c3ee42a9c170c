"""Reading, matching and atomic writing through Beam's filesystems: local, gs://, s3://, hdfs://."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from schemas.tables import conform

_COPY_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file that matched a pattern.

    Attributes:
      path: as Beam names it.
      bytes: size on storage.
      version: changes when the file does: size and modification time.
    """

    path: str
    bytes: int
    version: str


def match(patterns: Sequence[str]) -> list[SourceFile]:
    """Returns the files that match any glob, each once, sorted by path.

    Raises:
      FileNotFoundError: a pattern matches no file; the message names it.
    """
    found: dict[str, SourceFile] = {}
    for pattern in patterns:
        try:
            files = FileSystems.match([pattern])[0].metadata_list
        except BeamIOError as error:
            raise FileNotFoundError(f"cannot list {pattern}: {error}") from error
        files = [file for file in files if not is_local(file.path) or os.path.isfile(file.path)]
        if not files:
            raise FileNotFoundError(f"no file matches {pattern}")
        for file in files:
            version = f"{file.size_in_bytes}:{file.last_updated_in_seconds}"
            found[file.path] = SourceFile(file.path, file.size_in_bytes, version)
    return [found[path] for path in sorted(found)]


def list_files(folder: str, suffix: str = "") -> list[str]:
    """Returns the paths directly inside a folder that end in `suffix`, sorted; [] without one."""
    try:
        matched = FileSystems.match([join(folder, "*")])[0].metadata_list
    except (BeamIOError, FileNotFoundError):
        return []
    return sorted(
        file.path
        for file in matched
        if file.path.endswith(suffix) and not os.path.basename(file.path).startswith(".")
    )


def join(base: str, *parts: str) -> str:
    """Joins path components the way the base path's filesystem does."""
    return FileSystems.join(base, *parts)


def base_name(path: str) -> str:
    """Returns the last component of a path."""
    return path.rsplit("/", 1)[-1]


def is_local(path: str) -> bool:
    """True when the path is on this machine's filesystem."""
    return FileSystems.get_scheme(path) is None


def exists(path: str) -> bool:
    """True when a file or folder is there."""
    return bool(FileSystems.exists(path))


def make_folder(path: str) -> None:
    """Creates a folder and its parents where the filesystem has folders."""
    if is_local(path):
        os.makedirs(path, exist_ok=True)


def open_raw(path: str) -> BinaryIO:
    """Opens a file for reading, bytes as stored: nothing is decompressed on the way."""
    return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)


def read_bytes(path: str) -> bytes:
    """Returns a whole file."""
    with open_raw(path) as file:
        return file.read()


@contextlib.contextmanager
def atomic_writer(path: str) -> Iterator[BinaryIO]:
    """Opens a file that appears under its name only when the block ends without an error.

    Locally it is written beside its place, flushed to disk and renamed. Object stores show an
    object only once its upload is finished, so there it is written directly.
    """
    if is_local(path):
        folder, name = os.path.split(path)
        os.makedirs(folder or ".", exist_ok=True)
        temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(temporary)
    else:
        with FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            yield file


def write_bytes(path: str, data: bytes) -> None:
    """Writes a whole file atomically."""
    with atomic_writer(path) as file:
        file.write(data)


def copy(source: str, destination: str) -> None:
    """Copies a file: hard link locally, server-side copy within one store, else its bytes."""
    if is_local(source) and is_local(destination):
        make_folder(os.path.dirname(destination))
        with contextlib.suppress(FileNotFoundError):
            os.remove(destination)
        try:
            os.link(source, destination)
        except OSError:  # another device, or a filesystem without hard links
            with open(source, "rb") as reader, atomic_writer(destination) as writer:
                shutil.copyfileobj(reader, writer, _COPY_BYTES)
    elif FileSystems.get_scheme(source) == FileSystems.get_scheme(destination):
        FileSystems.copy([source], [destination])
    else:
        with open_raw(source) as reader, atomic_writer(destination) as writer:
            shutil.copyfileobj(reader, writer, _COPY_BYTES)


def remove_tree(path: str) -> None:
    """Removes a folder and everything in it; nothing happens when it is not there."""
    if is_local(path):
        shutil.rmtree(path, ignore_errors=True)
        return
    # Object stores have no folders: only the objects under the name can be found and deleted.
    found = FileSystems.match([path.rstrip("/") + "/**"])[0].metadata_list
    if found:
        FileSystems.delete([file.path for file in found])


def size(path: str) -> int:
    """Returns a file's size in bytes."""
    return int(FileSystems.get_filesystem(path).size(path))


def is_same_file(left: str, right: str) -> bool:
    """True when two local paths are one file, as after a hard link."""
    return is_local(left) and is_local(right) and os.path.samefile(left, right)


def sha256(path: str) -> str:
    """Returns the hex digest of a file's content."""
    digest = hashlib.sha256()
    with open_raw(path) as file:
        while block := file.read(_COPY_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def parquet_file(path: str) -> Iterator[pq.ParquetFile]:
    """Opens a Parquet file for reading.

    Raises:
      ValueError: the file is not Parquet or is cut short; the message names it.
    """
    source = pa.memory_map(path) if is_local(path) and os.path.getsize(path) else open_raw(path)
    with source:
        try:
            file = pq.ParquetFile(source)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{path} is not a readable Parquet file: {error}") from error
        yield file


def read_table(path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads one Parquet file, or some of its columns."""
    with parquet_file(path) as file:
        return file.read(columns=None if columns is None else list(columns))


def write_table(
    path: str,
    schema: pa.Schema,
    batches: Sequence[pa.RecordBatch] | Iterator[pa.RecordBatch],
    row_group_rows: int = 1 << 17,
) -> int:
    """Writes batches of one schema as one Parquet file, atomically, and returns its rows.

    Rows are consolidated into row groups of `row_group_rows`, compressed with zstd. The bytes
    depend on the rows and their order only, not on how they were cut into batches.
    """
    rows = 0
    with (
        atomic_writer(path) as file,
        pq.ParquetWriter(file, schema, compression="zstd", store_schema=True) as writer,
    ):
        pending: list[pa.RecordBatch] = []
        pending_rows = 0
        for batch in batches:
            pending.append(conform(batch, schema))
            pending_rows += batch.num_rows
            while pending_rows >= row_group_rows:
                table = pa.Table.from_batches(pending, schema).combine_chunks()
                writer.write_table(table.slice(0, row_group_rows), row_group_size=row_group_rows)
                rows += row_group_rows
                pending = table.slice(row_group_rows).to_batches()
                pending_rows -= row_group_rows
        if pending_rows or rows == 0:
            table = pa.Table.from_batches(pending, schema).combine_chunks()
            writer.write_table(table, row_group_size=row_group_rows)
            rows += table.num_rows
    return rows
