"""A run as a chain of links over durable files: a killed run resumes at the last complete one."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from pipelines.errors import ConflictError
from pipelines.leases import BusyError, hold, is_held
from pipelines.root import Root
from pipelines.usage import total_usage
from schemas.config import fingerprint
from semid_transforms import files

_LOCK = "lock"

_log = logging.getLogger(__name__)


def _never_lost() -> None:
    """The check of a lock that its holder cannot lose."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One attempt, or a resumed one, to build a generation.

    The same catalog files, configuration and parent give the same key, so running again after a
    crash finds what the crashed run finished.

    Attributes:
      root: where it publishes.
      key: digest of everything the result depends on.
      generation: id of the generation it builds.
      time: when the run was first started; every timestamp it writes, also after a resume.
      publishes: False for a run whose output stays in its scratch folder.
      check_held: raises ConflictError once another process may have taken the run over.
      results: what each complete link reported, by its name.
    """

    root: Root
    key: str
    generation: str
    time: datetime.datetime
    publishes: bool = True
    check_held: Callable[[], None] = dataclasses.field(
        default=_never_lost, compare=False, repr=False
    )
    results: dict[str, dict[str, Any]] = dataclasses.field(
        default_factory=dict, compare=False, repr=False
    )

    @property
    def folder(self) -> str:
        """Scratch folder of the run."""
        return _folder(self.root, self.key)

    @property
    def generation_folder(self) -> str:
        """Folder of the generation being built."""
        return self.root.folder(self.generation) if self.publishes else self.scratch("generation")

    def scratch(self, *names: str) -> str:
        """A path inside the run's folder."""
        return files.join(self.folder, *names)

    def output(self, *names: str) -> str:
        """A path inside the generation being built."""
        return files.join(self.generation_folder, *names)

    def link(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Runs one link of the chain, unless an earlier attempt completed it.

        Args:
          name: of the link.
          work: does it and returns its result, plain JSON values. It must give the same files
            whatever an interrupted attempt left behind.

        Returns:
          The result, with `seconds` and `cpu_seconds` it took, and `peak_memory_bytes` of the
          process until its end.

        Raises:
          ConflictError: another process may have taken the run over.
        """
        self.check_held()
        marker = self.scratch(f"{name}.json")
        if files.exists(marker):
            _log.info("%-8s done by an earlier attempt", name)
            self.results[name] = json.loads(files.read_bytes(marker))
            return self.results[name]
        started, (cpu_started, _) = time.monotonic(), total_usage()
        _log.info("%-8s ...", name)
        result = work()
        result["seconds"] = round(time.monotonic() - started, 3)
        cpu, peak = total_usage()
        result["cpu_seconds"] = round(cpu - cpu_started, 3)
        result["peak_memory_bytes"] = peak
        self.check_held()
        files.write_bytes(marker, json.dumps(result, indent=1).encode())
        _log.info("%-8s %.1f s", name, result["seconds"])
        self.results[name] = result
        return result

    def discard(self) -> None:
        """Removes the scratch folder."""
        files.remove_tree(self.folder)


@contextlib.contextmanager
def open_run(
    root: Root,
    inputs: dict[str, Any],
    sequence: int,
    as_of: datetime.datetime | None = None,
    publishes: bool = True,
) -> Iterator[Run]:
    """Starts or resumes a run and holds its lock.

    Args:
      root: where it publishes.
      inputs: everything the result depends on, plain JSON values.
      sequence: number of the generation it builds.
      as_of: time to stamp rows with; None takes the time of the first attempt.
      publishes: False keeps the output in the run's scratch folder.

    Raises:
      ConflictError: another process works on the same run.
    """
    key = fingerprint({**inputs, "as_of": as_of.isoformat() if as_of else None})[:16]
    generation = f"{sequence:06d}-{key[:8]}"
    folder = _folder(root, key)
    files.make_folder(folder)
    with contextlib.ExitStack() as stack:
        try:
            check_held = stack.enter_context(hold(files.join(folder, _LOCK)))
        except BusyError as error:
            raise ConflictError(
                f"another process is building generation {generation} from the same catalog and "
                f"configuration ({error}): wait for it, or stop it and run again to resume its work"
            ) from None
        path = files.join(folder, "run.json")
        if files.exists(path):
            started = datetime.datetime.fromisoformat(json.loads(files.read_bytes(path))["time"])
            _log.info("resuming run %s", key)
        else:
            started = as_of or datetime.datetime.now(datetime.UTC)
            said = {
                "time": started.isoformat(),
                "generation": generation,
                "publishes": publishes,
                "inputs": inputs,
            }
            files.write_bytes(path, json.dumps(said, indent=1).encode())
        yield Run(root, key, generation, started, publishes, check_held)


def is_running(root: Root, run_key: str) -> bool:
    """True when a living process works on a run.

    On an object store a process that was killed less than `leases.LEASE_SECONDS` ago counts too.
    The answer may be old when it arrives; to remove a run's files, use `claim_run`.

    Args:
      root: where the run publishes.
      run_key: name of its folder under `runs/`.
    """
    return is_held(files.join(_folder(root, run_key), _LOCK))


@contextlib.contextmanager
def claim_run(root: Root, run_key: str) -> Iterator[bool]:
    """Keeps every other process off a run while the block works on its files.

    Args:
      root: where the run publishes.
      run_key: name of its folder under `runs/`, which exists.

    Yields:
      False when a living process works on the run: then its files must be left alone.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold(files.join(_folder(root, run_key), _LOCK)))
        except BusyError:
            yield False
        else:
            yield True


def _folder(root: Root, run_key: str) -> str:
    return files.join(root.path, "runs", run_key)


def kept_runs(root: Root, inputs: dict[str, Any]) -> list[Run]:
    """Returns the unfinished runs that have all these inputs and have embedded their items.

    Runs that fit a tokenizer never publish, and runs that were refused may never be resumed, but
    what they embedded can serve others.
    """
    try:
        found = files.match([files.join(root.path, "runs", "*", "run.json")])
    except FileNotFoundError:
        return []
    runs = []
    for file in found:
        folder = file.path.rsplit("/", 1)[0]
        said = json.loads(files.read_bytes(file.path))
        same = all(said["inputs"].get(name) == value for name, value in inputs.items())
        if same and files.exists(files.join(folder, "embed.json")):
            time = datetime.datetime.fromisoformat(said["time"])
            key = files.base_name(folder)
            runs.append(Run(root, key, said["generation"], time, said["publishes"]))
    return runs
