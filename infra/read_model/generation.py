"""What a read model is filled with, and the doors through which a rebuild fills it."""

from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from typing import Protocol, TypeVar

from domain.base import ConcertId, PageKey, UserId
from domain.booking import Booking, BookingChanged, ConcertFacts, Sale, SaleChanged
from domain.ports import ReadModel

_Versioned = TypeVar("_Versioned", Sale, ConcertFacts, Booking)


@dataclass(frozen=True, slots=True)
class BuyerSnapshot:
    """All of one buyer in one consistent snapshot. `version` counts their changes; bookings in any order."""

    user_id: UserId
    version: int
    bookings: Sequence[Booking]


@dataclass(frozen=True, slots=True)
class BuyerDigest:
    """All of one buyer in one consistent snapshot, digested: `infra.read_model.documents.digest_of`."""

    user_id: UserId
    digest: str


class Source(Protocol):
    """The write side from end to end. Each batch is a consistent snapshot, taken when it is asked for."""

    def sales(self) -> AsyncIterator[Sequence[Sale]]:
        """Every sale once."""
        ...

    def buyers(self) -> AsyncIterator[Sequence[BuyerSnapshot]]:
        """Every buyer whose version is above 0, once."""
        ...

    def digests(self) -> AsyncIterator[Sequence[BuyerDigest]]:
        """The same buyers."""
        ...

    async def buyers_of(self, ids: Sequence[UserId]) -> Sequence[BuyerSnapshot]:
        """These of them."""
        ...

    async def unknown_sales(self, ids: Sequence[ConcertId]) -> Sequence[ConcertId]:
        """Those of which there is no sale."""
        ...

    async def unknown_buyers(self, ids: Sequence[UserId]) -> Sequence[UserId]:
        """Those of which there is no buyer."""
        ...


@dataclass(frozen=True, slots=True)
class Batch:
    """Values to set, at most one for each thing.

    `changes` are single steps of a buyer's version; `versions` say that every step up to there is in.
    """

    sales: Sequence[Sale] = ()
    facts: Sequence[ConcertFacts] = ()
    bookings: Sequence[Booking] = ()
    changes: Sequence[tuple[UserId, int]] = ()
    versions: Sequence[tuple[UserId, int]] = ()


class GenerationLost(Exception):
    """This attempt is void: somebody else fills the read model now, or it was emptied or restarted."""


class Generation(Protocol):
    """A generation being filled. What is projected meanwhile goes into it as well."""

    async def add(self, batch: Batch) -> None:
        """Set the values; the newest version wins. Raises: GenerationLost, ConnectionError."""
        ...

    async def switch(self) -> None:
        """It is complete and is what everyone reads from now on. Raises: GenerationLost, ConnectionError."""
        ...

    async def close(self) -> None:
        """Nobody fills it any more, and every generation that nobody reads is deleted. Never raises."""
        ...


class RebuildableReadModel(ReadModel, Protocol):
    """The port, and what keeping it whole needs. Raises: ConnectionError where the store can't be reached."""

    async def check(self) -> bool:
        """Whether it must be rebuilt, e.g. because the store restarted with older data."""
        ...

    async def begin(self) -> Generation | None:
        """A new, empty generation; None while somebody else fills one."""
        ...

    async def facts(self, ids: Collection[ConcertId]) -> Mapping[ConcertId, ConcertFacts] | None:
        """Facts by concert, of those that are here; None where it is not complete."""
        ...

    async def unlike(self, buyers: Sequence[BuyerDigest]) -> Sequence[UserId] | None:
        """Those of whom it may hold anything else; None where it is not complete. One round trip."""
        ...

    def concert_ids(self) -> AsyncIterator[Sequence[ConcertId]]:
        """Every concert it holds, some at a time, perhaps more than once."""
        ...

    def user_ids(self) -> AsyncIterator[Sequence[UserId]]:
        """Every buyer it holds, some at a time, perhaps more than once."""
        ...


def booking_key(booking: Booking) -> PageKey:
    """What `my_page_key` says of its row: the facts have no part in it."""
    return (booking.created_at.isoformat(timespec="microseconds"), booking.id)


def batch_of_events(events: Iterable[BookingChanged | SaleChanged]) -> Batch:
    """What the events say, the newest version of each thing only."""
    sales: list[Sale] = []
    facts: list[ConcertFacts] = []
    bookings: list[Booking] = []
    changes: dict[tuple[UserId, int], None] = {}
    for event in events:
        if event.sale is not None:
            sales.append(event.sale)
            facts.append(event.sale.facts)
        if isinstance(event, BookingChanged):
            facts.append(event.facts)
            bookings.append(event.booking)
            changes[event.booking.user_id, event.my_page_version] = None
    return Batch(
        sales=_newest(sales, lambda sale: sale.concert_id),
        facts=_newest(facts, lambda fact: fact.concert_id),
        bookings=_newest(bookings, lambda booking: booking.id),
        changes=tuple(changes),
    )


def batch_of_sales(sales: Sequence[Sale]) -> Batch:
    """The sales and the facts in them."""
    return Batch(sales=sales, facts=[sale.facts for sale in sales])


def batches_of_buyers(buyers: Sequence[BuyerSnapshot], *, rows_max: int) -> Iterator[Batch]:
    """The buyers, with at most `rows_max` bookings in each batch. The sales have brought the facts."""
    bookings = [booking for buyer in buyers for booking in buyer.bookings]
    for start in range(0, len(bookings), rows_max):
        yield Batch(bookings=bookings[start : start + rows_max])
    yield Batch(versions=[(buyer.user_id, buyer.version) for buyer in buyers])


def _newest(values: Iterable[_Versioned], key: Callable[[_Versioned], Hashable]) -> list[_Versioned]:
    newest: dict[Hashable, _Versioned] = {}
    for value in values:
        known = newest.get(key(value))
        if known is None or known.version < value.version:
            newest[key(value)] = value
    return list(newest.values())
