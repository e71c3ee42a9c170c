"""The learned pieces of the `spm` feature: frozen with the ID space they were learned in."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from models.sid import SidLayout
from models.spm_ngrams import SpmFeature
from pipelines.beam_options import run_pipeline
from pipelines.definitions import define_pieces
from pipelines.generation import SPM_FILE, table_paths
from pipelines.job import Job
from pipelines.root import Published
from pipelines.runs import Run
from semid_transforms import files
from semid_transforms.pieces import LearnPieces, PieceInputs


def settle_pieces(
    job: Job,
    run: Run,
    parent: Published,
    tokenizer_id: str,
    layout: SidLayout,
    coded: Sequence[str],
) -> str | None:
    """Carries the parent's pieces over, or learns them where it has none of the kind.

    Pieces learned anew renumber the `spm` column of every row, so they are learned once for a
    tokenizer and a vocabulary size, and kept after that.

    Args:
      job: with the configured features.
      run: that builds the generation.
      parent: the generation it grows from.
      tokenizer_id: of the generation.
      layout: of its SIDs.
      coded: base codes of everything that changed.

    Returns:
      The path of the model in the new generation, None without an `spm` feature.
    """
    wanted = [f for f in job.settings.features if isinstance(f, SpmFeature)]
    if not wanted:
        return None
    feature, path = wanted[0], run.output(*SPM_FILE.split("/"))
    before = parent.manifest
    if (
        before is not None
        and parent.generation is not None
        and before.fingerprints.tokenizer == tokenizer_id
        and dataclasses.asdict(feature) in before.config["ngrams"]
    ):
        files.copy(files.join(job.root.folder(parent.generation), *SPM_FILE.split("/")), path)
        return path
    inputs = PieceInputs(
        catalog=tuple(files.list_files(run.output("catalog"), ".parquet")),
        codes=(*coded, *table_paths(job.root, parent, "items")),
        sample_rows=job.settings.job.fit.sample_rows,
    )
    learn = LearnPieces(feature, layout, path)
    run_pipeline(job.options("place"), lambda root: define_pieces(root, inputs, learn))
    return path
