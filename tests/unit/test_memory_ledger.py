"""The ledger's sums are those of its open claims, whatever happened before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelhost.memory import Ledger, LedgerTotals, Reservation
from modelhost.memory.ledger import Column


def test_a_claim_goes_from_loading_to_resident_to_leaving_and_ends() -> None:
    ledger = Ledger()
    claim = ledger.reserve("a", 30)
    assert ledger.totals == LedgerTotals(loading_bytes=30)
    claim.settle(20)
    assert ledger.totals == LedgerTotals(resident_bytes=20)
    claim.leave()
    assert ledger.totals == LedgerTotals(leaving_bytes=20)
    assert (claim.column, claim.size_bytes, claim.is_open, ledger.open_count) == (Column.LEAVING, 20, True, 1)
    claim.end()
    assert ledger.totals == LedgerTotals()
    assert (claim.is_open, ledger.open_count) == (False, 0)


def test_a_claim_ends_once_and_cannot_move_afterwards() -> None:
    ledger = Ledger()
    other, claim = ledger.reserve("b", 5), ledger.reserve("a", 30)
    claim.end()
    claim.end()
    assert ledger.totals == LedgerTotals(loading_bytes=5)
    for move in (claim.leave, lambda: claim.settle(1)):
        with pytest.raises(RuntimeError, match="the reservation of 'a' has ended"):
            move()
    assert ledger.totals == ledger.reconcile() == LedgerTotals(loading_bytes=5)
    other.end()


def test_a_claim_cannot_be_negative_and_settles_at_zero_where_the_measure_is() -> None:
    ledger = Ledger()
    with pytest.raises(ValueError, match="cannot be negative, got -1"):
        ledger.reserve("a", -1)
    assert ledger.open_count == 0
    claim = ledger.reserve("a", 3)
    claim.settle(-7)
    assert (claim.size_bytes, ledger.totals) == (0, LedgerTotals())


def test_a_scope_ends_a_claim_that_was_not_settled_and_keeps_one_that_was() -> None:
    ledger = Ledger()
    with pytest.raises(ZeroDivisionError), ledger.reserve("a", 3):
        raise ZeroDivisionError
    assert ledger.open_count == 0
    with ledger.reserve("b", 3) as claim:
        claim.settle(2)
    assert ledger.totals == LedgerTotals(resident_bytes=2)
    with ledger.reserve("c", 3) as claim:
        claim.end()
    assert ledger.open_count == 1


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["reserve", "settle", "leave", "end"]), st.integers(0, 7), st.integers(0, 1 << 40)),
    max_size=60,
)


@given(OPERATIONS)
def test_totals_equal_the_sums_counted_again_after_any_operations(operations: list[tuple[str, int, int]]) -> None:
    ledger = Ledger()
    claims: list[Reservation] = []
    for name, which, size in operations:
        if name == "reserve":
            claims.append(ledger.reserve("x", size))
        elif claims:
            claim = claims[which % len(claims)]
            if name == "end":
                claim.end()
            elif not claim.is_open:
                with pytest.raises(RuntimeError):
                    claim.leave()
            elif name == "settle":
                claim.settle(size - 1000)
            else:
                claim.leave()
        assert ledger.totals == ledger.reconcile()
        assert ledger.open_count == sum(claim.is_open for claim in claims)
    for claim in claims:
        claim.end()
    assert ledger.totals == LedgerTotals()
