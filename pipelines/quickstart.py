"""The first thing a newcomer runs: a generated catalog, the real job, a look at the result."""

from __future__ import annotations

import logging
import os

from pipelines.beam_options import build_options
from pipelines.errors import UsageError
from pipelines.generation import Outcome
from pipelines.job import Job
from pipelines.root import Root
from pipelines.sample_catalog import write_products
from pipelines.settings import parse_settings
from pipelines.show import View, open_view, show_item, show_prefix, show_text
from pipelines.tokenize import tokenize

PRODUCTS = 2_000
_SHOWN = ("P000007", "P000042", "P001234")

_log = logging.getLogger(__name__)


def quickstart(folder: str, beam_arguments: list[str]) -> tuple[Outcome, Root]:
    """Writes a catalog of 2,000 products into a folder and publishes IDs beside it.

    Raises:
      UsageError: the folder cannot be written.
    """
    catalog = os.path.join(folder, "catalog.jsonl")
    root = Root(os.path.join(folder, "root"))
    try:
        os.makedirs(folder, exist_ok=True)
        write_products(catalog, PRODUCTS)
    except OSError as error:
        raise UsageError(f"--folder {folder}: {error}") from error
    _log.info("wrote %s products to %s", f"{PRODUCTS:,}", catalog)
    job = Job((catalog,), root, parse_settings({}), build_options(beam_arguments))
    return tokenize(job), root


def tour(root: Root) -> str:
    """Shows a few items with their neighbours by prefix, and the fullest prefixes."""
    view: View = open_view(root)
    parts = [show_text(show_item(view, item_id, 5)) for item_id in _SHOWN]
    return "\n\n".join([*parts, show_text(show_prefix(view, "", 8))])
