import numpy as np

from pipelines.usage import counting, own_usage, total_usage


def test_the_peak_counts_memory_that_was_given_back():
    _, before = own_usage()
    held = np.ones(before // 8 + (8 << 20))  # more than ever before, by at least 64 MB
    del held
    assert own_usage()[1] >= before + (60 << 20)


def test_processor_time_counts_work_and_not_waiting():
    before, _ = own_usage()
    total = sum(number * number for number in range(1_000_000))
    assert total > 0
    assert own_usage()[0] > before


def test_what_others_use_counts_while_they_are_counted():
    with counting(lambda: [(1000.0, 1 << 40), (500.0, 1 << 40)]):
        seconds, held = total_usage()
    assert seconds > 1500
    assert held > 2 << 40
    assert total_usage()[1] < 1 << 40
