"""ROOT: where generations and tokenizers live, and the one pointer that publishes them."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
from collections.abc import Iterator

from pipelines.errors import CommandError, ConflictError, MismatchError, UsageError
from pipelines.gcs_objects import ABSENT, ObjectChangedError, read_object, write_object
from schemas.manifest import Current, Manifest, SchemaVersionError
from semid_transforms import files

CURRENT = "CURRENT"
MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Published:
    """What CURRENT pointed to when it was read.

    Attributes:
      generation: id, None when nothing is published yet.
      manifest: of that generation.
      token: what a swap compares: the pointer's bytes, or its object generation on GCS.
      manifest_sha256: of the manifest's bytes.
    """

    generation: str | None
    manifest: Manifest | None
    token: bytes | int | None
    manifest_sha256: str | None = None


@dataclasses.dataclass(frozen=True)
class Root:
    """A root folder, local or on an object store.

    Attributes:
      path: as the operator gave it.
    """

    path: str

    def folder(self, generation: str) -> str:
        """Folder of a generation."""
        return files.join(self.path, "generations", generation)

    def tokenizer_folder(self, tokenizer_id: str) -> str:
        """Folder of a tokenizer."""
        return files.join(self.path, "tokenizers", tokenizer_id)

    def manifest(self, generation: str) -> Manifest:
        """Reads the manifest of a complete generation.

        Raises:
          UsageError: there is no such complete generation.
          MismatchError: it was written under another schema or layout version.
        """
        try:
            return Manifest.from_json(self._manifest_bytes(generation))
        except FileNotFoundError as error:
            raise UsageError(
                f"{self.path} has no complete generation {generation}: no manifest in "
                f"{self.folder(generation)}"
            ) from error
        except SchemaVersionError as error:
            raise MismatchError(f"generation {generation}: {error}") from error
        except ValueError as error:
            raise UsageError(f"generation {generation}: {error}") from error

    def published(self) -> Published:
        """Reads CURRENT and the manifest it names.

        Raises:
          UsageError: CURRENT names a generation that is incomplete or was altered.
        """
        data, token = self._read_pointer()
        if data is None:
            return Published(None, None, token)
        try:
            current = Current.from_json(data)
        except ValueError as error:
            raise UsageError(f"{self.path}: {error}") from error
        manifest = self.manifest(current.generation)
        digest = self.manifest_sha256(current.generation)
        if digest != current.manifest_sha256:
            raise UsageError(
                f"the manifest of generation {current.generation} was altered after it was "
                f"published: sha256 {digest[:16]}..., CURRENT says "
                f"{current.manifest_sha256[:16]}..."
            )
        return Published(current.generation, manifest, token, digest)

    def manifest_sha256(self, generation: str) -> str:
        """Returns the hex digest of the manifest of a complete generation."""
        return hashlib.sha256(self._manifest_bytes(generation)).hexdigest()

    def require_published(self) -> tuple[str, Manifest]:
        """Returns the published generation and its manifest.

        Raises:
          UsageError: nothing is published.
        """
        published = self.published()
        if published.generation is None or published.manifest is None:
            raise UsageError(f"nothing is published under {self.path}: run `semid tokenize` first")
        return published.generation, published.manifest

    def publish(self, manifest: Manifest, expected: Published) -> None:
        """Writes the manifest into its complete generation, then swaps CURRENT to it.

        Raises:
          ConflictError: another run published since `expected` was read; nothing changed.
          CommandError: the store failed, and whether it swapped is not known.
        """
        data = manifest.to_json()
        files.write_bytes(files.join(self.folder(manifest.generation), MANIFEST), data)
        pointer = Current.of(manifest.generation, data).to_json()
        conflict = self._conflict(manifest.generation)
        scheme = _scheme(self.path)
        if scheme is None:
            files.sync_folders(self.folder(manifest.generation))
            with _exclusive(files.join(self.path, f".{CURRENT}.lock")):
                if self._read_pointer()[1] != expected.token:
                    raise conflict
                files.write_bytes(files.join(self.path, CURRENT), pointer)
                _sync_folder(self.path)
        elif scheme == "gs":
            try:
                write_object(files.join(self.path, CURRENT), pointer, int(expected.token or ABSENT))
            except ObjectChangedError:
                raise conflict from None
            except Exception as error:  # whatever the store's client raises once it stops retrying
                raise CommandError(
                    f"{self.path}/{CURRENT} could not be swapped to generation "
                    f"{manifest.generation}, or its answer was lost: {error}\n`semid show` tells "
                    f"what is published; run again, it builds on that"
                ) from error
        else:
            raise _no_swap(self.path)

    def check_current(self, expected: Published, generation: str) -> None:
        """Refuses to work on a generation when another run has published since CURRENT was read.

        Its lock is free once a run has published, so an equal run that waited for nothing could
        otherwise take that run's complete generation for the leftover of a dead one.

        Raises:
          ConflictError: CURRENT is not what it was.
        """
        if self._read_pointer()[1] != expected.token:
            raise self._conflict(generation)

    def _conflict(self, generation: str) -> ConflictError:
        return ConflictError(
            f"another run published to {self.path} while this one worked; generation {generation} "
            f"was not published and nothing changed: run again to build on what is current now"
        )

    def check_writable(self) -> None:
        """Refuses a root that cannot be published to, before any work is done.

        Raises:
          UsageError: its filesystem has no compare-and-swap, or the folder cannot be made.
        """
        if _scheme(self.path) not in (None, "gs"):
            raise _no_swap(self.path)
        try:
            files.make_folder(self.path)
        except OSError as error:
            raise UsageError(f"--root {self.path}: {error}") from error

    def _manifest_bytes(self, generation: str) -> bytes:
        return files.read_bytes(files.join(self.folder(generation), MANIFEST))

    def _read_pointer(self) -> tuple[bytes | None, bytes | int | None]:
        path = files.join(self.path, CURRENT)
        if _scheme(path) == "gs":
            found = read_object(path)
            return (None, ABSENT) if found is None else (found.data, found.generation)
        if not files.exists(path):
            return None, None
        data = files.read_bytes(path)
        return data, data


def _scheme(path: str) -> str | None:
    return None if files.is_local(path) else path.split("://", 1)[0]


def _no_swap(path: str) -> UsageError:
    return UsageError(
        f"--root {path}: only a local folder or gs:// can be published to, because CURRENT must be "
        f"swapped atomically; publish to one of those and copy the generation"
    )


@contextlib.contextmanager
def _exclusive(path: str) -> Iterator[None]:
    """Holds an advisory lock; the kernel releases it when the process dies."""
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync_folder(path: str) -> None:
    """Makes a rename in a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
