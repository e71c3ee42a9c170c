"""Invariants of what a generation holds: files, rows, items, codes and their tokenizer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.quantizer import Quantizer
from models.sid import SidLayout, format_codes
from models.tokenizers import from_files, tokenizer_id
from pipelines.generation import SPM_FILE
from pipelines.published_tables import PublishedTables, lookup, repeated
from schemas.arrays import mask_from_bool, matrix_from_list
from schemas.rejects import RejectReason
from schemas.tables import (
    CATALOG,
    NGRAMS,
    REJECTS,
    Placement,
    changes_schema,
    embedding_schema,
    items_schema,
    nodes_schema,
    reserved_schema,
)
from semid_transforms import files
from semid_transforms.quantizing import TOKENIZER_FILES
from semid_transforms.shard_plan import is_delta

_ENCODED_ROWS = 1 << 14


def check_files(tables: PublishedTables) -> Iterator[str | int]:
    """Every file of the manifest is there and unaltered."""
    for entry in tables.manifest.files:
        path = tables.path(entry.path)
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
    yield len(tables.manifest.files)


def check_schemas(tables: PublishedTables, layout: SidLayout) -> Iterator[str | int]:
    """Every table has exactly its schema."""
    sid_type = pa.from_numpy_dtype(layout.dtype)
    # Old SIDs are of the parent's type, which a new tokenizer may have left.
    other_type = pa.int64() if sid_type == pa.uint64() else pa.uint64()
    features = [feature["name"] for feature in tables.manifest.config["ngrams"]]
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
    parts = [(table, part) for table in expected for part in tables.manifest.table(table)]
    for table, part in parts:
        with files.parquet_file(tables.path(part.path)) as file:
            schema = file.schema_arrow
            other = table == "changes" and schema.equals(changes_schema(sid_type, other_type))
            if not (other or schema.equals(expected[table])):
                yield f"{part.path}: schema is {schema}, expected {expected[table]}"
    yield len(parts)


def check_sources(tables: PublishedTables) -> Iterator[str | int]:
    """Rows read are live, rejected or duplicates, per source."""
    for source, counts in tables.manifest.sources.items():
        if not counts.balanced:
            yield f"{source}: {counts.read} rows read are not {counts}"
    live, items = tables.manifest.total.live, tables.manifest.counts["items"]
    if tables.manifest.command == "tokenize" and live != items:
        yield f"{live} live rows but {items} items"
    said = sum(tables.manifest.counts[change] for change in ("new", "updated", "moved"))
    if tables.manifest.command == "backfill" and live < said:
        yield f"{live} live rows but {said} items new, updated or moved"
    yield len(tables.manifest.sources)


def check_rejects(tables: PublishedTables) -> Iterator[str | int]:
    """Every reject has a reason, and there are as many as were counted."""
    rejects = tables.read("rejects")
    known = [reason.value for reason in RejectReason]
    if rejects.num_rows:
        wrong = rejects.filter(pc.invert(pc.is_in(rejects["reason"], pa.array(known))))
        for row in wrong.to_pylist():
            yield f"item {row['item_id']!r} of {row['source']} has no reason: {row['reason']!r}"
        counts = {
            row["values"]: row["counts"] for row in pc.value_counts(rejects["source"]).to_pylist()
        }
    else:
        counts = {}
    for source, expected in tables.manifest.sources.items():
        if counts.get(source, 0) != expected.rejected:
            yield (
                f"{source}: {counts.get(source, 0)} rejected rows are kept, "
                f"{expected.rejected} were counted"
            )
    yield rejects.num_rows


def check_items(tables: PublishedTables, layout: SidLayout) -> Iterator[str | int]:
    """Items are unique, in SID order, and their columns agree."""
    items = tables.read_items(["item_id", "sid", "codes", "base_codes", "suffix"])
    ids = items["item_id"]
    yield from (f"item_id {name!r} occurs twice" for name in repeated(ids))
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
    shared = tables.manifest.config["collisions"]["policy"] == "none"
    out_of_order = sids[1:] < sids[:-1] if shared else sids[1:] <= sids[:-1]
    for row in np.flatnonzero(out_of_order):
        yield (
            f"items {ids[row].as_py()!r} and {ids[row + 1].as_py()!r} are not in strict SID "
            f"order: {sids[row]}, {sids[row + 1]}"
        )
    yield from _parts_out_of_order(tables)
    names = pa.array([placement.value for placement in Placement])
    placement = tables.read_items(["placement"])["placement"]
    for row in np.flatnonzero(~mask_from_bool(pc.is_in(placement, names))):
        yield f"item {ids[row].as_py()!r} has placement {placement[row].as_py()!r}"
    nearest = mask_from_bool(pc.equal(placement, Placement.NEAREST.value))
    settled = (codes == base).all(axis=1) & (suffix == 0)
    since = tables.read_items(["first_generation"])["first_generation"]
    first = mask_from_bool(pc.equal(since, tables.manifest.generation))
    for row in np.flatnonzero(nearest & ~settled & first):
        yield f"item {ids[row].as_py()!r} is called nearest but is not on its base codes"
    tokenizer = tables.read_items(["tokenizer_id"])["tokenizer_id"]
    other = mask_from_bool(pc.not_equal(tokenizer, tables.manifest.fingerprints.tokenizer))
    for row in np.flatnonzero(other):
        yield f"item {ids[row].as_py()!r} comes from tokenizer {tokenizer[row].as_py()[:16]}"
    yield items.num_rows


def _parts_out_of_order(tables: PublishedTables) -> Iterator[str]:
    """Parts with deltas are merged when they are read: each must be in SID order by itself."""
    entries = tables.manifest.table("items")
    if not any(is_delta(entry.path) for entry in entries):
        return  # their rows, one part after the other, are what is checked
    last = -1
    for entry in entries:
        sids = files.read_table(tables.path(entry.path), ["sid"])["sid"].to_numpy()
        if (sids[1:] < sids[:-1]).any():
            yield f"{entry.path} is not in SID order"
        if len(sids) and not is_delta(entry.path):
            if int(sids[0]) < last:
                yield f"{entry.path} starts before the part in front of it ends"
            last = int(sids[-1])


def check_features(tables: PublishedTables, layout: SidLayout) -> Iterator[str | int]:
    """The n-gram columns follow from the codes and, for `spm`, from the pieces that are kept."""
    items = tables.read_items(["item_id", "codes"])
    codes = matrix_from_list(items["codes"], layout.num_levels)
    features = tables.features
    if features.spm_path is not None:
        found = files.sha256(features.spm_path)
        if found != tables.manifest.fingerprints.spm:
            yield f"{SPM_FILE} has sha256 {found}, the fingerprint is another"
            return
    columns = features.load(layout.codebook_sizes)
    for feature in features.features:
        expected = columns.column(codes, feature)
        stored = tables.read_items([feature.name])[feature.name].combine_chunks()
        if stored.equals(expected):
            continue
        for row, (old, new) in enumerate(
            zip(stored.to_pylist(), expected.to_pylist(), strict=True)
        ):
            if old != new:
                yield (
                    f"item {items['item_id'][row].as_py()!r}: {feature.name} is {old}, its codes "
                    f"give {new}"
                )
    yield items.num_rows


def check_catalog(tables: PublishedTables) -> Iterator[str | int]:
    """The catalog snapshot has the same items and contents."""
    items = tables.read_items(["item_id", "content_hash"])
    catalog = tables.read("catalog", ["item_id", "content_hash"])
    yield from _compare_keys(items, catalog, "items", "catalog")
    yield catalog.num_rows


def check_tokenizer(tables: PublishedTables, layout: SidLayout) -> Iterator[str | int]:
    """The tokenizer is there, unaltered, and fits the SID layout."""
    expected = tables.manifest.fingerprints.tokenizer
    folder = tables.root.tokenizer_folder(expected)
    try:
        contents = {name: files.read_bytes(files.join(folder, name)) for name in TOKENIZER_FILES}
        actual, quantizer = tokenizer_id(contents), from_files(contents)
    except (OSError, ValueError) as error:
        yield f"{expected}: {error}"
        return
    if actual != expected:
        yield f"{expected} was altered: it is {actual}"
    if SidLayout.fitting(quantizer.codebook_sizes, quantizer.hierarchical) != layout:
        yield f"{expected} does not fit {layout}"
    yield 1


def check_embeddings(tables: PublishedTables, quantizer: Quantizer) -> Iterator[str | int]:
    """Every item has its embedding, and the base codes are what the tokenizer gives for it."""
    items = tables.read_items(["item_id", "content_hash", "base_codes"])
    found = np.zeros(items.num_rows, bool)
    base = matrix_from_list(items["base_codes"], quantizer.num_levels)
    hashes = items["content_hash"].combine_chunks()
    paths = tables.paths("embeddings")
    keys = ["item_id", "content_hash"]
    none = embedding_schema().empty_table().select(keys)
    stored = pa.concat_tables([none, *(files.read_table(path, keys) for path in paths)])
    # All at once: every call makes a table of all item ids.
    row_of = pc.index_in(stored["item_id"], value_set=items["item_id"].combine_chunks())
    live = mask_from_bool(pc.equal(hashes.take(row_of.combine_chunks()), stored["content_hash"]))
    row_of = row_of.fill_null(0).to_numpy()
    encoded = stop = 0
    for path in paths:
        with files.parquet_file(path) as file:
            for batch in file.iter_batches(_ENCODED_ROWS, columns=["embedding"]):
                start, stop = stop, stop + batch.num_rows
                same = live[start:stop]
                if not same.any():
                    continue
                rows = row_of[start:stop][same]
                found[rows] = True
                kept = batch["embedding"]
                kept = kept if same.all() else kept.filter(pa.array(same))
                vectors = matrix_from_list(kept, quantizer.embedding_dim)
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


def _compare_keys(
    left: pa.Table, right: pa.Table, left_name: str, right_name: str
) -> Iterator[str]:
    """Compares item ids and content hashes of two tables."""
    theirs = lookup(right, left["item_id"], "content_hash")
    for row in np.flatnonzero(~mask_from_bool(pc.equal(theirs, left["content_hash"]))):
        name = left["item_id"][int(row)].as_py()
        if theirs[int(row)].as_py() is None:
            yield f"item {name!r} of {left_name} is not in {right_name}"
        else:
            yield f"item {name!r} has different content hashes in {left_name} and {right_name}"
    missing = pc.invert(pc.is_in(right["item_id"], left["item_id"].combine_chunks()))
    for name in right["item_id"].filter(missing).to_pylist():
        yield f"item {name!r} of {right_name} is not in {left_name}"
