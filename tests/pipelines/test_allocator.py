"""What malloc is told, and when it is left alone."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import threading
from pipelines.allocator import keep_freed_memory
done = keep_freed_memory()
def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
before = held()
blocks = [bytearray(16 << 20) for _ in range(8)]
for block in blocks: block[:] = b"x" * len(block)
del block, blocks
import pyarrow
print(done, held() - before > 100 << 20, pyarrow.default_memory_pool().backend_name)
"""


def said(**environment: str) -> list[str]:
    ours = ("MALLOC_", "GLIBC_", "ARROW_")
    plain = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**plain, **environment},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return ran.stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="2026-11-22: glibc is Linux's")
def test_what_was_freed_is_kept_unless_the_environment_says_otherwise():
    assert said() == ["True", "True", "system"]
    assert said(ARROW_DEFAULT_MEMORY_POOL="jemalloc") == ["True", "True", "jemalloc"]
    assert said(MALLOC_ARENA_MAX="2")[0] == "False"
    told = said(GLIBC_TUNABLES="glibc.malloc.trim_threshold=131072")
    assert told[:2] == ["False", "False"]
    assert told[2] != "system"
