"""What every stage counts of its work: rows, bytes and milliseconds."""

from __future__ import annotations

import time

from apache_beam.metrics import Metrics


class Meter:
    """Counts what one stage of a link hands on, and how long its elements take.

    A run shows them as `<link>/<stage>-rows`, `-bytes` (as Arrow counts them; 0 where none are) and
    `-milliseconds` (number of elements, sum and largest). Elements run side by side on several
    workers, so the sum can exceed the time of the link.

    Args:
      link: of the chain, `read`, `embed` and so on.
      stage: of the link.
    """

    def __init__(self, link: str, stage: str) -> None:
        self._rows = Metrics.counter(link, f"{stage}-rows")
        self._bytes = Metrics.counter(link, f"{stage}-bytes")
        self._milliseconds = Metrics.distribution(link, f"{stage}-milliseconds")

    def start(self) -> float:
        """Returns the time at which an element begins, to give to `done`."""
        return time.perf_counter()

    def done(self, started: float, rows: int, num_bytes: int) -> None:
        """Counts one element."""
        self._rows.inc(rows)
        self._bytes.inc(num_bytes)
        self._milliseconds.update(round(1000 * (time.perf_counter() - started)))
