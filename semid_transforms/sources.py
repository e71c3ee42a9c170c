"""Which parts of which files a catalog is read from, and the checks before anything starts."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import enum
import gzip
import itertools
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystem import BeamIOError

from schemas.config import InputConfig, TextConfig
from semid_transforms import files
from semid_transforms.files import SourceFile

BOM = b"\xef\xbb\xbf"
DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error)
"""What Python's gzip raises for a file that is cut short, followed by garbage, or corrupt."""

_HEADER_BYTES = 1 << 20


class Format(enum.StrEnum):
    """How rows are written in a file."""

    PARQUET = "parquet"
    JSON_LINES = "jsonl"
    CSV = "csv"


_ENDINGS = {
    ".parquet": Format.PARQUET,
    ".jsonl": Format.JSON_LINES,
    ".ndjson": Format.JSON_LINES,
    ".json": Format.JSON_LINES,
    ".csv": Format.CSV,
}


@dataclasses.dataclass(frozen=True)
class SourceSplit:
    """The part of a file that one worker reads.

    Attributes:
      path: of the file, as Beam names it.
      format: how its rows are written.
      compressed: the file is gzip.
      source: number of the file among those of the catalog, from 0.
      number: of the split in its file, from 0.
      start: first Parquet row group, or the byte where a JSON Lines range begins. A line belongs
        to the range that holds its first byte.
      stop: end of the part, exclusive; None reads to the end of the file.
    """

    path: str
    format: Format
    compressed: bool = False
    source: int = 0
    number: int = 0
    start: int = 0
    stop: int | None = None


def list_splits(sources: Sequence[SourceFile], split_bytes: int) -> list[SourceSplit]:
    """Cuts files into parts that can be read independently, in order of path and number.

    Plain Parquet is cut between row groups and plain JSON Lines at bytes. CSV (a quoted field may
    hold line ends) and gzip cannot be entered in the middle: such a file is one split.

    Args:
      sources: the files, from `files.match`.
      split_bytes: most bytes of a split, unless a single row group is larger.

    Raises:
      ValueError: a file's ending is not one semid reads; the message names it.
    """
    splits = []
    for place, source in enumerate(sources):
        format_, compressed = format_of(source.path)
        whole = SourceSplit(source.path, format_, compressed, place)
        if compressed or source.bytes <= split_bytes or format_ is Format.CSV:
            splits.append(whole)
        elif format_ is Format.JSON_LINES:
            bounds = [*range(0, source.bytes, split_bytes), source.bytes]
            splits.extend(_cut(whole, bounds))
        else:
            splits.extend(_cut(whole, _row_group_bounds(source.path, split_bytes)))
    return splits


def format_of(path: str) -> tuple[Format, bool]:
    """Returns the format that a file's name ends in, and whether it is gzip.

    Raises:
      ValueError: the ending is unknown; the message lists those that are known.
    """
    name = path.lower()
    stem = name.removesuffix(".gz")
    for ending, format_ in _ENDINGS.items():
        if stem.endswith(ending):
            return format_, stem != name
    raise ValueError(
        f"cannot tell the format of {path}: its name must end in one of "
        f"{', '.join(_ENDINGS)}, each also with .gz"
    )


def _cut(whole: SourceSplit, bounds: Sequence[int]) -> Iterator[SourceSplit]:
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        yield dataclasses.replace(whole, number=number, start=start, stop=stop)


def _row_group_bounds(path: str, split_bytes: int) -> list[int]:
    """Returns row group numbers between which a Parquet file is cut."""
    try:
        with open_parquet(path) as file:
            metadata = file.metadata
    except ValueError:
        return [0, 1]  # damaged: the split that covers it reports that
    bounds = [0]
    size = 0
    for group in range(metadata.num_row_groups):
        columns = range(metadata.num_columns)
        group_size = sum(metadata.row_group(group).column(c).total_compressed_size for c in columns)
        if size and size + group_size > split_bytes:
            bounds.append(group)
            size = 0
        size += group_size
    return [*bounds, max(metadata.num_row_groups, 1)]


@contextlib.contextmanager
def open_stream(split: SourceSplit) -> Iterator[BinaryIO]:
    """Opens a split's file for reading, decompressed.

    Raises:
      OSError: the file cannot be opened or read; the message names it.
    """
    with _naming(split.path), files.open_raw(split.path) as raw:
        if not split.compressed:
            yield raw
        else:
            with gzip.GzipFile(fileobj=raw) as stream:
                yield cast(BinaryIO, stream)


