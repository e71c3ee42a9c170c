"""A tokenizer that categories supervised says what it predicts, and how often it is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.root import Root
from pipelines.show import open_view, show_item
from tests.pipelines import jobs

TRAINING = {"steps": 150, "warmup_steps": 20, "evaluate_every": 50, "mine_every": 50}
CONFIG: dict[str, Any] = {
    "quantizer": {
        "kind": "rqvae",
        "codebook_sizes": [16, 16],
        "latent_dim": 8,
        "hidden": [32],
        "tags": {"rare": 5, "hidden": 16, "alignment": 1.0, "prediction": 1.0},
        "training": {**TRAINING, "batch_size": 128, "decoder_steps": 60, "holdout": 0.2},
    },
    "fit": {"supervise": True},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root whose categories follow from the contents; read only."""
    folder = tmp_path_factory.mktemp("tags")
    rows = jobs.vector_rows({f"i{n:03d}": n for n in range(400)})
    for row in rows:
        top = "left" if row["embedding"][0] < 0 else "right"
        below = "low" if row["embedding"][1] < 0 else "high"
        row["category_path"] = [top, below]
    jobs.run(jobs.write_rows(folder / "catalog.jsonl", rows), folder / "root", CONFIG)
    return folder / "root"


def test_show_predicts_a_path_with_confidence(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    view = open_view(Root(str(root)))
    shown = [show_item(view, f"i{n:03d}", limit=1) for n in range(0, 400, 20)]
    right = 0
    for item in shown:
        first, second = item["predicted_tags"]
        assert first["tag"] in ("left", "right") and " > " in second["tag"]
        assert 0.5 <= first["confidence"] <= 1 and 0.25 <= second["confidence"] <= 1
        right += first["tag"] == item["category_path"][0]
    assert right > 0.65 * len(shown)
    assert jobs.command(root, "show", "--root", str(root), "--item", "i000") == 0
    text = capsys.readouterr().out
    assert f"predicted, depth 1   {shown[0]['predicted_tags'][0]['tag']}" in text
    assert "% sure)" in text


def test_metrics_report_accuracy_on_held_out_items(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert jobs.command(root, "metrics", "--root", str(root), "--json") == 0
    said = json.loads(capsys.readouterr().out)
    accuracy = said["tokenizer"]["tag_accuracy"]
    assert len(accuracy) == 2 and min(accuracy) > 0.6
    assert "tag_accuracy" in said["definitions"]
    assert jobs.command(root, "metrics", "--root", str(root)) == 0
    assert f"right for held-out items: depth 1 {accuracy[0]:.1%}" in capsys.readouterr().out


def test_without_supervision_nothing_is_predicted(
    vector_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    view = open_view(Root(str(vector_root)))
    assert show_item(view, "item-000")["predicted_tags"] is None
    assert jobs.command(vector_root, "metrics", "--root", str(vector_root)) == 0
    assert "held-out items:" not in capsys.readouterr().out
