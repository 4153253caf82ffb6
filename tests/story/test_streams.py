"""Streams: the state as it is now, then every later one, whatever happens in between."""

import asyncio
import json
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any

import pytest
import websockets

from domain.base import BookingId, ConcertId
from domain.booking import BookingChanged
from tests.client import (
    PATIENCE_S,
    WATCH_BOOKING,
    WATCH_COUNT,
    WATCH_MINE,
    Api,
    Concert,
    Json,
    Stream,
    recorded,
    ticket_type,
    until_now,
)
from tests.story.world import World, raw

pytestmark = pytest.mark.anyio

BUYERS = 10
ROUNDS_EACH = 10
WATCHERS = 4
# Well formed, and never given out.
NOBODYS_BOOKING = "Qm9va2luZzowMDAwMDAwMC0wMDAwLTAwMDAtMDAwMC0wMDAwMDAwMDAwMDA="


# ---------------------------------------------------------------- no hole
async def test_count_streams_opened_during_a_burst_miss_nothing(world: World) -> None:
    """Whenever it opens: no older than what was committed before, never backwards, and at last the database."""
    concert = await _big_concert(world.admin)
    buyers = await asyncio.gather(*(world.api.new_buyer() for _ in range(BUYERS)))
    async with AsyncExitStack() as stack:
        burst = [asyncio.create_task(_book_and_cancel(buyer, concert)) for buyer in buyers]
        watchers: list[list[Json]] = []
        for task in burst[:WATCHERS]:
            await asyncio.wait([task], timeout=0.1)
            committed = (await _stored_count(world, concert))["version"]
            watching = recorded(world.api.watching(WATCH_COUNT, id=concert.id))
            watchers.append(await stack.enter_async_context(watching))
            await until_now(watchers[-1], lambda seen: len(seen) > 0)
            assert watchers[-1][0]["version"] >= committed
        await asyncio.gather(*burst)
        stored = await _stored_count(world, concert)
        assert stored["held"] == BUYERS and stored["version"] == 1 + BUYERS * (2 * ROUNDS_EACH + 1)
        for seen in watchers:
            await until_now(seen, lambda seen: seen[-1]["version"] == stored["version"])
            assert all(before["version"] < after["version"] for before, after in pairwise(seen))
            assert [count for count in seen if not _adds_up(count)] == []
            assert {name: seen[-1][name] for name in stored} == stored


async def test_my_updates_opened_during_a_burst_miss_nothing(world: World) -> None:
    """Each booking's versions only rise, and the last pushed state of each is the one in the database."""
    concert = await _big_concert(world.admin)
    ann = await world.api.new_buyer()
    async with AsyncExitStack() as stack:
        burst = [asyncio.create_task(_book_and_cancel(ann, concert)) for _ in range(BUYERS)]
        watchers: list[list[Json]] = []
        for task in burst[:WATCHERS]:
            watchers.append(await stack.enter_async_context(recorded(ann.watching(WATCH_MINE))))
            await asyncio.wait([task], timeout=0.1)
        kept = {await task: 1 for task in burst}
        for seen in watchers:
            await until_now(seen, lambda seen: _live(seen) == kept)
            for before, after in pairwise(sorted(seen, key=lambda now: str(now["bookingId"]))):
                # Sorting is stable: the updates of one booking follow each other in the order they came.
                assert before["bookingId"] != after["bookingId"] or before["version"] < after["version"]
            assert all(now["version"] == now["booking"]["version"] for now in seen)


async def test_a_change_told_late_never_takes_an_update_back(world: World) -> None:
    """The relay may tell an old state again: who opened later hears the newest instead."""
    concert = await world.admin.register()
    ann = await world.api.new_buyer()
    booking = await ann.booked(concert)
    booking_id = BookingId(raw(booking["id"]))
    before = (await world.frontrow.deps.reads.my_bookings([booking_id]))[booking_id]
    await ann.cancel(booking["id"])
    await world.outbox_is_empty()
    async with ann.watching(WATCH_MINE) as stream:
        marker = await ann.booked(concert)
        assert (await stream.next())["bookingId"] == marker["id"]
        await world.frontrow.deps.live.announce(BookingChanged(before.booking, before.facts, None, 1))
        await ann.cancel(marker["id"])
        seen = await stream.until(lambda now: now["bookingId"] == marker["id"] and now["isFinal"])
        assert [now["status"] for now in seen if now["bookingId"] == booking["id"]] in ([], ["CANCELLED"])


