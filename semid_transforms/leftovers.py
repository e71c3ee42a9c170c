"""What writers that were killed left half written."""

from __future__ import annotations

import contextlib
import math
import os
import time

from semid_transforms import files


def find_leftovers(folder: str, idle_seconds: float = 0.0, deep: bool = True) -> list[str]:
    """Returns what writers that were killed left half written in a folder, sorted.

    Object stores show no half-written objects: nothing is found there.

    Args:
      folder: to look in.
      idle_seconds: files that were written to later than so long ago are left out, unless 0.
      deep: look in the folders below too.
    """
    found: list[str] = []
    # The clock of a network filesystem may be ahead of this machine's.
    before = time.time() - idle_seconds if idle_seconds else math.inf
    for at, below, names in os.walk(folder) if files.is_local(folder) else ():
        if not deep:
            below.clear()
        for name in names:
            path = os.path.join(at, name)
            if name.startswith(".") and name.endswith(files.TEMPORARY):
                with contextlib.suppress(FileNotFoundError):  # its writer has just ended
                    if os.stat(path).st_mtime <= before:
                        found.append(path)
    return sorted(found)


def remove_leftovers(folder: str) -> None:
    """Removes what writers that were killed left half written in a local folder and below."""
    for path in find_leftovers(folder):
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
