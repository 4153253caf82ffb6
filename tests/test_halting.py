"""A concert whose stock is broken sells nothing more until it is right; what is booked goes on."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select

from domain.base import ConcertId, NotFound, PaymentStatus
from domain.booking import BookingStatus, Sale, SaleChanged, SalesClosed
from domain.use_cases.booking import close_sale
from domain.use_cases.halting import halt_sales, resume_sales
from domain.use_cases.payment import ActionNeeded, Paid
from infra.codec import decode, decode_event, encode
from infra.db.tables import outbox
from infra.db.unit import Database
from tests.db_world import a_sale, open_sale, run_sql
from tests.fake_processor import ACTION, FakeProcessor
from tests.paying import Shop, running_shop

pytestmark = pytest.mark.anyio

README = Path(__file__).parents[1] / "README.md"
FAULT = "ticket type c0001-t9 of concert c0001: held 3, sold 0; bookings hold 2, own 0"


@pytest.fixture
async def shop(database: Database) -> AsyncIterator[Shop]:
    """A shop whose processor answers as it should."""
    async with running_shop(database, FakeProcessor()) as shop:
        yield shop


async def a_broken_sale(shop: Shop) -> Sale:
    """Three seats are held, by the bookings of two."""
    sale = await shop.open_sale()
    await shop.book(sale, "ada", 2)
    await run_sql(shop.database, "UPDATE sale_stock SET held = held + 1 WHERE concert_id = 'c0001'")
    return await shop.sale(sale.concert_id)


async def told_last(shop: Shop) -> Sale:
    """The sale as the newest event has it."""
    async with shop.database.readers.single() as statements:
        rows = await statements.rows(
            select(outbox).where(outbox.c.kind == "SaleChanged").order_by(outbox.c.id)
        )
    event = decode_event(rows[-1].kind, rows[-1].payload)
    assert isinstance(event, SaleChanged)
    return event.sale


async def test_broken_stock_halts_the_sales(shop: Shop) -> None:
    """Nothing can be booked, everybody is told once, and the counts stay as they are."""
    sale = await a_broken_sale(shop)
    assert await halt_sales(shop.deps, sale.concert_id) == [FAULT]
    halted = await shop.sale(sale.concert_id)
    assert halted.halted_at is not None
    assert (halted.version, halted.stock) == (sale.version + 1, sale.stock)
    assert await told_last(shop) == halted
    with pytest.raises(SalesClosed) as refusal:
        await shop.book(sale)
    assert (refusal.value.code, refusal.value.retryable, refusal.value.retry_after_ms) == (
        "SALES_HALTED",
        True,
        30_000,
    )
    assert await halt_sales(shop.deps, sale.concert_id) == []
    assert await shop.sale(sale.concert_id) == halted


async def test_only_its_own_stock_halts_a_sale(shop: Shop) -> None:
    """Whole ones sell on, also beside a broken one whose id begins with theirs or the other way round."""
    for name in ("c", "c00", "c00012", "c0002"):
        await open_sale(shop.database, a_sale(name))
    await a_broken_sale(shop)
    for name in ("c", "c00", "c00012", "c0002", "none"):
        assert await halt_sales(shop.deps, ConcertId(name)) == []
    async with shop.database.write() as unit:
        assert await unit.sales.halted() == {}
    assert await halt_sales(shop.deps, ConcertId("c0001")) == [FAULT]


async def test_cancelled_concert_is_not_halted(shop: Shop) -> None:
    """It sells nothing anyway, and people hear that it was cancelled."""
    sale = await a_broken_sale(shop)
    async with shop.database.write() as unit:
        locked = await unit.sales.lock(sale.concert_id)
        assert locked is not None
        await close_sale(unit, locked)
        await unit.commit()
    assert await halt_sales(shop.deps, sale.concert_id) == []
    with pytest.raises(SalesClosed, match="was cancelled"):
        await shop.book(sale)


async def test_halted_concert_can_be_cancelled(shop: Shop) -> None:
    """Then that is what people hear."""
    sale = await a_broken_sale(shop)
    await halt_sales(shop.deps, sale.concert_id)
    async with shop.database.write() as unit:
        locked = await unit.sales.lock(sale.concert_id)
        assert locked is not None
        await close_sale(unit, locked)
        await unit.commit()
    with pytest.raises(SalesClosed, match="was cancelled"):
        await shop.book(sale)


async def test_what_is_booked_goes_on(shop: Shop) -> None:
    """It is paid, cancelled, refunded and expired as ever, seat by seat, and the mistake stays what it was."""
    sale = await shop.open_sale()
    paid, cancelled, refunded, left = [await shop.book(sale) for _ in range(4)]
    await shop.pay(refunded)
    await run_sql(shop.database, "UPDATE sale_stock SET held = held + 1")
    assert len(await halt_sales(shop.deps, sale.concert_id)) == 1
    assert isinstance(await shop.pay(paid), Paid)
    await shop.cancel(cancelled)
    await shop.cancel(refunded)
    await shop.settle_everything()
    assert await shop.expire(left.id) == 1
    states = [(await shop.booking(booking.id)).status for booking in (paid, cancelled, refunded, left)]
    assert states == [BookingStatus.APPROVED, *(BookingStatus.CANCELLED,) * 2, BookingStatus.EXPIRED]
    assert await shop.seats(sale.concert_id) == (8, 1, 1)


async def test_late_money_takes_no_seat_of_a_halted_concert(shop: Shop) -> None:
    """Whether the seats are free is not known: the money goes back, once."""
    sale = await shop.open_sale()
    booking = await shop.book(sale)
    assert isinstance(await shop.pay(booking, ACTION), ActionNeeded)
    await shop.expire(booking.id)
    await run_sql(shop.database, "UPDATE sale_stock SET held = held + 1")
    await halt_sales(shop.deps, sale.concert_id)
    (entry,) = shop.processor.of_booking(booking.id)
    shop.processor.authenticate(entry.intent.id, succeeds=True)
    assert await shop.hear("evt_1", entry.intent.id)
    await shop.settle_everything()
    (payment,) = await shop.payments(booking.id)
    assert (await shop.booking(booking.id)).status is BookingStatus.EXPIRED
    assert payment.status is PaymentStatus.REFUNDED and entry.refunds == 1
    assert await shop.seats(sale.concert_id) == (9, 1, 0)


async def test_sales_resume_once_the_stock_is_right(shop: Shop) -> None:
    """Not before; then they sell, and everybody hears the counts that were put right."""
    sale = await a_broken_sale(shop)
    await halt_sales(shop.deps, sale.concert_id)
    assert await resume_sales(shop.deps, sale.concert_id) == [FAULT]
    with pytest.raises(SalesClosed):
        await shop.book(sale)
    await run_sql(shop.database, "UPDATE sale_stock SET held = held - 1")
    assert await resume_sales(shop.deps, sale.concert_id) == []
    now = await shop.sale(sale.concert_id)
    assert (now.halted_at, now.version) == (None, sale.version + 2)
    assert await told_last(shop) == now
    assert await resume_sales(shop.deps, sale.concert_id) == []
    assert await shop.sale(sale.concert_id) == now
    await shop.book(sale)
    assert await shop.broken() == []
    with pytest.raises(NotFound):
        await resume_sales(shop.deps, ConcertId("none"))


async def test_halted_sales_are_listed(shop: Shop) -> None:
    """With the moment that they were halted at."""
    sale = await a_broken_sale(shop)
    await shop.open_sale()
    await halt_sales(shop.deps, sale.concert_id)
    halted_at = (await shop.sale(sale.concert_id)).halted_at
    async with shop.database.write() as unit:
        assert await unit.sales.halted() == {sale.concert_id: halted_at}


def test_sale_that_was_encoded_before_there_were_halts_sells() -> None:
    """A document or an event of the release before can still be read."""
    assert b'"halted_at":null' in (encoded := encode(a_sale()))
    assert decode(Sale, encoded.replace(b',"halted_at":null', b"")).halted_at is None


async def test_the_readmes_way_puts_the_counters_right(shop: Shop) -> None:
    """Whatever they say, afterwards they are the sums; the concert can sell again."""
    sale = await shop.open_sale()
    await shop.book(sale, "ada", 2)
    await shop.pay(await shop.book(sale, "bob"))
    await run_sql(shop.database, "UPDATE sale_stock SET held = 7, sold = 0")
    assert len(await halt_sales(shop.deps, sale.concert_id)) == 1
    steps = README.read_text().split("<!-- repair -->")[1].split("<!-- end of repair -->")[0]
    for step in steps.replace("CONCERT_ID", sale.concert_id).split(";"):
        if "UPDATE sale_stock" in step:
            await run_sql(shop.database, step)
    assert await resume_sales(shop.deps, sale.concert_id) == []
    assert await shop.seats(sale.concert_id) == (7, 2, 1)
