import dataclasses
import itertools

import numpy as np
import pytest
import torch

from models.arithmetic import ProcessorArithmetic
from models.dense import DenseNetwork
from models.gpu_arithmetic import TorchArithmetic


def random_network(widths, seed=0, shortcut=True):
    random = np.random.default_rng(seed)
    pairs = list(itertools.pairwise(widths))
    return DenseNetwork(
        tuple(random.normal(size=p).astype("f4") / np.sqrt(p[0]).astype("f4") for p in pairs),
        tuple(random.normal(size=p[1]).astype("f4") for p in pairs),
        random.normal(size=(widths[0], widths[-1])).astype("f4") if shortcut else None,
        2.0**-20,
    )


@pytest.mark.parametrize("shortcut", [True, False])
def test_exact_agrees_with_a_plain_evaluation(shortcut):
    network = random_network((5, 7, 3), shortcut=shortcut)
    rows = np.random.default_rng(1).normal(size=(11, 5)).astype("f4")
    hidden = np.maximum(rows @ network.weights[0] + network.biases[0], 0)
    expected = hidden @ network.weights[1] + network.biases[1]
    if shortcut:
        expected = expected + rows @ network.shortcut
    np.testing.assert_allclose(network.exact(rows), expected, atol=5e-6)
    for fast in (ProcessorArithmetic(), TorchArithmetic(torch.device("cpu"))):
        found = fast.get(fast.network(network)(fast.put(rows)))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=5e-6)


def test_exact_bytes_do_not_depend_on_the_batch():
    network = random_network((40, 96, 16))
    rows = np.random.default_rng(2).normal(size=(600, 40)).astype("f4")
    whole = network.exact(rows)
    for size in (1, 7, 599):
        parts = [network.exact(rows[i : i + size]) for i in range(0, len(rows), size)]
        assert np.concatenate(parts).tobytes() == whole.tobytes()
    order = np.random.default_rng(3).permutation(len(rows))
    assert network.exact(rows[order]).tobytes() == whole[order].tobytes()


def test_another_summation_order_cannot_change_the_output():
    class OtherOrder(DenseNetwork):
        """Is off by nearly as much as the bound allows, in a direction of its own a value."""

        def _float64(self, block):
            value, bound = super()._float64(block)
            sign = np.random.default_rng(len(block)).choice([-0.99, 0.99], size=value.shape)
            return value + sign * bound, 2 * bound

    plain = random_network((40, 96, 16))
    # At this grid some of the rows have a value too close to call.
    plain = dataclasses.replace(plain, grid=2.0**-33)
    other = OtherOrder(plain.weights, plain.biases, plain.shortcut, plain.grid)
    rows = np.random.default_rng(5).normal(size=(300, 40))
    value, bound = plain._float64(rows)
    moved = np.rint((value + bound) / plain.grid) != np.rint((value - bound) / plain.grid)
    assert 0.1 < moved.any(axis=1).mean() < 1
    assert np.array_equal(other._grid_points(rows), plain._grid_points(rows))


def test_arrays_round_trip():
    network = random_network((4, 6, 2))
    again = DenseNetwork.from_arrays(network.arrays("encoder"), "encoder")
    rows = np.ones((3, 4), "f4")
    assert again.exact(rows).tobytes() == network.exact(rows).tobytes()
    assert again.grid == network.grid
    with pytest.raises(ValueError, match=r"decoder\.0\.weight"):
        DenseNetwork.from_arrays(network.arrays("encoder"), "decoder")


def test_layers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="layer 0 gives 3 values, layer 1 takes 4"):
        DenseNetwork((np.ones((2, 3)), np.ones((4, 1))), (np.ones(3), np.ones(1)))
    with pytest.raises(ValueError, match="shortcut"):
        DenseNetwork((np.ones((2, 3)),), (np.ones(3),), np.ones((3, 3)))
    with pytest.raises(ValueError, match=r"power of two, got 0\.3"):
        DenseNetwork((np.ones((2, 3)),), (np.ones(3),), None, 0.3)
