"""A Beam job service of the tests, and workers that share nothing with it or with the tests."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests import sdk_container

_START_SECONDS = 60
_STOP_SECONDS = 15


@dataclasses.dataclass(frozen=True)
class JobService:
    """A job service and a pool of workers, each a process of its own.

    Attributes:
      folder: of logs, and of what the workers installed and report.
      stack: ends both when it is closed.
      options: Beam options that lead a pipeline there.
    """

    folder: Path
    stack: contextlib.ExitStack
    options: tuple[str, ...] = ()

    @contextlib.contextmanager
    def limited(self, seconds: float) -> Iterator[None]:
        """Ends the service when the block takes longer: its clients then fail instead of waiting.

        A worker that is lost makes Beam wait for ever.
        """
        timer = threading.Timer(seconds, self.stack.close)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def imported(self) -> list[dict[str, str]]:
        """Returns {module: file} of the project's modules, one for each worker that has ended."""
        reports = sorted(self.folder.glob("worker-*/modules.json"))
        return [json.loads(report.read_text("utf-8")) for report in reports]

    def workers(self) -> int:
        """Returns how many workers were started."""
        return len(list(self.folder.glob("worker-*")))

    def logs(self, characters: int = 4000) -> str:
        """Returns the end of every log, for a message."""
        paths = sorted(self.folder.glob("**/log*"))
        return "\n".join(f"{path}:\n{path.read_text('utf-8')[-characters:]}" for path in paths)


@contextlib.contextmanager
def running_job_service(folder: Path, environment: Mapping[str, str]) -> Iterator[JobService]:
    """Runs a job service and a worker pool.

    Args:
      folder: empty, for everything they write.
      environment: variables the workers have beside a bare system's. PYTHONPATH and the working
        directory of the tests are not among them.
    """
    temporary = folder / "tmp"
    temporary.mkdir()
    bare = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    bare |= {"TMPDIR": str(temporary), **environment}
    port, address = folder / "job-service.port", folder / "pool.address"
    staging = folder / "staging"
    commands = {
        "job-service": [
            "-m",
            "apache_beam.runners.portability.local_job_service_main",
            f"--port_file={port}",
            f"--staging_dir={staging}",
        ],
        "worker-pool": [sdk_container.__file__, f"--address_file={address}"],
    }
    with contextlib.ExitStack() as stack:
        for name, arguments in commands.items():
            log = stack.enter_context(open(folder / f"log-{name}", "wb"))
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=folder,
                env=bare,
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that its workers can be ended with it
            )
            stack.callback(_stop, process)
        service = JobService(folder, stack)
        _wait(lambda: port.exists() and address.exists(), service)
        yield dataclasses.replace(
            service,
            options=(
                "--runner=PortableRunner",
                f"--job_endpoint=localhost:{port.read_text()}",
                "--environment_type=EXTERNAL",
                f"--environment_config={address.read_text()}",
            ),
        )


def _wait(ready: Callable[[], bool], service: JobService) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not ready():
        assert time.monotonic() < deadline, f"no job service:\n{service.logs()}"
        time.sleep(0.05)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and those that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
