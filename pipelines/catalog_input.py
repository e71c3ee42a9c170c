"""The catalog a run reads and the encoder it uses."""

from __future__ import annotations

import dataclasses
from typing import Any

from pipelines.errors import InputRefusedError, UsageError
from pipelines.job import Job
from schemas.config import fingerprint
from semid_transforms import files
from semid_transforms.encoder_identity import identify_encoder
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
    def embeds_text(self) -> bool:
        """True when text is encoded, alone or with columns of the catalog fused to it."""
        return self.reader.embeds_text

    @property
    def fuses(self) -> bool:
        """True when columns of the catalog are fused with the embedding of the text."""
        return self.reader.embedding is not None and self.reader.embedding.text


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
        text = identify_encoder(config.encoder).to_json() if reader.embeds_text else None
    except ValueError as error:
        raise UsageError(str(error)) from error
    if reader.embedding is None:
        assert text is not None
        return CatalogInput(reader, text)
    columns = dataclasses.asdict(reader.embedding)
    if text is None:
        encoder = {"name": "catalog", **columns, "fingerprint": fingerprint(columns)}
    else:
        name = " + ".join([text["name"], *reader.embedding.columns])
        made_of = {"text": text["fingerprint"], "columns": columns}
        encoder = {**text, "name": name, **made_of, "fingerprint": fingerprint(made_of)}
    return CatalogInput(reader, encoder)
