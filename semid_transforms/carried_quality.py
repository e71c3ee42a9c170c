"""Which figures of a quality table are measured anew, and which go on from one to the next.

Everything that is counted over all items is counted in every full run. Distances between items are
measured on a sample whose size does not depend on the catalog: in a night with few changes they
would take longer than anything else, and say the same. So they are measured again once enough items
have changed.
"""

from __future__ import annotations

import json
from typing import Any

from models.metrics import AGREEMENT
from semid_transforms import files

MEASURED = "measured_generation"
"""Key of the generation in which distances were measured."""

COUNTED = "counted_generation"
"""Key of the generation in which all items were counted."""

CHANGES = "changed_since_measured"
"""Key of how many items have come, gone or changed since distances were measured."""

_OF_ONE_STEP = ("drift", "kept", "definitions")


def measured_now(generation: str) -> dict[str, Any]:
    """Returns what a quality table says of distances that a run measures."""
    return {MEASURED: generation, CHANGES: 0}


def carry_distances(
    metrics_path: str, changes: int, max_stale_share: float
) -> dict[str, Any] | None:
    """Returns what a generation keeps of the quality table before it.

    Args:
      metrics_path: of that table, a generation's `metrics.json`.
      changes: items that have come, gone or changed since.
      max_stale_share: of the items counted then, the most changes since distances were measured.

    Returns:
      The table without what belongs to one generation alone; None when distances are to be
      measured.
    """
    previous = json.loads(files.read_bytes(metrics_path))
    changes += previous[CHANGES]
    if changes > max_stale_share * previous["items"]:
        return None
    kept = {name: value for name, value in previous.items() if name not in _OF_ONE_STEP}
    for when in ("before", "after"):
        kept[when] = {name: v for name, v in previous[when].items() if name not in AGREEMENT}
    return kept | {CHANGES: changes}
