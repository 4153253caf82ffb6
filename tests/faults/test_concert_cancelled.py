"""A concert with hundreds of bookings is called off, and whoever does the work is killed again and again.

Issue 3, promise 15. `python -m tests.faults.mass_cancel` does the same with ten thousand bookings and prints how fast.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from infra.commands import failed_refunds
from infra.db.invariants import broken
from infra.db.tables import sale_stock
from infra.db.unit import Database
from infra.failpoints import Action
from infra.settings import Settings, WorkerPlace
from schema.common import Kind, encode_id
from tests.client import CANCEL_CONCERT, HASH_KIB, Api, Json
from tests.db_world import run_sql
from tests.faults.called_off import UNREFUNDABLE, CalledOff, fill, wrong_in_the_end
from tests.faults.doorkeeper import Doorkeeper, guarded_sandbox
from tests.faults.fork_server import Child, ForkServer
from tests.faults.house import until_true
from tests.story.test_metrics import measured
from tests.story.world import WEBHOOK_SECRET, Processor, World, an_admin, running_app

pytestmark = pytest.mark.anyio

BOOKINGS = 300
WORKERS = 2
AT_ONCE = 4
# Where a worker dies: before, within and after each step of cancelling, refunding and closing what is still open.
DEATHS = (
    "close_sale.outbox.add",
    "close_sale.commit",
    "close_sale.commit.answered",
    "relay.done",
    "gateway.refund_intent",
    "gateway.refund_intent.answered",
    "refund.end.commit",
    "refund.end.commit.answered",
    "gateway.cancel_intent.answered",
    "settle.commit",
)


@dataclass
class Watcher:
    """Looks at the concert twenty times a second over a connection of its own."""

    database: Database
    called_off: CalledOff
    seen: list[tuple[int, int, int]] = field(default_factory=list)

    async def look(self) -> None:
        """Until cancelled."""
        stock = select(sale_stock).where(sale_stock.c.concert_id == self.called_off.concert_id)
        while True:
            async with self.database.readers.single() as statements:
                ((line,)) = await statements.rows(stock)
            self.seen.append((line.capacity, line.held, line.sold))
            await asyncio.sleep(0.05)


@dataclass
class Scene:
    """An API process without a worker, a processor with a doorkeeper, and a way to have workers."""

    world: World
    doorkeeper: Doorkeeper
    processor_file: Path
    called_off: CalledOff
    database: Database
    _server: ForkServer
    _settings: Json
    _log: Path

    @property
    def concert_id(self) -> str:
        """As clients know it."""
        return encode_id(Kind.CONCERT, self.called_off.concert_id)

    def work(self, point: str | None = None) -> Child:
        """A worker process, which dies at that point."""
        armed = {} if point is None else {point: Action.KILL}
        return self._server.work(self._settings, log=self._log, armed=armed)

    async def call_off(self, *, key: str | None = None) -> tuple[int, int]:
        """cancelConcert: bookings to cancel, refunds open."""
        wanted = {"concertId": self.concert_id, "idempotencyKey": key}
        done = await self.world.admin.ask(CANCEL_CONCERT, input=wanted)
        assert (done["__typename"], done["concert"]["status"]) == ("CancelConcertSuccess", "CANCELLED")
        return done["bookingsToCancel"], done["refundsOpen"]

    async def lease_is_over(self) -> None:
        """Of whatever dead workers had in hand."""
        # Not of what the living are about to delete: two who lock many rows in different orders may never end.
        held = "SELECT id FROM outbox WHERE worker IS NOT NULL ORDER BY id FOR UPDATE SKIP LOCKED"
        due = f"UPDATE outbox SET due_at = due_at - INTERVAL '31 s' WHERE id IN ({held})"
        await run_sql(self.database, due)

    async def has_settled(self) -> bool:
        """Nothing of the concert is left to cancel, and only what can't be refunded is open."""
        return await self.call_off() == (0, self.called_off.counts[UNREFUNDABLE.name])

    async def is_done(self) -> bool:
        """Everything is told and nothing is left to do."""
        return (await self.database.outbox.lag())[0] == 0


@pytest.fixture
async def scene(
    fork_server: ForkServer, postgres_database_url: str, redis_url: str, tmp_path: Path
) -> AsyncIterator[Scene]:
    """Nothing works yet."""
    processor_file = tmp_path / "processor.db"
    database = Database(postgres_database_url)
    called_off = await fill(database, processor_file, size=BOOKINGS)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        url, doorkeeper = await stack.enter_async_context(guarded_sandbox(processor_file))
        facts: dict[str, Any] = {
            "database_url": postgres_database_url,
            "redis_url": redis_url,
            "demo": False,
            "log_level": "error",
            "payment_timeout_ms": 20_000,
            "worker_calls_max_in_flight": AT_ONCE,
            "worker_calls_per_s": 100,
            "stripe_api_key": "sk_test_tests",
            "stripe_api_base": url,
            "stripe_webhook_secret": WEBHOOK_SECRET,
            "password_memory_kib": HASH_KIB,
        }
        settings = Settings(**facts, worker=WorkerPlace.OFF, allow_unsafe_database=True)
        world = await stack.enter_async_context(_api(settings, url))
        yield Scene(
            world,
            doorkeeper,
            processor_file,
            called_off,
            database,
            fork_server,
            facts,
            tmp_path / "worker.log",
        )


