"""The nightly job: a full catalog in, a new generation out.

The links follow each other in `tokenize`; a run that was killed resumes at the last complete one.
"""

from __future__ import annotations

import json
from typing import Any

from pipelines.beam_options import keep_workers
from pipelines.catalog_input import CatalogInput, open_input
from pipelines.chain import Chain
from pipelines.checks import check_gates, refuse_bad_input
from pipelines.generation import Outcome
from pipelines.id_space import IdSpace, open_space
from pipelines.job import Job
from pipelines.root import Published
from pipelines.runs import open_run
from pipelines.settings import require_levels


def tokenize(job: Job) -> Outcome:
    """Builds and publishes a generation.

    Raises:
      CommandError: the run was refused; nothing that was published changed.
    """
    if job.tokenizer is None:
        require_levels(job.settings, job.settings.layout, job.settings.kind)
    job.root.check_writable()
    parent = job.root.published()
    catalog = open_input(job)
    job = job.sized(catalog.reader.total_bytes)
    space = open_space(job, catalog, parent)
    inputs = {**run_inputs(job, catalog, parent), **_asked(space, parent)}
    with (
        keep_workers(job.beam),
        open_run(job.root, inputs, next_sequence(parent), job.as_of) as run,
    ):
        job.root.check_current(parent, run.generation)
        chain = Chain(job, run, parent, catalog, space)
        read = run.link("read", chain.read)
        refuse_bad_input(read, job.settings.job.input, run.output("rejects"))
        embed = run.link("embed", lambda: chain.embed(read))
        fit = run.link("fit", chain.fit)
        assign = run.link("assign", lambda: chain.assign(read, embed, fit))
        place = run.link("place", lambda: chain.place(read, embed, fit, assign))
        index = run.link("index", lambda: chain.index(read, fit, place))
        if index["rebuilt"]:
            check_gates(run.output("metrics.json"), job.settings.job.gates)
        return chain.publish(run.results)


def run_inputs(job: Job, catalog: CatalogInput, parent: Published) -> dict[str, Any]:
    """Returns everything the result of a run depends on."""
    return {
        "command": "tokenize",
        "catalog": [[s.path, s.bytes, s.version] for s in catalog.reader.sources],
        "config": json.loads(job.settings.canonical()),
        "encoder": catalog.encoder["fingerprint"],
        "parent": parent.generation,
    }


def _asked(space: IdSpace, parent: Published) -> dict[str, str]:
    """Returns the tokenizer as an input of the run, unless the parent says it already."""
    published = parent.manifest and parent.manifest.fingerprints.tokenizer
    if space.tokenizer is None or space.tokenizer == published:
        return {}
    return {"tokenizer": space.tokenizer}


def next_sequence(parent: Published) -> int:
    """Returns the number of the next generation."""
    return 1 if parent.generation is None else int(parent.generation.split("-")[0]) + 1
