import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.beam_search import constrained_beam_search
from models.sid import SidLayout
from models.trie_build import build_trie
from models.trie_decoder import TrieDecoder
from models.trie_file import read_trie, write_trie
from models.trie_neighbours import prefix_neighbours


@st.composite
def decoders(draw, min_rows=0):
    """A decoder over a random catalog, its IDs as tuples, and which are eligible."""
    sizes = tuple(draw(st.lists(st.sampled_from([2, 5, 40, 300]), min_size=1, max_size=3)))
    layout = SidLayout(sizes, 3)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = draw(st.integers(min_rows, 120))
    codes = np.stack([rng.integers(0, size, rows) for size in sizes], axis=1)
    suffix = rng.integers(0, draw(st.sampled_from([1, 3])), rows)
    sids = np.unique(layout.pack(codes, suffix))
    trie = build_trie([sids], layout)
    eligible = rng.random(len(sids)) < 0.5 if draw(st.booleans()) else None
    codes, suffix = layout.unpack(sids)
    tokens = np.column_stack([codes, suffix])[:, : trie.depth]
    keep = np.ones(len(sids), bool) if eligible is None else eligible
    return TrieDecoder(trie, eligible=eligible), tokens, keep


@settings(deadline=None)
@given(decoders())
def test_every_step_equals_the_table(case):
    decoder, tokens, eligible = case
    trie = decoder.trie
    for level in range(decoder.depth):
        prefixes = np.unique(tokens[:, :level], axis=0) if level else np.zeros((1, 0), int)
        states = TrieDecoder(trie).walk(torch.from_numpy(prefixes.astype(np.int64)))
        mask = decoder.allowed_next(states, level)
        listed = decoder.list_next(states, level)
        everything = torch.arange(decoder.token_sizes[level])
        for row, prefix in enumerate(prefixes):
            here = (tokens[:, :level] == prefix).all(1) & eligible
            expected = np.unique(tokens[here, level])
            np.testing.assert_array_equal(np.flatnonzero(mask[row].numpy()), expected)
            valid = listed.valid[row]
            np.testing.assert_array_equal(listed.tokens[row][valid], expected)
            after = decoder.advance(states[row].expand(len(everything)), level, everything)
            assert (after >= 0).tolist() == np.isin(everything, expected).tolist()
            assert listed.next_states[row][valid].tolist() == after[after >= 0].tolist()
    everything = torch.from_numpy(tokens.astype(np.int64))
    leaves = np.where(eligible, np.arange(len(tokens)), -1)
    assert decoder.walk(everything).tolist() == leaves.tolist()
    dead = torch.full((3,), -1)
    assert (decoder.advance(dead, 0, torch.arange(3)) == -1).all()


@settings(deadline=None)
@given(decoders(), st.integers(1, 90), st.integers(0, 2**32 - 1))
def test_search_returns_items_only(case, num_beams, seed):
    decoder, tokens, eligible = case
    generator = torch.Generator().manual_seed(seed)

    def score_next(chosen, parents):
        size = decoder.token_sizes[chosen.shape[1]]
        logits = torch.randn(len(chosen), size, generator=generator)
        logits[torch.rand(logits.shape, generator=generator) < 0.05] = -torch.inf
        logits[torch.rand(len(chosen), generator=generator) < 0.05] = torch.nan
        return logits

    result = constrained_beam_search(decoder, score_next, 3, num_beams)
    for leaves, found, scores in zip(result.leaves, result.tokens, result.scores, strict=True):
        real = leaves >= 0
        assert len(set(leaves[real].tolist())) == real.sum() <= eligible.sum()
        assert eligible[leaves[real].numpy()].all()
        np.testing.assert_array_equal(found[real], tokens[leaves[real].numpy()])
        assert (found[~real] == -1).all() and scores[~real].isneginf().all()
        assert scores[real].isfinite().all() and (scores[:-1] >= scores[1:]).all()


@settings(deadline=None, max_examples=40)
@given(decoders(min_rows=1), st.integers(0, 2**32 - 1))
def test_wide_search_equals_scoring_every_item(case, seed):
    decoder, tokens, eligible = case
    weights = [
        torch.randn(3, size, generator=torch.Generator().manual_seed(seed + level))
        for level, size in enumerate(decoder.token_sizes)
    ]
    beams = len(tokens) + 5

    def score_next(chosen, parents):
        # Each batch row has its own table, and a token depends on the one before it.
        level = chosen.shape[1]
        logits = weights[level].repeat_interleave(beams, 0)
        return logits if level == 0 else logits + (chosen[:, -1:] % 7) * logits.cos()

    result = constrained_beam_search(decoder, score_next, 3, beams)
    for row in range(3):
        scores = np.full(len(tokens), -np.inf)
        for item in np.flatnonzero(eligible):
            total = 0.0
            for level, token in enumerate(tokens[item]):
                logits = weights[level][row]
                if level:
                    logits = logits + (int(tokens[item][level - 1]) % 7) * logits.cos()
                total += float(torch.log_softmax(logits, 0)[token])
            scores[item] = total
        order = np.argsort(-scores, kind="stable")[: eligible.sum()]
        found = result.leaves[row][: len(order)].numpy()
        assert (result.leaves[row][len(order) :] == -1).all()
        assert set(found.tolist()) == set(order.tolist())
        np.testing.assert_allclose(result.scores[row][: len(order)], scores[order], atol=1e-4)


