"""The read model keeps what it is told, in any order, and never answers from what may be out of date."""

import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from domain.base import BookingId, ConcertId, Money, PageQuery, TicketTypeId, UserId
from domain.booking import (
    Booking,
    BookingChanged,
    BookingItem,
    BookingStatus,
    Sale,
    SaleChanged,
    StockLine,
)
from domain.my_page import MyBooking, my_page_key
from infra.read_model import (
    BuyerSnapshot,
    GenerationLost,
    KeptReadModel,
    MemoryReadModel,
    Progress,
    RebuildableReadModel,
    RedisReadModel,
    differences,
    rebuild,
    redis_read_model,
)
from infra.read_model.redis_store import READ_LIMIT_S
from tests.servers import ValkeyServer, running_valkey

pytestmark = pytest.mark.anyio

NOON = datetime(2027, 5, 1, 12, tzinfo=UTC)
CONCERTS = (ConcertId("concert-a"), ConcertId("concert-b"))
BUYERS = (UserId("ada"), UserId("bob"))
PRICE = Money(4_500, "EUR")
PAGE = PageQuery(limit=100)
Told = BookingChanged | SaleChanged


# ---------------------------------------------------------------- a write side in miniature
@dataclass
class WriteSide:
    """Sales and bookings as the database would have them, and the events of every change in order."""

    sales_by_id: dict[ConcertId, Sale] = field(default_factory=dict)
    bookings: dict[BookingId, Booking] = field(default_factory=dict)
    versions: defaultdict[UserId, int] = field(default_factory=lambda: defaultdict(int))
    events: list[Told] = field(default_factory=list)
    before_batch: Callable[[], Awaitable[None]] | None = None
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def open_sale(self, concert_id: ConcertId, title: str = "Night Music") -> None:
        line = StockLine(TicketTypeId(f"{concert_id}-floor"), "Floor", PRICE, 10_000, 0, 0)
        self._put_sale(Sale(concert_id, title, "Hall", NOON, NOON, NOON, 6, False, 1, (line,)))
        self.events.append(SaleChanged(self.sales_by_id[concert_id]))

    def rename(self, concert_id: ConcertId, title: str) -> None:
        old = self.sales_by_id[concert_id]
        self._put_sale(replace(old, title=title, version=old.version + 1))
        self.events.append(SaleChanged(self.sales_by_id[concert_id]))

    def book(self, user_id: UserId, concert_id: ConcertId, *, minute: int = 0) -> BookingId:
        """A new booking, which takes two seats."""
        old = self.sales_by_id[concert_id]
        line = replace(old.stock[0], held=old.stock[0].held + 2)
        self._put_sale(replace(old, version=old.version + 1, stock=(line,)))
        booking = new_booking(BookingId(f"booking-{next(self._numbers):04}"), user_id, concert_id, minute)
        self._put_booking(booking, self.sales_by_id[concert_id])
        return booking.id

    def change(self, booking_id: BookingId, status: BookingStatus) -> None:
        """A change that moves no seats."""
        old = self.bookings[booking_id]
        self._put_booking(replace(old, status=status, version=old.version + 1), None)

    def page(self, user_id: UserId, statuses: frozenset[BookingStatus] | None = None) -> list[MyBooking]:
        """The buyer's whole page, computed the slow way."""
        mine = [b for b in self.bookings.values() if b.user_id == user_id]
        rows = [MyBooking(b, self.sales_by_id[b.concert_id].facts) for b in mine]
        kept = [row for row in rows if statuses is None or row.booking.status in statuses]
        return sorted(kept, key=my_page_key, reverse=True)

    async def sales(self) -> AsyncIterator[Sequence[Sale]]:
        for concert_id in list(self.sales_by_id):
            if self.before_batch is not None:
                await self.before_batch()
            yield [self.sales_by_id[concert_id]]

    async def buyers(self) -> AsyncIterator[Sequence[BuyerSnapshot]]:
        for user_id in list(self.versions):
            if self.before_batch is not None:
                await self.before_batch()
            yield [BuyerSnapshot(user_id, self.versions[user_id], self.page(user_id))]

    def _put_sale(self, sale: Sale) -> None:
        self.sales_by_id[sale.concert_id] = sale

    def _put_booking(self, booking: Booking, sale: Sale | None) -> None:
        self.bookings[booking.id] = booking
        self.versions[booking.user_id] += 1
        facts = self.sales_by_id[booking.concert_id].facts
        self.events.append(BookingChanged(booking, facts, sale, self.versions[booking.user_id]))


