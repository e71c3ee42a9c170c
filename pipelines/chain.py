"""The links of the nightly chain. Every one leaves durable files, so it can be re-run alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa

from models.sid import SidLayout
from pipelines.beam_options import run_pipeline
from pipelines.catalog_input import CatalogInput
from pipelines.counting import count_rows, reject_counts, source_counts
from pipelines.definitions import (
    define_assign,
    define_index,
    define_place,
    define_read,
)
from pipelines.embed import carry_embeddings, early_parts, embed_changed
from pipelines.fit_link import fit_embedded, tokenizer_origin
from pipelines.fitted_tokenizers import find_tokenizer
from pipelines.generation import (
    SPM_FILE,
    Outcome,
    build_manifest,
    carry_metrics,
    link_tables,
    release_before,
    table_paths,
)
from pipelines.id_space import IdSpace
from pipelines.job import Job
from pipelines.pieces import settle_pieces
from pipelines.published_tables import index_parts
from pipelines.root import Published
from pipelines.runs import Run, claim_run, kept_runs
from schemas.manifest import Fingerprints
from semid_transforms import files
from semid_transforms.carried_quality import COUNTED, carry_distances, measured_now
from semid_transforms.catalog import has_categories, same_categories
from semid_transforms.drift import measure_drift
from semid_transforms.features import FeatureSet
from semid_transforms.identity import Identity, Stamp
from semid_transforms.indexing import IndexItems, IndexPaths, Labelling, Measuring
from semid_transforms.leftovers import remove_leftovers
from semid_transforms.measuring import metrics_bytes
from semid_transforms.placing import PlaceFolders, PlaceItems
from semid_transforms.quantizing import AssignCodes, WriteHistogram, plan_shards
from semid_transforms.shard_plan import (
    ShardPlan,
    is_delta,
    items_in_order,
    items_name,
    shards_to_rewrite,
)

BYTES_PER_ITEM = 256
"""Rough size of a catalog row on disk, vectors apart; it only decides into how many shards."""

_REPLAN_FACTOR = 2
"""The SID space is cut anew when shards hold on average this many times what they should."""


class Chain:
    """The links of one run, in order; each takes the results of those before it."""

    def __init__(
        self,
        job: Job,
        run: Run,
        parent: Published,
        catalog: CatalogInput,
        space: IdSpace,
        command: Literal["tokenize", "backfill"] = "tokenize",
    ):
        self._command = command
        self._job = job
        self._settings = job.settings
        self._run = run
        self._parent = parent
        self._catalog = catalog
        self._reader = catalog.reader
        self._space = space
        self._layout = space.layout
        # A fitted tokenizer is frozen, whatever the defaults are now.
        self._config = {**job.settings.to_json(), "quantizer": space.quantizer}
        # What IDs grow on: nothing at the beginning of an ID space.
        self._ground = parent if space.leaves is None else Published(None, None, parent.token)
        self._release_before = ""
        if command == "tokenize":
            release_after = job.settings.job.collisions.release_after
            self._release_before = release_before(run.generation, release_after)

    def read(self) -> dict[str, Any]:
        """Reads, validates, deduplicates, compares with the parent."""
        run = self._run
        for folder in (run.scratch("read"), run.output("catalog"), run.output("rejects")):
            files.remove_tree(folder)
        early = early_parts(run, self._reader) if self._ground.generation is None else None
        counters = run_pipeline(
            self._job.options("read"),
            lambda root: define_read(
                root,
                self._reader,
                [*self._parent_paths("items"), *self._ground_paths("reserved")],
                self._parent_layout,
                self._num_item_shards(),
                run,
                self._space.leaving,
                self._release_before,
                early=early,
            ),
        )
        self.keep_rejects()
        counts = source_counts(self._reader, run)
        return {
            "sources": {source: count.to_json() for source, count in counts.items()},
            "rejects": reject_counts(files.list_files(run.output("rejects"))),
            "changed": count_rows(files.list_files(run.scratch("read", "changed"))),
            "retired": count_rows(files.list_files(run.scratch("read", "retired"))),
            "counters": counters,
        }

    def keep_rejects(self) -> None:
        """Puts the rows that the read link rejected into the generation."""
        for path in files.list_files(self._run.scratch("read", "rejects")):
            files.copy(path, self._run.output("rejects", files.base_name(path)))

    def embed(self, read: dict[str, Any]) -> dict[str, Any]:
        """Embeds what is new or changed; carries the parent's embeddings over.

        In a new ID space every item gets a new row; embeddings of the same encoder are copied.
        """
        job, run = self._job, self._run
        if self._command == "tokenize":
            live = sum(counts["live"] for counts in read["sources"].values())
            shards = self._num_item_shards()
            carry_embeddings(job, run, self._ground, live - read["changed"], shards)
        else:
            link_tables(job.root, self._ground, run, ("embeddings",))
        published = self._parent_paths("embeddings") if self._space.same_encoder else []
        if not read["changed"]:
            return {"parts": [], "counters": {}}
        return embed_changed(job, run, self._catalog, read["changed"], published, self._sid_type)

    def fit(self) -> dict[str, Any]:
        """Takes the ID space's tokenizer, or one that `semid fit` made for this root, or fits one.

        A tokenizer that a refused run left behind is not taken: it knows that run's catalog.
        """
        if self._space.tokenizer is not None:
            return {"tokenizer_id": self._space.tokenizer, "fitted": False}
        origin = tokenizer_origin(self._settings, self._catalog)
        if ready := find_tokenizer(self._job.root, {**origin, "command": "fit"}):
            return {"tokenizer_id": ready, "fitted": False}
        return self.fit_new()

    def fit_new(self) -> dict[str, Any]:
        """Fits a tokenizer on what has been embedded and writes it under ROOT."""
        return fit_embedded(self._job, self._run, self._catalog, self._parent)

    def assign(
        self, read: dict[str, Any], embed: dict[str, Any], fit: dict[str, Any]
    ) -> dict[str, Any]:
        """Quantizes what was embedded and cuts the SID space into shards."""
        run, layout = self._run, self._layout
        manifest = self._ground.manifest
        live = sum(counts["live"] for counts in read["sources"].values())
        per_shard = self._settings.job.shards.rows_per_shard
        replan = manifest is None or live > _REPLAN_FACTOR * per_shard * len(manifest.shards)
        if not replan and not embed["parts"]:
            assert manifest is not None
            return {"shards": manifest.shards, "replanned": False, "counters": {}}
        files.remove_tree(run.scratch("assign"))
        assign = self.assign_codes(fit["tokenizer_id"])
        histogram = None
        if replan:
            path = run.scratch("assign", "histogram.parquet")
            histogram = WriteHistogram(path, tuple(self._ground_paths("items")), layout)
        counters = run_pipeline(
            self._job.options("assign"),
            lambda root: define_assign(root, embed["parts"], assign, histogram),
        )
        if histogram is None:
            assert manifest is not None
            return {"shards": manifest.shards, "replanned": False, "counters": counters}
        shards = plan_shards(histogram.path, layout, math.ceil(live / per_shard))
        return {"shards": shards, "replanned": True, "counters": counters}

    def assign_codes(self, tokenizer_id: str) -> AssignCodes:
        """Returns how this run quantizes."""
        run = self._run
        return AssignCodes(
            embeddings_folder=run.output("embeddings"),
            origin_folder=run.scratch("origin"),
            codes_folder=run.scratch("assign", "codes"),
            latents_folder=run.scratch("assign", "latents"),
            tokenizer_folder=self._job.root.tokenizer_folder(tokenizer_id),
            layout=self._layout,
        )

    def place(
        self,
        read: dict[str, Any],
        embed: dict[str, Any],
        fit: dict[str, Any],
        assign: dict[str, Any],
    ) -> dict[str, Any]:
        """Gives every changed item its ID; links the shards nothing happened in."""
        run, manifest = self._run, self._ground.manifest
        tables = ("items", "reserved", "changes")
        for folder in (run.scratch("placed"), *map(run.output, tables)):
            files.remove_tree(folder)
        tokenizer_id = fit["tokenizer_id"]
        coded = [run.scratch("assign", "codes", part) for part in embed["parts"]]
        spm_path = settle_pieces(self._job, run, self._ground, tokenizer_id, self._layout, coded)
        everything = assign["replanned"] or (
            manifest is not None and manifest.config["ngrams"] != self._config["ngrams"]
        )
        features = FeatureSet(self._settings.features, spm_path)
        place = self.place_items(tokenizer_id, assign["shards"], features)
        rewrite = range(len(assign["shards"])) if everything else shards_to_rewrite(place.plan)
        counters = {}
        if embed["parts"] or read["retired"] or rewrite:
            counters = run_pipeline(
                self._job.options("place"),
                lambda root: define_place(
                    root,
                    coded,
                    files.list_files(run.scratch("read", "retired")),
                    list(rewrite),
                    place,
                ),
            )
        written = [items_name(path) for path in files.list_files(run.scratch("placed"))]
        if not everything:
            for table in ("items", "reserved"):
                for path in self._ground_paths(table):
                    name = files.base_name(path)
                    if name not in written and not is_delta(name):
                        files.copy(path, run.output(table, name))
        return {
            "shards": assign["shards"],
            "written": len(written),
            "everything": everything,
            "counters": counters,
        }

    def index(
        self, read: dict[str, Any], fit: dict[str, Any], place: dict[str, Any]
    ) -> dict[str, Any]:
        """Builds trie, nodes, labels, n-gram vocabulary and quality table, or links the parent's.

        Placed rows get their labels and become `items` parts.
        """
        run = self._run
        catalog = files.list_files(run.output("catalog"), ".parquet")
        if not place["written"] and same_categories(catalog, self._parent_paths("catalog")):
            assert self._parent.generation is not None
            link_tables(self._job.root, self._parent, run, ("trie", "nodes", "ngrams"))
            parent_folder = self._job.root.folder(self._parent.generation)
            carry_metrics(files.join(parent_folder, "metrics.json"), run.output("metrics.json"))
            return {"rebuilt": False, "counters": {}}
        for folder in (run.scratch("index"), run.output("nodes")):
            files.remove_tree(folder)
        paths = IndexPaths(
            items=items_in_order(run.output("items"), run.scratch("placed")),
            catalog=tuple(catalog),
            embeddings=tuple(files.list_files(run.output("embeddings"), ".parquet")),
            tokenizer_folder=self._job.root.tokenizer_folder(fit["tokenizer_id"]),
            generation_folder=run.generation_folder,
            scratch_folder=run.scratch("index"),
            changes=tuple(files.list_files(run.output("changes"), ".parquet")),
        )
        by_category = has_categories(catalog)
        labelling = Labelling(
            by_category=by_category,
            every_row=place["everything"]
            or by_category != has_categories(self._ground_paths("catalog")),
            parent_nodes=tuple(self._ground_paths("nodes")),
            num_shards=self._num_item_shards(),
        )
        shared = self._settings.job.collisions.policy == "none"
        features = FeatureSet(self._settings.features, self.spm_path())
        carried = None
        if self._ground.generation is not None and not place["everything"]:
            before = files.join(self._job.root.folder(self._ground.generation), "metrics.json")
            changes = read["changed"] + read["retired"]
            share = self._settings.job.quality.max_stale_share
            carried = carry_distances(before, changes, share)
        measuring = Measuring(carried is None, self._space.leaves)
        index = IndexItems(paths, self._layout, features, shared, labelling, measuring)
        counters = run_pipeline(self._job.options("index"), lambda root: define_index(root, index))
        metrics = paths.read_measured(carried or measured_now(run.generation))
        metrics |= {COUNTED: run.generation, "drift": self.measure_drift(fit["tokenizer_id"])}
        files.write_bytes(run.output("metrics.json"), metrics_bytes(metrics))
        return {"rebuilt": True, "counters": counters}

    def measure_drift(self, tokenizer_id: str) -> dict[str, Any] | None:
        """Compares what was new to this run with what the tokenizer was fitted on."""
        coded = files.list_files(self._run.scratch("assign", "codes"), ".parquet")
        folder = self._job.root.tokenizer_folder(tokenizer_id)
        return measure_drift(coded, folder, self._settings.job.drift)

    def publish(self, results: dict[str, dict[str, Any]]) -> Outcome:
        """Writes the manifest and swaps CURRENT."""
        settings, run = self._settings, self._run
        manifest = build_manifest(
            run,
            self._parent,
            results,
            Fingerprints(
                encoder=self._catalog.encoder["fingerprint"],
                template=settings.template_fingerprint,
                tokenizer=results["fit"]["tokenizer_id"],
                layout=self._layout.to_json(),
                spm=None if (spm := self.spm_path()) is None else files.sha256(spm),
            ),
            self._catalog.encoder,
            self._config,
            self._command,
        )
        remove_leftovers(run.generation_folder)
        run.check_held()
        self._job.root.publish(manifest, self._parent)
        run.discard()
        fits = {"command": "fit", **self._same_encoder()}
        for fitted in kept_runs(self._job.root, fits) if self._command == "tokenize" else ():
            with claim_run(self._job.root, fitted.key) as idle:
                if idle:
                    fitted.discard()  # what it embedded is published now
        metrics = json.loads(files.read_bytes(run.output("metrics.json")))
        return Outcome(manifest, metrics, results)

    def place_items(
        self, tokenizer_id: str, shards: Sequence[int], features: FeatureSet
    ) -> PlaceItems:
        """Returns how this run gives items their IDs."""
        run, ground = self._run, self._ground
        collisions = self._settings.job.collisions
        index = None
        if ground.generation is not None and ground.manifest is not None:
            index = index_parts(
                self._job.root, ground.generation, ground.manifest, self._release_before
            )
        return PlaceItems(
            plan=ShardPlan(tuple(shards), index),
            identity=Identity(
                self._layout,
                collisions.policy,
                collisions.on_change == "reassign",
                self._space.leaves,
            ),
            stamp=Stamp(run.generation, tokenizer_id, run.time),
            features=features,
            folders=PlaceFolders(
                settled=run.scratch("settled"),
                placed=run.scratch("placed"),
                generation=run.generation_folder,
                embeddings=run.output("embeddings"),
                latents=run.scratch("assign", "latents"),
            ),
            tokenizer_folder=self._job.root.tokenizer_folder(tokenizer_id),
        )

    def spm_path(self) -> str | None:
        """Path of the generation's pieces, None without an `spm` feature."""
        path = self._run.output(*SPM_FILE.split("/"))
        return path if files.exists(path) else None

    def _same_encoder(self) -> dict[str, Any]:
        return {"encoder": self._catalog.encoder["fingerprint"]}

    @property
    def _parent_layout(self) -> SidLayout:
        """Layout of the parent's SIDs, this run's own without a parent."""
        manifest = self._parent.manifest
        return SidLayout.from_json(manifest.fingerprints.layout) if manifest else self._layout

    @property
    def _sid_type(self) -> pa.DataType:
        return pa.from_numpy_dtype(self._parent_layout.dtype)

    def _parent_paths(self, table: str) -> list[str]:
        return table_paths(self._job.root, self._parent, table)

    def _ground_paths(self, table: str) -> list[str]:
        """Parts of the generation whose IDs stay: none where an ID space begins."""
        return table_paths(self._job.root, self._ground, table)

    def _num_item_shards(self) -> int:
        catalog_bytes = sum(source.bytes for source in self._reader.sources)
        known = self._parent.manifest.counts["items"] if self._parent.manifest else 0
        row_bytes = BYTES_PER_ITEM + 4 * (self._reader.embedding_dim or 0)
        rows = max(known, catalog_bytes // row_bytes)
        return max(1, math.ceil(rows / self._settings.job.shards.rows_per_shard))
