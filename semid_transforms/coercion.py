"""Values of any catalog type as what a field needs: text, a path, a number, a time or a vector.

The `*_of` functions say what a single value means. `coerce` does the same to a column: common
Arrow types are cast as a whole, everything else goes value by value.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import math
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.rejects import RejectReason
from schemas.tables import TIMESTAMP

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)
_FIRST_MICROSECOND = (datetime.datetime.min.replace(tzinfo=datetime.UTC) - _EPOCH) // _MICROSECOND
_LAST_MICROSECOND = (datetime.datetime.max.replace(tzinfo=datetime.UTC) - _EPOCH) // _MICROSECOND
_TIME_UNITS = ((1e11, 1), (1e14, 10**3), (1e17, 10**6))  # below which size, ticks per second
_EXACT_INTEGER = 1 << 53
_SHOWN_CHARACTERS = 60


class Kind(enum.Enum):
    """What a field is read as; the value is its Arrow type."""

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


class UnreadableError(ValueError):
    """A value cannot be read as what its field needs."""


def text_of(value: Any) -> str | None:
    """Returns a value as text; a list of scalars is joined by spaces.

    Whole numbers are written without a decimal point, because a column of integers becomes one of
    floats as soon as a tool has put a missing value into it.

    Raises:
      UnreadableError: true/false, an object, a nested list, or an infinite number.
      UnicodeError: it is not valid Unicode.
    """
    if value is None:
        return None
    if isinstance(value, str):
        value.encode()  # a lone surrogate, from JSON's \ud800, is a str but no text
        return value
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list | tuple):
        words = [text_of(word) for word in value if not isinstance(word, list | tuple)]
        if len(words) < len(value):
            raise UnreadableError(f"{_show(value)} is a nested list, expected text")
        return " ".join(word for word in words if word is not None)
    if isinstance(value, np.floating | float):
        if math.isnan(value):
            return None
        if math.isinf(value):
            raise UnreadableError("infinity is not text")
        whole = int(value)
        return str(whole) if whole == value and abs(whole) < _EXACT_INTEGER else str(value)
    if isinstance(value, bool) or not isinstance(
        value, int | decimal.Decimal | datetime.date | datetime.time | uuid.UUID
    ):
        raise UnreadableError(f"{_show(value)} is {_article(value)}, expected text")
    return str(value)


def path_of(value: Any, delimiter: str | None) -> list[str | None] | None:
    """Returns a category path, coarse to fine; a string is split at the delimiter.

    Missing parts are left to the cleaning of paths.

    Raises:
      UnreadableError: true/false, an object or a nested list.
      UnicodeError: it is not valid Unicode.
    """
    if value is None:
        return None
    if isinstance(value, list | tuple):
        if nested := [part for part in value if isinstance(part, list | tuple)]:
            raise UnreadableError(f"{_show(nested[0])} inside a path is a list, expected text")
        return [text_of(part) for part in value]
    text = text_of(value)
    if text is None:
        return None
    return [*text.split(delimiter)] if delimiter else [text]


def number_of(value: Any) -> float | None:
    """Returns a finite number; NaN and blank text count as missing.

    Raises:
      UnreadableError: anything that is no finite number.
    """
    if value is None:
        return None
    if isinstance(value, str):
        if not value.strip():
            return None
        if "_" in value:  # Python reads 1_000, catalogs do not write it
            raise UnreadableError(f"{_show(value)} is not a number")
    elif isinstance(value, bool) or not isinstance(
        value, int | float | decimal.Decimal | np.floating
    ):
        raise UnreadableError(f"{_show(value)} is {_article(value)}, expected a number")
    try:
        number = float(value)
    except ValueError as error:
        raise UnreadableError(f"{_show(value)} is not a number") from error
    except OverflowError:
        number = math.inf
    if math.isinf(number):
        raise UnreadableError(f"{_show(value)} is not a finite number")
    return None if math.isnan(number) else number


def time_of(value: Any) -> int | None:
    """Returns microseconds since 1970 UTC.

    Text is ISO 8601, UTC unless it says otherwise. Numbers are seconds, milliseconds, microseconds
    or nanoseconds since 1970, whichever puts them between 1973 and 5138 (thresholds 1e11, 1e14,
    1e17); text of nine or more digits is such a number.

    Raises:
      UnreadableError: anything else, or a time outside the years 1 to 9999.
    """
    if isinstance(value, str):
        value = value.strip()
        if not value:
            return None
        if not (value.isascii() and value.isdigit() and len(value) > 8):
            try:
                value = datetime.datetime.fromisoformat(value)
            except ValueError as error:
                raise UnreadableError(f"{_show(value)} is not an ISO 8601 time") from error
    if isinstance(value, datetime.datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
        microseconds = (aware - _EPOCH) // _MICROSECOND
    elif isinstance(value, datetime.date):
        microseconds = (value.toordinal() - _EPOCH.toordinal()) * 86_400_000_000
    else:
        number = number_of(value)
        if number is None:
            return None
        size = abs(number)
        per_second = next((unit for limit, unit in _TIME_UNITS if size < limit), 10**9)
        microseconds = round(number * (10**6 / per_second))
    if not _FIRST_MICROSECOND <= microseconds <= _LAST_MICROSECOND:
        raise UnreadableError(f"{_show(value)} is outside the years 1 to 9999")
    return microseconds


def vector_of(value: Any) -> list[float | None] | None:
    """Returns an embedding; text must be a JSON list of numbers.

    Raises:
      UnreadableError: it is no list, or one that holds anything but numbers.
    """
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            value = json.loads(value, parse_int=float)
        except (ValueError, RecursionError) as error:
            raise UnreadableError(f"{_show(value)} is not a JSON list of numbers") from error
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise UnreadableError(f"{_show(value)} is {_article(value)}, expected a list of numbers")
    vector: list[float | None] = []
    for item in value:
        if isinstance(item, bool | str) or not isinstance(item, int | float | None):
            raise UnreadableError(f"{_show(item)} in it is {_article(item)}, expected a number")
        try:
            vector.append(None if item is None else float(item))
        except OverflowError:
            vector.append(math.inf)
    return vector


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
        return array.cast(kind.value, safe=False), {}
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
    infinite = _mask(pc.is_inf(array))
    problem = Problem(RejectReason.BAD_FIELD, "infinity is not a finite number")
    problems = dict.fromkeys(np.flatnonzero(infinite).tolist(), problem)
    missing = pa.array(infinite | _mask(pc.is_nan(array)))
    return pc.if_else(missing, pa.scalar(None, pa.float64()), array), problems


def _timestamps(array: pa.Array) -> tuple[pa.Array, dict[int, Problem]]:
    if pa.types.is_date(array.type):
        array = array.cast(pa.timestamp("s" if pa.types.is_date32(array.type) else "ms"))
    if array.type.unit == "ns":  # reaches from 1677 to 2262
        return array.cast(pa.timestamp("us", array.type.tz), safe=False).cast(TIMESTAMP), {}
    ticks = array.view(pa.int64())
    factor = {"s": 10**6, "ms": 10**3, "us": 1}[array.type.unit]
    first, last = -(-_FIRST_MICROSECOND // factor), _LAST_MICROSECOND // factor
    wrong = _mask(pc.or_(pc.less(ticks, first), pc.greater(ticks, last)))
    usable = pc.if_else(pa.array(wrong), pa.scalar(None, pa.int64()), ticks)
    problem = Problem(RejectReason.BAD_FIELD, "outside the years 1 to 9999")
    problems = dict.fromkeys(np.flatnonzero(wrong).tolist(), problem)
    return pc.multiply(usable, factor).cast(TIMESTAMP), problems


def _mask(array: pa.Array) -> np.ndarray:
    return pc.fill_null(array, False).to_numpy(zero_copy_only=False)


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


def _article(value: object) -> str:
    if isinstance(value, bool):
        return "true or false"
    names: dict[type, str] = {
        dict: "an object",
        list: "a list",
        tuple: "a list",
        str: "text",
        bytes: "bytes",
    }
    return names.get(type(value), f"a {type(value).__name__}")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
