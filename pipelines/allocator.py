"""How a process gets its memory: glibc's malloc, told to keep what was freed, for Arrow too.

A run goes through large blocks that live for a moment. By default every one is mapped and unmapped,
and the system clears its pages each time, at some microseconds a page on a virtual machine; and
threads that free what others allocated leave arenas half empty. With one arena that keeps its
memory the processes of a run of a million items held 2.7 GiB, not 3.4, and the one that hands
batches on had half as many page faults. Arrow's own allocator gives back what was freed a moment
later and shares nothing with malloc: without it a night over a million items takes a tenth less
time and a quarter less memory.
"""

from __future__ import annotations

import ctypes
import os

# Names and numbers of mallopt(3); the threshold for mapping is the largest it takes.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
_ARROW_POOL = "ARROW_DEFAULT_MEMORY_POOL"
_SETTINGS = (
    (_M_ARENA_MAX, 1),
    (_M_MMAP_THRESHOLD, 32 << 20),
    (_M_TRIM_THRESHOLD, (1 << 31) - 1),
    (_M_TOP_PAD, 64 << 20),
)


def keep_freed_memory() -> bool:
    """Sets malloc up for this process and those it forks; before it starts threads.

    Arrow takes it where pyarrow is imported later. Nothing is changed where the C library is not
    glibc, or the environment says how it shall work.

    Returns:
      True when all was set.
    """
    said = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc" in said or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    if [mallopt(name, value) for name, value in _SETTINGS] != [1] * len(_SETTINGS):
        return False
    os.environ.setdefault(_ARROW_POOL, "system")
    return True
