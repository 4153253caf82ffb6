"""Settlements that share a commit: the same verdicts, rows and order as one after the other."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from random import Random

import pytest
from sqlalchemy import func, select

from domain.base import BookingId, ConcertId, DomainError, PaymentStatus
from domain.booking import Booking, BookingStatus, Quantity, Sale
from domain.payment import Intent
from domain.ports import WriteUnit
from domain.use_cases.booking import BookConcert, book_concert
from domain.use_cases.settlement import Settled, settle
from infra.db.tables import booking_events, payment_intents, webhook_events
from infra.db.unit import Database
from infra.failpoints import Failpoints
from tests.db_world import a_sale, open_sale, recorded, run_sql
from tests.fake_processor import ACTION, FakeProcessor, lost
from tests.paying import Shop, customer, running_shop
from tests.together import Ask, all_at_once, heard

pytestmark = pytest.mark.anyio

B, P = BookingStatus, PaymentStatus
PEOPLE = ("ada", "bob", "cleo")
# How a booking came to what is to be settled of it.
WAYS = (
    "in time", "in time", "late", "late", "cancelled", "declined", "action", "voided",
    "disputed", "disputed at once", "disputed late", "refunded when cancelled",
)  # fmt: skip


# ---------------------------------------------------------------- what there is to settle
async def charged(shop: Shop, sale: Sale, who: str = "ada") -> Booking:
    """Paid in time, which nobody here has heard of yet."""
    booking = await shop.book(sale, who)
    shop.processor.order("confirm", lost(happens=True))
    await shop.pay(booking)
    return booking


async def charged_late(shop: Shop, sale: Sale, who: str = "ada") -> Booking:
    """Paid on the bank's page after the hold had passed."""
    booking = await shop.book(sale, who)
    await shop.pay(booking, ACTION)
    shop.processor.authenticate(intent_of(shop, booking).id, succeeds=True)
    await shop.expire(booking.id)
    return booking


async def disputed(shop: Shop, sale: Sale, who: str = "ada") -> Booking:
    """APPROVED, and then the bank took the money back."""
    booking = await shop.book(sale, who)
    await shop.pay(booking)
    shop.processor.dispute(intent_of(shop, booking).id)
    return booking


async def comes_to(shop: Shop, sale: Sale, who: str, way: str) -> Booking:
    """A booking that came this way."""
    processor = shop.processor
    match way:
        case "late" | "disputed late":
            booking = await charged_late(shop, sale, who)
        case "action" | "declined":
            booking = await shop.book(sale, who)
            if way == "action":
                processor.order("confirm", lost(happens=True))
            await shop.pay(booking, ACTION)
        case "voided":
            booking = await shop.book(sale, who)
            processor.order("confirm", lost(happens=False))
            await shop.pay(booking)
        case "disputed":
            return await disputed(shop, sale, who)
        case _:
            booking = await charged(shop, sale, who)
    if way.startswith("disputed"):
        processor.dispute(intent_of(shop, booking).id)
    if way in {"cancelled", "refunded when cancelled"}:
        await shop.cancel(booking)
    if way == "refunded when cancelled":
        processor.refund_by_hand(intent_of(shop, booking).id)
    if way == "declined":
        processor.authenticate(intent_of(shop, booking).id, succeeds=False)
    if way == "voided":
        await processor.cancel_intent(intent_of(shop, booking).id)
    return booking


def intent_of(shop: Shop, booking: Booking) -> Intent:
    """What the processor says of the booking's only intent."""
    (entry,) = shop.processor.of_booking(booking.id)
    return entry.intent


def settling(shop: Shop, booking: Booking, webhook_id: str | None = None) -> Ask[Settled | None]:
    """The processor's word about the booking is heard."""
    return partial(
        settle,
        booking_id=booking.id,
        intent=intent_of(shop, booking),
        concert_id=booking.concert_id,
        webhook_id=webhook_id,
    )


async def together(shop: Shop, bookings: Sequence[Booking]) -> list[Settled | Exception | None]:
    """The first is settled alone, all others in one commit."""
    return await all_at_once(shop, "settle", [settling(shop, booking) for booking in bookings])


