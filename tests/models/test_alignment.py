import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.alignment import MAX_ROWS, align_codes, renumber, renumber_codes
from models.config import LossConfig, RqkmeansConfig, RqvaeConfig
from models.metrics import kept
from models.rqkmeans import Rqkmeans
from models.tokenizers import fit_quantizer, to_files, tokenizer_id
from tests.models.catalog import clustered_embeddings
from tests.models.test_tokenizers import SMALL

SIZES = (16, 8, 8)


def permuted(quantizer, seed):
    """Returns the tokenizer with shuffled codebooks, and the shuffles."""
    random = np.random.default_rng(seed)
    shuffles = [random.permutation(size) for size in quantizer.codebook_sizes]
    return renumber(quantizer, shuffles), shuffles


@pytest.mark.parametrize("kind", ["rqvae", "rqkmeans", "moc", "pq"])
def test_a_shuffled_tokenizer_is_recovered_to_the_byte(kind):
    rows = clustered_embeddings(1500)
    config = SMALL[kind]
    if isinstance(config, RqvaeConfig):
        losses = LossConfig(balance=0.1, separation=0.4)
        config = dataclasses.replace(config, losses=losses, shortcut=True)
    quantizer = fit_quantizer(config, rows)[0]
    codes = quantizer.encode(rows)
    for level, size in enumerate(SIZES):
        # One unused code has one number left to get; two could swap theirs.
        assert len(np.unique(codes[:, level])) >= size - 1
    shuffled, shuffles = permuted(quantizer, 1)
    assert np.array_equal(shuffled.encode(rows), renumber_codes(codes, shuffles))
    np.testing.assert_array_equal(shuffled.decode(shuffled.encode(rows)), quantizer.decode(codes))
    numbering = align_codes(shuffled.encode(rows), codes, SIZES, quantizer.hierarchical)
    again = renumber(shuffled, numbering)
    assert np.array_equal(again.encode(rows), codes)
    assert to_files(again, {}) == to_files(quantizer, {})


def test_aligning_a_tokenizer_with_itself_changes_nothing_though_codes_are_unused():
    rows = clustered_embeddings(40)
    quantizer = fit_quantizer(RqkmeansConfig(codebook_sizes=(32, 32, 32)), rows)[0]
    codes = quantizer.encode(rows)
    assert len(np.unique(codes[:, 1])) < 32
    same = renumber(quantizer, align_codes(codes, codes, (32, 32, 32)))
    assert tokenizer_id(to_files(same, {})) == tokenizer_id(to_files(quantizer, {}))


@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_no_other_numbering_of_a_level_keeps_more(seed, rows):
    """Against all permutations of 4 codes, level by level: prefix first, then the level's own."""
    from itertools import permutations

    random = np.random.default_rng(seed)
    codes, before = random.integers(0, 4, (rows, 2)), random.integers(0, 4, (rows, 2))
    numbering = align_codes(codes, before, (4, 4))
    prefix = np.ones(rows, bool)
    for level in range(2):

        def gain(numbers, prefix=prefix, level=level):
            same = np.array(numbers)[codes[:, level]] == before[:, level]
            return (prefix & same).sum(), same.sum()

        assert sorted(numbering[level]) == [0, 1, 2, 3]
        assert gain(numbering[level]) == max(gain(order) for order in permutations(range(4)))
        prefix = prefix & (numbering[level][codes[:, level]] == before[:, level])
    assert kept(renumber_codes(codes, numbering), before)[1] == prefix.mean()


def test_a_finer_level_follows_the_items_whose_prefix_was_kept():
    # Over all items new code 1 of level 2 is old code 0; under the kept prefix 0 it is old code 1.
    before = np.array([[0, 1]] * 3 + [[1, 0]] * 4 + [[0, 0]])
    codes = np.array([[0, 1]] * 3 + [[0, 1]] * 4 + [[0, 0]])
    codes[3:7, 0] = 2
    before[3:7, 0] = [1, 2, 3, 4]
    numbering = align_codes(codes, before, (8, 2))
    assert list(numbering[1]) == [0, 1]


@pytest.mark.parametrize(("new", "old"), [(8, 5), (5, 8)])
def test_codebooks_of_other_sizes_keep_what_both_have(new, old):
    shuffle = np.random.default_rng(0).permutation(new)
    before = np.repeat(np.arange(old), 5)[:, None]
    codes = shuffle[before % new]
    (numbering,) = align_codes(codes, before, (new,))
    assert sorted(numbering) == list(range(new))
    now = numbering[codes[:, 0]]
    inside = before[:, 0] < min(new, old)
    assert (now == before[:, 0])[inside].all()


def test_levels_that_one_side_lacks_stay_as_they_are():
    random = np.random.default_rng(3)
    deep, flat = random.integers(0, 6, (50, 3)), random.integers(0, 6, (50, 1))
    numbering = align_codes(deep, flat, (6, 6, 6))
    assert [list(numbers) for numbers in numbering[1:]] == [list(range(6))] * 2
    assert len(align_codes(flat, deep, (6,))) == 1


def test_bad_input_is_named():
    codes = np.zeros((3, 2), int)
    with pytest.raises(ValueError, match=r"3 rows of new codes, previous codes are \(2, 2\)"):
        align_codes(codes, codes[:2], (4, 4))
    with pytest.raises(ValueError, match="code 9 at level 2 is outside"):
        align_codes(codes + np.array([0, 9]), codes, (4, 4))
    many = np.zeros((MAX_ROWS + 1, 1), np.int8)
    with pytest.raises(ValueError, match="at most 1,000,000 rows"):
        align_codes(many, many, (2,))


def test_equal_codewords_fall_to_the_lowest_number():
    book = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]], np.float32)
    turned = renumber(Rqkmeans((book,)), [np.array([1, 2, 0])])
    assert turned.encode(np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)).tolist() == [[0], [1]]
