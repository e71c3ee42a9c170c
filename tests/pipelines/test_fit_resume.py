"""A fit that dies goes on from its checkpoint; a sample beyond memory is streamed."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import UsageError
from pipelines.settings import load_settings
from semid_transforms.fit_checkpoints import FitCheckpoint
from tests.pipelines import jobs

TRAINING = {"steps": 60, "warmup_steps": 10, "evaluate_every": 20, "mine_every": 10}
TINY: dict[str, Any] = {
    "quantizer": {
        "kind": "rqvae",
        "codebook_sizes": [8, 8, 8],
        "latent_dim": 4,
        "hidden": [16],
        "training": {**TRAINING, "batch_size": 64, "decoder_steps": 5},
    },
    "gates": {"min_perplexity": 0.0},
}
STREAMED = jobs.merged(TINY, {"fit": {"sample_rows": 700, "memory_rows": 256}})

DIES_AT_ITS_SECOND_CHECKPOINT = """
import os, signal, sys
from pipelines.cli import main
from semid_transforms import fit_checkpoints

fit_checkpoints.SECONDS_BETWEEN = 0.0
save, saved = fit_checkpoints.FitCheckpoint.save, []

def dying(self, state):
    save(self, state)
    saved.append(state)
    if len(saved) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

fit_checkpoints.FitCheckpoint.save = dying
main(sys.argv[1:])
"""


@pytest.fixture
def catalog(tmp_path: Path) -> str:
    rows = jobs.vector_rows({f"i{number}": number for number in range(600)})
    return jobs.write_rows(tmp_path / "catalog.jsonl", rows)


def tokenizers(root: Path) -> set[str]:
    """Returns the ids of a root's tokenizers, which are digests of their files."""
    return {path.name for path in (root / "tokenizers").iterdir()}


def arguments(tmp_path: Path, catalog: str, root: str, config: dict[str, Any]) -> list[str]:
    """The command line of a fit; its configuration is written to a file first."""
    path = tmp_path / f"{root}.yaml"
    path.write_bytes(jobs.yaml.safe_dump(config).encode())
    places = ["--catalog", catalog, "--root", str(tmp_path / root), "--config", str(path)]
    return ["fit", *places, "--as-of", "2026-03-01"]


@pytest.mark.parametrize("config", [TINY, STREAMED], ids=["in memory", "streamed"])
def test_a_killed_fit_goes_on_and_ends_with_the_same_tokenizer(
    tmp_path: Path, catalog: str, config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert jobs.command(tmp_path, *arguments(tmp_path, catalog, "whole", config)) == 0
    assert "goes on" not in caplog.text
    killed = arguments(tmp_path, catalog, "killed", config)
    done = subprocess.run(
        [sys.executable, "-c", DIES_AT_ITS_SECOND_CHECKPOINT, *killed], check=False
    )
    assert done.returncode == -signal.SIGKILL
    root = tmp_path / "killed"
    assert not (root / "tokenizers").exists()
    assert len(list(root.glob("runs/*/fit/checkpoint/*.safetensors"))) == 1
    with caplog.at_level(logging.INFO):
        assert jobs.command(tmp_path, *killed) == 0
    assert "goes on from the checkpoint" in caplog.text
    assert tokenizers(root) == tokenizers(tmp_path / "whole")
    assert not list(root.glob("runs/*/fit/checkpoint"))


def test_streaming_does_not_depend_on_how_embeddings_are_cut(tmp_path: Path, catalog: str) -> None:
    streamed = arguments(tmp_path, catalog, "streamed", STREAMED)
    assert jobs.command(tmp_path, *streamed) == 0
    rows = jobs.shuffled(jobs.vector_rows({f"i{number}": number for number in range(600)}))
    jobs.write_rows(tmp_path / "cut/a.parquet", rows[:100])
    jobs.write_rows(tmp_path / "cut/b.parquet", rows[100:])
    cut = arguments(tmp_path, str(tmp_path / "cut/*"), "cut", STREAMED)
    assert jobs.command(tmp_path, *cut) == 0
    assert tokenizers(tmp_path / "streamed") == tokenizers(tmp_path / "cut")
    small = jobs.merged(STREAMED, {"fit": {"sample_rows": 256, "memory_rows": 256}})
    assert jobs.command(tmp_path, *arguments(tmp_path, catalog, "small", small)) == 0
    assert tokenizers(tmp_path / "small") != tokenizers(tmp_path / "streamed")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"quantizer": {"kind": "rqkmeans"}}, "rqkmeans is fitted on all rows at once"),
        ({"fit": {"supervise": True}}, "categories of streamed rows are not known"),
    ],
)
def test_what_cannot_be_streamed_is_refused(
    tmp_path: Path, other: dict[str, Any], words: str
) -> None:
    path = tmp_path / "semid.yaml"
    path.write_text(jobs.yaml.safe_dump(jobs.merged(STREAMED, other)))
    with pytest.raises(UsageError, match=rf"more than fit.memory_rows \(256\), and {words}"):
        load_settings(str(path))


def test_a_checkpoint_is_of_one_fit_only(tmp_path: Path) -> None:
    quantizer = jobs.parse_settings(TINY).quantizer
    first = FitCheckpoint.of(str(tmp_path), quantizer, "these rows")
    assert first.load() is None
    first.save(b"too soon after the start")
    assert first.load() is None
    first._last = float("-inf")
    first.save(b"state")
    assert first.load() == b"state"
    for other in (
        FitCheckpoint.of(str(tmp_path), quantizer, "other rows"),
        FitCheckpoint.of(str(tmp_path), jobs.parse_settings({}).quantizer, "these rows"),
    ):
        assert other.load() is None
    first.discard()
    assert first.load() is None
