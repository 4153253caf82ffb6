"""Whole visits, from looking to owning a ticket, as the crowd's process plays them."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import websockets

from bench.crowd import outcome
from bench.questions import MY_PAGE, WATCH_MINE, booking, paying
from bench.shop import Ticket, token_of
from bench.wire import Talk, numbered, post

STEPS = ("watch", "book", "pay", "told", "my page")
PATIENCE_S = 30.0


@dataclass(frozen=True)
class Visits:
    """What buyers come for, counted from `first_buyer`, a number of `people` at a time."""

    port: int
    ticket: Ticket
    people: int
    seconds: float
    warm_up_s: float
    first_buyer: int


@dataclass
class Visited:
    """What they lived through. `came` and `right` count from the start, all else after warming up."""

    came: int = 0
    right: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    steps_ms: list[dict[str, float]] = field(default_factory=list)


class WentWrong(Exception):
    """A step did not end as it should; the text is its outcome."""


async def visiting(visits: Visits) -> Visited:
    """All visits."""
    seen = Visited()
    measured_from_s = time.perf_counter() + visits.warm_up_s
    ends_s = measured_from_s + visits.seconds

    async def person() -> None:
        talk = Talk(visits.port)
        while time.perf_counter() < ends_s:
            number = visits.first_buyer + seen.came
            seen.came += 1
            try:
                async with asyncio.timeout(PATIENCE_S):
                    steps_ms = await visit(talk, visits, number)
            except (WentWrong, TimeoutError, ConnectionError, websockets.ConnectionClosed) as error:
                seen.failed[str(error) or type(error).__name__] += 1
                continue
            seen.right += 1
            if measured_from_s <= time.perf_counter() < ends_s:
                seen.steps_ms.append(steps_ms)
        talk.close()

    await asyncio.gather(*(person() for _ in range(visits.people)))
    return seen


async def visit(talk: Talk, visits: Visits, number: int) -> dict[str, float]:
    """One, and what each step took, milliseconds. Raises: WentWrong."""
    token = token_of(f"{number:012d}")
    took_ms: dict[str, float] = {}
    began_s = time.perf_counter()

    def step(name: str) -> None:
        nonlocal began_s
        now_s = time.perf_counter()
        took_ms[name] = 1_000 * (now_s - began_s)
        began_s = now_s

    async with watching_mine(visits.port, token) as told:
        step("watch")
        body = await answered(
            talk, numbered(booking(visits.ticket), number), "bookConcert", "BookConcertSuccess"
        )
        booking_id = body["booking"]["id"]
        step("book")
        await answered(talk, post(paying(booking_id), token=token), "payBooking", "PayBookingSuccess")
        step("pay")
        await until_approved(told, booking_id)
        step("told")
        page = await answered(talk, post({"query": MY_PAGE}, token=token), "myPage", "MyPage")
        step("my page")
    rows = [(edge["node"]["bookingId"], edge["node"]["status"]) for edge in page["bookings"]["edges"]]
    if rows != [(booking_id, "APPROVED")]:
        raise WentWrong(f"my page shows {rows}")
    return took_ms


async def answered(talk: Talk, request: bytes, field_name: str, wanted: str) -> dict[str, Any]:
    """The field's value, which is of the wanted type. Raises: WentWrong."""
    status, body = await talk.ask(request)
    found = outcome(status, body, field_name)
    if found != wanted:
        raise WentWrong(f"{field_name}: {found}")
    value: dict[str, Any] = orjson.loads(body)["data"][field_name]
    return value


@asynccontextmanager
async def watching_mine(port: int, token: str) -> AsyncIterator[websockets.ClientConnection]:
    """A socket that is acknowledged and has asked to be told."""
    protocol = websockets.Subprotocol("graphql-transport-ws")
    async with websockets.connect(f"ws://127.0.0.1:{port}/graphql", subprotocols=[protocol]) as socket:
        init = {"type": "connection_init", "payload": {"authorization": f"Bearer {token}"}}
        await socket.send(json.dumps(init))
        assert json.loads(await socket.recv())["type"] == "connection_ack"
        subscribe = {"id": "1", "type": "subscribe", "payload": {"query": WATCH_MINE}}
        await socket.send(json.dumps(subscribe))
        yield socket


async def until_approved(socket: websockets.ClientConnection, booking_id: str) -> None:
    """The booking's push says so. Raises: WentWrong."""
    while True:
        message = orjson.loads(await socket.recv())
        if message["type"] != "next" or "errors" in message["payload"]:
            raise WentWrong(f"told: {message['type']}")
        update = message["payload"]["data"]["myBookingUpdates"]
        if update["bookingId"] == booking_id and update["status"] == "APPROVED":
            return
