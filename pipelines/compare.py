"""Other tokenizers, or IDs that others published, measured on the same items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.metrics import quality
from pipelines.errors import UsageError
from pipelines.fitted_tokenizers import resolve_tokenizer
from pipelines.published_tables import PublishedTables
from pipelines.root import Root
from semid_transforms import files
from semid_transforms.measuring import Sample, sample_items
from semid_transforms.quantizing import load_tokenizer


def compare(tables: PublishedTables, others: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Measures the published base codes and others on one sample of items.

    Args:
      tables: the generation.
      others: ids (or first digits) of tokenizers under ROOT, or Parquet files with `item_id` and a
        list of codes, numbers or strings, in a column `codes` or `sid`.

    Returns:
      A quality document per name; items that a file lacks are left out of its figures and counted.

    Raises:
      UsageError: a name is neither, or a file does not fit.
    """
    root, manifest = tables.root, tables.manifest
    published = load_tokenizer(root.tokenizer_folder(manifest.fingerprints.tokenizer))
    sample = sample_items(
        tables.paths("items"), tables.paths("embeddings"), tables.paths("catalog"), published
    )
    codes = sample.base_codes
    compared = {
        "published": _measure(
            sample, codes, published.codebook_sizes, published.decode(codes), published.hierarchical
        )
    }
    for name in others:
        if name.endswith(".parquet"):
            compared[name] = _measure_file(sample, name)
        else:
            compared[name] = _measure_tokenizer(sample, root, name)
    return compared


def _measure_tokenizer(sample: Sample, root: Root, name: str) -> dict[str, Any]:
    folder = root.tokenizer_folder(resolve_tokenizer(root, name, "--compare"))
    try:
        quantizer = load_tokenizer(folder)
        codes = quantizer.encode(sample.embeddings)
    except ValueError as error:
        raise UsageError(f"--compare {name}: {error}") from error
    decoded = quantizer.decode(codes)
    return _measure(sample, codes, quantizer.codebook_sizes, decoded, quantizer.hierarchical)


def _measure_file(sample: Sample, path: str) -> dict[str, Any]:
    try:
        table = files.read_table(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"--compare {path}: {error}") from error
    column = next((name for name in ("codes", "sid") if name in table.schema.names), None)
    if column is None or "item_id" not in table.schema.names:
        raise UsageError(
            f"--compare {path}: needs columns item_id and codes (or sid), it has "
            f"{', '.join(table.schema.names)}"
        )
    rows = pc.index_in(sample.item_ids, value_set=table["item_id"].combine_chunks())
    known = rows.is_valid().to_numpy(zero_copy_only=False)
    if not known.any():
        raise UsageError(f"--compare {path}: none of its items is in the sampled generation")
    codes, sizes = _number_codes(table[column].combine_chunks().take(rows.drop_null()), path)
    document = _measure(sample.take(np.flatnonzero(known)), codes, sizes)
    document["items_missing"] = int((~known).sum())
    return document


def _number_codes(column: pa.Array, path: str) -> tuple[np.ndarray, tuple[int, ...]]:
    """Numbers the codes of each level; strings in sorted order."""
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise UsageError(f"--compare {path}: codes must be lists, they are {column.type}")
    lengths = pc.unique(pc.list_value_length(column)).to_pylist()
    if len(lengths) != 1 or not lengths[0]:
        raise UsageError(f"--compare {path}: every item needs the same number of codes")
    levels, sizes = [], []
    for level in range(lengths[0]):
        values = pc.list_element(column, level)
        if pa.types.is_integer(values.type):
            numbers = values.to_numpy(zero_copy_only=False)
            if numbers.min() < 0:
                raise UsageError(f"--compare {path}: negative code {numbers.min()}")
        else:
            numbers = np.unique(np.array(values.to_pylist(), object), return_inverse=True)[1]
        levels.append(numbers.astype(np.int32).reshape(-1))
        # Nobody else's codebook size is known: the next power of two of what occurs.
        sizes.append(1 << int(max(1, levels[-1].max())).bit_length())
    return np.stack(levels, axis=1), tuple(sizes)


def _measure(
    sample: Sample,
    codes: np.ndarray,
    sizes: Sequence[int],
    decoded: np.ndarray | None = None,
    hierarchical: bool = True,
) -> dict[str, Any]:
    document = quality(
        codes,
        sizes,
        sample.embeddings,
        decoded=decoded,
        category_paths=sample.category_paths,
        hierarchical=hierarchical,
        geometry=sample.geometry,
    )
    document.pop("definitions")
    return document
