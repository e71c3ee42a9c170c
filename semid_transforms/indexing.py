"""What is built over the finished `items` table: trie, nodes, labels and n-gram vocabulary."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np

from models.sid import SidLayout
from models.trie import Trie
from models.trie_build import build_trie
from models.trie_file import read_trie, write_joined_trie, write_trie
from schemas.arrays import matrix_from_list
from schemas.tables import NGRAMS
from semid_transforms import files
from semid_transforms.features import FeatureSet
from semid_transforms.measuring import (
    measure_agreement,
    measure_counts,
    measure_kept,
    measure_sample,
    metrics_bytes,
    quality_table,
    sample_items,
)
from semid_transforms.metering import Meter
from semid_transforms.naming import NameRows
from semid_transforms.nodes import NodeInputs, nodes_name, write_items, write_nodes
from semid_transforms.quantizing import load_tokenizer
from semid_transforms.shard_plan import items_name
from semid_transforms.spreading import Spread


@contextlib.contextmanager
def written_trie(
    items: Sequence[str], path: str, layout: SidLayout, shared: bool
) -> Iterator[Trie]:
    """Builds the trie over `items` parts, in their order, writes it, and gives it, memory-mapped.

    Each part's trie is built alone and laid on local disk; the join is written array by array. So
    memory is that of one part, whatever the catalog.

    Args:
      items: paths of `items` parts in SID order.
      path: of the safetensors file.
      layout: of the SIDs.
      shared: True under policy `none`, where items may have one SID.

    Raises:
      ValueError: SIDs are not sorted, or repeat although they must not.
    """
    with tempfile.TemporaryDirectory(prefix="semid-trie-") as folder:
        tries, rows, last = [], 0, None
        for number, part in enumerate(items):
            sids = files.read_table(part, ["sid"])["sid"].to_numpy()
            if not len(sids):
                continue
            if sids[0] == last and not shared:
                raise ValueError(
                    f"row {rows} of {part} repeats SID {last}, the last of the part before"
                )
            local = os.path.join(folder, f"{number}.safetensors")
            with open(local, "wb") as file:
                write_trie(build_trie([sids], layout, allow_shared=shared), file)
            tries.append(read_trie(local))
            rows, last = rows + len(sids), sids[-1]
        with files.atomic_writer(path) as file:
            write_joined_trie(tries, layout, file)
        if files.is_local(path):
            yield read_trie(path)
        else:
            joined = os.path.join(folder, "joined.safetensors")
            with open(joined, "wb") as file:
                write_joined_trie(tries, layout, file)
            yield read_trie(joined)


def write_vocabulary(
    items: Sequence[str], path: str, layout: SidLayout, features: FeatureSet
) -> int:
    """Writes the `ngrams` table over all items and returns its rows."""

    def chunks() -> Iterator[np.ndarray]:
        for part in items:
            yield matrix_from_list(files.read_table(part, ["codes"])["codes"], layout.num_levels)

    columns = features.load(layout.codebook_sizes)
    return files.write_table(path, NGRAMS, columns.vocabulary(chunks))


@dataclasses.dataclass(frozen=True)
class IndexPaths:
    """Where indexing reads and writes.

    Attributes:
      items: `items` parts in SID order: of the generation, or rows that wait for labels.
      catalog: `catalog` parts.
      embeddings: `embeddings` parts.
      tokenizer_folder: of the tokenizer.
      generation_folder: of the generation.
      scratch_folder: of the run.
      changes: `changes` parts.
    """

    items: tuple[str, ...]
    catalog: tuple[str, ...]
    embeddings: tuple[str, ...]
    tokenizer_folder: str
    generation_folder: str
    scratch_folder: str
    changes: tuple[str, ...] = ()

    def output(self, *names: str) -> str:
        """A path inside the generation."""
        return files.join(self.generation_folder, *names)

    def measured(self, task: str) -> str:
        """Where one of the tasks "sample" and "counts" writes its part of the quality table."""
        return files.join(self.scratch_folder, f"{task}.json")

    def read_measured(self, carried: dict[str, Any]) -> dict[str, Any]:
        """Returns the quality table, once both parts are written; see `quality_table`."""
        sampled, counted = (
            json.loads(files.read_bytes(self.measured(task))) for task in ("sample", "counts")
        )
        return quality_table(carried, sampled, counted)


@dataclasses.dataclass(frozen=True)
class Labelling:
    """How nodes and items are labelled.

    Attributes:
      by_category: by category paths, else by the words of titles.
      every_row: label everything anew, not only what has no label.
      parent_nodes: `nodes` parts whose labels are kept; see `NodeInputs`.
      num_shards: that the hash of item ids cut the catalog into.
    """

    by_category: bool
    every_row: bool
    parent_nodes: tuple[str, ...]
    num_shards: int


@dataclasses.dataclass(frozen=True)
class Measuring:
    """What the quality table says besides counts.

    Attributes:
      distances: whether distances between items are measured; see `carried_quality`.
      leaves: layout of the parent's SIDs when items come from another ID space; then it says which
        codes they kept.
    """

    distances: bool
    leaves: SidLayout | None


class _Index(beam.DoFn):
    """Does some of the tasks of `IndexItems`; "tree" returns the `nodes` parts."""

    def __init__(self, index: IndexItems):
        self._paths = index.paths
        self._layout = index.layout
        self._features = index.features
        self._shared = index.shared
        self._measuring = index.measuring
        self._nodes = index.node_inputs

    def process(self, tasks: str, _: Sequence[str] = ()) -> Iterator[str]:
        """Takes names of tasks, and what has to be written before."""
        for task in tasks.split():
            meter = Meter("index", task)
            started = meter.start()
            meter.done(started, *self._write(task))
            if task == "tree":
                folder = self._paths.output("nodes")
                for depth in range(1, self._layout.num_levels + 1):
                    yield files.join(folder, nodes_name(depth))

    def _write(self, task: str) -> tuple[int, int]:
        """Does a task and returns rows and bytes for its meter."""
        if task == "tree":
            return self._write_tree()
        if task == "ngrams":
            return self._write_ngrams()
        return self._write_counts() if task == "counts" else self._write_sample()

    def _write_tree(self) -> tuple[int, int]:
        """Writes trie and nodes, and returns how many nodes there are and the trie's bytes."""
        paths = self._paths
        path = paths.output("trie", "trie.safetensors")
        with written_trie(paths.items, path, self._layout, self._shared) as trie:
            write_nodes(trie, self._nodes, paths.output("nodes"))
            return sum(trie.num_nodes), files.size(path)

    def _write_ngrams(self) -> tuple[int, int]:
        """Writes the n-gram vocabulary and returns its rows."""
        path = self._paths.output("ngrams", "part-00000.parquet")
        return write_vocabulary(self._paths.items, path, self._layout, self._features), 0

    def _write_counts(self) -> tuple[int, int]:
        """Writes what is counted over all items, and returns how many there are."""
        paths = self._paths
        counted = measure_counts(paths.items, self._layout.codebook_sizes)
        if (leaves := self._measuring.leaves) is not None:
            counted["kept"] = measure_kept(paths.changes, leaves, self._layout)
        files.write_bytes(paths.measured("counts"), metrics_bytes(counted))
        return counted["items"], 0

    def _write_sample(self) -> tuple[int, int]:
        """Writes what is measured on a sample, and returns of how many items it is."""
        paths = self._paths
        if self._measuring.distances:
            quantizer = load_tokenizer(paths.tokenizer_folder)
            sample = sample_items(paths.items, paths.embeddings, paths.catalog, quantizer)
            sampled = measure_sample(sample, quantizer)
        else:
            sampled = measure_agreement(paths.items, paths.catalog, self._layout)
        files.write_bytes(paths.measured("sample"), metrics_bytes(sampled))
        return sampled["sampled_items"], 0


