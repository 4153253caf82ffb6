"""The stores in one transaction, on SQLite and on PostgreSQL: what they keep, and what they refuse to break."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from domain.base import ConcertId, PaymentId, PaymentStatus, UserId
from domain.booking import BookingStatus, Quantity, SaleChanged
from domain.concert import ConcertStatus
from domain.events import Event
from domain.user import EmailTaken
from infra.db.tables import booking_events, bookings
from infra.db.unit import Database
from tests.db_world import (
    NOW,
    a_booking,
    a_concert,
    a_sale,
    a_session,
    a_user,
    hold,
    is_postgres,
    open_sale,
    put_booking,
    recorded,
    run_sql,
    types_of,
)

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------- the unit
async def test_unit_that_is_not_committed_leaves_nothing(database_url: str) -> None:
    """A unit without a commit, and one that fails, are rolled back and tell nobody."""
    heard: list[object] = []
    database = Database(database_url, on_commit=heard.append)
    sale = a_sale()
    async with database.write() as unit:
        await unit.sales.add(sale)
        await unit.outbox.add(SaleChanged(sale))
    with pytest.raises(ZeroDivisionError):
        async with database.write() as unit:
            await unit.sales.add(sale)
            raise ZeroDivisionError
    assert await database.reads.sales([sale.concert_id]) == {}
    assert (await database.outbox.lag())[0] == 0
    assert heard == []
    await database.close()


async def test_commit_tells_its_events_at_once(database_url: str) -> None:
    """`on_commit` hears the unit's events, in order, once they are durable."""
    heard: list[list[Event]] = []
    database = Database(database_url, on_commit=lambda events: heard.append(list(events)))
    sale = a_sale()
    async with database.write() as unit:
        await unit.sales.add(sale)
        await unit.outbox.add(SaleChanged(sale))
        assert heard == []
        await unit.commit()
    assert heard == [[SaleChanged(sale)]]
    assert await database.reads.sales([sale.concert_id]) == {sale.concert_id: sale}
    await database.close()


async def test_now_goes_on_within_a_transaction(database: Database) -> None:
    """The database's clock is asked each time: it is not the transaction's start."""
    async with database.write() as unit:
        first = await unit.now()
        second = await unit.now()
    assert first.tzinfo is UTC and first < second
    assert abs(first - await database.reads.now()) < timedelta(seconds=5)


async def test_times_come_back_in_utc_to_the_microsecond(database: Database) -> None:
    """Whatever zone a time was given in, the same instant comes back in UTC; a naive one is refused."""
    moment = datetime(2026, 7, 1, 20, 30, 0, 123456, timezone(timedelta(hours=5, minutes=45)))
    sale = await open_sale(database, a_sale(starts_at=moment))
    stored = (await database.reads.sales([sale.concert_id]))[sale.concert_id].starts_at
    assert stored == moment and stored.tzinfo is UTC
    with pytest.raises(Exception, match="naive time"):
        await open_sale(database, a_sale("naive", starts_at=datetime(2026, 7, 1)))  # noqa: DTZ001


# ---------------------------------------------------------------- people
async def test_parallel_sign_ups_with_one_address_make_one_account(database: Database) -> None:
    """Ten at once: one account, nine EmailTaken."""

    async def sign_up(number: int) -> bool:
        async with database.write() as unit:
            try:
                await unit.users.add(a_user(f"u{number}", email="ada@example.org"), password_hash="x")
            except EmailTaken:
                return False
            await unit.commit()
            return True

    assert sorted(await asyncio.gather(*(sign_up(n) for n in range(10)))) == [False] * 9 + [True]


async def test_session_ends_at_its_time_and_at_log_out(database: Database) -> None:
    """A token is somebody's until it expires or is ended; the next log-in forgets what has expired."""
    ada = a_user()
    past = datetime.now(UTC) - timedelta(seconds=1)
    async with database.write() as unit:
        await unit.users.add(ada, password_hash="secret")
        await unit.users.add_session(a_session(ada, "old", expires_at=past), token_hash=b"old")
        await unit.commit()
    assert await database.reads.viewer(b"old") is None
    async with database.write() as unit:
        assert await unit.users.credentials("ada@example.org") == (ada, "secret")
        assert await unit.users.credentials("eve@example.org") is None
        await unit.users.add_session(a_session(ada, "new"), token_hash=b"new")
        await unit.commit()
    viewer = await database.reads.viewer(b"new")
    assert viewer is not None and viewer.user == ada
    assert await database.reads.live_sessions([viewer.session.id, a_session(ada, "old").id]) == {
        viewer.session.id
    }
    async with database.write() as unit:
        await unit.users.end_session(viewer.session.id)
        await unit.users.end_session(viewer.session.id)
        await unit.commit()
    assert await database.reads.viewer(b"new") is None


