"""Entry point of the Dataflow Flex Template: the whole nightly chain on one worker.

A Flex Template launches exactly one Beam pipeline, and the chain is several, each needing what the
one before it published to ROOT. So the template's pipeline has one element, and the worker that
gets it runs the chain in process: right for catalogs that fit one machine, with or without a GPU.
Larger ones are driven from outside with `semid tokenize --runner=DataflowRunner`, one Dataflow job
per link. A retried worker resumes at the last complete link.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
from collections.abc import Iterator, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.arguments import timestamp
from pipelines.beam_options import build_options
from pipelines.errors import UsageError
from pipelines.job import Job
from pipelines.root import Root
from pipelines.settings import load_settings
from pipelines.summary import outcome_json
from pipelines.tokenize import tokenize

_log = logging.getLogger(__name__)


class _RunChain(beam.DoFn):
    """Runs `semid tokenize` on the worker."""

    def process(self, job: tuple[str, str, str, str]) -> Iterator[str]:
        """Takes (patterns separated by `;`, root, configuration, time); yields the summary.

        Configuration and time may be "".
        """
        patterns, path, config, as_of = job
        root = Root(path)
        settings = load_settings(config or None)
        catalog = tuple(patterns.split(";"))
        outcome = tokenize(Job(catalog, root, settings, build_options([]), _time(as_of)))
        summary = json.dumps(outcome_json(root, outcome))
        _log.info("%s", summary)
        yield summary


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the template's own parameters.

    `flex_template.json` beside this file describes the same parameters to Dataflow, which checks
    them before it starts a machine.
    """
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--catalog", required=True, help="globs, separated by ;")
    parser.add_argument("--root", required=True)
    parser.add_argument("--config", default="")
    parser.add_argument("--as_of", default="", help="ISO 8601 time to stamp rows with")
    return parser


def _time(text: str) -> datetime.datetime | None:
    try:
        return timestamp(text) if text else None
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--as_of: {error}") from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Launches the pipeline with the template's parameters and any Beam options."""
    options, beam_arguments = build_parser().parse_known_args(arguments)
    # What is wrong with these fails the launch, not the worker.
    load_settings(options.config or None)
    _time(options.as_of)
    job = (options.catalog, options.root, options.config, options.as_of)
    with beam.Pipeline(options=PipelineOptions(beam_arguments)) as root:
        (
            root
            | "Job" >> beam.Create([job])
            | "RunChain" >> beam.ParDo(_RunChain()).with_output_types(str)
        )