def stands(outcome: Settled | Exception | None) -> tuple[BookingStatus, PaymentStatus]:
    """Booking and payment."""
    assert isinstance(outcome, Settled), outcome
    return outcome.booking.status, outcome.payment.status


# ---------------------------------------------------------------- sharing
@pytest.mark.parametrize(("batch_max", "commits"), [(100, 2), (1, 8)])
async def test_payments_of_one_concert_share_a_commit(
    database: Database, batch_max: int, commits: int
) -> None:
    """Eight who pay at a time lock the sale twice; with one per commit they lock it eight times."""
    async with running_shop(database, FakeProcessor(), booking_batch_max=batch_max) as shop:
        sale = await shop.open_sale()
        bookings = [await charged(shop, sale, f"u{n}") for n in range(8)]
        failpoints = Failpoints()
        deps = failpoints.around(shop.deps)
        asks = [settling(shop, booking) for booking in bookings]
        outcomes = await asyncio.gather(*(ask(deps) for ask in asks))
        assert failpoints.seen["settle.sales.lock"] == failpoints.seen["settle.commit"] == commits
        for booking, outcome in zip(bookings, outcomes, strict=True):
            assert outcome is not None and outcome.booking.id == booking.id
            assert stands(outcome) == (B.APPROVED, P.CAPTURED)
            assert outcome == Settled(await shop.booking(booking.id), (await shop.payments(booking.id))[0])
        assert await shop.seats(sale.concert_id) == (2, 0, 8)
        assert await shop.broken() == []


async def test_other_concerts_wait_for_none_of_them(shop: Shop) -> None:
    """Each concert has commits of its own."""
    bookings = [await charged(shop, await shop.open_sale()) for _ in range(3)]
    failpoints = Failpoints()
    deps = failpoints.around(shop.deps)
    await asyncio.gather(*(settling(shop, booking)(deps) for booking in bookings))
    assert failpoints.seen["settle.begin"] == failpoints.seen["settle.commit"] == 3


async def test_many_cost_as_many_statements_as_two(shop: Shop) -> None:
    """One lock, one write of the stock, one write per table."""
    sale = await shop.open_sale(capacity=100)
    counts = []
    for size in (2, 20):
        bookings = [await charged(shop, sale, f"{size}-{n}") for n in range(size + 1)]
        with recorded(shop.database) as statements:
            await together(shop, bookings)
        counts.append(Counter(" ".join(sql.split()[:3]) for sql, _ in statements))
    assert counts[0] == counts[1]


async def test_what_moves_no_stock_locks_no_sale(shop: Shop) -> None:
    """Declined, voided, waiting for the buyer: a hot concert's row is left alone."""
    sale = await shop.open_sale()
    bookings = [
        await comes_to(shop, sale, f"u{n}", way) for n, way in enumerate(("declined", "voided", "action"))
    ]
    failpoints = Failpoints()
    shop.deps = failpoints.around(shop.deps)
    outcomes = await together(shop, bookings)
    assert [stands(each)[1] for each in outcomes] == [P.DECLINED, P.VOIDED, P.REQUIRES_ACTION]
    assert failpoints.seen["settle.sales.lock"] == 0
    assert await shop.broken() == []


# ---------------------------------------------------------------- each its own
async def test_late_money_and_money_in_time_share_a_commit(shop: Shop) -> None:
    """The last seat goes to who is first, a seat that the same commit frees to who comes next; once refunded."""
    sale = await shop.open_sale(capacity=7, limit=1)
    alone = await charged(shop, sale, "zoe")
    in_time = await charged(shop, sale, "cleo")
    first, second, third = [await charged_late(shop, sale, who) for who in ("ada", "bob", "dan")]
    again = await charged_late(shop, sale, "fay")
    await shop.book(sale, "fay")
    reversed_one = await disputed(shop, sale, "eve")
    await run_sql(shop.database, "UPDATE sale_stock SET capacity = held + sold + 1")
    order = [alone, in_time, again, first, second, reversed_one, third]
    outcomes = await together(shop, order)
    assert [stands(each) for each in outcomes] == [
        (B.APPROVED, P.CAPTURED),
        (B.APPROVED, P.CAPTURED),
        (B.EXPIRED, P.REFUND_PENDING),  # up to the limit already
        (B.APPROVED, P.CAPTURED),
        (B.EXPIRED, P.REFUND_PENDING),
        (B.CANCELLED, P.REFUNDED),
        (B.APPROVED, P.CAPTURED),
    ]
    assert await shop.seats(sale.concert_id) == (0, 1, 4)
    assert (await shop.chores()).count("RefundRequested") == 2
    await shop.settle_everything()
    refunds = [shop.processor.of_booking(each.id)[0].refunds for each in order]
    assert refunds == [0, 0, 1, 0, 1, 0, 0]
    assert await shop.broken() == []


