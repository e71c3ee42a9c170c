"""What can be said on the `semid` command line."""

from __future__ import annotations

import argparse
import datetime

_EPILOG = (
    "exit codes: 0 published or nothing to do, 2 bad usage or configuration, 3 input refused, "
    "4 a quality gate refused to publish, 5 mismatch with what is published, 1 anything else"
)


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of `semid`.

    What it parses has the subcommand as `command`, and `takes_beam_options`: whether arguments that
    it does not know are Beam's.
    """
    parser = argparse.ArgumentParser(
        prog="semid", description="Turns item catalogs into semantic IDs.", epilog=_EPILOG
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, beam: bool = False) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=text, description=text, epilog=_EPILOG, allow_abbrev=False
        )
        command.set_defaults(takes_beam_options=beam)
        command.add_argument("--json", action="store_true", help="print the result as JSON")
        command.add_argument("--quiet", action="store_true", help="no progress on stderr")
        command.add_argument("--debug", action="store_true", help="show tracebacks")
        return command

    job = add("tokenize", "read a full catalog and publish a new generation", beam=True)
    _add_job_arguments(job)
    job.add_argument(
        "--tokenizer",
        metavar="ID",
        help="publish with this tokenizer under ROOT, in a new ID space (default: go on with the "
        "published one)",
    )

    growing = add(
        "backfill",
        "add new or changed rows to the published generation; all other items stay",
        beam=True,
    )
    _add_job_arguments(growing)

    fitting = add("fit", "fit a tokenizer without publishing IDs", beam=True)
    _add_job_arguments(fitting)
    fitting.add_argument(
        "--warm-start",
        action="store_true",
        help="go on from the published tokenizer, so that most items keep their codes",
    )

    show = add("show", "look at one item, one SID, one prefix, or the generation")
    show.add_argument("--root", required=True)
    what = show.add_mutually_exclusive_group()
    what.add_argument("--item", metavar="ID", help="an item id")
    what.add_argument("--sid", metavar="SID", help="a SID, packed or as codes: 17-203-5")
    what.add_argument("--prefix", metavar="CODES", help="the first codes: 17-203")
    what.add_argument("--query", metavar="TEXT", help="find the items nearest to a text")
    what.add_argument("--query-item", metavar="ID", help="find the items nearest to an item")
    show.add_argument(
        "--limit",
        type=int,
        default=10,
        help="rows per list, and nodes per branch: a third as many one level down (default 10)",
    )

    check = add("verify", "re-check every invariant from the files alone")
    check.add_argument("--root", required=True)
    check.add_argument("--generation", metavar="ID", help="default: the published one")

    metrics = add("metrics", "print the tokenizer-quality table")
    metrics.add_argument("--root", required=True)
    metrics.add_argument(
        "--compare",
        nargs="+",
        action="extend",
        default=[],
        metavar="WHAT",
        help="measure beside it: ids of tokenizers under ROOT, or Parquet files of item_id, codes",
    )

    vectors = add("interactions", "add item vectors from interactions to a catalog")
    _add_interactions_arguments(vectors)
    store = add("feast", "bring a Feast feature store up to what is published")
    store.add_argument("--root", required=True)
    store.add_argument(
        "--repo", required=True, metavar="FOLDER", help="local Feast repository, made when missing"
    )
    store.add_argument("--item", metavar="ID", help="item to read back (default: the first)")
    store.add_argument(
        "--all", action="store_true", help="write every item again, as to an emptied online store"
    )

    cleaning = add("gc", "remove generations, runs and tokenizers that nothing needs")
    cleaning.add_argument("--root", required=True)
    cleaning.add_argument(
        "--keep",
        type=int,
        required=True,
        metavar="N",
        help="generations to keep: the published one and the N - 1 before it",
    )
    cleaning.add_argument(
        "--stale-hours",
        type=float,
        default=24.0,
        metavar="H",
        help="hours after which a run that nobody works on counts as abandoned (default 24)",
    )
    cleaning.add_argument("--dry-run", action="store_true", help="only say what would go")

    first = add("quickstart", "try everything on a small generated catalog", beam=True)
    first.add_argument(
        "--folder", default="semid-quickstart", help="where to write (default ./semid-quickstart)"
    )
    return parser


def _add_job_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--catalog",
        nargs="+",
        action="extend",
        required=True,
        metavar="PATTERN",
        help="globs of Parquet, JSON Lines or CSV, plain or gzip, local or gs://",
    )
    command.add_argument("--root", required=True, help="where generations are published")
    command.add_argument("--config", metavar="FILE", help="YAML configuration")
    command.add_argument(
        "--as-of",
        type=timestamp,
        metavar="TIME",
        help="ISO 8601 time to stamp rows with, such as a scheduler's logical date (default: now)",
    )


def _add_interactions_arguments(command: argparse.ArgumentParser) -> None:
    for name, text in (
        ("--interactions", "tables of one row per interaction; Parquet, JSON Lines or CSV"),
        ("--catalog", "the catalog; Parquet"),
    ):
        command.add_argument(
            name, nargs="+", action="extend", required=True, metavar="PATTERN", help=text
        )
    command.add_argument("--output", required=True, metavar="FOLDER", help="for the new catalog")
    for name, default, text in (
        ("--column", "interaction_embedding", "name of the new column"),
        ("--catalog-item-column", "item_id", "the catalog's item id"),
        ("--user-column", "user_id", "who, in the interactions"),
        ("--item-column", "item_id", "what, in the interactions"),
    ):
        command.add_argument(name, default=default, help=f"{text} (default {default})")
    command.add_argument(
        "--weight-column", help="how much, a positive number (default: each user counts once)"
    )
    command.add_argument("--dimension", type=int, default=64, help="of a vector (default 64)")
    command.add_argument(
        "--min-users", type=int, default=3, help="users an item needs for a vector (default 3)"
    )
    command.add_argument(
        "--max-items-per-user", type=int, default=200, help="that count (default 200)"
    )
    command.add_argument(
        "--smoothing", type=float, default=0.75, help="exponent of context counts (default 0.75)"
    )
    command.add_argument("--seed", type=int, default=0, help="default 0")


def timestamp(text: str) -> datetime.datetime:
    """Reads an ISO 8601 time, UTC where it names no zone; an argument type for argparse."""
    try:
        value = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not an ISO 8601 time") from error
    return value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
