"""Re-checking every invariant of a generation from its files alone.

The numbers in front of problems are those of the list in `docs/format.md`:
1 rows balance, 2 items are sound, 3 the trie is the items, 4 parents keep their IDs, 5 codes follow
from embeddings, 6 the generation is complete and unaltered, 7 it was made with what it says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from pipelines.content_checks import (
    check_catalog,
    check_embeddings,
    check_features,
    check_files,
    check_items,
    check_rejects,
    check_schemas,
    check_sources,
    check_tokenizer,
)
from pipelines.identity_checks import check_changes, check_lineage, check_parent, check_reserved
from pipelines.index_checks import (
    check_labels,
    check_no_trie,
    check_nodes,
    check_trie,
    check_vocabulary,
)
from pipelines.published_tables import NO_TRIE, PublishedTables
from pipelines.root import Root
from semid_transforms.quantizing import load_tokenizer

_MOST_PER_CHECK = 5


@dataclasses.dataclass(frozen=True)
class Problem:
    """One broken invariant.

    Attributes:
      invariant: its number.
      detail: what is wrong, naming the item, row or file.
    """

    invariant: int
    detail: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What verification found.

    Attributes:
      generation: that was verified.
      checks: names of the checks that ran, with the number of rows or files each looked at.
      problems: empty when every invariant holds.
      absent: what this generation does not have, and why.
    """

    generation: str
    checks: dict[str, int]
    problems: list[Problem]
    absent: list[str] = dataclasses.field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Returns the verdict as plain JSON values."""
        return {**dataclasses.asdict(self), "ok": not self.problems}


def verify(root: Root, generation: str | None = None) -> Verdict:
    """Checks a generation, the published one by default.

    Raises:
      UsageError: there is no such complete generation, or nothing is published.
    """
    if generation is None:
        generation, manifest = root.require_published()
    else:
        manifest = root.manifest(generation)
    verdict = Verdict(generation, checks={}, problems=[])
    _run_checks(PublishedTables(root, generation, manifest), verdict)
    return verdict


def _run_checks(tables: PublishedTables, verdict: Verdict) -> None:
    """Runs every check in an order in which each may rely on those before it.

    Stops early where nothing further can be judged: altered files, or tables of another shape.
    """
    layout = tables.layout
    _record(verdict, "lineage", 6, check_lineage(tables))
    _record(verdict, "files", 6, check_files(tables))
    if not verdict.problems:
        _record(verdict, "schemas", 2, check_schemas(tables, layout))
    if verdict.problems:
        return
    _record(verdict, "rows per source", 1, check_sources(tables))
    _record(verdict, "rejects", 1, check_rejects(tables))
    _record(verdict, "items", 2, check_items(tables, layout))
    _record(verdict, "n-gram columns", 2, check_features(tables, layout))
    _record(verdict, "catalog", 2, check_catalog(tables))
    if layout.hierarchical:
        _record(verdict, "trie", 3, check_trie(tables, layout))
        _record(verdict, "nodes", 3, check_nodes(tables, layout))
    else:
        verdict.absent.append(NO_TRIE)
        _record(verdict, "no trie", 3, check_no_trie(tables))
    _record(verdict, "path labels", 3, check_labels(tables, layout))
    _record(verdict, "n-gram vocabulary", 3, check_vocabulary(tables))
    _record(verdict, "reserved", 4, check_reserved(tables))
    _record(verdict, "changes", 4, check_changes(tables))
    _record(verdict, "parent", 4, check_parent(tables))
    usable = _record(verdict, "tokenizer", 7, check_tokenizer(tables, layout))
    if usable:
        folder = tables.root.tokenizer_folder(tables.manifest.fingerprints.tokenizer)
        _record(verdict, "embeddings", 5, check_embeddings(tables, load_tokenizer(folder)))


def _record(verdict: Verdict, name: str, invariant: int, found: Iterable[str | int]) -> bool:
    """Runs one check; it yields problems as text and, as a number, what it looked at.

    Returns:
      True when it found no problem.
    """
    shown = 0
    for what in found:
        if isinstance(what, int):
            verdict.checks[name] = what
            continue
        shown += 1
        if shown <= _MOST_PER_CHECK:
            verdict.problems.append(Problem(invariant, f"{name}: {what}"))
    if shown > _MOST_PER_CHECK:
        more = f"{name}: and {shown - _MOST_PER_CHECK} more problems"
        verdict.problems.append(Problem(invariant, more))
    return shown == 0
