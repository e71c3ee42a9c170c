"""Item files and their embeddings, for benchmarks."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.config import EncoderConfig, TextConfig
from semid_transforms.encoder import SentenceEncoder
from semid_transforms.text import clean, clean_paths, join_paths, render

COLUMNS = ("title", "brand", "category_path", "description")


@dataclasses.dataclass(frozen=True, eq=False)
class Items:
    """A catalog, embedded.

    Attributes:
      name: of the file.
      embeddings: (N, D) float32.
      category_paths: N paths or None.
      text_hashes: N digests of the embedded texts.
    """

    name: str
    embeddings: np.ndarray
    category_paths: list[list[str] | None]
    text_hashes: list[bytes]


def load_items(path: str, cache: str, *, with_categories: bool = True) -> Items:
    """Reads an item file and embeds it with the default encoder, once.

    Args:
      path: Parquet with item_id, title, brand, category_path, description.
      cache: folder that keeps embeddings between runs.
      with_categories: whether the category path is part of the text.
    """
    table = pq.read_table(path)
    texts = item_texts(table, with_categories)
    hashes = [hashlib.sha256(text.encode()).digest()[:16] for text in texts]
    whole = hashlib.sha256(b"".join(hashes)).hexdigest()[:16]
    stored = Path(cache) / f"{Path(path).stem}-{whole}.npy"
    if not stored.exists():
        stored.parent.mkdir(parents=True, exist_ok=True)
        np.save(stored, SentenceEncoder(EncoderConfig()).encode([text or "none" for text in texts]))
    return Items(
        Path(path).stem,
        np.load(stored),
        table.column("category_path").to_pylist() if "category_path" in table.schema.names else [],
        hashes,
    )


def item_texts(table: pa.Table, with_categories: bool = True) -> list[str]:
    """Returns the texts that the job encodes with the default template.

    Args:
      table: has the columns `COLUMNS`.
      with_categories: whether the category path is part of the text.
    """
    fields = {}
    for name in COLUMNS:
        column = table.column(name).combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks)
        if name == "category_path":
            column = join_paths(clean_paths(column))
            if not with_categories:
                column = pa.array([""] * len(column))
        else:
            column = clean(column)
        fields[name] = column
    return [str(text) for text in render(fields, TextConfig()).to_pylist()]
