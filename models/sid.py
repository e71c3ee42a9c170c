"""Packed semantic IDs: a code tuple and its suffix in one integer that sorts like the tuple."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

DEFAULT_SUFFIX_BITS = 16
SIGNED_BITS = 63
UNSIGNED_BITS = 64


@dataclasses.dataclass(frozen=True)
class SidLayout:
    """Where each level sits inside a packed SID.

    Level 1 takes the highest bits, `ceil(log2(K_l))` bits a level, the suffix the lowest, so
    numeric order is lexicographic order and every prefix is one contiguous range.

    Attributes:
      codebook_sizes: codes per level, coarse to fine, each at least 2.
      suffix_bits: bits left for the suffix number, 0 to 16.
      hierarchical: False when the codes are those of parallel codebooks: packed in the same way,
        but prefixes mean nothing.
    """

    codebook_sizes: tuple[int, ...]
    suffix_bits: int = DEFAULT_SUFFIX_BITS
    hierarchical: bool = True

    def __post_init__(self) -> None:
        if not self.codebook_sizes or min(self.codebook_sizes) < 2:
            raise ValueError(
                f"codebook_sizes must name at least one level of 2 or more codes, "
                f"got {list(self.codebook_sizes)}"
            )
        if not 0 <= self.suffix_bits <= DEFAULT_SUFFIX_BITS:
            raise ValueError(
                f"suffix_bits must lie in 0..{DEFAULT_SUFFIX_BITS}, got {self.suffix_bits}"
            )
        if self.code_bits > UNSIGNED_BITS or self.bits > UNSIGNED_BITS:
            raise ValueError(
                f"codebook_sizes {list(self.codebook_sizes)} need {self.code_bits} bits, a packed "
                f"SID holds {UNSIGNED_BITS}: use fewer levels or smaller codebooks, for example "
                f"8 levels of 256, 5 of 4096 or 4 of 8192"
            )

    @classmethod
    def fitting(cls, codebook_sizes: Sequence[int], hierarchical: bool = True) -> SidLayout:
        """Returns the layout with 16 suffix bits, or as many as a signed 64-bit SID leaves."""
        code_bits = sum(_bits(size) for size in codebook_sizes)
        suffix_bits = max(0, min(DEFAULT_SUFFIX_BITS, SIGNED_BITS - code_bits))
        return cls(tuple(codebook_sizes), suffix_bits, hierarchical)

    @property
    def num_levels(self) -> int:
        """Number of code levels L."""
        return len(self.codebook_sizes)

    @property
    def level_bits(self) -> tuple[int, ...]:
        """Bits of each level, coarse to fine."""
        return tuple(_bits(size) for size in self.codebook_sizes)

    @property
    def code_bits(self) -> int:
        """Bits of all levels together."""
        return sum(self.level_bits)

    @property
    def bits(self) -> int:
        """Bits of codes and suffix together."""
        return self.code_bits + self.suffix_bits

    @property
    def max_suffix(self) -> int:
        """Largest suffix number that fits."""
        return (1 << self.suffix_bits) - 1

    @property
    def dtype(self) -> np.dtype:
        """`int64` up to 63 bits, `uint64` for 64."""
        return np.dtype(np.int64 if self.bits <= SIGNED_BITS else np.uint64)

    def shift(self, length: int) -> int:
        """Returns the number of low bits below a prefix of `length` codes."""
        return self.bits - sum(self.level_bits[:length])

    def pack(self, codes: np.ndarray, suffix: np.ndarray | None = None) -> np.ndarray:
        """Packs code tuples.

        Args:
          codes: (N, L) integers, `0 <= codes[:, l] < K_l`.
          suffix: (N,) integers, `0 <= suffix <= max_suffix`; zeros when None.

        Returns:
          (N,) SIDs of `dtype`.

        Raises:
          ValueError: a shape, a code or a suffix is out of range; the message names the first.
        """
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.shape[1] != self.num_levels:
            raise ValueError(f"codes must have shape (N, {self.num_levels}), got {codes.shape}")
        packed = np.zeros(len(codes), np.uint64)
        for level, (size, bits) in enumerate(
            zip(self.codebook_sizes, self.level_bits, strict=True)
        ):
            column = codes[:, level]
            if len(column) and (column.min() < 0 or column.max() >= size):
                row = int(np.flatnonzero((column < 0) | (column >= size))[0])
                raise ValueError(
                    f"row {row}: code {int(column[row])} at level {level + 1} is outside "
                    f"0..{size - 1}"
                )
            packed = (packed << np.uint64(bits)) | column.astype(np.uint64)
        packed = packed << np.uint64(self.suffix_bits) if self.suffix_bits else packed
        if suffix is not None:
            suffix = np.asarray(suffix)
            if len(suffix) and (suffix.min() < 0 or suffix.max() > self.max_suffix):
                row = int(np.flatnonzero((suffix < 0) | (suffix > self.max_suffix))[0])
                raise ValueError(
                    f"row {row}: suffix {int(suffix[row])} does not fit in {self.suffix_bits} bits "
                    f"(0..{self.max_suffix}): use fewer or smaller codebooks to leave more bits"
                )
            packed = packed | suffix.astype(np.uint64)
        return packed.astype(self.dtype)

    def unpack(self, sids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Unpacks (N,) SIDs into (N, L) int32 codes and (N,) int32 suffixes."""
        packed = np.asarray(sids).astype(np.uint64)
        codes = np.empty((len(packed), self.num_levels), np.int32)
        for level in range(self.num_levels):
            mask = np.uint64((1 << self.level_bits[level]) - 1)
            codes[:, level] = (packed >> np.uint64(self.shift(level + 1))) & mask
        suffix = (packed & np.uint64(self.max_suffix)).astype(np.int32)
        return codes, suffix

    def prefixes(self, sids: np.ndarray, length: int) -> np.ndarray:
        """Returns (N,) uint64 packed prefixes of `length` codes, without the bits below them."""
        packed = np.asarray(sids).astype(np.uint64)
        shift = self.shift(length)
        return np.zeros_like(packed) if shift >= UNSIGNED_BITS else packed >> np.uint64(shift)

    def prefix_range(self, prefix: Sequence[int]) -> tuple[int, int]:
        """Returns the first and last SID (inclusive) that a prefix of codes can have.

        Raises:
          ValueError: the prefix is longer than L, a code is out of range, or the codes are those
            of parallel codebooks.
        """
        if not self.hierarchical and 0 < len(prefix) < self.num_levels:
            raise ValueError(
                f"prefix {format_codes(prefix)}: the codes come from parallel codebooks, which "
                f"have no order and no prefixes; give all {self.num_levels} codes"
            )
        if len(prefix) > self.num_levels:
            raise ValueError(
                f"prefix {format_codes(prefix)} has {len(prefix)} codes, the layout has "
                f"{self.num_levels} levels"
            )
        first = 0
        for level, code in enumerate(prefix):
            if not 0 <= code < self.codebook_sizes[level]:
                raise ValueError(
                    f"prefix {format_codes(prefix)}: code {code} at level {level + 1} is outside "
                    f"0..{self.codebook_sizes[level] - 1}"
                )
            first = (first << self.level_bits[level]) | int(code)
        shift = self.shift(len(prefix))
        first <<= shift
        return first, first + (1 << shift) - 1

    def to_json(self) -> dict[str, object]:
        """Returns the layout as plain JSON values."""
        return {
            "codebook_sizes": list(self.codebook_sizes),
            "suffix_bits": self.suffix_bits,
            "hierarchical": self.hierarchical,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> SidLayout:
        """Reads what `to_json` wrote."""
        sizes, suffix_bits = value["codebook_sizes"], value["suffix_bits"]
        hierarchical = value.get("hierarchical", True)
        if not (
            isinstance(sizes, list)
            and isinstance(suffix_bits, int)
            and isinstance(hierarchical, bool)
        ):
            raise ValueError(f"not a SID layout: {dict(value)}")
        return cls(tuple(int(size) for size in sizes), suffix_bits, hierarchical)


def _bits(codebook_size: int) -> int:
    """Bits that hold the codes 0..codebook_size-1."""
    return max(1, int(codebook_size - 1).bit_length())


def format_codes(codes: Sequence[int], suffix: int = 0) -> str:
    """Writes codes the way people read them: `17-203-5`, with a suffix `17-203-5~2`."""
    text = "-".join(str(int(code)) for code in codes)
    return f"{text}~{int(suffix)}" if suffix else text


def parse_codes(text: str) -> tuple[tuple[int, ...], int]:
    """Reads `17-203-5` or `17-203-5~2` into codes and suffix.

    Raises:
      ValueError: the text is not codes joined by `-`.
    """
    body, _, suffix = text.strip().partition("~")
    try:
        return tuple(int(part) for part in body.split("-")) if body else (), int(suffix or 0)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a code tuple such as 17-203-5 or 17-203-5~2") from error
