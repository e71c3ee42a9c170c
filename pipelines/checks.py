"""What a run must pass before it may publish."""

from __future__ import annotations

import json
from typing import Any

from pipelines.errors import GateRefusedError, InputRefusedError
from schemas.config import GateConfig, InputConfig
from schemas.rejects import RejectReason, SourceCounts
from semid_transforms import files


def refuse_bad_input(read: dict[str, Any], config: InputConfig, rejects_folder: str) -> None:
    """Stops a run whose catalog is not fit to be published.

    Args:
      read: result of the read link: `sources`, rows per source file, and `rejects`, rejected rows
        per reason.
      config: the limits.
      rejects_folder: where every rejected row is kept, for the message.

    Raises:
      InputRefusedError: with a table of reasons.
    """
    sources = [SourceCounts.from_json(counts) for counts in read["sources"].values()]
    rejects: dict[str, int] = read["rejects"]
    total = sum(sources, SourceCounts(0, 0, 0, 0))
    if not total.balanced:
        raise RuntimeError(f"row counts do not add up: {total}; this is a bug, nothing changed")
    reasons = table_of_reasons(rejects)
    where = f"\nevery rejected row is kept in {rejects_folder}" if rejects else ""
    damaged = rejects.get(RejectReason.DAMAGED_FILE.value, 0)
    if damaged and not config.allow_damaged_files:
        raise InputRefusedError(
            f"the catalog is damaged in {damaged} place{'s' * (damaged > 1)}: publishing would "
            f"retire the items that could not be read.\n{reasons}{where}\nreplace the files, or "
            f"set input.allow_damaged_files"
        )
    share = total.rejected / total.read if total.read else 0.0
    if share > config.max_reject_share:
        raise InputRefusedError(
            f"{total.rejected:,} of {total.read:,} rows rejected ({share:.1%}), more than "
            f"input.max_reject_share ({config.max_reject_share:.1%}):\n{reasons}{where}"
        )
    if total.live == 0:
        raise InputRefusedError(
            f"no usable item: {total.read:,} rows read from {len(sources)} "
            f"file{'s' * (len(sources) != 1)}" + (f":\n{reasons}{where}" if rejects else "")
        )


def table_of_reasons(rejects: dict[str, int]) -> str:
    """Returns one line per reason, the most frequent first."""
    return "\n".join(
        f"  {count:>10,}  {reason:<14} {RejectReason(reason).explanation}"
        for reason, count in sorted(rejects.items(), key=lambda pair: (-pair[1], pair[0]))
    )


def check_gates(metrics_path: str, gates: GateConfig) -> None:
    """Refuses to publish a generation below the configured quality.

    Args:
      metrics_path: the generation's `metrics.json`.
      gates: the limits.

    Raises:
      GateRefusedError: naming every gate that failed, its value and limit.
    """
    metrics = json.loads(files.read_bytes(metrics_path))
    failures = []
    for number, level in enumerate(metrics["before"]["levels"], start=1):
        usable = min(level["codebook_size"], max(1, metrics["distinct_contents"]))
        perplexity = level["perplexity_share"] * level["codebook_size"] / usable
        if perplexity < gates.min_perplexity:
            failures.append(
                f"level {number}: perplexity is {perplexity:.3f} of the {usable} codes it could "
                f"use, below gates.min_perplexity ({gates.min_perplexity})"
            )
    collided = metrics["before"]["collisions"]["b"]
    if collided > gates.max_collision_share:
        failures.append(
            f"{collided:.1%} of items collide before resolution, above gates.max_collision_share "
            f"({gates.max_collision_share:.1%})"
        )
    suffixed = metrics["placements"]["suffixed"] / max(1, metrics["items"])
    if suffixed > gates.max_suffixed_share:
        failures.append(
            f"{suffixed:.1%} of items need a suffix, above gates.max_suffixed_share "
            f"({gates.max_suffixed_share:.1%})"
        )
    if failures:
        raise GateRefusedError(
            "quality gates refused to publish:\n  "
            + "\n  ".join(failures)
            + f"\nthe measurements are in {metrics_path}; fit a better tokenizer (more codes, more "
            f"steps, other text) or change the gate"
        )
