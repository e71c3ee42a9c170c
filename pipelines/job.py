"""What an operator asked for."""

from __future__ import annotations

import dataclasses
import datetime

from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.root import Root
from pipelines.settings import Settings


@dataclasses.dataclass(frozen=True)
class Job:
    """What an operator asked for.

    Attributes:
      catalog: glob patterns.
      root: where to publish.
      settings: validated configuration.
      beam: options of every pipeline.
      as_of: time to stamp rows with; None takes the time of the first attempt.
    """

    catalog: tuple[str, ...]
    root: Root
    settings: Settings
    beam: PipelineOptions
    as_of: datetime.datetime | None = None
