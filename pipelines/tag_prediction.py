"""Categories as the codes predict them, where categories supervised the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.published_tables import PublishedTables
from semid_transforms import files
from semid_transforms.quantizing import load_tokenizer


def predict_tags(tables: PublishedTables, codes: Sequence[int]) -> list[dict[str, Any]] | None:
    """Predicts the category path of an item from its codes alone.

    Args:
      tables: the generation.
      codes: L base codes, those of the item's content.

    Returns:
      Per depth the predicted `tag`, a path such as `Beauty > Hair`, and its `confidence`, the
      softmax probability; None when the tokenizer was fitted without categories.
    """
    folder = tables.root.tokenizer_folder(tables.manifest.fingerprints.tokenizer)
    if not json.loads(files.read_bytes(files.join(folder, "config.json"))).get("tags"):
        return None  # without loading the model, or importing torch
    from models.rqvae import Rqvae

    quantizer = load_tokenizer(folder)
    assert isinstance(quantizer, Rqvae)
    found = quantizer.predict_tags_of_codes(np.array([codes], np.int32))
    return [
        {"tag": names[tag], "confidence": round(float(confidence), 4)}
        for names, tag, confidence in zip(
            found.names, found.tags[0], found.confidence[0], strict=True
        )
    ]


def tag_accuracy(fitted: dict[str, Any]) -> list[float]:
    """Reads per depth how often a tokenizer predicts the category of held-out items.

    Args:
      fitted: the tokenizer's `metrics.json`.

    Returns:
      One share per depth, none when it was fitted without categories.
    """
    last = fitted["fit"]["last"]
    names = sorted(name for name in last if name.startswith("tag_accuracy_"))
    return [last[name] for name in names]