@asynccontextmanager
async def _api(settings: Settings, processor_url: str) -> AsyncIterator[World]:

    async with httpx.AsyncClient(timeout=30) as http, running_app(settings) as (url, app):
        processor, api = Processor(processor_url, http), Api(url, http)
        await processor.control(
            webhook_url=f"{url}/webhooks/stripe", webhook_secret=WEBHOOK_SECRET, latency_ms=[5, 20]
        )
        yield World(app, api, await an_admin(app, api), processor, settings)


async def test_a_called_off_concert_is_refunded_whoever_dies(scene: Scene) -> None:
    """Every booking is cancelled, every charge goes back exactly once, no seat returns to sale; others go on paying."""
    assert [text async for text in broken(scene.database)] == []
    watcher = Watcher(scene.database, scene.called_off)
    watching = asyncio.create_task(watcher.look())
    assert await scene.call_off(key="k") == (BOOKINGS, 0)
    assert await unsettled(scene.world) == (BOOKINGS, 0)
    others = Elsewhere(scene.world)
    buying = asyncio.create_task(others.buy())
    for point in DEATHS:
        worker = scene.work(point)
        await worker.reaches(point)
        await worker.ends()
        await scene.lease_is_over()
    to_cancel, refunds_open = await scene.call_off(key="k")
    assert 0 <= to_cancel < BOOKINGS and refunds_open > 0

    workers = [scene.work() for _ in range(WORKERS)]
    await until_true(scene.has_settled, between=scene.lease_is_over)
    others.have_enough = True
    await buying
    await until_true(scene.is_done, between=scene.lease_is_over)
    failing = sum(kind is UNREFUNDABLE for kind in scene.called_off.kinds.values())
    assert await scene.call_off() == (0, failing)
    assert await unsettled(scene.world) == (0, failing)
    assert await wrong_in_the_end(scene.called_off, scene.database, scene.processor_file) == []
    assert scene.doorkeeper.chores.most_inside <= AT_ONCE * WORKERS
    await no_seat_returned(watcher, watching)
    assert [text async for text in broken(scene.database)] == []

    await failed_refunds_are_retried(scene, failing)
    for worker in workers:
        worker.kill()
        await worker.ends()
    await until_true(scene.is_done)


@dataclass
class Elsewhere:
    """Somebody who buys of another concert."""

    world: World
    have_enough: bool = False

    async def buy(self) -> None:
        """Book, pay and cancel until they have enough; each time it works."""
        concert = await self.world.admin.register(maxTicketsPerUser=1_000)
        ann = await self.world.api.new_buyer()
        while not self.have_enough:
            booking = await ann.booked(concert)
            assert (await ann.pay(booking["id"]))["__typename"] == "PayBookingSuccess"
            assert (await ann.cancel(booking["id"]))["__typename"] == "CancelBookingSuccess"


async def no_seat_returned(watcher: Watcher, watching: "asyncio.Task[None]") -> None:
    """From the answer on nothing was available, and capacity fell with every booking down to nothing."""
    watching.cancel()
    await asyncio.wait([watching])
    after = [line for line in watcher.seen if line[0] != BOOKINGS + 1]
    assert len(after) > 5 and all(capacity == held + sold for capacity, held, sold in after)
    capacities = [capacity for capacity, _, _ in after]
    assert capacities == sorted(capacities, reverse=True) and capacities[-1] == 0


async def failed_refunds_are_retried(scene: Scene, failing: int) -> None:
    """They are listed; asked for on command they are tried once more, under a new key, and have failed again."""
    said: list[str] = []
    await failed_refunds(scene.world.settings, is_retry=False, say=said.append)
    assert len([line for line in said if re.search(r" pi_\S+ +3500 EUR", line)]) == failing
    await failed_refunds(scene.world.settings, is_retry=True, say=said.append)
    assert said[-1] == f"{failing} refunds are asked for again; a worker sends them."
    await until_true(scene.is_done)
    wrong = await wrong_in_the_end(scene.called_off, scene.database, scene.processor_file, refund_tries=2)
    assert wrong == [] and await unsettled(scene.world) == (0, failing)


async def unsettled(world: World) -> tuple[float, float]:
    """What operators see: bookings to cancel, refunds open."""
    seen = await measured(world)
    return seen["frontrow_bookings_to_cancel"], seen["frontrow_refunds_open"]
