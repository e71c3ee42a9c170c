"""The n-gram columns of `items`: which there are, their values, and the vocabulary they use."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from models.ngrams import NgramFeature, count_windows, ngram_columns, ngram_ids
from models.spm_ngrams import SpmFeature, SpmNgrams
from schemas.arrays import list_from_matrix
from schemas.tables import NGRAMS
from semid_transforms import files

Feature = NgramFeature | SpmFeature


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Which n-gram columns a generation has.

    Attributes:
      features: in column order.
      spm_path: of the learned pieces, None without an `spm` column.
    """

    features: tuple[Feature, ...]
    spm_path: str | None = None

    @property
    def names(self) -> list[str]:
        """Column names, in order."""
        return [feature.name for feature in self.features]

    def load(self, codebook_sizes: Sequence[int]) -> FeatureColumns:
        """Reads the learned pieces, once per worker."""
        pieces = None
        if self.spm_path is not None:
            pieces = SpmNgrams(files.read_bytes(self.spm_path), codebook_sizes)
        return FeatureColumns(self.features, tuple(codebook_sizes), pieces)


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureColumns:
    """Computes n-gram columns from codes.

    Attributes:
      features: in column order.
      codebook_sizes: K_1..K_L.
      pieces: of the `spm` column.
    """

    features: tuple[Feature, ...]
    codebook_sizes: tuple[int, ...]
    pieces: SpmNgrams | None = None

    @property
    def names(self) -> list[str]:
        """Column names, in order."""
        return [feature.name for feature in self.features]

    def column(self, codes: np.ndarray, feature: Feature) -> pa.ListArray:
        """Returns one list<int64> column for (N, L) codes."""
        if isinstance(feature, NgramFeature):
            return list_from_matrix(ngram_ids(codes, self.codebook_sizes, feature), pa.int64())
        ragged = self._pieces.ids(codes)
        offsets = pa.array(ragged.offsets, pa.int32())
        return pa.ListArray.from_arrays(offsets, pa.array(ragged.values, pa.int64()))

    def columns(self, codes: np.ndarray) -> list[pa.ListArray]:
        """Returns every column for (N, L) codes."""
        return [self.column(codes, feature) for feature in self.features]

    def vocabulary(self, chunks: Callable[[], Iterable[np.ndarray]]) -> Iterator[pa.RecordBatch]:
        """Counts the n-grams of all items.

        Args:
          chunks: returns the codes of all items, (n, L) in SID order; called once a column.

        Yields:
          `NGRAMS` batches by feature, position, codes; those of `spm` by id.
        """
        for feature in self.features:
            if isinstance(feature, SpmFeature):
                yield self._piece_counts(chunks())
                continue
            for position in range(len(ngram_columns(self.codebook_sizes, feature))):
                for piece in count_windows(chunks(), self.codebook_sizes, feature, position):
                    yield pa.RecordBatch.from_arrays(
                        [
                            pa.repeat(pa.scalar(feature.name), len(piece.ids)),
                            pa.array(piece.ids),
                            pa.array(np.full(len(piece.ids), position, np.int32)),
                            list_from_matrix(piece.codes, pa.int32()),
                            pa.array(piece.counts),
                        ],
                        schema=NGRAMS,
                    )

    def _piece_counts(self, chunks: Iterable[np.ndarray]) -> pa.RecordBatch:
        counts = np.zeros(self._pieces.vocabulary_size, np.int64)
        for codes in chunks:
            counts += np.bincount(self._pieces.ids(codes).values, minlength=len(counts))
        used = np.flatnonzero(counts)
        spelled = [self._pieces.piece(int(piece)) for piece in used]
        return pa.RecordBatch.from_arrays(
            [
                pa.array(["spm"] * len(used), pa.string()),
                pa.array(used.astype(np.int64)),
                pa.array([level for level, _ in spelled], pa.int32()),
                pa.array([list(codes) for _, codes in spelled], pa.list_(pa.int32())),
                pa.array(counts[used]),
            ],
            schema=NGRAMS,
        )

    @property
    def _pieces(self) -> SpmNgrams:
        if self.pieces is None:
            raise ValueError("an spm column needs its learned pieces, FeatureSet.spm_path")
        return self.pieces
