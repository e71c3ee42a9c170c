"""Re-checking every invariant of a generation from its files alone.

The numbers in front of problems are those of the list in `docs/format.md`:
1 rows balance, 2 items are sound, 3 the trie is the items, 4 parents keep their IDs, 5 codes follow
from embeddings, 6 the generation is complete and unaltered, 7 it was made with what it says.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.ngrams import NgramFeature, ngram_ids
from models.quantizer import Quantizer
from models.sid import SidLayout, format_codes
from models.tokenizers import tokenizer_id
from models.trie import Trie
from models.trie_file import read_trie
from pipelines.errors import UsageError
from pipelines.root import Root
from schemas.arrays import matrix_from_list
from schemas.config import fingerprint
from schemas.manifest import Manifest
from schemas.rejects import RejectReason
from schemas.tables import (
    CATALOG,
    NGRAMS,
    REJECTS,
    Change,
    Placement,
    changes_schema,
    embedding_schema,
    items_schema,
    nodes_schema,
    reserved_schema,
)
from semid_transforms import files
from semid_transforms.quantizing import TOKENIZER_FILES, load_tokenizer

_ENCODED_ROWS = 1 << 14
_MOST_PER_CHECK = 5


@dataclasses.dataclass(frozen=True)
class Problem:
    """One broken invariant.

    Attributes:
      invariant: its number.
      detail: what is wrong, naming the item, row or file.
    """

    invariant: int
    detail: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What verification found.

    Attributes:
      generation: that was verified.
      checks: names of the checks that ran, with the number of rows or files each looked at.
      problems: empty when every invariant holds.
    """

    generation: str
    checks: dict[str, int]
    problems: list[Problem]

    def to_json(self) -> dict[str, Any]:
        """Returns the verdict as plain JSON values."""
        return {**dataclasses.asdict(self), "ok": not self.problems}


def verify(root: Root, generation: str | None = None) -> Verdict:
    """Checks a generation, the published one by default.

    Raises:
      UsageError: there is no such complete generation, or nothing is published.
    """
    if generation is None:
        generation, manifest = root.require_published()
    else:
        manifest = root.manifest(generation)
    checker = _Checker(root, generation, manifest)
    checker.run()
    return Verdict(generation, checker.checks, checker.problems)


