import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.rejects import RejectReason, SourceCounts

counts = st.builds(SourceCounts, *[st.integers(0, 1 << 40)] * 4)


@pytest.mark.parametrize("reason", RejectReason)
def test_every_reason_is_explained_and_reads_as_its_value(reason):
    assert reason.explanation
    assert str(reason) == reason.value == RejectReason(reason.value)


@given(counts, counts, counts)
def test_counts_add_up_in_any_order(a, b, c):
    assert (a + b) + c == a + (b + c)
    assert a + b == b + a
    assert (a + b).read == a.read + b.read
    assert (a + b).duplicate == a.duplicate + b.duplicate
    assert SourceCounts.from_json(a.to_json()) == a


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99), st.integers(-2, 2))
def test_counts_balance_when_no_row_is_lost(live, rejected, duplicate, lost):
    read = live + rejected + duplicate + lost
    assert SourceCounts(read, live, rejected, duplicate).balanced == (lost == 0)
