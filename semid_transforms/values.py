"""What a single value of a catalog means as text, a path, a number, a time or a vector."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import uuid
from typing import Any

import numpy as np

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)
FIRST_MICROSECOND = (datetime.datetime.min.replace(tzinfo=datetime.UTC) - _EPOCH) // _MICROSECOND
LAST_MICROSECOND = (datetime.datetime.max.replace(tzinfo=datetime.UTC) - _EPOCH) // _MICROSECOND
_TIME_UNITS = ((1e11, 1), (1e14, 10**3), (1e17, 10**6))  # below which size, ticks per second
_EXACT_INTEGER = 1 << 53
_SHOWN_CHARACTERS = 60


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
    if not FIRST_MICROSECOND <= microseconds <= LAST_MICROSECOND:
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
