"""Reading, matching and atomic writing through Beam's filesystems: local, gs://, s3://, hdfs://."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import importlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from schemas.tables import conform
from semid_transforms.arrow_file import SUFFIX, read_arrow, write_arrow
from semid_transforms.parquet_encoding import encoding
from semid_transforms.remote import WholeFile, abandon, is_absence, naming

_COPY_BYTES = 4 << 20

TEMPORARY = ".tmp"
"""How the name of a file ends that is still written; it begins with a dot."""

_SPOOLED_BYTES = 64 << 20
"""A remote file up to this size is put together in memory, a larger one in a temporary file."""


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

    @property
    def changed(self) -> float:
        """When it was last modified, in seconds since 1970."""
        return float(self.version.split(":")[1])


def match(patterns: Sequence[str]) -> list[SourceFile]:
    """Returns the files that match any glob, each once, sorted by path.

    Raises:
      FileNotFoundError: a pattern matches no file; the message names it.
      OSError: the files cannot be listed.
    """
    found: dict[str, SourceFile] = {}
    for pattern in patterns:
        files = _list(pattern)
        files = [file for file in files if not is_local(file.path) or os.path.isfile(file.path)]
        if not files:
            raise FileNotFoundError(f"no file matches {pattern}")
        for file in files:
            version = f"{file.size_in_bytes}:{file.last_updated_in_seconds}"
            found[file.path] = SourceFile(file.path, file.size_in_bytes, version)
    return [found[path] for path in sorted(found)]


def list_files(folder: str, suffix: str = "") -> list[str]:
    """Returns the paths directly inside a folder that end in `suffix`, sorted; [] without one.

    Raises:
      OSError: the folder cannot be listed. A listing that fails must not look like an empty one.
    """
    if is_local(folder) and not os.path.isdir(folder):
        return []
    return sorted(
        file.path
        for file in _list(join(folder, "*"))
        if file.path.endswith(suffix) and not os.path.basename(file.path).startswith(".")
    )


def _list(pattern: str) -> list[Any]:
    """Returns Beam's metadata of the files that match a glob; [] without any."""
    try:
        return list(_systems(pattern).match([pattern])[0].metadata_list)
    except BeamIOError as error:
        if is_absence(error):
            raise FileNotFoundError(f"cannot list {pattern}: {error}") from error
        raise OSError(errno.EIO, f"cannot list: {error}", pattern) from error


def list_folders(path: str) -> list[str]:
    """Returns the names of the folders directly inside a folder, sorted; [] without one."""
    if is_local(path):
        if not os.path.isdir(path):
            return []
        return sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
    # Object stores have no folders: names of objects tell which there would be.
    start = path.rstrip("/") + "/"
    inside = (file.path[len(start) :] for file in _list(f"{start}**"))
    return sorted({name.split("/")[0] for name in inside if "/" in name})


def join(base: str, *parts: str) -> str:
    """Joins path components the way the base path's filesystem does."""
    return _systems(base).join(base, *parts)


def base_name(path: str) -> str:
    """Returns the last component of a path."""
    return path.rsplit("/", 1)[-1]


def is_local(path: str) -> bool:
    """True when the path is on this machine's filesystem."""
    return FileSystems.get_scheme(path) is None


def _systems(path: str) -> type[FileSystems]:
    """Returns Beam's filesystems, among them the one of a path."""
    if FileSystems.get_scheme(path) == "gs":
        # It registers itself. A command on local paths did not import it, and never pays for it.
        importlib.import_module("apache_beam.io.gcp.gcsfilesystem")
    return FileSystems


def exists(path: str) -> bool:
    """True when a file or folder is there."""
    return bool(_systems(path).exists(path))


def make_folder(path: str) -> None:
    """Creates a folder and its parents where the filesystem has folders."""
    if is_local(path):
        os.makedirs(path, exist_ok=True)


def open_raw(path: str) -> BinaryIO:
    """Opens a file for reading, bytes as stored: nothing is decompressed on the way.

    Raises:
      FileNotFoundError: there is no such file.
      OSError: it cannot be opened; later, from `read`, a store sends less than the file holds.
    """
    if is_local(path):
        return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    with naming("open", path):
        file = _systems(path).open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    return cast(BinaryIO, WholeFile(file, path))


def read_bytes(path: str) -> bytes:
    """Returns a whole file."""
    with open_raw(path) as file:
        return file.read()


