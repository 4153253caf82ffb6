"""The doors to what is read: the write side's tables, and the read model."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from domain.base import BookingId, ConcertId, Page, PageQuery, PaymentId, SessionId, TicketTypeId, UserId
from domain.booking import Booking, BookingChanged, BookingStatus, Sale, SaleChanged
from domain.concert import Concert, ConcertFilter, ConcertOrder, TicketType
from domain.my_page import MyBooking, MyPageView
from domain.payment import Payment
from domain.user import User, Viewer


class Reads(Protocol):
    """Reads of the write side, each on a connection of its own and in one consistent snapshot.

    Batch reads answer for the ids that exist. Raises: Unavailable where the catalogue's tables can't be read.
    """

    async def now(self) -> datetime:
        """The database's clock."""
        ...

    async def viewer(self, token_hash: bytes) -> Viewer | None:
        """Who holds this token; None where it is unknown or ended."""
        ...

    async def live_sessions(self, session_ids: Collection[SessionId]) -> set[SessionId]:
        """Those that have not ended."""
        ...

    async def users(self, ids: Collection[UserId]) -> Mapping[UserId, User]:
        """People by id."""
        ...

    async def concerts(self, ids: Collection[ConcertId]) -> Mapping[ConcertId, Concert]:
        """Catalogue entries by id."""
        ...

    async def concert_page(
        self, query: PageQuery, *, where: ConcertFilter, order: ConcertOrder
    ) -> Page[Concert]:
        """A page of the catalogue; the key of a row is `concert_page_key`."""
        ...

    async def concert_total(self, where: ConcertFilter) -> int:
        """How many entries the filter leaves."""
        ...

    async def ticket_types(self, ids: Collection[TicketTypeId]) -> Mapping[TicketTypeId, TicketType]:
        """Ticket types by id."""
        ...

    async def ticket_types_of(self, ids: Collection[ConcertId]) -> Mapping[ConcertId, Sequence[TicketType]]:
        """Ticket types by concert, in the order registered."""
        ...

    async def sales(self, ids: Collection[ConcertId]) -> Mapping[ConcertId, Sale]:
        """Sales with their stock by concert."""
        ...

    async def bookings(self, ids: Collection[BookingId]) -> Mapping[BookingId, Booking]:
        """Bookings with their items by id."""
        ...

    async def booked_concerts(self, ids: Collection[BookingId]) -> Mapping[BookingId, ConcertId]:
        """The concerts of bookings, by booking: what never changes, without the rest."""
        ...

    async def payments(self, ids: Collection[PaymentId]) -> Mapping[PaymentId, Payment]:
        """Attempts by id."""
        ...

    async def my_bookings(self, ids: Collection[BookingId]) -> Mapping[BookingId, MyBooking]:
        """Rows of my page by booking."""
        ...

    async def my_page_version(self, user_id: UserId) -> int:
        """The buyer's version; 0 before the first booking."""
        ...

    async def my_page(
        self, user_id: UserId, query: PageQuery, *, statuses: frozenset[BookingStatus] | None
    ) -> MyPageView:
        """The buyer's page, newest first; the key of a row is `my_page_key`."""
        ...

    async def my_changes(self, user_id: UserId, *, since: datetime | None, limit: int) -> Sequence[MyBooking]:
        """The buyer's bookings changed at or after `since`, or all that are not final; oldest change first."""
        ...


class ReadModel(Protocol):
    """My page and the live counts, in Redis or in memory. Thrown away and rebuilt at will.

    Raises: ConnectionError where the store can't be reached. None means not complete: read the database.
    """

    async def project(self, events: Sequence[BookingChanged | SaleChanged]) -> None:
        """Set what the events say. Idempotent; the newest version wins in any order."""
        ...

    async def sales(self, ids: Collection[ConcertId]) -> Mapping[ConcertId, Sale] | None:
        """Live counts by concert, in one round trip."""
        ...

    async def my_page(
        self, user_id: UserId, query: PageQuery, *, statuses: frozenset[BookingStatus] | None
    ) -> MyPageView | None:
        """The buyer's page, in one round trip."""
        ...
