"""The coder of the unit of data: `pa.RecordBatch` as Arrow IPC.

Beam's default pickles a slice together with its whole parent: ten rows of a 10,000 x 384 batch
become 15.5 MB; as Arrow IPC they are 16 KB. Buffers are compressed: a shuffle may keep its payload
in memory several times over, and names of files and changes repeat in every row.

Processes of one machine lay batches down in files that all of them have open, and send each other
the places: the runner between them would copy a shuffle half a dozen times in one thread, and hold
it in memory. They do not compress: that took longer than what it spares. See `share_files`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import Coder

from semid_transforms.shuffle_files import ShuffleFiles

_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")

_handing_on = False
_shared: ShuffleFiles | None = None


def share_files(shared: ShuffleFiles | None) -> None:
    """Lays batches down in files from now on; None ends it.

    Args:
      shared: files that every process that decodes what this one encodes has open.
    """
    global _shared
    _shared = shared


@contextlib.contextmanager
def handing_on() -> Iterator[None]:
    """Leaves batches encoded while the block runs: for a process that only hands them on.

    A local runner decodes what it groups for its workers and encodes it again. It looks at keys
    alone, and encoded batches take less time and, compressed as they are, less memory.
    """
    global _handing_on
    before, _handing_on = _handing_on, True
    try:
        yield
    finally:
        _handing_on = before


class RecordBatchCoder(Coder):
    """Encodes a RecordBatch, its schema included, as an Arrow IPC stream of one batch.

    The bytes are a function of schema and rows as long as the batch was built with `take`,
    `filter` or from arrays, so the coder is deterministic for equal batches built equally, but it
    does not claim to be: batches are values here, never keys.
    """

    def encode(self, value: pa.RecordBatch | bytes) -> bytes:
        """Returns the batch as bytes."""
        if isinstance(value, bytes):
            return value  # see handing_on
        sink = pa.BufferOutputStream()
        options = _OPTIONS if _shared is None else None
        with pa.ipc.new_stream(sink, value.schema, options=options) as writer:
            writer.write_batch(value)
        encoded = sink.getvalue()
        return encoded.to_pybytes() if _shared is None else _shared.append(encoded)

    def decode(self, encoded: bytes) -> pa.RecordBatch | bytes:
        """Returns the batch that `encode` was given."""
        if _handing_on:
            return encoded
        if _shared is not None:
            encoded = _shared.resolve(encoded)
        with pa.ipc.open_stream(encoded) as reader:
            return reader.read_next_batch()

    def estimate_size(self, value: pa.RecordBatch) -> int:
        """Returns the batch's bytes in memory.

        Beam samples the sizes of what stages pass on. Left to itself it encodes a batch to know,
        one of embeddings too that nothing else would encode.
        """
        return int(value.nbytes)

    def is_deterministic(self) -> bool:
        """False: a RecordBatch is never used as a key."""
        return False

    def to_type_hint(self) -> type:
        """The type this coder is registered for."""
        return pa.RecordBatch


def register() -> None:
    """Makes Beam use the coder for every PCollection typed `pa.RecordBatch`; idempotent."""
    beam.coders.registry.register_coder(pa.RecordBatch, RecordBatchCoder)
