"""Published roots that tests read, or copy before they change them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipelines import jobs


@pytest.fixture(scope="session")
def vector_catalog(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """300 rows with embeddings; some contents are shared, so that codes collide."""
    return jobs.vector_rows({f"item-{n:03d}": f"content {n % 240}" for n in range(300)})


@pytest.fixture(scope="session")
def vector_root(tmp_path_factory: pytest.TempPathFactory, vector_catalog: list[dict]) -> Path:
    """A root with one generation of `vector_catalog`; read only."""
    folder = tmp_path_factory.mktemp("vectors")
    jobs.run(jobs.write_rows(folder / "catalog.parquet", vector_catalog), folder / "root")
    return folder / "root"


@pytest.fixture(scope="session")
def text_config(tiny_model: str) -> dict:
    """Encodes text with the tiny model, in several parts."""
    return {"encoder": {"model": tiny_model, "rows_per_part": 64, "batch_size": 8}}


@pytest.fixture(scope="session")
def text_root(tmp_path_factory: pytest.TempPathFactory, text_config: dict) -> Path:
    """A root with one generation of 300 generated products; read only."""
    folder = tmp_path_factory.mktemp("texts")
    catalog = jobs.write_rows(folder / "catalog.jsonl", jobs.products(300))
    jobs.run(catalog, folder / "root", text_config)
    return folder / "root"


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a root together with the catalog beside it, for a test to change."""

    def copy(root: Path) -> Path:
        return Path(shutil.copytree(root.parent, tmp_path / root.parent.name)) / root.name

    return copy