# ---------------------------------------------------------------- concerts and sales
async def test_concert_is_saved_with_its_new_capacities(database: Database) -> None:
    """A locked entry is written back whole, its ticket types with other capacities, in the same order."""
    concert = a_concert()
    types = types_of(concert, 10, 20)
    changed = replace(concert, title="Day Trains", status=ConcertStatus.CANCELLED)
    async with database.write() as unit:
        await unit.concerts.add(concert, types)
        await unit.commit()
    async with database.write() as unit:
        assert await unit.concerts.lock(ConcertId("other")) is None
        assert await unit.concerts.lock(concert.id) == concert
        await unit.concerts.save(changed, {types[1].id: 25})
        await unit.commit()
    assert await database.reads.concerts([concert.id]) == {concert.id: changed}
    found = await database.reads.ticket_types_of([concert.id])
    assert found == {concert.id: [types[0], replace(types[1], capacity=25)]}


async def test_sale_is_read_back_as_it_was_written(database: Database) -> None:
    """Locked, read without a lock, and read in a batch, it is the same sale with its lines in order."""
    sale = await open_sale(database, a_sale(capacities=(10, 20, 30)))
    async with database.write() as unit:
        assert await unit.sales.lock(sale.concert_id) == sale
        assert await unit.sales.get(sale.concert_id) == sale
        assert await unit.sales.lock(ConcertId("other")) is None
        assert await unit.sales.get(ConcertId("other")) is None
    other = await open_sale(database, a_sale("c2"))
    found = await database.reads.sales([other.concert_id, sale.concert_id, ConcertId("none")])
    assert found == {sale.concert_id: sale, other.concert_id: other}


async def test_stale_sale_is_not_saved(database: Database) -> None:
    """A save whose old state is not what is stored is a programmer's mistake, and changes nothing."""
    sale = await open_sale(database, a_sale())
    wanted = (Quantity(sale.stock[0].ticket_type_id, 2),)
    held = sale.with_held(wanted)
    async with database.write() as unit:
        await unit.sales.save(sale, held)
        await unit.commit()
    with pytest.raises(AssertionError, match="a row of sales"):
        async with database.write() as unit:
            await unit.sales.save(sale, held)
            await unit.commit()
    with pytest.raises(AssertionError, match="a row of sales"):
        async with database.write() as unit:
            await unit.sales.save(sale, replace(sale, title="Other", version=2))
            await unit.commit()
    meddled = replace(held, stock=(replace(held.stock[0], held=1),))
    with pytest.raises(AssertionError, match="a row of sale_stock"):
        async with database.write() as unit:
            await unit.sales.save(meddled, meddled.with_held(wanted))
            await unit.commit()
    assert await database.reads.sales([sale.concert_id]) == {sale.concert_id: held}


@pytest.mark.parametrize(
    "change",
    ["held = -1", "sold = -1", "held = 7, sold = 4", "sold = 11", "capacity = -1"],
)
async def test_no_statement_breaks_the_stock(database: Database, change: str) -> None:
    """Even a mistaken UPDATE can't make a count negative or oversell: the table refuses it."""
    sale = await open_sale(database, a_sale(capacities=(10,)))
    with pytest.raises(IntegrityError):
        await run_sql(database, f"UPDATE sale_stock SET {change}")
    assert await database.reads.sales([sale.concert_id]) == {sale.concert_id: sale}