# ---------------------------------------------------------------- who may watch what
async def test_a_stream_of_somebody_elses_booking_is_refused(world: World) -> None:
    """Foreign, unknown and of another type look alike; without a token nobody is told even that."""
    concert = await world.admin.register()
    ann, bob = await world.api.new_buyer(), await world.api.new_buyer()
    booking = await ann.booked(concert)
    for wrong in (booking["id"], NOBODYS_BOOKING, concert.id):
        assert await _refusal(bob, WATCH_BOOKING, id=wrong) == "NOT_FOUND"
    assert await _refusal(world.api, WATCH_BOOKING, id=booking["id"]) == "UNAUTHENTICATED"
    assert await _refusal(world.api, WATCH_MINE) == "UNAUTHENTICATED"
    assert await _refusal(world.api, WATCH_COUNT, id=booking["id"]) == "NOT_FOUND"
    assert await _refusal(bob, WATCH_BOOKING, id="nonsense") == "BAD_USER_INPUT"


async def test_an_admin_watches_any_booking_to_its_end(world: World) -> None:
    """Every state comes, and the stream completes with the final one; opened after that, with one message."""
    concert = await world.admin.register()
    ann = await world.api.new_buyer()
    booking = await ann.booked(concert)
    async with world.admin.watching(WATCH_BOOKING, id=booking["id"]) as stream:
        assert (await stream.next())["status"] == "AWAITING_PAYMENT"
        await ann.cancel(booking["id"])
        assert (await stream.next())["isFinal"]
        assert (await stream.message())["type"] == "complete"
    async with ann.watching(WATCH_BOOKING, id=booking["id"]) as stream:
        only = await stream.next()
        assert (only["status"], only["isFinal"]) == ("CANCELLED", True)
        assert (await stream.message())["type"] == "complete"


async def test_a_cancelled_booking_streams_until_its_refund_is_done(world: World) -> None:
    """CANCELLED with money on its way is not final: the stream goes on to REFUNDED."""
    concert = await world.admin.register()
    ann = await world.api.new_buyer()
    booking = await ann.booked(concert)
    await ann.pay(booking["id"])
    await world.processor.control(mode="down")
    await ann.cancel(booking["id"])
    async with ann.watching(WATCH_BOOKING, id=booking["id"]) as stream:
        first = await stream.next()
        assert (first["status"], first["paymentStatus"], first["isFinal"]) == (
            "CANCELLED",
            "REFUND_PENDING",
            False,
        )
        await world.processor.control(mode="ok")
        last = (await stream.until(lambda now: now["isFinal"]))[-1]
        assert last["paymentStatus"] == "REFUNDED"
        assert (await stream.message())["type"] == "complete"


async def test_my_updates_open_with_what_changed_since(world: World) -> None:
    """Without `since` all that is not final; with it all changed at or after it, final ones too."""
    concert = await world.admin.register()
    ann, bob = await world.api.new_buyer(), await world.api.new_buyer()
    old, ended, live = [await ann.booked(concert) for _ in range(3)]
    await bob.booked(concert)
    await ann.cancel(ended["id"])
    cancelled = await ann.booking(ended["id"])
    await world.outbox_is_empty()  # what is told late is pushed, final or not
    async with ann.watching(WATCH_MINE) as stream:
        opened = [await stream.next() for _ in range(2)]
        assert {now["bookingId"] for now in opened} == {old["id"], live["id"]}
        marker = await ann.booked(concert)
        assert (await stream.next())["bookingId"] == marker["id"]
    async with ann.watching(WATCH_MINE, since=cancelled["updatedAt"]) as stream:
        opened = [await stream.next() for _ in range(2)]
        assert [(now["bookingId"], now["status"]) for now in opened] == [
            (ended["id"], "CANCELLED"),
            (marker["id"], "AWAITING_PAYMENT"),
        ]
        assert opened[0]["occurredAt"] == cancelled["updatedAt"]


