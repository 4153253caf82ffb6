"""The relay: every committed event leads to its reactions, whatever fails, dies or commits late."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, cast

import pytest
import structlog
from sqlalchemy import select, update

from domain.base import DatabaseAway
from domain.booking import BookingChanged, SaleChanged, SaleClosed
from domain.events import Event
from domain.payment import OutcomeUnknown
from domain.ports import Deps
from domain.reactions import react
from infra.db.errors import TableMissing
from infra.db.source import WriteSideSource
from infra.db.tables import outbox
from infra.db.unit import Database
from infra.failpoints import Action, Failpoints
from infra.read_model import MemoryReadModel, differences, rebuild
from infra.relay import AWAY_BACKOFF_MAX_S, BACKOFF_MAX_S, Relay
from infra.telemetry import Metrics
from tests.client import until
from tests.db_world import an_event, run_sql
from tests.fake_processor import FakeProcessor
from tests.paying import PAST, running_shop

pytestmark = pytest.mark.anyio

KINDS: tuple[type[Event], ...] = (SaleClosed, SaleChanged, BookingChanged)
NO_DEPS = cast(Deps, None)


@dataclass
class Told:
    """A reaction that remembers what it was told, in order, and fails where it is asked to."""

    names: list[str] = field(default_factory=list)
    tried: Counter[str] = field(default_factory=Counter)
    failing: dict[str, Exception] = field(default_factory=dict)

    async def __call__(self, _: Deps, event: Event) -> None:
        """Told once, or failed."""
        assert isinstance(event, SaleClosed)
        name = str(event.concert_id)
        self.tried[name] += 1
        if name in self.failing:
            raise self.failing[name]
        self.names.append(name)

    async def all_of(self, names: Sequence[str]) -> None:
        """Exactly these were told, each once, in any order."""

        async def heard() -> list[str]:
            return sorted(self.names)

        await until(heard, lambda heard: heard == sorted(names))


Reaction = Callable[[Deps, Event], Awaitable[None]]


def a_relay(
    database: Database, react: Reaction, *, deps: Deps = NO_DEPS, metrics: Metrics | None = None
) -> Relay:
    """One lane for all kinds."""
    return Relay(deps, database.outbox, kinds=KINDS, worker="w", metrics=metrics or Metrics(), react=react)


@asynccontextmanager
async def relaying(*relays: Relay) -> AsyncIterator[None]:
    """They run until the block ends, and are cut off then like a process that dies."""
    tasks = [asyncio.create_task(relay.run()) for relay in relays]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def put(database: Database, *names: str) -> None:
    """Events of these names, committed together."""
    async with database.write() as unit:
        for name in names:
            await unit.outbox.add(an_event(name))
        await unit.commit()


async def depth_is_0(database: Database) -> None:
    """Nothing waits to be told."""

    async def depth() -> int:
        return (await database.outbox.lag())[0]

    await until(depth, lambda rows: rows == 0)


async def in_outbox(database: Database) -> list[Any]:
    """The rows that wait, and the database's time."""
    async with database.writers.transaction() as statements:
        now = await statements.now()
        return [(row, (row.due_at - now).total_seconds()) for row in await statements.rows(select(outbox))]


async def set_rows(database: Database, **values: object) -> None:
    """The same values for every row."""
    async with database.writers.transaction() as statements:
        await statements.change(update(outbox).values(values))
        await statements.commit()


# ---------------------------------------------------------------- nothing is lost
async def test_event_of_a_transaction_that_commits_late_is_told(database_url: str) -> None:
    """Written before others that were told meanwhile: it follows once it is committed, and none comes twice.

    On SQLite writers queue, so that the late one keeps the others waiting.
    """
    database, told = Database(database_url), Told()
    is_postgres = database_url.startswith("postgresql")
    async with relaying(a_relay(database, told)):
        async with database.write() as late:
            await late.outbox.add(an_event("late"))
            if is_postgres:
                await put(database, "early-1", "early-2")
                await told.all_of(["early-1", "early-2"])
                await depth_is_0(database)
            await late.commit()
        if not is_postgres:
            await put(database, "early-1", "early-2")
        await told.all_of(["early-1", "early-2", "late"])
        await depth_is_0(database)
    assert set(told.tried.values()) == {1}
    await database.close()


