"""Workers of pipelines that run on this machine: threads of this process, or processes it keeps.

Beam's own `multi_processing` starts its workers anew for every pipeline and every one imports
everything; a chain has six or more. Here they are started once and serve one pipeline after
another.

Beam's own modes lose and corrupt elements as well (2.77): a timer empties an output buffer while
elements are written to it (`TimeBasedBufferingClosableOutputStream`), in workers that are threads
and in the runner itself, where it feeds any worker. `benchmarks/local_shuffle.py` shows it. Neither
has a timer here: buffers are sent when they are full.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.runners.portability.fn_api_runner.worker_handlers import (
    GrpcWorkerHandler,
    WorkerHandler,
)
from apache_beam.transforms.environments import Environment, python_sdk_capabilities

from pipelines.local_worker import END, start_harness
from pipelines.usage import Usage, counting

_URN = "semid:environment:local_workers:v1"
_PATIENCE_SECONDS = 10
_START = """
import json, logging, sys
logging.getLogger().setLevel(logging.ERROR)
sys.path[:] = json.loads(sys.argv[1])
from pipelines.lean_imports import import_lean
import_lean([])
from pipelines.local_worker import main
main(sys.argv[2:])
"""
_ENDED = (
    "a worker process ended before its work was done; if the machine ran out of memory, "
    "--direct_num_workers=1 needs less"
)
_SAID_BYTES = 2000

_pools: dict[str, WorkerProcesses] = {}
_keeper: _Keeper | None = None


class _Worker:
    """A worker process as seen from this one."""

    def __init__(self, connection: Connection):
        self.ended = threading.Event()
        self._connection = connection
        self._replies: queue.SimpleQueue[Usage] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name="worker-replies", daemon=True).start()

    def send(self, asked: object) -> None:
        """Asks for something.

        Raises:
          RuntimeError: the process has ended.
        """
        try:
            self._connection.send(asked)
        except OSError as error:
            raise RuntimeError(f"{_ENDED}: {error}") from None

    def usage(self) -> Usage | None:
        """Returns what the process has used so far, None when it has ended."""
        with contextlib.suppress(RuntimeError, queue.Empty):
            self.send(None)
            return self._replies.get(timeout=_PATIENCE_SECONDS)
        return None

    def close(self) -> None:
        """Tells the process to end."""
        with contextlib.suppress(OSError):
            self._connection.send(END)

    def _listen(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._replies.put(self._connection.recv())
        self.ended.set()
        self._connection.close()


class WorkerProcesses:
    """Processes of this machine that serve pipelines.

    Attributes:
      count: of processes.
      key: which other code knows them by.
    """

    def __init__(self, count: int, environment: Mapping[str, str]):
        """Starts them; they are ready some seconds later, nobody has to wait.

        Args:
          count: of processes.
          environment: to start them with; see `serve` for what changes later.
        """
        self.count = count
        self.key = uuid.uuid4().hex
        ours, theirs = zip(*(socket.socketpair() for _ in range(count)), strict=True)
        descriptors = [end.fileno() for end in theirs]
        # What Beam prints of a failure comes back as the pipeline's error too.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - for as long as they live
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path), *map(str, descriptors)],
            env=dict(environment),
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stderr=self._said,
        )
        for end in theirs:
            end.close()
        self._workers = [_Worker(Connection(end.detach())) for end in ours]
        self._next = 0
        _pools[self.key] = self

    @property
    def alive(self) -> bool:
        """False when one of them has ended."""
        return not any(worker.ended.is_set() for worker in self._workers)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Says it when an error in the block comes from one of them having ended.

        Raises:
          RuntimeError: so it is; the message ends with the last they printed.
        """
        try:
            yield
        except Exception as error:
            if self.alive:
                raise
            self._said.seek(max(0, self._said.seek(0, os.SEEK_END) - _SAID_BYTES))
            said = self._said.read().decode(errors="replace").strip()
            raise RuntimeError(f"{_ENDED}\n{said}".strip()) from error

    def serve(self, control_address: str, worker_id: str) -> _Worker:
        """Lets the next process serve a pipeline, in today's folder and environment."""
        worker = self._workers[self._next % self.count]
        self._next += 1
        worker.send((control_address, worker_id, os.getcwd(), dict(os.environ)))
        return worker

    def usage(self) -> list[Usage]:
        """Returns what each has used so far."""
        return [usage for worker in self._workers if (usage := worker.usage()) is not None]

    def close(self) -> None:
        """Ends them."""
        _pools.pop(self.key, None)
        for worker in self._workers:
            worker.close()
        try:
            self._process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()


