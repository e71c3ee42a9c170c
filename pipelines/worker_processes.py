"""Worker processes of this machine, kept from one pipeline to the next.

Beam's own `multi_processing` starts its workers anew for every pipeline, and every one imports
everything; a chain has six pipelines or more. These are started once, forked from one process that
has imported everything, as early as a command can see that they will pay: this module needs no
Beam.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import IO

from models.cores import usable_cores
from pipelines.usage import Usage, counting

READY = "ready"
"""The first that a worker process says."""

END = "end"
"""Asks a worker process to end."""

ENDED = (
    "a worker process ended before its work was done; if the machine ran out of memory, a smaller "
    "shards.rows_per_shard needs less"
)

BYTES_PER_WORKER = 256 << 20
"""A worker process must have as many bytes of catalog to be worth its start."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""What numpy, Arrow and torch take their number of threads from when they are loaded."""

_PATIENCE_SECONDS = 10
_SAID_BYTES = 2000
_LAST_WORDS_SECONDS = 0.5
_START = """
import json, logging, sys
logging.getLogger().setLevel(logging.ERROR)
sys.path[:] = json.loads(sys.argv[1])
from pipelines.allocator import keep_freed_memory
keep_freed_memory()
from pipelines.lean_imports import import_lean
import_lean([])
from pipelines.worker_process import main
main(sys.argv[2:])
"""

_keeper: _Keeper | None = None


