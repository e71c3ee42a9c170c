"""What a run has used of its machine: processor time and memory."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

Usage = tuple[float, int]
"""Seconds of processor time so far, and the most bytes of memory ever held."""

_others: list[Callable[[], Sequence[Usage]]] = []


def own_usage() -> Usage:
    """Returns what this process and those it started and that have ended used."""
    times = os.times()
    seconds = times.user + times.system + times.children_user + times.children_system
    unit = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    # Linux counts in what the parent held when it started this process; its mark here does not.
    status = Path("/proc/self/status")
    if status.exists():
        marks = [line.split() for line in status.read_text().splitlines() if line[:6] == "VmHWM:"]
        own = int(marks[0][1]) * 1024 if marks else own
    return seconds, max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit)


def total_usage() -> Usage:
    """Returns what this process and its workers used: the peaks of processes that live, summed."""
    used = [own_usage(), *(usage for others in _others for usage in others())]
    return sum(seconds for seconds, _ in used), sum(held for _, held in used)


@contextlib.contextmanager
def counting(others: Callable[[], Sequence[Usage]]) -> Iterator[None]:
    """Counts in what other processes use while the block runs.

    Args:
      others: returns what each has used so far.
    """
    _others.append(others)
    try:
        yield
    finally:
        _others.remove(others)