@Environment.register_urn(_URN, bytes)
class LocalWorkers(Environment):
    """Where a pipeline of this machine runs: with processes that are kept, or threads."""

    def __init__(self, pool: str = "", **kept: Any):
        """Describes it.

        Args:
          pool: key of `WorkerProcesses`; empty for threads of this process.
          kept: what every environment has.
        """
        super().__init__(**kept)
        self.pool = pool

    def to_runner_api_parameter(self, context: object) -> tuple[str, bytes]:
        """Returns what `from_runner_api_parameter` takes."""
        return _URN, self.pool.encode()

    @staticmethod
    def from_runner_api_parameter(
        payload: bytes, capabilities: Any, artifacts: Any, resource_hints: Any, context: object
    ) -> LocalWorkers:
        """Reads it from a pipeline's description."""
        return LocalWorkers(
            payload.decode(),
            capabilities=capabilities,
            artifacts=artifacts,
            resource_hints=resource_hints,
        )


@WorkerHandler.register_environment(_URN, bytes)
class _LocalWorkerHandler(GrpcWorkerHandler):
    """Starts a worker and feeds it."""

    def __init__(self, payload: bytes, *runner: Any):
        super().__init__(*runner)
        self.data_conn._data_buffer_time_limit_ms = 0  # no timer on the runner's side
        self._pool = _pools.get(payload.decode())
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start_worker(self) -> None:
        if self._pool is None:
            self._thread = start_harness(self.control_address, self.worker_id, self._abort)
            return
        worker = self._pool.serve(self.control_address, self.worker_id)
        threading.Thread(target=self._watch, args=[worker], daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        self.data_conn._exception = None  # it has been raised where the worker was waited for
        super().close()

    def stop_worker(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _watch(self, worker: _Worker) -> None:
        worker.ended.wait()
        while not self._closed.wait(0.2):  # what is asked of it later must fail too
            self._abort()

    def _abort(self) -> None:
        error = RuntimeError(_ENDED)
        self.data_conn._exception = error  # Beam looks for it once a second
        self.control_conn.abort(error)


def local_runner(processes: WorkerProcesses | None) -> FnApiRunner:
    """Returns a runner for one pipeline on this machine.

    Args:
      processes: to run it; None for threads of this process.
    """
    environment = LocalWorkers(
        "" if processes is None else processes.key,
        capabilities=python_sdk_capabilities(),
        artifacts=(),
    )
    return FnApiRunner(default_environment=environment)


class _Keeper:
    """Keeps the processes that a pipeline was run with for the next one."""

    def __init__(self) -> None:
        self.processes: WorkerProcesses | None = None

    def take(self, count: int, environment: Mapping[str, str]) -> WorkerProcesses:
        if self.processes is None or self.processes.count != count or not self.processes.alive:
            self.close()
            self.processes = WorkerProcesses(count, environment)
        return self.processes

    def usage(self) -> Sequence[Usage]:
        return () if self.processes is None else self.processes.usage()

    def close(self) -> None:
        if self.processes is not None:
            self.processes.close()
        self.processes = None


@contextlib.contextmanager
def kept_workers() -> Iterator[None]:
    """Keeps worker processes for the pipelines that the block runs, and counts what they use."""
    global _keeper
    if _keeper is not None:
        yield
        return
    _keeper = _Keeper()
    try:
        with counting(_keeper.usage):
            yield
    finally:
        keeper, _keeper = _keeper, None
        keeper.close()


@contextlib.contextmanager
def worker_processes(count: int, environment: Mapping[str, str]) -> Iterator[WorkerProcesses]:
    """Gives worker processes for one pipeline: kept ones inside `kept_workers`, else new ones.

    Args:
      count: of processes.
      environment: to start them with.
    """
    with kept_workers():
        assert _keeper is not None
        yield _keeper.take(count, environment)
