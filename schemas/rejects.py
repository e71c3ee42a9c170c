"""Why a catalog row is refused, and the tally of a run."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping


class RejectReason(enum.StrEnum):
    """Reason of one rejected row; the value is what `rejects/` stores."""

    UNPARSABLE = "unparsable"
    INVALID_UTF8 = "invalid_utf8"
    BAD_FIELD = "bad_field"
    MISSING_ID = "missing_id"
    DUPLICATE_ID = "duplicate_id"
    NO_TEXT = "no_text"
    BAD_EMBEDDING = "bad_embedding"
    DAMAGED_FILE = "damaged_file"

    @property
    def explanation(self) -> str:
        """One line for people who did not write the reader."""
        return _EXPLANATIONS[self]


_EXPLANATIONS = {
    RejectReason.UNPARSABLE: "the line or record is not valid JSON or CSV, or is too large",
    RejectReason.INVALID_UTF8: "a text field is not valid UTF-8",
    RejectReason.BAD_FIELD: "a field has a type that cannot be read as what it is mapped to",
    RejectReason.MISSING_ID: "item_id is missing or blank",
    RejectReason.DUPLICATE_ID: "another row with this item_id and other content was kept",
    RejectReason.NO_TEXT: "no field of the text template has any text",
    RejectReason.BAD_EMBEDDING: "the embedding is missing, NaN, infinite, zero or of wrong length",
    RejectReason.DAMAGED_FILE: "the file ends early or cannot be decoded; rows after it are lost",
}


@dataclasses.dataclass(frozen=True)
class SourceCounts:
    """What became of the rows of one source file: `read == live + rejected + duplicate`."""

    read: int
    live: int
    rejected: int
    duplicate: int

    def __add__(self, other: SourceCounts) -> SourceCounts:
        return SourceCounts(
            self.read + other.read,
            self.live + other.live,
            self.rejected + other.rejected,
            self.duplicate + other.duplicate,
        )

    @property
    def balanced(self) -> bool:
        """True when no row is lost or invented."""
        return self.read == self.live + self.rejected + self.duplicate

    def to_json(self) -> dict[str, int]:
        """Returns the counts as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, int]) -> SourceCounts:
        """Reads what `to_json` wrote."""
        return cls(**value)
