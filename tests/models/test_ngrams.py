import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.ngrams import (
    NGRAM_FEATURES,
    NgramColumn,
    NgramFeature,
    count_windows,
    ngram_columns,
    ngram_ids,
    vocabulary_size,
)

CODES = np.array([[2, 0, 3, 1]])


@pytest.mark.parametrize(
    ("name", "expected", "size"),
    [
        ("unigram", [2, 4 + 0, 8 + 3, 12 + 1], 16),
        ("bigram", [2 * 4 + 0, 16 + 0 * 4 + 3, 32 + 3 * 4 + 1], 48),
        ("bigram_disjoint", [2 * 4 + 0, 16 + 3 * 4 + 1], 32),
        ("trigram", [2 * 16 + 0 * 4 + 3, 64 + 0 * 16 + 3 * 4 + 1], 128),
        ("fourgram", [2 * 64 + 0 * 16 + 3 * 4 + 1], 256),
        (
            "prefix_ngram",
            [
                3 - 1,
                4 * 3 + 1 - 1,
                16 * 3 + 4 * 1 + 4 - 1,
                64 * 3 + 16 * 1 + 4 * 4 + 2 - 1,
            ],
            4 + 16 + 64 + 256,
        ),
    ],
)
def test_by_hand_with_equal_sizes(name, expected, size):
    feature = NgramFeature(name)
    assert ngram_ids(CODES, (4, 4, 4, 4), feature).tolist() == [expected]
    assert vocabulary_size((4, 4, 4, 4), feature) == size


@pytest.mark.parametrize(
    ("name", "expected", "size"),
    [
        ("unigram", [1, 2 + 4, 2 + 5 + 2], 10),
        ("bigram", [1 * 5 + 4, 10 + 4 * 3 + 2], 25),
        ("bigram_disjoint", [1 * 5 + 4, 10 + 2], 13),
        ("trigram", [(1 * 5 + 4) * 3 + 2], 30),
        ("prefix_ngram", [1, 2 + 1 * 5 + 4, 2 + 10 + (1 * 5 + 4) * 3 + 2], 42),
    ],
)
def test_by_hand_with_sizes_2_5_3(name, expected, size):
    feature = NgramFeature(name)
    assert ngram_ids(np.array([[1, 4, 2]]), (2, 5, 3), feature).tolist() == [expected]
    assert vocabulary_size((2, 5, 3), feature) == size


def test_the_example_of_the_docstring():
    codes = np.array([[2, 0, 3]])
    assert ngram_ids(codes, (4, 4, 4), NgramFeature("unigram")).tolist() == [[2, 4, 11]]
    assert ngram_ids(codes, (4, 4, 4), NgramFeature("bigram")).tolist() == [[8, 19]]
    assert ngram_ids(codes, (4, 4, 4), NgramFeature("bigram_disjoint")).tolist() == [[8, 19]]
    assert ngram_ids(codes, (4, 4, 4), NgramFeature("trigram")).tolist() == [[35]]
    assert ngram_ids(codes, (4, 4, 4), NgramFeature("prefix_ngram")).tolist() == [[2, 12, 55]]
    assert ngram_ids(codes, (4, 4, 4), NgramFeature("prefix_ngram", max_length=2)).tolist() == [
        [2, 12]
    ]


def exact_id(codes, sizes, column):
    value = 0
    for level in range(column.start, column.stop):
        value = value * sizes[level] + int(codes[level])
    return column.shift + value


@given(
    st.sampled_from(NGRAM_FEATURES),
    st.lists(st.integers(2, 3000), min_size=4, max_size=7),
    st.one_of(st.none(), st.integers(1, 10**12)),
    st.integers(0, 2**32 - 1),
)
def test_ids_equal_python_integers(name, sizes, table_size, seed):
    feature = NgramFeature(name, table_size)
    exact_size = sum(column.size for column in ngram_columns(sizes, feature))
    if table_size is None and exact_size >= 2**63:
        with pytest.raises(ValueError, match="set table_size, at most"):
            vocabulary_size(sizes, feature)
        return
    codes = np.random.default_rng(seed).integers(0, sizes, (5, len(sizes)))
    codes[0], codes[1] = 0, np.array(sizes) - 1
    size = vocabulary_size(sizes, feature)
    assert size == min(exact_size, table_size or exact_size)
    ids = ngram_ids(codes, sizes, feature)
    for row, code in zip(ids, codes, strict=True):
        expected = [
            exact_id(code, sizes, column) % size for column in ngram_columns(sizes, feature)
        ]
        assert row.tolist() == expected


