"""Texts as batches of tokens: sorted by length, padded little, tokenized ahead of the encoding."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BLOCK_TEXTS = 2048
"""Texts tokenized at once, while the block before them is encoded."""

_FEATURES = ("input_ids", "attention_mask", "token_type_ids")

Tokens = dict[str, list[list[int]]]


@dataclasses.dataclass(frozen=True, eq=False)
class TokenBatch:
    """Texts that go through the model together.

    Attributes:
      rows: (B,) positions of the texts among all.
      features: `input_ids`, `attention_mask` and, if the model takes them, `token_type_ids`, each
        (B, T) int64.
    """

    rows: np.ndarray
    features: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class BatchLimits:
    """How much shares a batch.

    Attributes:
      texts: most texts.
      tokens: most tokens, padding among them; a longer text is a batch of its own.
    """

    texts: int
    tokens: int = 1 << 62


@dataclasses.dataclass(frozen=True, eq=False)
class TextTokenizer:
    """A model's own tokenization, without padding.

    Attributes:
      tokenize: maps texts to each feature's values, text by text.
      padding: feature -> the value that fills the place of missing tokens.
      left: whether the padding comes before the tokens.
    """

    tokenize: Callable[[list[str]], Tokens]
    padding: dict[str, int]
    left: bool

    def pad(self, tokens: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
        """Returns the features of B texts, each (B, T) int64, T tokens in the longest."""
        lengths = np.array([len(ids) for ids in tokens["input_ids"]])
        width = max(1, int(lengths.max()))
        columns = np.arange(width)
        real = columns < lengths[:, None]
        if self.left:
            real = columns >= width - lengths[:, None]
        features = {}
        for name, values in tokens.items():
            features[name] = np.full(real.shape, self.padding[name], np.int64)
            features[name][real] = np.concatenate(values)
        return features


def text_tokenizer(model: SentenceTransformer) -> TextTokenizer | str:
    """Returns the tokenizer of a model that takes nothing but tokens, else why there is none.

    The reasons: a first module that is no transformer, a slow tokenizer or one that cannot pad,
    chat templates, and prompts that the pooling leaves out.
    """
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    first = model[0]
    if not isinstance(first, Transformer):
        return f"its first module is {type(first).__name__}"
    tokenizer = first.tokenizer
    if tokenizer is None or not tokenizer.is_fast or tokenizer.pad_token_id is None:
        return "its tokenizer is slow or cannot pad"
    if "message" in first.modality_config or "text" not in first.modality_config:
        return "it takes chat messages or no text"
    if model.truncate_dim is not None:
        return f"it keeps {model.truncate_dim} dimensions of each vector"
    prompt = model.prompts.get(model.default_prompt_name) if model.default_prompt_name else None
    if prompt and not all(m.include_prompt for m in model if isinstance(m, Pooling)):
        return "its pooling leaves its prompt out"
    taken = [name for name in _FEATURES if name in (first.model_forward_params or _FEATURES)]
    unpadded = {"text": {"padding": False}, "common": {"return_tensors": None}}
    alone = threading.Lock()  # of two threads in one fast tokenizer, one gets "Already borrowed"

    def tokenize(texts: list[str]) -> Tokens:
        with alone:
            encoded = first.preprocess(texts, prompt=prompt, processing_kwargs=unpadded)
        return {name: encoded[name] for name in taken if name in encoded}

    padding = {
        "input_ids": tokenizer.pad_token_id,
        "attention_mask": 0,
        "token_type_ids": tokenizer.pad_token_type_id,
    }
    return TextTokenizer(tokenize, padding, tokenizer.padding_side == "left")


def token_batches(
    texts: Sequence[str], tokenizer: TextTokenizer, limits: BatchLimits
) -> Iterator[TokenBatch]:
    """Yields all texts in batches, longest first.

    Blocks of texts of similar numbers of characters are tokenized by another thread while the
    block before is encoded; inside a block, texts are sorted by their number of tokens. Equal
    lengths keep the order they came in, so what shares a batch depends on the texts and their
    order alone.

    Args:
      texts: N texts.
      tokenizer: of the model.
      limits: of a batch.
    """
    characters = np.array([len(text) for text in texts], np.int64)
    order = np.argsort(-characters, kind="stable")
    blocks = [order[start : start + BLOCK_TEXTS] for start in range(0, len(order), BLOCK_TEXTS)]

    def tokenize(block: np.ndarray) -> dict[str, list[np.ndarray]]:
        tokens = tokenizer.tokenize([texts[row] for row in block])
        return {name: _as_arrays(values) for name, values in tokens.items()}

    with ThreadPoolExecutor(1) as ahead:
        pending = ahead.submit(tokenize, blocks[0]) if blocks else None
        for block, following in itertools.zip_longest(blocks, blocks[1:]):
            assert pending is not None
            tokens = pending.result()
            if following is not None:
                pending = ahead.submit(tokenize, following)
            lengths = np.array([len(ids) for ids in tokens["input_ids"]])
            inside = np.argsort(-lengths, kind="stable")
            for start, stop in _cut(lengths[inside], limits):
                chosen = inside[start:stop]
                picked = {name: [values[i] for i in chosen] for name, values in tokens.items()}
                yield TokenBatch(block[chosen], tokenizer.pad(picked))


def _as_arrays(values: list[list[int]]) -> list[np.ndarray]:
    """Returns each text's values as a view of one array, an eighth of the lists' memory."""
    lengths = np.array([len(value) for value in values])
    flat = np.fromiter(itertools.chain.from_iterable(values), np.int32, int(lengths.sum()))
    return np.split(flat, np.cumsum(lengths)[:-1])


def _cut(lengths: np.ndarray, limits: BatchLimits) -> Iterator[tuple[int, int]]:
    """Yields the bounds of batches; lengths fall, so the first of a batch is its width."""
    start = 0
    while start < len(lengths):
        texts = min(limits.texts, max(1, limits.tokens // max(1, int(lengths[start]))))
        yield start, min(start + texts, len(lengths))
        start += texts
