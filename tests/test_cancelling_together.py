"""Cancellations that share a commit: the same outcomes, rows and keys as one after the other."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from random import Random

import pytest
from sqlalchemy import select

from domain.base import BookingId, ConcertId, DomainError, NotFound, PaymentStatus
from domain.booking import Booking, BookingStatus, Quantity, Sale
from domain.use_cases.booking import BookConcert, CancelBooking, book_concert, cancel_booking
from domain.user import UserRole, Viewer
from infra.db.tables import booking_events, idempotency_keys
from infra.db.unit import Database
from infra.failpoints import Action, Failpoints
from tests.db_world import a_sale, open_sale, recorded, run_sql
from tests.fake_processor import DECLINED, FakeProcessor, lost
from tests.paying import Shop, customer, running_shop
from tests.together import Ask, all_at_once, heard

pytestmark = pytest.mark.anyio

B = BookingStatus
PEOPLE = ("ada", "bob", "cleo")
# What is true of a booking before it is asked for.
STATES = ("held", "held", "paid", "paid", "declined", "pending", "cancelled", "expired")


@pytest.fixture
async def shop(database: Database) -> AsyncIterator[Shop]:
    """Booking and paying over a real database."""
    async with running_shop(database, FakeProcessor()) as running:
        yield running


async def comes_to(shop: Shop, sale: Sale, who: str, state: str) -> Booking:
    """A booking in this state."""
    booking = await shop.book(sale, who)
    match state:
        case "paid":
            await shop.pay(booking)
        case "declined":
            await heard(shop.pay(booking, DECLINED))
        case "pending":
            shop.processor.order("confirm", lost(happens=False))
            await shop.pay(booking)
        case "cancelled":
            await shop.cancel(booking)
        case "expired":
            await shop.expire(booking.id)
    return booking


def cancelling(
    booking: Booking, *, key: str | None = None, by: Viewer | None = None, reason: str | None = None
) -> Ask[Booking]:
    """It is to be cancelled, by its owner unless told otherwise."""
    viewer = by or customer(booking.user_id)
    return partial(cancel_booking, viewer=viewer, command=CancelBooking(booking.id, reason, key))


async def together(shop: Shop, asks: Sequence[Ask[Booking]]) -> list[Booking | Exception]:
    """The first is cancelled alone, all others in one commit."""
    return await all_at_once(shop, "cancel", asks)


def told(outcome: Booking | Exception) -> object:
    """What a client is told, without ids."""
    if isinstance(outcome, DomainError):
        return outcome.code
    assert isinstance(outcome, Booking), outcome
    return outcome.status, outcome.payment_status, outcome.is_final, outcome.version


async def stored(shop: Shop) -> list[tuple[str, str, str]]:
    """Whose key led to what: the status of a booking, or a refusal."""
    async with shop.database.writers.transaction() as statements:
        rows = await statements.rows(
            select(idempotency_keys).order_by(idempotency_keys.c.user_id, idempotency_keys.c.key)
        )
    return [(row.user_id, row.key, "booking" if row.reference else str(row.refusal)) for row in rows]


# ---------------------------------------------------------------- sharing
@pytest.mark.parametrize(("batch_max", "commits"), [(100, 2), (1, 8)])
async def test_cancellations_of_one_concert_share_a_commit(
    database: Database, batch_max: int, commits: int
) -> None:
    """Eight who cancel at a time lock the sale twice; with one per commit they lock it eight times."""
    async with running_shop(database, FakeProcessor(), booking_batch_max=batch_max) as shop:
        sale = await shop.open_sale()
        bookings = [await comes_to(shop, sale, f"u{n}", "paid") for n in range(8)]
        failpoints = Failpoints()
        shop.deps = failpoints.around(shop.deps)
        asks = [cancelling(booking) for booking in bookings]
        if batch_max == 1:
            outcomes = list(await asyncio.gather(*(heard(ask(shop.deps)) for ask in asks)))
        else:
            outcomes = await together(shop, asks)
        assert failpoints.seen["cancel.sales.lock"] == failpoints.seen["cancel.commit"] == commits
        for booking, outcome in zip(bookings, outcomes, strict=True):
            assert outcome == await shop.booking(booking.id)
            assert told(outcome) == (B.CANCELLED, PaymentStatus.REFUND_PENDING, False, 4)
        assert await shop.seats(sale.concert_id) == (10, 0, 0)
        assert await shop.chores() == ["RefundRequested"] * 8
        assert await shop.broken() == []


async def test_many_cost_as_many_statements_as_two(shop: Shop) -> None:
    """One lock, one write of the stock, one write per table, keys included."""
    sale = await shop.open_sale(capacity=100)
    counts = []
    for size in (2, 20):
        asks = [
            cancelling(await comes_to(shop, sale, f"{size}-{n}", "paid"), key="k") for n in range(size + 1)
        ]
        with recorded(shop.database) as statements:
            await together(shop, asks)
        counts.append(Counter(" ".join(sql.split()[:3]) for sql, _ in statements))
    # Which concert it is each finds out for itself, before it waits.
    assert [count.pop("SELECT bookings.id, bookings.concert_id") for count in counts] == [3, 21]
    assert counts[0] == counts[1]


# ---------------------------------------------------------------- each its own
async def test_each_hears_its_own_outcome(shop: Shop) -> None:
    """Cancelled, refused for its state, for its reason, or because it is somebody else's; keys keep all of it."""
    sale = await shop.open_sale()
    states = ("held", "held", "paid", "expired", "cancelled", "held", "held", "held")
    alone, held, paid, over, gone, theirs, long, mine = [
        await comes_to(shop, sale, f"u{n}", state) for n, state in enumerate(states)
    ]
    admin = replace(customer("root"), user=replace(customer("root").user, role=UserRole.ADMIN))
    asks = [
        cancelling(alone),
        cancelling(held, key="k"),
        cancelling(paid, key="k"),
        cancelling(over, key="k"),
        cancelling(gone, key="k"),
        cancelling(theirs, by=customer("eve"), key="k"),
        cancelling(long, reason="x" * 501, key="k"),
        cancelling(mine, by=admin, key="k"),
    ]
    outcomes = await together(shop, asks)
    codes = ["HOLD_EXPIRED", "ALREADY_CANCELLED", "NOT_FOUND", "INVALID_INPUT"]
    assert [told(each) for each in outcomes] == [
        (B.CANCELLED, None, True, 2),
        (B.CANCELLED, None, True, 2),
        (B.CANCELLED, PaymentStatus.REFUND_PENDING, False, 4),
        *codes,
        (B.CANCELLED, None, True, 2),
    ]
    assert await shop.seats(sale.concert_id) == (8, 2, 0)
    kept = await stored(shop)
    assert [(who, what == "booking") for who, _, what in kept] == [
        ("eve", False), ("root", True), ("u1", True), ("u2", True), ("u3", False), ("u4", False), ("u6", False),
    ]  # fmt: skip
    for ask, outcome in zip(asks[1:], outcomes[1:], strict=True):
        assert told(await heard(ask(shop.deps))) == told(outcome)
    assert await stored(shop) == kept and await shop.broken() == []


