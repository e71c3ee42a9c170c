import torch

from models.pair_mining import SharedPairs


def generator():
    return torch.Generator().manual_seed(0)


def test_pairs_share_all_the_codes_given():
    codes = torch.tensor([[0, 1], [0, 2], [0, 1], [3, 3], [0, 2], [0, 1]])
    rows = torch.tensor([10, 11, 12, 13, 14, 15])
    pairs = SharedPairs.among(codes, rows, generator())
    by_row = dict(zip(rows.tolist(), codes.tolist(), strict=True))
    # Buckets of 3, 2 and 1 items make 2, 1 and 0 pairs of neighbours.
    assert len(pairs.left) == 3
    for left, right in zip(pairs.left.tolist(), pairs.right.tolist(), strict=True):
        assert left != right
        assert by_row[left] == by_row[right]


def test_draws_lefts_before_their_partners():
    codes = torch.zeros(4, 1, dtype=torch.long)
    pairs = SharedPairs.among(codes, torch.arange(4), generator())
    drawn = pairs.draw(50, generator())
    assert drawn.shape == (100,)
    known = set(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True))
    assert set(zip(drawn[:50].tolist(), drawn[50:].tolist(), strict=True)) == known


def test_no_pairs_give_no_rows():
    pairs = SharedPairs.among(torch.arange(5)[:, None], torch.arange(5), generator())
    assert pairs.draw(8, generator()).shape == (0,)
