"""The DAGs, parsed and run by the real Airflow in its own environment."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import datetime
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cli import main
from tests.pipelines.jobs import (
    AS_OF,
    assert_sound,
    products,
    sids,
    table,
    vector_rows,
    write_rows,
)

ROOT = Path(__file__).resolve().parents[2]
DAGS = ROOT / "pipelines" / "airflow_dags.py"
AIRFLOW = Path(os.environ.get("SEMID_AIRFLOW", ROOT / ".venv-airflow")) / "bin"
needs_airflow = pytest.mark.skipif(
    not AIRFLOW.is_dir(),
    reason="2026-11: needs Airflow in .venv-airflow, which .ci/run installs (docs/running.md)",
)
CONTENTS = {f"item-{number:03d}": f"content {number % 50}" for number in range(60)}


def has_command(name: str) -> bool:
    """True when `semid` has a command of this name."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        pytest.raises(SystemExit) as stop,
    ):
        main([name, "--help"])
    return stop.value.code == 0


PARSE = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(sys.argv[1])
print("RESULT" + json.dumps({"errors": bag.import_errors, "dags": {
    dag.dag_id: {
        "active": dag.max_active_runs, "catchup": dag.catchup,
        "tasks": {
            task.task_id: {
                "limit": task.execution_timeout.total_seconds(), "retries": task.retries,
                "pool": task.pool, "after": sorted(task.upstream_task_ids),
                "command": task.bash_command,
            } for task in dag.tasks
        }
    } for dag in bag.dags.values()
}}))
"""


def imports(path: Path) -> set[str]:
    tree = ast.walk(ast.parse(path.read_text("utf-8")))
    return {
        name.split(".")[0]
        for node in tree
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
        )
    }


def test_airflow_is_imported_by_the_dags_alone_and_they_import_nothing_of_semid():
    assert imports(DAGS) == {"__future__", "airflow", "datetime"}
    for path in (ROOT / "pipelines").glob("*.py"):
        assert path == DAGS or "airflow" not in imports(path)


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of an Airflow with an empty database and the DAGs in its folder."""
    home = tmp_path_factory.mktemp("airflow")
    (home / "dags").mkdir()
    shutil.copy(DAGS, home / "dags")
    environment = {
        # Neither this process's packages nor its Airflow settings.
        **{k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "PYTHON"))},
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
    }
    subprocess.run([AIRFLOW / "airflow", "db", "migrate"], env=environment, check=True)
    return environment


def variables(folder: Path) -> dict[str, str]:
    """Makes the command, a configuration and the Airflow Variables; returns the Variables."""
    command = folder / "semid of this test"
    command.write_text(
        f'#!/bin/sh\ncd "{ROOT}" && PYTHONPATH="{ROOT}" exec "{sys.executable}" -m pipelines "$@"\n'
    )
    command.chmod(0o755)
    (folder / "semid.yaml").write_text(
        "quantizer: {kind: rqkmeans, iterations: 2, codebook_sizes: [16, 16, 16]}\n"
        "gates: {min_perplexity: 0.0}\n"
    )
    return {
        "AIRFLOW_VAR_SEMID_COMMAND": str(command),
        "AIRFLOW_VAR_SEMID_CATALOG": f"{folder}/a*.jsonl {folder}/b*.jsonl",
        "AIRFLOW_VAR_SEMID_ROOT": str(folder / "root"),
        "AIRFLOW_VAR_SEMID_CONFIG": str(folder / "semid.yaml"),
        "AIRFLOW_VAR_SEMID_OPTIONS": "--direct_num_workers=1",
        "AIRFLOW_VAR_SEMID_KEEP": "1",
    }


def run_dag(
    airflow: dict[str, str], settings: dict[str, str], dag: str, when: datetime.datetime
) -> str:
    """Runs a DAG to its end and returns everything it said."""
    done = subprocess.run(
        [AIRFLOW / "airflow", "dags", "test", dag, when.isoformat()],
        env={**airflow, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.stdout


@needs_airflow
def test_airflow_parses_the_dags(airflow: dict[str, str]) -> None:
    parsed = subprocess.run(
        [AIRFLOW / "python", "-c", PARSE, f"{airflow['AIRFLOW_HOME']}/dags"],
        env=airflow,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    said = json.loads(parsed.split("RESULT")[1])
    assert said["errors"] == {}
    dags = said["dags"]
    assert {
        name: {task: found["after"] for task, found in dag["tasks"].items()}
        for name, dag in dags.items()
    } == {
        "semid_nightly": {
            "tokenize": [],
            "verify": ["tokenize"],
            "gc": ["verify"],
            "feast": ["verify"],
        },
        "semid_hourly": {"backfill": [], "feast": ["backfill"]},
    }
    for dag in dags.values():
        assert (dag["active"], dag["catchup"]) == (1, False)
        for task in dag["tasks"].values():
            assert task["pool"] == "semid"
            assert 0 < task["limit"] <= 12 * 3600
            assert 1 <= task["retries"] <= 3


@dataclasses.dataclass(frozen=True)
class Night:
    """A run of `semid_nightly`: its folder, Airflow Variables and everything it said."""

    folder: Path
    settings: dict[str, str]
    output: str

    @property
    def root(self) -> Path:
        return self.folder / "root"


@pytest.fixture(scope="module")
def night(airflow: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Night:
    folder = tmp_path_factory.mktemp("night")
    settings = variables(folder)
    rows = vector_rows(CONTENTS)
    write_rows(folder / "a.jsonl", rows[:30])
    write_rows(folder / "b.jsonl", rows[30:])
    return Night(folder, settings, run_dag(airflow, settings, "semid_nightly", AS_OF))


@needs_airflow
def test_a_night_publishes_under_its_logical_date(night: Night) -> None:
    assert set(sids(night.root)) == set(CONTENTS), night.output[-3000:]
    assert set(table(night.root, "items")["event_timestamp"].to_pylist()) == {AS_OF}
    assert "is sound" in night.output
    assert_sound(night.root)


@needs_airflow
@pytest.mark.xfail(not has_command("gc"), reason="2026-11-22: semid gc is not there", strict=True)
def test_a_night_ends_well(night: Night) -> None:
    assert "state=success" in night.output, night.output[-3000:]
    assert "state=failed" not in night.output


@needs_airflow
@pytest.mark.xfail(
    not has_command("backfill"), reason="2026-11-22: semid backfill is not there", strict=True
)
def test_an_hour_adds_what_is_new(night: Night, airflow: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "night"
    shutil.copytree(night.folder, folder)
    before = sids(folder / "root")
    write_rows(folder / "b2.jsonl", vector_rows({"item-900": "new"}))
    later = AS_OF + datetime.timedelta(hours=1)
    output = run_dag(airflow, variables(folder), "semid_hourly", later)
    assert "state=success" in output, output[-3000:]
    after = sids(folder / "root")
    assert {**after, **before} == after
    assert set(after) == {*before, "item-900"}
    assert_sound(folder / "root")


@needs_airflow
def test_a_refusal_is_not_tried_again(airflow: dict[str, str], tmp_path: Path) -> None:
    settings = variables(tmp_path)
    (tmp_path / "semid.yaml").write_text("encoder: {modle: x}\n")
    write_rows(tmp_path / "a.jsonl", products(3))
    write_rows(tmp_path / "b.jsonl", products(3))
    output = run_dag(airflow, settings, "semid_nightly", AS_OF)
    assert "state=failed" in output
    assert "AirflowFailException" in output
    assert "up_for_retry" not in output
    assert not (tmp_path / "root").exists()
