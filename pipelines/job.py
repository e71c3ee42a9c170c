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
      tokenizer: id, or its first digits, of the tokenizer to publish with; None goes on with the
        published one.
      warm_start: whether a fit goes on from the published tokenizer.
    """

    catalog: tuple[str, ...]
    root: Root
    settings: Settings
    beam: PipelineOptions
    as_of: datetime.datetime | None = None
    tokenizer: str | None = None
    warm_start: bool = False
