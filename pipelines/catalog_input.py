"""The catalog a run reads and the encoder it uses, checked against what is published."""

from __future__ import annotations

import dataclasses
from typing import Any

from pipelines.errors import InputRefusedError, MismatchError, UsageError
from pipelines.job import Job
from pipelines.root import Published
from pipelines.settings import Settings
from schemas.config import fingerprint
from schemas.manifest import SCHEMA_VERSION
from semid_transforms import files
from semid_transforms.encoder import identify_encoder
from semid_transforms.reading import CatalogReader, open_catalog


@dataclasses.dataclass(frozen=True)
class CatalogInput:
    """A catalog that can be read.

    Attributes:
      reader: its files and how they are read.
      encoder: what makes their embeddings, with a `fingerprint`; plain JSON values.
    """

    reader: CatalogReader
    encoder: dict[str, Any]

    @property
    def brings_embeddings(self) -> bool:
        """True when the catalog holds embeddings, so that no text is encoded."""
        return self.reader.embedding is not None


def open_input(job: Job) -> CatalogInput:
    """Finds the catalog's files and says what makes their embeddings.

    Raises:
      InputRefusedError: a pattern matches nothing.
      UsageError: the mapping does not fit the files, or the encoder cannot be found.
    """
    config = job.settings.job
    try:
        sources = files.match(job.catalog)
    except FileNotFoundError as error:
        raise InputRefusedError(f"--catalog: {error}") from error
    try:
        reader = open_catalog(sources, config.input, config.text, config.shards)
        if reader.embedding is None:
            return CatalogInput(reader, identify_encoder(config.encoder).to_json())
    except ValueError as error:
        raise UsageError(str(error)) from error
    description = dataclasses.asdict(reader.embedding)
    encoder = {"name": "catalog", **description, "fingerprint": fingerprint(description)}
    return CatalogInput(reader, encoder)


def check_matches(settings: Settings, catalog: CatalogInput, parent: Published) -> None:
    """Refuses to grow a generation made differently.

    Raises:
      MismatchError: naming what differs and both fingerprints.
    """
    if parent.manifest is None:
        return
    published = parent.manifest.fingerprints
    pairs = [
        ("schema version", str(SCHEMA_VERSION), str(parent.manifest.schema_version)),
        ("encoder", catalog.encoder["fingerprint"], published.encoder),
        ("text template", settings.template_fingerprint, published.template),
        ("tokenizer settings", settings.tokenizer_fingerprint, published.tokenizer_settings),
        ("SID layout", fingerprint(settings.layout.to_json()), fingerprint(published.layout)),
    ]
    if catalog.brings_embeddings:  # the text template makes nothing where embeddings come along
        pairs = [pair for pair in pairs if pair[0] != "text template"]
    for name, wanted, found in pairs:
        if wanted != found:
            raise MismatchError(
                f"the {name} of this run does not match generation {parent.generation}: "
                f"{wanted[:16]} here, {found[:16]} published. IDs made differently cannot share a "
                f"root: restore the setting, or start a new --root"
            )
