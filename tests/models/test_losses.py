import numpy as np
import pytest
import torch

from models.codebook_training import LearningCodebooks
from models.losses import (
    balance_loss,
    commitment_loss,
    commitment_per_level,
    focal_cross_entropy,
    info_nce,
    rotated,
    separation_loss,
    straight_through,
    uniqueness_loss,
)


def latents_and_codebooks(parallel=False):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(64, 6, generator=generator, requires_grad=True)
    words = [torch.randn(8, 6, generator=generator) / (level + 1) for level in range(3)]
    counts = [torch.ones(8) for _ in words]
    return latents, LearningCodebooks(words, counts, parallel)


def gradient(loss, latents):
    return torch.autograd.grad(loss, latents)[0]


@pytest.mark.parametrize("parallel", [False, True])
def test_commitment_has_a_gradient_at_every_level(parallel):
    latents, codebooks = latents_and_codebooks(parallel)
    found = codebooks.quantize(latents)
    terms = commitment_per_level(latents, found)
    assert len(terms) == 3
    for level, term in enumerate(terms):
        # The derivative of |residual - codeword|^2 with both codes and codewords held.
        words = codebooks.words[level][found.codes[:, level]]
        expected = 2 * (found.residuals[level] - words) / len(latents)
        torch.testing.assert_close(gradient(term, latents), expected, atol=1e-6, rtol=1e-4)
        assert expected.abs().max() > 1e-3
    assert float(commitment_loss(latents, found)) == pytest.approx(
        float(sum(terms).detach()) / 3, rel=1e-5
    )


def test_uniqueness_pushes_colliding_pairs_apart_and_leaves_others_alone():
    latents, _ = latents_and_codebooks()
    left = latents[:8]
    right = latents[:8].detach() + 0.05
    collide = torch.tensor([True, False] * 4)
    loss = uniqueness_loss(left, right, collide.float(), margin=0.9)
    assert float(loss) > 0
    moved = gradient(loss, latents)
    assert (moved[:8].norm(dim=1) > 0).tolist() == collide.tolist()
    before = torch.cosine_similarity(left, right)[collide]
    after = torch.cosine_similarity(left - moved[:8], right)[collide]
    assert (after < before).all()


def test_uniqueness_leaves_pairs_below_the_margin_alone():
    left, right = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert float(uniqueness_loss(left, right, torch.ones(1), margin=0.9)) == 0


def test_separation_turns_equal_coded_residuals_apart_by_weight():
    latents, _ = latents_and_codebooks()
    left, right = latents[:4], latents[:4].detach() + 0.5
    weights = torch.tensor([1.0, 0.0, 2.0, 0.5])
    moved = gradient(separation_loss(left, right, weights), latents)[:4]
    assert (moved.norm(dim=1) > 0).tolist() == [True, False, True, True]
    after = torch.cosine_similarity(left - 0.1 * moved, right)
    assert (after < torch.cosine_similarity(left, right))[weights > 0].all()
    opposite = -latents[:4].detach()
    assert float(separation_loss(left, opposite, weights).detach()) == 0


def test_balance_is_zero_for_even_use_and_its_gradient_evens_out():
    words = [torch.tensor([[0.3, 0.0], [-0.3, 0.0]])]
    even = LearningCodebooks(words, [torch.ones(2)])
    rows = torch.tensor([[0.3, 0.1], [-0.3, 0.1]])
    assert float(balance_loss(rows, even.quantize(rows), words)) == pytest.approx(0, abs=1e-6)
    rows = torch.tensor([[0.02, 0.3], [0.03, 0.2], [0.01, -0.3]], requires_grad=True)
    loss = balance_loss(rows, even.quantize(rows), words)
    assert float(loss) > 0.01
    assert (gradient(loss, rows)[:, 0] > 0).all()
    # A code that is out of everybody's reach must not make the gradient infinite.
    words = [torch.cat([words[0], torch.tensor([[99.0, 0.0]])])]
    far = LearningCodebooks(words, [torch.ones(3)])
    assert torch.isfinite(gradient(balance_loss(rows, far.quantize(rows), words), rows)).all()


@pytest.mark.parametrize("through", [straight_through, rotated])
def test_estimators_give_the_codeword_and_pass_a_gradient(through):
    latents, codebooks = latents_and_codebooks()
    quantized = codebooks.quantize(latents).quantized
    out = through(latents, quantized)
    torch.testing.assert_close(out, quantized, atol=1e-5, rtol=1e-5)
    assert (gradient(out.square().sum(), latents).norm(dim=1) > 0).all()


def test_the_rotated_gradient_turns_with_the_codeword():
    latents = torch.tensor([[1.0, 0.0]], requires_grad=True)
    out = rotated(latents, torch.tensor([[0.0, 2.0]]))
    # The rotation by 90 degrees and scaling by 2 maps e1 to 2 e2, so d(out . e2)/dz = 2 e1.
    moved = gradient(out[0, 1], latents)
    torch.testing.assert_close(moved, torch.tensor([[2.0, 0.0]]))


def test_info_nce_is_lowest_at_the_own_candidate_and_skips_rows_without():
    candidates = torch.eye(3)
    vectors = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], requires_grad=True)
    right = info_nce(vectors, candidates, torch.tensor([0, 1, -1]), 0.07)
    wrong = info_nce(vectors, candidates, torch.tensor([1, 0, -1]), 0.07)
    assert float(right) < 1e-4 < float(wrong)
    moved = gradient(wrong, vectors)
    assert moved[:2].abs().max() > 0.1
    assert moved[2].abs().max() == 0
    assert float(info_nce(vectors, candidates, torch.full((3,), -1), 0.07)) == 0


def test_focal_cross_entropy_weighs_easy_rows_down():
    logits = torch.tensor([[4.0, 0.0], [0.5, 0.0], [9.0, 0.0]], requires_grad=True)
    targets = torch.tensor([0, 0, -1])
    plain = focal_cross_entropy(logits, targets, 0.0)
    known = torch.log1p(torch.exp(torch.tensor([-4.0, -0.5])))
    assert float(plain) == pytest.approx(float(known.mean()), rel=1e-5)
    moved = [gradient(focal_cross_entropy(logits, targets, focus), logits) for focus in (0.0, 2.0)]
    assert (moved[1][:2, 0] < 0).all()
    ratio = [float(m[0, 0] / m[1, 0]) for m in moved]
    assert ratio[1] < ratio[0] / 10
    assert np.all(moved[1][2].numpy() == 0)
