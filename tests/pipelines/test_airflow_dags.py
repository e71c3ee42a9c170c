"""The DAGs, parsed and run by the real Airflow in its own environment."""

from __future__ import annotations

import ast
import dataclasses
import datetime
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

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


SESSION = """
import datetime, json, os, sys
from airflow.dag_processing.dagbag import DagBag
from airflow.utils.db import upgradedb

def answer(value):
    print("ANSWER" + json.dumps(value), flush=True)

upgradedb()
bag = DagBag(sys.argv[1])
answer({"errors": bag.import_errors, "dags": {
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
}})
for line in sys.stdin:
    wanted = json.loads(line)
    os.environ.update(wanted["variables"])
    run = bag.dags[wanted["dag"]].test(
        logical_date=datetime.datetime.fromisoformat(wanted["when"])
    )
    answer({
        "state": run.state,
        "tasks": {
            task.task_id: [task.state, task.try_number] for task in run.get_task_instances()
        },
    })
"""
"""What runs in Airflow's environment: starting Airflow takes longer than most of its runs."""


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


class Airflow:
    """An Airflow with an empty database and the DAGs in its folder, which runs what it is told.

    Attributes:
      parsed: what it read from the DAGs.
    """

    def __init__(self, home: Path) -> None:
        (home / "dags").mkdir()
        shutil.copy(DAGS, home / "dags")
        environment = {
            # Neither this process's packages nor its Airflow settings.
            **{k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "PYTHON"))},
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        }
        self._process = subprocess.Popen(
            [AIRFLOW / "python", "-c", SESSION, str(home / "dags")],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.parsed, _ = self._answer()

    def run(self, dag: str, when: datetime.datetime, settings: dict[str, str]) -> Run:
        """Runs a DAG to its end."""
        wanted = {"dag": dag, "when": when.isoformat(), "variables": settings}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(wanted) + "\n")
        self._process.stdin.flush()
        found, output = self._answer()
        return Run(found["state"], found["tasks"], output)

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()

    def _answer(self) -> tuple[dict[str, Any], str]:
        """Returns the next answer, and everything that was printed before it."""
        assert self._process.stdout is not None
        said: list[str] = []
        for line in self._process.stdout:
            if line.startswith("ANSWER"):
                return json.loads(line.removeprefix("ANSWER")), "".join(said)
            said.append(line)
        raise AssertionError(f"Airflow ended: {''.join(said)[-5000:]}")


@dataclasses.dataclass(frozen=True)
class Run:
    """A DAG run that ended.

    Attributes:
      state: its state.
      tasks: state and number of tries of each task.
      output: everything that Airflow and the tasks said.
    """

    state: str
    tasks: dict[str, list[Any]]
    output: str


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    airflow = Airflow(tmp_path_factory.mktemp("airflow"))
    yield airflow
    airflow.close()


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


@needs_airflow
def test_airflow_parses_the_dags(airflow: Airflow) -> None:
    said = airflow.parsed
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


@pytest.fixture(scope="module")
def night(airflow: Airflow, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """A run of `semid_nightly`, and its folder."""
    folder = tmp_path_factory.mktemp("night")
    rows = vector_rows(CONTENTS)
    write_rows(folder / "a.jsonl", rows[:30])
    write_rows(folder / "b.jsonl", rows[30:])
    return folder, airflow.run("semid_nightly", AS_OF, variables(folder))


@needs_airflow
def test_a_night_publishes_under_its_logical_date(night: tuple[Path, Run]) -> None:
    folder, run = night
    assert run.tasks == {
        "tokenize": ["success", 1],
        "verify": ["success", 1],
        "gc": ["success", 1],
        "feast": ["skipped", 1],  # no repository is named
    }, run.output[-3000:]
    assert run.state == "success"
    assert "is sound" in run.output
    assert set(sids(folder / "root")) == set(CONTENTS)
    assert set(table(folder / "root", "items")["event_timestamp"].to_pylist()) == {AS_OF}
    assert_sound(folder / "root")


@needs_airflow
def test_an_hour_adds_what_is_new(
    night: tuple[Path, Run], airflow: Airflow, tmp_path: Path
) -> None:
    folder = tmp_path / "night"
    shutil.copytree(night[0], folder)
    before = sids(folder / "root")
    write_rows(folder / "b2.jsonl", vector_rows({"item-900": "new"}))
    later = AS_OF + datetime.timedelta(hours=1)
    run = airflow.run("semid_hourly", later, variables(folder))
    assert run.tasks == {"backfill": ["success", 1], "feast": ["skipped", 1]}, run.output[-3000:]
    items = table(folder / "root", "items")
    added = items.filter(pc.equal(items["event_timestamp"], later))
    assert added["item_id"].to_pylist() == ["item-900"]
    assert {name: sid for name, sid in sids(folder / "root").items() if name in before} == before
    assert set(sids(folder / "root")) == {*before, "item-900"}
    assert_sound(folder / "root")


@needs_airflow
def test_a_refusal_is_not_tried_again(airflow: Airflow, tmp_path: Path) -> None:
    settings = variables(tmp_path)
    (tmp_path / "semid.yaml").write_text("encoder: {modle: x}\n")
    write_rows(tmp_path / "a.jsonl", products(3))
    run = airflow.run("semid_nightly", AS_OF + datetime.timedelta(days=1), settings)
    assert run.state == "failed"
    assert run.tasks["tokenize"] == ["failed", 1]
    assert {state for name, (state, _) in run.tasks.items() if name != "tokenize"} == {
        "upstream_failed"
    }
    assert "AirflowFailException: semid refused" in run.output
    assert "encoder.modle: unknown key" in run.output
    assert not (tmp_path / "root").exists()
