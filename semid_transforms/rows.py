"""Rows as they come out of a file: coerced to the type of their fields, not yet judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.tables import REJECTED_PAYLOAD_BYTES, REJECTS
from semid_transforms.coercion import Kind, Problem, coerce

READ_STAGE = "read"


@dataclasses.dataclass(frozen=True)
class Field:
    """One thing that is read of every row.

    Attributes:
      name: what it is to semid, such as `title`; a text field of the template may have any name.
      column: what the catalog calls it.
      kind: what it is read as.
    """

    name: str
    column: str
    kind: Kind


@dataclasses.dataclass(frozen=True)
class Reject:
    """A refused row.

    Attributes:
      problem: why.
      place: where it stands in its file, such as `line 17`.
      payload: the row as read.
      item_id: when it is known.
    """

    problem: Problem
    place: str
    payload: bytes
    item_id: str | None = None


@dataclasses.dataclass(frozen=True)
class Rows:
    """Consecutive rows of one split.

    Attributes:
      numbers: (N,) int64 running numbers inside the split.
      fields: N rows, one column per field, of the type of its kind (vectors may be float32); null
        where there is a problem.
      problems: index into the N rows -> the first problem found in its fields.
      place: index -> where the row stands in its file.
      payload: index -> the row as read.
      refused: further rows of the same stretch that have no fields at all.
    """

    numbers: np.ndarray
    fields: pa.RecordBatch
    problems: dict[int, Problem]
    place: Callable[[int], str]
    payload: Callable[[int], bytes]
    refused: Sequence[Reject] = ()

    @property
    def read(self) -> int:
        """Rows of the file this stretch accounts for."""
        return len(self.numbers) + len(self.refused)


def coerce_fields(
    columns: Mapping[str, pa.Array | Sequence[Any]],
    num_rows: int,
    fields: Sequence[Field],
    delimiter: str | None,
) -> tuple[pa.RecordBatch, dict[int, Problem]]:
    """Turns a file's columns into fields.

    Args:
      columns: by the catalog's name, N values each; one that is missing counts as all null.
      num_rows: N.
      fields: what is read.
      delimiter: splits category paths that are strings.

    Returns:
      N rows, one column per field, and the first problem of each row that has one.
    """
    arrays = []
    problems: dict[int, Problem] = {}
    for field in fields:
        values = columns.get(field.column)
        array, found = coerce(
            pa.nulls(num_rows) if values is None else values, field.kind, delimiter
        )
        arrays.append(array)
        for index, problem in found.items():
            named = Problem(problem.reason, f"column {field.column}: {problem.detail}")
            problems.setdefault(index, named)
    return pa.RecordBatch.from_arrays(arrays, [field.name for field in fields]), problems


def no_rows(fields: Sequence[Field], rejects: Sequence[Reject]) -> Rows:
    """Returns a stretch of refused rows only."""
    empty, _ = coerce_fields({}, 0, fields, None)
    return Rows(np.empty(0, np.int64), empty, {}, _nothing_there, _nothing_there, rejects)


def _nothing_there(row: int) -> Any:
    raise IndexError(f"row {row} of no rows")


def fields_schema(fields: Sequence[Field]) -> pa.Schema:
    """Returns the schema of coerced rows."""
    return pa.schema([pa.field(field.name, field.kind.value) for field in fields])


def reject_batch(source: str, rejects: Sequence[Reject]) -> pa.RecordBatch:
    """Returns refused rows of one source file as a batch of `REJECTS`."""
    details = [f"{reject.place}: {reject.problem.detail}" for reject in rejects]
    columns = [
        [source] * len(rejects),
        [reject.item_id for reject in rejects],
        [READ_STAGE] * len(rejects),
        [str(reject.problem.reason) for reject in rejects],
        [detail.encode("utf-8", "backslashreplace").decode() for detail in details],
        [reject.payload[:REJECTED_PAYLOAD_BYTES] for reject in rejects],
    ]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, REJECTS, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=REJECTS)
