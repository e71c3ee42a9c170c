"""Variable-length n-grams learned with SentencePiece (the `spm` of Singh et al., 2306.08121).

Every item is a word of L characters, one per code, and a character stands for a code at one level,
so that pieces at different positions never meet. Byte-pair encoding then joins, again and again,
the two neighbouring pieces that occur together most often, each word counted as often as its item
is popular: popular prefixes become long pieces with an embedding row of their own, rare items fall
apart into shared short ones. (The unigram language model of sentencepiece 0.2.3 proposes next to no
pieces of several characters outside ASCII, and none by popularity.)

Example: with codes (2, 0, 3) and a vocabulary that holds the pieces [2 at level 1, 0 at level 2]
as id 7 and [3 at level 3] as id 12, the item's feature is [7, 12].
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import sentencepiece

# The two supplementary private-use planes: no rule of Unicode splits or folds their characters.
_PLANES = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
MAX_CHARACTERS = sum(len(plane) for plane in _PLANES)
_UNKNOWN_PIECES = 1


@dataclasses.dataclass(frozen=True)
class SpmFeature:
    """Configuration of the `spm` feature.

    Attributes:
      table_size: size of the vocabulary and so of the embedding table. It must exceed the sum of
        the codebook sizes, because every single code keeps a piece: items of later nights can have
        codes that the fitting catalog lacked.
      name: the column name.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    table_size: int
    name: Literal["spm"] = "spm"


@dataclasses.dataclass(frozen=True)
class RaggedIds:
    """A variable number of ids per row: row i has `values[offsets[i]:offsets[i + 1]]`.

    Attributes:
      values: (V,) int64.
      offsets: (N + 1,) int64.
    """

    values: np.ndarray
    offsets: np.ndarray


def check_spm(codebook_sizes: Sequence[int], feature: SpmFeature) -> None:
    """Refuses a vocabulary without room for every code.

    Raises:
      ValueError: the vocabulary is too small or the codebooks too large; the message names the
        value and the limit.
    """
    smallest = len(_alphabet(codebook_sizes)) + _UNKNOWN_PIECES
    if feature.table_size <= smallest:
        raise ValueError(
            f"spm: table_size {feature.table_size} must exceed {smallest}, one piece per code of "
            f"codebook_sizes {list(codebook_sizes)}"
        )


def fit_spm(
    codes: np.ndarray,
    codebook_sizes: Sequence[int],
    feature: SpmFeature,
    weights: np.ndarray | None = None,
) -> bytes:
    """Learns the pieces; the same items in any order give the same bytes.

    Args:
      codes: (N, L) codes of the catalog, N at least 1.
      codebook_sizes: K_1..K_L.
      feature: vocabulary size.
      weights: (N,) non-negative popularity, rounded to whole counts of at least 1; all 1 if None.

    Returns:
      A SentencePiece model, to be kept with the tokenizer: ids change when it is learned anew.

    Raises:
      ValueError: the vocabulary is too small, the codebooks too large, or a weight is negative or
        not finite; the message names the value and the limit.
    """
    check_spm(codebook_sizes, feature)
    alphabet = _alphabet(codebook_sizes)
    counts = np.ones(len(codes), np.int64)
    if weights is not None:
        weights = np.asarray(weights, np.float64)
        if not (np.isfinite(weights) & (weights >= 0)).all():
            row = int(np.argmin(np.isfinite(weights) & (weights >= 0)))
            raise ValueError(f"row {row}: popularity {weights[row]} is not a number of 0 or more")
        counts = np.maximum(np.rint(weights), 1).astype(np.int64)
    distinct, inverse = np.unique(codes, axis=0, return_inverse=True)
    # Whole numbers add up to the same sum in any order.
    totals = np.zeros(len(distinct), np.int64)
    np.add.at(totals, inverse, counts)
    words = _words(distinct, codebook_sizes, alphabet)
    lines = (f"{word}\t{total}" for word, total in zip(words, totals.tolist(), strict=True))
    model = io.BytesIO()
    # An iterator, not a file: the model would record the file's name and differ from run to run.
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        input_format="tsv",
        model_writer=model,
        model_type="bpe",
        vocab_size=feature.table_size,
        hard_vocab_limit=False,
        required_chars=alphabet,
        character_coverage=1.0,
        max_sentencepiece_length=len(codebook_sizes),
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_by_unicode_script=False,
        split_by_number=False,
        split_by_whitespace=False,
        shuffle_input_sentence=False,
        num_threads=1,
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


class SpmNgrams:
    """A learned vocabulary of pieces.

    Attributes:
      codebook_sizes: it was learned for.
    """

    def __init__(self, model: bytes, codebook_sizes: Sequence[int]) -> None:
        """Loads what `fit_spm` returned."""
        self.codebook_sizes = tuple(codebook_sizes)
        self._alphabet = _alphabet(codebook_sizes)
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    @property
    def vocabulary_size(self) -> int:
        """Rows an embedding table needs; at most the configured `table_size`."""
        return self._processor.get_piece_size()

    def ids(self, codes: np.ndarray) -> RaggedIds:
        """Cuts (N, L) codes into pieces, 1 to L ids per row, in code order."""
        distinct, inverse = np.unique(np.asarray(codes), axis=0, return_inverse=True)
        words = _words(distinct, self.codebook_sizes, self._alphabet)
        pieces = self._processor.encode(words, out_type=int) if words else []
        lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
        values = np.fromiter((piece for row in pieces for piece in row), np.int64, lengths.sum())
        starts = np.cumsum(lengths) - lengths
        offsets = np.concatenate([[0], np.cumsum(lengths[inverse])])
        position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths[inverse])
        return RaggedIds(values[np.repeat(starts[inverse], lengths[inverse]) + position], offsets)

    def piece(self, piece_id: int) -> tuple[int, tuple[int, ...]]:
        """Returns the 0-based first level and the codes of a piece, for the vocabulary table.

        Raises:
          ValueError: the id is not that of a piece.
        """
        if not _UNKNOWN_PIECES <= piece_id < self.vocabulary_size:
            raise ValueError(f"piece {piece_id} is not in 1..{self.vocabulary_size - 1}")
        shifts = np.concatenate([[0], np.cumsum(self.codebook_sizes)])
        numbers = [_number(letter) for letter in self._processor.id_to_piece(piece_id)]
        level = int(np.searchsorted(shifts, numbers[0], side="right")) - 1
        return level, tuple(
            int(number - shifts[level + step]) for step, number in enumerate(numbers)
        )


def _alphabet(codebook_sizes: Sequence[int]) -> str:
    """Returns one character per code of every level, level by level."""
    total = sum(int(size) for size in codebook_sizes)
    if total > MAX_CHARACTERS:
        raise ValueError(
            f"spm: codebook_sizes {list(codebook_sizes)} have {total} codes, it spells at most "
            f"{MAX_CHARACTERS}: use smaller codebooks or another n-gram feature"
        )
    letters = [chr(point) for plane in _PLANES for point in plane]
    return "".join(letters[:total])


def _number(letter: str) -> int:
    """Returns a character's place in the alphabet."""
    first, second = _PLANES
    point = ord(letter)
    return point - first.start if point in first else len(first) + point - second.start


def _words(codes: np.ndarray, codebook_sizes: Sequence[int], alphabet: str) -> list[str]:
    """Spells (N, L) codes."""
    shifts = np.concatenate([[0], np.cumsum(codebook_sizes)[:-1]])
    return ["".join(alphabet[place] for place in row) for row in (codes + shifts).tolist()]
