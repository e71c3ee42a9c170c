"""The `semid` command."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.allocator import keep_freed_memory
from pipelines.arguments import build_parser
from pipelines.errors import CommandError, UsageError
from pipelines.lean_imports import import_lean
from pipelines.worker_processes import early_workers

if TYPE_CHECKING:
    from pipelines.job import Job
    from pipelines.settings import Settings

_log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    # Spinning OpenMP threads made small matrix products 7 to 12 times slower on cores that other
    # processes use too. Read when torch is first imported, which every command does after this.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    parser = build_parser()
    options, beam_arguments = parser.parse_known_args(arguments)
    if beam_arguments and not options.takes_beam_options:
        parser.error(f"unrecognized arguments: {' '.join(beam_arguments)}")
    _configure_logging(options.quiet)
    runs_here = not beam_arguments and options.takes_beam_options
    with early_workers(getattr(options, "catalog", ()) if runs_here else ()):
        return _run(options, beam_arguments)


def _run(options: argparse.Namespace, beam_arguments: list[str]) -> int:
    """Runs a command; says what failed."""
    if options.command != "feast":  # it needs pandas
        import_lean(beam_arguments)
    if beam_arguments:
        from pipelines.beam_options import unknown_options

        for name in unknown_options(beam_arguments):
            _log.warning("--%s is an option of neither semid nor Beam: is it misspelled?", name)
    try:
        return _COMMANDS[options.command](options, beam_arguments)
    except CommandError as error:
        print(f"semid {options.command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"semid {options.command}: interrupted; run again to resume", file=sys.stderr)
        return 1
    except MemoryError as error:
        if options.debug:
            raise
        print(
            f"semid {options.command}: out of memory {error}\nnothing that was published changed; "
            f"give it more, or set a smaller shards.rows_per_shard or encoder.batch_size and run "
            f"again",
            file=sys.stderr,
        )
        return 1
    except Exception as error:
        _log.debug("failed", exc_info=True)
        if options.debug:
            raise
        print(
            f"semid {options.command}: {type(error).__name__}: {error}\nnothing that was published "
            f"changed; run again to resume, or with --debug for the whole traceback",
            file=sys.stderr,
        )
        return 1


def _job(
    options: argparse.Namespace, beam_arguments: list[str], settings: Settings | None = None
) -> Job:
    from pipelines.beam_options import build_options
    from pipelines.job import Job
    from pipelines.root import Root
    from pipelines.settings import load_settings

    return Job(
        catalog=tuple(options.catalog),
        root=Root(options.root),
        settings=settings or load_settings(options.config),
        beam=build_options(beam_arguments),
        as_of=options.as_of,
        tokenizer=getattr(options, "tokenizer", None),
        warm_start=getattr(options, "warm_start", False),
    )


def _tokenize(options: argparse.Namespace, beam_arguments: list[str]) -> int:
    from pipelines.summary import outcome_json, outcome_text
    from pipelines.tokenize import tokenize

    job = _job(options, beam_arguments)
    outcome = tokenize(job)
    _print(options, outcome_json(job.root, outcome), lambda: outcome_text(job.root, outcome))
    return 0


def _backfill(options: argparse.Namespace, beam_arguments: list[str]) -> int:
    from pipelines.backfill import NothingToDo, backfill, backfill_settings
    from pipelines.root import Root
    from pipelines.summary import nothing_json, nothing_text, outcome_json, outcome_text

    _, manifest = Root(options.root).require_published()
    job = _job(options, beam_arguments, backfill_settings(manifest, options.config))
    outcome = backfill(job)
    if isinstance(outcome, NothingToDo):
        _print(options, nothing_json(job.root, outcome), lambda: nothing_text(job.root, outcome))
    else:
        _print(options, outcome_json(job.root, outcome), lambda: outcome_text(job.root, outcome))
    return 0


def _fit(options: argparse.Namespace, beam_arguments: list[str]) -> int:
    from pipelines.fit import fit
    from pipelines.summary import fit_text

    job = _job(options, beam_arguments)
    outcome = fit(job)
    _print(options, dataclasses.asdict(outcome), lambda: fit_text(job.root, outcome))
    return 0


def _show(options: argparse.Namespace, _: list[str]) -> int:
    from pipelines.root import Root
    from pipelines.show import open_view, show_item, show_prefix, show_sid, show_text

    if options.limit < 1:
        raise UsageError(f"--limit must be at least 1, got {options.limit}")
    view = open_view(Root(options.root))
    if options.query is not None or options.query_item is not None:
        from pipelines.search import search_item, search_lines, search_text

        if options.query is not None:
            found = search_text(view, options.query, options.limit)
        else:
            found = search_item(view, options.query_item, options.limit)
        _print(options, found, lambda: search_lines(found))
        return 0
    if options.item is not None:
        shown = show_item(view, options.item, options.limit)
    elif options.sid is not None:
        shown = show_sid(view, options.sid, options.limit)
    else:
        shown = show_prefix(view, options.prefix or "", options.limit)
    _print(options, shown, lambda: show_text(shown))
    return 0


def _verify(options: argparse.Namespace, _: list[str]) -> int:
    from pipelines.root import Root
    from pipelines.summary import verdict_text
    from pipelines.verify import verify

    verdict = verify(Root(options.root), options.generation)
    _print(options, verdict.to_json(), lambda: verdict_text(verdict))
    return 1 if verdict.problems else 0


def _metrics(options: argparse.Namespace, _: list[str]) -> int:
    from pipelines.compare import compare
    from pipelines.published_tables import PublishedTables
    from pipelines.root import Root
    from pipelines.summary import comparison_text, definitions_text, metrics_text, tags_lines
    from pipelines.tag_prediction import tag_accuracy
    from semid_transforms import files

    root = Root(options.root)
    generation, manifest = root.require_published()
    tables = PublishedTables(root, generation, manifest)
    metrics = json.loads(files.read_bytes(tables.path("metrics.json")))
    compared = compare(tables, options.compare) if options.compare else {}
    tokenizer = manifest.fingerprints.tokenizer
    fitted = files.read_bytes(files.join(root.tokenizer_folder(tokenizer), "metrics.json"))
    accuracy = tag_accuracy(json.loads(fitted))
    texts = [f"generation {generation}", metrics_text(metrics), *tags_lines(accuracy)]
    texts += [comparison_text(compared)] if compared else []
    _print(
        options,
        {
            "generation": generation,
            **metrics,
            "tokenizer": {"id": tokenizer, "tag_accuracy": accuracy},
            "compared": compared,
        },
        lambda: "\n".join([*texts, definitions_text(metrics)]),
    )
    return 0


def _interactions(options: argparse.Namespace, _: list[str]) -> int:
    from models.collaborative import InteractionConfig
    from pipelines.interactions import InteractionsJob, add_interactions, interactions_text
    from semid_transforms.interactions import InteractionColumns

    columns = InteractionColumns(options.user_column, options.item_column, options.weight_column)
    job = InteractionsJob(
        tuple(options.interactions),
        tuple(options.catalog),
        options.output,
        options.column,
        options.catalog_item_column,
        columns,
    )
    try:
        config = InteractionConfig(
            options.dimension,
            options.min_users,
            options.smoothing,
            options.max_items_per_user,
            options.seed,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    result = add_interactions(job, config)
    _print(options, result, lambda: interactions_text(result))
    return 0


def _feast(options: argparse.Namespace, _: list[str]) -> int:
    from pipelines.feature_store import sync_feature_store
    from pipelines.root import Root
    from pipelines.summary import feast_json, feast_text

    outcome = sync_feature_store(Root(options.root), options.repo, options.item, options.all)
    _print(options, feast_json(outcome), lambda: feast_text(options.repo, outcome))
    return 0


def _gc(options: argparse.Namespace, _: list[str]) -> int:
    from pipelines.garbage import find_garbage, garbage_text, remove_garbage
    from pipelines.root import Root

    root = Root(options.root)
    garbage = find_garbage(root, options.keep, options.stale_hours)
    removed = not options.dry_run
    if removed:
        garbage = remove_garbage(root, garbage)
    said = {"root": root.path, "dry_run": options.dry_run, **garbage.to_json()}
    _print(options, said, lambda: garbage_text(root, garbage, removed))
    return 0


def _quickstart(options: argparse.Namespace, beam_arguments: list[str]) -> int:
    from pipelines.quickstart import quickstart, tour
    from pipelines.summary import outcome_json, outcome_text

    outcome, root = quickstart(options.folder, beam_arguments)
    _print(
        options,
        outcome_json(root, outcome),
        lambda: "\n\n".join(
            [
                outcome_text(root, outcome),
                tour(root),
                f"next: semid verify --root {root.path}\n"
                f"      semid show --root {root.path} --item P000100",
            ]
        ),
    )
    return 0


def _print(options: argparse.Namespace, value: Any, text: Callable[[], str]) -> None:
    """Prints the result once: as JSON, or as text for people.

    Raises:
      CommandError: standard output cannot be written to, for example because its disk is full.
    """
    said = json.dumps(value, indent=1, ensure_ascii=False) if options.json else text()
    try:
        print(said, flush=True)
    except OSError as error:
        # What stays in the buffer would fail again when the process ends, after its exit code.
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # such as `head`, which has read what it wants
            raise CommandError(
                f"done, but the result cannot be printed: {error.strerror}; `semid show` tells "
                f"what is published"
            ) from error


def _configure_logging(quiet: bool) -> None:
    """Sends progress lines of semid itself to stderr, and only warnings of everything else."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
    )
    for package in ("pipelines", "semid_transforms", "models"):
        logging.getLogger(package).setLevel(logging.WARNING if quiet else logging.INFO)
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)


_COMMANDS: dict[str, Callable[[argparse.Namespace, list[str]], int]] = {
    "tokenize": _tokenize,
    "backfill": _backfill,
    "fit": _fit,
    "show": _show,
    "verify": _verify,
    "metrics": _metrics,
    "interactions": _interactions,
    "feast": _feast,
    "gc": _gc,
    "quickstart": _quickstart,
}
