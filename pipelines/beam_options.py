"""Beam options of every pipeline in the job, and running one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.runners.runner import PipelineState

_log = logging.getLogger(__name__)

IN_PROCESS = "FnApiRunner"
"""Beam's own in-process runner. Named explicitly: plain DirectRunner tries to download another
engine first, and hangs behind a firewall."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def build_options(arguments: Sequence[str]) -> PipelineOptions:
    """Reads Beam options from the command line; the in-process runner without `--runner`."""
    options = PipelineOptions(list(arguments))
    standard = options.view_as(StandardOptions)
    if standard.runner is None:
        standard.runner = IN_PROCESS
    return options


def is_in_process(options: PipelineOptions) -> bool:
    """True when the pipeline runs on this machine in Beam's own runner."""
    return options.view_as(StandardOptions).runner == IN_PROCESS


def single_process(options: PipelineOptions) -> PipelineOptions:
    """Returns options for a link that is one element of heavy arithmetic.

    Locally it runs in this process with all its threads: a worker process would have one.
    """
    if not is_in_process(options):
        return options
    alone = PipelineOptions.from_dictionary(options.get_all_options(drop_default=True))
    direct = alone.view_as(DirectOptions)
    direct.direct_num_workers = 1
    direct.direct_running_mode = "in_memory"
    return alone


def run_pipeline(
    options: PipelineOptions, define: Callable[[beam.Pipeline], object]
) -> dict[str, int]:
    """Builds a pipeline, runs it to its end and returns its counters.

    Raises:
      RuntimeError: the runner ended in any state but DONE.
    """
    _cap_threads(options)
    pipeline = beam.Pipeline(options=options)
    define(pipeline)
    result = pipeline.run()
    state = result.wait_until_finish()
    if state not in (PipelineState.DONE, None):
        raise RuntimeError(f"the Beam pipeline ended in state {state}")
    counters: dict[str, int] = {}
    for counter in result.metrics().query()["counters"]:
        if counter.key.metric.namespace in ("read", "diff", "embed", "assign", "place", "index"):
            name = f"{counter.key.metric.namespace}/{counter.key.metric.name}"
            counters[name] = counters.get(name, 0) + (counter.committed or counter.attempted or 0)
    return counters


def _cap_threads(options: PipelineOptions) -> None:
    """Gives each local worker its share of the cores.

    Two worker processes with default BLAS threads ran 2 to 2.3 times slower than one.
    """
    if not is_in_process(options):
        return
    direct = options.view_as(DirectOptions)
    workers = direct.direct_num_workers or os.cpu_count() or 1
    threads = max(1, (os.cpu_count() or 1) // workers)
    if direct.direct_running_mode == "multi_processing":
        for variable in _THREAD_VARIABLES:  # worker processes read these when they load numpy
            os.environ.setdefault(variable, str(threads))
    elif workers > 1:
        import torch

        torch.set_num_threads(threads)