async def test_one_persons_late_money_counts_against_the_limit_within_a_commit(shop: Shop) -> None:
    """Two late bookings of the same person, of which the limit allows one."""
    sale = await shop.open_sale(limit=1)
    alone = await charged(shop, sale, "zoe")
    late = [await charged_late(shop, sale, "ada") for _ in range(2)]
    outcomes = await together(shop, [alone, *late])
    assert [stands(each)[0] for each in outcomes] == [B.APPROVED, B.APPROVED, B.EXPIRED]
    assert await shop.seats(sale.concert_id) == (8, 0, 2)
    assert await shop.broken() == []


async def test_a_booking_that_comes_twice_into_one_commit_is_settled_once(shop: Shop) -> None:
    """The payer's own answer and the webhook, twice: the second finds what the first led to."""
    sale = await shop.open_sale()
    alone, mine, other = [await charged(shop, sale, who) for who in ("zoe", "ada", "bob")]
    failpoints = Failpoints()
    shop.deps = failpoints.around(shop.deps)
    asks = [
        settling(shop, alone),
        settling(shop, mine),
        settling(shop, mine, "evt_1"),
        settling(shop, other),
        settling(shop, mine, "evt_1"),
    ]
    _, first, by_webhook, theirs, heard_before = await all_at_once(shop, "settle", asks)
    assert stands(first) == stands(theirs) == (B.APPROVED, P.CAPTURED)
    assert by_webhook == first and heard_before is None
    # Alone; first and other; the webhook. Of one heard before there is nothing to commit.
    assert failpoints.seen["settle.commit"] == 3
    assert await stored_webhooks(shop) == 1
    assert await shop.seats(sale.concert_id) == (7, 0, 3)
    assert await shop.broken() == []


async def test_a_webhook_heard_before_keeps_nobody_from_being_settled(shop: Shop) -> None:
    """Each webhook is stored with its own effect; the one that was known has none."""
    sale = await shop.open_sale()
    bookings = [await charged(shop, sale, f"u{n}") for n in range(4)]
    async with shop.database.write() as unit:
        await unit.payments.add_webhooks(["evt_2"])
        await unit.commit()
    asks = [settling(shop, booking, f"evt_{n}") for n, booking in enumerate(bookings)]
    outcomes = await all_at_once(shop, "settle", asks)
    assert outcomes[2] is None and (await shop.booking(bookings[2].id)).status is B.PAYMENT_PENDING
    assert [stands(outcomes[n])[0] for n in (0, 1, 3)] == [B.APPROVED] * 3
    assert await stored_webhooks(shop) == 4
    assert await shop.broken() == []


async def test_one_that_cannot_be_settled_fails_no_neighbour(shop: Shop) -> None:
    """The stock of her ticket type is broken; those who have the other type are APPROVED."""
    sale = await open_sale(shop.database, a_sale("two", (10, 10)))
    alone, mine, other = [await charged(shop, sale, who) for who in ("zoe", "ada", "bob")]
    wanted = (Quantity(sale.stock[1].ticket_type_id, 1),)
    hers = await book_concert(shop.deps, customer("cleo"), BookConcert(sale.concert_id, wanted))
    shop.processor.order("confirm", lost(happens=True))
    await shop.pay(hers)
    await run_sql(
        shop.database, f"UPDATE sale_stock SET held = 0 WHERE ticket_type_id = '{wanted[0].ticket_type_id}'"
    )
    outcomes = await together(shop, [alone, mine, hers, other])
    assert isinstance(outcomes[2], AssertionError)
    assert [stands(outcomes[n])[0] for n in (0, 1, 3)] == [B.APPROVED] * 3
    assert (await shop.booking(hers.id)).status is B.PAYMENT_PENDING


