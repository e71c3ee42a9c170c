"""The catalog a run reads and the encoder it uses, checked against what is published."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from models.sid import SidLayout
from pipelines.errors import InputRefusedError, MismatchError, UsageError
from pipelines.job import Job
from pipelines.root import Published
from pipelines.settings import Settings, check_features
from schemas.config import canonical_json, fingerprint
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


def check_matches(
    settings: Settings, catalog: CatalogInput, parent: Published, refit: bool = False
) -> None:
    """Refuses to grow a generation made differently.

    Of the tokenizer only what the configuration sets explicitly is compared: a published tokenizer
    is frozen, so a default that a later version changed means nothing to it.

    Args:
      settings: of this run.
      catalog: of this run.
      parent: what is published.
      refit: True when the run only fits a tokenizer: then only what is embedded must match.

    Raises:
      MismatchError: naming everything that differs, both sides.
    """
    if parent.manifest is None:
        return
    published = parent.manifest.fingerprints
    pairs = [("encoder", catalog.encoder["fingerprint"], published.encoder)]
    if catalog.embeds_text:  # a template makes nothing where embeddings replace text
        pairs.append(("text template", settings.template_fingerprint, published.template))
    pairs.append(("schema version", str(SCHEMA_VERSION), str(parent.manifest.schema_version)))
    differences = [
        f"{name} {wanted[:16]} here, {found[:16]} published"
        for name, wanted, found in pairs
        if wanted != found
    ]
    if not refit:
        try:
            check_features(settings, SidLayout.from_json(published.layout))
        except ValueError as error:
            raise UsageError(str(error)) from error
        config = parent.manifest.config
        differences += _tokenizer_differences(
            settings.job.quantizer, settings.to_json()["quantizer"], config["quantizer"]
        )
        policies = settings.job.collisions.policy, config["collisions"]["policy"]
        if policies[1] == "none" != policies[0]:  # its shared IDs can never become unique
            differences.append(f"collisions.policy {policies[0]} here, {policies[1]} published")
    if differences:
        raise MismatchError(
            f"this run does not match generation {parent.generation}:\n  "
            + "\n  ".join(differences)
            + "\nIDs made differently cannot share a root: restore the setting or take a new --root"
        )


def _tokenizer_differences(
    explicit: Mapping[str, Any], effective: Any, published: Any, path: str = "quantizer"
) -> list[str]:
    """Lists explicit tokenizer settings that the published tokenizer was not fitted with."""
    differences = []
    for key, value in explicit.items():
        if key == "training":
            continue
        wanted = effective[key]
        found = published.get(key) if isinstance(published, Mapping) else None
        if isinstance(value, Mapping) and isinstance(found, Mapping):
            differences += _tokenizer_differences(value, wanted, found, f"{path}.{key}")
        elif canonical_json(wanted) != canonical_json(found):
            differences.append(f"{path}.{key} {wanted} here, {found} published")
    return differences
