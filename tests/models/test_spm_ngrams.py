import numpy as np
import pytest

from models.spm_ngrams import MAX_CHARACTERS, SpmFeature, SpmNgrams, fit_spm

SIZES = (4, 5, 6)


def catalog(seed=0, rows=400):
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, size, rows) for size in SIZES], axis=1)
    codes[: rows // 2, :2] = (1, 3)
    return codes


def test_pieces_spell_the_codes_and_never_meet_across_levels():
    codes = catalog()
    pieces = SpmNgrams(fit_spm(codes, SIZES, SpmFeature(40)), SIZES)
    assert pieces.vocabulary_size <= 40
    every = np.stack(np.meshgrid(*map(np.arange, SIZES)), -1).reshape(-1, 3)
    ragged = pieces.ids(every)
    for row, code in enumerate(every):
        ids = ragged.values[ragged.offsets[row] : ragged.offsets[row + 1]]
        spelled, level = [], 0
        for piece_id in ids:
            start, part = pieces.piece(int(piece_id))
            assert start == level
            spelled += part
            level += len(part)
        assert spelled == code.tolist()


def test_the_popular_prefix_becomes_one_piece():
    rng = np.random.default_rng(3)
    codes = np.stack([rng.integers(0, size, 300) for size in SIZES], axis=1)
    weights = np.where((codes[:, 0] == 2) & (codes[:, 1] == 4), 1000.0, 1.0)
    feature = SpmFeature(sum(SIZES) + 4)

    def first_piece(model):
        pieces = SpmNgrams(model, SIZES)
        return pieces.piece(int(pieces.ids(np.array([[2, 4, 0]])).values[0]))

    assert first_piece(fit_spm(codes, SIZES, feature, weights))[1][:2] == (2, 4)
    against = np.where((codes[:, 0] == 2) & (codes[:, 1] == 4), 1.0, 1000.0)
    assert first_piece(fit_spm(codes, SIZES, feature, against)) == (0, (2,))


def test_the_model_does_not_depend_on_the_order_of_items():
    codes, weights = catalog(1), np.random.default_rng(2).random(400) * 9
    order = np.random.default_rng(3).permutation(400)
    model = fit_spm(codes, SIZES, SpmFeature(50), weights)
    assert fit_spm(codes[order], SIZES, SpmFeature(50), weights[order]) == model


def test_rows_keep_their_order():
    codes = catalog(4)
    pieces = SpmNgrams(fit_spm(codes, SIZES, SpmFeature(40)), SIZES)
    whole = pieces.ids(codes)
    assert whole.offsets[-1] == len(whole.values)
    for row in (0, 17, 399):
        alone = pieces.ids(codes[row : row + 1])
        expected = whole.values[whole.offsets[row] : whole.offsets[row + 1]]
        assert alone.values.tolist() == expected.tolist()
    empty = pieces.ids(codes[:0])
    assert len(empty.values) == 0 and empty.offsets.tolist() == [0]


def test_configuration_errors_name_value_and_limit():
    with pytest.raises(ValueError, match="table_size 16 must exceed 16, one piece per code"):
        fit_spm(catalog(), SIZES, SpmFeature(16))
    with pytest.raises(ValueError, match=f"have 262146 codes, it spells at most {MAX_CHARACTERS}"):
        fit_spm(catalog(), (1 << 17, 1 << 17, 2), SpmFeature(1 << 20))
    with pytest.raises(ValueError, match=r"row 2: popularity -1\.0 is not a number of 0 or more"):
        fit_spm(catalog(), SIZES, SpmFeature(40), np.where(np.arange(400) == 2, -1.0, 1.0))
    pieces = SpmNgrams(fit_spm(catalog(), SIZES, SpmFeature(40)), SIZES)
    with pytest.raises(ValueError, match="piece 0 is not in 1"):
        pieces.piece(0)
