"""Beam options of every pipeline in the job, and running one."""

from __future__ import annotations

import builtins
import contextlib
import copy
import dataclasses
import itertools
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    DebugOptions,
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
)
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineState
from threadpoolctl import threadpool_limits

from models.cores import usable_cores
from pipelines.errors import UsageError
from pipelines.local_runner import local_runner
from pipelines.parsed_options import ParsedOptions
from pipelines.worker_processes import (
    THREAD_VARIABLES,
    count_workers,
    kept_workers,
    threads_per_worker,
    worker_processes,
)
from schemas.resources import ResourceConfig
from semid_transforms.coders import handing_on

IN_PROCESS = "FnApiRunner"
"""Beam's own in-process runner. Named explicitly: plain DirectRunner tries to download another
engine first, and hangs behind a firewall."""

THREADS = "multi_threading"
"""Running mode of the in-process runner whose workers are threads of this process."""

PROCESSES = "multi_processing"
"""Running mode of the in-process runner whose workers are processes of this machine."""

_WORKER_OPTIONS = {"--direct_num_workers", "--direct_running_mode"}
_NAMESPACES = frozenset({"read", "diff", "embed", "assign", "place", "index"})


def build_options(arguments: Sequence[str]) -> PipelineOptions:
    """Reads Beam options from the command line.

    Without `--runner` it is the in-process runner, and without a word on its workers they are
    processes of this machine, 0 of them: as many as cores and work allow, see `settle_workers`.
    """
    options = ParsedOptions(list(arguments))
    standard, direct = options.view_as(StandardOptions), options.view_as(DirectOptions)
    if standard.runner is None:
        standard.runner = IN_PROCESS
    given = {argument.partition("=")[0] for argument in arguments}
    if standard.runner == IN_PROCESS and not given & _WORKER_OPTIONS:
        direct.direct_running_mode = PROCESSES
        direct.direct_num_workers = 0
    return options


def settle_workers(options: PipelineOptions, catalog_bytes: int) -> PipelineOptions:
    """Returns options in which 0 worker processes have become a number.

    Args:
      options: as given.
      catalog_bytes: size of the work.
    """
    direct = options.view_as(DirectOptions)
    given = direct.direct_running_mode, direct.direct_num_workers
    if not is_in_process(options) or given != (PROCESSES, 0):
        return options
    workers = count_workers(catalog_bytes)
    if workers == 1:
        return single_process(options)
    settled = copy.deepcopy(options)
    settled.view_as(DirectOptions).direct_num_workers = workers
    return settled


def unknown_options(arguments: Sequence[str]) -> list[str]:
    """Returns the names of options that neither semid nor any Beam runner here knows.

    They are passed on, because a runner may know them, but one of them may be a misspelling.
    """
    options = PipelineOptions(list(arguments))
    known = options.get_all_options()
    return sorted(set(options.get_all_options(retain_unknown_options=True)) - set(known))


def check_options(options: PipelineOptions, resources: ResourceConfig) -> None:
    """Refuses options with which the chain could not run, or would not do what they say.

    Raises:
      UsageError: naming the option, why, and what to do instead.
    """
    runner = (options.view_as(StandardOptions).runner or "").rpartition(".")[2]
    if runner == "DaskRunner":
        raise UsageError(
            "--runner=DaskRunner loses rows without an error (more than one sink, tagged outputs): "
            "use FlinkRunner, SparkRunner, DataflowRunner or the default"
        )
    if options.view_as(GoogleCloudOptions).template_location is not None:
        raise UsageError(
            "--template_location: a template holds one pipeline, and this command runs several, "
            "each built from what the one before it wrote. Leave the option out to run the chain "
            "on Dataflow from here; for a template that runs the whole chain on one worker see "
            "docs/dataflow.md"
        )
    asking = [
        f"resources.{field.name}"
        for field in dataclasses.fields(resources)
        if resources.link(field.name).hints
    ]
    services = options.view_as(GoogleCloudOptions).dataflow_service_options or []
    forced = [text for text in services if text.startswith("worker_accelerator")]
    forced += [text for text in experiments(options) if text.startswith("worker_accelerator")]
    if is_dataflow(options) and asking and forced:
        raise UsageError(
            f"{forced[0]} puts a GPU on every worker of every link, and {', '.join(asking)} in the "
            f"configuration ask{'s' * (len(asking) == 1)} Dataflow to fit workers to stages, which "
            f"excludes it: leave one of the two out"
        )


def experiments(options: PipelineOptions) -> list[str]:
    """Returns the experiments that options name."""
    return list(options.view_as(DebugOptions).experiments or [])


def link_options(
    options: PipelineOptions, link: str, hints: Mapping[str, str], on_gpu: bool
) -> PipelineOptions:
    """Returns the options of one link's pipelines.

    Every pipeline is a job of its own on a cluster, so it gets the link's name: after `--job_name`,
    else after `semid`, and then with digits that no other run has, because Dataflow refuses the
    name of a job that runs.

    Args:
      options: as given.
      link: name of the link.
      hints: resource hints for every stage of it.
      on_gpu: it asks for a GPU. Dataflow starts a process per core, each with a model and a CUDA
        context of its own; one process per machine shares one model between its threads.
    """
    if is_in_process(options):
        return options
    own = copy.deepcopy(options)
    cloud, standard = own.view_as(GoogleCloudOptions), own.view_as(StandardOptions)
    given = cloud.job_name
    cloud.job_name = f"{given}-{link}" if given else f"semid-{link}-{uuid.uuid4().hex[:8]}"
    standard.resource_hints = [
        *(standard.resource_hints or []),
        *(f"{name}={value}" for name, value in hints.items()),
    ]
    if on_gpu:
        own.view_as(DebugOptions).add_experiment("no_use_multiple_sdk_containers")
    return own