async def test_two_relays_at_once_tell_each_event_once(database_url: str) -> None:
    """As in two processes: both work at the same time, and no event is worked on by both."""
    names = [f"c{number}" for number in range(250)]
    both_at_work = asyncio.Barrier(2)
    told = [Told(), Told()]

    def waiting(own: Told) -> Reaction:
        async def reaction(deps: Deps, event: Event) -> None:
            if not own.tried:
                own.tried["first"] = 0
                await both_at_work.wait()
            await own(deps, event)

        return reaction

    async with AsyncExitStack() as stack:
        databases = [Database(database_url) for _ in told]
        for database in databases:
            stack.push_async_callback(database.close)
        await put(databases[0], *names)
        relays = [a_relay(each, waiting(own)) for each, own in zip(databases, told, strict=True)]
        async with asyncio.timeout(30), relaying(*relays):
            await depth_is_0(databases[0])
    assert all(own.names for own in told)
    assert sorted(told[0].names + told[1].names) == sorted(names)


async def test_what_a_dead_worker_had_claimed_is_told_by_the_next(database: Database) -> None:
    """Killed in the middle of a reaction: the event waits for the end of its lease, the others for nothing."""
    reached, told = asyncio.Event(), Told()

    async def dies(_: Deps, __: Event) -> None:
        reached.set()
        await asyncio.Event().wait()

    await put(database, "claimed")
    async with relaying(a_relay(database, dies)):
        await reached.wait()
    await put(database, "new")
    async with relaying(a_relay(database, told)):
        await told.all_of(["new"])
        ((row, lease_left_s),) = await in_outbox(database)
        assert row.worker == "w" and lease_left_s > 0
        await set_rows(database, due_at=PAST)  # the lease has run out
        await told.all_of(["new", "claimed"])
        await depth_is_0(database)


async def test_a_wake_is_enough_to_be_told(database: Database) -> None:
    """Without a wake the relay looks by itself; a wake during its work is not lost."""
    told = Told()
    relay = a_relay(database, told)
    async with relaying(relay):
        for number in range(5):
            await put(database, f"c{number}")
            relay.wake()
            await told.all_of([f"c{n}" for n in range(number + 1)])
        await put(database, "unannounced")
        await told.all_of(["c0", "c1", "c2", "c3", "c4", "unannounced"])


async def test_a_wake_keeps_no_relay_from_being_stopped(database: Database) -> None:
    """Both come in one moment, as when the process stops while somebody books: the relay ends."""
    relay = a_relay(database, Told())
    task = asyncio.create_task(relay.run())
    await put(database, "c")
    relay.wake()
    await depth_is_0(database)
    relay.wake()
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=5)
    task.cancel()
    assert task in done


# ---------------------------------------------------------------- failures
@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Redis"),
        OutcomeUnknown("Stripe", is_stored=False),
        DatabaseAway(),
        ZeroDivisionError("a bug"),
    ],
)
async def test_a_failing_reaction_backs_off_alone(database: Database, error: Exception) -> None:
    """The others go on at once; it is tried again and again, counted, and told once it can be."""
    metrics, told = Metrics(), Told(failing={"bad": error})
    await put(database, "bad", *(f"good-{n}" for n in range(30)))
    async with relaying(a_relay(database, told, metrics=metrics)):
        good = [f"good-{n}" for n in range(30)]
        await told.all_of(good)

        async def tried() -> int:
            return told.tried["bad"]

        await until(tried, lambda times: times >= 2)
        ((row, _),) = await in_outbox(database)
        assert row.error.startswith(type(error).__name__)
        told.failing.clear()
        await told.all_of([*good, "bad"])
        await depth_is_0(database)
    failures = metrics.registry.get_sample_value("frontrow_relay_failures_total", {"event": "SaleClosed"})
    assert failures == told.tried["bad"] - 1


