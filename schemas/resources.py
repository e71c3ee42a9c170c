"""What workers a distributed job asks for, link by link."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, ClassVar

_ACCELERATOR = re.compile(r"type:[a-z0-9-]+;count:[1-9]\d*(;[a-z0-9:-]+)*")
_MEMORY = re.compile(r"[1-9]\d*(\.\d+)?(M|G)i?B")


@dataclasses.dataclass(frozen=True)
class WorkerResources:
    """What one link of the job needs of its workers.

    Attributes:
      min_ram: least memory of a worker, all its processes together: `32GB`.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}
    min_ram: str | None = None

    @property
    def hints(self) -> dict[str, str]:
        """What is asked for, as Beam resource hints."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value}

    def __post_init__(self) -> None:
        if self.min_ram is not None and not _MEMORY.fullmatch(self.min_ram):
            raise ValueError(
                f"min_ram must be a number and MB, GB, MiB or GiB, got {self.min_ram!r}"
            )


@dataclasses.dataclass(frozen=True)
class GpuResources(WorkerResources):
    """What a link that computes on a GPU, where there is one, needs of its workers.

    Attributes:
      accelerator: GPU, as Dataflow writes it: `type:nvidia-l4;count:1;install-nvidia-driver`.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}
    accelerator: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.accelerator is not None and not _ACCELERATOR.fullmatch(self.accelerator):
            raise ValueError(
                f"accelerator must name type and count, such as "
                f"type:nvidia-l4;count:1;install-nvidia-driver, got {self.accelerator!r}"
            )


@dataclasses.dataclass(frozen=True)
class ResourceConfig:
    """What the links need of their workers, for Dataflow; no other runner is told."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}
    read: WorkerResources = dataclasses.field(default_factory=WorkerResources)
    embed: GpuResources = dataclasses.field(default_factory=GpuResources)
    fit: GpuResources = dataclasses.field(default_factory=GpuResources)
    assign: GpuResources = dataclasses.field(default_factory=GpuResources)
    place: WorkerResources = dataclasses.field(default_factory=WorkerResources)
    index: WorkerResources = dataclasses.field(default_factory=WorkerResources)

    def link(self, name: str) -> WorkerResources:
        """Returns what the link of a name needs."""
        resources: WorkerResources = getattr(self, name)
        return resources