class _WriteItems(beam.DoFn):
    """Writes an `items` part with labels where it had none, unless it is there as it should be."""

    def __init__(self, folder: str, layout: SidLayout, every_row: bool):
        self._folder = folder
        self._layout = layout
        self._every_row = every_row
        self._meter = Meter("index", "labels")

    def process(self, element: tuple[int, str], nodes: Sequence[str] = ()) -> Iterator[str]:
        _, path = element
        started = self._meter.start()
        written = write_items(path, self._folder, sorted(nodes), self._layout, self._every_row)
        if written is not None:
            self._meter.done(started, written.num_rows, written.nbytes)
            yield items_name(path)


@dataclasses.dataclass
class IndexItems(beam.PTransform):
    """Builds trie, nodes and labels, the n-gram vocabulary, and the quality table, side by side.

    Codes of parallel codebooks have no prefixes, so there is no trie, no node and no label of them.
    Returns the names of the `items` parts it wrote.

    Attributes:
      paths: where it reads and writes.
      layout: of the SIDs.
      features: n-gram columns.
      shared: True under policy `none`, where items may have one SID.
      labelling: how nodes and items are labelled.
      measuring: what the quality table says besides counts.
    """

    paths: IndexPaths
    layout: SidLayout
    features: FeatureSet
    shared: bool
    labelling: Labelling
    measuring: Measuring

    @property
    def node_inputs(self) -> NodeInputs:
        """What nodes are described from."""
        scratch, labelling = self.paths.scratch_folder, self.labelling
        return NodeInputs(
            items=self.paths.items,
            names_path=files.join(scratch, "names.parquet"),
            named_folder=files.join(scratch, "named"),
            by_category=labelling.by_category,
            parent_nodes=() if labelling.every_row else labelling.parent_nodes,
        )

    def expand(self, root: beam.pvalue.PBegin) -> beam.PCollection[str]:
        # Two elements of about equal work: a runner shares elements out before it knows how long
        # they take.
        tree = "tree" if self.layout.hierarchical else ""
        tasks = ["sample", f"{tree} ngrams counts"]
        if not self.measuring.distances:
            tasks = ["sample ngrams", f"{tree} counts"]
        spread = root | "Tasks" >> Spread(tasks, str)
        index = _Index(self)
        paths, labelling = self.paths, self.labelling
        numbered = list(enumerate(paths.items))
        parts = root | "Parts" >> Spread(numbered, tuple[int, str])
        write = _WriteItems(paths.output("items"), self.layout, labelling.every_row)
        if not self.layout.hierarchical:
            spread | "Index" >> beam.ParDo(index).with_output_types(str)
            return parts | "WriteItems" >> beam.ParDo(write).with_output_types(str)
        named = parts | "NameRows" >> NameRows(
            catalog={_part_number(path): path for path in paths.catalog},
            num_shards=labelling.num_shards,
            by_category=labelling.by_category,
            every_row=labelling.every_row,
            names_path=self.node_inputs.names_path,
            folder=self.node_inputs.named_folder,
        )
        nodes = spread | "Index" >> beam.ParDo(index, beam.pvalue.AsList(named)).with_output_types(
            str
        )
        return parts | "WriteItems" >> beam.ParDo(
            write, beam.pvalue.AsList(nodes)
        ).with_output_types(str)


def _part_number(path: str) -> int:
    """Returns the number in the name of a part."""
    return int(files.base_name(path).split("-")[1].split(".")[0])
