"""Columns of any catalog type as what a field needs: text, a path, a number, a time or a vector.

Common Arrow types are cast as a whole, to what `values` says of each value; everything else goes
value by value.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.arrays import mask_from_bool
from schemas.rejects import RejectReason
from schemas.tables import TIMESTAMP
from semid_transforms.values import (
    FIRST_MICROSECOND,
    LAST_MICROSECOND,
    UnreadableError,
    number_of,
    path_of,
    text_of,
    time_of,
    vector_of,
)


class Kind(enum.Enum):
    """What a field is read as; the value is its Arrow type.

    A VECTOR of float32 stays one: twice the bytes would say the same.
    """

    TEXT = pa.string()
    PATH = pa.list_(pa.string())
    NUMBER = pa.float64()
    TIME = TIMESTAMP
    VECTOR = pa.list_(pa.float64())


@dataclasses.dataclass(frozen=True)
class Problem:
    """Why a row cannot be used."""

    reason: RejectReason
    detail: str


def coerce(
    values: pa.Array | Sequence[Any], kind: Kind, delimiter: str | None = None
) -> tuple[pa.Array, dict[int, Problem]]:
    """Turns a column, or the Python values of one, into an array of the kind's type.

    Args:
      values: N values of any type.
      kind: what they are read as.
      delimiter: splits strings of a PATH.

    Returns:
      N values, null where one is missing or cannot be read, and the problems by index.
    """
    if not isinstance(values, pa.Array):
        return _each(values, kind, delimiter)
    if values.null_count == len(values):
        return pa.nulls(len(values), kind.value), {}
    array = _plain(values)
    try:
        return _whole(array, kind, delimiter)
    except pa.ArrowException:  # no such cast, an unknown time zone
        return _each(_python_values(array), kind, delimiter)


def _whole(
    array: pa.Array, kind: Kind, delimiter: str | None
) -> tuple[pa.Array, dict[int, Problem]]:
    """Coerces a column at once where Arrow has a cast that means the same."""
    type_ = array.type
    if kind is Kind.TEXT and (_is_string(type_) or pa.types.is_integer(type_)):
        return _valid_text(array.cast(pa.string()))
    if kind is Kind.TEXT and (pa.types.is_temporal(type_) or pa.types.is_decimal(type_)):
        return array.cast(pa.string()), {}
    if kind is Kind.PATH and _is_list(type_) and _is_string(type_.value_type):
        paths = array.cast(pa.list_(pa.string()))
        if _is_valid(paths):
            return paths, {}
        return _each(paths.cast(pa.list_(pa.binary())).to_pylist(), kind, delimiter)
    if kind is Kind.PATH and _is_string(type_):
        texts, problems = _valid_text(array.cast(pa.string()))
        if delimiter:
            return pc.split_pattern(texts, delimiter), problems
        lengths = pc.cast(pc.is_valid(texts), pa.int32()).to_numpy(zero_copy_only=False)
        offsets = np.concatenate([np.zeros(1, np.int32), np.cumsum(lengths, dtype=np.int32)])
        paths = pa.ListArray.from_arrays(
            pa.array(offsets), texts.drop_null(), mask=pc.is_null(texts)
        )
        return paths, problems
    if kind is Kind.NUMBER and pa.types.is_integer(type_):
        return array.cast(pa.float64(), safe=False), {}
    if kind is Kind.NUMBER and pa.types.is_floating(type_):
        return _valid_numbers(array.cast(pa.float64()))
    if kind is Kind.TIME and (pa.types.is_timestamp(type_) or pa.types.is_date(type_)):
        return _timestamps(array)
    if kind is Kind.VECTOR and _is_list(type_) and _is_number(type_.value_type):
        single = pa.types.is_float32(type_.value_type)
        return array.cast(pa.list_(pa.float32()) if single else kind.value, safe=False), {}
    return _each(_python_values(array), kind, delimiter)


def _each(
    values: Sequence[Any], kind: Kind, delimiter: str | None
) -> tuple[pa.Array, dict[int, Problem]]:
    """Coerces value by value."""
    readers: dict[Kind, Callable[[Any], Any]] = {
        Kind.TEXT: text_of,
        Kind.PATH: lambda value: path_of(value, delimiter),
        Kind.NUMBER: number_of,
        Kind.TIME: time_of,
        Kind.VECTOR: vector_of,
    }
    read = readers[kind]
    bad = RejectReason.BAD_EMBEDDING if kind is Kind.VECTOR else RejectReason.BAD_FIELD
    problems: dict[int, Problem] = {}
    result = []
    for index, value in enumerate(values):
        try:
            result.append(read(value))
        except UnicodeError as error:
            problems[index] = Problem(RejectReason.INVALID_UTF8, _utf8_detail(error))
            result.append(None)
        except (UnreadableError, OverflowError) as error:
            problems[index] = Problem(bad, str(error))
            result.append(None)
    if kind is Kind.TIME:
        return pa.array(result, pa.int64()).cast(TIMESTAMP), problems
    return pa.array(result, kind.value), problems


def _plain(array: pa.Array) -> pa.Array:
    """Removes dictionaries, extensions and views, which not every kernel accepts."""
    if isinstance(array, pa.ExtensionArray):
        if array.type.extension_name == "arrow.uuid":
            return pa.array([None if u is None else str(u) for u in array.to_pylist()], pa.string())
        return _plain(array.storage)
    if pa.types.is_dictionary(array.type):
        return _plain(array.dictionary_decode())
    if pa.types.is_string_view(array.type):
        return array.cast(pa.string())
    if pa.types.is_binary_view(array.type):
        return array.cast(pa.binary())
    return array


def _python_values(array: pa.Array) -> list[Any]:
    """Returns values as Python has them; text that is not UTF-8 as bytes."""
    type_ = array.type
    if pa.types.is_float16(type_) or pa.types.is_float32(type_):
        return [None if v is None else np.float32(v) for v in array.to_pylist()]
    if pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_binary(type_):
        return [_decoded(value) for value in array.cast(pa.large_binary()).to_pylist()]
    if _is_list(type_) and _is_string(type_.value_type):
        return array.cast(pa.list_(pa.binary())).to_pylist()
    values = []
    for scalar in array:
        try:
            values.append(scalar.as_py())
        except (ValueError, OverflowError, LookupError):  # out of range, unknown time zone, ...
            values.append(_Foreign(str(type_)))
    return values


@dataclasses.dataclass(frozen=True)
class _Foreign:
    """A value Python has no equal of."""

    type: str


def _decoded(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return value


def _valid_text(array: pa.Array) -> tuple[pa.Array, dict[int, Problem]]:
    """Replaces strings that are not UTF-8 by null."""
    if _is_valid(array):
        return array, {}
    return _each(array.cast(pa.binary()).to_pylist(), Kind.TEXT, None)


def _is_valid(array: pa.Array) -> bool:
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _valid_numbers(array: pa.Array) -> tuple[pa.Array, dict[int, Problem]]:
    infinite = mask_from_bool(pc.is_inf(array))
    problem = Problem(RejectReason.BAD_FIELD, "infinity is not a finite number")
    problems = dict.fromkeys(np.flatnonzero(infinite).tolist(), problem)
    missing = pa.array(infinite | mask_from_bool(pc.is_nan(array)))
    return pc.if_else(missing, pa.scalar(None, pa.float64()), array), problems


def _timestamps(array: pa.Array) -> tuple[pa.Array, dict[int, Problem]]:
    if pa.types.is_date(array.type):
        array = array.cast(pa.timestamp("s" if pa.types.is_date32(array.type) else "ms"))
    if array.type.unit == "ns":  # reaches from 1677 to 2262
        return array.cast(pa.timestamp("us", array.type.tz), safe=False).cast(TIMESTAMP), {}
    ticks = array.view(pa.int64())
    factor = {"s": 10**6, "ms": 10**3, "us": 1}[array.type.unit]
    first, last = -(-FIRST_MICROSECOND // factor), LAST_MICROSECOND // factor
    wrong = mask_from_bool(pc.or_(pc.less(ticks, first), pc.greater(ticks, last)))
    usable = pc.if_else(pa.array(wrong), pa.scalar(None, pa.int64()), ticks)
    problem = Problem(RejectReason.BAD_FIELD, "outside the years 1 to 9999")
    problems = dict.fromkeys(np.flatnonzero(wrong).tolist(), problem)
    return pc.multiply(usable, factor).cast(TIMESTAMP), problems


def _is_string(type_: pa.DataType) -> bool:
    return (
        pa.types.is_string(type_)
        or pa.types.is_large_string(type_)
        or pa.types.is_string_view(type_)
    )


def _is_number(type_: pa.DataType) -> bool:
    return pa.types.is_integer(type_) or pa.types.is_floating(type_)


def _is_list(type_: pa.DataType) -> bool:
    return (
        pa.types.is_list(type_)
        or pa.types.is_large_list(type_)
        or pa.types.is_fixed_size_list(type_)
    )


def _utf8_detail(error: UnicodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8: {error.reason}"
    return f"not Unicode text: {error.reason if isinstance(error, UnicodeEncodeError) else error}"
