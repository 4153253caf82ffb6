"""The worker: what it does without being asked, and that no part of it waits for another."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import pytest
from sqlalchemy import func, select

from domain.base import BookingId
from domain.booking import BookingStatus
from domain.use_cases.booking import close_sale
from infra.db.source import WriteSideSource
from infra.db.tables import idempotency_keys
from infra.db.unit import Database
from infra.read_model import MemoryReadModel
from infra.telemetry import Metrics
from infra.worker import REAP_MAX, Worker
from tests.client import until
from tests.fake_processor import FakeProcessor
from tests.paying import PAST, Shop, running_shop

pytestmark = pytest.mark.anyio


class _Nobody:
    """Nobody listens."""

    async def announce(self, event: object) -> None:
        """Unheard."""


@asynccontextmanager
async def working(shop: Shop) -> AsyncIterator[None]:
    """A worker is at work until the block ends."""
    model = MemoryReadModel()
    deps = replace(shop.deps, read_model=model, live=cast(Any, _Nobody()))
    worker = Worker(
        deps,
        shop.database.outbox,
        read_model=model,
        source=WriteSideSource(shop.database),
        name="w",
        metrics=Metrics.build(),
    )
    async with worker.running():
        yield


async def test_a_cancelled_concert_does_not_wait_for_the_processor(database: Database) -> None:
    """A refund hangs; the bookings of a concert that is called off meanwhile are cancelled all the same."""
    processor, asked = FakeProcessor(), asyncio.Event()

    async def hangs(moment: str, _: BookingId) -> None:
        if moment == "refund":
            asked.set()
            await asyncio.Event().wait()

    processor.step = hangs
    async with running_shop(database, processor) as shop, working(shop):
        paid = await shop.book(await shop.open_sale())
        await shop.pay(paid)
        await shop.cancel(paid)
        async with asyncio.timeout(10):
            await asked.wait()
        sale = await shop.open_sale()
        booking = await shop.book(sale)
        async with database.write() as unit:
            locked = await unit.sales.lock(sale.concert_id)
            assert locked is not None
            await close_sale(unit, locked)
            await unit.commit()

        async def status() -> BookingStatus:
            return (await shop.booking(booking.id)).status

        await until(status, lambda status: status is BookingStatus.CANCELLED)


async def test_every_old_key_is_forgotten_at_once(database: Database) -> None:
    """One more than fit into a batch: none is left for the next round, which is ten minutes away."""
    rows = [
        {"user_id": "ada", "mutation": "m", "key": f"k{n}", "arguments_hash": "h", "claimed_at": PAST}
        for n in range(REAP_MAX + 1)
    ]
    async with database.writers.transaction() as statements:
        await statements.change(idempotency_keys.insert(), rows)
        await statements.commit()

    async def left() -> int:
        async with database.readers.single() as statements:
            (row,) = await statements.rows(select(func.count()).select_from(idempotency_keys))
        return int(row[0])

    async with running_shop(database, FakeProcessor()) as shop, working(shop):
        await until(left, lambda count: count == 0)
