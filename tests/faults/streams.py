"""Subscribers whose every message is recorded; they come back by themselves when their socket is cut."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import websockets
from sqlalchemy import select

from domain.base import DomainError
from infra.db.tables import bookings, sales
from infra.db.unit import Database
from schema.common import Kind as IdKind
from schema.common import encode_id
from tests.client import WATCH_BOOKING, WATCH_COUNT, Api, Json
from tests.faults.buyers import raw
from tests.faults.history import Heard, Mark, Recording, StockRow

RECONNECT_S = 0.1
NAP_S = 0.02


@asynccontextmanager
async def recorded_count(apis: Sequence[Api], concert_id: str) -> AsyncIterator[Recording]:
    """A concert's live count, at the API processes in turn, until the block ends."""
    recording = Recording(f"count of {concert_id}", (concert_id,))
    variables = {"id": encode_id(IdKind.CONCERT, concert_id)}
    async with _recording(apis, recording, WATCH_COUNT, variables, heard_count):
        yield recording


@asynccontextmanager
async def recorded_booking(apis: Sequence[Api], booking_id: str) -> AsyncIterator[Recording]:
    """A booking's status, as its owner (each of `apis` is signed in) sees it, until the block ends or it is final."""
    recording = Recording(f"status of {booking_id}", (booking_id,))
    variables = {"id": encode_id(IdKind.BOOKING, booking_id)}
    async with _recording(apis, recording, WATCH_BOOKING, variables, heard_booking):
        yield recording


def heard_count(message: Json) -> Heard:
    """A TicketCount as it came."""
    lines = message["ticketTypes"]
    return Heard(
        at_s=time.monotonic(),
        subject_id=raw(message["concertId"]),
        version=message["version"],
        stock=tuple(
            StockRow(raw(line["ticketTypeId"]), line["capacity"], line["held"], line["sold"])
            for line in lines
        ),
        available=tuple((raw(line["ticketTypeId"]), line["available"]) for line in lines),
        available_in_all=message["available"],
    )


def heard_booking(message: Json) -> Heard:
    """A BookingUpdate as it came."""
    return Heard(
        at_s=time.monotonic(),
        subject_id=raw(message["bookingId"]),
        version=message["version"],
        status=message["status"],
    )


async def up_to_date(recording: Recording, database: Database, *, patience_s: float = 10.0) -> float:
    """The recording has the newest version of each of its subjects, or patience is over; how long that took.

    Raises nothing where it is over: that is the checker's to say.
    """
    began_s = time.monotonic()
    while time.monotonic() - began_s < patience_s:
        try:
            newest = await _newest(database, recording.subject_ids)
        except DomainError:
            newest = dict.fromkeys(recording.subject_ids, 1 << 31)  # not to be known now
        heard = recording.versions
        if all(heard.get(subject_id, 0) >= version for subject_id, version in newest.items()):
            break
        await asyncio.sleep(NAP_S)
    return time.monotonic() - began_s


async def _newest(database: Database, ids: Sequence[str]) -> dict[str, int]:
    async with database.patient_readers.transaction() as statements:
        of_sales = await statements.rows(
            select(sales.c.concert_id, sales.c.version).where(sales.c.concert_id.in_(ids))
        )
        of_bookings = await statements.rows(
            select(bookings.c.id, bookings.c.version).where(bookings.c.id.in_(ids))
        )
    return {row[0]: row[1] for row in (*of_sales, *of_bookings)}


@asynccontextmanager
async def _recording(
    apis: Sequence[Api],
    recording: Recording,
    query: str,
    variables: Json,
    understood: Callable[[Json], Heard],
) -> AsyncIterator[None]:
    async def listen() -> None:
        turn = 0
        while True:
            try:
                if await _heard_to_its_end(apis[turn % len(apis)], recording, query, variables, understood):
                    return
            except (OSError, TimeoutError, AssertionError, websockets.WebSocketException):
                pass  # cut, or refused by a process on its way up or down
            turn += 1
            await asyncio.sleep(RECONNECT_S)

    listening = asyncio.create_task(listen(), name=recording.name)
    try:
        yield
    finally:
        listening.cancel()
        await asyncio.wait([listening])
    if not listening.cancelled():
        listening.result()


async def _heard_to_its_end(
    api: Api, recording: Recording, query: str, variables: Json, understood: Callable[[Json], Heard]
) -> bool:
    """Whether the stream was completed, rather than cut."""
    async with api.watching(query, **variables) as stream:
        recording.mark(Mark.CONNECTED)
        while True:
            try:
                message = await stream.message()
            except TimeoutError:
                continue  # nothing to say for a while
            if message["type"] == "complete":
                return True
            if message["type"] != "next" or "errors" in message["payload"]:
                return False
            recording.entries.append(understood(next(iter(message["payload"]["data"].values()))))