def test_parents_follow_the_beams():
    layout = SidLayout((2, 2), 0)
    decoder = TrieDecoder(build_trie([np.arange(4)], layout))
    seen = []

    def score_next(chosen, parents):
        seen.append((chosen.tolist(), parents.tolist()))
        return torch.tensor([[0.0, 5.0]]).expand(len(chosen), 2)

    result = constrained_beam_search(decoder, score_next, 2, 2)
    assert seen == [([[], [], [], []], [0, 1, 2, 3]), ([[1], [0], [1], [0]], [0, 0, 2, 2])]
    assert result.leaves.tolist() == [[3, 2], [3, 2]] or result.leaves.tolist() == [[3, 1]] * 2


def test_wrong_logits_and_beams_are_named():
    decoder = TrieDecoder(build_trie([np.arange(4)], SidLayout((2, 2), 0)))
    with pytest.raises(ValueError, match=r"shape \(6, 2\) at level 1, got \(6, 5\)"):
        constrained_beam_search(decoder, lambda chosen, parents: torch.zeros(6, 5), 2, 3)
    with pytest.raises(ValueError, match="num_beams must be at least 1, got 0"):
        constrained_beam_search(decoder, lambda chosen, parents: torch.zeros(6, 5), 2, 0)
    with pytest.raises(ValueError, match="eligible has 3 entries, the trie has 4 leaves"):
        TrieDecoder(decoder.trie, eligible=np.ones(3, bool))


def test_a_mapped_file_decodes(tmp_path):
    layout = SidLayout((300, 300), 0)
    codes = np.array(list(itertools.product(range(0, 300, 7), range(0, 300, 11))))
    trie = build_trie([layout.pack(codes)], layout)
    with open(tmp_path / "t", "wb") as file:
        write_trie(trie, file)
    mapped = TrieDecoder(read_trie(tmp_path / "t"))
    assert mapped.walk(torch.from_numpy(codes)).tolist() == list(range(len(codes)))
    assert mapped.allowed_next(mapped.root(1), 0)[0].nonzero()[:, 0].tolist() == list(
        range(0, 300, 7)
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="2026-11-22: runs where there is a GPU")
def test_gpu_steps_equal_cpu_steps():
    layout = SidLayout((300, 40, 300), 3)
    rng = np.random.default_rng(0)
    sids = np.unique(layout.pack(rng.integers(0, 40, (5000, 3))))
    trie = build_trie([sids], layout)
    cpu, gpu = TrieDecoder(trie), TrieDecoder(trie, "cuda")
    states = torch.arange(trie.num_nodes[1])
    assert torch.equal(cpu.allowed_next(states, 2), gpu.allowed_next(states.cuda(), 2).cpu())
    tokens = torch.randint(0, 300, states.shape)
    assert torch.equal(
        cpu.advance(states, 2, tokens), gpu.advance(states.cuda(), 2, tokens.cuda()).cpu()
    )


def test_neighbours_widen_level_by_level():
    layout = SidLayout((4, 4), 2)
    codes = np.array([[0, 1], [1, 0], [1, 2], [1, 2], [1, 2], [1, 3], [2, 0]])
    suffix = np.array([0, 0, 0, 1, 2, 0, 0])
    trie = build_trie([layout.pack(codes, suffix)], layout)
    found = prefix_neighbours(trie, 3, 10, min_shared=0)
    assert found.rows.tolist() == [2, 4, 1, 5, 0, 6]
    assert found.shared.tolist() == [2, 2, 1, 1, 0, 0]
    assert prefix_neighbours(trie, 3, 10).rows.tolist() == [2, 4, 1, 5]
    assert prefix_neighbours(trie, 3, 3).rows.tolist() == [2, 4, 1]
    with pytest.raises(ValueError, match=r"row must lie in 0\.\.6, got 7"):
        prefix_neighbours(trie, 7, 1)


def test_neighbours_under_shared_ids():
    layout = SidLayout((4, 4), 0)
    trie = build_trie(
        [layout.pack(np.array([[0, 1], [1, 1], [1, 1], [1, 2]]))], layout, allow_shared=True
    )
    found = prefix_neighbours(trie, 1, 5)
    assert found.rows.tolist() == [2, 3] and found.shared.tolist() == [2, 1]
