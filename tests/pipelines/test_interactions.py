"""Vectors from interactions: computed by the command, fused with text, kept by the pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import MismatchError
from tests.pipelines import jobs

FUSE = {"input": {"fuse": {"interaction_embedding": {"dimension": 8, "weight": 0.5}}}}


def interactions() -> list[dict[str, Any]]:
    """Users of one half like the first 40 products, of the other the next 40."""
    random = np.random.default_rng(0)
    return [
        {"user_id": user, "item_id": f"P{40 * (user % 2) + int(item):06d}", "rating": user % 5}
        for user in range(120)
        for item in random.choice(40, 6, replace=False)
    ]


def products() -> list[dict[str, Any]]:
    """90 products of 45 texts, the last 10 of them without interactions."""
    rows = jobs.products(45)
    return [{**rows[n % 45], "item_id": f"P{n:06d}", "n": n} for n in range(90)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog in two files, interactions, and the catalog with its new column; read only."""
    folder = tmp_path_factory.mktemp("interactions")
    rows = products()
    jobs.write_rows(folder / "plain/a.parquet", rows[:50])
    jobs.write_rows(folder / "plain/b.parquet", rows[50:])
    jobs.write_rows(folder / "interactions.jsonl", interactions())
    assert add(folder) == 0
    return folder


def add(folder: Path, *arguments: str, output: str = "vectors", catalog: str = "plain") -> int:
    """Runs `semid interactions`."""
    return jobs.command(
        folder,
        "interactions",
        *("--interactions", str(folder / "interactions.jsonl")),
        *("--catalog", str(folder / catalog / "*")),
        *("--output", str(folder / output), "--dimension", "8", *arguments),
    )


def column(folder: Path, name: str = "vectors") -> dict[str, list[float] | None]:
    """Returns the vectors by item."""
    rows = pa.concat_tables(
        pq.read_table(folder / name / f"{part}.parquet") for part in "ab"
    ).to_pylist()
    return {row["item_id"]: row["interaction_embedding"] for row in rows}


def test_the_new_column_is_all_that_is_new(folder: Path) -> None:
    for part in "ab":
        before = pq.read_table(folder / f"plain/{part}.parquet")
        after = pq.read_table(folder / f"vectors/{part}.parquet")
        assert after.drop(["interaction_embedding"]).equals(before)
        assert after.schema.field("interaction_embedding").type == pa.list_(pa.float32())
    vectors = column(folder)
    assert [name for name, vector in vectors.items() if vector is None] == [
        f"P{n:06d}" for n in range(80, 90)
    ]
    matrix = np.array([vectors[f"P{n:06d}"] for n in range(80)])
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    cosine = matrix @ matrix.T
    assert cosine[:40, :40].mean() > 0.3 > 0 > cosine[:40, 40:].mean()


def test_vectors_depend_on_neither_file_order_nor_repeated_runs(
    folder: Path, tmp_path: Path
) -> None:
    jobs.write_rows(tmp_path / "interactions.jsonl", jobs.shuffled(interactions()))
    rows = products()
    jobs.write_rows(tmp_path / "plain/a.parquet", rows[:10])
    jobs.write_rows(tmp_path / "plain/b.parquet", list(reversed(rows[10:])))
    assert add(tmp_path) == 0
    assert column(tmp_path) == column(folder)
    assert add(tmp_path) == 0  # over its own output
    assert column(tmp_path) == column(folder)


def test_what_is_left_out_is_counted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        *interactions(),
        {"user_id": 1, "item_id": "gone", "rating": 1},
        {"user_id": None, "item_id": "P000001", "rating": 1},
    ]
    jobs.write_rows(tmp_path / "interactions.jsonl", rows)
    jobs.write_rows(tmp_path / "plain/a.parquet", products())
    assert add(tmp_path, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["interactions"], said["items_with_vector"], said["items"]) == (720, 80, 90)
    assert said["interactions_with_other_items"] == said["interactions_unusable"] == 1
    # Every fifth user rates 0, which is no weight.
    assert add(tmp_path, "--json", "--weight-column", "rating") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["interactions"] == 576 and said["interactions_unusable"] == 145
    assert add(tmp_path) == 0
    assert "interaction_embedding: {dimension: 8, weight: 0.5}" in capsys.readouterr().out


def test_bad_usage_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(code: int, words: str, *arguments: str, **places: str) -> None:
        assert add(tmp_path, *arguments, **places) == code
        assert words in capsys.readouterr().err

    jobs.write_rows(tmp_path / "interactions.jsonl", interactions())
    rows = products()
    jobs.write_rows(tmp_path / "plain/a.parquet", rows)
    refused(3, "720 lack user, item or weight", "--user-column", "who")
    refused(2, "dimension must lie in", "--dimension", "0")
    refused(3, "at least 500 users", "--min-users", "500")
    refused(2, "would replace the catalog", output="plain")
    jobs.write_rows(tmp_path / "full/other.parquet", rows)
    refused(2, "holds other Parquet files", output="full")
    jobs.write_rows(tmp_path / "text/a.jsonl", rows)
    refused(2, "Parquet files only", catalog="text")


