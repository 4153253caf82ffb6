"""The stock of a sale: every movement keeps capacity = available + held + sold."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.base import ConcertId, Money, TicketTypeId
from domain.booking import Quantity, Sale, SalesClosed, SoldOut, StockLine, check_seats, check_window

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
PRICE = Money(3_500, "EUR")


def a_sale(*capacities: int) -> Sale:
    """Open since an hour, one ticket type per capacity, nothing taken."""
    return Sale(
        concert_id=ConcertId("c"),
        title="Night Trains",
        venue="Paradiso",
        starts_at=NOW + timedelta(days=1),
        sales_open_at=NOW - timedelta(hours=1),
        sales_close_at=NOW + timedelta(hours=1),
        max_tickets_per_user=6,
        is_cancelled=False,
        version=1,
        stock=tuple(
            StockLine(TicketTypeId(f"t{n}"), f"Type {n}", PRICE, capacity, held=0, sold=0)
            for n, capacity in enumerate(capacities)
        ),
    )


def quantity(line: int, tickets: int) -> Quantity:
    """So many tickets of the n-th type."""
    return Quantity(TicketTypeId(f"t{line}"), tickets)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["hold", "sell", "drop_hold", "give_back", "late", "close"]), st.integers(1, 3)
    ),
    max_size=30,
)


@given(capacity=st.integers(1, 8), steps=STEPS)
def test_no_sequence_of_movements_breaks_the_sum(capacity: int, steps: list[tuple[str, int]]) -> None:
    """Whatever is legal keeps the sum, raises the version by one and leaves a cancelled sale with nothing free."""
    sale = a_sale(capacity)
    for step, n in steps:
        line, wanted = sale.stock[0], (quantity(0, n),)
        before = sale
        if step == "hold" and line.available >= n:
            sale = sale.with_held(wanted)
        elif step == "late" and line.available >= n:
            sale = sale.with_sold_again(wanted)
        elif step == "sell" and line.held >= n:
            sale = sale.with_sold(wanted)
        elif step == "drop_hold" and line.held >= n:
            sale = sale.with_hold_released(wanted)
        elif step == "give_back" and line.sold >= n:
            sale = sale.with_sold_released(wanted)
        elif step == "close" and not sale.is_cancelled:
            sale = sale.closed()
        if sale is before:
            continue
        moved = sale.stock[0]
        assert sale.version == before.version + 1
        assert min(moved.available, moved.held, moved.sold) >= 0
        assert moved.available + moved.held + moved.sold == moved.capacity
        assert not sale.is_cancelled or moved.available == 0


def test_more_than_is_free_is_never_taken() -> None:
    """The stock defends itself even where a caller forgot to ask."""
    with pytest.raises(AssertionError):
        a_sale(2).with_held((quantity(0, 3),))


def test_sold_out_names_the_first_short_line_in_input_order() -> None:
    """And how many are left of it."""
    sale = a_sale(5, 1, 0)
    with pytest.raises(SoldOut) as refusal:
        check_seats(sale, (quantity(0, 5), quantity(1, 2), quantity(2, 1)))
    assert (refusal.value.ticket_type_id, refusal.value.available) == ("t1", 1)


@pytest.mark.parametrize(
    ("at", "code"),
    [
        (timedelta(hours=-1, microseconds=-1), "SALES_NOT_OPEN"),
        (timedelta(hours=-1), None),
        (timedelta(hours=1, microseconds=-1), None),
        (timedelta(hours=1), "SALES_CLOSED"),
    ],
)
def test_the_window_is_open_from_its_first_moment_to_before_its_last(at: timedelta, code: str | None) -> None:
    """Only a window that is still to open is worth asking again, with the time until then."""
    if code is None:
        check_window(a_sale(1), NOW + at)
        return
    with pytest.raises(SalesClosed) as refusal:
        check_window(a_sale(1), NOW + at)
    assert refusal.value.code == code
    assert refusal.value.retryable is (code == "SALES_NOT_OPEN")
    assert (refusal.value.retry_after_ms is not None) is refusal.value.retryable


def test_a_cancelled_concert_is_told_before_its_window() -> None:
    """Cancelled comes first, whatever the time."""
    with pytest.raises(SalesClosed) as refusal:
        check_window(replace(a_sale(1), is_cancelled=True), NOW - timedelta(days=9))
    assert refusal.value.code == "CONCERT_CANCELLED"


@pytest.mark.parametrize(
    ("at", "code", "retry_after_ms"),
    [
        (timedelta(hours=-2), "SALES_NOT_OPEN", 3_600_001),
        (timedelta(0), "SALES_HALTED", 30_000),
        (timedelta(hours=1), "SALES_CLOSED", None),
    ],
)
def test_halted_sales_are_told_within_the_window(
    at: timedelta, code: str, retry_after_ms: int | None
) -> None:
    """Outside of it nothing would be sold anyway, and that is the better answer."""
    with pytest.raises(SalesClosed) as refusal:
        check_window(replace(a_sale(1), halted_at=NOW), NOW + at)
    assert (refusal.value.code, refusal.value.retry_after_ms) == (code, retry_after_ms)
    assert refusal.value.retryable is (retry_after_ms is not None)
