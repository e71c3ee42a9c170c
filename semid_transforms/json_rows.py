"""Rows of JSON Lines: Arrow's parser for whole blocks, Python's for lines that do not fit."""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.json as pj

from schemas.config import InputConfig, ShardConfig
from schemas.rejects import RejectReason
from semid_transforms.coercion import Kind, Problem
from semid_transforms.lines import Block, Damage, LineSource, LongLine
from semid_transforms.rows import Field, Reject, Rows, coerce_fields, no_rows
from semid_transforms.sources import BOM, SourceSplit

_SLOW_LINES = 16
"""A piece of so few lines that one of them needs Python's parser goes there as a whole."""

_SAMPLE_LINES = 64
_MAX_DEPTH = 64
"""Nesting kept of a line that Python's parser finds too deep; no field is read from below 3."""

_DIGITS = 4300
"""Longer integers are refused by `int()`; they stay the text they are."""

_DEFAULT_TYPES: dict[Kind, pa.DataType] = {
    Kind.TEXT: pa.string(),
    Kind.PATH: pa.list_(pa.string()),
    Kind.NUMBER: pa.float64(),
    Kind.TIME: pa.string(),
    Kind.VECTOR: pa.list_(pa.float64()),
}

# Arrow takes Inf, -NaN and the like as numbers, Python's parser only NaN and [-]Infinity. Beginning
# with a literal, these search a megabyte in about a millisecond.
_ODD_NUMBERS = (re.compile(rb"NaN[\s,\]}]"), re.compile(rb"Inf(?:inity)?[\s,\]}]"))
_STRUCTURE = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def read_json_rows(
    stream: BinaryIO,
    split: SourceSplit,
    fields: Sequence[Field],
    input_config: InputConfig,
    shard_config: ShardConfig,
) -> Iterator[Rows]:
    """Reads the lines of a split.

    Blank lines are no rows. What a line gives does not depend on the lines around it.

    Args:
      stream: of the split's file, decompressed.
      split: which part to read.
      fields: what to read of every row.
      input_config: for the category delimiter and the longest line.
      shard_config: for the size of batches.
    """
    lines = LineSource(
        stream, shard_config.batch_bytes, input_config.max_row_bytes, split.start, split.stop
    )
    reader = _JsonReader(fields, input_config)
    counting = split.start == 0  # lines before a later range are not known
    line_number = 1
    row_number = 0
    for item in lines:
        if isinstance(item, Block):
            block = _Lines.of(item, line_number if counting else None)
            line_number += item.data.count(b"\n")
            for first in range(0, len(block), shard_config.batch_rows):
                some = block.take(
                    np.arange(first, min(first + shard_config.batch_rows, len(block)))
                )
                rows = reader.read(some, row_number)
                row_number += rows.read
                yield rows
        else:
            place = f"line {line_number}" if counting else f"byte {item.offset}"
            yield reader.refuse([_refusal(item, place, input_config.max_row_bytes)])
            line_number += 1
            row_number += 1


def _refusal(item: LongLine | Damage, place: str, limit: int) -> Reject:
    if isinstance(item, LongLine):
        return Reject(_too_long(item.length, limit), place, item.head)
    problem = Problem(RejectReason.DAMAGED_FILE, f"the file cannot be read from here: {item.error}")
    return Reject(problem, place, item.tail)


def _too_long(length: int, limit: int) -> Problem:
    return Problem(
        RejectReason.UNPARSABLE,
        f"{length} bytes long, more than input.max_row_bytes = {limit}",
    )


