"""Where bugs are planted: use cases over PostgreSQL and Valkey with a processor at the port, and all of it recorded."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from redis import Redis
from sqlalchemy import update

from domain.base import ConcertId, PaymentId
from domain.events import Event
from domain.payment import GatewayError
from domain.ports import Deps, Doors, EventStream, LiveUpdates, PaymentGateway
from domain.use_cases.booking import expire_due
from domain.use_cases.my_page import watch_sale
from domain.use_cases.settlement import hear_webhook
from infra.db.outbox import OutboxQueue
from infra.db.source import WriteSideSource
from infra.db.tables import outbox
from infra.db.unit import Database, SqlWriteUnit
from infra.event_stream import redis_event_stream
from infra.failpoints import Failpoints
from infra.live_updates import StreamedUpdates
from infra.read_model import RebuildableReadModel, differences, rebuild, redis_read_model
from infra.relay import Relay
from infra.telemetry import Metrics
from tests.db_world import a_sale, open_sale
from tests.fake_processor import FakeProcessor
from tests.faults.buyers import NAP_S, Door, OverUseCases, RecordedBuyer
from tests.faults.checker import Evidence, Rule, check
from tests.faults.history import Heard, History, Mark, Recording, Sample, StockRow
from tests.faults.reading import ledger_of_fake, look, opening_of, read_final, sampled
from tests.paying import PAST, Shop, customer, running_shop

EVENTS = get_args(Event)
HearWebhook = Callable[..., Awaitable[bool]]
CONCERTS_MAX = 2
# More rounds than any story's events need.
ROUNDS = 8


@dataclass(frozen=True)
class Parts:
    """What a bug may take the place of; by default all is as it should be."""

    stores: Callable[[SqlWriteUnit, str, LiveUpdates], None] = lambda unit, name, live: None
    doors: Callable[[Doors], Doors] = lambda doors: doors
    queue: Callable[[Database], OutboxQueue] = lambda database: database.outbox
    gateway: Callable[[PaymentGateway], PaymentGateway] = lambda gateway: gateway
    stream: Callable[[EventStream], EventStream] = lambda stream: stream
    live: Callable[[LiveUpdates], LiveUpdates] = lambda live: live
    counter: Callable[[Door], Door] = lambda door: door
    buyer: type[RecordedBuyer] = RecordedBuyer
    expire: Callable[[Deps], Coroutine[Any, Any, int]] = expire_due
    hear_webhook: HearWebhook = hear_webhook
    # What a bug still does behind everybody's back.
    rest: Callable[[], Awaitable[None]] = lambda: asyncio.sleep(0)


@dataclass
class Stage:
    """A shop with everything around it, and what is to be judged."""

    parts: Parts
    shop: Shop
    deps: Deps
    failpoints: Failpoints
    relay: Relay
    read_model: RebuildableReadModel
    samples: list[Sample]
    stood_still: asyncio.Event
    unsold: list[str]
    history: History = field(default_factory=History)
    recordings: list[Recording] = field(default_factory=list)

    @property
    def database(self) -> Database:
        """Without anything in front of it."""
        return self.shop.database

    @property
    def processor(self) -> FakeProcessor:
        """The processor, where it can be told to fail."""
        return self.shop.processor

    async def open_sale(self, *, capacity: int = 10, limit: int = 6) -> str:
        """A concert that sells, and is judged; its only ticket type is `seat_of` it."""
        sale = await open_sale(
            self.database, a_sale(self.unsold.pop(), (capacity,), max_tickets_per_user=limit)
        )
        await rebuild(self.read_model, WriteSideSource(self.database))
        self.history.openings.append(await opening_of(self.database, sale.concert_id))
        return sale.concert_id

    def buyer(self, name: str, *, tries: int = 5) -> RecordedBuyer:
        """Somebody, whose requests go over the counter."""
        door = self.parts.counter(OverUseCases(self.deps, customer(name)))
        return self.parts.buyer(self.history, door, name, tries, nap_max_s=NAP_S)

    async def let_events_come_due(self) -> None:
        """Whatever backs off is tried at the next turn."""
        async with self.database.writers.transaction() as statements:
            await statements.change(update(outbox).values(due_at=PAST))
            await statements.commit()

    async def relay_everything(self) -> None:
        """Every event that the relay finds is told, as far as that works."""
        await self.parts.rest()
        for _ in range(ROUNDS):
            await self.let_events_come_due()
            if await self.relay.relay_some() == 0:
                return

    async def hear(self, webhook_id: str, intent_id: str) -> None:
        """The processor tells of the intent; it tells again later where we don't take it."""
        payment_id = self.processor.entries[intent_id].intent.payment_id
        with suppress(GatewayError):
            await self.parts.hear_webhook(
                self.deps, webhook_id, payment_id=PaymentId(payment_id or ""), intent_id=intent_id
            )

    @asynccontextmanager
    async def watching(self, concert_id: str, *, name: str = "watcher") -> AsyncIterator["Watcher"]:
        """Somebody who watches the count and has heard the first message; the next one is for `reads_on`."""
        watcher = Watcher(self.deps, Recording(name, (concert_id,)))
        self.recordings.append(watcher.recording)
        task = asyncio.create_task(watcher.read(ConcertId(concert_id)), name=name)
        try:
            await watcher.hears(1, patience_s=10)
            yield watcher
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def verdict(self, *, is_calm: bool = False) -> set[Rule]:
        """The rules that were broken."""
        source = WriteSideSource(self.database)
        self.samples += await look(self.database, self._judged(), has_sums=True)
        evidence = Evidence(
            history=self.history,
            final=await read_final(self.database),
            ledger=ledger_of_fake(self.processor),
            samples=self.samples,
            recordings=self.recordings,
            read_model=[line async for line in differences(self.read_model, source)],
            is_calm=is_calm,
        )
        return {violation.rule for violation in check(evidence)}

    def _judged(self) -> list[str]:
        return [opening.concert_id for opening in self.history.openings]


