"""The backfill: a few new or changed rows in, the published generation and delta parts out.

Items that are not among the rows given stay as they are; nothing is retired. Tokenizer and
configuration are those of the published generation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pipelines.beam_options import keep_workers
from pipelines.catalog_input import open_input
from pipelines.checks import check_gates, refuse_bad_input
from pipelines.delta_chain import DeltaChain
from pipelines.errors import MismatchError, UsageError
from pipelines.generation import Outcome
from pipelines.id_space import open_space
from pipelines.job import Job
from pipelines.root import Published
from pipelines.runs import Run, open_run
from pipelines.settings import Settings, parse_settings, read_config
from pipelines.tokenize import next_sequence, run_inputs
from schemas.config import canonical_json
from schemas.manifest import Manifest
from schemas.rejects import SourceCounts
from semid_transforms import files
from semid_transforms.reading import has_rows

_FROZEN = ("text", "quantizer", "ngrams")
"""Sections that decide what IDs and tables are, but for `quantizer.training`."""


@dataclasses.dataclass(frozen=True)
class NothingToDo:
    """A backfill that published nothing because everything given is published as it is.

    Attributes:
      generation: the published one.
      total: rows read.
      rejects: rejected rows per reason.
      rejects_folder: where rejected rows are kept, None when there are none.
    """

    generation: str
    total: SourceCounts
    rejects: dict[str, int]
    rejects_folder: str | None


def backfill_settings(manifest: Manifest, path: str | None) -> Settings:
    """Returns the published configuration, with what a configuration file changes of it.

    Args:
      manifest: of the published generation.
      path: of the file, None without one.

    Raises:
      UsageError: the file cannot be read, or a key or value is bad.
      MismatchError: it changes what only a full run may: text, tokenizer, features, policy.
    """
    if path is None:
        return overlaid_settings(manifest, {})
    try:
        return overlaid_settings(manifest, read_config(path))
    except ValueError as error:
        raise UsageError(f"--config {path}: {error}") from error


def overlaid_settings(manifest: Manifest, given: Mapping[str, Any]) -> Settings:
    """Lays a configuration mapping over the published configuration.

    Raises:
      ValueError: a key or value is bad.
      MismatchError: see `backfill_settings`.
    """
    published: Mapping[str, Any] = manifest.config
    merged = dict(published)
    for section, value in given.items():
        both = isinstance(value, Mapping) and isinstance(published.get(section), Mapping)
        merged[section] = {**published[section], **value} if both else value
    settings = parse_settings(merged)
    effective = settings.to_json()
    differences = [
        f"{section} {_short(effective[section])} here, {_short(published[section])} published"
        for section in _FROZEN
        if section in given
        and canonical_json(_without_training(effective[section]))
        != canonical_json(_without_training(published[section]))
    ]
    policies = effective["collisions"]["policy"], published["collisions"]["policy"]
    if policies[0] != policies[1]:
        differences.append(f"collisions.policy {policies[0]} here, {policies[1]} published")
    if differences:
        raise MismatchError(
            f"a backfill takes the settings of generation {manifest.generation}:\n  "
            + "\n  ".join(differences)
            + "\nrestore the setting, or change it with a full `semid tokenize`"
        )
    return settings


def backfill(job: Job) -> Outcome | NothingToDo:
    """Adds the rows given to the published generation and publishes the result.

    Raises:
      CommandError: the run was refused; nothing that was published changed.
    """
    job.root.check_writable()
    parent = job.root.published()
    if parent.generation is None:
        job.root.require_published()
    catalog = open_input(job)
    job = job.sized(catalog.reader.total_bytes)
    if not has_rows(catalog.reader):
        return _nothing(parent, SourceCounts(0, 0, 0, 0), {})
    space = open_space(job, catalog, parent)
    inputs = {**run_inputs(job, catalog, parent), "command": "backfill"}
    with (
        keep_workers(job.beam),
        open_run(job.root, inputs, next_sequence(parent), job.as_of) as run,
    ):
        job.root.check_current(parent, run.generation)
        chain = DeltaChain(job, run, parent, catalog, space)
        return _run_links(job, run, parent, chain)


def _run_links(job: Job, run: Run, parent: Published, chain: DeltaChain) -> Outcome | NothingToDo:
    assert parent.manifest is not None
    read = run.link("read", chain.read)
    refuse_bad_input(read, job.settings.job.input, run.output("rejects"))
    if not read["changed"]:
        total = sum(
            (SourceCounts.from_json(counts) for counts in read["sources"].values()),
            SourceCounts(0, 0, 0, 0),
        )
        if read["rejects"]:
            return _nothing(parent, total, read["rejects"], run.output("rejects"))
        files.remove_tree(run.generation_folder)
        run.discard()
        return _nothing(parent, total, {})
    embed = run.link("embed", lambda: chain.embed(read))
    tokenizer = parent.manifest.fingerprints.tokenizer
    fit = run.link("fit", lambda: {"tokenizer_id": tokenizer, "fitted": False})
    run.link("assign", lambda: chain.assign(embed, fit))
    place = run.link("place", lambda: chain.place(read, embed, fit))
    run.link("index", lambda: chain.index(read, fit, place))
    check_gates(run.output("metrics.json"), job.settings.job.gates)
    return chain.publish(run.results)


def _nothing(
    parent: Published,
    total: SourceCounts,
    rejects: dict[str, int],
    rejects_folder: str | None = None,
) -> NothingToDo:
    assert parent.generation is not None
    return NothingToDo(parent.generation, total, rejects, rejects_folder)


def _without_training(section: Any) -> Any:
    if not isinstance(section, Mapping):
        return section
    return {key: value for key, value in section.items() if key != "training"}


def _short(value: Any, limit: int = 120) -> str:
    text = canonical_json(value).decode()
    return text if len(text) <= limit else text[: limit - 3] + "..."
