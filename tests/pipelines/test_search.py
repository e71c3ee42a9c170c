"""Searching what is published, and decoding against its trie."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.beam_search import constrained_beam_search
from models.trie_decoder import TrieDecoder
from pipelines.errors import UsageError
from pipelines.root import Root
from pipelines.search import search_item, search_text
from pipelines.show import open_view
from tests.pipelines import jobs


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_an_item_finds_its_true_neighbours(vector_root):
    vectors = {
        row["item_id"]: row["embedding"]
        for row in jobs.table(vector_root, "embeddings").to_pylist()
    }
    names = sorted(vectors)
    matrix = unit(np.array([vectors[name] for name in names]))
    found = search_item(open_view(Root(str(vector_root))), "item-007", 5)
    cosine = matrix @ matrix[names.index("item-007")]
    cosine[names.index("item-007")] = -2
    best = np.sort(cosine)[::-1][:5]
    np.testing.assert_allclose([row["cosine"] for row in found["items"]], best, atol=1e-3)
    items = {row["item_id"]: row for row in jobs.table(vector_root, "items").to_pylist()}
    for row in found["items"]:
        assert row["path_labels"] == items[row["item_id"]]["path_labels"]
        assert row["sid_text"] == "-".join(map(str, items[row["item_id"]]["codes"]))


def test_a_text_finds_the_item_that_says_it(text_root, tmp_path, capsys):
    arguments = ["show", "--root", str(text_root), "--limit", "3"]
    title = jobs.table(text_root, "catalog")["title"][5].as_py()
    assert jobs.command(tmp_path, *arguments, "--query", title, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["items"]) == 3
    cosines = [row["cosine"] for row in shown["items"]]
    assert cosines == sorted(cosines, reverse=True)
    assert jobs.command(tmp_path, *arguments, "--query", title) == 0
    assert shown["items"][0]["sid_text"] in capsys.readouterr().out


def test_text_is_refused_where_items_were_not_embedded_from_text(vector_root):
    view = open_view(Root(str(vector_root)))
    with pytest.raises(UsageError, match=r"come from catalog columns.*--query-item"):
        search_text(view, "anything")
    with pytest.raises(UsageError, match="needs some text"):
        search_text(view, " ")
    with pytest.raises(UsageError, match="item 'nobody' is not in generation"):
        search_item(view, "nobody")


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 2**32 - 1), st.sampled_from([1, 7, 400]), st.sampled_from([None, 0.0, 0.02, 0.5])
)
def test_search_over_a_published_trie_returns_only_existing_items(vector_root, seed, beams, share):
    view = open_view(Root(str(vector_root)))
    sids = jobs.table(vector_root, "items")["sid"].to_numpy()
    rng = np.random.default_rng(seed)
    eligible = None if share is None else rng.random(len(sids)) < share
    decoder = TrieDecoder(view.read_trie(), eligible=eligible)
    generator = torch.Generator().manual_seed(seed)

    def score_next(chosen, parents):
        return 5 * torch.randn(
            len(chosen), decoder.token_sizes[chosen.shape[1]], generator=generator
        )

    result = constrained_beam_search(decoder, score_next, 2, beams)
    allowed = np.ones(len(sids), bool) if eligible is None else eligible
    for leaves, tokens in zip(result.leaves.numpy(), result.tokens.numpy(), strict=True):
        real = leaves >= 0
        assert real.sum() == len(set(leaves[real])) == min(beams, allowed.sum())
        assert allowed[leaves[real]].all()
        packed = view.layout.pack(tokens[real][:, : view.layout.num_levels])
        assert packed.tolist() == sids[leaves[real]].tolist()
