"""Another tokenizer: a new ID space, a migration map, and as many codes kept as can be."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from models.trie_file import read_trie
from pipelines.beam_options import build_options
from pipelines.fit import FitOutcome, fit
from pipelines.generation import Outcome
from pipelines.job import Job
from pipelines.root import Root
from pipelines.settings import parse_settings
from pipelines.tokenize import tokenize
from pipelines.verify import verify
from semid_transforms import files
from tests.pipelines import jobs

RQVAE = {
    "quantizer": {
        "kind": "rqvae",
        "codebook_sizes": [8, 8, 8],
        "latent_dim": 6,
        "hidden": [16],
        "training": {"steps": 60, "warmup_steps": 20, "batch_size": 64, "decoder_steps": 10},
    }
}


def job(catalog: str, root: Path, config: dict | None = None, **options: Any) -> Job:
    settings = parse_settings(jobs.merged(jobs.SETTINGS, config or {}))
    return Job((catalog,), Root(str(root)), settings, build_options([]), jobs.AS_OF, **options)


def refit(catalog: str, root: Path, config: dict | None = None, warm: bool = False) -> FitOutcome:
    return fit(job(catalog, root, config, warm_start=warm))


def migrate(catalog: str, root: Path, tokenizer: str, config: dict | None = None) -> Outcome:
    return tokenize(job(catalog, root, config, tokenizer=tokenizer))


def grown_catalog(root: Path, rows: list[dict]) -> str:
    """Writes rows and some more: on the same ones k-means may begin where it has converged."""
    others = jobs.vector_rows({f"n-{number}": -number for number in range(1, 60)})
    return jobs.write_rows(root.parent / "grown.parquet", [*rows, *others])


def other_seed(kind: str) -> dict:
    if kind == "rqvae":
        training = {**RQVAE["quantizer"]["training"], "seed": 5}
        return {"quantizer": {**RQVAE["quantizer"], "training": training}}
    return {"quantizer": {**jobs.SETTINGS["quantizer"], "seed": 5}}


@pytest.fixture(scope="module", params=["rqkmeans", "rqvae"])
def published(request, tmp_path_factory, vector_catalog) -> tuple[str, Path, dict]:
    """(kind, root with a generation of 250 items, its configuration); read only."""
    folder = tmp_path_factory.mktemp("migration")
    config = RQVAE if request.param == "rqvae" else {}
    jobs.run(jobs.write_rows(folder / "c.parquet", vector_catalog[:250]), folder / "root", config)
    return request.param, folder / "root", config


def test_every_live_item_is_mapped_into_the_new_space(copied, published, vector_catalog):
    kind, base, config = published
    root = copied(base)
    # One item is new, one has other content, one is gone, one came back from retirement.
    night = jobs.write_rows(root.parent / "n.parquet", vector_catalog[1:250])
    jobs.run(night, root, config)
    assert set(jobs.reserved(root).values()) == {"item-000"}
    tonight = [vector_catalog[0], *vector_catalog[3:250]]
    tonight += jobs.vector_rows({"fresh": "fresh", "item-001": "quite another"})
    catalog = jobs.write_rows(root.parent / "tonight.parquet", tonight)

    before, old = jobs.sids(root), Root(str(root)).published()
    assert old.generation is not None and old.manifest is not None
    fitted = refit(catalog, root, other_seed(kind))
    assert Root(str(root)).published() == old, "a fit publishes nothing"
    trie = read_trie(str(root / "generations" / old.generation / "trie/trie.safetensors"))
    outcome = migrate(catalog, root, fitted.tokenizer_id[:12], other_seed(kind))

    after = jobs.sids(root)
    assert set(after) == {row["item_id"] for row in tonight}
    expected: dict[str, tuple] = {
        name: ("moved", sid, after[name]) for name, sid in before.items() if name in after
    }
    expected["item-001"] = ("updated", before["item-001"], after["item-001"])
    expected["item-002"] = ("retired", before["item-002"], None)
    expected |= {name: ("new", None, after[name]) for name in ("fresh", "item-000")}
    assert jobs.changes(root) == expected
    assert jobs.reserved(root) == {}, "IDs of the old space mean nothing in the new one"
    assert outcome.manifest.fingerprints.tokenizer == fitted.tokenizer_id != old.manifest
    items = jobs.table(root, "items")
    assert set(items["tokenizer_id"].to_pylist()) == {fitted.tokenizer_id}
    assert set(items["first_generation"].to_pylist()) == {outcome.manifest.generation}
    assert outcome.manifest.counts["moved"] == len(before) - 2
    jobs.assert_sound(root)
    # Readers of the old generation go on undisturbed.
    assert verify(Root(str(root)), old.generation).problems == []
    assert trie.num_rows == len(before)
    assert jobs.sids(root, old.generation) == before


def test_the_share_of_codes_kept_is_reported_and_goes_with_the_next_night(
    copied, published, vector_catalog, capsys
):
    kind, base, config = published
    root = copied(base)
    catalog = str(root.parent / "c.parquet")
    codes = dict(_codes(root))
    fitted = refit(grown_catalog(root, vector_catalog), root, other_seed(kind), warm=True)
    arguments = ["--catalog", catalog, "--root", str(root)]
    whole = jobs.merged(jobs.SETTINGS, config)
    migration = ["tokenize", *arguments, "--tokenizer", fitted.tokenizer_id]
    assert jobs.command(root.parent, *migration, config=other_config(whole, kind)) == 0
    said = capsys.readouterr().out
    metrics = json.loads((_generation(root) / "metrics.json").read_text())
    now = dict(_codes(root))
    shares = [
        sum(now[name][:length] == codes[name][:length] for name in codes) / len(codes)
        for length in (1, 2, 3)
    ]
    assert metrics["kept"] == {"items": 250, "share": pytest.approx(shares)}
    assert shares[0] > 0.8
    assert f"of 250 items {shares[0]:.1%} keep 1 code" in said

    # The flag may stay or go: the next night grows the new space.
    before = jobs.sids(root)
    for extra in (["--tokenizer", fitted.tokenizer_id], []):
        assert jobs.command(root.parent, "tokenize", *arguments, *extra, config=_loose()) == 0
        assert jobs.sids(root) == before
        assert jobs.changes(root) == {}
        assert "kept" not in json.loads((_generation(root) / "metrics.json").read_text())
        jobs.assert_sound(root)


def other_config(whole: dict, kind: str) -> dict:
    return {**whole, **other_seed(kind)}


def _loose() -> dict:
    """Leaves the quantizer to what is published."""
    return {"gates": jobs.SETTINGS["gates"]}


def _generation(root: Path) -> Path:
    return root / "generations" / str(Root(str(root)).published().generation)


def _codes(root: Path) -> list[tuple[str, list[int]]]:
    items = jobs.table(root, "items")
    return list(zip(items["item_id"].to_pylist(), items["codes"].to_pylist(), strict=True))


def test_no_text_is_encoded_again(copied, text_root, text_config):
    root = copied(text_root)
    catalog = str(root.parent / "catalog.jsonl")
    config = jobs.merged(text_config, other_seed("rqkmeans"))
    fitted = refit(catalog, root, config)
    outcome = migrate(catalog, root, fitted.tokenizer_id, config)
    assert outcome.results["embed"]["counters"]["embed/texts-encoded"] == 0
    now, old = (
        {row["item_id"]: row["embedding"] for row in jobs.table(where, "embeddings").to_pylist()}
        for where in (root, text_root)
    )
    assert now == old
    jobs.assert_sound(root)


def test_another_encoder_and_template_begin_a_new_space(
    copied, text_root, text_config, other_model, tmp_path, capsys
):
    """All content is embedded anew, once: by the fit."""
    root = copied(text_root)
    catalog = str(root.parent / "catalog.jsonl")
    before = jobs.sids(root)
    newer = {"encoder": {"model": other_model}, "text": {"parts": ["{title}", "{brand}"]}}
    config = jobs.merged(text_config, newer)
    whole = jobs.merged(jobs.SETTINGS, config)
    arguments = ["--catalog", catalog, "--root", str(root)]
    fitted = refit(catalog, root, config)
    assert fitted.results["embed"]["counters"]["embed/texts-encoded"] > 250
    assert fitted.metrics["previous"]["items"] == 300, "codes are compared item by item"

    # The tokenizer with the old encoder, and the new encoder with the old tokenizer, are refused.
    old = jobs.merged(jobs.SETTINGS, text_config)
    asked = [*arguments, "--tokenizer", fitted.tokenizer_id]
    assert jobs.command(tmp_path, "tokenize", *asked, config=old) == 5
    message = capsys.readouterr().err
    assert f"does not match tokenizer {fitted.tokenizer_id[:16]}" in message
    assert f"{fitted.metrics['origin']['encoder'][:16]} fitted" in message
    assert jobs.command(tmp_path, "tokenize", *arguments, config=whole) == 5
    assert "semid tokenize --tokenizer ID" in capsys.readouterr().err
    assert jobs.sids(root) == before

    assert jobs.command(tmp_path, "tokenize", *asked, "--json", config=whole) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["links"]["embed"]["counters"]["embed/texts-encoded"] == 0
    # Content hashes are of another text, so nobody can say whose content changed.
    assert outcome["counts"]["moved"] == 300 and outcome["counts"]["updated"] == 0
    jobs.assert_sound(root)


def test_another_layout_maps_sids_of_another_type(copied, vector_root):
    """Eight levels of 256 need uint64; the old SIDs stay int64 in `changes/`, and back again."""
    root = copied(vector_root)
    catalog = str(root.parent / "catalog.parquet")
    before = jobs.sids(root)
    wide = {
        "quantizer": {"kind": "rqkmeans", "iterations": 2, "codebook_sizes": [256] * 8},
        "ngrams": [{"name": "unigram"}],
    }
    first = Root(str(root)).require_published()[1].fingerprints.tokenizer
    outcome = migrate(catalog, root, refit(catalog, root, wide).tokenizer_id, wide)
    schema = jobs.table(root, "changes").schema
    assert (str(schema.field("old_sid").type), str(schema.field("new_sid").type)) == (
        "int64",
        "uint64",
    )
    assert {name: old for name, (_, old, _) in jobs.changes(root).items()} == before
    assert len(outcome.metrics["kept"]["share"]) == 3
    jobs.assert_sound(root)
    # The first tokenizer again: the same codes as before, and nothing left of the other space.
    migrate(catalog, root, first)
    assert jobs.sids(root) == before
    jobs.assert_sound(root)


def test_an_item_that_had_the_codes_comes_before_its_twins(copied, vector_root, vector_catalog):
    """Twins have the content, and ids that win ties, but not the codes."""
    root = copied(vector_root)
    twins = [{**row, "item_id": f"a-{row['item_id']}"} for row in vector_catalog]
    catalog = jobs.write_rows(root.parent / "twins.parquet", [*twins, *vector_catalog])
    before = dict(_codes(root))
    grown = grown_catalog(root, vector_catalog)
    fitted = refit(grown, root, other_seed("rqkmeans"), warm=True)
    migrate(catalog, root, fitted.tokenizer_id, other_seed("rqkmeans"))
    items = {row["item_id"]: row for row in jobs.table(root, "items").to_pylist()}
    first = [name for name, codes in before.items() if items[name]["base_codes"] == codes]
    assert len(first) > 100
    assert all(items[name]["codes"] == before[name] for name in first)
    assert {items[name]["placement"] for name in first} == {"nearest"}
    jobs.assert_sound(root)


class Killed(BaseException):
    """Not an Exception, so that nothing tidies up after it as it would after an error."""


def test_a_migration_killed_at_any_write_gives_what_an_undisturbed_one_gives(
    tmp_path, monkeypatch, vector_catalog
):
    """Attempt after attempt dies at a later write, by turns before it and after it."""
    root = tmp_path / "root"
    config = {"shards": {"rows_per_shard": 100}}
    catalog = jobs.write_rows(tmp_path / "c.parquet", vector_catalog[:200])
    jobs.run(catalog, root, config)
    fitted = refit(catalog, root, {**config, **other_seed("rqkmeans")}).tokenizer_id
    config |= {"quantizer": {"kind": "rqkmeans"}}
    undisturbed = Path(shutil.copytree(root, tmp_path / "undisturbed"))
    migrate(catalog, undisturbed, fitted, config)
    expected = _bytes(_generation(undisturbed))

    before, writer = jobs.current(root), files.atomic_writer
    state = {"left": 0, "deaths": 0}

    @contextlib.contextmanager
    def dying(path):
        state["left"] -= 1
        if state["left"] == 0 and state["deaths"] % 2 == 0:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            raise Killed
        with writer(path) as file:
            yield file
        if state["left"] == 0:
            raise Killed

    monkeypatch.setattr(files, "atomic_writer", dying)
    while jobs.current(root) == before:
        state["left"] = 2 * state["deaths"] + 1
        try:
            migrate(catalog, root, fitted, config)
        except BaseException as error:  # the runner wraps what its stages raise
            assert "Killed" in f"{error!r}{error}"
            state["deaths"] += 1
        assert state["deaths"] < 60
    assert state["deaths"] > 4
    assert _bytes(_generation(root)) == expected
    jobs.assert_sound(root)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