async def test_last_seat_goes_to_one_buyer(database: Database) -> None:
    """Fifty lock the sale at once; each sees what was committed while it waited."""
    sale = await open_sale(database, a_sale(capacities=(1,)))

    async def book(number: int) -> bool:
        async with database.write() as unit:
            locked = await unit.sales.lock(sale.concert_id)
            assert locked is not None
            if locked.stock[0].available == 0:
                return False
            await hold(unit, locked, a_booking(locked, f"b{number}", user=f"u{number}"))
            await unit.commit()
            return True

    assert sum(await asyncio.gather(*(book(n) for n in range(50)))) == 1
    left = (await database.reads.sales([sale.concert_id]))[sale.concert_id]
    assert (left.version, left.stock[0].held, left.stock[0].available) == (2, 1, 0)


# ---------------------------------------------------------------- bookings
async def test_booking_is_read_back_as_it_was_written(database: Database) -> None:
    """Locked and read, in every column; a save writes what changed and no more."""
    sale = await open_sale(database, a_sale(capacities=(10, 10)))
    first = a_booking(sale)
    both = replace(
        first, items=(*first.items, replace(first.items[0], ticket_type_id=sale.stock[1].ticket_type_id))
    )
    await put_booking(database, both)
    later = NOW + timedelta(minutes=1)
    changed = replace(
        both,
        status=BookingStatus.PAYMENT_PENDING,
        hold_until=later,
        is_extended=True,
        is_graced=True,
        is_final=True,
        retry_pay_at=later,
        payment_id=PaymentId("p"),
        payment_status=PaymentStatus.DECLINED,
        decline_code="no_money",
        version=3,
        updated_at=later,
    )
    async with database.write() as unit:
        assert await unit.bookings.lock([both.id]) == [both]
        await unit.bookings.save([(both, changed)])
        await unit.bookings.add_events([(both, changed, 7)])
        await unit.commit()
    assert await database.reads.bookings([both.id]) == {both.id: changed}
    async with database.readers.single() as statements:
        (history,) = await statements.rows(select(booking_events))
    assert (history.was, history.status, history.stock_version) == (
        "AWAITING_PAYMENT",
        "PAYMENT_PENDING",
        7,
    )


async def test_stale_booking_is_not_saved(database: Database) -> None:
    """Compare-and-set on status and on version: the second of two changes from one state fails."""
    booking = await put_booking(database, a_booking(await open_sale(database, a_sale())))
    expired = replace(booking, status=BookingStatus.EXPIRED, version=2)
    async with database.write() as unit:
        await unit.bookings.save([(booking, expired)])
        await unit.commit()
    for stale in (booking, replace(booking, version=2), replace(expired, version=1)):
        with pytest.raises(AssertionError, match="a row of bookings"):
            async with database.write() as unit:
                await unit.bookings.save([(stale, replace(stale, status=BookingStatus.CANCELLED, version=9))])
                await unit.commit()
    assert await database.reads.bookings([booking.id]) == {booking.id: expired}


async def test_bookings_are_locked_by_id(database: Database) -> None:
    """Whatever order they are asked for in, so that two sweeps never lock each other out."""
    sale = await open_sale(database, a_sale())
    for name in ("b3", "b1", "b2"):
        await put_booking(database, a_booking(sale, name))
    async with database.write() as unit:
        locked = await unit.bookings.lock([a_booking(sale, name).id for name in ("b2", "b9", "b3", "b1")])
    assert [booking.id for booking in locked] == ["b1", "b2", "b3"]


async def test_due_and_live_bookings_are_found(database: Database) -> None:
    """Due: payable and past, longest first. Live: not cancelled or expired. Refunds under way are counted."""
    sale = await open_sale(database, a_sale())
    minutes = {"b1": 3, "b2": 1, "b3": 2, "b4": 0, "b5": 5}
    for name, minute in minutes.items():
        await put_booking(database, a_booking(sale, name, hold_until=NOW + timedelta(minutes=minute)))
    pending = a_booking(sale, "b4", hold_until=NOW)
    cancelled = a_booking(sale, "b5", hold_until=NOW + timedelta(minutes=5))
    async with database.write() as unit:
        await unit.bookings.save([(pending, replace(pending, status=BookingStatus.PAYMENT_PENDING))])
        refund_failed = replace(
            cancelled, status=BookingStatus.CANCELLED, payment_status=PaymentStatus.REFUND_FAILED
        )
        await unit.bookings.save([(cancelled, refund_failed)])
        due = await unit.bookings.due(NOW + timedelta(minutes=2), limit=10)
        assert due == [(sale.concert_id, "b2"), (sale.concert_id, "b3")]
        assert len(await unit.bookings.due(NOW + timedelta(minutes=9), limit=2)) == 2
        assert await unit.bookings.live_of(sale.concert_id, limit=10) == ["b1", "b2", "b3", "b4"]
        assert len(await unit.bookings.live_of(sale.concert_id, limit=3)) == 3
        ada, bob = UserId("ada"), UserId("bob")
        assert await unit.bookings.live_ticket_quantities([ada, bob], sale.concert_id) == {ada: 4}
        assert await unit.sales.unsettled(sale.concert_id) == (4, 1)
        assert await unit.sales.unsettled(ConcertId("other")) == (0, 0)


