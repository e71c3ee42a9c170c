"""What an operator asked for."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence

from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.beam_options import (
    check_options,
    is_dataflow,
    is_in_process,
    link_options,
    settle_workers,
    single_process,
)
from pipelines.root import Root
from pipelines.settings import Settings
from semid_transforms import files

_LATENT_BYTES = 128 << 20
"""Most bytes of latents in a shard for which local workers share the link that places items."""


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

    def place_options(self, latents: Sequence[str]) -> PipelineOptions:
        """Returns the Beam options of the link `place`: one process where latents are large.

        Every local worker holds several copies of the latents that compete in its shard, and a hot
        shard's are all of them.

        Args:
          latents: folders; they are in the first that has parts.
        """
        options = self.options("place")
        if not is_in_process(options):
            return options
        shard_rows = self.settings.job.shards.rows_per_shard
        large = shard_rows * _row_bytes(latents) > _LATENT_BYTES
        return single_process(options) if large else options

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


def _row_bytes(folders: Sequence[str]) -> float:
    """Returns the bytes of a row in the first part of the first folder that has some, else 0."""
    parts = [path for folder in folders for path in files.list_files(folder, ".parquet")]
    if not parts:
        return 0
    with files.parquet_file(parts[0]) as file:
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    rows = sum(group.num_rows for group in groups)
    return sum(group.total_byte_size for group in groups) / max(1, rows)
