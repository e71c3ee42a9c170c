"""Writing small catalogs in every format and reading them back whole."""

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.config import InputConfig, ShardConfig, TextConfig
from schemas.tables import PARSED, REJECTS
from semid_transforms import files
from semid_transforms.embedding_columns import EmbeddingSpec, find_embedding
from semid_transforms.reading import read_split
from semid_transforms.sources import list_splits

DELIMITER = "|"
INPUT = InputConfig(category_delimiter=DELIMITER)
CONTENT = ["item_id", "text", "title", "category_path", "popularity", "updated_at", "content_hash"]


def json_lines(rows: list) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def csv_text(rows: list[dict]) -> bytes:
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(names)
    for row in rows:
        values = [row.get(name) for name in names]
        writer.writerow([DELIMITER.join(v) if isinstance(v, list) else v for v in values])
    return text.getvalue().encode()


def parquet(rows: list[dict] | pa.Table, **options) -> bytes:
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


WRITERS = {".jsonl": json_lines, ".csv": csv_text, ".parquet": parquet}


def write(folder: Path, name: str, data: bytes) -> str:
    """Writes a file, compressed when its name ends in .gz, and returns its path."""
    path = folder / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return str(path)


class Read:
    """All that reading a few files gives; every batch is checked against its contract."""

    def __init__(
        self,
        paths: str | list[str],
        input_config: InputConfig = INPUT,
        text_config: TextConfig = TextConfig(),  # noqa: B008
        shards: ShardConfig = ShardConfig(),  # noqa: B008
        embedding: EmbeddingSpec | None = None,
    ) -> None:
        sources = files.match([paths] if isinstance(paths, str) else paths)
        self.splits = list_splits(sources, shards.split_bytes)
        parsed, rejects = [], []
        self.rows = 0
        for split in self.splits:
            for good, bad, rows in read_split(split, input_config, text_config, shards, embedding):
                good.validate(full=True)
                bad.validate(full=True)
                assert good.schema.equals(PARSED)
                assert bad.schema.equals(REJECTS)
                assert rows.read == good.num_rows + bad.num_rows
                assert good.num_rows <= shards.batch_rows
                parsed.append(good)
                rejects.append(bad)
                self.rows += rows.read
        self.parsed = pa.Table.from_batches(parsed, PARSED)
        self.rejects = pa.Table.from_batches(rejects, REJECTS).to_pylist()

    @property
    def ids(self) -> list[str]:
        return self.parsed["item_id"].to_pylist()

    @property
    def texts(self) -> list[str]:
        return self.parsed["text"].to_pylist()

    @property
    def content(self) -> list[dict]:
        return self.parsed.select(CONTENT).to_pylist()

    @property
    def reasons(self) -> list[str]:
        return [reject["reason"] for reject in self.rejects]


def spec(paths: list[str], input_config: InputConfig = INPUT) -> EmbeddingSpec | None:
    return find_embedding(files.match(paths), input_config, ShardConfig())
