"""Cutting batches by shard, the only way rows enter a shuffle.

A shuffle moves batches, not rows: one million rows through a GroupByKey took 14.6 s as elements and
1.7 s as a thousand RecordBatches. `take` copies the rows it picks, so no slice drags its parent.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from models.runs import runs

_GATHERED_BYTES = 16 << 20
"""What a router gathers before it cuts. A batch of 5,000 rows cut into 40 shards would enter the
shuffle in pieces of 125 rows, each with a schema of its own."""


def split_by_shard(
    batch: pa.RecordBatch, shards: np.ndarray
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Cuts a batch into one batch per shard.

    Args:
      batch: N rows.
      shards: (N,) integers, the shard of each row.

    Yields:
      (shard, its rows in their order), ascending by shard; every row exactly once.
    """
    if batch.num_rows == 0:
        return
    order = np.argsort(shards, kind="stable")
    ordered = shards[order]
    for start, stop in zip(*runs(ordered), strict=True):
        yield int(ordered[start]), batch.take(pa.array(order[start:stop]))


def gather(batches: Sequence[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    """Joins the batches of a shard into one; an empty batch of the schema when there are none."""
    if not batches:
        return empty_batch(schema)
    return batches[0] if len(batches) == 1 else pa.concat_batches(list(batches))


def empty_batch(schema: pa.Schema) -> pa.RecordBatch:
    """Returns a batch of no rows."""
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


class Router(beam.DoFn):
    """Gathers batches and cuts them by shard; subclasses say which shard a row belongs to.

    Batches may have several schemas, each with names of its own. One input of two kinds costs a
    runner on one machine less than two: it writes what it flattens once more.
    """

    def start_bundle(self) -> None:
        """Starts with nothing gathered."""
        self._gathered: dict[tuple[str, ...], list[pa.RecordBatch]] = {}
        self._bytes = 0

    @abc.abstractmethod
    def route(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, np.ndarray]:
        """Returns (N rows to send, (N,) integers: the shard of each)."""

    def process(self, element: Any) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Takes a batch; subclasses may take what they make batches of."""
        yield from self.add(element)

    def add(self, batch: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Gathers a batch; sends out what is gathered once it is enough."""
        self._gathered.setdefault(tuple(batch.schema.names), []).append(batch)
        self._bytes += batch.nbytes
        if self._bytes >= _GATHERED_BYTES:
            yield from self._cut()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Sends out the rest."""
        for element in self._cut():
            yield GlobalWindows.windowed_value(element)

    def _cut(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        gathered = self._gathered
        self.start_bundle()
        for batches in gathered.values():
            yield from split_by_shard(*self.route(gather(batches, batches[0].schema)))
