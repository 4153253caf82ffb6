"""The worker: what it does without being asked, and that no part of it waits for another."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, cast

import pytest
from sqlalchemy import select

from domain.base import BookingId
from domain.booking import BookingStatus, Sale
from domain.payment import NotSent
from domain.use_cases.booking import close_sale
from infra.db.checks import PromiseChecks
from infra.db.source import WriteSideSource
from infra.db.tables import idempotency_keys, webhook_events
from infra.db.unit import Database
from infra.failpoints import Action, Failpoints
from infra.read_model import MemoryReadModel
from infra.telemetry import Metrics
from infra.throttle import REST_FIRST_S, Throttle
from infra.verifier import Verifier
from infra.worker import REAP_MAX, Worker
from tests.client import until
from tests.fake_processor import Failure, FakeProcessor, lost
from tests.paying import PAST, Shop, running_shop

pytestmark = pytest.mark.anyio


class _Nobody:
    """Nobody listens."""

    async def announce(self, event: object) -> None:
        """Unheard."""


@asynccontextmanager
async def working(shop: Shop, *, throttle: Throttle | None = None) -> AsyncIterator[None]:
    """A worker is at work until the block ends."""
    model = MemoryReadModel()
    deps = replace(shop.deps, read_model=model, live=cast(Any, _Nobody()))
    worker = Worker(
        deps,
        shop.database.outbox,
        read_model=model,
        source=WriteSideSource(shop.database),
        name="w",
        metrics=Metrics(),
        throttle=throttle or Throttle(max_in_flight=10, per_s=1_000),
        verifier=Verifier(deps, PromiseChecks(shop.database), worker="w", slice_rows=100, pause_s=0.1),
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
        await call_off(shop, sale)

        async def status() -> BookingStatus:
            return (await shop.booking(booking.id)).status

        await until(status, lambda status: status is BookingStatus.CANCELLED)


async def test_a_mass_refund_asks_the_processor_politely(database: Database) -> None:
    """At most three refunds at once; after a 429 nobody asks for a while; in the end each was made once."""
    processor = FakeProcessor()
    inside, most, asked_at_s = 0, 0, list[float]()

    async def step(moment: str, _: BookingId) -> None:
        nonlocal inside, most
        if moment == "refund":
            asked_at_s.append(time.monotonic())
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.01)
            inside -= 1

    processor.step = step
    async with running_shop(database, processor) as shop:
        sale = await shop.open_sale(capacity=20)
        for n in range(20):
            await shop.pay(await shop.book(sale, f"buyer-{n}"))
        await call_off(shop, sale)
        processor.order("refund", Failure(NotSent("429", retry_after_ms=1), happens=False))
        async with working(shop, throttle=Throttle(max_in_flight=3, per_s=1_000)):
            await until(shop.unsettled, lambda left: left == (0, 0))
    assert most <= 3
    assert len(asked_at_s) == 21
    # Up to two more were asked for before the refusal was heard.
    assert max(later - earlier for earlier, later in pairwise(asked_at_s[:4])) >= REST_FIRST_S
    assert [entry.refunds for entry in processor.entries.values()] == [1] * 20


async def test_a_payment_does_not_wait_for_the_lease_of_a_look_in_vain(database: Database) -> None:
    """The database went away under the look, before the next one was noted: it comes once the database is back."""
    processor, points = FakeProcessor(), Failpoints()
    processor.order("confirm", lost(happens=True))
    async with running_shop(database, processor) as shop:
        booking = await shop.book(await shop.open_sale())
        await shop.pay(booking)
        lost_commits = {"settle.commit", "reconcile.look_again.commit"}
        for point in lost_commits:
            points.arm(point, Action.ERROR)
        async with working(replace(shop, deps=points.around(shop.deps))):

            async def status() -> BookingStatus:
                return (await shop.booking(booking.id)).status

            await until(status, lambda status: status is BookingStatus.APPROVED)
        assert lost_commits <= points.seen.keys()


async def call_off(shop: Shop, sale: Sale) -> None:
    """Nothing of it sells any more, and the worker cancels what was sold."""
    async with shop.database.write() as unit:
        locked = await unit.sales.lock(sale.concert_id)
        assert locked is not None
        await close_sale(unit, locked)
        await unit.commit()


async def test_what_is_old_enough_is_forgotten_at_once(database: Database) -> None:
    """Keys after 72 h and webhooks after a week, one more than fit into a batch: the next round is ten minutes away."""
    now = datetime.now(UTC)
    old = range(REAP_MAX + 1)
    keys = [("old", PAST)] * len(old) + [("kept", now - timedelta(hours=71))]
    webhooks = [("old", PAST)] * len(old) + [("kept", now - timedelta(days=6))]
    a_row = {"user_id": "ada", "mutation": "m", "arguments_hash": "h"}
    async with database.writers.transaction() as statements:
        await statements.change(
            idempotency_keys.insert(),
            [a_row | {"key": f"{name}-{n}", "claimed_at": at} for n, (name, at) in enumerate(keys)],
        )
        await statements.change(
            webhook_events.insert(),
            [{"event_id": f"{name}-{n}", "received_at": at} for n, (name, at) in enumerate(webhooks)],
        )
        await statements.commit()

    async def left() -> list[str]:
        async with database.readers.single() as statements:
            rows = await statements.rows(
                select(idempotency_keys.c.key).union_all(select(webhook_events.c.event_id))
            )
        return [row[0] for row in rows]

    async with running_shop(database, FakeProcessor()) as shop, working(shop):
        kept = await until(left, lambda names: len(names) == 2)
    assert kept == [f"kept-{len(old)}"] * 2
