"""Who works on a run: an advisory lock on a local filesystem, a lease on an object store.

A local lock is the kernel's and ends with its process. An object store has no locks, so there the
holder writes an object and renews it; when it is killed, the lease runs out `LEASE_SECONDS` after
the last renewal, and until then nobody else can work on the same run.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from pipelines.errors import ConflictError
from pipelines.gcs_objects import (
    ABSENT,
    ObjectChangedError,
    StoredObject,
    delete_object,
    read_object,
    write_object,
)
from semid_transforms import files

LEASE_SECONDS = 120
"""A lease that was not renewed for this long is dead: the longest a killed run blocks the next."""

RENEW_SECONDS = 20
"""Time between renewals: five can fail in a row before the lease is lost."""

_GIVE_UP_SECONDS = 100
"""A holder that could not renew for this long stops by itself, before another may take over."""

_LOCK_ATTEMPTS = 10
_LOCK_PAUSE = 0.05
"""A look at a lock holds it for microseconds; a run that starts just then tries again."""

_log = logging.getLogger(__name__)


class BusyError(Exception):
    """Another process holds the lock; the message says who, where that is known."""


@contextlib.contextmanager
def hold(path: str) -> Iterator[Callable[[], None]]:
    """Holds a lock while the block runs.

    Args:
      path: of the lock, inside a folder that exists.

    Yields:
      A function that raises ConflictError once the lock was lost, so that the holder stops before
      it does harm. A local lock is never lost.

    Raises:
      BusyError: another process holds it.
    """
    if files.is_local(path):
        with _hold_file(path):
            yield lambda: None
    else:
        with _hold_object(path) as check:
            yield check


def is_held(path: str) -> bool:
    """True when a living process holds the lock, or on an object store did a moment ago."""
    if files.is_local(path):
        try:
            with open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False
    lease = read_object(path)
    return lease is not None and _age(path, lease) < LEASE_SECONDS


@contextlib.contextmanager
def _hold_file(path: str) -> Iterator[None]:
    for attempt in range(_LOCK_ATTEMPTS):
        with open(path, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if attempt + 1 < _LOCK_ATTEMPTS:
                    time.sleep(_LOCK_PAUSE)
                continue
            if not _is_file_at(file.fileno(), path):
                continue  # its last holder removed the run's folder: this lock guards nothing
            yield
            return
    raise BusyError("its lock is held")


def _is_file_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return False


@contextlib.contextmanager
def _hold_object(path: str) -> Iterator[Callable[[], None]]:
    lease = _Lease(path)
    thread = threading.Thread(target=lease.renew_until_released, name="semid-lease", daemon=True)
    thread.start()
    try:
        yield lease.check
    finally:
        lease.released.set()
        thread.join()
        delete_object(path, lease.held.generation)


class _Lease:
    """A lease object that this process wrote and keeps fresh.

    Attributes:
      held: as last written.
      released: set when renewing is to end.
    """

    def __init__(self, path: str):
        self._path = path
        self._renewed = time.monotonic()
        self._lost = False
        self.released = threading.Event()
        found = read_object(path)
        if found is not None and (age := _age(path, found)) < LEASE_SECONDS:
            left = LEASE_SECONDS - age
            raise BusyError(
                f"{_holder(found)} renewed its lease {age:.0f} s ago; if it was killed, the lease "
                f"runs out in {left:.0f} s"
            )
        if found is not None:
            _log.info("taking over from %s, which stopped renewing its lease", _holder(found))
        who = {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex}
        self._data = json.dumps(who).encode()
        try:
            self.held = write_object(path, self._data, found.generation if found else ABSENT)
        except ObjectChangedError:
            raise BusyError("it took the lease just before") from None

    def check(self) -> None:
        """Raises ConflictError when the lease is lost, or so old that it soon may be."""
        age = time.monotonic() - self._renewed
        if self._lost or age > _GIVE_UP_SECONDS:
            raise ConflictError(
                f"lost the lease {self._path}, last renewed {age:.0f} s ago: another process may "
                f"be working on this run; nothing was published, run again to resume"
            )

    def renew_until_released(self) -> None:
        """Writes the lease anew until it is released or lost."""
        while not self.released.wait(RENEW_SECONDS):
            started = time.monotonic()
            try:
                self.held = write_object(self._path, self._data, self.held.generation)
            except ObjectChangedError:
                self._lost = True
                return
            except Exception as error:  # tried again: `check` ends the run when that is too late
                _log.warning("cannot renew the lease %s: %s", self._path, error)
                continue
            self._renewed = started


def _holder(lease: StoredObject) -> str:
    try:
        who = json.loads(lease.data)
        return f"process {who['pid']} on {who['host']}"
    except (ValueError, KeyError, TypeError):
        return "an unknown process"


def _age(path: str, lease: StoredObject) -> float:
    """Returns the seconds since a lease was written, by the store's own clock.

    The clocks of two machines may differ by more than a lease lasts, so the time is asked of the
    store: it stamps a probe object.
    """
    probe_path = f"{path}.{uuid.uuid4().hex}.probe"
    probe = write_object(probe_path, b"{}", ABSENT)
    delete_object(probe_path, probe.generation)
    return max(0.0, (probe.updated - lease.updated) / datetime.timedelta(seconds=1))
