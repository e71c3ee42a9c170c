"""One way into all file formats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from schemas.config import InputConfig, ShardConfig
from semid_transforms.csv_rows import read_csv_rows
from semid_transforms.json_rows import read_json_rows
from semid_transforms.parquet_rows import read_parquet_rows
from semid_transforms.rows import Field, Rows
from semid_transforms.sources import Format, SourceSplit, open_stream


def read_rows(
    split: SourceSplit,
    fields: Sequence[Field],
    input_config: InputConfig,
    shard_config: ShardConfig,
) -> Iterator[Rows]:
    """Reads fields of a split's rows, in order, in stretches of bounded size.

    Raises:
      OSError: the file cannot be opened or read; the message names it.
    """
    if split.format is Format.PARQUET:
        yield from read_parquet_rows(split, fields, input_config, shard_config)
        return
    with open_stream(split) as stream:
        if split.format is Format.JSON_LINES:
            yield from read_json_rows(stream, split, fields, input_config, shard_config)
        else:
            yield from read_csv_rows(stream, fields, input_config, shard_config)
