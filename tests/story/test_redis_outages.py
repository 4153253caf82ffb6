"""Redis goes away, stands still or is emptied: selling goes on, and streams find back by themselves."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import pytest

from infra.read_model import differences
from infra.settings import Settings
from tests.client import WATCH_BOOKING, WATCH_COUNT, WATCH_MINE, Api, Concert, Json, Stream, until
from tests.servers import ValkeyServer, running_valkey
from tests.story.world import World, running_world

pytestmark = pytest.mark.anyio

# What is open is at the newest state this long after Redis is back.
BACK_WITHIN_S = 5.0


class Outage:
    """What people do while Redis is away: one books, one pays, one cancels."""

    def __init__(self, ann: Api, concert: Concert, to_pay: str, to_cancel: str) -> None:
        self._ann = ann
        self._concert = concert
        self._to_pay = to_pay
        self._to_cancel = to_cancel
        self.booked = ""

    async def __call__(self) -> None:
        """Everything works."""
        self.booked = (await self._ann.booked(self._concert))["id"]
        assert (await self._ann.pay(self._to_pay))["__typename"] == "PayBookingSuccess"
        assert (await self._ann.cancel(self._to_cancel))["__typename"] == "CancelBookingSuccess"


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    """A server of the test's own, to be mistreated."""
    with running_valkey() as server:
        yield server


@pytest.fixture
async def world(valkey: ValkeyServer, postgres_database_url: str) -> AsyncIterator[World]:
    """A running Frontrow on it."""
    settings = Settings(
        database_url=postgres_database_url, redis_url=valkey.url, demo=False, payment_timeout_ms=20_000
    )
    async with running_world(settings) as running:
        await _read_model_is_right(running)
        yield running


async def test_streams_live_through_a_restart_of_redis(world: World, valkey: ValkeyServer) -> None:
    """Killed and started again, empty: people book and pay meanwhile, and no client has to reconnect."""

    async def outage(while_down: Outage) -> None:
        valkey.kill()
        await while_down()
        valkey.start()

    await _outage_under_streams(world, outage)


async def test_streams_live_through_a_short_standstill_of_redis(world: World, valkey: ValkeyServer) -> None:
    """Frozen and thawed before anyone gives the connection up."""

    async def outage(while_down: Outage) -> None:
        valkey.pause()
        await while_down()
        valkey.resume()

    await _outage_under_streams(world, outage)


async def test_streams_live_through_a_long_standstill_of_redis(world: World, valkey: ValkeyServer) -> None:
    """A half-open connection is found out and given up; what was lost with it is read again."""

    async def is_connected() -> bool:
        return world.frontrow.stream.is_connected

    async def outage(while_down: Outage) -> None:
        valkey.pause()
        await while_down()
        await until(is_connected, lambda so: not so)
        valkey.resume()

    await _outage_under_streams(world, outage)


async def test_an_emptied_redis_is_filled_again(world: World, valkey: ValkeyServer) -> None:
    """Reads come from the database until the read model is complete again; nobody sees a gap."""
    concert = await world.admin.register()
    ann = await world.api.new_buyer()
    bookings = [(await ann.booked(concert))["id"] for _ in range(3)]
    await world.outbox_is_empty()
    for _ in range(3):
        valkey.flush()
        assert await ann.seats(concert) == (7, 3, 0)
        assert [row["bookingId"] for row in await ann.my_rows()] == bookings[::-1]
    await _read_model_is_right(world)


async def test_my_page_and_counts_are_read_while_redis_is_gone(world: World, valkey: ValkeyServer) -> None:
    """Each write shows at once, killed or frozen alike, and the process stays ready."""
    concert = await world.admin.register()
    ann = await world.api.new_buyer()
    for disturb in (valkey.pause, valkey.kill):
        disturb()
        booking = await ann.booked(concert)
        (row, *_) = await ann.my_rows()
        assert (row["bookingId"], row["status"]) == (booking["id"], "AWAITING_PAYMENT")
        assert await ann.seats(concert) == (9, 1, 0)
        await ann.cancel(booking["id"])
        (row, *_) = await ann.my_rows()
        assert (row["status"], row["isFinal"]) == ("CANCELLED", True)
        assert await ann.seats(concert) == (10, 0, 0)
        async with ann.watching(WATCH_COUNT, id=concert.id) as stream:
            assert (await stream.next())["available"] == 10
        assert (await world.api.http.get(f"{world.api.url}/readyz")).status_code == 200


# ---------------------------------------------------------------- helpers
async def _outage_under_streams(world: World, outage: Callable[[Outage], Awaitable[None]]) -> None:
    concert = await world.admin.register()
    ann = await world.api.new_buyer()
    to_pay, to_cancel = [(await ann.booked(concert))["id"] for _ in range(2)]
    while_down = Outage(ann, concert, to_pay, to_cancel)
    async with AsyncExitStack() as stack:
        counts = await stack.enter_async_context(world.api.watching(WATCH_COUNT, id=concert.id))
        mine = await stack.enter_async_context(ann.watching(WATCH_MINE))
        paid = await stack.enter_async_context(ann.watching(WATCH_BOOKING, id=to_pay))
        assert (await counts.next())["held"] == 2
        assert {(await mine.next())["bookingId"] for _ in range(2)} == {to_pay, to_cancel}
        assert (await paid.next())["status"] == "AWAITING_PAYMENT"
        await outage(while_down)
        newest = {while_down.booked: "AWAITING_PAYMENT", to_pay: "APPROVED", to_cancel: "CANCELLED"}
        async with asyncio.timeout(BACK_WITHIN_S):
            seen = await counts.until(lambda now: (now["held"], now["sold"]) == (1, 1))
            assert all(now["available"] + now["held"] + now["sold"] == 10 for now in seen)
            await paid.until(lambda now: now["status"] == "APPROVED")
            await _until_all(mine, newest)
            await _read_model_is_right(world)
        # And they go on from there.
        await ann.cancel(to_pay)
        await counts.until(lambda now: now["available"] == 9)
        await paid.until(lambda now: now["isFinal"])
        assert {row["bookingId"]: row["status"] for row in await ann.my_rows()} == newest | {
            to_pay: "CANCELLED"
        }


async def _until_all(mine: Stream, newest: dict[str, str]) -> None:
    told: dict[str, Json] = {}
    while {booking_id: now["status"] for booking_id, now in told.items()} != newest:
        now = await mine.next()
        assert now["bookingId"] not in told or told[now["bookingId"]]["version"] < now["version"]
        told[now["bookingId"]] = now


async def _read_model_is_right(world: World) -> None:
    """It is complete and says what the database says."""

    async def wrong() -> list[str]:
        try:
            return [line async for line in differences(world.frontrow.read_model, world.frontrow.source)]
        except ConnectionError as error:
            return [str(error)]

    await until(wrong, lambda lines: lines == [])