@dataclass
class Watcher:
    """A subscriber of a concert's count."""

    deps: Deps
    recording: Recording
    _reads: asyncio.Event = field(default_factory=asyncio.Event)
    _heard: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self, concert_id: ConcertId) -> None:
        """Record what comes, until cancelled."""
        self.recording.mark(Mark.CONNECTED)
        async for sale in watch_sale(self.deps, concert_id):
            stock = tuple(
                StockRow(line.ticket_type_id, line.capacity, line.held, line.sold) for line in sale.stock
            )
            heard = Heard(time.monotonic(), subject_id=concert_id, version=sale.version, stock=stock)
            self.recording.entries.append(heard)
            self._heard.set()
            await self._reads.wait()

    async def hears(self, version: int, *, patience_s: float) -> None:
        """This version or a newer one was heard, or patience is over: what that means is the checker's to say."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while max(self.recording.versions.values(), default=0) < version:
                    self._heard.clear()
                    await self._heard.wait()

    def reads_on(self) -> None:
        """Whatever comes is read."""
        self._reads.set()

    def pauses(self) -> None:
        """No more is read, but for what was being waited for."""
        self.recording.mark(Mark.PAUSED)
        self._reads.clear()

    def resumes(self) -> None:
        """What waits is read."""
        self.recording.mark(Mark.RESUMED)
        self._reads.set()


def seat_of(concert_id: str) -> str:
    """The ticket type of a sale on the stage."""
    return a_sale(concert_id).stock[0].ticket_type_id


@asynccontextmanager
async def running_stage(
    parts: Parts, database_url: str, redis_url: str, *, processor: FakeProcessor | None = None
) -> AsyncIterator[Stage]:
    """Everything is up, with these parts in it; the stock is sampled all the time."""
    with Redis.from_url(redis_url) as redis:
        redis.flushdb()
    processor = processor or FakeProcessor()
    database, stood_still = Database(database_url), asyncio.Event()
    failpoints = Failpoints(lambda _: stood_still.set())
    # Named before they are opened, because the looks at the stock begin now; and by nobody else on this Redis.
    concerts = [secrets.token_hex(4) for _ in range(CONCERTS_MAX)]
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        read_model = await stack.enter_async_context(redis_read_model(redis_url))
        stream = parts.stream(await stack.enter_async_context(redis_event_stream(redis_url)))
        # Each booking has a transaction of its own, as if everybody asked another process.
        shop = await stack.enter_async_context(running_shop(database, processor, booking_batch_max=1))
        live = StreamedUpdates(stream)

        @asynccontextmanager
        async def write(name: str = "unnamed", /, *, module: str = "booking") -> AsyncIterator[SqlWriteUnit]:
            async with database.write(name, module=module) as unit:
                parts.stores(unit, name, live)
                yield unit

        real = replace(
            shop.deps, write=write, read_model=read_model, live=live, gateway=parts.gateway(processor)
        )
        deps = failpoints.around(real)
        deps = replace(deps, write=parts.doors(deps.write), live=parts.live(deps.live))
        relay = Relay(deps, parts.queue(database), kinds=EVENTS, worker="stage", metrics=Metrics())
        yield Stage(
            parts,
            shop,
            deps,
            failpoints,
            relay,
            read_model,
            await stack.enter_async_context(sampled(database_url, concerts)),
            stood_still,
            concerts,
        )
