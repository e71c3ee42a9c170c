import doctest

import numpy as np
import pytest
import torch

from models import mixture_of_codes, sid_embedding
from models.mixture_of_codes import MixtureOfCodesFusion
from models.ngrams import NgramFeature, ngram_ids, vocabulary_size
from models.sid_embedding import RandomHashEmbedding, SemanticIdEmbedding
from models.spm_ngrams import SpmFeature, SpmNgrams, fit_spm

SIZES = (5, 6, 7)


@pytest.mark.parametrize("module", [sid_embedding, mixture_of_codes])
def test_the_examples_run(module):
    result = doctest.testmod(module, extraglobs={"torch": torch, "np": np})
    assert result.attempted and not result.failed


def test_the_embedding_is_the_sum_over_all_columns():
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, size, 40) for size in SIZES], axis=1)
    features = [NgramFeature("bigram"), NgramFeature("prefix_ngram", table_size=50)]
    sizes = {feature.name: vocabulary_size(SIZES, feature) for feature in features}
    pieces = SpmNgrams(fit_spm(codes, SIZES, SpmFeature(30)), SIZES)
    module = SemanticIdEmbedding(sizes | {"spm": pieces.vocabulary_size}, 4)
    columns = {f.name: torch.from_numpy(ngram_ids(codes, SIZES, f)) for f in features}
    ragged = pieces.ids(codes)
    columns["spm"] = (torch.from_numpy(ragged.values), torch.from_numpy(ragged.offsets))
    result = module(columns)
    for row in range(40):
        ids = {name: columns[name][row].tolist() for name in sizes}
        ids["spm"] = ragged.values[ragged.offsets[row] : ragged.offsets[row + 1]].tolist()
        expected = sum(module.tables[name].weight[i] for name, some in ids.items() for i in some)
        torch.testing.assert_close(result[row], expected)
    assert module.num_rows == sum(sizes.values()) + pieces.vocabulary_size
    with pytest.raises(KeyError, match="spm"):
        module({name: columns[name] for name in sizes})


def test_items_that_share_a_prefix_start_out_closer():
    torch.manual_seed(0)
    feature = NgramFeature("prefix_ngram")
    module = SemanticIdEmbedding({"prefix_ngram": vocabulary_size(SIZES, feature)}, 64)
    codes = np.array([[1, 2, 3], [1, 2, 4], [4, 0, 3]])
    vectors = module({"prefix_ngram": torch.from_numpy(ngram_ids(codes, SIZES, feature))})
    near, far = (vectors[0] - vectors[1]).norm(), (vectors[0] - vectors[2]).norm()
    assert near < 0.8 * far


def test_gradients_reach_only_the_rows_used():
    module = SemanticIdEmbedding({"unigram": 10}, 3)
    module({"unigram": torch.tensor([[1, 4]])}).sum().backward()
    used = module.tables["unigram"].weight.grad.abs().sum(1).nonzero().flatten()
    assert used.tolist() == [1, 4]


def test_the_random_hash_spreads_and_repeats():
    module = RandomHashEmbedding(1000, 4, num_hashes=2)
    items = torch.cat([torch.arange(20_000), torch.arange(20_000) * 2**40])
    rows = module.rows(items)
    assert rows.shape == (40_000, 2) and rows.min() >= 0 and rows.max() < 1000
    counts = torch.bincount(rows[:20_000, 0], minlength=1000)
    # 20 a row expected; beyond 6 standard deviations of a Poisson count is no hash.
    assert counts.max() < 20 + 6 * 20**0.5
    assert (rows[:, 0] == rows[:, 1]).float().mean() < 0.01
    assert torch.equal(module(items[:9]), module(items[:9]))
    torch.testing.assert_close(module(items[:1])[0], module.table.weight[rows[0]].sum(0))
    with pytest.raises(ValueError, match=r"num_hashes must lie in 1\.\.4, got 5"):
        RandomHashEmbedding(10, 2, num_hashes=5)


def test_fusion_starts_as_identity_and_then_mixes():
    torch.manual_seed(0)
    fusion = MixtureOfCodesFusion(3, 4, 2)
    inputs = torch.randn(5, 3, 4)
    torch.testing.assert_close(fusion(inputs), inputs)
    torch.nn.init.normal_(fusion.up.weight)
    changed = inputs.clone()
    changed[:, 0] += 1.0
    difference = (fusion(changed) - fusion(inputs))[:, 1:]
    assert difference.abs().max() > 0.01
    joined = inputs.flatten(1)
    expected = joined + fusion.up(torch.nn.functional.gelu(fusion.down(joined)))
    torch.testing.assert_close(fusion(inputs), expected.view(5, 3, 4))