@contextlib.contextmanager
def atomic_writer(path: str) -> Iterator[BinaryIO]:
    """Opens a file that appears under its name only when the block ends without an error.

    Locally it is written beside its place, flushed to disk and renamed. Elsewhere it is put
    together on this machine and uploaded whole at the end: closing a half-written object, as an
    error inside the block would do, publishes that half on some stores.
    """
    if is_local(path):
        folder, name = os.path.split(path)
        os.makedirs(folder or ".", exist_ok=True)
        temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}{TEMPORARY}")
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            if error.errno is None or error.filename is not None:
                raise
            raise OSError(error.errno, f"cannot write: {error.strerror}", path) from error
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(temporary)
    else:
        with tempfile.SpooledTemporaryFile(_SPOOLED_BYTES) as whole:
            yield cast(BinaryIO, whole)
            whole.seek(0)
            with naming("write", path):
                remote = _systems(path).create(path, compression_type=CompressionTypes.UNCOMPRESSED)
                try:
                    shutil.copyfileobj(whole, remote, _COPY_BYTES)
                    remote.close()
                except BaseException:
                    abandon(remote)
                    raise


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[str]:
    """Gives a local path of a file that is to be memory-mapped; a remote one is copied first."""
    if is_local(path):
        yield path
        return
    with open_raw(path) as reader, tempfile.NamedTemporaryFile(suffix=base_name(path)) as local:
        shutil.copyfileobj(reader, local, _COPY_BYTES)
        local.flush()
        yield local.name


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
        _systems(source).copy([source], [destination])
    else:
        with open_raw(source) as reader, atomic_writer(destination) as writer:
            shutil.copyfileobj(reader, writer, _COPY_BYTES)


def remove_tree(path: str) -> None:
    """Removes a folder and everything in it; nothing happens when it is not there.

    Raises:
      OSError: something in it cannot be removed.
    """
    if is_local(path):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)
        return
    # Object stores have no folders: only the objects under the name can be found and deleted.
    if found := _list(path.rstrip("/") + "/**"):
        _systems(path).delete([file.path for file in found])


def remove_file(path: str) -> None:
    """Removes a file; nothing happens when it is not there."""
    if exists(path):
        _systems(path).delete([path])


def size(path: str) -> int:
    """Returns a file's size in bytes."""
    return int(_systems(path).get_filesystem(path).size(path))


def sync_folders(folder: str) -> None:
    """Makes the names of all files in a local folder and below survive a power cut."""
    for at, _, _ in os.walk(folder):
        descriptor = os.open(at, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_same_file(left: str, right: str) -> bool:
    """True when two paths hold one file, as after `copy`, by looking at neither's bytes.

    Locally that is a hard link. Google Cloud Storage is asked for the CRC-32C it keeps: reading
    every file that was carried over would cost as much as the catalog is large. Other stores may
    have no checksum, so there the answer is always False.
    """
    if is_local(left) and is_local(right):
        return os.path.samefile(left, right)
    if not (left.startswith("gs://") and right.startswith("gs://")):
        return False
    checksum = _systems(left).checksum
    return size(left) == size(right) and checksum(left) == checksum(right)


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
    with _open_fast(path) as source:
        try:
            file = pq.ParquetFile(source)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{path} is not a readable Parquet file: {error}") from error
        yield file


def _open_fast(path: str) -> pa.NativeFile | BinaryIO:
    return pa.memory_map(path) if is_local(path) and os.path.getsize(path) else open_raw(path)


def read_table(path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads one file of `write_table`, or some of its columns.

    Raises:
      ValueError: the file is not what its name says or is cut short; the message names it.
    """
    if path.endswith(SUFFIX):
        with _open_fast(path) as source:
            try:
                return read_arrow(source, columns)
            except pa.ArrowInvalid as error:
                raise ValueError(f"{path} is not a readable Arrow file: {error}") from error
    with parquet_file(path) as file:
        return file.read(columns=None if columns is None else list(columns))


def write_table(
    path: str,
    schema: pa.Schema,
    batches: Sequence[pa.RecordBatch] | Iterator[pa.RecordBatch],
    row_group_rows: int = 1 << 17,
) -> int:
    """Writes batches of one schema as one file, atomically, and returns its rows.

    The file is Parquet, or Arrow IPC where its name says so: see `arrow_file`.

    Rows are consolidated into row groups of `row_group_rows`, compressed with zstd; but vectors are
    stored as they are, because zstd saves a fifteenth of them and doubles the time to write and
    read. The bytes depend on the rows and their order only, not on how they were cut into batches.
    """
    if path.endswith(SUFFIX):
        with atomic_writer(path) as file:
            return write_arrow(file, schema, batches)
    rows = 0
    with (
        atomic_writer(path) as file,
        pq.ParquetWriter(file, schema, store_schema=True, **encoding(schema)) as writer,
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
