"""What a command says when it is done: text for people."""

from __future__ import annotations

import dataclasses
from typing import Any

from pipelines.backfill import NothingToDo
from pipelines.checks import table_of_reasons
from pipelines.feature_store import FeastOutcome
from pipelines.fit import FitOutcome
from pipelines.generation import Outcome
from pipelines.root import Root
from pipelines.tag_prediction import tag_accuracy
from pipelines.verify import Verdict
from schemas.manifest import Manifest
from schemas.tables import Change
from semid_transforms.carried_quality import CHANGES, COUNTED, MEASURED


def outcome_text(root: Root, outcome: Outcome) -> str:
    """Summarises a published generation."""
    manifest, links = outcome.manifest, outcome.results
    total, counts = manifest.total, manifest.counts
    seconds = sum(link["seconds"] for link in links.values())
    timing = "  ".join(f"{name} {link['seconds']:.1f}" for name, link in links.items())
    changes = "  ".join(f"{change.value} {counts[change.value]:,}" for change in Change)
    encoded = links["embed"]["counters"].get("embed/texts-encoded", 0)
    fitted = ""
    if links["fit"]["fitted"]:
        fitted = f", fitted on {links['fit']['sample_rows']:,} distinct embeddings"
    lines = [
        f"published generation {manifest.generation} under {root.path} in {seconds:.1f} s",
        f"  rows        {total.read:,} read = {total.live:,} live + {total.rejected:,} rejected + "
        f"{total.duplicate:,} duplicate",
        f"  changes     {changes}",
        f"  encoded     {encoded:,} texts with {manifest.encoder['name']}",
        f"  tokenizer   {manifest.fingerprints.tokenizer[:16]}, {_sizes(manifest)} codes{fitted}",
        f"  seconds     {timing}",
        f"  memory      {peak_bytes(links) / 2**30:.1f} GiB at most",
    ]
    if manifest.rejects:
        lines.append("  rejected")
        lines.append(table_of_reasons(manifest.rejects))
    if kept := outcome.metrics.get("kept"):
        lines.append(
            f"  new IDs     another tokenizer, another ID space: of {kept['items']:,} items "
            f"{_kept(kept['share'])}"
        )
    if not links["index"]["rebuilt"]:
        lines.append("  nothing changed: every table is the parent's")
    lines += drift_lines(outcome.metrics.get("drift"))
    return "\n".join([*lines, metrics_text(outcome.metrics)])


def peak_bytes(links: dict[str, dict[str, Any]]) -> int:
    """Returns the most memory a run held, also in attempts that were interrupted."""
    return max(link["peak_memory_bytes"] for link in links.values())


def drift_lines(drift: dict[str, Any] | None) -> list[str]:
    """Says how far new items are from the fitting sample, and whether to fit again."""
    if drift is None:
        return []
    divergence = " ".join(f"{level['divergence']:.2f}" for level in drift["levels"])
    lines = [
        f"  drift       {drift['items']:,} new items: error {_number(drift['error_ratio'])} times "
        f"that of the {drift['sample_items']:,} fitted on, {drift['far_share']:.1%} of them beyond "
        f"its 95 % quantile; codes diverge by {divergence} nats"
    ]
    lines += [f"  advice      {what}" for what in drift["advice"]]
    if drift["advice"]:
        lines.append("  advice      fit again on the whole catalog: semid fit")
    return lines


def nothing_text(root: Root, outcome: NothingToDo) -> str:
    """Says that a backfill had nothing to publish."""
    total = outcome.total
    lines = [
        f"nothing to do: generation {outcome.generation} under {root.path} has every item given",
        f"  rows        {total.read:,} read = {total.live:,} live + {total.rejected:,} rejected + "
        f"{total.duplicate:,} duplicate",
    ]
    if outcome.rejects:
        lines += ["  rejected", table_of_reasons(outcome.rejects)]
        lines.append(f"  every rejected row is kept in {outcome.rejects_folder}")
    return "\n".join(lines)


def nothing_json(root: Root, outcome: NothingToDo) -> dict[str, Any]:
    """Returns the same as plain JSON values."""
    return {
        "root": root.path,
        "published": False,
        "generation": outcome.generation,
        "rows": outcome.total.to_json(),
        "rejects": outcome.rejects,
        "rejects_folder": outcome.rejects_folder,
    }