def test_text_and_vectors_are_fused_and_each_text_is_encoded_once(
    folder: Path, tmp_path: Path, text_config: dict
) -> None:
    root, config = tmp_path / "root", jobs.merged(text_config, FUSE)
    outcome = jobs.run(str(folder / "vectors/*"), root, config)
    counters = outcome.results["embed"]["counters"]
    assert counters["embed/rows-without-interaction_embedding"] == 10
    assert outcome.manifest.encoder["name"].endswith(" + interaction_embedding")
    jobs.assert_sound(root)

    plain = tmp_path / "plain"
    alone = jobs.run(str(folder / "plain/*"), plain, text_config)
    encoded = alone.results["embed"]["counters"]["embed/texts-encoded"]
    assert counters["embed/texts-encoded"] == encoded <= 45
    texts = embeddings(plain)
    fused = embeddings(root)
    scale = np.sqrt(1 + 0.5**2)
    for name, vector in column(folder).items():
        width = len(texts[name])
        np.testing.assert_allclose(fused[name][:width], texts[name] / scale, atol=1e-6)
        expected = np.zeros(8) if vector is None else np.array(vector)
        expected *= 0.5 / scale / max(np.linalg.norm(expected), 1e-9)
        np.testing.assert_allclose(fused[name][width:], expected, atol=1e-6)

    # The same again changes nothing; a changed vector is changed content, and its text is known
    # to no generation: it is encoded again.
    assert jobs.run(str(folder / "vectors/*"), root, config).manifest.counts["updated"] == 0
    table = pq.read_table(folder / "vectors/a.parquet").to_pylist()
    table[0]["interaction_embedding"] = [1.0] + [0.0] * 7
    jobs.write_rows(tmp_path / "c/a.parquet", table)
    catalog = [str(tmp_path / "c/a.parquet"), str(folder / "vectors/b.parquet")]
    outcome = jobs.run(catalog, root, config)
    assert outcome.manifest.counts["updated"] == 1
    assert outcome.results["embed"]["counters"]["embed/texts-encoded"] == 1
    jobs.assert_sound(root)


def embeddings(root: Path) -> dict[str, np.ndarray]:
    """Returns the stored embedding of every item."""
    rows = jobs.table(root, "embeddings").to_pylist()
    return {row["item_id"]: np.array(row["embedding"]) for row in rows}


def test_another_weight_or_width_is_another_encoder(
    folder: Path, tmp_path: Path, text_config: dict
) -> None:
    root = tmp_path / "root"
    catalog = str(folder / "vectors/*")
    jobs.run(catalog, root, jobs.merged(text_config, FUSE))
    heavier = {"fuse": {"interaction_embedding": {"dimension": 8, "weight": 0.6}}}
    for other in ({"input": heavier}, {}):
        with pytest.raises(MismatchError, match="encoder"):
            jobs.run(catalog, root, jobs.merged(text_config, other))


def test_what_semid_fit_embedded_is_not_embedded_again(
    folder: Path, tmp_path: Path, text_config: dict
) -> None:
    root, catalog = tmp_path / "root", str(folder / "vectors/*")
    settings = jobs.merged(jobs.SETTINGS, text_config, FUSE)
    assert (
        jobs.command(tmp_path, "fit", "--catalog", catalog, "--root", str(root), config=settings)
        == 0
    )
    outcome = jobs.run(catalog, root, jobs.merged(text_config, FUSE))
    assert outcome.results["fit"]["fitted"] is False
    assert outcome.results["embed"]["counters"].get("embed/texts-encoded", 0) == 0
    assert list((root / "runs").iterdir()) == []


def test_columns_can_be_fused_with_columns_and_bad_ones_are_rejected(tmp_path: Path) -> None:
    rows = jobs.vector_rows({f"i{n:02d}": n for n in range(40)})
    for n, row in enumerate(rows):
        row["extra"] = [None, [3.0, 4.0], [0.0, 0.0], [1.0]][n % 4] if n < 8 else [0.0, 2.0]
    catalog = jobs.write_rows(tmp_path / "catalog.jsonl", rows)
    config = {"input": {"fuse": {"extra": {"dimension": 2, "weight": 2}}, "max_reject_share": 0.2}}
    outcome = jobs.run(catalog, tmp_path / "root", config)
    assert outcome.manifest.rejects == {"bad_embedding": 4}
    found = embeddings(tmp_path / "root")
    np.testing.assert_allclose(found["i01"][-2:], np.array([0.6, 0.8]) * 2 / np.sqrt(5), atol=1e-6)
    assert found["i00"][-2:].tolist() == [0, 0]
    assert np.linalg.norm(found["i00"]) == pytest.approx(1 / np.sqrt(5), abs=1e-6)
    jobs.assert_sound(tmp_path / "root")


def test_a_fused_column_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = jobs.write_rows(tmp_path / "catalog.parquet", products())
    arguments = ["tokenize", "--catalog", catalog, "--root", str(tmp_path / "root")]
    assert jobs.command(tmp_path, *arguments, config=FUSE) == 2
    assert "no column 'interaction_embedding', which input.fuse names" in capsys.readouterr().err
