"""Searching a published generation for the items nearest to a text or to another item."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.retrieval import HierarchicalIndex, SearchWidths
from models.sid import format_codes
from pipelines.errors import MismatchError, UsageError
from pipelines.show import View
from schemas.arrays import keys_from_fixed_binary, matrix_from_list
from schemas.config import EncoderConfig, parse
from semid_transforms import files
from semid_transforms.embedding import find_embeddings
from semid_transforms.encoder import SentenceEncoder
from semid_transforms.encoder_identity import identify_encoder
from semid_transforms.quantizing import load_tokenizer
from semid_transforms.shard_plan import is_delta

_COLUMNS = ["item_id", "codes", "suffix", "path_labels", "content_hash"]


def search_text(view: View, text: str, limit: int = 10) -> dict[str, Any]:
    """Finds the items whose embeddings are nearest to a text's, by the published encoder.

    Raises:
      UsageError: the text is empty, or items are not embedded from text alone.
      MismatchError: the encoder that the configuration names is not the one that was published.
    """
    if not text.strip():
        raise UsageError("--query needs some text")
    encoder = view.manifest.encoder
    if encoder["name"] == "catalog" or "columns" in encoder:
        raise UsageError(
            f"--query: the embeddings of generation {view.generation} come from catalog columns "
            f"({encoder['name']}), so text cannot be compared with them: use --query-item ID"
        )
    config = parse(EncoderConfig, view.manifest.config["encoder"], "encoder")
    try:
        found = identify_encoder(config).fingerprint
    except ValueError as error:
        raise UsageError(f"--query: {error}") from error
    published = view.manifest.fingerprints.encoder
    if found != published:
        raise MismatchError(
            f"--query: encoder {config.model} has fingerprint {found[:16]} here, generation "
            f"{view.generation} was embedded by {published[:16]}: restore that model"
        )
    if config.precision == "int8":
        # Calibrating takes 20 seconds; what int8 approximates is as near to the stored vectors.
        config = dataclasses.replace(config, precision="auto")
    return {"query": text, **_search(view, SentenceEncoder(config).encode([text]), limit)}


def search_item(view: View, item_id: str, limit: int = 10) -> dict[str, Any]:
    """Finds the items whose embeddings are nearest to a published item's, itself left out.

    Raises:
      UsageError: the item is not in the generation.
    """
    for path in view.paths("items"):
        table = files.read_table(path, ["item_id", "content_hash"])
        row = pc.index(table["item_id"], item_id).as_py()
        if row >= 0:
            vector = _embeddings(view, table["content_hash"].slice(row, 1))
            return {"query_item": item_id, **_search(view, vector, limit, without=item_id)}
    raise UsageError(f"item {item_id!r} is not in generation {view.generation}")


def search_lines(found: dict[str, Any]) -> str:
    """Lays out what a search returned."""
    lines = [f"nearest to {found.get('query', found.get('query_item'))!r}"]
    for row in found["items"]:
        lines.append(
            f"  {row['cosine']:.3f}  {row['sid_text']:<16} {row['title'] or row['item_id']}"
        )
        if any(row["path_labels"]):
            lines.append(f"{'':26}" + " > ".join(label or "?" for label in row["path_labels"]))
    return "\n".join(lines)


def _search(
    view: View, query: np.ndarray, limit: int, without: str | None = None
) -> dict[str, Any]:
    """Descends the codebooks and ranks what it finds by cosine; only those embeddings are read."""
    quantizer = load_tokenizer(view.root.tokenizer_folder(view.manifest.fingerprints.tokenizer))
    index = HierarchicalIndex(view.read_trie(), quantizer.codebooks)
    widths = SearchWidths(rerank=max(SearchWidths.rerank, limit + 1))
    rows = np.sort(index.candidates(quantizer.latents(query), widths)[0])
    items = _items_at(view, rows[rows >= 0])
    vectors = _embeddings(view, items["content_hash"])
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query[0])
    cosine = vectors @ query[0] / np.maximum(norms, np.finfo(np.float32).tiny)
    order = [
        row
        for row in np.lexsort((np.arange(len(cosine)), -cosine)).tolist()
        if items["item_id"][row].as_py() != without
    ][:limit]
    best = items.take(pa.array(order, pa.int64())).to_pylist()
    titles = view.titles([row["item_id"] for row in best])
    return {
        "generation": view.generation,
        "items": [
            {
                "item_id": row["item_id"],
                "sid_text": format_codes(row["codes"], row["suffix"]),
                "path_labels": row["path_labels"],
                "title": titles.get(row["item_id"], (None, None))[0],
                "cosine": round(float(cosine[place]), 4),
            }
            for row, place in zip(best, order, strict=True)
        ],
    }


def _items_at(view: View, rows: np.ndarray) -> pa.Table:
    """Reads ascending rows of the items table; reads it whole after a backfill, to order it."""
    if any(is_delta(part.path) for part in view.manifest.table("items")):
        table = view.read_items(["sid", *_COLUMNS])
        return table.take(pa.array(rows, pa.int64())).select(_COLUMNS)
    found: list[pa.Table] = []
    start = 0
    for path in view.paths("items"):
        with files.parquet_file(path) as file:
            stop = start + file.metadata.num_rows
            here = rows[(rows >= start) & (rows < stop)] - start
            if len(here) or not found:
                found.append(file.read(columns=_COLUMNS).take(pa.array(here, pa.int64())))
        start = stop
    return pa.concat_tables(found).combine_chunks()


def _embeddings(view: View, hashes: pa.ChunkedArray) -> np.ndarray:
    """Reads the (N, D) embeddings of contents."""
    keys, inverse = np.unique(keys_from_fixed_binary(hashes), return_inverse=True)
    distinct = pa.array([key.ljust(16, b"\0") for key in keys.tolist()], pa.binary(16))
    parts: Sequence[str] = view.paths("embeddings")
    return matrix_from_list(find_embeddings(parts, distinct))[inverse.reshape(-1)]