class _Checker:
    """Runs the checks in an order in which each may rely on those before it."""

    def __init__(self, root: Root, generation: str, manifest: Manifest):
        self._root = root
        self._manifest = manifest
        self._folder = root.folder(generation)
        self.checks: dict[str, int] = {}
        self.problems: list[Problem] = []

    def run(self) -> None:
        """Runs every check; stops early only where nothing further could be read."""
        damaged = len(self.problems)
        self._check("files", 6, self._check_files)
        if len(self.problems) > damaged:
            return  # tables that are not what was written cannot be judged
        layout = SidLayout.from_json(self._manifest.fingerprints.layout)
        self._check("schemas", 2, lambda: self._check_schemas(layout))
        if len(self.problems) > damaged:
            return
        self._check("rows per source", 1, self._check_sources)
        self._check("rejects", 1, self._check_rejects)
        items = self._read("items")
        self._check("items", 2, lambda: self._check_items(items, layout))
        self._check("n-gram columns", 2, lambda: self._check_features(items, layout))
        self._check("catalog", 2, lambda: self._check_catalog(items))
        self._check("trie", 3, lambda: self._check_trie(items, layout))
        self._check("nodes", 3, lambda: self._check_nodes(layout))
        self._check("n-gram vocabulary", 3, lambda: self._check_vocabulary(items))
        self._check("reserved", 4, lambda: self._check_reserved(items))
        self._check("changes", 4, lambda: self._check_changes(items))
        self._check("parent", 4, lambda: self._check_parent(items))
        tokenizer = self._check_tokenizer(layout)
        if tokenizer is not None:
            self._check("embeddings", 5, lambda: self._check_embeddings(items, tokenizer))

    def _check(self, name: str, invariant: int, check: Callable[[], Iterator[str | int]]) -> None:
        """Runs one check; it yields problems as text and, as a number, what it looked at."""
        shown = 0
        for found in check():
            if isinstance(found, int):
                self.checks[name] = found
                continue
            shown += 1
            if shown <= _MOST_PER_CHECK:
                self.problems.append(Problem(invariant, f"{name}: {found}"))
        if shown > _MOST_PER_CHECK:
            self.problems.append(
                Problem(invariant, f"{name}: and {shown - _MOST_PER_CHECK} more problems")
            )

    def _path(self, name: str) -> str:
        return files.join(self._folder, *name.split("/"))

    def _read(self, table: str, columns: list[str] | None = None) -> pa.Table:
        parts = self._manifest.table(table)
        tables = [files.read_table(self._path(part.path), columns) for part in parts]
        return pa.concat_tables(tables).combine_chunks() if tables else pa.table({})

    def _check_files(self) -> Iterator[str | int]:
        for entry in self._manifest.files:
            path = self._path(entry.path)
            if not files.exists(path):
                yield f"{entry.path} is missing"
                continue
            if (size := files.size(path)) != entry.bytes:
                yield f"{entry.path} has {size} bytes, the manifest says {entry.bytes}"
            elif files.sha256(path) != entry.sha256:
                yield f"{entry.path} was altered: its sha256 differs from the manifest's"
            elif entry.rows is not None:
                with files.parquet_file(path) as file:
                    if file.metadata.num_rows != entry.rows:
                        yield (
                            f"{entry.path} has {file.metadata.num_rows} rows, the manifest says "
                            f"{entry.rows}"
                        )
        yield len(self._manifest.files)

    def _check_schemas(self, layout: SidLayout) -> Iterator[str | int]:
        sid_type = pa.from_numpy_dtype(layout.dtype)
        features = [feature["name"] for feature in self._manifest.config["ngrams"]]
        expected = {
            "items": items_schema(sid_type, features),
            "reserved": reserved_schema(sid_type),
            "nodes": nodes_schema(sid_type),
            "ngrams": NGRAMS,
            "embeddings": embedding_schema(),
            "catalog": CATALOG,
            "rejects": REJECTS,
            "changes": changes_schema(sid_type),
        }
        parts = [(table, part) for table in expected for part in self._manifest.table(table)]
        for table, part in parts:
            with files.parquet_file(self._path(part.path)) as file:
                if not file.schema_arrow.equals(expected[table]):
                    yield f"{part.path}: schema is {file.schema_arrow}, expected {expected[table]}"
        yield len(parts)

    def _check_sources(self) -> Iterator[str | int]:
        for source, counts in self._manifest.sources.items():
            if not counts.balanced:
                yield f"{source}: {counts.read} rows read are not {counts}"
        total = self._manifest.total
        if total.live != self._manifest.counts["items"]:
            yield f"{total.live} live rows but {self._manifest.counts['items']} items"
        yield len(self._manifest.sources)

    def _check_rejects(self) -> Iterator[str | int]:
        rejects = self._read("rejects")
        known = [reason.value for reason in RejectReason]
        if rejects.num_rows:
            wrong = rejects.filter(pc.invert(pc.is_in(rejects["reason"], pa.array(known))))
            for row in wrong.to_pylist():
                yield f"item {row['item_id']!r} of {row['source']} has no reason: {row['reason']!r}"
            counts = {
                row["values"]: row["counts"]
                for row in pc.value_counts(rejects["source"]).to_pylist()
            }
        else:
            counts = {}
        for source, expected in self._manifest.sources.items():
            if counts.get(source, 0) != expected.rejected:
                yield (
                    f"{source}: {counts.get(source, 0)} rejected rows are kept, "
                    f"{expected.rejected} were counted"
                )
        yield rejects.num_rows

    def _check_items(self, items: pa.Table, layout: SidLayout) -> Iterator[str | int]:
        ids = items["item_id"]
        yield from (f"item_id {name!r} occurs twice" for name in _repeated(ids))
        codes = matrix_from_list(items["codes"], layout.num_levels)
        base = matrix_from_list(items["base_codes"], layout.num_levels)
        sids = items["sid"].to_numpy()
        suffix = items["suffix"].to_numpy()
        for name, matrix in (("codes", codes), ("base_codes", base)):
            bad = ((matrix < 0) | (matrix >= np.array(layout.codebook_sizes))).any(axis=1)
            for row in np.flatnonzero(bad):
                yield f"item {ids[row].as_py()!r}: {name} {format_codes(matrix[row])} out of range"
            if bad.any():
                return
        for row in np.flatnonzero(layout.pack(codes, suffix) != sids):
            yield (
                f"item {ids[row].as_py()!r}: sid {sids[row]} is not the packing of "
                f"{format_codes(codes[row], suffix[row])}"
            )
        shared = self._manifest.config["collisions"]["policy"] == "none"
        out_of_order = sids[1:] < sids[:-1] if shared else sids[1:] <= sids[:-1]
        for row in np.flatnonzero(out_of_order):
            yield (
                f"items {ids[row].as_py()!r} and {ids[row + 1].as_py()!r} are not in strict SID "
                f"order: {sids[row]}, {sids[row + 1]}"
            )
        names = pa.array([placement.value for placement in Placement])
        for row in items.filter(pc.invert(pc.is_in(items["placement"], names))).to_pylist():
            yield f"item {row['item_id']!r} has placement {row['placement']!r}"
        nearest = _mask(pc.equal(items["placement"], Placement.NEAREST.value))
        settled = (codes == base).all(axis=1) & (suffix == 0)
        first = _mask(pc.equal(items["first_generation"], self._manifest.generation))
        for row in np.flatnonzero(nearest & ~settled & first):
            yield f"item {ids[row].as_py()!r} is called nearest but is not on its base codes"
        other = pc.not_equal(items["tokenizer_id"], self._manifest.fingerprints.tokenizer)
        for row in items.filter(other).to_pylist():
            yield f"item {row['item_id']!r} comes from tokenizer {row['tokenizer_id'][:16]}"
        yield items.num_rows

    def _check_features(self, items: pa.Table, layout: SidLayout) -> Iterator[str | int]:
        codes = matrix_from_list(items["codes"], layout.num_levels)
        for value in self._manifest.config["ngrams"]:
            feature = NgramFeature(**value)
            expected = ngram_ids(codes, layout.codebook_sizes, feature)
            stored = matrix_from_list(items[feature.name], expected.shape[1])
            for row in np.flatnonzero((stored != expected).any(axis=1)):
                yield (
                    f"item {items['item_id'][row].as_py()!r}: {feature.name} is "
                    f"{stored[row].tolist()}, its codes give {expected[row].tolist()}"
                )
        yield items.num_rows

    def _check_catalog(self, items: pa.Table) -> Iterator[str | int]:
        catalog = self._read("catalog", ["item_id", "content_hash"])
        yield from _compare_keys(items, catalog, "items", "catalog")
        yield catalog.num_rows

    def _check_trie(self, items: pa.Table, layout: SidLayout) -> Iterator[str | int]:
        trie = self._read_trie()
        sids = items["sid"].to_numpy()
        if trie.layout != layout:
            yield f"its layout is {trie.layout}, the manifest's is {layout}"
            return
        if trie.num_rows != len(sids):
            yield f"{trie.num_rows} rows, items has {len(sids)}"
            return
        leaves = trie.leaf_sids()
        if trie.row_start is not None:
            starts = trie.row_start.astype(np.int64)
            leaves = np.repeat(leaves, starts[1:] - starts[:-1])
        for row in np.flatnonzero(leaves != sids):
            yield (
                f"leaf {row} is {leaves[row]}, item {items['item_id'][row].as_py()!r} in that row "
                f"has {sids[row]}"
            )
        yield len(sids)

    def _check_nodes(self, layout: SidLayout) -> Iterator[str | int]:
        nodes = self._read("nodes")
        trie = self._read_trie()
        start = 0
        for depth in range(1, layout.num_levels + 1):
            expected = trie.node_table(depth)
            stop = start + len(expected.prefixes)
            rows = nodes.slice(start, stop - start)
            wrong = (
                rows.num_rows != stop - start
                or (
                    (rows["depth"].to_numpy() != depth)
                    | (rows["prefix"].to_numpy() != expected.prefixes.astype(layout.dtype))
                    | (rows["item_count"].to_numpy() != expected.item_counts)
                ).any()
            )
            if wrong:
                yield f"the nodes of depth {depth} are not those of the trie"
                return
            start = stop
        if start != nodes.num_rows:
            yield f"{nodes.num_rows} nodes, the trie has {start}"
        yield nodes.num_rows

    def _check_vocabulary(self, items: pa.Table) -> Iterator[str | int]:
        ngrams = self._read("ngrams")
        for value in self._manifest.config["ngrams"]:
            name = value["name"]
            rows = ngrams.filter(pc.equal(ngrams["feature"], name))
            stored = rows.group_by("id").aggregate([("item_count", "sum")]).sort_by("id")
            ids, counts = np.unique(pc.list_flatten(items[name]).to_numpy(), return_counts=True)
            if not (
                np.array_equal(stored["id"].to_numpy(), ids)
                and np.array_equal(stored["item_count_sum"].to_numpy(), counts)
            ):
                yield f"{name}: ids or item counts are not those of the items"
        yield ngrams.num_rows

    def _check_reserved(self, items: pa.Table) -> Iterator[str | int]:
        reserved = self._read("reserved", ["item_id", "sid"])
        if reserved.num_rows and self._manifest.config["collisions"]["policy"] != "none":
            taken = reserved.filter(pc.is_in(reserved["sid"], items["sid"].combine_chunks()))
            for row in taken.to_pylist():
                yield f"SID {row['sid']} is reserved for {row['item_id']!r} but another item has it"
            yield from (f"SID {sid} is reserved twice" for sid in _repeated(reserved["sid"]))
        yield reserved.num_rows

    def _check_changes(self, items: pa.Table) -> Iterator[str | int]:
        """What changes/ announces is what items/ has, and every new item is announced."""
        changes = self._read("changes")
        counts = dict.fromkeys((change.value for change in Change), 0)
        announced = pa.array([], pa.string())
        if changes.num_rows:
            for row in pc.value_counts(changes["change"]).to_pylist():
                counts[row["values"]] = row["counts"]
            now, new = _lookup(items, changes["item_id"], "sid"), changes["new_sid"]
            same = pc.or_(_mask(pc.equal(now, new)), pc.and_(now.is_null(), new.is_null()))
            for row in changes.filter(pc.invert(same)).to_pylist():
                yield f"changes/ says item {row['item_id']!r} has SID {row['new_sid']}"
            announced = changes["item_id"].combine_chunks()
        for change, count in counts.items():
            if count != self._manifest.counts.get(change, 0):
                yield f"{count} items are {change}, the manifest counts {self._manifest.counts}"
        first = pc.equal(items["first_generation"], self._manifest.generation)
        here = items["item_id"].filter(first)
        for name in here.filter(pc.invert(pc.is_in(here, announced))).to_pylist():
            yield f"item {name!r} is live since this generation, and changes/ does not say so"
        yield changes.num_rows

    def _check_parent(self, items: pa.Table) -> Iterator[str | int]:
        parent = self._manifest.parent
        if parent is None:
            return
        try:
            before = self._root.manifest(parent)
        except UsageError:
            self.checks["parent (no longer kept)"] = 0
            return
        folder, columns = self._root.folder(parent), ["item_id", "sid"]
        old, kept_back = (
            pa.concat_tables(
                [
                    items.schema.empty_table().select(columns),
                    *(
                        files.read_table(files.join(folder, *part.path.split("/")), columns)
                        for part in before.table(table)
                    ),
                ]
            ).combine_chunks()
            for table in ("items", "reserved")
        )
        now = _lookup(items, old["item_id"], "sid")
        kept = _mask(pc.equal(now, old["sid"]))
        changes = self._read("changes")
        said: dict[str, tuple[Any, ...]] = {}
        if changes.num_rows:
            said = {
                row["item_id"]: (row["change"], row["old_sid"], row["new_sid"])
                for row in changes.to_pylist()
                if row["change"] in (Change.MOVED.value, Change.RETIRED.value)
            }
        for row in np.flatnonzero(~kept):
            name, sid, new = old["item_id"][row].as_py(), old["sid"][row].as_py(), now[row].as_py()
            change = Change.RETIRED.value if new is None else Change.MOVED.value
            if said.get(name) != (change, sid, new):
                yield f"item {name!r} had SID {sid}, has {new}, and changes/ does not say so"
        owned = [items.select(columns), self._read("reserved", columns)]
        owned_now = pa.concat_tables([table for table in owned if table.num_rows])
        owned_before = pa.concat_tables([old, kept_back])
        lost = owned_before.join(owned_now, columns, join_type="left anti")
        for row in lost.sort_by("item_id").to_pylist():
            yield f"SID {row['sid']} belonged to item {row['item_id']!r} and is not reserved for it"
        yield old.num_rows

    def _check_tokenizer(self, layout: SidLayout) -> Quantizer | None:
        expected = self._manifest.fingerprints.tokenizer
        folder = self._root.tokenizer_folder(expected)
        try:
            contents = {
                name: files.read_bytes(files.join(folder, name)) for name in TOKENIZER_FILES
            }
            actual, quantizer = tokenizer_id(contents), load_tokenizer(folder)
        except (OSError, ValueError) as error:
            self.problems.append(Problem(7, f"tokenizer {expected}: {error}"))
            return None
        if actual != expected:
            self.problems.append(Problem(7, f"tokenizer {expected} was altered: it is {actual}"))
        if fingerprint(SidLayout.fitting(quantizer.codebook_sizes).to_json()) != fingerprint(
            layout.to_json()
        ):
            self.problems.append(Problem(7, f"tokenizer {expected} does not fit {layout}"))
            return None
        self.checks["tokenizer"] = 1
        return quantizer

    def _check_embeddings(self, items: pa.Table, quantizer: Quantizer) -> Iterator[str | int]:
        """Every item has its embedding, and the base codes are what the tokenizer gives for it."""
        found = np.zeros(items.num_rows, bool)
        base = matrix_from_list(items["base_codes"], quantizer.num_levels)
        hashes = items["content_hash"].combine_chunks()
        encoded = 0
        for part in self._manifest.table("embeddings"):
            with files.parquet_file(self._path(part.path)) as file:
                for batch in file.iter_batches(_ENCODED_ROWS):
                    rows = pc.index_in(
                        batch["item_id"], value_set=items["item_id"].combine_chunks()
                    )
                    same = pc.fill_null(pc.equal(hashes.take(rows), batch["content_hash"]), False)
                    if not pc.any(same).as_py():
                        continue
                    rows = rows.filter(same).to_numpy()
                    found[rows] = True
                    vectors = matrix_from_list(
                        batch["embedding"].filter(same), quantizer.embedding_dim
                    )
                    encoded += len(rows)
                    wrong = (quantizer.encode(vectors) != base[rows]).any(axis=1)
                    for row in rows[wrong]:
                        yield (
                            f"item {items['item_id'][int(row)].as_py()!r}: base codes "
                            f"{format_codes(base[row])} are not what the tokenizer gives"
                        )
        for row in np.flatnonzero(~found):
            yield f"item {items['item_id'][int(row)].as_py()!r} has no embedding of its content"
        yield encoded

    def _read_trie(self) -> Trie:
        path = self._path("trie/trie.safetensors")
        if files.is_local(path):
            return read_trie(path)
        with tempfile.NamedTemporaryFile(suffix=".safetensors") as local:
            local.write(files.read_bytes(path))
            local.flush()
            return read_trie(local.name)


