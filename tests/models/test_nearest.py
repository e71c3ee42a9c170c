import numpy as np
import torch

from models.nearest import (
    CodewordTensors,
    exact_parallel_codes,
    exact_residual_codes,
    nearest_codes,
    repeated_rows,
)

CPU = torch.device("cpu")


def test_exact_codes_follow_the_residual():
    books = [np.array([[0, 0], [4, 0]], "f4"), np.array([[0, 0], [0, 1], [-1, 0]], "f4")]
    latents = np.array([[3.9, 1.2], [0.1, 0.1], [3.0, 0.0]], "f4")
    assert exact_residual_codes(latents, books).tolist() == [[1, 1], [0, 0], [1, 2]]


def test_exact_ties_take_the_lowest_code():
    books = [np.array([[1, 0], [-1, 0], [1, 0]], "f4")]
    assert exact_residual_codes(np.zeros((1, 2), "f4"), books).tolist() == [[0]]
    assert exact_parallel_codes(np.zeros((1, 2), "f4"), books * 2).tolist() == [[0, 0]]


def test_float32_search_flags_what_it_cannot_decide_and_agrees_on_the_rest():
    random = np.random.default_rng(0)
    books = [random.normal(size=(64, 8)).astype("f4") for _ in range(3)]
    books[0][:2] = [[2] * 8, [-2] * 8]
    latents = random.normal(size=(2000, 8)).astype("f4")
    books[0][2], books[0][3] = latents[0] + 1e-3, latents[0] - 1e-3
    codes, near_tie = CodewordTensors(books, CPU).residual_codes(torch.from_numpy(latents))
    decided = ~near_tie.numpy()
    assert not decided[0]
    assert 0.9 < decided.mean() < 1
    exact = exact_residual_codes(latents, books)
    assert np.array_equal(codes.numpy()[decided], exact[decided])


def test_parallel_codes_agree_with_the_exact_ones():
    random = np.random.default_rng(1)
    books = [random.normal(size=(32, 8)).astype("f4") for _ in range(2)]
    latents = random.normal(size=(500, 8)).astype("f4")
    codes, near_tie = CodewordTensors(books, CPU).parallel_codes(torch.from_numpy(latents))
    decided = ~near_tie.numpy()
    assert np.array_equal(codes.numpy()[decided], exact_parallel_codes(latents, books)[decided])


def test_repeated_codewords_are_never_chosen_and_cause_no_ties():
    book = np.array([[1, 1], [2, 2], [1, 1]], "f4")
    assert repeated_rows(book).tolist() == [False, False, True]
    codes, near_tie = CodewordTensors([book], CPU).residual_codes(torch.ones(4, 2))
    assert codes.flatten().tolist() == [0, 0, 0, 0]
    assert not near_tie.any()
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
