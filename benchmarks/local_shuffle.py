"""Do workers that are threads lose elements: Beam's own, and semid's.

  python -m benchmarks.local_shuffle [--elements 24000] [--kilobytes 16] [--repeats 3]

Random elements with their digests go through one GroupByKey. Beam's `multi_threading` (2.77) lets a
timer empty a worker's output buffer while the worker writes to it; semid's runner has no timer.
Fails when semid's loses or changes one.
"""

from __future__ import annotations

import argparse
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

from pipelines.beam_options import THREADS, build_options, run_pipeline

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
    threads = build_options([f"--direct_running_mode={THREADS}", "--direct_num_workers=2"])
    elements = options.elements // _SOURCES * _SOURCES

    def plain(define: Callable[[beam.Pipeline], None]) -> None:
        with beam.Pipeline(options=threads) as root:
            define(root)

    print(f"{elements} elements of {options.kilobytes} KiB, two workers; unchanged ones arrived:")
    for _ in range(options.repeats):
        size = options.kilobytes << 10
        ours = _count(lambda define: run_pipeline(threads, define), elements, size)
        print(f"  Beam {_count(plain, elements, size):<18} semid {ours}", flush=True)
        if not ours.startswith(f"{elements} "):
            sys.exit("an element was lost or changed")


if __name__ == "__main__":
    main()
