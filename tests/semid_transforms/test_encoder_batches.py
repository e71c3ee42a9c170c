import threading

import numpy as np
import pytest

from semid_transforms import encoder_batches
from semid_transforms.encoder_batches import BatchLimits, TextTokenizer, token_batches


def tokenizer(left=False, seen=None):
    """One token a word: its length. Type 1 for words that begin with a capital."""

    def tokenize(texts):
        if seen is not None:
            seen.append((threading.current_thread(), len(texts)))
        words = [text.split() for text in texts]
        return {
            "input_ids": [[len(word) for word in each] for each in words],
            "attention_mask": [[1] * len(each) for each in words],
            "token_type_ids": [[int(word[0].isupper()) for word in each] for each in words],
        }

    padding = {"input_ids": 99, "attention_mask": 0, "token_type_ids": 7}
    return TextTokenizer(tokenize, padding, left)


def test_a_batch_holds_the_tokens_of_its_texts_and_padding():
    texts = ["one", "three Words here", "", "Two words"]
    (batch,) = token_batches(texts, tokenizer(), BatchLimits(9))
    assert batch.rows.tolist() == [1, 3, 0, 2]
    assert {name: values.tolist() for name, values in batch.features.items()} == {
        "input_ids": [[5, 5, 4], [3, 5, 99], [3, 99, 99], [99, 99, 99]],
        "attention_mask": [[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]],
        "token_type_ids": [[0, 1, 0], [1, 0, 7], [0, 7, 7], [7, 7, 7]],
    }
    (batch,) = token_batches(texts, tokenizer(left=True), BatchLimits(9))
    assert batch.features["input_ids"].tolist() == [
        [5, 5, 4],
        [99, 3, 5],
        [99, 99, 3],
        [99, 99, 99],
    ]


@pytest.mark.parametrize("limits", [BatchLimits(7), BatchLimits(50, 60)])
def test_batches_keep_their_limits_and_lose_no_text(monkeypatch, limits):
    monkeypatch.setattr(encoder_batches, "BLOCK_TEXTS", 64)
    random = np.random.default_rng(0)
    texts = [" ".join(["w" * 5] * n) for n in random.integers(1, 90, 300)]
    batches = list(token_batches(texts, tokenizer(), limits))
    assert sorted(np.concatenate([batch.rows for batch in batches])) == list(range(300))
    for batch in batches:
        rows, width = batch.features["input_ids"].shape
        assert width == max(len(texts[row].split()) for row in batch.rows)
        assert rows <= limits.texts
        assert rows == 1 or rows * width <= limits.tokens
    widths = [batch.features["input_ids"].shape[1] for batch in batches]
    assert widths == sorted(widths, reverse=True)


def test_texts_of_one_length_keep_their_order_and_share_a_batch_by_content_alone():
    texts = [f"{letter} word" for letter in "abcdefgh"]
    batches = [batch.rows.tolist() for batch in token_batches(texts, tokenizer(), BatchLimits(3))]
    assert batches == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_a_block_is_tokenized_while_the_one_before_is_encoded(monkeypatch):
    monkeypatch.setattr(encoder_batches, "BLOCK_TEXTS", 4)
    seen = []
    batches = token_batches(["word"] * 10, tokenizer(seen=seen), BatchLimits(4))
    next(batches)
    assert len(list(batches)) == 2
    assert [texts for _, texts in seen] == [4, 4, 2]
    assert threading.current_thread() not in [thread for thread, _ in seen]
    assert list(token_batches([], tokenizer(), BatchLimits(4))) == []


def test_a_failure_of_the_tokenizer_reaches_the_caller():
    def fail(texts):
        raise RuntimeError(f"no tokens of {len(texts)} texts")

    with pytest.raises(RuntimeError, match="no tokens of 2 texts"):
        list(token_batches(["a", "b"], TextTokenizer(fail, {}, False), BatchLimits(4)))