async def test_many_bookings_are_saved_together(database: Database) -> None:
    """Forty cost as many statements as two; where one is not as it was read, none is saved.

    PostgreSQL is sent the bookings and their history in one.
    """
    sale = await open_sale(database, a_sale())
    old = [await put_booking(database, a_booking(sale, f"b{n:02}")) for n in range(40)]
    new = [replace(each, status=BookingStatus.CANCELLED, version=2) for each in old]
    for changes in ([*zip(old, new, strict=True)][:2], [*zip(old, new, strict=True)][2:]):
        with recorded(database) as seen:
            async with database.write() as unit:
                await unit.bookings.save(changes)
                await unit.bookings.add_events([(was, each, 1) for was, each in changes])
                await unit.commit()
        assert len(seen) == (1 if is_postgres(database) else 2)
    assert await database.reads.bookings([each.id for each in old]) == {each.id: each for each in new}
    newer = [replace(each, version=3) for each in new]
    stale = replace(new[7], version=9)
    with pytest.raises(AssertionError, match="a row of bookings was not as it was read"):
        async with database.write() as unit:
            await unit.bookings.save([*zip(new[:7], newer[:7], strict=True), (stale, newer[7])])
            await unit.commit()
    assert (await database.reads.bookings([old[0].id]))[old[0].id] == new[0]


async def test_each_change_of_a_buyer_has_a_version(database: Database) -> None:
    """Two of one buyer and one of another at once; the next goes on from there."""
    ada, eve = UserId("ada"), UserId("eve")
    async with database.write() as unit:
        assert await unit.bookings.raise_my_page_versions([ada, eve, ada]) == [1, 1, 2]
        assert await unit.bookings.raise_my_page_versions([ada, eve, ada]) == [3, 2, 4]
        await unit.commit()
    assert [await database.reads.my_page_version(user) for user in (ada, eve)] == [4, 2]


async def test_my_page_version_counts_without_gaps(database: Database) -> None:
    """Forty parallel changes of one buyer get the numbers 1 to 40."""

    async def change() -> int:
        async with database.write() as unit:
            (version,) = await unit.bookings.raise_my_page_versions([UserId("ada")])
            await unit.commit()
            return version

    assert sorted(await asyncio.gather(*(change() for _ in range(40)))) == list(range(1, 41))
    assert await database.reads.my_page_version(UserId("ada")) == 40
    assert await database.reads.my_page_version(UserId("eve")) == 0


async def test_late_capture_is_judged_by_the_limit_of_that_day(database: Database) -> None:
    """Seats taken anew note the limit in force then, on all the person's live bookings of the concert."""
    sale = await open_sale(database, a_sale(max_tickets_per_user=2))
    late = await put_booking(database, a_booking(sale, "b1", status=BookingStatus.EXPIRED))
    await put_booking(database, a_booking(sale, "b2"))
    await put_booking(database, a_booking(sale, "b3", user="eve"))
    await run_sql(database, "UPDATE sales SET max_tickets_per_user = 8")
    async with database.write() as unit:
        await unit.bookings.save([(late, replace(late, status=BookingStatus.APPROVED, version=2))])
        await unit.commit()
    async with database.readers.single() as statements:
        rows = await statements.rows(
            select(bookings.c.id, bookings.c.max_tickets_per_user).order_by(bookings.c.id)
        )
    assert [tuple(row) for row in rows] == [("b1", 8), ("b2", 8), ("b3", 2)]