def _repeated(values: pa.ChunkedArray) -> list[Any]:
    counts = pc.value_counts(values.combine_chunks())
    return counts.field("values").filter(pc.greater(counts.field("counts"), 1)).to_pylist()


def _mask(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(column, False).to_numpy()


def _lookup(table: pa.Table, item_ids: pa.ChunkedArray, column: str) -> pa.ChunkedArray:
    """Returns a column's value for each item id, null where the table lacks the item."""
    rows = pc.index_in(item_ids, value_set=table["item_id"].combine_chunks())
    return table[column].take(rows)


def _compare_keys(
    left: pa.Table, right: pa.Table, left_name: str, right_name: str
) -> Iterator[str]:
    """Compares item ids and content hashes of two tables."""
    theirs = _lookup(right, left["item_id"], "content_hash")
    for row in np.flatnonzero(~_mask(pc.equal(theirs, left["content_hash"]))):
        name = left["item_id"][int(row)].as_py()
        if theirs[int(row)].as_py() is None:
            yield f"item {name!r} of {left_name} is not in {right_name}"
        else:
            yield f"item {name!r} has different content hashes in {left_name} and {right_name}"
    missing = pc.invert(pc.is_in(right["item_id"], left["item_id"].combine_chunks()))
    for name in right["item_id"].filter(missing).to_pylist():
        yield f"item {name!r} of {right_name} is not in {left_name}"
