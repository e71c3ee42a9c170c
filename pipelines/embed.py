"""The embed link: text, columns of the catalog, or both fused, for what is new or changed.

What is stored of the others is carried over.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipelines.beam_options import run_pipeline
from pipelines.catalog_input import CatalogInput
from pipelines.definitions import define_collect, define_compact, define_embed
from pipelines.generation import link_tables
from pipelines.job import Job
from pipelines.root import Published
from pipelines.runs import Run, kept_runs
from semid_transforms import files
from semid_transforms.collecting import CollectVectors
from semid_transforms.compaction import CompactEmbeddings, plan_buckets
from semid_transforms.embedding import EmbeddingParts, EmbedTexts
from semid_transforms.reading import CatalogReader
from semid_transforms.split_embeddings import stores_early

_log = logging.getLogger(__name__)


def own_parts(run: Run) -> EmbeddingParts:
    """Returns where a run's embeddings go."""
    return EmbeddingParts(
        embeddings=run.output("embeddings"),
        origin=run.scratch("origin"),
        prefix=f"part-{run.generation[:6]}",
    )


def early_parts(run: Run, reader: CatalogReader) -> EmbeddingParts | None:
    """Returns where a first run stores embeddings while it reads, emptied; None if it cannot."""
    if not stores_early(reader.embedding):
        return None
    parts = own_parts(run)
    for folder in (parts.embeddings, parts.origin):
        files.remove_tree(folder)
    return parts


def embed_changed(
    job: Job,
    run: Run,
    catalog: CatalogInput,
    rows: int,
    published: Sequence[str],
    sid_type: pa.DataType,
) -> dict[str, Any]:
    """Writes the embeddings of changed items.

    Text alone and columns alone take one pipeline. Where columns are fused with the text there
    are two, so that a text that occurs with several vectors is encoded once: the first writes the
    embeddings of texts to scratch, the second reads them and the columns back by reference.

    Args:
      job: encoder settings and Beam options.
      run: where the changed items are and embeddings go.
      catalog: says what is embedded.
      rows: changed items, at least 1.
      published: embedding parts of the parent generation, if they are of the same encoder.
      sid_type: Arrow type of a packed SID.

    Returns:
      Names of the parts written, and counters.
    """
    changed = files.list_files(run.scratch("read", "changed"))
    # What other runs under this root embedded in the same way and did not publish.
    same_encoder = {"encoder": catalog.encoder["fingerprint"]}
    kept = [other for other in kept_runs(job.root, same_encoder) if other.key != run.key]
    known = (*published, *_parts_in([other.output("embeddings") for other in kept]))
    parts = dataclasses.replace(own_parts(run), known=known)
    counters: dict[str, int] = {}
    text_parts = parts
    if catalog.fuses:
        text_parts = EmbeddingParts(
            embeddings=run.scratch("texts", "embeddings"),
            origin=run.scratch("texts", "origin"),
            prefix="texts",
            known=_parts_in([other.scratch("texts", "embeddings") for other in kept]),
        )
    if catalog.embeds_text:
        config = job.settings.job.encoder
        num_parts = math.ceil(rows / config.rows_per_part)
        embed = EmbedTexts(config, text_parts, num_parts, sid_type, job.encoder_hints)
        counters |= run_pipeline(
            job.encoder_options, lambda root: define_embed(root, changed, embed, catalog.fuses)
        )
    if catalog.reader.embedding is not None:
        texts = files.list_files(text_parts.embeddings, ".parquet") if catalog.fuses else []
        collect = CollectVectors(catalog.reader, parts, sid_type, tuple(texts))
        counters |= run_pipeline(
            job.options("embed"), lambda root: define_collect(root, changed, collect)
        )
    names = [files.base_name(path) for path in files.list_files(parts.origin, ".parquet")]
    for path in files.list_files(parts.embeddings, ".parquet"):
        name = files.base_name(path)
        if name.startswith(f"{parts.prefix}-") and name not in names:
            files.remove_file(path)  # written while its split was read, of which no row was kept
    return {"parts": names, "counters": counters}


def carry_embeddings(
    job: Job, run: Run, ground: Published, needed_rows: int, num_shards: int
) -> None:
    """Links stored embeddings into a full run, or rewrites them when too many are stale.

    Args:
      job: says how many may be stale.
      run: where the catalog and the changed items are and embeddings go.
      ground: generation whose embeddings are carried; nothing is where there is none.
      needed_rows: live items whose embeddings are stored.
      num_shards: shards of item ids.
    """
    if ground.manifest is None or ground.generation is None:
        return
    config = job.settings.job
    buckets = plan_buckets(
        ground.manifest.table("embeddings"),
        job.root.folder(ground.generation),
        config.encoder.rows_per_part,
        needed_rows,
        config.shards.max_stale_share,
    )
    if buckets is None:
        link_tables(job.root, ground, run, ("embeddings",))
        return
    _log.info("embed    rewriting stored embeddings in %d parts", len(buckets))
    compact = CompactEmbeddings(tuple(buckets), run.output("embeddings"), num_shards)
    catalog = files.list_files(run.output("catalog"), ".parquet")
    changed = files.list_files(run.scratch("read", "changed"), ".parquet")
    run_pipeline(job.options("embed"), lambda root: define_compact(root, catalog, changed, compact))


def _parts_in(folders: Sequence[str]) -> tuple[str, ...]:
    return tuple(path for folder in folders for path in files.list_files(folder, ".parquet"))
