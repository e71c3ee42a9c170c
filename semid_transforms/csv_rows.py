"""Rows of CSV with a header, through Python's csv module."""

from __future__ import annotations

import collections
import csv
import dataclasses
import io
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from schemas.config import InputConfig, ShardConfig
from schemas.rejects import RejectReason
from schemas.tables import REJECTED_PAYLOAD_BYTES
from semid_transforms.coercion import Problem
from semid_transforms.lines import Block, Damage, LineSource, LongLine
from semid_transforms.rows import Field, Reject, Rows, coerce_fields
from semid_transforms.sources import BOM

csv.field_size_limit((1 << 31) - 1)  # max_row_bytes is what limits a record


@dataclasses.dataclass(frozen=True)
class _Record:
    """One CSV record.

    Attributes:
      values: its fields; empty when it is refused.
      raw: the lines it stands on.
      line: number of its first line in the file, from 1.
      problem: why it is refused.
    """

    values: list[str]
    raw: bytes
    line: int
    problem: Problem | None = None


def read_csv_rows(
    stream: BinaryIO,
    fields: Sequence[Field],
    input_config: InputConfig,
    shard_config: ShardConfig,
) -> Iterator[Rows]:
    """Reads a whole CSV file; its first record names the columns.

    Blank lines are no rows. A record that spans several lines and has not as many fields as the
    header, or text after a closing quote, is most often an unbalanced quote: its first line alone
    is refused, and reading goes on with the second. Without a usable header the file counts as
    damaged.

    Args:
      stream: of the file, decompressed.
      fields: what to read of every row.
      input_config: for the category delimiter and the longest record.
      shard_config: for the size of batches.
    """
    source = LineSource(stream, shard_config.batch_bytes, input_config.max_row_bytes)
    records = _records(_LineFeed(source, input_config.max_row_bytes))
    header = next(records, None)
    if header is None:
        return
    if header.problem is not None:
        detail = f"the header cannot be read, so nothing of the file was: {header.problem.detail}"
        header = dataclasses.replace(header, problem=Problem(RejectReason.DAMAGED_FILE, detail))
        yield _to_rows([header], [], fields, input_config, 0)
        return
    batch: list[_Record] = []
    size = 0
    number = 0
    for record in records:
        batch.append(record)
        size += len(record.raw)
        if len(batch) >= shard_config.batch_rows or size >= shard_config.batch_bytes:
            yield _to_rows(batch, header.values, fields, input_config, number)
            number += len(batch)
            batch, size = [], 0
    if batch:
        yield _to_rows(batch, header.values, fields, input_config, number)


def _to_rows(
    records: Sequence[_Record],
    header: Sequence[str],
    fields: Sequence[Field],
    input_config: InputConfig,
    first_row: int,
) -> Rows:
    good = [index for index, record in enumerate(records) if record.problem is None]
    usable = [records[index] for index in good]
    positions = {name: i for i, name in reversed(list(enumerate(header)))}
    columns = {
        field.column: pa.array(
            [record.values[positions[field.column]] for record in usable], pa.string()
        )
        for field in fields
        if field.column in positions
    }
    coerced, problems = coerce_fields(columns, len(usable), fields, input_config.category_delimiter)
    return Rows(
        np.array(good, np.int64) + first_row,
        coerced,
        problems,
        lambda row: f"line {usable[row].line}",
        lambda row: usable[row].raw,
        [
            Reject(record.problem, f"line {record.line}", record.raw)
            for record in records
            if record.problem is not None
        ],
    )


