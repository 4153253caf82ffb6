"""Mistakes on the way from a commit to those who listen."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

from sqlalchemy import select

from domain.base import ConcertId, PaymentId
from domain.booking import Sale
from domain.ports import Deps, EventStream, Listener, LiveUpdates, Message, Resync
from domain.use_cases.settlement import settle
from infra.codec import decode_event
from infra.db.outbox import OutboxQueue, OutboxRow
from infra.db.tables import outbox
from infra.db.unit import Database


# ---------------------------------------------------------------- relay by `id > last`
class PagingQueue:
    """Goes through the outbox by id, and remembers how far it came."""

    def __init__(self, database: Database) -> None:
        self._inner = database.outbox
        self._pool = database.writers
        self._last = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def claim(self, *, limit: int, **wanted: object) -> list[OutboxRow]:
        """What comes after the last one seen."""
        async with self._pool.transaction() as statements:
            rows = await statements.rows(
                select(outbox).where(outbox.c.id > self._last).order_by(outbox.c.id).limit(limit)
            )
        self._last = max([self._last, *(row.id for row in rows)])
        return [
            OutboxRow(row.id, decode_event(row.kind, row.payload), row.attempts, row.created_at)
            for row in rows
        ]


def relay_by_id(database: Database) -> OutboxQueue:
    """In place of the leases."""
    return cast(OutboxQueue, PagingQueue(database))


# ---------------------------------------------------------------- mark-seen-before-work
class DoneAtOnce:
    """Deletes what it hands out, so that nothing is ever told twice."""

    def __init__(self, database: Database) -> None:
        self._inner = database.outbox

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def claim(self, **wanted: Any) -> list[OutboxRow]:
        """Claimed and gone."""
        rows = await self._inner.claim(**wanted)
        await self._inner.done([row.id for row in rows])
        return rows


def done_before_it_is_told(database: Database) -> OutboxQueue:
    """In place of the real order."""
    return cast(OutboxQueue, DoneAtOnce(database))


async def seen_before_it_is_heard(
    deps: Deps, webhook_id: str, *, payment_id: PaymentId | None, intent_id: str | None
) -> bool:
    """The webhook is remembered first, and then acted on."""
    async with deps.write("webhook.find") as unit:
        is_new = await unit.payments.add_webhooks([webhook_id]) == {webhook_id}
        known = await unit.payments.find_intent(payment_id=payment_id, intent_id=intent_id)
        await unit.commit()
    if is_new and known is not None and intent_id is not None:
        intent = await deps.gateway.retrieve_intent(intent_id)
        concerts = await deps.reads.booked_concerts([known.booking_id])
        await settle(deps, known.booking_id, intent, concert_id=concerts[known.booking_id])
    return True


# ---------------------------------------------------------------- snapshot before subscribing
class RegistersLate:
    """Registers on the channel once somebody waits for the next message: after the snapshot was read."""

    def __init__(self, inner: LiveUpdates) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @asynccontextmanager
    async def listen_sale(self, concert_id: ConcertId) -> AsyncIterator[AsyncIterator[Sale | Resync]]:
        """Not registered yet."""
        async with AsyncExitStack() as stack:

            async def said() -> AsyncIterator[Sale | Resync]:
                heard = await stack.enter_async_context(self._inner.listen_sale(concert_id))
                async for item in heard:
                    yield item

            yield said()


def snapshot_before_subscribing(live: LiveUpdates) -> LiveUpdates:
    """In place of registering first."""
    return cast(LiveUpdates, RegistersLate(live))


# ---------------------------------------------------------------- unbounded queue
class QueueingStream:
    """A stream that keeps every announcement for every listener until it is read."""

    def __init__(self, inner: EventStream) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @asynccontextmanager
    async def listen(self, channel: str) -> AsyncIterator[Listener]:
        """Registered as ever, with a queue behind it."""
        queue: asyncio.Queue[Message | Resync] = asyncio.Queue()

        async def pump(listener: Listener) -> None:
            async for item in listener:
                queue.put_nowait(item)

        async def waiting() -> AsyncIterator[Message | Resync]:
            while True:
                yield await queue.get()

        async with self._inner.listen(channel) as listener:
            pumping = asyncio.create_task(pump(listener))
            try:
                yield cast(Listener, waiting())
            finally:
                pumping.cancel()
                await asyncio.wait([pumping])


def unbounded_queue(stream: EventStream) -> EventStream:
    """In place of the slots."""
    return cast(EventStream, QueueingStream(stream))