@pytest.mark.parametrize("name", NGRAM_FEATURES)
def test_no_two_ngrams_share_an_exact_id(name):
    sizes = (2, 3, 2, 2, 2)
    codes = np.stack(np.meshgrid(*map(np.arange, sizes)), -1).reshape(-1, len(sizes))
    feature = NgramFeature(name)
    columns = range(len(ngram_columns(sizes, feature)))
    counted = [piece for p in columns for piece in count_windows([codes], sizes, feature, p)]
    ids = np.concatenate([piece.ids for piece in counted])
    assert sorted(ids.tolist()) == list(range(vocabulary_size(sizes, feature)))


@pytest.mark.parametrize("few", [0, 1 << 20])
def test_counts_name_the_codes_behind_an_id(monkeypatch, few):
    monkeypatch.setattr("models.ngrams._FEW_WINDOWS", few)
    codes = np.array([[0, 0, 2], [1, 0, 1], [1, 0, 2], [1, 1, 2]])

    def counted(position, *chunks):
        pieces = list(count_windows(chunks, (2, 3, 4), NgramFeature("bigram"), position))
        return [
            (int(number), code.tolist(), int(count))
            for piece in pieces
            for number, code, count in zip(piece.ids, piece.codes, piece.counts, strict=True)
        ]

    for cut in range(5):  # a window may go on in the next chunk
        chunks = codes[:cut], codes[cut:]
        assert counted(0, *chunks) == [(0, [0, 0], 1), (3, [1, 0], 2), (4, [1, 1], 1)]
        assert counted(1, *chunks) == [(7, [0, 1], 1), (8, [0, 2], 2), (12, [1, 2], 1)]


def test_columns_say_which_codes_they_cover():
    assert ngram_columns((2, 5, 3), NgramFeature("bigram_disjoint")) == (
        NgramColumn(0, 2, 0, 10),
        NgramColumn(2, 3, 10, 3),
    )


def test_configuration_errors_name_key_value_and_fix():
    with pytest.raises(ValueError, match=r"'bigrams' is not one of \['unigram'"):
        NgramFeature("bigrams")
    with pytest.raises(ValueError, match="unigram: table_size must be at least 1, got 0"):
        NgramFeature("unigram", 0)
    with pytest.raises(ValueError, match="unigram: max_length applies to prefix_ngram only"):
        NgramFeature("unigram", max_length=2)
    with pytest.raises(ValueError, match="prefix_ngram: max_length must be at least 1, got 0"):
        NgramFeature("prefix_ngram", max_length=0)
    with pytest.raises(ValueError, match="fourgram needs 4 levels, the tokenizer has 3"):
        ngram_columns((4, 4, 4), NgramFeature("fourgram"))
    with pytest.raises(ValueError, match=r"prefix_ngram needs 4 levels.*lower max_length"):
        ngram_columns((4, 4, 4), NgramFeature("prefix_ngram", max_length=4))
    with pytest.raises(ValueError, match=r"table_size 4611686018427387904 overflows int64"):
        vocabulary_size((2048,) * 6, NgramFeature("prefix_ngram", 2**62))
    with pytest.raises(ValueError, match=r"codes must have shape \(N, 3\), got \(1, 4\)"):
        ngram_ids(CODES, (4, 4, 4), NgramFeature("unigram"))


def test_a_yaml_mapping_is_validated():
    adapter = pydantic.TypeAdapter(NgramFeature)
    assert adapter.validate_python({"name": "prefix_ngram", "max_length": 3}) == NgramFeature(
        "prefix_ngram", None, 3
    )
    with pytest.raises(pydantic.ValidationError, match="tablesize"):
        adapter.validate_python({"name": "unigram", "tablesize": 3})
