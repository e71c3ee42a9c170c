"""How many processor cores there are to use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


def usable_cores(groups: Path = _GROUPS) -> int:
    """Returns the cores this process may use: what its affinity and its container leave of all.

    Args:
      groups: where control groups are mounted; a container sees its own there.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = _quota(groups)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _quota(groups: Path) -> float | None:
    """Returns how many cores' time a container may take, None where nothing limits it."""
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            words = [word for name in names for word in (groups / name).read_text().split()]
            quota, period = map(int, words)
        except (OSError, ValueError):  # not this version of control groups, or "max"
            continue
        if quota > 0:  # -1 is no limit
            return quota / period
    return None
