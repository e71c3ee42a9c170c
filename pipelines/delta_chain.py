"""The links of a backfill: a few rows in, a generation that is the parent's and delta parts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from models.sid import SidLayout
from pipelines.beam_options import run_pipeline
from pipelines.catalog_input import CatalogInput
from pipelines.chain import BYTES_PER_ITEM, Chain
from pipelines.counting import reject_counts, source_counts
from pipelines.definitions import (
    define_assign,
    define_carry,
    define_find,
    define_index_delta,
    define_place_delta,
    define_read,
)
from pipelines.generation import Outcome, link_tables, table_paths
from pipelines.id_space import IdSpace
from pipelines.job import Job
from pipelines.root import Published
from pipelines.runs import Run
from schemas.tables import (
    CATALOG,
    Change,
    Placement,
    changed_schema,
    items_schema,
    parent_schema,
    reserved_schema,
)
from semid_transforms import files
from semid_transforms.carried_quality import read_carried
from semid_transforms.catalog import has_categories
from semid_transforms.delta_indexing import DeltaPaths, IndexDelta, ParentNodes
from semid_transforms.delta_placing import PlaceDelta, delta_name
from semid_transforms.diffing import (
    CATALOG_GROUP_ROWS,
    find_changed,
    one_row_per_item,
    parts_with_items,
)
from semid_transforms.features import FeatureSet
from semid_transforms.hashing import item_hashes
from semid_transforms.lookup import DropRows, FindRows, matching
from semid_transforms.measuring import metrics_bytes
from semid_transforms.parent import parent_rows
from semid_transforms.routing import empty_batch, gather
from semid_transforms.shard_plan import is_delta
from semid_transforms.tables import WriteTable

_CHANGED_IN_PLACE = (Change.UPDATED.value, Change.MOVED.value)


class DeltaChain:
    """The links of one backfill, in order; each takes the results of those before it."""

    def __init__(
        self, job: Job, run: Run, parent: Published, catalog: CatalogInput, space: IdSpace
    ):
        assert parent.manifest is not None and parent.generation is not None
        self._job = job
        self._run = run
        self._parent = parent
        self._manifest = parent.manifest
        self._chain = Chain(job, run, parent, catalog, space, command="backfill")
        self._reader = catalog.reader
        self._layout = SidLayout.from_json(parent.manifest.fingerprints.layout)
        self._sid_type = pa.from_numpy_dtype(self._layout.dtype)
        self._parent_folder = job.root.folder(parent.generation)

    def read(self) -> dict[str, Any]:
        """Reads, validates and deduplicates the rows given, and keeps what they say anew.

        The parent's items are looked up by id: first in the parts and row groups of `catalog` that
        can hold them; then those whose content differs in `items`, and unknown ones in `reserved`,
        of which the ids are read, and more only where one is found.
        """
        run = self._run
        for folder in (run.scratch("read"), run.output("catalog"), run.output("rejects")):
            files.remove_tree(folder)
        given_folder = run.scratch("read", "given")
        size = sum(source.bytes for source in self._reader.sources)
        rows_per_shard = self._job.settings.job.shards.rows_per_shard
        num_shards = max(1, math.ceil(size / BYTES_PER_ITEM / rows_per_shard))
        run_pipeline(
            self._job.options("read"),
            lambda root: define_read(
                root, self._reader, [], self._layout, num_shards, run, catalog_folder=given_folder
            ),
        )
        self._chain.keep_rejects()
        given = files.list_files(given_folder, ".parquet")
        unchanged, owners = self._find_owners(given)
        changed = sum(
            self._keep_changed(path, unchanged, owners, number) for number, path in enumerate(given)
        )
        counts = source_counts(self._reader, run)
        return {
            "sources": {source: count.to_json() for source, count in counts.items()},
            "rejects": reject_counts(files.list_files(run.output("rejects"))),
            "unchanged": unchanged.num_rows,
            "changed": changed,
            "retired": 0,
        }

    def _find_owners(self, given: list[str]) -> tuple[pa.Table, pa.RecordBatch]:
        """Returns the ids of given items that are live unchanged, and who owns the others' IDs.

        Args:
          given: `CATALOG` parts, every item once.

        Returns:
          A table of item ids, and `parent_schema`, one row per item.
        """
        columns = ("item_id", "content_hash")
        empty = CATALOG.empty_table().select(columns)
        wanted = pa.concat_tables([empty, *(files.read_table(path, columns) for path in given)])
        wanted = wanted.combine_chunks()
        parts = parts_with_items(self._parent_paths("catalog"), item_hashes(wanted["item_id"]))
        live = self._find("catalog", parts, wanted, _columns(CATALOG, columns))
        at = pc.index_in(wanted["item_id"], value_set=live["item_id"].combine_chunks())
        same = pc.equal(live["content_hash"].combine_chunks().take(at), wanted["content_hash"])
        sought = {
            "items": wanted.filter(pc.fill_null(pc.invert(same), False)),
            "reserved": wanted.filter(pc.is_null(at)),
        }
        batches: list[pa.RecordBatch] = []
        for table, schema in self._owner_schemas().items():
            found = self._find(table, self._parent_paths(table), sought[table], schema)
            batches += [parent_rows(batch, self._layout) for batch in found.to_batches()]
        nobody = empty_batch(parent_schema(self._sid_type))
        owners = one_row_per_item(gather([nobody, *batches], nobody.schema))
        return wanted.filter(pc.fill_null(same, False)).select(["item_id"]), owners

    def _owner_schemas(self) -> dict[str, pa.Schema]:
        """Returns what is read of rows that own an ID, per table."""
        names = ["item_id", "content_hash", "sid", "base_codes"]
        held = ["item_id", "content_hash", "sid", "base_sid", "retired_generation"]
        return {
            "items": _columns(items_schema(self._sid_type, ()), names),
            "reserved": _columns(reserved_schema(self._sid_type), held),
        }

    def _find(self, table: str, parts: list[str], wanted: pa.Table, schema: pa.Schema) -> pa.Table:
        """Returns the rows of a published table with the item ids of another."""
        if not parts or not wanted.num_rows:
            return schema.empty_table()
        folder = self._run.scratch("read", "found", table)
        keys_path = files.join(folder, "keys.parquet")
        keys = wanted.select(["item_id"]).combine_chunks()
        files.write_table(keys_path, keys.schema, keys.to_batches())
        find = FindRows(keys_path, tuple(schema.names))
        found = WriteTable(folder, "rows", schema, ("item_id",))
        run_pipeline(self._job.options("read"), lambda root: define_find(root, parts, find, found))
        rows = [path for path in files.list_files(folder, ".parquet") if path != keys_path]
        tables = [schema.empty_table(), *map(files.read_table, rows)]
        return pa.concat_tables(tables).combine_chunks()

    def _keep_changed(
        self, path: str, unchanged: pa.Table, owners: pa.RecordBatch, number: int
    ) -> int:
        """Leaves of one shard's given rows those that are new or changed; returns how many."""
        run = self._run
        catalog = files.read_table(path)
        catalog = catalog.filter(pa.array(~matching(catalog, unchanged))).combine_chunks()
        changed_path = run.scratch("read", "changed", files.base_name(path))
        if not catalog.num_rows:
            files.remove_file(changed_path)
            return 0
        rows = files.read_table(changed_path)
        rows = rows.filter(pa.array(~matching(rows, unchanged))).combine_chunks()
        changed = find_changed(gather(rows.to_batches(), rows.schema), owners)
        files.write_table(changed_path, changed_schema(self._sid_type), [changed])
        appended = run.output("catalog", delta_name(run.generation, number))
        files.write_table(appended, CATALOG, catalog.to_batches(), CATALOG_GROUP_ROWS)
        return changed.num_rows

    def embed(self, read: dict[str, Any]) -> dict[str, Any]:
        """Embeds what is new or changed; carries the parent's embeddings over."""
        return self._chain.embed(read)

    def assign(self, embed: dict[str, Any], fit: dict[str, Any]) -> dict[str, Any]:
        """Quantizes what was embedded."""
        files.remove_tree(self._run.scratch("assign"))
        assign = self._chain.assign_codes(fit["tokenizer_id"])
        run_pipeline(
            self._job.options("assign"),
            lambda root: define_assign(root, embed["parts"], assign),
        )
        return {"shards": self._manifest.shards, "replanned": False}

    def place(
        self, read: dict[str, Any], embed: dict[str, Any], fit: dict[str, Any]
    ) -> dict[str, Any]:
        """Gives the items their IDs and carries every part over that they do not touch.

        A row that changed is written to a delta part and left out of the part it was in, so that
        the parts together always have every item once.
        """
        run, shards = self._run, self._manifest.shards
        for table in ("items", "reserved", "changes"):
            files.remove_tree(run.output(table))
        for folder in ("placed", "dropped"):
            files.remove_tree(run.scratch(folder))
        link_tables(self._job.root, self._parent, run, ("nodes", "ngrams"))
        rows_per_shard = self._job.settings.job.shards.rows_per_shard
        place = PlaceDelta(
            self._chain.place_items(fit["tokenizer_id"], shards, self._features()),
            math.ceil(read["changed"] / rows_per_shard),
        )
        coded = [run.scratch("assign", "codes", part) for part in embed["parts"]]
        counters = run_pipeline(
            self._job.options("place"), lambda root: define_place_delta(root, coded, place)
        )
        changes = self._read_changes()
        in_place = changes.filter(pc.is_in(changes["change"], pa.array(_CHANGED_IN_PLACE)))
        back = changes.filter(pc.equal(changes["old_sid"], changes["new_sid"]))
        back = back.filter(pc.equal(back["change"], Change.NEW.value))
        schema = items_schema(self._sid_type, self._features().names)
        dropped = self._carry("items", schema, _keys(in_place))
        self._carry("reserved", reserved_schema(self._sid_type), _keys(back))
        self._carry("catalog", CATALOG, in_place.select(["item_id"]))
        left = Counter(dropped["placement"].to_pylist())
        return {
            "shards": shards,
            "written": len(self._placed()),
            "dropped": {name.value: left[name.value] for name in Placement},
            "counters": counters,
        }

    def _carry(self, table: str, schema: pa.Schema, keys: pa.Table) -> pa.Table:
        """Links the parent's parts of a table, less the rows of some keys; returns those."""
        run = self._run
        parts = [
            (path, run.output(table, files.base_name(path))) for path in self._parent_paths(table)
        ]
        if not keys.num_rows:
            for source, target in parts:
                files.copy(source, target)
            return schema.empty_table()
        folder = run.scratch("dropped", table)
        keys_path = run.scratch("dropped", f"{table}-keys.parquet")
        keys = keys.combine_chunks()
        files.write_table(keys_path, keys.schema, keys.to_batches())
        bare = [files.base_name(target) for _, target in parts if not is_delta(target)]
        drop = DropRows(
            keys_path,
            by="item_id" if table == "catalog" else "sid",
            keep_empty=frozenset(bare if table == "items" else ()),
        )
        dropped = WriteTable(folder, "rows", schema, ("item_id",))
        run_pipeline(
            self._job.options("place"), lambda root: define_carry(root, parts, drop, dropped)
        )
        tables = [files.read_table(path) for path in files.list_files(folder, ".parquet")]
        return pa.concat_tables([schema.empty_table(), *tables])

    def index(
        self, read: dict[str, Any], fit: dict[str, Any], place: dict[str, Any]
    ) -> dict[str, Any]:
        """Merges the trie, appends what nodes and n-grams gained, and updates the metrics."""
        run = self._run
        files.remove_tree(run.scratch("index"))
        parent_catalog = self._parent_paths("catalog")
        parent = ParentNodes(
            tuple(self._parent_paths("nodes")),
            has_categories([*self._appended("catalog"), *parent_catalog]),
        )
        index = IndexDelta(
            self._delta_paths(),
            delta_name(run.generation, 0),
            self._layout,
            self._features(),
            self._job.settings.job.collisions.policy == "none",
            parent,
        )
        run_pipeline(self._job.options("index"), lambda root: define_index_delta(root, index))
        self._write_metrics(read, fit, place)
        return {"rebuilt": True}

    def publish(self, results: dict[str, dict[str, Any]]) -> Outcome:
        """Writes the manifest and swaps CURRENT."""
        return self._chain.publish(results)

    def _write_metrics(
        self, read: dict[str, Any], fit: dict[str, Any], place: dict[str, Any]
    ) -> None:
        """Carries the quality table over: placements brought up to date, drift measured anew."""
        run = self._run
        before = files.join(self._parent_folder, "metrics.json")
        metrics = read_carried(before, read["changed"])
        written = [files.read_table(path, ["placement"])["placement"] for path in self._placed()]
        added = Counter(name for column in written for name in column.to_pylist())
        placements = {
            name: count - place["dropped"][name] + added[name]
            for name, count in metrics["placements"].items()
        }
        metrics |= {
            "items": sum(placements.values()),
            "placements": placements,
            "drift": self._chain.measure_drift(fit["tokenizer_id"]),
        }
        files.write_bytes(run.output("metrics.json"), metrics_bytes(metrics))

    def _features(self) -> FeatureSet:
        """Returns the n-gram columns, whose learned pieces are carried over with the vocabulary."""
        return FeatureSet(self._job.settings.features, self._chain.spm_path())

    def _delta_paths(self) -> DeltaPaths:
        run = self._run
        return DeltaPaths(
            items=tuple(self._placed()),
            changes=tuple(files.list_files(run.output("changes"), ".parquet")),
            dropped=tuple(files.list_files(run.scratch("dropped", "items"), ".parquet")),
            catalog=tuple(self._appended("catalog")),
            parent_folder=self._parent_folder,
            generation_folder=run.generation_folder,
            scratch_folder=run.scratch("index"),
        )

    def _placed(self) -> list[str]:
        """Returns the `items` rows that were placed, by part, without labels."""
        return files.list_files(self._run.scratch("placed"))

    def _appended(self, table: str) -> list[str]:
        """Returns the parts of a table that this run wrote."""
        start = delta_name(self._run.generation, 0).rsplit("-", 1)[0]
        parts = files.list_files(self._run.output(table), ".parquet")
        return [path for path in parts if files.base_name(path).startswith(f"{start}-")]

    def _read_changes(self) -> pa.Table:
        parts = files.list_files(self._run.output("changes"), ".parquet")
        return pa.concat_tables(files.read_table(path) for path in parts).combine_chunks()

    def _parent_paths(self, table: str) -> list[str]:
        return table_paths(self._job.root, self._parent, table)


def _columns(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    return pa.schema([schema.field(name) for name in names])


def _keys(changes: pa.Table) -> pa.Table:
    """Returns the rows that changes take the place of: item id and SID."""
    return changes.select(["item_id", "old_sid"]).rename_columns(["item_id", "sid"])
