import torch

from models.codebook_training import LearningCodebooks, nearest


def test_residual_quantization_chains_and_parallel_does_not():
    words = [torch.tensor([[0.0], [4.0]]), torch.tensor([[-1.0], [1.0]])]
    counts = [torch.ones(2), torch.ones(2)]
    rows = torch.tensor([[4.8], [0.9]])
    found = LearningCodebooks(words, counts).quantize(rows)
    assert found.codes.tolist() == [[1, 1], [0, 1]]
    torch.testing.assert_close(found.residuals[1], torch.tensor([[0.8], [0.9]]))
    torch.testing.assert_close(found.quantized, torch.tensor([[5.0], [1.0]]))
    assert found.anchors[-1] is found.quantized
    found = LearningCodebooks(words, counts, parallel=True).quantize(rows)
    assert found.codes.tolist() == [[1, 1], [0, 1]]
    torch.testing.assert_close(found.quantized, torch.tensor([[2.5], [0.5]]))
    torch.testing.assert_close(found.residuals[1], rows)


def test_codewords_follow_the_running_mean_of_their_rows():
    codebooks = LearningCodebooks([torch.tensor([[0.0], [10.0]])], [torch.tensor([2.0, 2.0])])
    rows = torch.tensor([[1.0], [3.0], [9.0], [11.0]])
    codebooks.follow(codebooks.quantize(rows), decay=0.5, spare=torch.zeros(2, dtype=torch.long))
    # count 0.5 * 2 + 0.5 * 2 = 2; sum 0.5 * 2 * 0 + 0.5 * (1 + 3) = 2.
    assert codebooks.counts[0].tolist() == [2.0, 2.0]
    assert codebooks.words[0].flatten().tolist() == [1.0, 10.0]


def test_dead_codes_come_back_from_the_batch():
    # Code 1 is far from all rows. Nothing but its low use is needed to bring it back.
    codebooks = LearningCodebooks([torch.tensor([[0.0], [99.0]])], [torch.tensor([4.0, 4.0])])
    rows = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    steps = 0
    while codebooks.words[0][1] == 99 and steps < 100:
        spare = torch.tensor([0, 3])
        codebooks.follow(codebooks.quantize(rows), decay=0.8, spare=spare)
        steps += 1
    assert steps < 100
    assert float(codebooks.words[0][1]) == 3.0
    assert nearest(rows, codebooks.words[0]).unique().tolist() == [0, 1]


def test_kmeans_starts_from_all_rows():
    # One cluster in the last hundredth of the rows: a first batch would not have it.
    rows = torch.cat([torch.zeros(990, 2), torch.full((10, 2), 50.0)])
    rows[:990] += torch.randn(990, 2, generator=torch.Generator().manual_seed(0))
    codebooks = LearningCodebooks.from_kmeans(rows, (8, 4), batch_size=32, seed=0)
    assert float(codebooks.words[0].max()) > 45
    assert abs(float(codebooks.counts[0].sum()) - 32) < 0.5
    assert all((count > 0).all() for count in codebooks.counts)
