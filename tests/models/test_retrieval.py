import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.retrieval import HierarchicalIndex, SearchWidths
from models.sid import SidLayout
from models.trie_build import build_trie

EVERYTHING = SearchWidths(beam=10_000, candidates=100_000, rerank=100_000)


def catalog(seed=0, rows=400, sizes=(6, 5, 7), suffix_bits=8, shared=False):
    """Clustered unit vectors, residual codes, unique IDs by suffix or shared ones."""
    rng = np.random.default_rng(seed)
    codebooks = [rng.normal(size=(size, 8)) / 2.0**level for level, size in enumerate(sizes)]
    codes = np.stack([rng.integers(0, size, rows) for size in sizes], axis=1)
    codes = codes[np.lexsort(codes.T[::-1])]
    vectors = sum(book[codes[:, level]] for level, book in enumerate(codebooks))
    vectors = vectors + rng.normal(size=vectors.shape) * 0.1
    embeddings = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    layout = SidLayout(sizes, 0 if shared else suffix_bits)
    suffix = None
    if not shared:
        changed = np.append(True, (codes[1:] != codes[:-1]).any(1))
        suffix = np.arange(rows) - np.maximum.accumulate(np.where(changed, np.arange(rows), 0))
    trie = build_trie([layout.pack(codes, suffix)], layout, allow_shared=shared)
    return HierarchicalIndex(trie, codebooks, embeddings), vectors.astype(np.float32), codebooks


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 1000),
    st.sampled_from([(6, 5, 7), (40,), (9, 11), (2, 3, 4, 3)]),
    st.booleans(),
    st.integers(1, 60),
)
def test_looking_at_everything_is_exact_search(seed, sizes, shared, k):
    index, latents, _ = catalog(seed, 50, sizes, shared=shared)
    embeddings = index.embeddings.numpy()
    queries, latents = embeddings[:9], latents[:9]
    found = index.search(queries, latents, k, EVERYTHING)
    scores = queries @ embeddings.T
    expected = -np.sort(-scores, axis=1)[:, :k]
    np.testing.assert_allclose(found.scores[:, : expected.shape[1]], expected, atol=1e-5)
    real = found.rows >= 0
    assert real.sum(axis=1).tolist() == [min(k, 50)] * 9
    assert (found.scores[~real] == -np.inf).all()
    for row, rows in enumerate(found.rows):
        assert len(set(rows[real[row]])) == real[row].sum()
        np.testing.assert_allclose(
            scores[row, rows[real[row]]], found.scores[row][real[row]], atol=1e-5
        )


def test_narrow_widths_keep_the_nearest_prefixes():
    index, latents, codebooks = catalog(2, 600)
    embeddings = index.embeddings.numpy()
    narrow = index.search(embeddings, latents, 1, SearchWidths(beam=4, candidates=60, rerank=20))
    assert (narrow.rows[:, 0] == np.arange(600)).mean() > 0.9
    one = index.search(embeddings[:5], latents[:5], 30, SearchWidths(1, 7, 3))
    assert ((one.rows >= 0).sum(axis=1) <= 3).all() and ((one.rows >= 0).sum(axis=1) >= 1).all()
    # A beam of one is the greedy path, so every result lies under the nearest existing prefix.
    codes = index.trie.node_table(3).codes
    rows_codes = np.repeat(codes[:, :2], index.trie.node_table(3).item_counts, axis=0)
    for query in range(5):
        first = np.unique(codes[:, 0])
        distance = ((latents[query] - codebooks[0][first]) ** 2).sum(1)
        best = first[distance.argmin()]
        second = np.unique(codes[codes[:, 0] == best, 1])
        distance = ((latents[query] - codebooks[0][best] - codebooks[1][second]) ** 2).sum(1)
        found = one.rows[query][one.rows[query] >= 0]
        assert (rows_codes[found] == (best, second[distance.argmin()])).all()


def test_results_do_not_depend_on_the_batch():
    index, latents, _ = catalog(3)
    embeddings = index.embeddings.numpy()
    widths = SearchWidths(8, 100, 40)
    whole = index.search(embeddings, latents, 5, widths)
    for row in (0, 17, 399):
        alone = index.search(embeddings[row : row + 1], latents[row : row + 1], 5, widths)
        np.testing.assert_array_equal(alone.rows[0], whole.rows[row])


def test_an_empty_catalog_finds_nothing():
    layout = SidLayout((4, 4), 0)
    index = HierarchicalIndex(
        build_trie([], layout), [np.ones((4, 3))] * 2, np.empty((0, 3), np.float32)
    )
    found = index.search(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32), 4)
    assert (found.rows == -1).all() and found.rows.shape == (2, 4)


def test_errors_print_both_sides():
    index, latents, codebooks = catalog(0)
    with pytest.raises(ValueError, match=r"codebooks of \[6, 5\] codes do not fit .* \[6, 5, 7\]"):
        HierarchicalIndex(index.trie, codebooks[:2], index.embeddings.numpy())
    with pytest.raises(ValueError, match="399 embeddings for 400 items"):
        HierarchicalIndex(index.trie, codebooks, index.embeddings.numpy()[1:])
    with pytest.raises(ValueError, match="k is 0, with 400 queries and 399 latents"):
        index.search(index.embeddings.numpy(), latents[1:], 0)
    with pytest.raises(ValueError, match="must be at least 1, got"):
        SearchWidths(beam=0)
