"""Single small objects on Google Cloud Storage, written only if nobody else did: CURRENT, leases.

Beam's filesystems have no conditional writes, so these go through google-cloud-storage. It retries
429, 5xx and broken connections with growing pauses for two minutes, then raises.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime

ABSENT = 0
"""Stands for the generation of an object that is not there, as it does in preconditions."""

_READ_ATTEMPTS = 5


class ObjectChangedError(Exception):
    """The object is not what the writer expected; nothing was written."""


@dataclasses.dataclass(frozen=True)
class StoredObject:
    """An object as it was read, or as it was written.

    Attributes:
      data: its bytes.
      generation: changes with every write of the object.
      updated: when it was written, by the store's clock.
    """

    data: bytes
    generation: int
    updated: datetime.datetime


def read_object(path: str) -> StoredObject | None:
    """Reads an object, None when it is not there.

    Raises:
      ObjectChangedError: it was replaced, or came damaged, in each of five attempts.
    """
    from google.api_core.exceptions import NotFound, PreconditionFailed
    from google.cloud.storage.exceptions import DataCorruption

    bucket, name = _bucket(path)
    for _ in range(_READ_ATTEMPTS):
        blob = bucket.get_blob(name)
        if blob is None:
            return None
        generation, updated = int(blob.generation), blob.updated  # the download may change them
        # Replaced or deleted between the two calls, or cut short on its way: look again.
        with contextlib.suppress(PreconditionFailed, NotFound, DataCorruption):
            data = blob.download_as_bytes(if_generation_match=generation)
            return StoredObject(data, generation, updated)
    raise ObjectChangedError(f"{path} changes, or arrives damaged, each time it is read")


def write_object(path: str, data: bytes, expected: int) -> StoredObject:
    """Writes an object if its generation is still the expected one.

    The answer to a write can be lost. The write is then tried again and fails its own
    precondition, or every try seems to fail: so after any failure the object is read, and when it
    holds the very bytes that were to be written, they were.

    Args:
      path: `gs://` path.
      data: must differ from what any other writer would write.
      expected: generation to replace; `ABSENT` to create.

    Raises:
      ObjectChangedError: another writer came first; nothing was written.
    """
    from google.api_core.exceptions import PreconditionFailed

    bucket, name = _bucket(path)
    blob = bucket.blob(name)
    try:
        blob.upload_from_string(data, content_type="application/json", if_generation_match=expected)
    except Exception as error:
        found = read_object(path)
        if found is not None and found.data == data and found.generation != expected:
            return found
        if isinstance(error, PreconditionFailed):
            raise ObjectChangedError(f"{path} was changed by another writer") from None
        raise
    return StoredObject(data, int(blob.generation), blob.updated)


def delete_object(path: str, expected: int) -> None:
    """Deletes an object if its generation is still the expected one, else leaves it alone."""
    from google.api_core.exceptions import NotFound, PreconditionFailed

    bucket, name = _bucket(path)
    with contextlib.suppress(NotFound, PreconditionFailed):
        bucket.blob(name).delete(if_generation_match=expected)


def _bucket(path: str):  # type: ignore[no-untyped-def]  # google-cloud-storage has no types
    from google.cloud import storage  # type: ignore[attr-defined]

    bucket, _, name = path.removeprefix("gs://").partition("/")
    return storage.Client().bucket(bucket), name
