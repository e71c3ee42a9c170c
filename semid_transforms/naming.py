"""What items are called: their category paths, or the words of their titles, as numbers.

Labels are made of numbers, never of text: the names of a catalog are counted once and numbered in
their order, and only the items that need a label are looked up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from semid_transforms import files
from semid_transforms.hashing import hash_shards, item_hashes
from semid_transforms.routing import gather, split_by_shard
from semid_transforms.spreading import Spread

PATH_SEPARATOR = "\x1f"

NAMES = pa.schema(
    [pa.field("name", pa.string(), nullable=False), pa.field("rows", pa.int64(), nullable=False)]
)
"""A name and how many items of the catalog have it, in order of names: a category path joined by
the unit separator, or a word."""

NAMELESS = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("part", pa.int64(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
    ]
)
"""An item whose row in a part of `items` has no labels yet."""

NAMED = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("names", pa.list_(pa.int64()), nullable=False),
    ]
)
"""A row and the numbers of its names: at most one path, or the words of its title, each once."""

# Words of three letters or more, in any script with its vowel signs; numbers and codes name
# nothing.
_BETWEEN_WORDS = r"[^\p{L}\p{M}]+"
_SHORTEST_WORD = 3


@dataclasses.dataclass(frozen=True, eq=False)
class RowNames:
    """Names of rows: row `row[i]` has `name[i]`.

    Attributes:
      row: (V,) int64, ascending.
      name: V strings, distinct within a row.
    """

    row: np.ndarray
    name: pa.StringArray


def row_names(catalog: pa.Table | pa.RecordBatch, by_category: bool) -> RowNames:
    """Returns the names of catalog rows.

    Args:
      catalog: `category_path` or `title` of N rows.
      by_category: names are category paths, else words of titles.
    """
    if by_category:
        paths = _one_array(catalog["category_path"])
        joined = pc.binary_join(paths, PATH_SEPARATOR)
        known = np.flatnonzero(
            pc.greater(pc.fill_null(pc.binary_length(joined), 0), 0).to_numpy(False)
        )
        return RowNames(known, joined.take(pa.array(known)))
    spaced = pc.replace_substring_regex(
        pc.utf8_lower(pc.fill_null(_one_array(catalog["title"]), "")), _BETWEEN_WORDS, " "
    )
    split = pc.split_pattern(spaced, " ")
    words = pc.list_flatten(split)
    long = pc.greater_equal(pc.utf8_length(words), _SHORTEST_WORD)
    row = pc.list_parent_indices(split).filter(long).to_numpy()
    encoded = words.filter(long).dictionary_encode()
    size = max(len(encoded.dictionary), 1)
    pairs = np.unique(row * size + encoded.indices.to_numpy())
    row, number = np.divmod(pairs, size)
    return RowNames(row, encoded.dictionary.take(pa.array(number)))


def _one_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def count_names(batches: Iterable[pa.RecordBatch]) -> pa.RecordBatch:
    """Adds up `NAMES` batches, in order of names."""
    table = (
        pa.Table.from_batches(list(batches), NAMES).group_by("name").aggregate([("rows", "sum")])
    )
    table = table.sort_by("name").combine_chunks()
    columns = [pa.array([], field.type) for field in NAMES]
    if table.num_rows:
        columns = [table["name"].chunk(0), table["rows_sum"].chunk(0)]
    return pa.RecordBatch.from_arrays(columns, schema=NAMES)


class _CountNames(beam.DoFn):
    """Counts the names of a catalog part."""

    def __init__(self, by_category: bool):
        self._by_category = by_category

    def process(self, path: str) -> Iterator[tuple[int, pa.RecordBatch]]:
        column = "category_path" if self._by_category else "title"
        with files.parquet_file(path) as file:
            for batch in file.iter_batches(columns=[column]):
                names = row_names(batch, self._by_category).name
                ones = pa.array(np.ones(len(names), np.int64))
                yield 0, count_names([pa.RecordBatch.from_arrays([names, ones], schema=NAMES)])


class _WriteNames(beam.DoFn):
    """Writes the names of the whole catalog."""

    def __init__(self, path: str):
        self._path = path

    def process(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[str]:
        files.write_table(self._path, NAMES, [count_names(element[1])])
        yield self._path


class _FindNameless(beam.DoFn):
    """Sends rows of an `items` part without labels to the catalog part that has their names."""

    def __init__(self, num_shards: int, every_row: bool):
        self._num_shards = num_shards
        self._every_row = every_row

    def process(self, element: tuple[int, str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        part, path = element
        table = files.read_table(path, ["item_id", "path_labels"])
        rows = np.flatnonzero(without_labels(table["path_labels"], self._every_row))
        item_ids = _one_array(table["item_id"].take(pa.array(rows)))
        batch = pa.RecordBatch.from_arrays(
            [item_ids, pa.array(np.full(len(rows), part)), pa.array(rows)], schema=NAMELESS
        )
        return split_by_shard(batch, hash_shards(item_hashes(item_ids), self._num_shards))


def without_labels(column: pa.Array | pa.ChunkedArray, every_row: bool) -> np.ndarray:
    """Returns which rows need labels, (N,) bool."""
    if every_row:
        return np.ones(len(column), bool)
    return pc.equal(pc.list_value_length(_one_array(column)), 0).to_numpy(zero_copy_only=False)


class _NumberNames(beam.DoFn):
    """Looks the names of items up in their catalog part."""

    def __init__(self, catalog: dict[int, str], by_category: bool):
        self._catalog = catalog
        self._by_category = by_category
        self._numbers: dict[str, pa.Array] = {}

    def process(
        self, element: tuple[int, Iterable[pa.RecordBatch]], names_path: str
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        shard, batches = element
        if names_path not in self._numbers:
            self._numbers = {names_path: _one_array(files.read_table(names_path, ["name"])["name"])}
        wanted = gather(list(batches), NAMELESS)
        column = "category_path" if self._by_category else "title"
        catalog = files.read_table(self._catalog[shard], ["item_id", column])
        rows = pc.index_in(wanted["item_id"], value_set=_one_array(catalog["item_id"]))
        found = row_names(catalog.take(rows), self._by_category)
        numbers = pc.index_in(found.name, value_set=self._numbers[names_path])
        offsets = np.searchsorted(found.row, np.arange(wanted.num_rows + 1))
        named = pa.RecordBatch.from_arrays(
            [
                wanted["row"],
                pa.ListArray.from_arrays(
                    pa.array(offsets, pa.int32()), pc.cast(numbers, pa.int64())
                ),
            ],
            schema=NAMED,
        )
        return split_by_shard(named, wanted["part"].to_numpy())


class _WriteNamed(beam.DoFn):
    """Writes the named rows of an `items` part, in their order."""

    def __init__(self, folder: str):
        self._folder = folder

    def process(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[str]:
        part, batches = element
        rows = gather(list(batches), NAMED)
        path = files.join(self._folder, f"{part:05d}.parquet")
        files.write_table(path, NAMED, [rows.take(pc.sort_indices(rows["row"]))])
        yield path


@dataclasses.dataclass
class NameRows(beam.PTransform):
    """Numbers the names of the catalog and of the items that need labels.

    Takes `items` parts as (number, path); returns the paths written: that of the `NAMES` table and,
    in `folder`, one `NAMED` file per part with rows to label, called by the part's number.

    Attributes:
      catalog: `catalog` parts by shard of their item ids' hash.
      num_shards: of the hash.
      by_category: names are category paths, else words of titles.
      every_row: label rows that have labels too.
      names_path: of the `NAMES` table.
      folder: of the `NAMED` files.
    """

    catalog: dict[int, str]
    num_shards: int
    by_category: bool
    every_row: bool
    names_path: str
    folder: str

    def expand(self, items: beam.PCollection[tuple[int, str]]) -> beam.PCollection[str]:
        keyed = tuple[int, pa.RecordBatch]
        names = (
            items.pipeline
            | "Catalog" >> Spread(sorted(self.catalog.values()), str)
            | "CountNames" >> beam.ParDo(_CountNames(self.by_category)).with_output_types(keyed)
            | "GroupNames" >> beam.GroupByKey()
            | "WriteNames" >> beam.ParDo(_WriteNames(self.names_path)).with_output_types(str)
        )
        return (
            items
            | "FindNameless"
            >> beam.ParDo(_FindNameless(self.num_shards, self.every_row)).with_output_types(keyed)
            | "GroupByItem" >> beam.GroupByKey()
            | "NumberNames"
            >> beam.ParDo(
                _NumberNames(self.catalog, self.by_category), beam.pvalue.AsSingleton(names)
            ).with_output_types(keyed)
            | "GroupByPart" >> beam.GroupByKey()
            | "WriteNamed" >> beam.ParDo(_WriteNamed(self.folder)).with_output_types(str)
        )
