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


def measured_now(generation: str) -> dict[str, Any]:
    """Returns what a quality table says of distances that a run measures."""
    return {MEASURED: generation, CHANGES: 0}


def read_carried(metrics_path: str, changes: int) -> dict[str, Any]:
    """Returns a generation's quality table as it goes on to the next.

    Args:
      metrics_path: of the table, a generation's `metrics.json`.
      changes: items that have come, gone or changed since.

    Returns:
      The table without what it said of the step to the generation before it.
    """
    table = json.loads(files.read_bytes(metrics_path))
    table.pop("kept", None)
    return table | {CHANGES: table[CHANGES] + changes}


def carry_distances(
    metrics_path: str, changes: int, max_stale_share: float
) -> dict[str, Any] | None:
    """Returns what a generation that counts all its items keeps of the quality table before it.

    Args:
      metrics_path: see `read_carried`.
      changes: see `read_carried`.
      max_stale_share: of the items counted then, the most changes since distances were measured.

    Returns:
      The table without category agreement; None when distances are to be measured.
    """
    table = read_carried(metrics_path, changes)
    if table[CHANGES] > max_stale_share * table["items"]:
        return None
    for when in ("before", "after"):
        table[when] = {name: v for name, v in table[when].items() if name not in AGREEMENT}
    return table