async def test_a_key_that_was_used_before_hears_of_it_among_new_ones(shop: Shop) -> None:
    """Replays answer with the booking as it is now, refusals as they were; beside them others are cancelled."""
    sale = await shop.open_sale()
    alone, paid, over, fresh = [
        await comes_to(shop, sale, f"u{n}", state)
        for n, state in enumerate(("held", "paid", "expired", "held"))
    ]
    await cancelling(paid, key="k")(shop.deps)
    await heard(cancelling(over, key="k")(shop.deps))
    await shop.settle_everything()
    asks = [
        cancelling(alone),
        cancelling(paid, key="k"),
        cancelling(over, key="k"),
        cancelling(fresh, key="k"),
        cancelling(replace(alone, user_id=over.user_id), key="k"),
    ]
    _, again, refused, cancelled, mismatch = await together(shop, asks)
    assert again == await shop.booking(paid.id)
    assert told(again) == (B.CANCELLED, PaymentStatus.REFUNDED, True, 5)
    assert told(refused) == "HOLD_EXPIRED" and told(mismatch) == "IDEMPOTENCY_MISMATCH"
    assert told(cancelled) == (B.CANCELLED, None, True, 2)
    assert await shop.broken() == []


async def test_a_booking_or_a_key_that_comes_twice_is_cancelled_once(shop: Shop) -> None:
    """Under the same key its outcome is repeated; under another the booking is cancelled already."""
    sale = await shop.open_sale()
    alone, mine, other = [await comes_to(shop, sale, who, "held") for who in ("zoe", "ada", "ada")]
    asks = [
        cancelling(alone),
        cancelling(mine, key="k1"),
        cancelling(mine, key="k1"),
        cancelling(mine, key="k2"),
        cancelling(mine),
        cancelling(other, key="k1"),
        cancelling(other, key="k3"),
    ]
    failpoints = Failpoints()
    shop.deps = failpoints.around(shop.deps)
    outcomes = await together(shop, asks)
    # One alone; then those that have no booking and no key in common, in the order they came, until all were asked.
    assert failpoints.seen["cancel.begin"] == 5
    cancelled = (B.CANCELLED, None, True, 2)
    assert [told(each) for each in outcomes] == [
        cancelled,
        cancelled,
        cancelled,
        "ALREADY_CANCELLED",
        "ALREADY_CANCELLED",
        "IDEMPOTENCY_MISMATCH",
        cancelled,
    ]
    assert await shop.seats(sale.concert_id) == (10, 0, 0)
    assert [what == "booking" for _, _, what in await stored(shop)] == [True, False, True]
    assert await shop.broken() == []


async def test_a_booking_that_does_not_exist_is_not_found_under_its_key(shop: Shop) -> None:
    """It has no concert to wait for, and its refusal is kept."""
    nobodys = CancelBooking(BookingId("none"), idempotency_key="k")
    for _ in range(2):
        with pytest.raises(NotFound):
            await cancel_booking(shop.deps, customer("ada"), nobodys)
    ((who, key, refusal),) = await stored(shop)
    assert (who, key) == ("ada", "k") and "NotFound" in refusal


