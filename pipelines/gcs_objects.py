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
      ObjectChangedError: it was replaced during each of five attempts.
    """
    from google.api_core.exceptions import NotFound, PreconditionFailed

    bucket, name = _bucket(path)
    for _ in range(_READ_ATTEMPTS):
        blob = bucket.get_blob(name)
        if blob is None:
            return None
        generation, updated = int(blob.generation), blob.updated  # the download may change them
        # Replaced or deleted between the two calls: look again.
        with contextlib.suppress(PreconditionFailed, NotFound):
            data = blob.download_as_bytes(if_generation_match=generation)
            return StoredObject(data, generation, updated)
    raise ObjectChangedError(f"{path} changes faster than it can be read")


def write_object(path: str, data: bytes, expected: int) -> StoredObject:
    """Writes an object if its generation is still the expected one.

    A write whose answer was lost is tried again and then fails its own precondition, so a refusal
    counts only when the object does not hold the very bytes that were to be written.

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
    except PreconditionFailed:
        found = read_object(path)
        if found is None or found.data != data or found.generation == expected:
            raise ObjectChangedError(f"{path} was changed by another writer") from None
        return found
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
