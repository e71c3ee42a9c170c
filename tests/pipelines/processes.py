"""Runs in processes of their own: killed with SIGKILL, or many at one moment.

What a killed process leaves is what its last change of the disk left, so the instants worth trying
are just before and just after each of them: creating, renaming, linking and removing files.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import io
import multiprocessing
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipelines.cli import main
from pipelines.errors import CommandError
from pipelines.root import Published, Root
from pipelines.runs import Run
from schemas.manifest import Manifest
from tests.pipelines import jobs

# Processes are forked from one that has imported everything and started no thread.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "tests.pipelines.processes",
        "semid_transforms.fitting",
        "models.rqkmeans",
        "faiss",
        "scipy.optimize",
        "scipy.sparse",
    ]
)


@contextlib.contextmanager
def watching(root: Path, instant: Callable[[str], None]) -> Iterator[None]:
    """Calls a function before and after everything that changes files under a folder.

    Args:
      root: the folder.
      instant: called with what is about to happen or has happened.
    """
    patched: list[tuple[Any, str, Any]] = []
    removing: list[str] = []

    def wrap(module: Any, name: str, position: int, watched: Callable[..., bool]) -> None:
        original = getattr(module, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            path = str(args[position])
            if not (path.startswith(f"{root}/") and watched(path, *args[1:])):
                return original(*args, **kwargs)
            event = f"{name} {os.path.relpath(path, root)}"
            instant(f"before {event}")
            result = original(*args, **kwargs)
            instant(f"after {event}")
            return result

        patched.append((module, name, original))
        setattr(module, name, wrapped)

    def during(original: Callable[..., None]) -> Callable[..., None]:
        def wrapped(path: Any, *args: Any, **kwargs: Any) -> None:
            if removing:  # shutil.rmtree names files by folder and base name
                instant(f"before unlink {path} in {removing[-1]}")
            original(path, *args, **kwargs)

        return wrapped

    def noted(original: Callable[..., None]) -> Callable[..., None]:
        def wrapped(path: Any, *args: Any, **kwargs: Any) -> None:
            removing.append(str(path))
            try:
                original(path, *args, **kwargs)
            finally:
                removing.pop()

        return wrapped

    wrap(builtins, "open", 0, lambda path, mode="r", *_: mode.startswith("w"))
    wrap(os, "replace", 1, lambda *_: True)
    wrap(os, "link", 1, lambda *_: True)
    wrap(os, "remove", 0, lambda path: not path.endswith(".tmp"))
    for module, name, around in ((os, "unlink", during), (shutil, "rmtree", noted)):
        original = getattr(module, name)
        patched.append((module, name, original))
        setattr(module, name, around(original))
    try:
        yield
    finally:
        for module, name, original in patched:
            setattr(module, name, original)


def run_killed(catalog: str, root: Path, config: dict[str, Any], fatal: int) -> int:
    """Runs `tokenize` in a process of its own that dies at one of its instants.

    Args:
      catalog: to read.
      root: to publish to.
      config: of the run.
      fatal: number of the instant, from 0.

    Returns:
      The exit code: -9 when it was killed.
    """
    return _run(_run_until, catalog, root, config, fatal)


def _run_until(catalog: str, root: Path, config: dict[str, Any], fatal: int) -> None:
    left = iter(range(fatal, -1, -1))

    def instant(_: str) -> None:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    with watching(root, instant):
        jobs.run(catalog, root, config)


def run_killed_after(
    catalog: str, root: str, config: dict[str, Any], link: str, environment: dict[str, str]
) -> int:
    """Runs `tokenize` in a process of its own that is killed when a link is complete.

    Args:
      catalog: to read.
      root: to publish to.
      config: of the run.
      link: its name.
      environment: variables of the process.

    Returns:
      The exit code: -9 when it was killed.
    """
    return _run(_run_until_link, catalog, root, config, link, environment)


def _run_until_link(
    catalog: str, root: str, config: dict[str, Any], last: str, environment: dict[str, str]
) -> None:
    os.environ.update(environment)
    whole = Run.link

    def link(run: Run, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        result = whole(run, name, work)
        if name == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    with patched(Run, "link", link):
        jobs.run(catalog, root, config)


def publish_at_once(
    root: Root, expected: Published, environment: dict[str, str]
) -> list[tuple[int, str]]:
    """Lets ten processes swap CURRENT at one moment, each to a generation of its own.

    Args:
      root: where the generations `000002-0000000<n>` have all their files but the manifest.
      expected: what each process knows to be current.
      environment: variables of the processes.

    Returns:
      Exit code and message of each.
    """
    return _at_once(_publish, [(root, expected, number, environment) for number in range(10)])


def _publish(
    gate: Any, root: Root, expected: Published, number: int, environment: dict[str, str]
) -> tuple[int, str]:
    os.environ.update(environment)
    assert expected.manifest is not None
    manifest = dataclasses.replace(
        expected.manifest,
        generation=f"000002-{number:08d}",
        parent=expected.generation,
        parent_manifest_sha256=expected.manifest_sha256,
    )
    gate.wait()
    try:
        root.publish(manifest, expected)
    except CommandError as error:
        return error.exit_code, str(error)
    return 0, ""


def commands_at_once(commands: list[list[str]]) -> list[tuple[int, str]]:
    """Runs `semid` commands in processes that all publish at one moment.

    Args:
      commands: arguments of each.

    Returns:
      Exit code and standard error of each.
    """
    return _at_once(_command, [(arguments,) for arguments in commands])


def _command(gate: Any, arguments: list[str]) -> tuple[int, str]:
    publish = Root.publish

    def together(root: Root, manifest: Manifest, expected: Published) -> None:
        gate.wait()
        publish(root, manifest, expected)

    error = io.StringIO()
    with (
        patched(Root, "publish", together),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(error),
    ):
        return main(arguments), error.getvalue()


def run_limited(arguments: list[str], limit: int, value: int) -> tuple[int, str]:
    """Runs a `semid` command in a process with a limit of the kernel.

    Args:
      arguments: of the command.
      limit: one of `resource.RLIMIT_*`.
      value: what it is set to.

    Returns:
      Exit code and standard error, without progress.
    """
    return _at_once(_limited, [([*arguments, "--quiet"], limit, value)])[0]


def _limited(gate: Any, arguments: list[str], limit: int, value: int) -> tuple[int, str]:
    resource.setrlimit(limit, (value, resource.RLIM_INFINITY))
    return _command(gate, arguments)


def _at_once(target: Callable[..., Any], calls: list[tuple[Any, ...]]) -> list[tuple[int, str]]:
    gate, answers = _FORKS.Barrier(len(calls), timeout=300), _FORKS.SimpleQueue()
    processes = [
        _FORKS.Process(target=_answer, args=(answers, number, target, gate, *call))
        for number, call in enumerate(calls)
    ]
    for process in processes:
        process.start()
    found = dict(answers.get() for _ in processes)
    for process in processes:
        process.join()
    return [found[number] for number in range(len(calls))]


def _answer(answers: Any, number: int, target: Callable[..., Any], *arguments: Any) -> None:
    try:
        answers.put((number, target(*arguments)))
    except BaseException as error:
        answers.put((number, (-1, repr(error))))
        raise


def _run(target: Callable[..., None], *arguments: Any) -> int:
    process = _FORKS.Process(target=target, args=arguments)
    process.start()
    process.join()
    code = process.exitcode
    process.close()
    return int(code or 0)


@contextlib.contextmanager
def patched(where: Any, name: str, value: Any) -> Iterator[None]:
    """Puts something else in an attribute's place while the block runs."""
    original = getattr(where, name)
    setattr(where, name, value)
    try:
        yield
    finally:
        setattr(where, name, original)