async def test_one_that_cannot_be_cancelled_fails_no_neighbour(shop: Shop) -> None:
    """The stock of her ticket type is broken; those who have the other type are rid of theirs."""
    sale = await open_sale(shop.database, a_sale("two", (10, 10)))
    alone, mine, other = [await comes_to(shop, sale, who, "held") for who in ("zoe", "ada", "bob")]
    wanted = (Quantity(sale.stock[1].ticket_type_id, 1),)
    hers = await book_concert(shop.deps, customer("cleo"), BookConcert(sale.concert_id, wanted))
    await run_sql(
        shop.database, f"UPDATE sale_stock SET held = 0 WHERE ticket_type_id = '{wanted[0].ticket_type_id}'"
    )
    outcomes = await together(shop, [cancelling(each, key="k") for each in (alone, mine, hers, other)])
    assert isinstance(outcomes[2], AssertionError)
    assert [told(outcomes[n]) for n in (0, 1, 3)] == [(B.CANCELLED, None, True, 2)] * 3
    assert (await shop.booking(hers.id)).status is B.AWAITING_PAYMENT
    assert [who for who, _, _ in await stored(shop)] == ["ada", "bob", "zoe"]


async def test_a_key_that_another_process_used_meanwhile_is_heard_of(shop: Shop) -> None:
    """Its transaction commits between our look and our write: ours begins anew, and nothing of ours is cancelled."""
    mine = await shop.book(await shop.open_sale())
    other = await shop.book(await shop.open_sale())
    reached = asyncio.Event()
    failpoints = Failpoints(lambda _: reached.set())
    deps = failpoints.around(shop.deps)
    failpoints.arm("cancel.bookings.save", Action.PAUSE)
    ours = asyncio.create_task(heard(cancelling(mine, key="k")(deps)))
    await reached.wait()
    if shop.database.writers.engine.dialect.name == "sqlite":
        failpoints.resume()  # it has one writer, so nobody can be faster
        assert isinstance(await ours, Booking)
        return
    theirs = await cancelling(other, key="k")(shop.deps)
    failpoints.resume()
    assert theirs.status is B.CANCELLED and told(await ours) == "IDEMPOTENCY_MISMATCH"
    assert (await shop.booking(mine.id)).status is B.AWAITING_PAYMENT
    assert await shop.broken() == []


# ---------------------------------------------------------------- as one after the other
async def test_together_is_as_one_after_the_other(shop: Shop) -> None:
    """Outcomes, history, stock, keys and versions are the same for any requests; the seed is in the failure's text."""
    seed = Random().randrange(10**6)
    for number in range(4):
        left = []
        for name in (f"a{number}", f"b{number}"):
            rng = Random(f"{seed} {number}")
            sale = await open_sale(shop.database, a_sale(name, (40,), max_tickets_per_user=20))
            bookings = [await comes_to(shop, sale, f"zoe-{name}", "held")]
            bookings += [
                await comes_to(shop, sale, f"{rng.choice(PEOPLE)}-{name}", rng.choice(STATES))
                for _ in range(8)
            ]
            asked = [rng.choice(bookings[1:]) for _ in range(14)]
            asks = [
                cancelling(
                    booking,
                    by=customer(rng.choice((booking.user_id, f"{rng.choice(PEOPLE)}-{name}"))),
                    key=rng.choice((None, "k1", "k2", "k3")),
                )
                for booking in asked
            ]
            asks = [cancelling(bookings[0]), *asks]
            chores = await shop.chores()
            if name.startswith("a"):
                outcomes = await together(shop, asks)
            else:
                outcomes = [await heard(ask(shop.deps)) for ask in asks]
            new_chores = sorted((await shop.chores())[len(chores) :])
            left.append([*map(told, outcomes), new_chores, *await written(shop, sale.concert_id, bookings)])
        assert repr(left[0]).replace(f"a{number}", "") == repr(left[1]).replace(f"b{number}", ""), (
            f"seed {seed}"
        )
    assert await shop.broken() == []


async def written(shop: Shop, concert_id: ConcertId, bookings: Sequence[Booking]) -> list[object]:
    """What stands in the database of them, without ids and times."""
    numbers = {booking.id: number for number, booking in enumerate(bookings)}
    async with shop.database.writers.transaction() as statements:
        of_concert = booking_events.c.concert_id == concert_id
        history = await statements.rows(select(booking_events).where(of_concert))
    # Not which of them had which version: who asks for a booking or under a key a second time comes a commit later.
    moves = sorted((numbers[BookingId(row.booking_id)], row.version, row.status) for row in history)
    buyers = sorted({booking.user_id for booking in bookings})
    return [
        moves,
        sorted(row.stock_version for row in history),
        await shop.seats(concert_id),
        [await shop.database.reads.my_page_version(who) for who in buyers],
        [(who, key, what == "booking") for who, key, what in await stored(shop) if who.endswith(concert_id)],
        [told(await shop.booking(booking.id)) for booking in bookings],
    ]
