import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.node_labels import Votes, distinctive_terms, majority

PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), max_size=40)
NOTHING = (np.empty(0, np.int64), np.empty(0, np.int64))


def votes_of(pairs):
    table = np.array(pairs, np.int64).reshape(-1, 2)
    return Votes.of(table[:, 0], table[:, 1])


def as_dict(votes):
    return {
        (int(node), int(name)): int(count)
        for node, name, count in zip(votes.node, votes.name, votes.count, strict=True)
    }


@given(PAIRS, PAIRS)
def test_votes_add_up(left, right):
    whole = votes_of(left + right)
    assert as_dict(whole) == {pair: (left + right).count(pair) for pair in left + right}
    assert as_dict(votes_of(left).join(votes_of(right))) == as_dict(whole)
    assert sorted(as_dict(whole)) == list(as_dict(whole))


@given(PAIRS)
def test_the_majority_wins_and_ties_go_to_the_first(pairs):
    nodes, names = majority(votes_of(pairs))
    expected = {}
    for node in sorted({node for node, _ in pairs}):
        mine = [name for owner, name in pairs if owner == node]
        expected[node] = min(mine, key=lambda name: (-mine.count(name), name))
    assert dict(zip(nodes.tolist(), names.tolist(), strict=True)) == expected


@given(PAIRS, st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), max_size=5))
def test_terms_are_ranked_by_class_based_tf_idf(pairs, used):
    frequency = np.bincount([name for _, name in pairs], minlength=7).clip(min=1)
    mean = len(pairs) / 5
    banned = np.array(used, np.int64).reshape(-1, 2)
    node, term = distinctive_terms(votes_of(pairs), frequency, mean, (banned[:, 0], banned[:, 1]))
    found = {n: [int(t) for o, t in zip(node, term, strict=True) if o == n] for n in range(5)}
    for owner in range(5):
        mine = [name for node, name in pairs if node == owner and (owner, name) not in used]
        weight = {t: mine.count(t) * math.log(1 + mean / frequency[t]) for t in set(mine)}
        assert found[owner] == sorted(weight, key=lambda t: (-weight[t], t))[:2]


def test_a_rare_word_beats_a_common_one():
    # Words: 0 common (f = 4), 1 other (f = 2), 2 rare (f = 1); six words over two nodes: A = 3.
    votes = votes_of([(0, 0), (0, 2), (0, 0), (1, 0), (1, 1), (1, 0), (1, 1)])
    _, term = distinctive_terms(votes, np.array([4, 2, 1]), 3.0, NOTHING, num_terms=1)
    assert 2 * math.log(1 + 3 / 4) < math.log(1 + 3 / 1)
    assert term.tolist() == [2, 1]


def test_no_votes_name_nothing():
    assert [len(part) for part in majority(votes_of([]))] == [0, 0]
    assert [len(p) for p in distinctive_terms(votes_of([]), np.empty(0), 0.0, NOTHING)] == [0, 0]
