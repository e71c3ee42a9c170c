"""Item vectors from who interacted with what, as a column that a catalog brings along."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from models.collaborative import InteractionConfig, ItemVectors, interaction_vectors
from pipelines.errors import InputRefusedError, UsageError
from semid_transforms import files
from semid_transforms.files import SourceFile
from semid_transforms.interactions import (
    InteractionColumns,
    append_vectors,
    read_interactions,
    read_item_ids,
)
from semid_transforms.sources import Format, format_of

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class InteractionsJob:
    """What is read and written.

    Attributes:
      interactions: patterns of tables, one row per interaction.
      catalog: patterns of Parquet catalogs.
      output: folder of the catalogs with their new column.
      column: its name.
      item_column: the catalog's item id.
      columns: of the interactions.
    """

    interactions: tuple[str, ...]
    catalog: tuple[str, ...]
    output: str
    column: str = "interaction_embedding"
    item_column: str = "item_id"
    columns: InteractionColumns = dataclasses.field(default_factory=InteractionColumns)


def add_interactions(job: InteractionsJob, config: InteractionConfig) -> dict[str, Any]:
    """Computes vectors and writes every catalog file with one more column.

    Returns:
      What was read, left out and written; plain JSON values.

    Raises:
      InputRefusedError: a pattern matches nothing, or too few items have interactions.
      UsageError: files are not as described, or the output folder is not free.
    """
    catalog, interactions = (
        _match("--catalog", job.catalog),
        _match("--interactions", job.interactions),
    )
    outputs = _output_paths(job, catalog)
    try:
        item_ids = read_item_ids(catalog, job.item_column)
        _log.info("catalog  %s items", f"{len(item_ids):,}")
        found = read_interactions(interactions, job.columns, item_ids)
    except ValueError as error:
        raise UsageError(str(error)) from error
    _log.info("read     %s interactions with them", f"{len(found.items):,}")
    if not len(found.items):
        raise InputRefusedError(
            f"--interactions: none of {found.unknown + found.unusable:,} rows names a user and an "
            f"item of the catalog ({found.unusable:,} lack user, item or weight): see "
            f"--user-column, --item-column and --catalog-item-column"
        )
    # Numbered in the order of ids, so that the order of catalog files does not matter.
    ascending = np.argsort(np.array(item_ids.to_pylist(), object), kind="stable")
    rank = np.empty(len(ascending), np.int64)
    rank[ascending] = np.arange(len(ascending))
    try:
        numbered = interaction_vectors(found.users, rank[found.items], config, found.weights)
    except ValueError as error:
        raise InputRefusedError(f"--interactions: {error}") from error
    if not numbered.vectors.size:
        raise InputRefusedError("--interactions: no two items share more users than by chance")
    names = np.array(item_ids.take(ascending[numbered.item_ids]).to_pylist(), object)
    vectors = ItemVectors(names, numbered.vectors)
    rows = 0
    for source, output in zip(catalog, outputs, strict=True):
        rows += append_vectors(source, output, job.item_column, job.column, vectors)
        _log.info("wrote    %s", output)
    return {
        "column": job.column,
        "dimension": int(vectors.vectors.shape[1]),
        "items": len(item_ids),
        "items_with_vector": len(names),
        "rows_with_vector": rows,
        "interactions": len(found.items),
        "interactions_with_other_items": found.unknown,
        "interactions_unusable": found.unusable,
        "files": outputs,
    }


def interactions_text(result: dict[str, Any]) -> str:
    """Says what was done, and the configuration that takes the column."""
    items, vectors = result["items"], result["items_with_vector"]
    return "\n".join(
        [
            f"{vectors:,} of {items:,} items ({vectors / items:.1%}) have a vector from "
            f"{result['interactions']:,} interactions",
            f"  left out: {result['interactions_with_other_items']:,} interactions with items that "
            f"are not in the catalog, {result['interactions_unusable']:,} unusable rows",
            *(f"  wrote {path}" for path in result["files"]),
            "to fuse the column with the text, configure",
            "  input:",
            "    fuse:",
            f"      {result['column']}: {{dimension: {result['dimension']}, weight: 0.5}}",
        ]
    )


def _match(option: str, patterns: Sequence[str]) -> list[SourceFile]:
    try:
        return files.match(patterns)
    except FileNotFoundError as error:
        raise InputRefusedError(f"{option}: {error}") from error


def _output_paths(job: InteractionsJob, catalog: Sequence[SourceFile]) -> list[str]:
    """Returns one path per catalog file, under its own name.

    Raises:
      UsageError: a file is not Parquet, two have one name, or the folder holds other Parquet files,
        which a glob over it would take for the catalog as well.
    """
    paths = []
    for source in catalog:
        try:
            format_, compressed = format_of(source.path)
        except ValueError as error:
            raise UsageError(str(error)) from error
        if format_ is not Format.PARQUET:
            raise UsageError(
                f"--catalog: {source.path} is {format_}; a column is added to Parquet files only"
            )
        name = files.base_name(source.path)
        paths.append(files.join(job.output, name.removesuffix(".gz") if compressed else name))
    if len(set(paths)) < len(paths):
        raise UsageError(
            "--catalog: several files have one name, and would be written to one place in "
            "--output; name them one folder at a time"
        )
    if same := sorted({source.path for source in catalog} & set(paths)):
        raise UsageError(f"--output: {same[0]} would replace the catalog it is made of")
    if others := sorted(set(files.list_files(job.output, ".parquet")) - set(paths)):
        raise UsageError(
            f"--output: {job.output} holds other Parquet files, such as "
            f"{files.base_name(others[0])}: name an empty folder"
        )
    return paths
