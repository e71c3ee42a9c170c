"""Tables as Arrow IPC files: what a run keeps for itself between two links.

Against Parquet they take a third of the time to write and a quarter to read, and three times the
space. Nothing that is published is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import BinaryIO

import pyarrow as pa

from schemas.tables import conform

SUFFIX = ".arrow"
"""How the names of these files end."""

_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


def write_arrow(file: BinaryIO, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Writes batches of one schema and returns their rows."""
    rows = 0
    with pa.ipc.new_file(file, schema, options=_OPTIONS) as writer:
        for batch in batches:
            writer.write_batch(conform(batch, schema))
            rows += batch.num_rows
    return rows


def read_arrow(source: pa.NativeFile | BinaryIO, columns: Sequence[str] | None) -> pa.Table:
    """Reads all columns or some, in the order of the file.

    Raises:
      pa.ArrowInvalid: it is no such file, or cut short.
    """
    file = pa.ipc.open_file(source)
    if columns is not None:
        places = sorted(file.schema.names.index(name) for name in columns)
        options = pa.ipc.IpcReadOptions(included_fields=places)
        if not places:  # Arrow takes none for all
            return file.read_all().select([])
        file = pa.ipc.open_file(source, options=options)
    return file.read_all()
