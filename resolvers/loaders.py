"""Reads by id, gathered into batches: a page costs the same number of statements however long it is.

Loaders remember what they read, so they live as long as one operation, and a mutation makes them forget.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Generic, TypeVar

from strawberry.dataloader import DataLoader

from domain.base import BookingId, ConcertId, PaymentId, TicketTypeId, UserId
from domain.booking import Booking, Sale
from domain.concert import Concert, TicketType
from domain.my_page import MyBooking
from domain.payment import Payment
from domain.ports import Deps
from domain.use_cases.my_page import live_sales
from domain.user import User

K = TypeVar("K")
V = TypeVar("V")

# As long as the longest page, so that a page is one batch and aliases can't make a statement of any size.
BATCH_MAX = 100


class Loaders:
    """One operation's loaders. Each answers None where there is no such thing."""

    def __init__(self, deps: Deps) -> None:
        reads = deps.reads
        self._users = _Loader(reads.users)
        self._concerts = _Loader(reads.concerts)
        self._ticket_types = _Loader(reads.ticket_types)
        self._ticket_types_of = _Loader(reads.ticket_types_of)
        self._sales = _Loader(partial(live_sales, deps))
        self._bookings = _Loader(reads.bookings)
        self._payments = _Loader(reads.payments)
        self._my_bookings = _Loader(reads.my_bookings)

    def user(self, user_id: UserId) -> Awaitable[User | None]:
        """A person."""
        return self._users.load(user_id)

    def concert(self, concert_id: ConcertId) -> Awaitable[Concert | None]:
        """The catalogue's entry."""
        return self._concerts.load(concert_id)

    def ticket_type(self, ticket_type_id: TicketTypeId) -> Awaitable[TicketType | None]:
        """The catalogue's ticket type."""
        return self._ticket_types.load(ticket_type_id)

    async def ticket_types_of(self, concert_id: ConcertId) -> Sequence[TicketType]:
        """A concert's ticket types in the order registered."""
        return await self._ticket_types_of.load(concert_id) or ()

    def sale(self, concert_id: ConcertId) -> Awaitable[Sale | None]:
        """The live count."""
        return self._sales.load(concert_id)

    def booking(self, booking_id: BookingId) -> Awaitable[Booking | None]:
        """A booking, whoever's it is."""
        return self._bookings.load(booking_id)

    def payment(self, payment_id: PaymentId) -> Awaitable[Payment | None]:
        """An attempt, whoever's it is."""
        return self._payments.load(payment_id)

    def my_booking(self, booking_id: BookingId) -> Awaitable[MyBooking | None]:
        """A row of my page, whoever's it is."""
        return self._my_bookings.load(booking_id)

    def forget(self) -> None:
        """Nothing read before this is answered again."""
        self._users.forget()
        self._concerts.forget()
        self._ticket_types.forget()
        self._ticket_types_of.forget()
        self._sales.forget()
        self._bookings.forget()
        self._payments.forget()
        self._my_bookings.forget()


class _Loader(Generic[K, V]):
    """Made by its first use: an operation needs one or two of them, or none."""

    __slots__ = ("_loader", "_read")

    def __init__(self, read: Callable[[Collection[K]], Awaitable[Mapping[K, V]]]) -> None:
        self._read = read
        self._loader: DataLoader[K, V | None] | None = None

    def load(self, key: K) -> Awaitable[V | None]:
        """Read it with all that is asked for in the same turn of the event loop."""
        if self._loader is None:
            self._loader = DataLoader(load_fn=partial(_load, self._read), max_batch_size=BATCH_MAX)
        return self._loader.load(key)

    def forget(self) -> None:
        """Nothing read before is answered again."""
        if self._loader is not None:
            self._loader.clear_all()


async def _load(read: Callable[[Collection[K]], Awaitable[Mapping[K, V]]], keys: list[K]) -> list[V | None]:
    found = await read(keys)
    return [found.get(key) for key in keys]
