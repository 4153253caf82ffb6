"""Named points: harmless until armed, once each, and refused where money is real."""

import asyncio

import pytest

from domain.base import DatabaseAway
from infra.app import composed
from infra.db.unit import Database
from infra.failpoints import Action, Failpoints
from infra.settings import Environment, Settings
from tests.fake_processor import FakeProcessor
from tests.paying import running_shop

pytestmark = pytest.mark.anyio


async def test_without_failpoints_every_door_is_the_real_one(sqlite_database_url: str) -> None:
    """An application that is composed as it ships passes no point."""
    async with composed(Settings(database_url=sqlite_database_url)) as frontrow:
        assert frontrow.deps.write == frontrow.database.write


async def test_production_refuses_failpoints(sqlite_database_url: str) -> None:
    """Nothing may be made to fail where money is real."""
    settings = Settings(database_url=sqlite_database_url, env=Environment.PRODUCTION)
    with pytest.raises(AssertionError, match="production"):
        async with composed(settings, failpoints=Failpoints()):
            pass


async def test_an_armed_point_fails_once_and_leaves_nothing(database: Database) -> None:
    """The error is the door's own, nothing of the transaction stays, and the next try goes through."""
    failpoints = Failpoints()
    async with running_shop(database, FakeProcessor()) as shop:
        shop.deps = failpoints.around(shop.deps)
        sale = await shop.open_sale()
        failpoints.arm("book.commit", Action.ERROR)
        with pytest.raises(DatabaseAway):
            await shop.book(sale)
        assert await shop.seats(sale.concert_id) == (10, 0, 0)
        await shop.book(sale)
        assert await shop.seats(sale.concert_id) == (9, 1, 0)
        assert failpoints.seen["book.commit"] == 2


async def test_a_point_lets_pass_as_often_as_it_is_told(database: Database) -> None:
    """`after` passes go through before the point acts."""
    failpoints = Failpoints()
    async with running_shop(database, FakeProcessor()) as shop:
        shop.deps = failpoints.around(shop.deps)
        sale = await shop.open_sale()
        failpoints.arm("book.commit", Action.ERROR, after=2)
        await shop.book(sale)
        await shop.book(sale)
        with pytest.raises(DatabaseAway):
            await shop.book(sale)


async def test_a_cancel_in_the_middle_leaves_nothing(database: Database) -> None:
    """The task that runs the step is cancelled there, and the transaction is as if it had never been."""
    failpoints = Failpoints()
    async with running_shop(database, FakeProcessor()) as shop:
        shop.deps = failpoints.around(shop.deps)
        sale = await shop.open_sale()
        for point in ("book.bookings.add", "book.outbox.add", "book.commit"):
            failpoints.arm(point, Action.CANCEL)
            with pytest.raises(asyncio.CancelledError):
                await asyncio.create_task(shop.book(sale))
        assert await shop.seats(sale.concert_id) == (10, 0, 0)
        await shop.book(sale)


async def test_what_stands_still_goes_on(database: Database) -> None:
    """A paused step holds its locks, and ends well once it is let go."""
    has_reached = asyncio.Event()
    failpoints = Failpoints(lambda _: has_reached.set())
    async with running_shop(database, FakeProcessor()) as shop:
        shop.deps = failpoints.around(shop.deps)
        sale = await shop.open_sale()
        failpoints.arm("book.commit", Action.PAUSE)
        first = asyncio.create_task(shop.book(sale, "ada"))
        await has_reached.wait()
        second = asyncio.create_task(shop.book(sale, "ben"))
        done, _ = await asyncio.wait([first, second], timeout=0.1)
        assert not done
        failpoints.resume()
        await asyncio.gather(first, second)
        assert await shop.seats(sale.concert_id) == (8, 2, 0)
