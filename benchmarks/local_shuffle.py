"""Do several local workers lose elements: Beam's own, and semid's.

  python -m benchmarks.local_shuffle [--elements 24000] [--kilobytes 16] [--repeats 3]

Random elements with their digests go through one GroupByKey, with two workers that are threads and
with two that are processes. In Beam's own modes (2.77) a timer empties output buffers while they
are written to; semid's have no timer. Fails when semid's lose or change an element.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.beam_options import PROCESSES, THREADS, build_options, run_pipeline

_SOURCES = 40
_DIGEST_BYTES = 32


class _Make(beam.DoFn):
    """Makes elements: random bytes behind their digest."""

    def __init__(self, elements: int, size: int):
        self._elements = elements
        self._size = size

    def process(self, source: int) -> Iterator[tuple[int, bytes]]:
        for number in range(self._elements // _SOURCES):
            data = os.urandom(self._size)
            yield number % 16, hashlib.sha256(data).digest() + data


class _Check(beam.DoFn):
    """Writes how many elements of a key have come, and how many of them unchanged."""

    def __init__(self, folder: str):
        self._folder = folder

    def process(self, element: tuple[int, Iterable[bytes]]) -> None:
        key, values = element
        found = whole = 0
        for value in values:
            found += 1
            digest = hashlib.sha256(value[_DIGEST_BYTES:]).digest()
            whole += digest == value[:_DIGEST_BYTES]
        Path(self._folder, str(key)).write_text(f"{found} {whole}")


def _count(run: Callable[[Any], object], elements: int, size: int) -> str:
    """Runs the pipeline; says how many elements arrived unchanged and in what time."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:

        def define(root: beam.Pipeline) -> None:
            (
                root
                | "Sources" >> beam.Create(range(_SOURCES))
                | "Spread" >> beam.Reshuffle()
                | "Make" >> beam.ParDo(_Make(elements, size)).with_output_types(tuple[int, bytes])
                | "Group" >> beam.GroupByKey()
                | "Check" >> beam.ParDo(_Check(folder))
            )

        try:
            run(define)
        except Exception as error:  # what a damaged element does depends on where it breaks
            return f"failed: {type(error).__name__}"
        counts = [path.read_text().split() for path in Path(folder).iterdir()]
    whole = sum(int(unchanged) for _, unchanged in counts)
    return f"{whole} in {time.monotonic() - started:.1f} s"


def main() -> None:
    """Prints what arrived in every repeat."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=24_000)
    parser.add_argument("--kilobytes", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    elements = options.elements // _SOURCES * _SOURCES
    size = options.kilobytes << 10
    print(f"{elements} elements of {options.kilobytes} KiB, two workers; unchanged ones arrived:")
    for mode in (THREADS, PROCESSES) * options.repeats:
        workers = build_options([f"--direct_running_mode={mode}", "--direct_num_workers=2"])
        beams = _count(functools.partial(_run_plain, workers), elements, size)
        ours = _count(functools.partial(run_pipeline, workers), elements, size)
        print(f"  {mode:<16} Beam {beams:<26} semid {ours}", flush=True)
        if not ours.startswith(f"{elements} "):
            sys.exit("an element was lost or changed")


def _run_plain(options: PipelineOptions, define: Callable[[beam.Pipeline], object]) -> None:
    with beam.Pipeline(options=options) as root:
        define(root)


if __name__ == "__main__":
    main()
