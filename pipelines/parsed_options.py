"""Beam options that are parsed once.

Beam asks its options for a view at every transform and type check, and every view builds a parser
of its own and parses the command line: some 850 times, a quarter of a second, in a run that takes
eight.
"""

from __future__ import annotations

import weakref
from typing import TypeVar

from apache_beam.options.pipeline_options import PipelineOptions

_View = TypeVar("_View", bound=PipelineOptions)

# Not kept in the options: what is in them is pickled with them.
_views: weakref.WeakKeyDictionary[PipelineOptions, dict[type, PipelineOptions]] = (
    weakref.WeakKeyDictionary()
)


class ParsedOptions(PipelineOptions):
    """Options that give the same view again; all views share what is set, as Beam's do."""

    def view_as(self, cls: type[_View]) -> _View:
        """Returns the options as those of a class; what is set there is set here."""
        views = _views.setdefault(self, {})
        if cls not in views:
            views[cls] = super().view_as(cls)
        view = views[cls]
        assert isinstance(view, cls)
        return view
