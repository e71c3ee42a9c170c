"""How the SID space is cut into shards, and which parts of a generation hold a range of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from semid_transforms import files
from semid_transforms.arrow_file import SUFFIX
from semid_transforms.lookup import column_range, overlaps, read_groups
from semid_transforms.routing import gather

DELTA_PREFIX = "delta-"
"""Start of the names of parts that a backfill appended."""


def is_delta(path: str) -> bool:
    """True for a part that a backfill appended."""
    return files.base_name(path).startswith(DELTA_PREFIX)


def part_name(shard: int) -> str:
    """File name of a shard's part."""
    return f"part-{shard:05d}.parquet"


def placed_name(name: str) -> str:
    """File name under which the rows of an `items` part wait for their labels."""
    return name.removesuffix(".parquet") + SUFFIX


def items_name(path: str) -> str:
    """File name of the `items` part that rows, waiting for labels or not, are published in."""
    return files.base_name(path).removesuffix(SUFFIX).removesuffix(".parquet") + ".parquet"


def items_in_order(*folders: str) -> tuple[str, ...]:
    """Returns the paths of `items` rows by part, in SID order.

    Of a part that several folders have, that of the last one counts.
    """
    paths = {items_name(path): path for folder in folders for path in files.list_files(folder)}
    return tuple(paths[name] for name in sorted(paths))


def read_range(paths: Sequence[str], bounds: tuple[int, int], schema: pa.Schema) -> pa.RecordBatch:
    """Reads the rows of Parquet files whose `sid` lies in an inclusive range.

    Returns:
      The columns of `schema`, in file order.
    """
    batches = []
    for path in paths:
        table = read_groups(path, "sid", overlaps(*bounds), schema.names).cast(schema)
        sids = table["sid"].to_numpy().astype(np.uint64)
        inside = (sids >= np.uint64(bounds[0])) & (sids <= np.uint64(bounds[1]))
        if not inside.all():
            table = table.filter(pa.array(inside))
        batches.extend(table.combine_chunks().to_batches())
    return gather(batches, schema)


@dataclasses.dataclass(frozen=True)
class DeltaPart:
    """A part that a backfill appended.

    Attributes:
      path: relative to the generation's folder.
      first: lowest SID in it.
      last: highest SID in it.
    """

    path: str
    first: int
    last: int


@dataclasses.dataclass(frozen=True)
class PartIndex:
    """Which `items` and `reserved` parts of a generation hold a range of SIDs.

    Attributes:
      folder: of the generation.
      starts: first SID of every part, ascending; part k is `part_name(k)`.
      parts: parts that are there, relative to the folder.
      deltas: parts that backfills appended; each may hold any SID.
      release_before: IDs reserved in generations that sort before it count as free.
    """

    folder: str
    starts: tuple[int, ...]
    parts: frozenset[str]
    deltas: tuple[DeltaPart, ...] = ()
    release_before: str = ""

    @classmethod
    def of(
        cls, folder: str, starts: Sequence[int], paths: Sequence[str], release_before: str = ""
    ) -> PartIndex:
        """Looks at the parts of a generation.

        Args:
          folder: of the generation.
          starts: as in its manifest.
          paths: of its `items` and `reserved` parts, relative to the folder; of those that
            backfills appended the statistics are read.
          release_before: see the class.
        """
        deltas = []
        for path in filter(is_delta, paths):
            span = column_range(files.join(folder, *path.split("/")), "sid")
            if span is not None:
                deltas.append(DeltaPart(path, int(span[0]), int(span[1])))
        parts = frozenset(path for path in paths if not is_delta(path))
        return cls(folder, tuple(starts), parts, tuple(deltas), release_before)

    def files(self, table: str, bounds: tuple[int, int]) -> list[str]:
        """Returns the parts of a table that can hold SIDs of an inclusive range."""
        first, last = bounds
        ends = (*self.starts[1:], 1 << 64)
        names = [
            f"{table}/{part_name(part)}"
            for part, (start, end) in enumerate(zip(self.starts, ends, strict=True))
            if start <= last and end > first
        ]
        present = [name for name in names if name in self.parts]
        appended = [
            delta.path
            for delta in self.deltas
            if delta.path.startswith(f"{table}/") and delta.first <= last and delta.last >= first
        ]
        return [files.join(self.folder, *name.split("/")) for name in (*present, *appended)]

    def read_items(self, bounds: tuple[int, int], columns: pa.Schema) -> pa.RecordBatch:
        """Reads columns of the live items in an inclusive range of SIDs."""
        return read_range(self.files("items", bounds), bounds, columns)

    def read_reserved(self, bounds: tuple[int, int], columns: pa.Schema) -> pa.RecordBatch:
        """Reads columns of the reserved IDs in an inclusive range that are not released."""
        schema = columns
        if "retired_generation" not in columns.names:
            schema = columns.append(pa.field("retired_generation", pa.string(), nullable=False))
        rows = read_range(self.files("reserved", bounds), bounds, schema)
        if self.release_before:
            rows = rows.filter(pc.greater_equal(rows["retired_generation"], self.release_before))
        return rows.select(columns.names)

    def read_occupied(self, bounds: tuple[int, int], sid_type: pa.DataType) -> np.ndarray:
        """Reads the sorted uint64 SIDs, live and reserved, in an inclusive range."""
        schema = pa.schema([pa.field("sid", sid_type, nullable=False)])
        rows = [self.read_items(bounds, schema), self.read_reserved(bounds, schema)]
        sids = np.concatenate([batch["sid"].to_numpy().astype(np.uint64) for batch in rows])
        return np.sort(sids)


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """How the SID space is cut.

    Attributes:
      starts: first SID of every shard, ascending, the first is 0; shard k writes part k.
      parent: what the parent generation holds where, None for the first generation.
    """

    starts: tuple[int, ...]
    parent: PartIndex | None = None

    def shard_of(self, sids: np.ndarray) -> np.ndarray:
        """Maps (N,) uint64 SIDs to (N,) int64 shards."""
        starts = np.array(self.starts, np.uint64)
        return np.searchsorted(starts, sids.astype(np.uint64), side="right") - 1

    def bounds(self, shard: int) -> tuple[int, int]:
        """Returns the first SID of a shard and the last one it may hold."""
        last = self.starts[shard + 1] - 1 if shard + 1 < len(self.starts) else (1 << 64) - 1
        return self.starts[shard], last


def shards_to_rewrite(plan: ShardPlan) -> list[int]:
    """Returns the shards that must be written anew although nothing in them changes tonight.

    These are the ones in which backfills left rows in parts of their own, and the ones in which
    reserved IDs are released.
    """
    index = plan.parent
    if index is None:
        return []
    found = []
    for delta in index.deltas:
        path = files.join(index.folder, *delta.path.split("/"))
        found.append(files.read_table(path, ["sid"])["sid"])
    if index.release_before:
        for part in index.parts:
            if part.startswith("reserved/"):
                path = files.join(index.folder, *part.split("/"))
                held = files.read_table(path, ["sid", "retired_generation"])
                released = pc.less(held["retired_generation"], index.release_before)
                found.append(held["sid"].filter(released))
    sids = [column.to_numpy().astype(np.uint64) for column in found]
    shards = plan.shard_of(np.concatenate([np.empty(0, np.uint64), *sids]))
    return np.unique(shards).tolist()