@dataclasses.dataclass(frozen=True)
class _Lines:
    """Lines that are not blank, as positions in a block.

    Attributes:
      data: the block's bytes.
      starts: (N,) first byte of each line.
      ends: (N,) end of each line, exclusive, without blanks and line end.
      offset: of the block in the file.
      numbers: (N,) line numbers in the file, or None when they are not known.
    """

    data: bytes
    starts: np.ndarray
    ends: np.ndarray
    offset: int
    numbers: np.ndarray | None

    @classmethod
    def of(cls, block: Block, first_line: int | None) -> _Lines:
        """Finds the lines of a block."""
        data = block.data
        codes = np.frombuffer(data, np.uint8)
        line_ends = np.flatnonzero(codes == ord("\n"))
        if len(line_ends) == 0 or line_ends[-1] != len(data) - 1:
            line_ends = np.append(line_ends, len(data))
        starts = np.concatenate([[0], line_ends[:-1] + 1])
        ends = line_ends.copy()
        if block.offset == 0 and data.startswith(BOM):
            starts[0] = len(BOM)
        filled = np.flatnonzero(ends > starts)
        blank_edge = (codes[starts[filled]] <= ord(" ")) | (codes[ends[filled] - 1] <= ord(" "))
        for line in filled[blank_edge]:
            text = data[starts[line] : ends[line]]
            starts[line] += len(text) - len(text.lstrip(b" \t\r"))
            ends[line] = max(starts[line], ends[line] - (len(text) - len(text.rstrip(b" \t\r"))))
        filled = np.flatnonzero(ends > starts)
        numbers = None if first_line is None else filled + first_line
        return cls(data, starts[filled], ends[filled], block.offset, numbers)

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, index: np.ndarray) -> _Lines:
        """Returns some of the lines."""
        numbers = None if self.numbers is None else self.numbers[index]
        return dataclasses.replace(
            self, starts=self.starts[index], ends=self.ends[index], numbers=numbers
        )

    def line(self, index: int) -> bytes:
        """Returns one line."""
        return self.data[self.starts[index] : self.ends[index]]

    def place(self, index: int) -> str:
        """Says where a line stands."""
        if self.numbers is None:
            return f"byte {self.offset + int(self.starts[index])}"
        return f"line {int(self.numbers[index])}"

    def joined(self, index: np.ndarray) -> bytes:
        """Returns some lines as one text of lines."""
        if index[-1] - index[0] == len(index) - 1:
            return self.data[self.starts[index[0]] : self.ends[index[-1]]]
        return b"\n".join(self.line(i) for i in index)