def outcome_json(root: Root, outcome: Outcome) -> dict[str, Any]:
    """Returns the same as plain JSON values."""
    manifest = outcome.manifest
    return {
        "root": root.path,
        "published": True,
        "generation": manifest.generation,
        "parent": manifest.parent,
        "rows": manifest.total.to_json(),
        "rejects": manifest.rejects,
        "counts": manifest.counts,
        "tokenizer": manifest.fingerprints.tokenizer,
        "peak_memory_bytes": peak_bytes(outcome.results),
        "links": outcome.results,
        "metrics": outcome.metrics,
    }


def metrics_text(metrics: dict[str, Any]) -> str:
    """Lays the quality table out; definitions are in `metrics.json` and `semid metrics`."""
    before, after = metrics["before"], metrics["after"]
    levels = "prefix_cosine" in before
    cosines = before["prefix_cosine" if levels else "code_cosine"]
    head = ("level   ", "prefix") if levels else ("codebook", "code")
    lines = [f"  {head[0]}    codes used       perplexity/K   Gini   cosine sharing the {head[1]}"]
    for number, level in enumerate(before["levels"], start=1):
        cosine = cosines[number]
        lines.append(
            f"    {number:<9} {level['used_codes']:>5} of {level['codebook_size']:<6} "
            f"{level['perplexity_share']:>10.3f} {level['gini']:>9.3f} {_number(cosine):>12}"
        )
    floor = metrics["collisions_floor"]
    lines += [
        f"    any pair {_number(cosines[0]):>55}",
        f"  collisions  before: {before['collisions']['b']:.2%} of items share their codes "
        f"(A {before['collisions']['a']:.2%}, largest {before['collisions']['largest']}; identical "
        f"texts alone {floor['b']:.2%})",
        f"              after:  {after['shared_sids']['b']:.2%} share an ID",
        "  placement   "
        + "  ".join(f"{name} {count:,}" for name, count in metrics["placements"].items()),
        f"  1 - R2      {before['one_minus_r2']:.4f} before, {after['one_minus_r2']:.4f} after "
        f"collision resolution",
        _neighbours(before, levels),
    ]
    if changed := metrics[CHANGES]:
        lines.append(
            f"  measured    cosines, neighbours and 1 - R2 in generation {metrics[MEASURED]}, "
            f"{changed:,} changes ago, use of codes and collisions in {metrics[COUNTED]}"
        )
    if not levels:
        lines.append("  codes of parallel codebooks: no prefixes, so no figures by prefix")
    for row in before.get("category_agreement", []):
        if row["prefix"] == 1 and row["depth"] <= 2:
            lines.append(
                f"  category    depth {row['depth']}: {_share(row['share'])} of pairs sharing 1 "
                f"code agree, chance {_share(row['chance'])}"
            )
    for row in before.get("code_category_agreement", []):
        if row["depth"] == 1:
            lines.append(
                f"  category    depth 1: {_share(row['share'])} of pairs sharing the code of "
                f"codebook {row['codebook']} agree, chance {_share(row['chance'])}"
            )
    return "\n".join(lines)


def _neighbours(before: dict[str, Any], levels: bool) -> str:
    found = before["neighbourhood" if levels else "neighbours_sharing"]
    many = "" if levels else " or more"
    shares = (
        f"{share:.1%} share {length} code{'s' * (length > 1)}{many}"
        for length, share in enumerate(found["share"], start=1)
    )
    return f"  neighbours  {'  '.join(shares)} (nearest {found['k']})"