class _LineFeed:
    """Hands a file's lines to the csv module and remembers which it took for a record.

    Attributes:
      taken: lines of the record in progress.
      line: number of its first line in the file, from 1.
      unfinished: the record in progress ended inside quotes.
      obstacle: something that is no line stands next in the file.
      not_utf8: set when a line of the record in progress is not UTF-8.
    """

    def __init__(self, source: LineSource, limit: int) -> None:
        self._lines = _physical_lines(source, limit)
        self._again: collections.deque[bytes] = collections.deque()
        self.limit = limit
        self.taken: list[bytes] = []
        self._taken_bytes = 0
        self.line = 1
        self.unfinished = False
        self.obstacle: LongLine | Damage | None = None
        self.not_utf8: UnicodeDecodeError | None = None

    def __iter__(self) -> _LineFeed:
        return self

    def __next__(self) -> str:
        if self._taken_bytes <= self.limit and self.obstacle is None:
            item = self._again.popleft() if self._again else next(self._lines, None)
            if isinstance(item, bytes):
                self.taken.append(item)
                self._taken_bytes += len(item)
                try:
                    return item.decode()
                except UnicodeDecodeError as error:
                    self.not_utf8 = error
                    return item.decode("utf-8", "surrogateescape")
            self.obstacle = item
        self.unfinished = bool(self.taken)
        raise StopIteration

    def start_record(self, lines_done: int) -> None:
        """Begins a record after so many lines of the last one; the others are read again."""
        self._again.extendleft(reversed(self.taken[lines_done:]))
        self.line += lines_done
        self.taken, self._taken_bytes = [], 0
        self.unfinished, self.not_utf8 = False, None


def _physical_lines(source: LineSource, limit: int) -> Iterator[bytes | LongLine | Damage]:
    for item in source:
        if not isinstance(item, Block):
            yield item
            continue
        data = item.data.removeprefix(BOM) if item.offset == 0 else item.data
        offset = item.offset
        for line in io.BytesIO(data):
            if len(line) > limit and (length := len(line.rstrip(b"\r\n"))) > limit:
                yield LongLine(line[:REJECTED_PAYLOAD_BYTES], length, offset)
            else:
                yield line
            offset += len(line)


def _records(feed: _LineFeed) -> Iterator[_Record]:
    """Yields the records of a file, the header first."""
    reader = csv.reader(feed)
    width: int | None = None
    while True:
        problem = None
        values: list[str] = []
        try:
            values = next(reader)
        except StopIteration:
            if feed.obstacle is None:
                return
            yield _obstacle(feed.obstacle, feed.line, feed.limit)
            feed.obstacle = None
            feed.line += 1
            continue
        except csv.Error as error:
            problem = Problem(RejectReason.UNPARSABLE, f"not CSV: {error}")
        lines = len(feed.taken)
        if problem is None and width != 1 and len(values) < 2 and not "".join(values).strip():
            feed.start_record(lines)  # a blank line
            continue
        if feed.unfinished:
            detail = f"a quoted field does not end in the file or within {feed.limit} bytes"
            problem = Problem(RejectReason.UNPARSABLE, f"{detail} (input.max_row_bytes)")
        elif problem is None and width is not None and len(values) != width:
            detail = f"{len(values)} fields, the header has {width}"
            problem = Problem(RejectReason.UNPARSABLE, detail)
        elif problem is None and lines > 1 and not _well_quoted(feed.taken):
            detail = "text follows the quote that ends a field of several lines"
            problem = Problem(RejectReason.UNPARSABLE, detail)
        if problem is not None:
            lines = 1
        elif feed.not_utf8 is not None:
            problem = Problem(RejectReason.INVALID_UTF8, f"not UTF-8: {feed.not_utf8.reason}")
        if width is None and problem is None:
            width = len(values)
        yield _Record(values, b"".join(feed.taken[:lines]), feed.line, problem)
        feed.start_record(lines)


def _well_quoted(lines: Sequence[bytes]) -> bool:
    """False when a strict reader finds text between the end of a quoted field and the next one.

    On one line that is merely sloppy, `"19" screen`; over several it is two records with a stray
    quote each, which would pass for one.
    """
    texts = [line.decode("utf-8", "surrogateescape") for line in lines]
    try:
        return len(list(csv.reader(texts, strict=True))) == 1
    except csv.Error:
        return False


def _obstacle(item: LongLine | Damage, line: int, limit: int) -> _Record:
    if isinstance(item, LongLine):
        detail = f"{item.length} bytes long, more than input.max_row_bytes = {limit}"
        return _Record([], item.head, line, Problem(RejectReason.UNPARSABLE, detail))
    detail = f"the file cannot be read from here: {item.error}"
    return _Record([], item.tail, line, Problem(RejectReason.DAMAGED_FILE, detail))
