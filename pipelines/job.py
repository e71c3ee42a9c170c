"""What an operator asked for."""

from __future__ import annotations

import dataclasses
import datetime

from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.beam_options import (
    check_options,
    is_dataflow,
    link_options,
    settle_workers,
    single_process,
)
from pipelines.root import Root
from pipelines.settings import Settings


@dataclasses.dataclass(frozen=True)
class Job:
    """What an operator asked for.

    Raises:
      UsageError: Beam options that the chain cannot run with.

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

    def __post_init__(self) -> None:
        check_options(self.beam, self.settings.job.resources)

    def options(self, link: str) -> PipelineOptions:
        """Returns the Beam options of a link's pipelines."""
        hints = self._hints(link)
        everywhere = {} if link == "embed" else hints
        return link_options(self.beam, link, everywhere, on_gpu="accelerator" in hints)

    @property
    def encoder_options(self) -> PipelineOptions:
        """Beam options of pipelines that encode: a model spreads its work over all cores itself."""
        return single_process(self.options("embed"))

    def sized(self, catalog_bytes: int) -> Job:
        """Returns the job with as many local workers as its catalog is worth."""
        return dataclasses.replace(self, beam=settle_workers(self.beam, catalog_bytes))

    @property
    def encoder_hints(self) -> dict[str, str]:
        """Resource hints of the stages that encode.

        Those of the other links hold for whole pipelines. Reading text and grouping it need no GPU.
        """
        return self._hints("embed")

    def _hints(self, link: str) -> dict[str, str]:
        return self.settings.job.resources.link(link).hints if is_dataflow(self.beam) else {}
