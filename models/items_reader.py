"""Streams interactions joined to the published items table, as torch tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch.utils.data import IterableDataset, get_worker_info

ItemColumn = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class ReaderConfig:
    """What a reader delivers.

    Attributes:
      item_columns: columns of the items table, numbers or lists of numbers (`sid`, `codes`,
        `unigram`, ...).
      interaction_columns: numeric columns of the interactions table (`label`, `timestamp`, ...).
      batch_size: rows per batch before rows of unknown items are left out.
      item_id: name of the join column in the interactions table.
    """

    item_columns: tuple[str, ...]
    interaction_columns: tuple[str, ...] = ()
    batch_size: int = 4096
    item_id: str = "item_id"


class InteractionReader(IterableDataset):
    """Joins an interactions table to `items/` while it streams.

    The wanted item columns are held in memory once (per DataLoader worker); interactions are read
    batch by batch. Interactions with items that are not in the table are left out and counted in
    the batch's `num_unknown`. DataLoader workers share the files row group by row group, so
    nothing is read twice.

    Example:
      config = ReaderConfig(("sid", "bigram"), ("label",))
      reader = InteractionReader(items_parts, ["interactions.parquet"], config)
      for batch in torch.utils.data.DataLoader(reader, batch_size=None, num_workers=2):
          logits = model(batch["bigram"])     # (B, P) int64, as written
          loss = criterion(logits, batch["label"])

    A batch maps each interaction column to (B,), each item column of numbers to (B,), each list
    column whose rows have one length to (B, P), and any other list column to the pair of (V,)
    values and (B + 1,) offsets. Integers stay int64: SIDs beyond 2**53 would not survive a float.
    """

    def __init__(
        self, items: Sequence[str], interactions: Sequence[str], config: ReaderConfig
    ) -> None:
        """Remembers what to read; files are opened by the iterating worker.

        Args:
          items: Parquet files of the items table.
          interactions: Parquet files of the interactions table.
          config: columns and batch size.
        """
        super().__init__()
        self.items = tuple(items)
        self.interactions = tuple(interactions)
        self.config = config

    def __iter__(self) -> Iterator[dict[str, ItemColumn | int]]:
        """Yields batches, those of unknown items only included (they are empty)."""
        columns = ["item_id", *self.config.item_columns]
        table = pa.concat_tables(pq.read_table(path, columns=columns) for path in self.items)
        table = table.combine_chunks()
        # One dictionary for all batches: Arrow's index_in builds its hash table anew in each call,
        # 100 ms for a million items.
        row_of = {item: row for row, item in enumerate(table.column("item_id").to_pylist())}
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        turn = 0
        for path in self.interactions:
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    turn += 1
                    if (turn - 1) % count == number:
                        yield from self._read_group(file, group, table, row_of)

    def _read_group(
        self, file: pq.ParquetFile, group: int, items: pa.Table, row_of: dict[str, int]
    ) -> Iterator[dict[str, ItemColumn | int]]:
        """Yields the batches of one row group."""
        wanted = [self.config.item_id, *self.config.interaction_columns]
        for batch in file.iter_batches(self.config.batch_size, row_groups=[group], columns=wanted):
            ids = batch.column(self.config.item_id).to_pylist()
            rows = pa.array([row_of.get(item) for item in ids], pa.int64())
            known = pc.is_valid(rows)
            rows = rows.filter(known)
            joined: dict[str, ItemColumn | int] = {"num_unknown": len(ids) - len(rows)}
            for name in self.config.interaction_columns:
                joined[name] = _tensor(batch.column(name).filter(known), name)
            for name in self.config.item_columns:
                joined[name] = _column(items.column(name).take(rows), name)
            yield joined


def _column(column: pa.ChunkedArray, name: str) -> ItemColumn:
    """Converts an item column, flat or of lists."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        return _tensor(array, name)
    _refuse_nulls(array, name)
    # flatten respects the offset of a slice; an array's raw values do not.
    values = _tensor(pc.list_flatten(array), name)
    lengths = pc.list_value_length(array).to_numpy(zero_copy_only=False).astype(np.int64)
    if len(lengths) and (lengths == lengths[0]).all():
        return values.view(len(lengths), -1)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return values, torch.from_numpy(offsets)


def _tensor(array: pa.Array, name: str) -> torch.Tensor:
    """Converts a column of numbers or timestamps; integers and times become int64."""
    _refuse_nulls(array, name)
    if pa.types.is_timestamp(array.type):
        array = array.cast(pa.int64())
    if pa.types.is_integer(array.type) and not pa.types.is_uint64(array.type):
        array = array.cast(pa.int64())
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
        raise ValueError(f"column {name} holds {array.type}: only numbers become tensors")
    # A copy: torch takes no read-only memory, and Arrow's is shared.
    return torch.from_numpy(np.array(array.to_numpy(zero_copy_only=False)))


def _refuse_nulls(array: pa.Array, name: str) -> None:
    if array.null_count:
        raise ValueError(f"column {name} has {array.null_count} nulls: fill or drop them first")
