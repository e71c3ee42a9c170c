"""Which runner is the default, what it is told, and how local workers share the cores."""

from __future__ import annotations

import copy
import os
from typing import ClassVar

import apache_beam as beam
import pytest
import torch
from apache_beam.options.pipeline_options import (
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
)
from apache_beam.runners.runner import PipelineResult, PipelineRunner, PipelineState

from pipelines.beam_options import (
    PROCESSES,
    THREADS,
    build_options,
    is_in_process,
    run_pipeline,
    settle_workers,
    single_process,
    unknown_options,
)
from pipelines.errors import UsageError
from pipelines.job import Job
from pipelines.root import Root
from pipelines.settings import parse_settings

L4 = "type:nvidia-l4;count:1;install-nvidia-driver"


def job(*options: str, **resources: dict[str, str]) -> Job:
    settings = parse_settings({"resources": resources})
    return Job(("catalog",), Root("root"), settings, build_options(options))


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


def test_workers_are_processes_by_default() -> None:
    usual = build_options([]).view_as(DirectOptions)
    assert (usual.direct_running_mode, usual.direct_num_workers) == (PROCESSES, 0)
    asked = build_options(["--direct_num_workers=1"]).view_as(DirectOptions)
    assert (asked.direct_running_mode, asked.direct_num_workers) == ("in_memory", 1)
    threads = job("--direct_num_workers=3", f"--direct_running_mode={THREADS}")
    place = threads.options("place").view_as(DirectOptions)
    assert (place.direct_running_mode, place.direct_num_workers) == (THREADS, 3)
    encoder = threads.encoder_options.view_as(DirectOptions)
    assert (encoder.direct_running_mode, encoder.direct_num_workers) == ("in_memory", 1)


@pytest.mark.parametrize(
    ("given", "megabytes", "expected"),
    [
        ([], 500, ("in_memory", 1)),
        ([], 800, (PROCESSES, 3)),
        ([], 9999, (PROCESSES, 4)),
        ([f"--direct_running_mode={THREADS}", "--direct_num_workers=2"], 1, (THREADS, 2)),
        (["--direct_num_workers=1"], 9999, ("in_memory", 1)),
    ],
)
def test_there_are_no_more_workers_than_cores_and_work(
    monkeypatch: pytest.MonkeyPatch, given: list[str], megabytes: int, expected: tuple[str, int]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)))
    before = build_options(given)
    direct = settle_workers(before, megabytes << 20).view_as(DirectOptions)
    assert (direct.direct_running_mode, direct.direct_num_workers) == expected
    sized = Job(("catalog",), Root("root"), parse_settings({}), before).sized(megabytes << 20)
    assert sized.beam.view_as(DirectOptions).direct_num_workers == expected[1]


def test_threads_are_shared_while_a_pipeline_runs_and_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)))
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


def test_options_are_parsed_once_and_stay_one_set() -> None:
    options = build_options(["--direct_num_workers=2", "--job_name=nightly"])
    view = options.view_as(DirectOptions)
    assert options.view_as(DirectOptions) is view
    view.direct_num_workers = 3
    assert options.get_all_options()["direct_num_workers"] == 3
    again = copy.deepcopy(options)
    again.view_as(DirectOptions).direct_num_workers = 4
    assert view.direct_num_workers == 3
    assert again.view_as(GoogleCloudOptions).job_name == "nightly"


def test_what_is_pickled_does_not_hold_whom_a_job_was_submitted_as() -> None:
    options = build_options(["--impersonate_service_account=somebody"])
    assert options.view_as(GoogleCloudOptions).impersonate_service_account == "somebody"
    assert b"somebody" not in repr(options.__getstate__()["_all_options"]).encode()
    assert not any(isinstance(value, PipelineOptions) for value in vars(options).values())


def test_links_ask_dataflow_for_machines_and_no_other_runner() -> None:
    resources = {"embed": {"accelerator": L4}, "place": {"min_ram": "8GB"}}
    cloud = job("--runner=DataflowRunner", "--resource_hints=min_ram=2GB", **resources)
    assert cloud.encoder_hints == {"accelerator": L4}
    asked = {
        link: cloud.options(link).view_as(StandardOptions).resource_hints
        for link in ("read", "embed", "place")
    }
    assert asked == {
        "read": ["min_ram=2GB"],
        "embed": ["min_ram=2GB"],
        "place": ["min_ram=2GB", "min_ram=8GB"],
    }
    for other in ("--runner=FlinkRunner", "--direct_num_workers=2"):
        elsewhere = job(other, **resources)
        assert elsewhere.encoder_hints == {}
        assert not elsewhere.options("place").view_as(StandardOptions).resource_hints


def test_every_link_has_a_name_of_its_own_on_a_cluster() -> None:
    def name(options: PipelineOptions) -> str:
        return str(options.view_as(GoogleCloudOptions).job_name)

    named = job("--runner=FlinkRunner", "--job_name=nightly", "--unheard_of=3")
    assert name(named.options("embed")) == "nightly-embed"
    assert named.options("embed").get_all_options(retain_unknown_options=True)["unheard_of"] == "3"
    assert name(named.beam) == "nightly"
    unnamed = job("--runner=DataflowRunner")
    names = {name(unnamed.options("fit")) for _ in range(2)}
    assert len(names) == 2
    assert all(text.startswith("semid-fit-") for text in names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--runner=DataflowRunner", "--template_location=gs://b/t"],
            "--template_location: a template holds one pipeline, and this command runs several",
        ),
        (["--runner=DaskRunner"], "--runner=DaskRunner loses rows"),
        (
            ["--runner=DataflowRunner", f"--dataflow_service_options=worker_accelerator={L4}"],
            r"worker_accelerator=type:nvidia-l4.* resources\.fit in the configuration asks",
        ),
        (
            ["--runner=DataflowRunner", f"--experiment=worker_accelerator={L4}"],
            r"worker_accelerator=type:nvidia-l4.* leave one of the two out",
        ),
    ],
)
def test_options_that_cannot_work_are_refused(options: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        job(*options, fit={"accelerator": L4})


def test_a_gpu_on_every_worker_is_no_contradiction_alone() -> None:
    job("--runner=DataflowRunner", f"--dataflow_service_options=worker_accelerator={L4}")


class InterruptedRunner(PipelineRunner):
    """A runner whose job goes on while its client is interrupted."""

    cancelled: ClassVar[list[str]] = []

    def run_pipeline(self, pipeline: beam.Pipeline, options: PipelineOptions) -> PipelineResult:
        class Result(PipelineResult):
            def wait_until_finish(self, duration: object = None) -> str:
                raise KeyboardInterrupt

            def cancel(self) -> None:
                InterruptedRunner.cancelled.append("the job")

        return Result(PipelineState.RUNNING)


def test_an_interrupted_client_takes_its_job_with_it() -> None:
    runner = f"{InterruptedRunner.__module__}.{InterruptedRunner.__name__}"
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(
            build_options([f"--runner={runner}"]), lambda root: root | "Nothing" >> beam.Create([1])
        )
    assert InterruptedRunner.cancelled == ["the job"]