@pytest.mark.parametrize(
    ("error", "longest_s"),
    [
        (ConnectionError("Redis"), AWAY_BACKOFF_MAX_S),
        (DatabaseAway(), AWAY_BACKOFF_MAX_S),
        (OutcomeUnknown("Stripe", is_stored=False), BACKOFF_MAX_S),
    ],
)
async def test_no_event_backs_off_for_long(database: Database, error: Exception, longest_s: float) -> None:
    """After the hundredth failure too: a second once a server is back, a little longer where the processor failed."""
    await put(database, "bad")
    await set_rows(database, attempts=100)
    await a_relay(database, Told(failing={"bad": error})).relay_some()
    ((row, wait_s),) = await in_outbox(database)
    assert row.attempts == 101 and longest_s / 2 < wait_s <= longest_s


async def test_what_the_database_did_not_hear_does_not_wait_for_its_lease(database: Database) -> None:
    """It went away under what was told and what was not: once it is back the one is forgotten, the other told."""
    told, points = Told(failing={"bad": DatabaseAway()}), Failpoints()
    relay = Relay(
        NO_DEPS,
        points.around_queue(database.outbox),
        kinds=KINDS,
        worker="w",
        metrics=Metrics(),
        lease_s=600,
        react=told,
    )
    for point in ("relay.done", "relay.failed"):
        points.arm(point, Action.ERROR)
    await put(database, "good", "bad")
    async with relaying(relay):
        await told.all_of(["good"])
        told.failing.clear()
        await told.all_of(["good", "bad"])
        await depth_is_0(database)
    assert told.tried == {"good": 1, "bad": 2}


async def test_a_relay_outlives_what_nobody_expected(database: Database) -> None:
    """Its table was gone for a while: it goes on looking, and tells what was in it."""
    told = Told()
    await put(database, "waiting")
    await run_sql(database, "ALTER TABLE outbox RENAME TO away")
    relay = a_relay(database, told)
    with pytest.raises(TableMissing):
        await relay.relay_some()
    async with relaying(relay):
        with structlog.testing.capture_logs() as logs:

            async def broke() -> bool:
                return any(line["event"] == "relay.broke" for line in logs)

            await until(broke, bool)
        await run_sql(database, "ALTER TABLE away RENAME TO outbox")
        await told.all_of(["waiting"])
        await depth_is_0(database)


# ---------------------------------------------------------------- order and repetition
async def test_read_model_is_right_in_any_order_and_however_often(database: Database) -> None:
    """Two relays, reactions in a shuffled order, every third told again later: it says what the database says."""
    random, model, announced = Random(7), MemoryReadModel(), Announced()

    async def shuffled(deps: Deps, event: Event) -> None:
        for _ in range(random.randrange(20)):
            await asyncio.sleep(0)
        await react(deps, event)
        if random.randrange(3) == 0:
            raise ConnectionError("told, and lost before it was noted")

    async with running_shop(database, FakeProcessor()) as shop:
        deps = replace(shop.deps, read_model=model, live=cast(Any, announced))
        sales = [await shop.open_sale(capacity=50) for _ in range(2)]
        source = WriteSideSource(database)
        assert await rebuild(model, source)
        async with relaying(*(a_relay(database, shuffled, deps=deps) for _ in range(2))):
            for number in range(40):
                booking = await shop.book(sales[number % 2], f"buyer-{number % 5}", 1)
                if number % 3 == 0:
                    await shop.pay(booking)
                if number % 2 == 0:
                    await shop.cancel(booking)
            await depth_is_0_but_chores(database)
        assert [line async for line in differences(model, source)] == []
        for sale in sales:
            stored = (await database.reads.sales([sale.concert_id]))[sale.concert_id]
            assert announced.newest[sale.concert_id] == stored.version > 20


@dataclass
class Announced:
    """The newest version that was announced of each concert."""

    newest: Counter[str] = field(default_factory=Counter)

    async def announce(self, event: BookingChanged | SaleChanged) -> None:
        """Heard."""
        if event.sale is not None:
            known = self.newest[event.sale.concert_id]
            self.newest[event.sale.concert_id] = max(known, event.sale.version)


async def depth_is_0_but_chores(database: Database) -> None:
    """Everything that the relays here are for is told."""

    async def waiting() -> list[str]:
        rows = await in_outbox(database)
        return [row.kind for row, _ in rows if row.kind in {kind.__name__ for kind in KINDS}]

    await until(waiting, lambda kinds: kinds == [])