def count_workers(catalog_bytes: int) -> int:
    """Returns how many workers a catalog is worth here; 1 stands for none but this process."""
    return max(1, min(usable_cores(), catalog_bytes // BYTES_PER_WORKER))


def threads_per_worker(workers: int) -> int:
    """Returns a worker's share of the cores.

    Two worker processes with default BLAS threads ran 2 to 2.3 times slower than one.
    """
    return max(1, usable_cores() // workers)


class Worker:
    """A worker process as seen from this one.

    Attributes:
      ready: set when it has started.
      ended: set when it has ended.
      on_end: called then.
    """

    def __init__(self, connection: Connection):
        self.ready = threading.Event()
        self.ended = threading.Event()
        self.on_end: set[Callable[[], object]] = set()
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
            raise RuntimeError(f"{ENDED}: {error}") from None

    def usage(self) -> Usage | None:
        """Returns what the process has used so far, None before it is ready and after its end.

        Nobody waits for a start: what it takes counts where it is first asked for after it.
        """
        if not self.ready.is_set():
            return None
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
            assert self._connection.recv() == READY
            self.ready.set()
            while True:
                self._replies.put(self._connection.recv())
        self.ended.set()
        for call in list(self.on_end):
            call()
        self._connection.close()


class _LastWords:
    """The end of what processes print.

    It is read as they print it. A file would not do: Beam prints an error before it reports it, so
    that where nothing can be written any more nobody would hear of it.
    """

    def __init__(self, stream: IO[bytes]):
        self._bytes = b""
        self._reader = threading.Thread(target=self._read, args=[stream], daemon=True)
        self._reader.start()

    def last(self) -> str:
        """Returns it as text; waits a moment for what a process that has just ended printed."""
        self._reader.join(_LAST_WORDS_SECONDS)
        return self._bytes.decode(errors="replace").strip()

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            while part := os.read(stream.fileno(), _SAID_BYTES):
                self._bytes = (self._bytes + part)[-_SAID_BYTES:]


class WorkerProcesses:
    """Processes of this machine that serve pipelines.

    Attributes:
      count: of processes.
      shuffled: the files in which they lay down what they shuffle, see `coders.share_files`.
    """

    def __init__(self, count: int):
        """Starts them; they are ready some seconds later, nobody has to wait."""
        self.count = count
        ours, theirs = zip(*(socket.socketpair() for _ in range(count)), strict=True)
        for end in (*ours, *theirs):
            end.setblocking(True)  # Beam's client of Google Cloud sets a default timeout
        # Nameless, so that nothing is left of them however the processes end.
        self.shuffled = [tempfile.TemporaryFile() for _ in range(count)]  # noqa: SIM115
        descriptors = [end.fileno() for end in (*theirs, *self.shuffled)]
        threads = dict.fromkeys(THREAD_VARIABLES, str(threads_per_worker(count)))
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path), *map(str, descriptors)],
            env={**threads, **os.environ},
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert self._process.stderr is not None
        self._said = _LastWords(self._process.stderr)
        for end in theirs:
            end.close()
        self._workers = [Worker(Connection(end.detach())) for end in ours]
        self._next = 0

    @property
    def alive(self) -> bool:
        """False when one of them has ended."""
        return not any(worker.ended.is_set() for worker in self._workers)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Says it when an error in the block, which runs a pipeline, is that one of them has ended.

        Afterwards the space of what they have shuffled is free. They go on writing where they were:
        a file without its beginning takes no space for it.

        Raises:
          RuntimeError: so it is; the message ends with the last they printed.
        """
        try:
            yield
        except Exception as error:
            if self.alive:
                raise
            raise RuntimeError(f"{ENDED}\n{self._said.last()}".strip()) from error
        finally:
            for file in self.shuffled:
                file.truncate(0)

    def serve(self, control_address: str, worker_id: str) -> Worker:
        """Lets the next process serve a pipeline, in today's folder and environment."""
        worker = self._workers[self._next % self.count]
        self._next += 1
        worker.send((control_address, worker_id, os.getcwd(), dict(os.environ)))
        return worker

    def usage(self) -> list[Usage]:
        """Returns what each has used so far."""
        return [usage for worker in self._workers if (usage := worker.usage()) is not None]

    def close(self) -> None:
        """Ends them, whatever they do."""
        if self.shuffled[0].closed:
            return
        for worker in self._workers:
            worker.close()
        impatient = threading.Timer(_PATIENCE_SECONDS, self._process.kill)
        impatient.start()
        self._process.wait()  # with a timeout it would look, sleep and look again
        impatient.cancel()
        for file in self.shuffled:
            file.close()


class _Keeper:
    """Keeps the processes that a pipeline was run with for the next one."""

    def __init__(self) -> None:
        self.processes: WorkerProcesses | None = None

    def take(self, count: int) -> WorkerProcesses:
        if self.processes is None or self.processes.count != count or not self.processes.alive:
            self.close()
            self.processes = WorkerProcesses(count)
        return self.processes

    def usage(self) -> Sequence[Usage]:
        return () if self.processes is None else self.processes.usage()

    def close(self) -> None:
        if self.processes is not None:
            self.processes.close()
        self.processes = None


@contextlib.contextmanager
def kept_workers(count: int = 1) -> Iterator[None]:
    """Keeps worker processes for the pipelines that the block runs, and counts what they use.

    Args:
      count: of processes to start at once; 1 starts none.
    """
    global _keeper
    with contextlib.ExitStack() as stack:
        if _keeper is None:
            _keeper = _Keeper()
            stack.callback(_forget)
            stack.enter_context(counting(_keeper.usage))
        if count > 1:
            _keeper.take(count)
        yield


def _forget() -> None:
    global _keeper
    keeper, _keeper = _keeper, None
    if keeper is not None:
        keeper.close()


@contextlib.contextmanager
def worker_processes(count: int) -> Iterator[WorkerProcesses]:
    """Gives worker processes for one pipeline: kept ones inside `kept_workers`, else new ones.

    Args:
      count: of processes, at least 2.
    """
    with kept_workers(count):
        yield current_processes()


def current_processes() -> WorkerProcesses:
    """Returns the processes that are kept now."""
    assert _keeper is not None
    assert _keeper.processes is not None
    return _keeper.processes


def early_workers(catalog: Sequence[str]) -> contextlib.AbstractContextManager[None]:
    """Keeps workers for a block, and starts them at once where a catalog on disk is worth some.

    Args:
      catalog: glob patterns.
    """
    paths = [path for pattern in catalog if "://" not in pattern for path in glob.glob(pattern)]
    return kept_workers(count_workers(sum(os.path.getsize(path) for path in paths)))
