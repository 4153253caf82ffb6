"""What was projected is what is read, in whichever order it came."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from redis.asyncio import Redis

from domain.base import BookingId, ConcertId, PageQuery
from domain.booking import (
    BookingStatus,
)
from domain.my_page import MyBooking, my_page_key
from infra.read_model import (
    RebuildableReadModel,
    RedisReadModel,
    rebuild,
)
from tests.test_read_model.write_side import (
    BUYERS,
    CONCERTS,
    PAGE,
    WriteSide,
    act,
    chances,
    choices,
    differences_of,
    opened,
    rows_of,
    version_of,
)

pytestmark = pytest.mark.anyio


async def test_nothing_is_answered_before_the_first_rebuild(model: RebuildableReadModel) -> None:
    """An empty store says that it does not know, whatever was projected into it, and asks for a rebuild."""
    writes = opened()
    writes.book(BUYERS[0], CONCERTS[0])

    await model.project(writes.events)

    assert await model.sales(CONCERTS) is None
    assert await model.my_page(BUYERS[0], PAGE, statuses=None) is None
    assert await differences_of(model, writes) == ["the read model is not complete"]
    assert await model.check() is True


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=choices, chance=chances)
async def test_events_in_any_order_and_again_give_the_newest_state(
    model: RebuildableReadModel, history: list[int], chance: random.Random
) -> None:
    """Shuffled, repeated and cut into any batches, a history leads to the write side's own state."""
    await rebuild(model, WriteSide())
    writes = opened()
    for choice in history:
        act(writes, choice)
    told = writes.events + chance.choices(writes.events, k=len(writes.events) // 2)
    chance.shuffle(told)
    while told:
        size = chance.randint(1, 7)
        await model.project(told[:size])
        told = told[size:]

    assert await model.sales(CONCERTS) == writes.sales_by_id
    for user_id in BUYERS:
        assert await rows_of(model, user_id) == writes.page(user_id)
        assert await version_of(model, user_id) == writes.versions[user_id]
        for status in BookingStatus:
            only = frozenset({status})
            assert await rows_of(model, user_id, only) == writes.page(user_id, only)
    assert await differences_of(model, writes) == []


async def test_version_waits_for_the_change_that_is_missing(model: RebuildableReadModel) -> None:
    """A buyer's version is the last one before the first gap, however much came after it."""
    writes = opened()
    await rebuild(model, writes)
    booking_id = writes.book(BUYERS[0], CONCERTS[0])
    for status in (BookingStatus.PAYMENT_PENDING, BookingStatus.APPROVED, BookingStatus.CANCELLED):
        writes.change(booking_id, status)
    first, second, third, fourth = writes.events[-4:]

    seen = []
    for event in (fourth, first, third, third, second):
        await model.project([event])
        seen.append(await version_of(model, BUYERS[0]))

    assert seen == [0, 1, 1, 1, 4]


async def test_sale_that_is_not_there_is_left_out(model: RebuildableReadModel) -> None:
    """A concert the read model never heard of is absent from the answer, and its neighbour is not."""
    writes = opened()
    await rebuild(model, writes)

    found = await model.sales([CONCERTS[0], ConcertId("unknown")])

    assert found == {CONCERTS[0]: writes.sales_by_id[CONCERTS[0]]}
    assert await model.sales([]) == {}


async def test_facts_are_the_concerts_newest_on_every_row(model: RebuildableReadModel) -> None:
    """One event renames a concert on all pages; a booking's older copy does not bring the old name back."""
    writes = opened()
    booking_ids = [writes.book(user_id, CONCERTS[0]) for user_id in BUYERS]
    await rebuild(model, writes)
    writes.change(booking_ids[0], BookingStatus.APPROVED)
    late = writes.events[-1]
    writes.rename(CONCERTS[0], "Night Music II")

    await model.project([writes.events[-1]])
    await model.project([late])

    titles = [row.facts.title for user_id in BUYERS for row in await rows_of(model, user_id)]
    assert titles == ["Night Music II", "Night Music II"]


async def test_page_is_newest_first_and_goes_on_after_its_last_row(model: RebuildableReadModel) -> None:
    """Pages of seven show 25 bookings, some made in the same instant, once each and in order."""
    writes = opened()
    for number in range(25):
        writes.book(BUYERS[0], CONCERTS[number % 2], minute=number // 3)
        if number % 3:
            writes.change(BookingId(f"booking-{number + 1:04}"), list(BookingStatus)[number % 6])
    await rebuild(model, writes)

    seen: list[MyBooking] = []
    ends = []
    query = PageQuery(limit=7)
    for _ in range(4):
        view = await model.my_page(BUYERS[0], query, statuses=None)
        assert view is not None and view.total == 25
        seen += view.page.rows
        ends.append((len(view.page.rows), view.page.has_previous, view.page.has_next))
        query = PageQuery(limit=7, after=my_page_key(seen[-1]))

    assert seen == writes.page(BUYERS[0])
    assert ends == [(7, False, True), (7, True, True), (7, True, True), (4, True, False)]


async def test_page_of_some_statuses_counts_only_them(model: RebuildableReadModel) -> None:
    """A filter leaves its rows in order, its own total, and nothing where it names nothing."""
    writes = opened()
    booking_ids = [writes.book(BUYERS[0], CONCERTS[0], minute=minute) for minute in range(9)]
    for booking_id, status in zip(booking_ids, list(BookingStatus) * 2, strict=False):
        writes.change(booking_id, status)
    await rebuild(model, writes)
    wanted = frozenset({BookingStatus.APPROVED, BookingStatus.AWAITING_PAYMENT})

    view = await model.my_page(BUYERS[0], PageQuery(limit=2), statuses=wanted)

    assert view is not None
    assert list(view.page.rows) == writes.page(BUYERS[0], wanted)[:2]
    assert (view.total, view.page.has_next) == (3, True)
    assert await rows_of(model, BUYERS[0], frozenset()) == []
    assert await rows_of(model, BUYERS[1]) == []


async def test_rows_that_move_to_another_status_are_neither_skipped_nor_repeated(
    model: RebuildableReadModel,
) -> None:
    """The last row seen changes its status; the next page still goes on behind it."""
    writes = opened()
    for minute in range(6):
        writes.book(BUYERS[0], CONCERTS[0], minute=minute)
    await rebuild(model, writes)
    first = await model.my_page(BUYERS[0], PageQuery(limit=3), statuses=None)
    assert first is not None
    last = first.page.rows[-1]
    writes.change(last.booking.id, BookingStatus.EXPIRED)
    await model.project(writes.events[-1:])

    second = await model.my_page(BUYERS[0], PageQuery(limit=3, after=my_page_key(last)), statuses=None)

    assert second is not None
    assert list(second.page.rows) == writes.page(BUYERS[0])[3:]


async def test_cost_of_a_page_does_not_grow_with_the_bookings(
    redis_model: RedisReadModel, redis: Redis
) -> None:
    """From one message Redis runs the same commands for 5,000 bookings as for 50, in much the same time."""
    writes = opened()
    for user_id, booking_count in zip(BUYERS, (50, 5_000), strict=True):
        for minute in range(booking_count):
            writes.book(user_id, CONCERTS[0], minute=minute)
    await rebuild(redis_model, writes)

    calls, fastest_us = [], []
    for user_id in BUYERS:
        times_us = []
        for _ in range(10):
            await redis.config_resetstat()
            view = await redis_model.my_page(user_id, PageQuery(limit=20), statuses=None)
            assert view is not None and len(view.page.rows) == 20
            stats = await redis.info("commandstats")
            times_us.append(stats["cmdstat_evalsha"]["usec"])
        calls.append({name: stat["calls"] for name, stat in stats.items() if "config" not in name})
        fastest_us.append(min(times_us))

    assert calls[0] == calls[1]
    assert calls[0]["cmdstat_evalsha"] == 1
    assert fastest_us[1] < 3 * fastest_us[0]
