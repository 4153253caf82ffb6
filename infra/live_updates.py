"""What subscribers hear: domain states over the event stream, one channel per concert and one per buyer."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from typing import TypeVar

from domain.base import ConcertId, UserId
from domain.booking import BookingChanged, Sale, SaleChanged
from domain.my_page import MyBooking
from domain.ports import EventStream, Listener, Message, Resync
from infra.codec import decode, encode

T = TypeVar("T")

# An announcement reaches all its listeners here at about the same time: they share one decoding.
DECODED_MAX = 1_024


class StreamedUpdates:
    """The port `LiveUpdates` over any `EventStream`."""

    def __init__(self, stream: EventStream) -> None:
        self._stream = stream
        self._sale = lru_cache(maxsize=DECODED_MAX)(partial(decode, Sale))
        self._my_booking = lru_cache(maxsize=DECODED_MAX)(partial(decode, MyBooking))

    async def announce(self, event: BookingChanged | SaleChanged) -> None:
        """Tell the buyer, and everyone who watches the concert. Raises: ConnectionError where the bus is down."""
        if isinstance(event, BookingChanged):
            row = MyBooking(event.booking, event.facts)
            said = Message(event.booking.id, event.booking.version, encode(row))
            await self._stream.publish(_buyer(event.booking.user_id), said)
        if event.sale is not None:
            said = Message("sale", event.sale.version, encode(event.sale))
            await self._stream.publish(_concert(event.sale.concert_id), said)

    @asynccontextmanager
    async def listen_sale(self, concert_id: ConcertId) -> AsyncIterator[AsyncIterator[Sale | Resync]]:
        """Registered on entry; then the newest count not seen yet, or Resync."""
        async with self._stream.listen(_concert(concert_id)) as listener:
            yield _read(listener, self._sale)

    @asynccontextmanager
    async def listen_buyer(self, user_id: UserId) -> AsyncIterator[AsyncIterator[MyBooking | Resync]]:
        """Registered on entry; then the newest state of each booking not seen yet, or Resync."""
        async with self._stream.listen(_buyer(user_id)) as listener:
            yield _read(listener, self._my_booking)


async def _read(listener: Listener, decoded: Callable[[bytes], T]) -> AsyncIterator[T | Resync]:
    async for said in listener:
        yield said if isinstance(said, Resync) else _understood(said.body, decoded)


def _understood(body: bytes, decoded: Callable[[bytes], T]) -> T | Resync:
    """What an announcement says. One of another release may not be readable here: the database is."""
    try:
        return decoded(body)
    except ValueError:
        return Resync()


def _concert(concert_id: ConcertId) -> str:
    return f"concert:{concert_id}"


def _buyer(user_id: UserId) -> str:
    return f"user:{user_id}"
