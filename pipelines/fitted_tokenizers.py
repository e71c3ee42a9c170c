"""The tokenizers under ROOT: finding one, and reading what it is and was fitted on."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from typing import Any

from models.quantizer import Quantizer
from models.sid import SidLayout
from models.tokenizers import from_files, quantizer_config, read_config, tokenizer_id
from pipelines.errors import MismatchError, UsageError
from pipelines.root import Root
from semid_transforms import files
from semid_transforms.quantizing import TOKENIZER_FILES


@dataclasses.dataclass(frozen=True)
class FittedTokenizer:
    """A tokenizer that can be published with.

    Attributes:
      identity: its id, the name of its folder.
      encoder: fingerprint of what made the embeddings it was fitted on.
      template: fingerprint of the text template.
      settings: the configuration it was fitted with, `kind` included; plain JSON values.
      layout: of the SIDs it makes.
      contents: its files by name.
    """

    identity: str
    encoder: str
    template: str
    settings: dict[str, Any]
    layout: SidLayout
    contents: dict[str, bytes]

    @functools.cached_property
    def quantizer(self) -> Quantizer:
        """The tokenizer itself. Most runs need not build it, which takes torch."""
        return from_files(self.contents)


def resolve_tokenizer(root: Root, name: str, option: str) -> str:
    """Returns the id of the one tokenizer under a root that begins with some digits.

    Args:
      root: where tokenizers are.
      name: an id, or its first digits.
      option: that named it, for messages.

    Raises:
      UsageError: no tokenizer or several begin so.
    """
    found = []
    if re.fullmatch("[0-9a-f]+", name):
        try:
            found = files.match([files.join(root.path, "tokenizers", f"{name}*", "config.json")])
        except FileNotFoundError:
            found = []
    if not found:
        raise UsageError(f"{option} {name}: no such tokenizer under {root.path}/tokenizers")
    if len(found) > 1:
        raise UsageError(f"{option} {name}: {len(found)} tokenizers begin so, write more digits")
    return found[0].path.split("/")[-2]


def read_tokenizer(root: Root, identity: str) -> FittedTokenizer:
    """Reads a tokenizer that `semid fit` or a first `semid tokenize` made.

    Raises:
      MismatchError: it is not there, was altered, or made by a release with another format.
    """
    folder = root.tokenizer_folder(identity)
    try:
        contents = {n: files.read_bytes(files.join(folder, n)) for n in TOKENIZER_FILES}
    except FileNotFoundError as error:
        raise MismatchError(
            f"tokenizer {identity} is not whole under {root.path}/tokenizers: {error}; restore it"
        ) from error
    try:
        made = read_config(contents)
        said = json.loads(contents["metrics.json"])
        origin, config = said["origin"], said["fit"]["config"]
        encoder, template = origin["encoder"], origin["template"]
    except (ValueError, KeyError, TypeError) as error:
        raise MismatchError(
            f"tokenizer {identity[:16]} cannot be used by this release: {error}; fit one with "
            f"`semid fit`"
        ) from error
    if (actual := tokenizer_id(contents)) != identity:
        raise MismatchError(
            f"tokenizer {identity[:16]} was altered: its files have the id {actual[:16]}; restore "
            f"them, or fit another with `semid fit`"
        )
    kind = made["kind"]
    return FittedTokenizer(
        identity,
        encoder,
        template,
        {"kind": kind, **config},
        SidLayout.fitting(made["codebook_sizes"], quantizer_config(kind).hierarchical),
        contents,
    )


def find_tokenizer(root: Root, origin: dict[str, str]) -> str | None:
    """Returns the newest tokenizer under a root that was fitted on the same kind of embeddings."""
    found: list[tuple[str, str]] = []
    pattern = files.join(root.path, "tokenizers", "*", "metrics.json")
    try:
        paths = [file.path for file in files.match([pattern])]
    except FileNotFoundError:
        return None
    for path in paths:
        fitted = json.loads(files.read_bytes(path))["origin"]
        if all(fitted.get(name) == value for name, value in origin.items()):
            found.append((fitted["fitted_at"], path.split("/")[-2]))
    return max(found)[1] if found else None