class _JsonReader:
    """Parses lines; remembers which JSON types the columns had, to try those first."""

    def __init__(self, fields: Sequence[Field], input_config: InputConfig) -> None:
        self._fields = fields
        self._delimiter = input_config.category_delimiter
        self._limit = input_config.max_row_bytes
        self._kinds = {field.column: field.kind for field in fields}
        self._types = {column: _DEFAULT_TYPES[kind] for column, kind in self._kinds.items()}

    def refuse(self, rejects: Sequence[Reject]) -> Rows:
        """Returns a stretch of refused rows only."""
        return no_rows(self._fields, rejects)

    def read(self, lines: _Lines, first_row: int) -> Rows:
        """Reads lines as rows numbered from `first_row`."""
        refused = _not_utf8(lines)
        lengths = lines.ends - lines.starts
        for line in np.flatnonzero(lengths > self._limit).tolist():
            refused[line] = _too_long(int(lengths[line]), self._limit)
        usable = np.array([line for line in range(len(lines)) if line not in refused], np.int64)
        fast, slow = self._parse(lines, usable)
        parts = [
            (index, dict(zip(batch.schema.names, batch.columns, strict=True)))
            for index, batch in fast
        ]
        parsed: dict[int, dict[str, Any]] = {}
        for line in slow:
            try:
                parsed[line] = _parse_line(lines.line(line).decode())
            except ValueError as error:
                refused[line] = Problem(RejectReason.UNPARSABLE, str(error))
        if parsed:
            index = np.array(list(parsed), np.int64)
            objects = list(parsed.values())
            parts.append((index, {c: [o.get(c) for o in objects] for c in self._kinds}))
        rejects = [
            Reject(problem, lines.place(line), lines.line(line))
            for line, problem in sorted(refused.items())
        ]
        return self._assemble(lines, first_row, parts, rejects)

    def _assemble(
        self,
        lines: _Lines,
        first_row: int,
        parts: Sequence[tuple[np.ndarray, dict[str, Any]]],
        rejects: Sequence[Reject],
    ) -> Rows:
        """Brings what the two parsers read back into the order of the lines."""
        if not parts:
            return self.refuse(rejects)
        batches = []
        problems: dict[int, Problem] = {}
        for index, columns in parts:
            batch, found = coerce_fields(columns, len(index), self._fields, self._delimiter)
            batches.append(batch)
            problems.update({int(index[row]): problem for row, problem in found.items()})
        index = np.concatenate([index for index, _ in parts])
        order = np.argsort(index)
        index = index[order]
        row_of = {line: row for row, line in enumerate(index.tolist())} if problems else {}
        return Rows(
            index + first_row,
            batches[0] if len(batches) == 1 else pa.concat_batches(batches).take(order),
            {row_of[line]: problem for line, problem in problems.items()},
            lambda row: lines.place(int(index[row])),
            lambda row: lines.line(int(index[row])),
            rejects,
        )

    def _parse(
        self, lines: _Lines, usable: np.ndarray
    ) -> tuple[list[tuple[np.ndarray, pa.RecordBatch]], list[int]]:
        """Returns what Arrow's parser reads of the lines, and those it does not."""
        if len(usable) == 0:
            return [], []
        whole = self._arrow(lines, usable)
        if whole is not None:
            return [(usable, whole)], []
        if not self._learn(lines, usable):
            return [], usable.tolist()
        fast: list[tuple[np.ndarray, pa.RecordBatch]] = []
        slow: list[int] = []
        pieces = [usable]
        while pieces:
            piece = pieces.pop()
            batch = self._arrow(lines, piece)
            if batch is not None:
                fast.append((piece, batch))
            elif len(piece) <= _SLOW_LINES:
                slow.extend(piece.tolist())
            else:
                half = len(piece) // 2
                pieces += [piece[half:], piece[:half]]
        return fast, slow

    def _arrow(self, lines: _Lines, index: np.ndarray) -> pa.RecordBatch | None:
        """Returns the columns of lines that Arrow reads exactly as Python would, else None."""
        codes = np.frombuffer(lines.data, np.uint8)
        objects = (codes[lines.starts[index]] == ord("{")) & (
            codes[lines.ends[index] - 1] == ord("}")
        )
        # Without this check two objects on one line and one object on two lines would cancel out.
        if not objects.all():
            return None
        data = lines.joined(index)
        if any(odd.search(data) for odd in _ODD_NUMBERS):
            return None
        schema = pa.schema([pa.field(name, type_) for name, type_ in self._types.items()])
        try:
            table = pj.read_json(
                pa.BufferReader(data),
                read_options=pj.ReadOptions(use_threads=False, block_size=len(data) + 1),
                parse_options=pj.ParseOptions(
                    explicit_schema=schema, unexpected_field_behavior="ignore"
                ),
            ).combine_chunks()
            table.validate(full=True)
        except pa.ArrowInvalid:
            return None
        if table.num_rows != len(index):
            return None
        return table.to_batches()[0]

    def _learn(self, lines: _Lines, usable: np.ndarray) -> bool:
        """Takes the types of some lines as those of all; False when they are too mixed."""
        sample = usable[:: max(1, len(usable) // _SAMPLE_LINES)]
        seen: dict[str, collections.Counter[pa.DataType | None]] = {
            column: collections.Counter() for column in self._kinds
        }
        for index in sample:
            try:
                value = _parse_line(lines.line(int(index)).decode())
            except ValueError:
                continue
            for column, kind in self._kinds.items():
                if value.get(column) is not None:
                    seen[column][_arrow_type(value[column], kind)] += 1
        for column, types in seen.items():
            if not types:
                continue
            type_, count = types.most_common(1)[0]
            if type_ is None or count < 0.8 * types.total():
                return False
            self._types[column] = type_
        return True


def _not_utf8(lines: _Lines) -> dict[int, Problem]:
    """Finds the lines that are not UTF-8."""
    problems: dict[int, Problem] = {}
    try:
        lines.joined(np.arange(len(lines))).decode()
    except UnicodeDecodeError:
        for line in range(len(lines)):
            try:
                lines.line(line).decode()
            except UnicodeDecodeError as error:
                detail = f"byte {error.start} of the line is not UTF-8: {error.reason}"
                problems[line] = Problem(RejectReason.INVALID_UTF8, detail)
    return problems


def _arrow_type(value: Any, kind: Kind) -> pa.DataType | None:
    """Returns the type with which Arrow reads such values as Python does, None without one."""
    if isinstance(value, str):
        return pa.string()
    if isinstance(value, bool):
        return None
    if kind is Kind.NUMBER and isinstance(value, int | float):
        return pa.float64()
    if kind in (Kind.TEXT, Kind.TIME) and isinstance(value, int) and abs(value) < 1 << 63:
        return pa.int64()
    if kind is Kind.PATH and isinstance(value, list):
        return pa.list_(pa.string())
    if kind is Kind.VECTOR and isinstance(value, list):
        return pa.list_(pa.float64())
    return None


def _parse_line(line: str) -> dict[str, Any]:
    """Returns a line's object.

    Raises:
      ValueError: the line is not a JSON object.
    """
    try:
        value = json.loads(line, parse_int=_integer)
    except RecursionError:
        value = _parse_deep(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos}") from error
    if not isinstance(value, dict):
        names = {list: "array", str: "string", bool: "true or false", type(None): "null"}
        raise ValueError(f"a JSON {names.get(type(value), 'number')}, expected an object")
    return value


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= _DIGITS else digits


def _parse_deep(line: str) -> Any:
    """Parses a line with everything nested deeper than `_MAX_DEPTH` replaced by null."""
    kept = []
    depth = 0
    begin = 0
    for match in _STRUCTURE.finditer(line):
        if match[0] in "[{":
            if depth == _MAX_DEPTH:
                kept += [line[begin : match.start()], "null"]
            depth += 1
        elif match[0] in "]}":
            depth -= 1
            if depth == _MAX_DEPTH:
                begin = match.end()
    if depth:
        raise ValueError("not JSON: brackets do not match")
    return _parse_line("".join([*kept, line[begin:]]))
