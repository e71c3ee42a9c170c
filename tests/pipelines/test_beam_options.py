"""Which runner is the default, and how local workers share the cores."""

from __future__ import annotations

import os

import apache_beam as beam
import pytest
import torch
from apache_beam.options.pipeline_options import DirectOptions, StandardOptions

from pipelines.beam_options import (
    build_options,
    is_in_process,
    run_pipeline,
    single_process,
    unknown_options,
)


def test_the_in_process_runner_is_the_default_and_others_pass_through() -> None:
    assert build_options([]).view_as(StandardOptions).runner == "FnApiRunner"
    chosen = build_options(["--runner=DataflowRunner", "--project=p", "--labels=a=b"])
    assert chosen.view_as(StandardOptions).runner == "DataflowRunner"
    assert not is_in_process(chosen)


def test_a_misspelled_option_is_noticed() -> None:
    assert unknown_options(["--confg=a.yaml", "--runner=FlinkRunner", "--labels=a=b"]) == ["confg"]
    assert unknown_options(["--direct_num_workers=2"]) == []


def test_a_heavy_link_runs_in_this_process_only_when_the_runner_is_local() -> None:
    local = build_options(["--direct_num_workers=2", "--direct_running_mode=multi_processing"])
    alone = single_process(local).view_as(DirectOptions)
    assert (alone.direct_num_workers, alone.direct_running_mode) == (1, "in_memory")
    assert local.view_as(DirectOptions).direct_num_workers == 2
    remote = build_options(["--runner=FlinkRunner"])
    assert single_process(remote) is remote


def test_threads_are_shared_while_a_pipeline_runs_and_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    seen = []

    def define(root: beam.Pipeline) -> None:
        seen.append((torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")))
        root | "Nothing" >> beam.Create([])

    run_pipeline(
        build_options(["--direct_num_workers=2", "--direct_running_mode=multi_threading"]), define
    )
    assert seen == [(2, "2")]
    assert torch.get_num_threads() == before
    assert "OMP_NUM_THREADS" not in os.environ
