"""Fitting without publishing, and comparing tokenizers."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.beam_options import build_options
from pipelines.errors import GateRefusedError
from pipelines.fit import fit
from pipelines.job import Job
from pipelines.root import Root
from pipelines.settings import parse_settings
from tests.pipelines import jobs

OTHER = {"quantizer": {"kind": "rqkmeans", "iterations": 3, "codebook_sizes": [8, 8, 8]}}


def fit_on(catalog: str, root: Path, config: dict) -> str:
    """Runs `semid fit` in process and returns the tokenizer's id."""
    settings = parse_settings(jobs.merged(jobs.SETTINGS, config))
    job = Job((catalog,), Root(str(root)), settings, build_options([]), jobs.AS_OF)
    return fit(job).tokenizer_id


@pytest.fixture
def catalog(tmp_path: Path) -> str:
    rows = jobs.vector_rows({f"i{number}": number for number in range(120)})
    return jobs.write_rows(tmp_path / "catalog.jsonl", rows)


def test_fit_publishes_nothing_and_tokenize_takes_its_tokenizer(
    tmp_path: Path, text_config: dict
) -> None:
    root = tmp_path / "root"
    catalog = jobs.write_rows(tmp_path / "products.jsonl", jobs.products(90))
    tokenizer = fit_on(catalog, root, text_config)
    assert not (root / "CURRENT").exists()
    assert not (root / "generations").exists()
    outcome = jobs.run(catalog, root, text_config)
    assert outcome.results["fit"]["fitted"] is False
    assert outcome.manifest.fingerprints.tokenizer == tokenizer
    # What `semid fit` embedded is used, not made again, and its scratch folder goes.
    assert outcome.results["embed"]["counters"].get("embed/texts-encoded", 0) == 0
    assert list((root / "runs").iterdir()) == []
    jobs.assert_sound(root)


def test_a_refused_run_leaves_embeddings_to_the_next_but_not_its_tokenizer(
    tmp_path: Path, text_config: dict
) -> None:
    root = tmp_path / "root"
    catalog = jobs.write_rows(tmp_path / "products.jsonl", jobs.products(90))
    strict = jobs.merged(text_config, {"gates": {"min_perplexity": 1.0}})
    with pytest.raises(GateRefusedError, match="min_perplexity"):
        jobs.run(catalog, root, strict)
    outcome = jobs.run(catalog, root, text_config)
    assert outcome.results["fit"]["fitted"] is True
    assert outcome.results["embed"]["counters"].get("embed/texts-encoded", 0) == 0
    jobs.assert_sound(root)


def test_metrics_compare_tokenizers_and_ids_of_others(
    tmp_path: Path, catalog: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    jobs.run(catalog, root)
    other = fit_on(catalog, root, OTHER)
    peer = tmp_path / "peer.parquet"
    names = [f"i{number}" for number in range(100)]
    codes = [[f"<a_{number % 4}>", f"<b_{number % 5}>"] for number in range(100)]
    pq.write_table(pa.table({"item_id": names, "sid": codes}), peer)
    arguments = ["metrics", "--root", str(root), "--compare", other[:10], str(peer)]
    assert jobs.command(tmp_path, *arguments, "--json") == 0
    compared = json.loads(capsys.readouterr().out)["compared"]
    assert compared["published"]["items"] == 120
    assert [level["codebook_size"] for level in compared[other[:10]]["levels"]] == [8, 8, 8]
    assert compared[str(peer)]["items"] == 100
    assert compared[str(peer)]["items_missing"] == 20
    assert compared[str(peer)]["collisions"]["b"] == 1.0  # 20 tuples for 100 items
    assert jobs.command(tmp_path, *arguments) == 0
    assert "peer.parquet" in capsys.readouterr().out


def test_comparing_with_what_is_not_there_is_refused(tmp_path: Path, catalog: str) -> None:
    root = tmp_path / "root"
    jobs.run(catalog, root)
    bad = tmp_path / "bad.parquet"
    pq.write_table(pa.table({"name": ["a"]}), bad)
    assert jobs.command(tmp_path, "metrics", "--root", str(root), "--compare", "ffff") == 2
    assert jobs.command(tmp_path, "metrics", "--root", str(root), "--compare", str(bad)) == 2
