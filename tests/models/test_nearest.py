import numpy as np
import pytest
import torch

from models.arithmetic import ProcessorArithmetic
from models.gpu_arithmetic import TorchArithmetic
from models.nearest import (
    exact_beam_codes,
    exact_parallel_codes,
    exact_residual_codes,
    nearest_codes,
    repeated_rows,
)


@pytest.fixture(params=["numpy", "torch"])
def fast(request):
    """The float32 arithmetic of the processor, and that of GPUs, run on the processor."""
    if request.param == "numpy":
        return ProcessorArithmetic()
    return TorchArithmetic(torch.device("cpu"))


def search(fast, method, books, latents, *arguments):
    found = getattr(fast.codewords(books), method)(fast.put(latents), *arguments)
    codes, near_tie = map(fast.get, found)
    return codes, ~near_tie


def test_exact_codes_follow_the_residual():
    books = [np.array([[0, 0], [4, 0]], "f4"), np.array([[0, 0], [0, 1], [-1, 0]], "f4")]
    latents = np.array([[3.9, 1.2], [0.1, 0.1], [3.0, 0.0]], "f4")
    assert exact_residual_codes(latents, books).tolist() == [[1, 1], [0, 0], [1, 2]]


def test_exact_ties_take_the_lowest_code():
    books = [np.array([[1, 0], [-1, 0], [1, 0]], "f4")]
    assert exact_residual_codes(np.zeros((1, 2), "f4"), books).tolist() == [[0]]
    assert exact_parallel_codes(np.zeros((1, 2), "f4"), books * 2).tolist() == [[0, 0]]


def test_float32_search_flags_what_it_cannot_decide_and_agrees_on_the_rest(fast):
    random = np.random.default_rng(0)
    books = [random.normal(size=(64, 8)).astype("f4") for _ in range(3)]
    books[0][:2] = [[2] * 8, [-2] * 8]
    latents = random.normal(size=(2000, 8)).astype("f4")
    books[0][2], books[0][3] = latents[0] + 1e-3, latents[0] - 1e-3
    codes, decided = search(fast, "residual_codes", books, latents)
    assert not decided[0]
    assert 0.9 < decided.mean() < 1
    exact = exact_residual_codes(latents, books)
    assert np.array_equal(codes[decided], exact[decided])


@pytest.mark.parametrize("beam", [2, 3, 40])
def test_beams_agree_with_the_exact_ones(fast, beam):
    random = np.random.default_rng(3)
    books = [random.normal(size=(32, 8)).astype("f4") for _ in range(3)]
    books[1][7] = books[1][3]
    latents = random.normal(size=(200, 8)).astype("f4")
    codes, decided = search(fast, "beam_codes", books, latents, beam)
    assert decided.mean() > 0.9
    exact = exact_beam_codes(latents, books, beam)
    assert np.array_equal(codes[decided], exact[decided])
    greedy = search(fast, "residual_codes", books, latents)[0]
    assert (codes != greedy).any()


def test_sums_of_codewords_are_added(fast):
    random = np.random.default_rng(4)
    books = [random.normal(size=(5, 3)).astype("f4") for _ in range(3)]
    codes = random.integers(0, 5, (20, 3))
    found = fast.get(fast.codewords(books).sums(fast.put(codes)))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, sum(b[codes[:, n]] for n, b in enumerate(books)), atol=1e-6)


def test_nothing_given_is_changed(fast):
    random = np.random.default_rng(5)
    books = [random.normal(size=(5, 3)).astype("f4") for _ in range(2)]
    latents = random.normal(size=(20, 3)).astype("f4")
    before = [array.copy() for array in (latents, *books)]
    for array in (latents, *books):
        array.setflags(write=False)  # as Arrow's memory
    for method, *arguments in (("residual_codes",), ("beam_codes", 2), ("parallel_codes",)):
        search(fast, method, books, latents, *arguments)
    fast.codewords(books).sums(fast.put(np.zeros((4, 2), np.int32)))
    for array, copy in zip((latents, *books), before, strict=True):
        assert np.array_equal(array, copy)


def test_parallel_codes_agree_with_the_exact_ones(fast):
    random = np.random.default_rng(1)
    books = [random.normal(size=(32, 8)).astype("f4") for _ in range(2)]
    latents = random.normal(size=(500, 8)).astype("f4")
    codes, decided = search(fast, "parallel_codes", books, latents)
    assert np.array_equal(codes[decided], exact_parallel_codes(latents, books)[decided])


def test_repeated_codewords_are_never_chosen_and_cause_no_ties(fast):
    book = np.array([[1, 1], [2, 2], [1, 1]], "f4")
    assert repeated_rows(book).tolist() == [False, False, True]
    codes, decided = search(fast, "residual_codes", [book], np.ones((4, 2), "f4"))
    assert codes.flatten().tolist() == [0, 0, 0, 0]
    assert decided.all()
    assert nearest_codes(np.full((3, 2), 1.9, "f4"), book).tolist() == [1, 1, 1]


def test_exact_codes_are_those_of_sums_in_index_order():
    random = np.random.default_rng(2)
    book = random.normal(size=(64, 24)).astype("f4")
    book[9] = book[3]
    pairs = random.integers(0, 64, (300, 2))
    # Rows midway between two codewords, up to float32 rounding, and rows on a codeword.
    middle = ((book[pairs[:, 0]].astype("f8") + book[pairs[:, 1]]) / 2).astype("f4")
    rows = np.concatenate([middle, book, random.normal(size=(200, 24)).astype("f4")])
    distances = np.zeros((len(rows), 64))
    for column in range(24):
        distances += (rows[:, column, None].astype("f8") - book[:, column].astype("f8")) ** 2
    expected = distances.argmin(axis=1)
    assert exact_residual_codes(rows, [book])[:, 0].tolist() == expected.tolist()
    alone = [exact_parallel_codes(row[None], [book])[0, 0] for row in rows]
    assert alone == expected.tolist()
