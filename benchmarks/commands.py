"""Running semid commands in processes of their own, with what they take."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SAMPLED_EVERY_S = 0.1


@dataclasses.dataclass(frozen=True)
class Measured:
    """One command.

    Attributes:
      wall: seconds.
      cpu: seconds of the process and its children.
      peak_bytes: of resident memory, of all its processes together.
      output: what it printed, as JSON.
    """

    wall: float
    cpu: float
    peak_bytes: int
    output: dict[str, Any]


def run_measured(*arguments: str) -> Measured:
    """Runs a semid command with --json in a process of its own; exits where it fails."""
    command = [sys.executable, "-m", "pipelines", *arguments, "--json"]
    started, before = time.perf_counter(), os.times()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors)
        peaks = [0]
        watch = threading.Thread(target=_watch, args=(process, peaks))
        watch.start()
        failed = process.wait()
        watch.join()
        wall, after = time.perf_counter() - started, os.times()
        output.seek(0)
        errors.seek(0)
        if failed:
            sys.exit(f"{' '.join(arguments)}: exit {failed}\n{errors.read().decode()}")
        cpu = after.children_user + after.children_system
        cpu -= before.children_user + before.children_system
        return Measured(wall, cpu, peaks[0], json.loads(output.read()))


def _watch(process: subprocess.Popen[bytes], peaks: list[int]) -> None:
    while process.poll() is None:
        peaks[0] = max(peaks[0], sum(_resident(pid) for pid in _tree(process.pid)))
        time.sleep(_SAMPLED_EVERY_S)


def _tree(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from _tree(int(child))


def _resident(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