# ---------------------------------------------------------------- sessions
async def test_logging_out_closes_that_sessions_sockets(world: World) -> None:
    """4403 for every socket of the session, and for nobody else's."""
    concert = await world.admin.register()
    ann, bob = await world.api.new_buyer(), await world.api.new_buyer()
    async with (
        ann.watching(WATCH_COUNT, id=concert.id) as counts,
        ann.watching(WATCH_MINE) as mine,
        bob.watching(WATCH_COUNT, id=concert.id) as others,
    ):
        await counts.next()
        await others.next()
        assert (await ann.ask("mutation { logOut { ... on LogOutSuccess { ok } } }"))["ok"]
        assert [await _close_code(counts), await _close_code(mine)] == [4403, 4403]
        await bob.booked(concert)
        assert (await others.next())["held"] == 1
    for token in (ann.token, "unknown"):
        assert await _refused_at_init(world.api.url, token) == 4403


# ---------------------------------------------------------------- helpers
async def _big_concert(admin: Api) -> Concert:
    types = [ticket_type(capacity=500), ticket_type("Balcony", capacity=500)]
    return await admin.register(ticketTypes=types, maxTicketsPerUser=100)


async def _book_and_cancel(buyer: Api, concert: Concert) -> str:
    """Books and cancels again and again, and keeps one booking: its id."""
    for line in (0, 1) * (ROUNDS_EACH // 2):
        booking = await buyer.booked(concert, line=line)
        assert (await buyer.cancel(booking["id"]))["__typename"] == "CancelBookingSuccess"
    return str((await buyer.booked(concert))["id"])


def _live(seen: list[Json]) -> dict[str, int]:
    """The bookings whose last state is not final, with its version."""
    latest = {now["bookingId"]: now for now in seen}
    return {booking_id: now["version"] for booking_id, now in latest.items() if not now["isFinal"]}


def _adds_up(count: Json) -> bool:
    lines = count["ticketTypes"]
    sums = {name: sum(line[name] for line in lines) for name in ("capacity", "available", "held", "sold")}
    return all(
        part["capacity"] == part["available"] + part["held"] + part["sold"] for part in [count, *lines]
    ) and all(count[name] == total for name, total in sums.items())


async def _stored_count(world: World, concert: Concert) -> Json:
    """What the database says, past every read model."""
    (sale,) = (await world.frontrow.deps.reads.sales([ConcertId(raw(concert.id))])).values()
    return {
        "version": sale.version,
        "available": sum(line.available for line in sale.stock),
        "held": sum(line.held for line in sale.stock),
        "sold": sum(line.sold for line in sale.stock),
    }


async def _refusal(api: Api, query: str, **variables: Any) -> str:
    """The code with which a subscription is refused."""
    async with api.watching(query, **variables) as stream:
        message = await stream.message()
        assert message["type"] == "error", message
        (error,) = message["payload"]
        return str(error["extensions"]["code"])


async def _close_code(stream: Stream) -> int | None:
    """The code with which the server closes the socket."""
    async with asyncio.timeout(PATIENCE_S):
        await stream.ws.wait_closed()
    return stream.ws.close_code


async def _refused_at_init(url: str, token: str | None) -> int | None:
    """The code with which the server answers a `connection_init` with this token."""
    ws_url = url.replace("http://", "ws://") + "/graphql"
    async with websockets.connect(
        ws_url, subprotocols=[websockets.Subprotocol("graphql-transport-ws")]
    ) as ws:
        payload = {"authorization": f"Bearer {token}"}
        await ws.send(json.dumps({"type": "connection_init", "payload": payload}))
        return await _close_code(Stream(ws))
