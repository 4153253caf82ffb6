"""What waits to be written: sent in time, in order, and on PostgreSQL together."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from domain.base import UserId
from domain.booking import Booking, BookingStatus, SaleChanged
from infra.db.tables import buyers
from infra.db.unit import Database
from infra.db.writes import insert, net
from tests.db_world import NOW, a_booking, a_payment, a_sale, is_postgres, open_sale, put_booking, recorded

pytestmark = pytest.mark.anyio

ADA = UserId("ada")


def _steps(booking: Booking) -> Sequence[tuple[Booking, Booking]]:
    """It is approved, and cancelled right after that."""
    approved = replace(booking, status=BookingStatus.APPROVED, version=2)
    return [(booking, approved), (approved, replace(approved, status=BookingStatus.CANCELLED, version=3))]


async def test_what_waits_is_sent_at_once(database: Database) -> None:
    """Five writes of five tables and one that returns something are one statement on PostgreSQL, six on SQLite."""
    sale = await open_sale(database, a_sale())
    booking = a_booking(sale)
    async with database.write() as unit:
        with recorded(database) as seen:
            await unit.bookings.add([booking])
            await unit.sales.save(sale, sale.with_held(booking.quantities))
            await unit.bookings.add_events([(None, booking, 2)])
            assert seen == []
            assert await unit.bookings.raise_my_page_versions([ADA, UserId("bob")]) == [1, 1]
        assert len(seen) == (1 if is_postgres(database) else 6)
        await unit.commit()
    assert await database.reads.bookings([booking.id]) == {booking.id: booking}
    assert await database.reads.sales([sale.concert_id]) == {
        sale.concert_id: sale.with_held(booking.quantities)
    }


async def test_what_waits_is_seen_by_what_is_asked_next(database: Database) -> None:
    """A read in the same transaction finds it; a second write of the same table comes after the first."""
    sale = await open_sale(database, a_sale())
    booking = a_booking(sale)
    (_, approved), (_, cancelled) = _steps(booking)
    async with database.write() as unit:
        await unit.bookings.add([booking])
        assert await unit.bookings.get([booking.id]) == [booking]
        await unit.bookings.save([(booking, approved)])
        await unit.bookings.save([(approved, cancelled)])
        await unit.commit()
    assert await database.reads.bookings([booking.id]) == {booking.id: cancelled}


async def test_rows_of_one_table_are_collected(database: Database) -> None:
    """Events that are told one by one are written together, in their order."""
    sale = a_sale()
    titles = [f"t{n}" for n in range(5)]
    async with database.write() as unit:
        with recorded(database) as seen:
            for title in titles:
                await unit.outbox.add(SaleChanged(replace(sale, title=title)))
            await unit.commit()
        assert len(seen) == 1
    claimed = await database.outbox.claim(worker="w", lease_s=60, limit=9, kinds=[SaleChanged])
    assert [row.event.sale.title for row in claimed if isinstance(row.event, SaleChanged)] == titles


async def test_what_waits_goes_with_its_transaction(database: Database) -> None:
    """Nothing is written without a commit, and nothing of it by the next who has the connection."""
    sale = await open_sale(database, a_sale())
    booking, other = a_booking(sale), a_booking(sale, "b2")
    async with database.write() as unit:
        await unit.bookings.add([booking])
    await put_booking(database, other)
    assert await database.reads.bookings([booking.id, other.id]) == {other.id: other}


async def test_several_changes_of_one_row_are_one(database: Database) -> None:
    """One UPDATE changes a row once: it is written as it is in the end, and both changes stay in its history."""
    sale = await open_sale(database, a_sale())
    booking = await put_booking(database, a_booking(sale))
    bystander = await put_booking(database, a_booking(sale, "b2"))
    steps = _steps(booking)
    moved = (bystander, replace(bystander, version=2, hold_until=NOW + timedelta(hours=1)))
    async with database.write() as unit:
        await unit.bookings.save([steps[0], moved, steps[1]])
        await unit.commit()
    assert await database.reads.bookings([booking.id, bystander.id]) == {
        booking.id: steps[1][1],
        bystander.id: moved[1],
    }


async def test_one_stale_row_undoes_all_that_was_sent_with_it(database: Database) -> None:
    """Also what went to other tables in the same statement."""
    sale = await open_sale(database, a_sale())
    booking = await put_booking(database, a_booking(sale))
    stale = replace(booking, version=7)
    with pytest.raises(AssertionError, match="a row of bookings was not as it was read"):
        async with database.write() as unit:
            await unit.payments.add(a_payment(booking))
            await unit.bookings.save([(stale, replace(stale, version=8))])
            await unit.commit()
    assert await database.reads.payments([a_payment(booking).id]) == {}


def test_changes_that_do_not_meet_are_a_mistake() -> None:
    """The second one begins where the first one ended."""
    first, second = _steps(a_booking(a_sale()))
    assert net([first, second]) == [(first[0], second[1])]
    with pytest.raises(AssertionError, match="begins where the last one ended"):
        net([first, (first[0], second[1])])


async def test_a_value_that_is_no_column_is_a_mistake(database: Database) -> None:
    """Rather than one that is never written."""
    keys = insert(buyers, "user_id", "my_page_version")
    async with database.writers.transaction() as statements:
        for row in ({"user_id": "ada"}, {"user_id": "ada", "my_page_version": 1, "name": "Ada"}):
            with pytest.raises(AssertionError, match="has a value"):
                await statements.later(keys, [row])


async def test_a_sale_is_locked_at_a_time(database: Database) -> None:
    """Once it is locked, the clock is not asked any more: all of its transaction happens at that moment."""
    sale = await open_sale(database, a_sale())
    async with database.write() as unit:
        before = await unit.now()
        await unit.sales.lock(sale.concert_id)
        with recorded(database) as seen:
            locked_at = await unit.now()
            assert locked_at >= before
            if is_postgres(database):
                assert (await unit.now(), seen) == (locked_at, [])