@contextlib.contextmanager
def open_parquet(path: str, compressed: bool = False) -> Iterator[pq.ParquetFile]:
    """Opens a Parquet file; one inside gzip is unpacked into a temporary file first.

    Raises:
      ValueError: the file is not Parquet, or cut short; the message names it.
      OSError: the file cannot be opened or read; the message names it.
    """
    with contextlib.ExitStack() as stack:
        local = path
        if compressed:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="semid-"))
            local = os.path.join(folder, "unpacked.parquet")
            _unpack(path, local)
        stack.enter_context(_naming(path))
        mapped = files.is_local(local) and os.path.getsize(local) > 0
        source = stack.enter_context(pa.memory_map(local) if mapped else files.open_raw(local))
        try:
            file = pq.ParquetFile(source, page_checksum_verification=True)
            if any(pa.types.is_fixed_size_list(type_) for type_ in file.schema_arrow.types):
                metadata = _plain_metadata(source)
                file = pq.ParquetFile(source, metadata=metadata, page_checksum_verification=True)
        except (pa.ArrowInvalid, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise ValueError(f"{path} is not a readable Parquet file: {error}") from error
        yield file


def _unpack(path: str, destination: str) -> None:
    with (
        open_stream(SourceSplit(path, Format.PARQUET, True)) as stream,
        open(destination, "wb") as writer,
    ):
        try:
            shutil.copyfileobj(stream, writer, 1 << 20)
        except DAMAGE as error:
            raise ValueError(f"{path} is not readable gzip: {error}") from error


def _plain_metadata(source: BinaryIO) -> pq.FileMetaData:
    """Returns a file's metadata without the Arrow schema stored in it.

    With that schema Arrow 25 refuses to read fixed-size lists of which one is null ("Expected all
    lists to be of size"); without it the same column is an ordinary list.
    """
    end = source.seek(0, os.SEEK_END)
    source.seek(end - 8)
    (length,) = struct.unpack("<I", source.read(4))
    source.seek(end - 8 - length)
    footer = source.read(length + 8).replace(b"ARROW:schema", b"arrow:unused")
    return pq.read_metadata(pa.BufferReader(b"PAR1" + footer))


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Makes errors of the storage name the file; damaged content passes unchanged."""
    try:
        yield
    except gzip.BadGzipFile:
        raise
    except BeamIOError as error:
        raise OSError(f"cannot read {path}: {error}") from error
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, f"cannot read: {error.strerror}", path) from error


def file_columns(path: str) -> list[str] | None:
    """Returns the column names of a Parquet or CSV file.

    None stands for a file that has no header to look at: JSON Lines, empty or damaged.

    Raises:
      OSError: the file cannot be opened or read; the message names it.
    """
    format_, compressed = format_of(path)
    if format_ is Format.PARQUET:
        try:
            with open_parquet(path, compressed) as file:
                return list(file.schema_arrow.names)
        except ValueError:
            return None
    if format_ is Format.CSV:
        head = _head(path).removeprefix(BOM)
        if b"\n" not in head:  # no rows, or cut inside the header
            return None
        lines = head.decode("utf-8", "surrogateescape").splitlines(keepends=True)
        try:
            return next(csv.reader(lines), None)
        except csv.Error:
            return None
    return None


def _head(path: str) -> bytes:
    """Returns the first bytes of a text file, decompressed; less when it is damaged."""
    with open_stream(SourceSplit(path, *format_of(path))) as stream:
        read = getattr(stream, "read1", stream.read)  # keeps what precedes damage in gzip
        try:
            return read(_HEADER_BYTES)
        except DAMAGE:
            return b""


def check_columns(
    sources: Sequence[SourceFile], input_config: InputConfig, text_config: TextConfig
) -> None:
    """Looks at the head of the first file of each format, before anything starts.

    Raises:
      ValueError: no item_id column, a mapped column that is not there, or neither text nor
        embedding; or JSON that is one array instead of lines. The message names the file, its
        columns and the key to set.
      OSError: a file cannot be opened or read; the message names it.
    """
    seen: set[Format] = set()
    for source in sources:
        format_, _ = format_of(source.path)
        if format_ in seen or source.bytes == 0:
            continue
        if format_ is Format.JSON_LINES:
            seen.add(format_)
            _check_lines(source.path)
        elif (columns := file_columns(source.path)) is not None:
            seen.add(format_)
            _check_header(source.path, columns, input_config, text_config)


def _check_lines(path: str) -> None:
    head = _head(path).removeprefix(BOM).lstrip()
    if head.startswith(b"[") and head[1:].lstrip().startswith(b"{"):
        raise ValueError(
            f"{path} is one JSON array, semid reads one object per line: write it with "
            "jq -c '.[]', for example"
        )


def _check_header(
    path: str, columns: Sequence[str], input_config: InputConfig, text_config: TextConfig
) -> None:
    there = f"its columns are {', '.join(columns) or 'none'}"
    embedding = input_config.embedding_columns
    mapped = [(f, c) for f, c in input_config.columns.items() if isinstance(c, str)]
    mapped += [("embedding", column) for column in embedding or []]
    for column in input_config.fuse:
        if column not in columns:
            raise ValueError(f"{path} has no column {column!r}, which input.fuse names: {there}")
    id_column = input_config.column("item_id")
    if id_column not in columns:
        raise ValueError(
            f"{path} has no column {id_column!r} for the item's id: {there}. "
            "Set input.columns.item_id to the one that holds it"
        )
    for field, column in mapped:
        if column not in columns:
            raise ValueError(
                f"{path} has no column {column!r}, which input.columns.{field} names: {there}"
            )
    used = [id_column, *(column for _, column in mapped), *input_config.fuse]
    if repeated := [column for column in used if list(columns).count(column) > 1]:
        raise ValueError(f"{path} has several columns named {repeated[0]!r}: {there}")
    vectors = ["embedding"] if embedding is None else embedding
    texts = [input_config.column(field) for field in text_config.fields]
    if not set(columns).intersection([*vectors, *texts]):
        raise ValueError(
            f"{path} has none of the columns {', '.join(texts)} to make a text of, and no column "
            f"embedding: {there}. Set input.columns.{text_config.fields[0]} or text.parts"
        )
