"""The doors to those who listen: the bus between processes, and what is said on it."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from domain.base import ConcertId, UserId
from domain.booking import BookingChanged, Sale, SaleChanged
from domain.my_page import MyBooking


@dataclass(frozen=True, slots=True)
class Message:
    """One announcement. The newest `version` of a `key` replaces older ones that a listener has not read yet."""

    key: str
    version: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Resync:
    """Announcements may have been lost: read a fresh snapshot."""


class Listener(Protocol):
    """One subscriber's view of one channel: at most one waiting Message per key, and at most one waiting Resync."""

    def __aiter__(self) -> AsyncIterator[Message | Resync]:
        """Wait for what comes next. A Resync comes before any Message that waits."""
        ...


class EventStream(Protocol):
    """Announcements to everyone who listens on a channel, in every process."""

    async def publish(self, channel: str, message: Message) -> None:
        """Announce to whoever listens now. Raises: ConnectionError where the bus is down; the caller tries again."""
        ...

    def listen(self, channel: str) -> AbstractAsyncContextManager[Listener]:
        """Registered with the bus on entry (acknowledged), so that a snapshot read afterwards leaves no hole.

        Entering never fails because the bus is down: the listener is then given a Resync once it is back.
        """
        ...


class LiveUpdates(Protocol):
    """What subscribers hear: whole states, on one channel per concert and one per buyer."""

    async def announce(self, event: BookingChanged | SaleChanged) -> None:
        """Tell the buyer, and everyone who watches the concert. Raises: ConnectionError where the bus is down."""
        ...

    def listen_sale(self, concert_id: ConcertId) -> AbstractAsyncContextManager[AsyncIterator[Sale | Resync]]:
        """Registered on entry; then the newest state not seen yet, or Resync after a lost connection."""
        ...

    def listen_buyer(self, user_id: UserId) -> AbstractAsyncContextManager[AsyncIterator[MyBooking | Resync]]:
        """Registered on entry; then the newest state of each booking not seen yet, or Resync."""
        ...
