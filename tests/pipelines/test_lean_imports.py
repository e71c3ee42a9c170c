"""Commands import what they need: starting is most of what a small run costs."""

import json
import subprocess
import sys

from tests.pipelines import jobs

RUN = """
import contextlib, json, sys
from pipelines.cli import main
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(sys.stderr):
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code
    print(json.dumps([code, sorted(sys.modules)]))
"""
ENCODERS = {"sentence_transformers", "transformers", "tokenizers", "openvino", "sklearn"}
CLIENTS = {"pandas", "pymongo", "google.cloud.storage", "google.cloud.bigquery", "tensorboard"}


def imported(*commands: list[str]) -> list[set[str]]:
    """Returns what a fresh process has imported after each command; the first must exit with 0."""
    arguments = [sys.executable, "-c", RUN, json.dumps(commands)]
    output = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    results = [json.loads(line) for line in output.splitlines()]
    assert results[0][0] == 0
    return [set(modules) for _, modules in results]


def test_help_and_usage_errors_load_neither_torch_nor_beam():
    wrong = ["tokenize", "--root", "x"]
    modules = imported(["--help"], wrong, ["show", "--root", "x", "--nope"])
    assert "pipelines.cli" in modules[0]
    assert not modules[-1] & {"torch", "apache_beam", "numpy", "pyarrow", "yaml"}


def test_looking_things_up_loads_neither_torch_nor_clients(vector_root):
    modules = imported(
        ["show", "--root", str(vector_root), "--item", "item-001"],
        ["gc", "--root", str(vector_root), "--keep", "9", "--dry-run"],
    )
    assert not modules[-1] & {"torch", "faiss", "scipy", *ENCODERS, *CLIENTS}


def test_runs_with_ready_embeddings_load_no_encoder(vector_root, vector_catalog, copied, tmp_path):
    root = copied(vector_root)
    changed = [*vector_catalog, *jobs.vector_rows({"item-new": "content 1000"})]
    config = tmp_path / "semid.yaml"
    config.write_text(json.dumps(jobs.SETTINGS), "utf-8")
    as_before, one_more = (
        ["tokenize", "--root", str(root), "--catalog", path, "--config", str(config)]
        for path in (
            str(root.parent / "catalog.parquet"),
            jobs.write_rows(tmp_path / "changed.parquet", changed),
        )
    )
    unchanged, grown = imported(as_before, one_more)
    assert "apache_beam" in unchanged
    assert not unchanged & {"torch", "faiss", "scipy", *ENCODERS, *CLIENTS}
    assert "models.rqkmeans" in grown
    assert not grown & {"torch", "models.autoencoder_training", *ENCODERS, *CLIENTS}
