"""A worker process of this machine: serves one pipeline after another, imports done once.

Started by `worker_processes` with one socket per worker. It imports what the links need, forks
until there is a process for every socket, and ends with the process that started it.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import NoReturn

from apache_beam.runners.portability.fn_api_runner.worker_handlers import FNAPI_RUNNER_CAPABILITIES
from apache_beam.runners.worker.sdk_worker import SdkHarness

from pipelines.usage import own_usage
from pipelines.worker_processes import END, READY
from semid_transforms.coders import share_files
from semid_transforms.shuffle_files import ShuffleFiles


def start_harness(
    control_address: str, worker_id: str, failed: Callable[[], object]
) -> threading.Thread:
    """Serves a pipeline in a thread until its runner ends it.

    Args:
      control_address: of the runner.
      worker_id: what the runner calls this worker.
      failed: called when the harness could not start or broke.
    """

    def serve() -> None:
        try:
            SdkHarness(
                control_address,
                worker_id=worker_id,
                data_buffer_time_limit_ms=0,  # no timer, see local_runner
                runner_capabilities=FNAPI_RUNNER_CAPABILITIES,
            ).run()
        except BaseException:
            traceback.print_exc()
            failed()

    thread = threading.Thread(target=serve, name=f"serve-{worker_id}", daemon=True)
    thread.start()
    return thread


def _serve(connection: Connection, forked: Sequence[int]) -> NoReturn:
    """Does what the starting process asks for until it is gone.

    Args:
      connection: to it.
      forked: other workers, which this process waits for so that what they used counts as its own.
    """
    connection.send(READY)
    while True:
        try:
            asked = connection.recv()
        except EOFError:
            os._exit(1)  # at once: nobody waits for what the threads still do
        if asked == END:
            for process in forked:
                os.waitpid(process, 0)
            os._exit(0)
        if asked is None:
            connection.send(own_usage())
            continue
        control_address, worker_id, folder, environment = asked
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        start_harness(control_address, worker_id, lambda: os._exit(1))


def main(arguments: Sequence[str]) -> NoReturn:
    """Forks a process for every socket and serves.

    Args:
      arguments: file descriptors of the sockets, then of as many shuffle files.
    """
    importlib.import_module("pipelines.definitions")  # what the links' pipelines are made of
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the starting process decides what to do
    gc.freeze()  # so that no collection looks at it, or copies its pages into every process
    descriptors = [int(descriptor) for descriptor in arguments]
    count = len(descriptors) // 2
    connections = [Connection(descriptor) for descriptor in descriptors[:count]]
    own, forked = 0, list[int]()
    for number in range(1, count):
        forked.append(os.fork())
        if forked[-1] == 0:
            own, forked = number, []
            break
    for connection in connections:
        if connection is not connections[own]:
            connection.close()
    share_files(ShuffleFiles(descriptors[count:], own))
    _serve(connections[own], forked)
