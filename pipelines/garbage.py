"""Removing generations, runs and tokenizers that nothing needs any more.

What is in use, and stays whatever is asked:
  - CURRENT and, of its chain of parents, the newest `keep` generations, CURRENT included. The chain
    is kept without holes: each manifest vouches for its parent's, and whoever follows `changes/`
    needs every generation between the one seen last and CURRENT.
  - what a living run works with: its folder, the generation it builds and the one it grows from;
    the same of a run that was killed but can still be resumed, because it grows from CURRENT, and
    of a finished `semid fit`, whose embeddings and tokenizer wait for a full run. Once nobody has
    touched such a run for `stale_hours` it counts as abandoned.
  - tokenizers that a generation or run above names, that were written within `stale_hours`, or that
    `semid fit` made since the oldest kept generation.
  - half-written files beside CURRENT and under `tokenizers/`, while any process works on a run or
    until `stale_hours` after they were written. Others lie in folders that go as a whole.
Nothing else refers to another generation's files: carried files are hard links or copies, reserved
IDs are carried along, and `first_generation` and `retired_generation` are only names.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterable
from typing import Any

from pipelines.errors import UsageError
from pipelines.root import MANIFEST, Root
from pipelines.runs import claim_run, is_running
from schemas.manifest import Manifest
from semid_transforms import files
from semid_transforms.leftovers import find_leftovers

STALE_HOURS = 24.0
"""Hours after which a run that nobody works on counts as abandoned: a scheduler retries sooner."""


@dataclasses.dataclass(frozen=True)
class KnownRun:
    """A run that left a folder under `runs/`.

    Attributes:
      key: name of the folder.
      command: that started it, None when it died before it said so.
      generation: it builds, None for a run that does not publish.
      parent: generation it grows from.
      tokenizer: it has fitted or taken, None before that.
      running: a process works on it.
      idle_hours: since its folder last changed.
    """

    key: str
    command: str | None
    generation: str | None
    parent: str | None
    tokenizer: str | None
    running: bool
    idle_hours: float

    def is_abandoned(self, current: str | None, stale_hours: float) -> bool:
        """True when it cannot, or in all likelihood will not, be finished."""
        if self.running:
            return False
        resumable = self.command == "fit" or self.parent == current
        return not resumable or self.idle_hours > stale_hours


@dataclasses.dataclass(frozen=True)
class Garbage:
    """What can go and what stays.

    Attributes:
      generations: folders to remove.
      runs: keys of abandoned runs.
      tokenizers: ids to remove.
      leftovers: paths, below the root, of files that killed processes left half written.
      kept: generations that stay, CURRENT first.
      busy: keys of runs that a process works on.
    """

    generations: list[str]
    runs: list[str]
    tokenizers: list[str]
    leftovers: list[str]
    kept: list[str]
    busy: list[str]

    def to_json(self) -> dict[str, Any]:
        """Returns the same as plain JSON values."""
        return dataclasses.asdict(self)


def find_garbage(root: Root, keep: int, stale_hours: float = STALE_HOURS) -> Garbage:
    """Finds what nothing needs, without touching anything.

    Folders are listed before runs, and runs before CURRENT is read, so that a run which publishes
    meanwhile is seen as a run or as CURRENT.

    Args:
      root: to look at.
      keep: how many generations of CURRENT's chain to keep, CURRENT included.
      stale_hours: see the module.

    Raises:
      UsageError: keep is below 1, or nothing was ever published or begun here.
    """
    if keep < 1:
        raise UsageError(f"--keep must be at least 1, because CURRENT always stays, got {keep}")
    if stale_hours < 0:
        raise UsageError(f"--stale-hours must not be negative, got {stale_hours:g}")
    folders = files.list_folders(files.join(root.path, "generations"))
    tokenizers = files.list_folders(files.join(root.path, "tokenizers"))
    runs = [_look_at(root, key) for key in files.list_folders(files.join(root.path, "runs"))]
    current = root.published().generation
    if current is None and not folders and not runs:
        raise UsageError(f"there is nothing under {root.path}")
    chain = _chain(root, current, keep)
    abandoned = [run for run in runs if run.is_abandoned(current, stale_hours)]
    alive = [run for run in runs if run not in abandoned]
    busy = [run.key for run in runs if run.running]
    worked_on = {name for run in alive for name in (run.generation, run.parent) if name}
    used = worked_on | chain.keys()
    manifests = [*chain.values(), *_manifests(root, worked_on - chain.keys())]
    named = {manifest.fingerprints.tokenizer for manifest in manifests}
    named |= {run.tokenizer for run in alive if run.tokenizer}
    oldest = min((manifest.created for manifest in manifests), default="")
    return Garbage(
        generations=[name for name in folders if name not in used],
        runs=[run.key for run in abandoned],
        tokenizers=[
            name
            for name in tokenizers
            if name not in named and not _may_serve(root, name, oldest, stale_hours)
        ],
        leftovers=[] if busy else _leftovers(root, stale_hours),
        kept=[*chain, *sorted(name for name in folders if name in used - chain.keys())],
        busy=busy,
    )


def remove_garbage(root: Root, garbage: Garbage) -> Garbage:
    """Removes what `find_garbage` found; returns what really went.

    A run that a process has taken up in the meantime is left alone with everything it may need. A
    generation loses its manifest first, so that half of one never looks complete.
    """
    current = root.published().generation
    taken: list[str] = []
    for key in garbage.runs:
        with claim_run(root, key) as idle:
            if idle:
                files.remove_tree(files.join(root.path, "runs", key))
            else:
                taken.append(key)
    if taken:  # what it needs was planned to go: leave all of it to the next call
        return dataclasses.replace(
            garbage,
            generations=[],
            tokenizers=[],
            leftovers=[],
            runs=[key for key in garbage.runs if key not in taken],
            busy=[*garbage.busy, *taken],
        )
    generations = [name for name in garbage.generations if name != current]
    for name in generations:
        files.remove_file(files.join(root.folder(name), MANIFEST))
        files.remove_tree(root.folder(name))
    for name in garbage.tokenizers:
        files.remove_tree(root.tokenizer_folder(name))
    for name in garbage.leftovers:
        files.remove_file(files.join(root.path, name))
    return dataclasses.replace(garbage, generations=generations)


def garbage_text(root: Root, garbage: Garbage, removed: bool) -> str:
    """Says what went, or would go."""
    verb = "removed" if removed else "would remove"
    lines = [f"{verb} from {root.path}"]
    for what in ("generations", "runs", "tokenizers", "leftovers"):
        names = getattr(garbage, what)
        shown = "  ".join(files.base_name(name)[:16] for name in names) or "none"
        lines.append(f"  {what:<12} {len(names):>4}  {shown}")
    lines.append(f"  kept         {len(garbage.kept):>4}  {'  '.join(garbage.kept)}")
    if garbage.busy:
        lines.append(f"  at work      {len(garbage.busy):>4}  {'  '.join(garbage.busy)}")
    return "\n".join(lines)


def _leftovers(root: Root, stale_hours: float) -> list[str]:
    idle = stale_hours * 3600
    found = find_leftovers(root.path, idle, deep=False)
    found += find_leftovers(files.join(root.path, "tokenizers"), idle)
    return [os.path.relpath(path, root.path) for path in found]


def _look_at(root: Root, key: str) -> KnownRun:
    folder = files.join(root.path, "runs", key)
    running = is_running(root, key)
    try:
        found = files.match([files.join(folder, "*")])
    except FileNotFoundError:
        return KnownRun(key, None, None, None, None, running, 0.0)
    newest = max(file.changed for file in found)
    documents = {files.base_name(file.path): file.path for file in found}
    said = _read(documents.get("run.json"))
    inputs = said.get("inputs", {})
    return KnownRun(
        key=key,
        command=inputs.get("command"),
        generation=said.get("generation") if said.get("publishes") else None,
        parent=inputs.get("parent"),
        tokenizer=_read(documents.get("fit.json")).get("tokenizer_id"),
        running=running,
        idle_hours=(time.time() - newest) / 3600,
    )


def _read(path: str | None) -> dict[str, Any]:
    return {} if path is None else json.loads(files.read_bytes(path))


def _chain(root: Root, current: str | None, keep: int) -> dict[str, Manifest]:
    """Returns CURRENT and its newest ancestors that are there, at most `keep`."""
    chain: dict[str, Manifest] = {}
    name = current
    while name is not None and len(chain) < keep:
        try:
            chain[name] = root.manifest(name)
        except UsageError:
            break  # removed before
        name = chain[name].parent
    return chain


def _manifests(root: Root, generations: Iterable[str]) -> list[Manifest]:
    """Returns the manifests of those generations that are complete."""
    return [
        root.manifest(name)
        for name in sorted(generations)
        if files.exists(files.join(root.folder(name), MANIFEST))
    ]


def _may_serve(root: Root, tokenizer: str, oldest: str, stale_hours: float) -> bool:
    """True for a tokenizer that nothing names and that may yet be published.

    Args:
      root: where it is.
      tokenizer: its id.
      oldest: when the oldest kept generation was created.
      stale_hours: see the module.
    """
    try:
        found = files.match([files.join(root.tokenizer_folder(tokenizer), "*")])
    except FileNotFoundError:
        return False
    if (time.time() - max(file.changed for file in found)) / 3600 < stale_hours:
        return True
    metrics = [file.path for file in found if files.base_name(file.path) == "metrics.json"]
    if not metrics:
        return False  # cut short by a crash
    origin = json.loads(files.read_bytes(metrics[0])).get("origin", {})
    return origin.get("command") == "fit" and origin.get("fitted_at", "") >= oldest