async def test_a_repetition_that_fails_settles_nobody_again(shop: Shop) -> None:
    """The first ones are committed by then: only who came twice hears of the failure."""
    sale = await shop.open_sale()
    alone, mine, other = [await charged(shop, sale, who) for who in ("zoe", "ada", "bob")]
    transactions = 0

    @asynccontextmanager
    async def write(name: str, /, *, module: str = "booking") -> AsyncIterator[WriteUnit]:
        nonlocal transactions
        transactions += name == "settle"
        if transactions == 3:
            raise RuntimeError("broken")
        async with shop.database.write(name, module=module) as unit:
            yield unit

    shop.deps = replace(shop.deps, write=write)
    _, first, again, theirs = await together(shop, [alone, mine, mine, other])
    assert stands(first) == stands(theirs) == (B.APPROVED, P.CAPTURED)
    assert isinstance(again, RuntimeError) and transactions == 3


# ---------------------------------------------------------------- as one after the other
async def test_together_is_as_one_after_the_other(shop: Shop) -> None:
    """Verdicts, history, stock, chores, intents and versions are the same; the seed is in the failure's text."""
    seed = Random().randrange(10**6)
    for number in range(4):
        left = []
        for name in (f"a{number}", f"b{number}"):
            rng = Random(f"{seed} {number}")
            sale = await open_sale(shop.database, a_sale(name, (30,), max_tickets_per_user=3))
            bookings = [await charged(shop, sale, f"zoe-{name}")]
            for _ in range(10):
                who, way = rng.choice(PEOPLE), rng.choice(WAYS)
                try:
                    bookings.append(await comes_to(shop, sale, f"{who}-{name}", way))
                except DomainError:  # up to the limit
                    continue
            spare = f"held + sold + {rng.choice((0, 1, 2))} WHERE concert_id = '{name}'"
            await run_sql(shop.database, f"UPDATE sale_stock SET capacity = {spare}")
            chores = await shop.chores()
            if name.startswith("a"):
                outcomes = await together(shop, bookings)
            else:
                outcomes = [await heard(settling(shop, booking)(shop.deps)) for booking in bookings]
            asked = (await shop.chores())[len(chores) :]
            left.append([*map(stands, outcomes), asked, await written(shop, sale.concert_id, bookings)])
        assert left[0] == left[1], f"seed {seed}"
    assert await shop.broken() == []


async def written(shop: Shop, concert_id: ConcertId, bookings: Sequence[Booking]) -> list[object]:
    """What stands in the database of them, without ids and times."""
    numbers = {booking.id: number for number, booking in enumerate(bookings)}
    async with shop.database.writers.transaction() as statements:
        of_concert = booking_events.c.concert_id == concert_id
        history = await statements.rows(select(booking_events).where(of_concert))
        ours = payment_intents.c.booking_id.in_(numbers)
        intents = await statements.rows(select(payment_intents).where(ours))
    found: list[object] = [
        sorted(
            (numbers[BookingId(row.booking_id)], row.version, row.was, row.status, row.stock_version)
            for row in history
        ),
        sorted((numbers[BookingId(row.booking_id)], row.is_closed) for row in intents),
        await shop.seats(concert_id),
        (await shop.sale(concert_id)).version,
        [await shop.database.reads.my_page_version(booking.user_id) for booking in bookings],
    ]
    for booking_id, attempts in (await shop.payments_of(list(numbers))).items():
        now = await shop.booking(booking_id)
        found.append((now.status, now.payment_status, now.is_final, now.version, now.decline_code))
        found.append([(each.status, each.captured_at is None, each.refunded_at is None) for each in attempts])
    return found


async def stored_webhooks(shop: Shop) -> int:
    """How many events are stored."""
    async with shop.database.writers.transaction() as statements:
        (row,) = await statements.rows(select(func.count()).select_from(webhook_events))
    return int(row[0])
