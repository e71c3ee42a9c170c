import numpy as np

from models.rounded_latents import RoundedLatents

GRID = 2.0**-20


def test_what_float32_leaves_open_is_rounded_from_the_exact_latents():
    random = np.random.default_rng(0)
    exact = np.rint(random.normal(size=(5000, 8)) / GRID) * GRID
    exact[0, 3] = 0.5 * 8192 * GRID  # between two points
    near = (exact + random.uniform(-2, 2, exact.shape) * GRID).astype("f4")
    rounded = RoundedLatents((5000, 8), GRID)
    for start in range(0, 5000, 512):
        rounded.settle(start, near[start : start + 512])
    asked = list(rounded.unsettled(10))
    assert max(map(len, asked)) == 10
    assert 0 in asked[0]
    assert 20 < sum(map(len, asked)) < 300
    for chosen in asked:
        rounded.set(chosen, exact[chosen].astype("f4"))
    whole = RoundedLatents((5000, 8), GRID)
    whole.set(np.arange(5000), exact.astype("f4"))
    assert rounded.values.tobytes() == whole.values.tobytes()
    assert np.abs(whole.values - exact).max() <= 4096 * GRID
    assert not np.signbit(whole.values[whole.values == 0]).any()
