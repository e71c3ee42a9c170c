"""Catalogs, configurations and roots for tests of whole runs."""

from __future__ import annotations

import datetime
import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipelines.backfill import NothingToDo, backfill, overlaid_settings
from pipelines.beam_options import build_options
from pipelines.cli import main
from pipelines.generation import Outcome
from pipelines.job import Job
from pipelines.root import Root
from pipelines.sample_catalog import generate_products
from pipelines.settings import parse_settings
from pipelines.tokenize import tokenize
from pipelines.verify import verify

SETTINGS: dict[str, Any] = {
    "quantizer": {"kind": "rqkmeans", "iterations": 5, "codebook_sizes": [16, 16, 16]},
    "gates": {"min_perplexity": 0.0},
}
DIMENSIONS = 8
AS_OF = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)
TABLES = ("items", "reserved", "nodes", "ngrams", "embeddings", "catalog", "rejects", "changes")


def merged(*parts: dict[str, Any]) -> dict[str, Any]:
    """Joins configurations section by section; later values win, a quantizer replaces another."""
    whole: dict[str, Any] = {}
    for part in parts:
        for section, value in part.items():
            together = isinstance(value, dict) and section != "quantizer"
            whole[section] = {**whole.get(section, {}), **value} if together else value
    return whole


def vector(content: object, dimensions: int = DIMENSIONS) -> list[float]:
    """Returns the embedding of a content: one of 12 centres and noise, both from its hash."""
    digest = hashlib.blake2b(repr(content).encode(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(digest))
    centre = np.random.default_rng(digest[0] % 12).normal(size=dimensions)
    return (centre + 0.4 * rng.normal(size=dimensions)).astype(np.float32).tolist()


def vector_rows(contents: dict[str, Any]) -> list[dict[str, Any]]:
    """Turns {item id: content} into catalog rows that bring their embeddings."""
    return [
        {"item_id": name, "title": f"{content}", "embedding": vector(content)}
        for name, content in contents.items()
    ]


def products(count: int, seed: int = 7) -> list[dict[str, Any]]:
    """Generated products, as rows."""
    return list(generate_products(count, seed))


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    """Writes rows as JSON Lines, or as Parquet when the name says so; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = list(rows)
    if path.suffix == ".parquet":
        table = pa.Table.from_pylist(rows)
        if "embedding" in table.schema.names:
            index = table.schema.get_field_index("embedding")
            column = table["embedding"].cast(pa.list_(pa.float32()))
            table = table.set_column(index, "embedding", column)
        pq.write_table(table, path, row_group_size=50)
    else:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text("".join(lines), "utf-8")
    return str(path)


def shuffled(rows: Sequence[Any], seed: int = 1) -> list[Any]:
    """Returns the rows in another order."""
    return random.Random(seed).sample(rows, len(rows))


def run(
    catalog: str | Sequence[str],
    root: Path,
    config: dict[str, Any] | None = None,
    beam: Sequence[str] = (),
    as_of: datetime.datetime | None = AS_OF,
) -> Outcome:
    """Runs `tokenize` in process."""
    patterns = (catalog,) if isinstance(catalog, str) else tuple(catalog)
    settings = parse_settings(merged(SETTINGS, config or {}))
    return tokenize(Job(patterns, Root(str(root)), settings, build_options(list(beam)), as_of))


def add(
    catalog: str,
    root: Path,
    config: dict[str, Any] | None = None,
    beam: Sequence[str] = (),
    as_of: datetime.datetime | None = AS_OF,
) -> Outcome | NothingToDo:
    """Runs `backfill` in process."""
    _, manifest = Root(str(root)).require_published()
    settings = overlaid_settings(manifest, config or {})
    return backfill(Job((catalog,), Root(str(root)), settings, build_options(list(beam)), as_of))


def command(folder: Path, *arguments: str, config: dict[str, Any] | str | None = None) -> int:
    """Runs the command line; a config is written to a file in the folder first."""
    extra: list[str] = []
    if config is not None:
        path = folder / "semid.yaml"
        path.write_text(config if isinstance(config, str) else yaml.safe_dump(config), "utf-8")
        extra = ["--config", str(path)]
    try:
        return main([*arguments, *extra])
    except SystemExit as stop:  # argparse
        return int(stop.code or 0)


def table(root: Path, name: str, generation: str | None = None) -> pa.Table:
    """Reads a table of a generation, the published one by default, through its manifest."""
    if generation is None:
        generation = Root(str(root)).published().generation
    assert generation is not None
    folder = root / "generations" / generation
    parts = Root(str(root)).manifest(generation).table(name)
    tables = [pq.read_table(folder / part.path) for part in parts]
    return pa.concat_tables(tables).combine_chunks() if tables else pa.table({})


def sids(root: Path, generation: str | None = None) -> dict[str, int]:
    """Returns the SID of every live item."""
    items = table(root, "items", generation)
    assert len(items) == len(set(items["item_id"].to_pylist()))
    return dict(zip(items["item_id"].to_pylist(), items["sid"].to_pylist(), strict=True))


def changes(root: Path) -> dict[str, tuple[str, int | None, int | None]]:
    """Returns {item id: (change, old SID, new SID)}."""
    rows = table(root, "changes").to_pylist()
    found = {r["item_id"]: (r["change"], r["old_sid"], r["new_sid"]) for r in rows}
    assert len(found) == len(rows)
    return found


def reserved(root: Path) -> dict[int, str]:
    """Returns {reserved SID: item id}."""
    return {row["sid"]: row["item_id"] for row in table(root, "reserved").to_pylist()}


def assert_sound(root: Path) -> None:
    """Asserts that `verify` finds nothing, and that it looked at every item."""
    verdict = verify(Root(str(root)))
    assert verdict.problems == []
    assert verdict.checks["embeddings"] >= len(sids(root))


def current(root: Path) -> bytes | None:
    """Returns the bytes of CURRENT, None when nothing is published."""
    path = root / "CURRENT"
    return path.read_bytes() if path.exists() else None


def fingerprints(root: Path, skip: Sequence[str] = ()) -> dict[str, Any]:
    """Returns what must be equal between two undisturbed generations: every table, trie, metrics.

    Embeddings and rejects are compared as sets of rows: their cut into parts is not promised.
    """
    generation = Root(str(root)).published().generation
    assert generation is not None
    folder = root / "generations" / generation
    found: dict[str, Any] = {"generation": generation}
    for name in TABLES:
        if name in skip:
            continue
        rows = table(root, name).to_pylist()
        for row in rows:
            row.pop("source", None)
            if name == "rejects":
                row.pop("detail")
        found[name] = sorted(map(repr, rows)) if name in ("embeddings", "rejects") else rows
    found["trie"] = hashlib.sha256((folder / "trie/trie.safetensors").read_bytes()).hexdigest()
    found["metrics"] = json.loads((folder / "metrics.json").read_text())
    return found
