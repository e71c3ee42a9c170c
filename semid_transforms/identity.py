"""What the IDs of a generation share, and the rows of a run."""

from __future__ import annotations

import dataclasses
import datetime

import pyarrow as pa

from models.resolution import CollisionPolicy
from models.sid import SidLayout


@dataclasses.dataclass(frozen=True)
class Identity:
    """What every ID of a generation shares.

    Attributes:
      layout: of the SIDs.
      policy: what happens when items get the same codes.
      move_changed: True when an item whose base codes changed moves to new ones.
      leaves: layout of the ID space that every item leaves, when a new tokenizer begins one.
    """

    layout: SidLayout
    policy: CollisionPolicy
    move_changed: bool
    leaves: SidLayout | None = None

    @property
    def sid_type(self) -> pa.DataType:
        """Arrow type of a packed SID."""
        return pa.from_numpy_dtype(self.layout.dtype)

    @property
    def old_type(self) -> pa.DataType:
        """Arrow type of the SIDs that items had before."""
        return pa.from_numpy_dtype((self.leaves or self.layout).dtype)


@dataclasses.dataclass(frozen=True)
class Stamp:
    """What every row written by one run shares."""

    generation: str
    tokenizer_id: str
    time: datetime.datetime
