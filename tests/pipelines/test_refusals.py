"""What makes IDs incomparable is refused with exit code 5: both sides named, and the way out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.root import Root
from pipelines.settings import parse_settings
from schemas.manifest import LAYOUT_VERSION, SCHEMA_VERSION, Current
from tests.pipelines import jobs

FIX = "publish a new ID space with `semid tokenize --tokenizer ID`, or take a new --root"
Refused = Callable[..., tuple[int, str]]


@pytest.fixture
def root(copied: Callable[[Path], Path], vector_root: Path) -> Path:
    return copied(vector_root)


@pytest.fixture
def refused(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command on the root's catalog, asserts that nothing changed: (exit code, stderr)."""

    def run(name: str, *arguments: str, config: dict[str, Any] | None = None) -> tuple[int, str]:
        before = jobs.current(root), sorted((root / "generations").iterdir())
        whole = jobs.merged(jobs.SETTINGS, config or {})
        where = ["--root", str(root), "--catalog", str(root.parent / "catalog.parquet")]
        code = jobs.command(tmp_path, name, *where, *arguments, config=whole)
        assert (jobs.current(root), sorted((root / "generations").iterdir())) == before
        return code, capsys.readouterr().err

    return run


def published(root: Path) -> str:
    return Root(str(root)).require_published()[1].fingerprints.tokenizer


def set_manifest(root: Path, **values: Any) -> None:
    """Rewrites the published manifest and the pointer to it."""
    generation = str(Root(str(root)).published().generation)
    path = root / "generations" / generation / "manifest.json"
    data = json.dumps({**json.loads(path.read_text()), **values}).encode()
    path.write_bytes(data)
    (root / "CURRENT").write_bytes(Current.of(generation, data).to_json())


def test_other_tokenizer_settings_name_both_fingerprints_and_layouts(
    root: Path, refused: Refused
) -> None:
    config = {"quantizer": {"kind": "rqkmeans", "codebook_sizes": [16, 8]}}
    code, said = refused("tokenize", config=config)
    ours = parse_settings(config).tokenizer_fingerprint
    theirs = parse_settings(jobs.SETTINGS).tokenizer_fingerprint
    assert code == 5
    assert f"tokenizer settings {ours[:16]} here, {theirs[:16]} published" in said
    assert f"with tokenizer {published(root)[:16]}" in said
    assert "layout 16 x 8 here, 16 x 16 x 16 published" in said
    assert "quantizer.codebook_sizes [16, 8] here, [16, 16, 16] published" in said
    assert FIX in said


@pytest.mark.parametrize("key", ["schema", "layout"])
@pytest.mark.parametrize(
    ("version", "fix"), [(99, "or a later one"), (0, "publish to a new --root, or go on with")]
)
def test_another_format_version_names_both_and_the_way_out(
    root: Path, refused: Refused, key: str, version: int, fix: str
) -> None:
    set_manifest(root, **{f"{key}_version": version})
    for command in ("tokenize", "fit"):
        code, said = refused(command)
        assert code == 5
        ours = {"schema": SCHEMA_VERSION, "layout": LAYOUT_VERSION}[key]
        assert f"{key} version {version}, this semid reads {ours}" in said and fix in said
    assert jobs.command(root.parent, "verify", "--root", str(root)) == 5


def test_a_tokenizer_of_another_format_or_altered_is_refused(root: Path, refused: Refused) -> None:
    folder = root / "tokenizers" / published(root)
    path = folder / "config.json"
    kept = path.read_bytes()
    path.write_bytes(kept.replace(b'"format_version": 1', b'"format_version": 7'))
    assert refused("tokenize")[0] == 5
    assert "format version 7, this release reads 1" in refused("tokenize")[1]
    path.write_bytes(kept.replace(b'"beam": 1', b'"beam": 2'))
    code, said = refused("tokenize")
    assert code == 5 and f"tokenizer {published(root)[:16]} was altered" in said
    path.unlink()
    code, said = refused("tokenize")
    assert code == 5 and "is not whole under" in said


def test_a_tokenizer_that_is_not_there_or_not_one_is_a_usage_error(
    root: Path, refused: Refused
) -> None:
    for name in ("ffff", "../generations", "*", ""):
        code, said = refused("tokenize", "--tokenizer", name)
        assert (code, "no such tokenizer" in said) == (2, True), name
    shutil.copytree(root / "tokenizers" / published(root), root / "tokenizers" / f"{'0' * 64}")
    shutil.copytree(root / "tokenizers" / published(root), root / "tokenizers" / f"00{'1' * 62}")
    code, said = refused("tokenize", "--tokenizer", "00")
    assert code == 2 and "2 tokenizers begin so" in said
    code, said = refused("tokenize", "--tokenizer", "000")
    assert code == 5 and f"its files have the id {published(root)[:16]}" in said


def test_what_was_asked_for_must_fit_the_tokenizer_asked_for(root: Path, refused: Refused) -> None:
    flat = {
        "quantizer": {"kind": "pq", "codebook_sizes": [8, 8]},
        "collisions": {"policy": "suffix"},
        "ngrams": [],
    }
    assert refused("fit", config=flat)[0] == 0
    (other,) = (p.name for p in (root / "tokenizers").iterdir() if p.name != published(root))
    code, said = refused("tokenize", "--tokenizer", other)
    assert code == 5
    assert f"does not match tokenizer {other[:16]}" in said
    assert "quantizer.kind rqkmeans here, pq fitted" in said
    config = {"quantizer": {"kind": "pq"}}
    code, said = refused("tokenize", "--tokenizer", other, config=config)
    assert code == 2 and "the codes of pq have no order and no prefixes" in said


def test_a_warm_start_needs_the_same_kind_of_tokenizer(
    root: Path, refused: Refused, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = refused("fit", "--warm-start", config={"quantizer": {"kind": "rqvae"}})
    assert code == 5
    assert "a rqvae cannot start from a tokenizer of kind rqkmeans" in said
    assert "without --warm-start" in said
    fresh = ["fit", "--catalog", str(root.parent / "catalog.parquet"), "--warm-start", "--root"]
    assert jobs.command(tmp_path, *fresh, str(tmp_path / "new"), config=jobs.SETTINGS) == 2
    assert "nothing is published" in capsys.readouterr().err


def test_a_warm_start_needs_the_same_embeddings(
    copied: Callable[[Path], Path],
    text_root: Path,
    text_config: dict,
    other_model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = copied(text_root)
    config = jobs.merged(jobs.SETTINGS, text_config, {"encoder": {"model": other_model}})
    arguments = ["--catalog", str(root.parent / "catalog.jsonl"), "--root", str(root)]
    assert jobs.command(tmp_path, "fit", *arguments, "--warm-start", config=config) == 5
    said = capsys.readouterr().err
    theirs = Root(str(root)).require_published()[1].fingerprints.encoder
    assert f"{theirs[:16]} published" in said and "without --warm-start" in said
