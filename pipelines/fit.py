"""Fitting a tokenizer without publishing IDs."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from pipelines.beam_options import keep_workers
from pipelines.catalog_input import open_input
from pipelines.chain import Chain
from pipelines.checks import refuse_bad_input
from pipelines.id_space import open_fit_space
from pipelines.job import Job
from pipelines.runs import open_run
from pipelines.tokenize import next_sequence, run_inputs
from semid_transforms import files


@dataclasses.dataclass(frozen=True)
class FitOutcome:
    """A fitted tokenizer.

    Attributes:
      tokenizer_id: its folder under `tokenizers/`.
      metrics: its `metrics.json`.
      results: what each link reported.
    """

    tokenizer_id: str
    metrics: dict[str, Any]
    results: dict[str, dict[str, Any]]


def fit(job: Job) -> FitOutcome:
    """Reads and embeds a catalog and fits a tokenizer; publishes nothing.

    Its codes are numbered so that as many published items as possible keep theirs.

    The embeddings stay in the run's folder until a generation with the same encoder is published,
    so `semid tokenize` does not make them again.

    Raises:
      CommandError: the run was refused.
    """
    job.root.check_writable()
    parent = job.root.published()
    catalog = open_input(job)
    job = job.sized(catalog.reader.total_bytes)
    space = open_fit_space(job, catalog, parent)
    inputs = {**run_inputs(job, catalog, parent), "command": "fit", "warm_start": job.warm_start}
    with (
        keep_workers(job.beam),
        open_run(job.root, inputs, next_sequence(parent), job.as_of, publishes=False) as run,
    ):
        chain = Chain(job, run, parent, catalog, space)
        read = run.link("read", chain.read)
        refuse_bad_input(read, job.settings.job.input, run.output("rejects"))
        run.link("embed", lambda: chain.embed(read))
        fitted = run.link("fit", chain.fit_new)
        folder = job.root.tokenizer_folder(fitted["tokenizer_id"])
        metrics = json.loads(files.read_bytes(files.join(folder, "metrics.json")))
        return FitOutcome(fitted["tokenizer_id"], metrics, run.results)