def is_dataflow(options: PipelineOptions) -> bool:
    """True when pipelines become Dataflow jobs."""
    return (options.view_as(StandardOptions).runner or "").endswith("DataflowRunner")


def is_in_process(options: PipelineOptions) -> bool:
    """True when the pipeline runs on this machine in Beam's own runner."""
    return options.view_as(StandardOptions).runner == IN_PROCESS


def single_process(options: PipelineOptions) -> PipelineOptions:
    """Returns options for a link that is one element of heavy arithmetic.

    Locally it runs in this process with all its threads: a worker process would have one.
    """
    if not is_in_process(options):
        return options
    alone = ParsedOptions.from_dictionary(options.get_all_options(drop_default=True))
    direct = alone.view_as(DirectOptions)
    direct.direct_num_workers = 1
    direct.direct_running_mode = "in_memory"
    return alone


def run_pipeline(
    options: PipelineOptions, define: Callable[[beam.Pipeline], object]
) -> dict[str, int]:
    """Builds a pipeline, runs it to its end and returns its counters.

    A distribution becomes three: `-elements`, `-sum` and `-max`.

    Raises:
      RuntimeError: the runner ended in any state but DONE.
    """
    options = copy.deepcopy(options)
    with _share_of_cores(options), _runner(options) as runner:
        pipeline = beam.Pipeline(runner=runner, options=options)
        define(pipeline)
        result = pipeline.run()
        try:
            state = result.wait_until_finish()
        except KeyboardInterrupt:
            result.cancel()  # a cluster would go on with a job that nobody waits for
            raise
    if state not in (PipelineState.DONE, None):
        raise RuntimeError(f"the Beam pipeline ended in state {state}")
    counters: dict[str, int] = {}
    found = result.metrics().query()
    for counter in found["counters"]:
        metric = counter.key.metric
        if metric.namespace in _NAMESPACES:
            name = f"{metric.namespace}/{metric.name}"
            counters[name] = counters.get(name, 0) + (counter.committed or counter.attempted or 0)
    for distribution in found["distributions"]:
        metric, value = distribution.key.metric, distribution.committed or distribution.attempted
        if metric.namespace in _NAMESPACES and value is not None:
            name = f"{metric.namespace}/{metric.name}"
            counters[f"{name}-elements"] = counters.get(f"{name}-elements", 0) + value.count
            counters[f"{name}-sum"] = counters.get(f"{name}-sum", 0) + value.sum
            counters[f"{name}-max"] = max(counters.get(f"{name}-max", 0), value.max or 0)
    return counters


def keep_workers(options: PipelineOptions) -> contextlib.AbstractContextManager[None]:
    """Starts the worker processes that options ask for and keeps them for a block's pipelines."""
    return kept_workers(_num_workers(options) if _mode(options) == PROCESSES else 1)


@contextlib.contextmanager
def _runner(options: PipelineOptions) -> Iterator[FnApiRunner | None]:
    """Yields semid's own runner for workers on this machine, None for what Beam makes of options.

    Beam would make workers of its own from the running mode, so it is taken out of the options.
    """
    mode, direct = _mode(options), options.view_as(DirectOptions)
    count = _num_workers(options)
    if is_in_process(options):
        direct.direct_running_mode = "in_memory" if mode is None else "of semid"
        direct.direct_num_workers = count
    if mode is None:
        yield None
        return
    try:
        if mode == THREADS:
            yield local_runner("threads")
        else:
            with worker_processes(count) as processes, processes.watched(), handing_on():
                yield local_runner("processes")
    except RuntimeError as error:
        raise _original(error) from error


def _original(error: RuntimeError) -> Exception:
    """Returns what a worker raised; Beam gives the text of its traceback."""
    trace = str(error).rpartition("Traceback (most recent call last):\n")[2]
    text = "\n".join(itertools.dropwhile(lambda line: line[:1] == " ", trace.splitlines())).strip()
    name, _, message = text.partition(": ")
    type_ = getattr(builtins, name, None)
    if isinstance(type_, type) and issubclass(type_, Exception):
        with contextlib.suppress(TypeError):  # takes more than a message
            return type_(message)
    return RuntimeError(text)


def _mode(options: PipelineOptions) -> str | None:
    """Returns THREADS or PROCESSES, None where there is one worker or another runner."""
    mode: str = options.view_as(DirectOptions).direct_running_mode
    several = is_in_process(options) and _num_workers(options) > 1
    return mode if several and mode in (THREADS, PROCESSES) else None


def _num_workers(options: PipelineOptions) -> int:
    """Returns the number of local workers; 0 asks for one per core."""
    return options.view_as(DirectOptions).direct_num_workers or usable_cores()


@contextlib.contextmanager
def _share_of_cores(options: PipelineOptions) -> Iterator[None]:
    """Gives each local worker its share of the cores while a pipeline runs."""
    if _mode(options) is None:
        yield
        return
    threads = threads_per_worker(_num_workers(options))
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    for name in THREAD_VARIABLES:  # worker processes read these when they load numpy
        os.environ.setdefault(name, str(threads))
    # It takes 1.7 s to import. Where a worker is the first to need it, it reads the variables.
    torch = sys.modules.get("torch")
    own_threads = torch.get_num_threads() if torch else 0
    if torch:
        torch.set_num_threads(threads)  # workers that are threads of this process
    try:
        with threadpool_limits(threads, user_api="blas"):
            yield
    finally:
        if torch:
            torch.set_num_threads(own_threads)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