def new_booking(booking_id: BookingId, user_id: UserId, concert_id: ConcertId, minute: int) -> Booking:
    """Two tickets, just booked."""
    at = NOON + timedelta(minutes=minute)
    return Booking(
        id=booking_id,
        user_id=user_id,
        concert_id=concert_id,
        items=(BookingItem(TicketTypeId(f"{concert_id}-floor"), "Floor «vorn»\n", 2, PRICE),),
        total=Money(9_000, "EUR"),
        status=BookingStatus.AWAITING_PAYMENT,
        is_final=False,
        hold_until=at + timedelta(minutes=10, microseconds=1),
        is_extended=False,
        is_graced=False,
        retry_pay_at=None,
        payment_id=None,
        payment_status=None,
        decline_code=None,
        version=1,
        created_at=at,
        updated_at=at,
    )


def opened() -> WriteSide:
    """Two concerts on sale and nothing booked."""
    writes = WriteSide()
    for concert_id in CONCERTS:
        writes.open_sale(concert_id)
    return writes


def act(writes: WriteSide, choice: int) -> None:
    """One change of the write side; which one is in the number."""
    kind, rest = choice % 4, choice // 4
    if kind == 0:
        writes.book(BUYERS[rest % 2], CONCERTS[rest // 2 % 2], minute=rest // 4 % 3)
    elif kind == 1:
        writes.rename(CONCERTS[rest % 2], f"Title {rest}")
    elif writes.bookings:
        booking_id = list(writes.bookings)[rest % len(writes.bookings)]
        writes.change(booking_id, list(BookingStatus)[rest // 8 % 6])


# Seeded by one draw: nothing may be drawn while the event loop runs.
chances = st.integers(0, 2**32).map(random.Random)
choices = st.lists(st.integers(0, 4 * 8 * 6 * 8), max_size=40)


# ---------------------------------------------------------------- the two read models
@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """asyncio is what Frontrow runs on."""
    return "asyncio"


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    """A server for the tests that do not end it."""
    with running_valkey() as server:
        yield server


@pytest.fixture
async def redis_model(valkey: ValkeyServer) -> AsyncIterator[RedisReadModel]:
    """A read model in an empty Valkey."""
    valkey.flush()
    async with redis_read_model(valkey.url) as model:
        yield model


@pytest.fixture
async def redis(valkey: ValkeyServer) -> AsyncIterator[Redis]:
    """The same Valkey, seen from outside."""
    async with Redis.from_url(valkey.url) as client:
        yield client


@pytest.fixture(params=["memory", "redis"])
async def model(request: pytest.FixtureRequest) -> AsyncIterator[RebuildableReadModel]:
    """Each of the two, empty."""
    if request.param == "memory":
        yield MemoryReadModel()
        return
    server = request.getfixturevalue("valkey")
    server.flush()
    async with redis_read_model(server.url) as redis_model:
        yield redis_model


async def rows_of(
    model: RebuildableReadModel, user_id: UserId, statuses: frozenset[BookingStatus] | None = None
) -> list[MyBooking]:
    """The buyer's page, which must be complete."""
    view = await model.my_page(user_id, PAGE, statuses=statuses)
    assert view is not None
    assert view.total == len(view.page.rows)
    return list(view.page.rows)


async def version_of(model: RebuildableReadModel, user_id: UserId) -> int:
    """The buyer's version, which must be there."""
    view = await model.my_page(user_id, PAGE, statuses=None)
    assert view is not None
    return view.version


async def differences_of(model: RebuildableReadModel, writes: WriteSide) -> list[str]:
    """All lines."""
    return [line async for line in differences(model, writes)]


# ---------------------------------------------------------------- projecting
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


# ---------------------------------------------------------------- paging
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
    """Redis runs the same commands for a buyer of 2,000 bookings as for one of 50, from one message."""
    writes = opened()
    for minute in range(50):
        writes.book(BUYERS[0], CONCERTS[0], minute=minute)
    for minute in range(2_000):
        writes.book(BUYERS[1], CONCERTS[0], minute=minute)
    await rebuild(redis_model, writes)
    await redis_model.my_page(BUYERS[0], PageQuery(limit=20), statuses=None)

    calls = []
    for user_id in BUYERS:
        await redis.config_resetstat()
        view = await redis_model.my_page(user_id, PageQuery(limit=20), statuses=None)
        assert view is not None and len(view.page.rows) == 20
        stats = await redis.info("commandstats")
        calls.append({name: stat["calls"] for name, stat in stats.items() if "config" not in name})

    assert calls[0] == calls[1]
    assert calls[0]["cmdstat_evalsha"] == 1


# ---------------------------------------------------------------- rebuilding
async def test_rebuild_equals_the_write_side_and_tells_how_far_it_is(model: RebuildableReadModel) -> None:
    """A rebuild alone, without one event, gives every count, row and version."""
    writes = opened()
    for number in range(450):
        writes.book(BUYERS[number % 3 // 2], CONCERTS[number % 2], minute=number)
    told: list[Progress] = []

    assert await rebuild(model, writes, told.append) is True

    assert await differences_of(model, writes) == []
    assert told == [Progress(1, 0), Progress(2, 0), Progress(2, 1), Progress(2, 2)]
    assert await model.check() is False


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=choices, during=choices, chance=chances)
async def test_rebuild_loses_nothing_that_is_projected_meanwhile(
    model: RebuildableReadModel, before: list[int], during: list[int], chance: random.Random
) -> None:
    """Changes and their late, shuffled projections between a rebuild's batches all arrive."""
    await rebuild(model, WriteSide())
    writes = opened()
    for choice in before:
        act(writes, choice)
    # The relay has told some of it before the rebuild begins. The rest waits in the outbox.
    waiting = list(writes.events)
    chance.shuffle(waiting)
    told, waiting = waiting[: len(waiting) // 2], waiting[len(waiting) // 2 :]
    await model.project(told)
    remaining = list(during)

    async def change_and_project() -> None:
        nonlocal waiting
        known = len(writes.events)
        for _ in range(min(4, len(remaining))):
            act(writes, remaining.pop())
        waiting += writes.events[known:]
        chance.shuffle(waiting)
        await model.project(waiting[:3])
        waiting = waiting[3:]

    writes.before_batch = change_and_project
    assert await rebuild(model, writes) is True
    writes.before_batch = None
    await model.project(waiting)

    assert await differences_of(model, writes) == []


async def test_readers_see_the_old_generation_until_the_new_one_is_whole(model: RebuildableReadModel) -> None:
    """In the middle of a rebuild the page is what it was, with what was projected since."""
    writes = opened()
    booking_id = writes.book(BUYERS[0], CONCERTS[0])
    await rebuild(model, writes)
    seen = []

    async def look() -> None:
        seen.append([row.booking.status for row in await rows_of(model, BUYERS[0])])
        writes.change(booking_id, BookingStatus.APPROVED)
        await model.project(writes.events[-1:])

    writes.before_batch = look
    await rebuild(model, writes)

    waiting, approved = [BookingStatus.AWAITING_PAYMENT], [BookingStatus.APPROVED]
    assert seen == [waiting, approved, approved]


async def test_lower_versions_of_a_restored_backup_replace_higher_ones(model: RebuildableReadModel) -> None:
    """After the database went back in time a rebuild shows its older state; the differences are named before."""
    backup = opened()
    booking_id = backup.book(BUYERS[0], CONCERTS[0])
    lost = opened()
    lost.book(BUYERS[0], CONCERTS[0])
    lost.change(booking_id, BookingStatus.APPROVED)
    lost.book(BUYERS[1], CONCERTS[0])
    await rebuild(model, lost)

    before = await differences_of(model, backup)
    await rebuild(model, backup)

    assert [line.split(":")[0] for line in before] == [
        "sale concert-a.version",
        "sale concert-a.stock",
        "buyer ada.version",
        "booking booking-0001.status",
        "booking booking-0001.version",
        "facts concert-a.version",
        "buyer bob",
    ]
    assert await differences_of(model, backup) == []


async def test_rebuild_that_fails_changes_nothing_and_the_next_one_works(model: RebuildableReadModel) -> None:
    """The database dies half-way: readers keep the old generation, and nobody has to wait for a lease."""
    writes = opened()
    writes.book(BUYERS[0], CONCERTS[0])
    await rebuild(model, writes)
    writes.book(BUYERS[0], CONCERTS[0])

    async def die() -> None:
        if len(failed) == 2:
            raise OSError("gone")
        failed.append(1)

    failed: list[int] = []
    writes.before_batch = die
    with pytest.raises(OSError, match="gone"):
        await rebuild(model, writes)
    writes.before_batch = None

    assert len(await rows_of(model, BUYERS[0])) == 1
    assert await rebuild(model, writes) is True
    assert len(await rows_of(model, BUYERS[0])) == 2


async def test_only_one_rebuild_runs_at_a_time(model: RebuildableReadModel) -> None:
    """Whoever comes while one runs is told so; the first one still finishes."""
    writes = opened()
    answers = []

    async def also_try() -> None:
        answers.append(await rebuild(model, WriteSide()))

    writes.before_batch = also_try

    assert await rebuild(model, writes) is True
    assert answers == [False, False]
    assert await differences_of(model, WriteSide(writes.sales_by_id)) == []


async def test_kept_read_model_is_rebuilt_once_and_then_left_alone(model: RebuildableReadModel) -> None:
    """Keeping fills an empty store, and reads nothing from the database while it is complete."""
    writes = opened()
    kept = KeptReadModel(model, writes)
    asked = []

    async def note() -> None:
        asked.append(1)

    writes.before_batch = note
    await kept.keep()
    await kept.keep()

    assert len(asked) == 2
    assert await model.sales(CONCERTS) == writes.sales_by_id


# ---------------------------------------------------------------- Redis on a bad day
async def test_no_key_of_an_old_generation_is_left(redis_model: RedisReadModel, redis: Redis) -> None:
    """Ten rebuilds, one of them abandoned, leave as many keys as the first."""
    writes = opened()
    for user_id in BUYERS:
        writes.change(writes.book(user_id, CONCERTS[0]), BookingStatus.APPROVED)
    await rebuild(redis_model, writes)
    key_count = await redis.dbsize()
    for _ in range(9):
        await rebuild(redis_model, writes)
    await redis.set("somebody else's", "key")
    generation = await redis_model.begin()
    assert generation is not None
    await redis_model.project(writes.events)
    assert await redis.dbsize() > key_count + 2
    await generation.close()

    # The state, two hashes of concerts, and three keys of each buyer.
    assert key_count == 1 + 2 + 2 * 3
    assert await redis.dbsize() == key_count + 1
    assert await differences_of(redis_model, writes) == []


async def test_flushed_redis_is_not_complete(redis_model: RedisReadModel, valkey: ValkeyServer) -> None:
    """After a flush the very next read says that it does not know, projections or not, until a rebuild."""
    writes = opened()
    await rebuild(redis_model, writes)
    valkey.flush()
    writes.book(BUYERS[0], CONCERTS[0])
    await redis_model.project(writes.events)

    assert await redis_model.sales(CONCERTS) is None
    assert await redis_model.my_page(BUYERS[0], PAGE, statuses=None) is None
    assert await redis_model.check() is True

    await rebuild(redis_model, writes)
    assert await differences_of(redis_model, writes) == []


async def test_flush_during_a_rebuild_voids_it(redis_model: RedisReadModel, valkey: ValkeyServer) -> None:
    """A rebuild whose first half was flushed away does not declare the second half complete."""
    writes = opened()

    async def flush() -> None:
        valkey.flush()

    writes.before_batch = flush
    with pytest.raises(GenerationLost):
        await rebuild(redis_model, writes)

    assert await redis_model.sales(CONCERTS) is None


async def test_redis_restarted_with_older_data_is_not_complete() -> None:
    """What a snapshot file brings back is never read, from the first answer on; a check asks for a rebuild."""
    with running_valkey() as server:
        async with redis_read_model(server.url) as model:
            writes = opened()
            booking_id = writes.book(BUYERS[0], CONCERTS[0])
            await rebuild(model, writes)
            await save(server)
            writes.change(booking_id, BookingStatus.APPROVED)
            await model.project(writes.events[-1:])
            server.kill()
            server.start()

            assert await model.my_page(BUYERS[0], PAGE, statuses=None) is None
            assert await model.sales(CONCERTS) is None
            async with Redis.from_url(server.url) as redis:
                assert await redis.exists("frontrow:read-model") == 1
            assert await model.check() is True
            await rebuild(model, writes)
            assert await differences_of(model, writes) == []


async def test_redis_restarted_during_a_rebuild_voids_it() -> None:
    """The lease came back from the snapshot file, what was written after it did not: the rebuild is void."""
    with running_valkey() as server:
        async with redis_read_model(server.url) as model:
            generation = await model.begin()
            await save(server)
            assert generation is not None
            server.kill()
            server.start()

            with pytest.raises(GenerationLost):
                await generation.switch()
            await generation.close()

            assert await model.sales(CONCERTS) is None
            assert await rebuild(model, opened()) is True


async def save(server: ValkeyServer) -> None:
    """What it holds now comes back after a kill."""
    async with Redis.from_url(server.url) as redis:
        await redis.save()


async def test_rebuild_that_died_is_taken_over(redis_model: RedisReadModel, redis: Redis) -> None:
    """Once the lease has ended another begins, and the one that only seemed dead can't finish."""
    writes = opened()
    slow = await redis_model.begin()
    assert slow is not None
    await redis.delete("frontrow:read-model:lease")  # as if its time were over

    assert await rebuild(redis_model, writes) is True
    with pytest.raises(GenerationLost):
        await slow.switch()
    assert await differences_of(redis_model, writes) == []


async def test_redis_that_does_not_answer_is_an_error_in_time(valkey: ValkeyServer) -> None:
    """A frozen server costs a reader 300 ms, however many there are, and is used again once it is back."""
    valkey.flush()
    async with redis_read_model(valkey.url) as model:
        writes = opened()
        await rebuild(model, writes)
        valkey.pause()
        try:
            began = time.monotonic()
            for _ in range(3):
                with pytest.raises(ConnectionError):
                    await model.my_page(BUYERS[0], PAGE, statuses=None)
            assert 3 * READ_LIMIT_S <= time.monotonic() - began < 3 * READ_LIMIT_S + 0.5
        finally:
            valkey.resume()

        assert await model.sales(CONCERTS) == writes.sales_by_id


async def test_redis_that_is_down_is_a_connection_error() -> None:
    """Reading, projecting and checking all say so by the port's own error."""
    with running_valkey() as server:
        async with redis_read_model(server.url) as model:
            writes = opened()
            await rebuild(model, writes)
            server.kill()

            with pytest.raises(ConnectionError):
                await model.sales(CONCERTS)
            with pytest.raises(ConnectionError):
                await model.project(writes.events)
            with pytest.raises(ConnectionError):
                await model.check()


async def test_missing_or_unreadable_document_sends_readers_to_the_database(
    redis_model: RedisReadModel, redis: Redis
) -> None:
    """A document evicted, or written by another release, is never shown in part."""
    writes = opened()
    booking_ids = [writes.book(user_id, CONCERTS[0]) for user_id in BUYERS]
    await rebuild(redis_model, writes)
    (ada,) = [key async for key in redis.scan_iter("*{ada}:bookings")]
    (bob,) = [key async for key in redis.scan_iter("*{bob}:bookings")]
    await redis.hdel(ada, booking_ids[0])
    await redis.hset(bob, booking_ids[1], "1 AWAITING_PAYMENT concert-a\n{}")

    assert await redis_model.my_page(BUYERS[0], PAGE, statuses=None) is None
    assert await redis_model.my_page(BUYERS[1], PAGE, statuses=None) is None
    assert await redis_model.sales(CONCERTS) == writes.sales_by_id
