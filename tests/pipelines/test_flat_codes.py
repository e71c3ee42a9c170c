"""Codes of parallel codebooks: published, verified, measured and shown without prefixes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.errors import UsageError
from pipelines.published_tables import PublishedTables
from pipelines.root import Root
from pipelines.show import open_view, show_item, show_prefix, show_sid
from pipelines.verify import verify
from schemas.manifest import Current
from tests.pipelines import jobs

KINDS: dict[str, dict[str, Any]] = {
    "moc": {"codebook_sizes": [8, 8], "training": {"steps": 3, "warmup_steps": 1}},
    "pq": {"codebook_sizes": [8, 8]},
    "vq": {"codebook_sizes": [32]},
}


def flat(kind: str, policy: str = "suffix", **sections: Any) -> dict[str, Any]:
    """A configuration for one of `KINDS`."""
    return {
        "quantizer": {"kind": kind, **KINDS[kind]},
        "collisions": {"policy": policy},
        "ngrams": [{"name": "unigram"}],
        **sections,
    }


def rows_of(first: int, last: int) -> list[dict[str, Any]]:
    """Items with embeddings; a third of them have one content."""
    return jobs.vector_rows({f"i{n:03d}": n % 3 and n for n in range(first, last)})


@pytest.fixture(scope="module")
def pq_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with one generation of 120 items under `pq`; read only."""
    folder = tmp_path_factory.mktemp("pq")
    jobs.run(
        jobs.write_rows(folder / "catalog.jsonl", rows_of(0, 120)), folder / "root", flat("pq")
    )
    return folder / "root"


@pytest.mark.parametrize("kind", KINDS)
def test_every_item_gets_an_id_of_its_own_and_keeps_it(tmp_path: Path, kind: str) -> None:
    root, config = tmp_path / "root", flat(kind, shards={"rows_per_shard": 32})
    outcome = jobs.run(jobs.write_rows(tmp_path / "one.jsonl", rows_of(0, 90)), root, config)
    layout = outcome.manifest.fingerprints.layout
    assert layout["hierarchical"] is False
    assert len(outcome.manifest.shards) > 1
    jobs.assert_sound(root)
    first = jobs.sids(root)
    assert len(set(first.values())) == 90
    items = jobs.table(root, "items").to_pylist()
    assert all(item["codes"] == item["base_codes"] for item in items)
    assert {item["placement"] for item in items} == {"nearest", "suffixed"}
    starts = np.cumsum([0, *layout["codebook_sizes"][:-1]])
    assert all(item["unigram"] == (starts + item["codes"]).tolist() for item in items)

    jobs.run(jobs.write_rows(tmp_path / "two.jsonl", rows_of(10, 110)), root, config)
    jobs.assert_sound(root)
    second = jobs.sids(root)
    assert len(set(second.values())) == 100
    assert all(second[name] == sid for name, sid in first.items() if name in second)
    assert not set(second.values()) & set(jobs.reserved(root))


def test_under_none_items_share_ids(tmp_path: Path) -> None:
    catalog = jobs.write_rows(tmp_path / "catalog.jsonl", rows_of(0, 90))
    outcome = jobs.run(catalog, tmp_path / "root", flat("pq", "none"))
    jobs.assert_sound(tmp_path / "root")
    ids = list(jobs.sids(tmp_path / "root").values())
    shared = sum(ids.count(sid) > 1 for sid in ids) / len(ids)
    assert outcome.metrics["after"]["shared_sids"]["b"] == pytest.approx(shared)
    assert shared >= 1 / 3  # the items of content 0


def test_what_needs_prefixes_is_refused_with_the_fix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = jobs.write_rows(tmp_path / "catalog.jsonl", rows_of(0, 30))
    arguments = ["tokenize", "--catalog", catalog, "--root", str(tmp_path / "root")]
    assert jobs.command(tmp_path, *arguments, config={"quantizer": {"kind": "moc"}}) == 2
    said = capsys.readouterr().err
    assert "collisions.policy: reassign" in said and "set it to suffix" in said
    assert "ngrams: bigram, prefix_ngram join codes" in said and "[{name: unigram}]" in said
    assert not (tmp_path / "root").exists()


def test_there_is_no_trie_and_the_files_say_so(pq_root: Path) -> None:
    verdict = verify(Root(str(pq_root)))
    assert verdict.problems == []
    assert "trie" not in verdict.checks and "nodes" not in verdict.checks
    assert verdict.checks["no trie"] > 0 and "no trie" in verdict.absent[0]
    generation, manifest = Root(str(pq_root)).require_published()
    assert not any(file.path.startswith(("trie", "nodes")) for file in manifest.files)
    with pytest.raises(UsageError, match="has no trie"):
        PublishedTables(Root(str(pq_root)), generation, manifest).read_trie()


def test_verify_finds_a_layout_that_denies_the_tokenizer(pq_root: Path, copied) -> None:
    root = Root(str(copied(pq_root)))
    generation, manifest = root.require_published()
    prints = manifest.fingerprints
    layout = {**prints.layout, "hierarchical": True}
    denied = dataclasses.replace(
        manifest, fingerprints=dataclasses.replace(prints, layout=layout)
    ).to_json()
    (Path(root.folder(generation)) / "manifest.json").write_bytes(denied)
    (Path(root.path) / "CURRENT").write_bytes(Current.of(generation, denied).to_json())
    details = [problem.detail for problem in verify(root).problems]
    assert any("trie/trie.safetensors is not in the manifest" in detail for detail in details)
    assert any("does not fit" in detail for detail in details)


def test_metrics_are_by_codebook(pq_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["metrics", "--root", str(pq_root)]
    assert jobs.command(pq_root.parent, *arguments, "--json") == 0
    before = json.loads(capsys.readouterr().out)["before"]
    assert "prefix_cosine" not in before and "neighbourhood" not in before
    cosines, shares = before["code_cosine"], before["neighbours_sharing"]["share"]
    assert min(cosines[1:]) > cosines[0]
    assert shares[0] > shares[1] > 0
    assert jobs.command(pq_root.parent, *arguments) == 0
    text = capsys.readouterr().out
    assert "codebook" in text and "no prefixes" in text and "share 1 code or more" in text


def test_show_finds_neighbours_by_equal_codes(
    pq_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    view = open_view(Root(str(pq_root)))
    shown = show_item(view, "i001", limit=50)
    codes = {row["item_id"]: row["codes"] for row in jobs.table(pq_root, "items").to_pylist()}
    equal = {name: int(np.equal(code, codes["i001"]).sum()) for name, code in codes.items()}
    expected = sorted((count for name, count in equal.items() if name != "i001"), reverse=True)
    assert [row["shared"] for row in shown["neighbours"]] == expected[:50]
    assert all(equal[row["item_id"]] == row["shared"] for row in shown["neighbours"])
    assert show_sid(view, shown["sid_text"])["item_id"] == "i001"
    with pytest.raises(UsageError, match="no order and no prefixes"):
        show_prefix(view, shown["sid_text"].split("-")[0])
    for arguments in (["--item", "i001"], []):
        assert jobs.command(pq_root.parent, "show", "--root", str(pq_root), *arguments) == 0
    text = capsys.readouterr().out
    assert "items sharing most codes" in text and "no trie and no nodes" in text
