"""`frontrow verify` finds every broken promise, and nothing else."""

from dataclasses import replace
from datetime import timedelta

import pytest

from domain.base import PaymentStatus
from domain.booking import BookingStatus, Quantity, Sale
from infra.db.invariants import PROMISES, broken
from infra.db.unit import Database
from tests.db_world import NOW, a_booking, a_payment, a_sale, hold, open_sale, run_sql

pytestmark = pytest.mark.anyio


async def a_whole_story(database: Database) -> Sale:
    """Bookings of every state with the payments and the stock that they must have; Ada has 3 of at most 3."""
    sale = await open_sale(database, a_sale(capacities=(10, 5), max_tickets_per_user=3))
    async with database.write() as unit:
        moved = await hold(unit, sale, a_booking(sale, "held"))
        moved = await hold(unit, moved, paid := a_booking(sale, "paid", tickets=2))
        moved = await hold(unit, moved, gone := a_booking(sale, "gone", tickets=3, user="eve"))
        approved = replace(paid, status=BookingStatus.APPROVED, version=2)
        expired = replace(gone, status=BookingStatus.EXPIRED, version=2)
        await unit.bookings.save(paid, approved)
        await unit.bookings.save(gone, expired)
        await unit.payments.add(a_payment(paid, "p1", status=PaymentStatus.DECLINED))
        await unit.payments.add(a_payment(paid, "p2", status=PaymentStatus.CAPTURED))
        await unit.payments.add(a_payment(gone, "p3", status=PaymentStatus.REFUND_PENDING))
        sold = moved.with_sold(_two(sale)).with_hold_released(gone.quantities)
        await unit.sales.save(moved, sold)
        await unit.commit()
    return sold


def _two(sale: Sale) -> tuple[Quantity, ...]:
    return (Quantity(sale.stock[0].ticket_type_id, 2),)


async def test_whole_database_breaks_no_promise(database: Database) -> None:
    """Nothing to say about an empty one and about one with bookings of every state; each check is announced."""
    assert [line async for line in broken(database)] == []
    await a_whole_story(database)
    told: list[str] = []
    assert [line async for line in broken(database, progress=told.append)] == []
    assert told == [f"Checking: {promise.title}" for promise in PROMISES]


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (
            "UPDATE sale_stock SET held = 2 WHERE ticket_type_id = 'c-t9'",
            "ticket type c-t9: held 2, sold 2; bookings hold 1, own 2",
        ),
        (
            "UPDATE sale_stock SET sold = 1 WHERE ticket_type_id = 'c-t8'",
            "ticket type c-t8: held 0, sold 1; bookings hold 0, own 0",
        ),
        (
            "UPDATE payments SET status = 'REFUND_PENDING' WHERE id = 'p2'",
            "booking paid is APPROVED, to pay 7000 EUR; captured payments 0, paid 0 ",
        ),
        (
            "UPDATE payments SET status = 'CAPTURED' WHERE id = 'p3'",
            "booking gone is EXPIRED, to pay 10500 EUR; captured payments 1, paid 10500 EUR",
        ),
        (
            "UPDATE payments SET amount_minor = 6999 WHERE id = 'p2'",
            "booking paid is APPROVED, to pay 7000 EUR; captured payments 1, paid 6999 EUR",
        ),
        (
            "UPDATE payments SET currency = 'USD' WHERE id = 'p2'",
            "booking paid is APPROVED, to pay 7000 EUR; captured payments 1, paid 7000 USD",
        ),
        (
            "UPDATE bookings SET max_tickets_per_user = 2",
            "user ada has 3 tickets of concert c, allowed were 2",
        ),
    ],
)
async def test_broken_promise_is_told(database: Database, harm: str, found: str) -> None:
    """Exactly the one that the harm breaks, with the numbers."""
    await a_whole_story(database)
    await run_sql(database, harm)
    lines = [line.partition(": ")[2] async for line in broken(database)]
    assert lines == [found]


async def test_seat_on_sale_for_a_cancelled_concert_is_told(database: Database) -> None:
    """Every ticket type of it that has one."""
    await a_whole_story(database)
    await run_sql(database, "UPDATE sales SET is_cancelled = TRUE")
    assert [line.partition(": ")[2] async for line in broken(database)] == [
        "ticket type c-t8: capacity 5, held 0, sold 0",
        "ticket type c-t9: capacity 10, held 1, sold 2",
    ]


async def test_payment_without_a_booking_is_told(database: Database) -> None:
    """Money that belongs to no booking at all, and items of no ticket type."""
    await a_whole_story(database)
    await run_sql(database, "UPDATE payments SET status = 'CAPTURED', booking_id = 'lost' WHERE id = 'p3'")
    await run_sql(database, "UPDATE booking_items SET ticket_type_id = 'lost' WHERE booking_id = 'held'")
    assert [line.partition(": ")[2] async for line in broken(database)] == [
        "ticket type c-t9: held 1, sold 2; bookings hold 0, own 2",
        "ticket type lost: no stock; bookings hold 1, own 0",
        "booking lost is absent, and captured payments 1",
    ]


async def test_limit_that_was_lowered_later_breaks_nothing(database: Database) -> None:
    """Only the limit in force at the last booking counts, not the one before or after it."""
    sale = await a_whole_story(database)
    await run_sql(database, "UPDATE sales SET max_tickets_per_user = 4")
    async with database.write() as unit:
        later = a_booking(sale, "later", created_at=NOW + timedelta(seconds=1))
        await hold(unit, sale, later)
        await unit.commit()
    await run_sql(database, "UPDATE sales SET max_tickets_per_user = 1")
    assert [line async for line in broken(database)] == []
    await run_sql(database, "UPDATE bookings SET max_tickets_per_user = 3 WHERE id = 'later'")
    assert [line.partition(": ")[2] async for line in broken(database)] == [
        "user ada has 4 tickets of concert c, allowed were 3"
    ]
