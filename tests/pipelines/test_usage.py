import numpy as np

from pipelines.usage import cpu_seconds, peak_memory


def test_the_peak_counts_memory_that_was_given_back():
    before = peak_memory()
    held = np.ones(before // 8 + (8 << 20))  # more than ever before, by at least 64 MB
    del held
    assert peak_memory() >= before + (60 << 20)


def test_processor_time_counts_work_and_not_waiting():
    before = cpu_seconds()
    total = sum(number * number for number in range(1_000_000))
    assert total > 0
    assert cpu_seconds() > before
