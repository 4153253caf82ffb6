"""A thousand subscribers are one question to the database, however they come (issue 3, promise 11)."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest

from domain.base import ConcertId
from domain.booking import Sale
from domain.ports import Deps
from domain.use_cases.my_page import watch_sale
from infra.db.unit import Database
from infra.event_stream import redis_event_stream
from infra.live_updates import StreamedUpdates
from infra.settings import Settings
from tests.client import WATCH_COUNT, recorded, until_now
from tests.db_world import recorded as recorded_sql
from tests.fake_processor import FakeProcessor
from tests.paying import Shop, running_shop
from tests.servers import ValkeyServer
from tests.story.world import raw, running_world
from tests.test_event_stream.reading import HEARTBEAT_S, until_connected

pytestmark = pytest.mark.anyio

SUBSCRIBERS = 1_000
SOCKETS = 100
# Promised are 5 s; a busy machine is given more.
CAUGHT_UP_WITHIN_S = 15.0
# All that ask while one read is under way share the next.
READS_MAX = 2


@dataclass
class Crowd:
    """Subscribers of one concert, and what each of them was told."""

    concert_id: ConcertId
    heard: list[list[Sale]]

    async def subscribe(self, deps: Deps, number: int) -> None:
        """One of them, for ever."""
        async for sale in watch_sale(deps, self.concert_id):
            self.heard[number].append(sale)

    async def all_have(self, sale: Sale) -> None:
        """Everybody's newest is this state, and nobody was ever taken back."""
        async with asyncio.timeout(CAUGHT_UP_WITHIN_S):
            while any(seen[-1:] != [sale] for seen in self.heard):  # noqa: ASYNC110 - a list sets no event
                await asyncio.sleep(0.005)
        for seen in self.heard:
            assert all(before.version < after.version for before, after in pairwise(seen))


@asynccontextmanager
async def subscribed(deps: Deps, *sales: Sale, each: int) -> AsyncIterator[list[Crowd]]:
    """So many subscribers of each concert until the block ends, all of whom came in the same moment."""
    crowds = [Crowd(sale.concert_id, [[] for _ in range(each)]) for sale in sales]
    tasks = [asyncio.create_task(crowd.subscribe(deps, n)) for crowd in crowds for n in range(each)]
    try:
        yield crowds
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@contextmanager
def counted_reads(database: Database, *concert_ids: str) -> Iterator[Counter[str]]:
    """How often the count of each concert is read by its id meanwhile; complete when the block has ended."""
    counts: Counter[str] = Counter()
    with recorded_sql(database) as statements:
        yield counts
    for sql, parameters in statements:
        if sql.startswith("SELECT") and "FROM sales" in sql:
            counts.update(concert_id for concert_id in concert_ids if concert_id in repr(parameters))


@asynccontextmanager
async def running_concerts(
    database: Database, valkey: ValkeyServer
) -> AsyncIterator[tuple[Shop, list[Sale]]]:
    """Two concerts that sell, and streams of their counts over Valkey."""
    async with AsyncExitStack() as stack:
        shop = await stack.enter_async_context(running_shop(database, FakeProcessor()))
        stream = await stack.enter_async_context(redis_event_stream(valkey.url, heartbeat_s=HEARTBEAT_S))
        await until_connected(stream, True)
        shop.deps = replace(shop.deps, live=StreamedUpdates(stream))
        yield shop, [await shop.open_sale(), await shop.open_sale()]


async def test_a_thousand_subscribers_who_come_together_are_one_snapshot(
    database: Database, valkey: ValkeyServer
) -> None:
    """Of each concert; so are those who come back together after they all have left."""
    async with running_concerts(database, valkey) as (shop, sales):
        ids = [sale.concert_id for sale in sales]
        for _ in range(2):
            with counted_reads(database, *ids) as reads:
                async with subscribed(shop.deps, *sales, each=SUBSCRIBERS // 2) as crowds:
                    for crowd, sale in zip(crowds, sales, strict=True):
                        await crowd.all_have(sale)
            assert set(reads) == set(ids) and max(reads.values()) <= READS_MAX


async def test_a_thousand_subscribers_who_lose_redis_are_one_snapshot(
    database: Database, valkey: ValkeyServer
) -> None:
    """Killed and started again: what was booked meanwhile, and told nobody, is read once for all of them."""
    async with running_concerts(database, valkey) as (shop, sales):
        ids = [sale.concert_id for sale in sales]
        async with subscribed(shop.deps, *sales, each=SUBSCRIBERS // 2) as crowds:
            for crowd, sale in zip(crowds, sales, strict=True):
                await crowd.all_have(sale)
            valkey.kill()
            for sale in sales:
                await shop.book(sale)
            booked = [await shop.sale(sale.concert_id) for sale in sales]
            with counted_reads(database, *ids) as reads:
                valkey.start()
                for crowd, sale in zip(crowds, booked, strict=True):
                    await crowd.all_have(sale)
        assert set(reads) == set(ids) and max(reads.values()) <= READS_MAX


async def test_a_thousand_subscribers_who_come_while_redis_is_away_are_two_snapshots(
    database: Database, valkey: ValkeyServer
) -> None:
    """One to open with, and one when Redis is back and tells what it could not tell before."""
    async with running_concerts(database, valkey) as (shop, (sale, _)):
        valkey.kill()
        with counted_reads(database, sale.concert_id) as reads:
            async with subscribed(shop.deps, sale, each=SUBSCRIBERS) as (crowd,):
                await crowd.all_have(sale)
        assert reads[sale.concert_id] <= READS_MAX
        async with subscribed(shop.deps, sale, each=SUBSCRIBERS) as (crowd,):
            await crowd.all_have(sale)
            await shop.book(sale)
            booked = await shop.sale(sale.concert_id)
            with counted_reads(database, sale.concert_id) as reads:
                valkey.start()
                await crowd.all_have(booked)
        assert 1 <= reads[sale.concert_id] <= READS_MAX


async def test_a_hundred_sockets_that_lose_redis_are_one_snapshot(
    postgres_database_url: str, valkey: ValkeyServer
) -> None:
    """Over the public endpoint too; nobody has to connect again."""
    settings = Settings(database_url=postgres_database_url, redis_url=valkey.url, demo=False)
    async with running_world(settings) as world, AsyncExitStack() as stack:
        concert = await world.admin.register()
        buyer = await world.api.new_buyer()
        watching = [recorded(world.api.watching(WATCH_COUNT, id=concert.id)) for _ in range(SOCKETS)]
        sockets = await asyncio.gather(*(stack.enter_async_context(each) for each in watching))
        for seen in sockets:
            await until_now(seen, lambda seen: len(seen) == 1)
        valkey.kill()
        await buyer.booked(concert)
        with counted_reads(world.frontrow.database, raw(concert.id)) as reads:
            valkey.start()
            for seen in sockets:
                await until_now(seen, lambda seen: [now["held"] for now in seen] == [0, 1])
        assert 1 <= reads[raw(concert.id)] <= READS_MAX
