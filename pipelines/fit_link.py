"""The fit link: a tokenizer of what has been embedded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pipelines.beam_options import run_pipeline, single_process
from pipelines.catalog_input import CatalogInput
from pipelines.definitions import define_fit
from pipelines.generation import table_paths
from pipelines.job import Job
from pipelines.root import Published
from pipelines.runs import Run
from pipelines.settings import Settings
from semid_transforms import files

if TYPE_CHECKING:
    from semid_transforms.fitting import FollowedTokenizer


def tokenizer_origin(settings: Settings, catalog: CatalogInput) -> dict[str, str]:
    """Returns what a tokenizer must have been fitted on, and how, to serve a run."""
    return {
        "encoder": catalog.encoder["fingerprint"],
        "template": settings.template_fingerprint,
        "settings": settings.tokenizer_fingerprint,
        "fit": settings.fit_fingerprint,
    }


def fit_embedded(job: Job, run: Run, catalog: CatalogInput, parent: Published) -> dict[str, Any]:
    """Fits a tokenizer on the embeddings of a run and writes it under ROOT.

    Args:
      job: tokenizer settings and Beam options.
      run: whose embeddings and catalog are there.
      catalog: says what was embedded.
      parent: a new tokenizer numbers its codes after the one that is published.

    Returns:
      `tokenizer_id`, `sample_rows` and the like, and `fitted`.
    """
    from semid_transforms.fitting import RESULT, FitTokenizer  # imports torch, 1.7 s

    scratch = run.scratch("fit")
    parts = files.list_files(run.output("catalog"), ".parquet")
    fit = FitTokenizer(
        job.settings.quantizer,
        job.settings.job.fit,
        {
            **tokenizer_origin(job.settings, catalog),
            "command": "tokenize" if run.publishes else "fit",
            "fitted_at": run.time.isoformat(),
        },
        (files.join(job.root.path, "tokenizers"), scratch),
        tuple(parts),
        _followed(job, parent),
    )
    embeddings = files.list_files(run.output("embeddings"), ".parquet")
    run_pipeline(
        single_process(job.options("fit")),
        lambda pipeline: define_fit(pipeline, embeddings, fit),
    )
    return {**json.loads(files.read_bytes(files.join(scratch, RESULT))), "fitted": True}


def _followed(job: Job, parent: Published) -> FollowedTokenizer | None:
    """Returns the published tokenizer, after whose codes a new one numbers its own."""
    from semid_transforms.fitting import FollowedTokenizer

    if parent.manifest is None:
        return None
    return FollowedTokenizer(
        folder=job.root.tokenizer_folder(parent.manifest.fingerprints.tokenizer),
        items=tuple(table_paths(job.root, parent, "items")),
        warm_start=job.warm_start,
    )
