"""The examples of docs/consumers.md, executed as they are written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.pipelines.jobs import AS_OF, run, sids, table, vector_rows, write_rows

PAGE = Path(__file__).parent.parent / "docs" / "consumers.md"
FEATURES = [{"name": "unigram"}, {"name": "bigram"}, {"name": "prefix_ngram"}]


def blocks(marker: str = "") -> str:
    """Returns the page's blocks of Python that have a marker above them, or none."""
    found = re.findall(r"(?:<!-- (.*?) -->\n)?```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return "\n".join(code for said, code in found if said == marker)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `ids` and `interactions.parquet`."""
    folder = tmp_path_factory.mktemp("consumers")
    contents = {f"item-{number:03d}": f"content {number % 50}" for number in range(60)}
    catalog = write_rows(folder / "catalog.parquet", vector_rows(contents))
    run(catalog, folder / "ids", {"ngrams": FEATURES}, as_of=AS_OF)
    rng = np.random.default_rng(0)
    names = [*contents, "not-in-the-catalog"]
    interactions = {"item_id": rng.choice(names, 500), "label": rng.integers(0, 2, 500)}
    pq.write_table(pa.table(interactions), folder / "interactions.parquet")
    return folder


def execute(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def test_examples_run_and_mean_what_they_say(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = execute(blocks(), folder, monkeypatch)
    items = table(folder / "ids", "items")
    assert sum(count for _, count in names["popular_prefixes"]) == items.num_rows
    assert names["loss"].isfinite()
    assert names["fused"].shape[1:] == (3, 16)
    best = names["found"].tokens[0].tolist()
    assert [items["codes"][int(row)].as_py() for row in names["rows"]] == [b[:3] for b in best]
    in_stock = names["found_in_stock"].leaves
    assert (in_stock >= 0).all()
    assert (in_stock % 2 == 0).all()
    assert (names["leaves"] >= 0).all()


def test_the_feature_store_example_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("feast", reason="2026-11: needs the extra `feast`, which CI installs")
    from pipelines.cli import main

    monkeypatch.chdir(folder)
    assert main(["feast", "--root", "ids", "--repo", "feature_repo", "--quiet"]) == 0
    online = execute(blocks("needs the extra feast"), folder, monkeypatch)["online"]
    published = sids(folder / "ids")
    assert [int(text) for text in online["sid_text"]] == [
        published[name] for name in online["item_id"]
    ]