def comparison_text(compared: dict[str, dict[str, Any]]) -> str:
    """Lays several tokenizers out side by side, one line each."""
    lines = [
        "  compared on one sample of items (B: items sharing their codes, before resolution)",
        f"    {'':<24} {'items':>8} {'B':>7}  {'perplexity/K':<28} {'cosine, 1..L codes':<30} 1-R2",
    ]
    flat = False
    for name, document in compared.items():
        use = " ".join(f"{level['perplexity_share']:.2f}" for level in document["levels"])
        levels = "prefix_cosine" in document
        flat = flat or not levels
        cosines = document["prefix_cosine" if levels else "code_cosine"][1:]
        cosine = " ".join(_number(value) for value in cosines) + " *" * (not levels)
        lines.append(
            f"    {name[-24:]:<24} {document['items']:>8,} {document['collisions']['b']:>7.2%}  "
            f"{use:<28} {cosine:<30} {_number(document.get('one_minus_r2'))}"
        )
    if flat:
        lines.append("    * parallel codebooks: of pairs sharing the code of codebook 1, 2, ...")
    return "\n".join(lines)


def fit_text(root: Root, outcome: FitOutcome) -> str:
    """Summarises a fitted tokenizer."""
    quality = outcome.metrics["quality"]
    name = outcome.tokenizer_id[:16]
    rows = outcome.results["fit"]["sample_rows"]
    seconds = outcome.results["fit"]["seconds"]
    lines = [
        f"fitted tokenizer {outcome.tokenizer_id} under {root.path}",
        f"  on {rows:,} distinct embeddings in {seconds:.1f} s; nothing was published",
    ]
    previous = outcome.metrics.get("previous", {})
    if "kept" in previous:
        start = "started from" if previous["warm_start"] else "numbered after"
        lines.append(
            f"  {start} {previous['tokenizer'][:16]}: of {previous['items']:,} published items "
            f"{_kept(previous['kept'])}"
        )
        lines.append(f"  publish it with: semid tokenize --tokenizer {name} ...")
    lines += tags_lines(tag_accuracy(outcome.metrics))
    return "\n".join([*lines, comparison_text({name: quality})])


def tags_lines(accuracy: list[float]) -> list[str]:
    """Says how well codes predict categories; nothing where none supervised the tokenizer."""
    if not accuracy:
        return []
    shares = "  ".join(f"depth {n} {share:.1%}" for n, share in enumerate(accuracy, start=1))
    return [f"  tags        right for held-out items: {shares}"]


def feast_text(folder: str, outcome: FeastOutcome) -> str:
    """Summarises what a feature store was told."""
    log = outcome.log
    lines = [
        f"Feast repository {folder} holds generation {outcome.generation}",
        f"  history     {log.changed:,} rows added, {log.gone:,} of retired items"
        + (f"; started anew: {log.restarted}" if log.restarted else ""),
        f"  online      {outcome.materialized:,} rows written",
        f"  features    {', '.join(outcome.features)}",
    ]
    if outcome.item:
        lines.append(f"  read back   item {outcome.item['item_id']}, as published:")
        shown = feast_json(outcome)["item"]
        lines += [f"    {name:<20} {shown[name]}" for name in outcome.features]
    return "\n".join(lines)


def feast_json(outcome: FeastOutcome) -> dict[str, Any]:
    """Returns the same as plain JSON values; bytes become hex digits."""
    item = {
        name: value.hex() if isinstance(value, bytes) else value
        for name, value in outcome.item.items()
    }
    return {**dataclasses.asdict(outcome), "item": item}


def definitions_text(metrics: dict[str, Any]) -> str:
    """Lists what every figure means."""
    lines = [f"    {name:<20} {text}" for name, text in metrics["definitions"].items()]
    return "\n".join(["  definitions", *lines])


def verdict_text(verdict: Verdict) -> str:
    """Summarises a verification."""
    looked = "  ".join(f"{name} {count:,}" for name, count in verdict.checks.items())
    looked += "".join(f"\n  absent: {what}" for what in verdict.absent)
    if not verdict.problems:
        return f"generation {verdict.generation} is sound\n  checked: {looked}"
    lines = [f"  [{problem.invariant}] {problem.detail}" for problem in verdict.problems]
    head = f"generation {verdict.generation} is NOT sound"
    return "\n".join([head, *lines, f"  checked: {looked}"])


def _sizes(manifest: Manifest) -> str:
    return " x ".join(str(size) for size in manifest.fingerprints.layout["codebook_sizes"])


def _kept(shares: list[float]) -> str:
    return ", ".join(
        f"{share:.1%} keep {f'{length} codes' if length > 1 else '1 code'}"
        for length, share in enumerate(shares, start=1)
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
