"""The manifest of a generation and the pointer to the current one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any, Literal

import pydantic

from schemas.rejects import SourceCounts

SCHEMA_VERSION = 2
LAYOUT_VERSION = 1


class SchemaVersionError(ValueError):
    """The manifest is sound, but of a version that this release neither reads nor continues."""


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """One file of a generation.

    Attributes:
      path: relative to the generation's folder, with `/`.
      rows: Parquet rows; None for other files.
      bytes: size in bytes.
      sha256: hex digest of the content.
    """

    path: str
    rows: int | None
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Fingerprints:
    """What must stay the same for IDs to be comparable between generations.

    Attributes:
      encoder: hex digest over model weights, tokenizer files, maximum length and normalisation, or
        over the embedding columns when the catalog brings its own.
      template: hex digest over the text template and field mapping.
      tokenizer: id of the tokenizer.
      layout: SID layout as `SidLayout.to_json` gives it.
      spm: SHA-256 of the learned pieces of the `spm` feature, None without it.
    """

    encoder: str
    template: str
    tokenizer: str
    layout: dict[str, Any]
    spm: str | None = None


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a complete generation says of itself; `manifest.json`.

    Attributes:
      generation: its id.
      parent: id of the generation it grew from, None for the first.
      created: ISO 8601 time in UTC.
      counts: `items`, `reserved`, and one count per change.
      sources: rows read per source file.
      rejects: rejected rows per reason.
      fingerprints: see `Fingerprints`.
      encoder: readable description of the encoder.
      config: the effective configuration.
      shards: first SID of each part of `items/` that is not a delta part, ascending.
      files: every file of the generation except this one.
      parent_manifest_sha256: of the parent's manifest. CURRENT vouches for one manifest, and each
        manifest for its parent's, so every generation that is kept can be checked.
      command: what made it: `tokenize` from a full catalog, or `backfill` from a few rows.
    """

    generation: str
    parent: str | None
    created: str
    counts: dict[str, int]
    sources: dict[str, SourceCounts]
    rejects: dict[str, int]
    fingerprints: Fingerprints
    encoder: dict[str, Any]
    config: dict[str, Any]
    shards: list[int]
    files: list[FileEntry]
    parent_manifest_sha256: str | None = None
    command: Literal["tokenize", "backfill"] = "tokenize"
    schema_version: int = SCHEMA_VERSION
    layout_version: int = LAYOUT_VERSION

    @property
    def total(self) -> SourceCounts:
        """Rows of all sources together."""
        return sum(self.sources.values(), SourceCounts(0, 0, 0, 0))

    def table(self, name: str) -> list[FileEntry]:
        """Returns the Parquet parts of one table, in order."""
        return [
            file
            for file in self.files
            if file.path.startswith(f"{name}/") and file.path.endswith(".parquet")
        ]

    def to_json(self) -> bytes:
        """Returns the manifest as indented JSON."""
        return (json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Reads what `to_json` wrote.

        Raises:
          SchemaVersionError: it was written under another schema or layout version.
          ValueError: the bytes are not a manifest.
        """
        try:
            value = json.loads(data)
            versions = value["schema_version"], value["layout_version"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError("manifest.json is damaged: it is not a semid manifest") from error
        for name, found, ours in zip(
            ("schema", "layout"), versions, (SCHEMA_VERSION, LAYOUT_VERSION), strict=True
        ):
            if found != ours:
                raise SchemaVersionError(
                    f"manifest.json has {name} version {found}, this semid reads {ours}: "
                    f"{_version_fix(found, ours)}"
                )
        try:
            return pydantic.TypeAdapter(cls).validate_json(data, strict=True)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"manifest.json is damaged: {where}: {first['msg']}") from error


def _version_fix(found: object, ours: int) -> str:
    if isinstance(found, int) and found < ours:
        return "publish to a new --root, or go on with the release of semid that wrote it"
    return "use the release of semid that wrote it, or a later one"


@dataclasses.dataclass(frozen=True)
class Current:
    """`ROOT/CURRENT`: the published generation."""

    generation: str
    manifest_sha256: str

    def to_json(self) -> bytes:
        """Returns the pointer as JSON."""
        return (json.dumps(dataclasses.asdict(self), sort_keys=True) + "\n").encode()

    @classmethod
    def of(cls, generation: str, manifest: bytes) -> Current:
        """Points to a generation by its manifest's bytes."""
        return cls(generation, hashlib.sha256(manifest).hexdigest())

    @classmethod
    def from_json(cls, data: bytes) -> Current:
        """Reads what `to_json` wrote.

        Raises:
          ValueError: the bytes are not a pointer.
        """
        try:
            return pydantic.TypeAdapter(cls).validate_json(data, strict=True)
        except pydantic.ValidationError as error:
            raise ValueError("CURRENT is damaged: it is not a semid pointer") from error
