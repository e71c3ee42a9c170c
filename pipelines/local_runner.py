"""Running one pipeline on this machine with several workers: threads of this process, or processes.

Beam's own runner loses and corrupts elements with more than one worker (2.77): a timer empties an
output buffer while elements are written to it (`TimeBasedBufferingClosableOutputStream`), in
workers that are threads and, whatever the workers are, in the runner that feeds them.
`benchmarks/local_shuffle.py` shows it. Here workers send their buffers when they are full, and the
runner has none.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterator
from typing import Any, Literal

from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.runners.portability.fn_api_runner.worker_handlers import (
    GrpcWorkerHandler,
    WorkerHandler,
)
from apache_beam.transforms.environments import Environment, python_sdk_capabilities

from pipelines.worker_process import start_harness
from pipelines.worker_processes import ENDED, Worker, current_processes

_URN = "semid:environment:local_workers:v1"
_MESSAGE_BYTES = (2 << 30) - (1 << 20)
"""Protocol buffers hold 2 GiB, and a message has a name and a place besides its data."""


@Environment.register_urn(_URN, bytes)
class LocalWorkers(Environment):
    """Where a pipeline of this machine runs: with processes that are kept, or threads."""

    def __init__(self, kind: str, **kept: Any):
        """Describes it.

        Args:
          kind: `processes`, those of `worker_processes`, or `threads` of this one.
          kept: what every environment has.
        """
        super().__init__(**kept)
        self.kind = kind

    def to_runner_api_parameter(self, context: object) -> tuple[str, bytes]:
        """Returns what `from_runner_api_parameter` takes."""
        return _URN, self.kind.encode()

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


class _Input:
    """What the runner writes the input of a worker's bundle to.

    It is one message, because the runner writes all of it before the worker is told to read: of
    several, those that fit in no queue would wait for ever. Beam's own stream does the same with
    more copies.
    """

    def __init__(self, channel: Any, instruction_id: str, transform_id: str):
        self._channel = channel
        self._instruction_id = instruction_id
        self._transform_id = transform_id
        self._chunks: list[bytes] = []

    def write(self, chunk: bytes) -> None:
        self._chunks.append(chunk)

    def close(self) -> None:
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks = []
        if len(data) > _MESSAGE_BYTES:
            raise RuntimeError(
                f"a worker's share of a shuffle has {len(data):,} bytes, and one message holds "
                f"{_MESSAGE_BYTES:,}: raise --direct_num_workers, or set it to 1"
            )
        message = beam_fn_api_pb2.Elements()
        where = {"instruction_id": self._instruction_id, "transform_id": self._transform_id}
        if data:
            message.data.add(**where, data=data)
        message.data.add(**where, is_last=True)
        self._channel._pending_send.put((message, len(data)), len(data))


def _messages(channel: Any) -> Iterator[beam_fn_api_pb2.Elements]:
    """Yields what is to be sent to a worker; Beam's own copies each message several times more."""
    while (content := channel._to_send.get()) is not channel._WRITES_FINISHED:
        if isinstance(content, beam_fn_api_pb2.Elements):
            yield content
        elif isinstance(content, beam_fn_api_pb2.Elements.Timers):
            yield beam_fn_api_pb2.Elements(timers=[content])
        else:
            yield beam_fn_api_pb2.Elements(data=[content])


@WorkerHandler.register_environment(_URN, bytes)
class _LocalWorkerHandler(GrpcWorkerHandler):
    """Starts a worker and feeds it."""

    def __init__(self, payload: bytes, *runner: Any):
        super().__init__(*runner)
        self.data_conn.output_stream = functools.partial(  # type: ignore[method-assign, assignment]
            _Input, self.data_conn
        )
        self.data_conn._write_outputs = functools.partial(  # type: ignore[method-assign]
            _messages, self.data_conn
        )
        self._processes = current_processes() if payload == b"processes" else None
        self._worker: Worker | None = None
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def start_worker(self) -> None:
        if self._processes is None:
            self._thread = start_harness(self.control_address, self.worker_id, self._fail_later)
            return
        self._worker = self._processes.serve(self.control_address, self.worker_id)
        self._worker.on_end.add(self._fail_later)
        if self._worker.ended.is_set():
            self._fail_later()

    def close(self) -> None:
        if self._processes is not None and isinstance(sys.exception(), KeyboardInterrupt):
            self._processes.close()  # else Beam would wait until they have done what they do
        self._closed.set()
        self.data_conn._exception = None  # it has been raised where the worker was waited for
        super().close()

    def stop_worker(self) -> None:
        if self._worker is not None:
            self._worker.on_end.discard(self._fail_later)
        if self._thread is not None:
            self._thread.join()

    def _fail_later(self) -> None:
        threading.Thread(target=self._fail, name=f"fail-{self.worker_id}", daemon=True).start()

    def _fail(self) -> None:
        """Fails what is asked of a worker that has ended, and what will be."""
        error = RuntimeError(ENDED)
        while not self._closed.wait(0.2):
            self.data_conn._exception = error  # Beam looks for it once a second
            self.control_conn.abort(error)


def local_runner(kind: Literal["processes", "threads"]) -> FnApiRunner:
    """Returns a runner for one pipeline on this machine.

    Args:
      kind: of workers; processes are those that `worker_processes` gave the block around it.
    """
    environment = LocalWorkers(kind, capabilities=python_sdk_capabilities(), artifacts=())
    return FnApiRunner(default_environment=environment)
