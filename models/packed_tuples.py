"""Looking codes up among code tuples that are packed into integers and sorted."""

from __future__ import annotations

import numpy as np


def is_in(values: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """Returns (n,) bool, which values occur in an ascending array."""
    found = np.searchsorted(ascending, values)
    inside = found < len(ascending)
    inside[inside] = ascending[found[inside]] == values[inside]
    return inside


def codes_below(tuples: np.ndarray, prefix: np.uint64, bits: int) -> np.ndarray:
    """Returns the int64 low `bits` of the sorted packed tuples that start with a prefix."""
    mask = np.uint64((1 << bits) - 1)
    first = np.uint64(prefix) << np.uint64(bits) if bits < 64 else np.uint64(0)
    begin, end = np.searchsorted(tuples, first), np.searchsorted(tuples, first | mask, "right")
    return (tuples[begin:end] & mask).astype(np.int64)


def free_codes(tuples: np.ndarray, prefixes: np.ndarray, bits: int, size: int) -> np.ndarray:
    """Returns (G, size) bool, which last codes no tuple has under each of G ascending prefixes."""
    above = tuples >> np.uint64(bits)
    begin = np.searchsorted(above, prefixes)
    count = np.searchsorted(above, prefixes, "right") - begin
    run = np.repeat(np.arange(len(prefixes)), count)
    at = np.arange(len(run)) + np.repeat(begin - np.append(0, np.cumsum(count)[:-1]), count)
    free = np.ones((len(prefixes), size), bool)
    free[run, (tuples[at] & np.uint64((1 << bits) - 1)).astype(np.int64)] = False
    return free
