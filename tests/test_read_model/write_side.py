"""A write side in miniature, and questions to ask a read model that was told of it."""

import random
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count

from hypothesis import strategies as st

from domain.base import BookingId, ConcertId, Money, PageQuery, TicketTypeId, UserId
from domain.booking import (
    Booking,
    BookingChanged,
    BookingItem,
    BookingStatus,
    Sale,
    SaleChanged,
    StockLine,
)
from domain.my_page import MyBooking, my_page_key
from infra.read_model import (
    BuyerDigest,
    BuyerSnapshot,
    RebuildableReadModel,
    differences,
)
from infra.read_model.documents import digest_of, line_of

NOON = datetime(2027, 5, 1, 12, tzinfo=UTC)
CONCERTS = (ConcertId("concert-a"), ConcertId("concert-b"))
BUYERS = (UserId("ada"), UserId("bob"))
PRICE = Money(4_500, "EUR")
PAGE = PageQuery(limit=100)
Told = BookingChanged | SaleChanged


@dataclass
class WriteSide:
    """Sales and bookings as the database would have them, and the events of every change in order."""

    sales_by_id: dict[ConcertId, Sale] = field(default_factory=dict)
    bookings: dict[BookingId, Booking] = field(default_factory=dict)
    versions: defaultdict[UserId, int] = field(default_factory=lambda: defaultdict(int))
    events: list[Told] = field(default_factory=list)
    # What others do before a snapshot of a rebuild is taken, and before it has arrived.
    before_snapshot: Callable[[], Awaitable[None]] | None = None
    after_snapshot: Callable[[], Awaitable[None]] | None = None
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def open_sale(self, concert_id: ConcertId, title: str = "Night Music") -> None:
        line = StockLine(TicketTypeId(f"{concert_id}-floor"), "Floor", PRICE, 10_000, 0, 0)
        self._put_sale(Sale(concert_id, title, "Hall", NOON, NOON, NOON, 6, False, 1, (line,)))
        self.events.append(SaleChanged(self.sales_by_id[concert_id]))

    def rename(self, concert_id: ConcertId, title: str) -> None:
        old = self.sales_by_id[concert_id]
        self._put_sale(replace(old, title=title, version=old.version + 1))
        self.events.append(SaleChanged(self.sales_by_id[concert_id]))

    def book(self, user_id: UserId, concert_id: ConcertId, *, minute: int = 0) -> BookingId:
        """A new booking, which takes two seats."""
        old = self.sales_by_id[concert_id]
        line = replace(old.stock[0], held=old.stock[0].held + 2)
        self._put_sale(replace(old, version=old.version + 1, stock=(line,)))
        booking = new_booking(BookingId(f"booking-{next(self._numbers):04}"), user_id, concert_id, minute)
        self._put_booking(booking, self.sales_by_id[concert_id])
        return booking.id

    def change(self, booking_id: BookingId, status: BookingStatus) -> None:
        """A change that moves no seats."""
        old = self.bookings[booking_id]
        self._put_booking(replace(old, status=status, version=old.version + 1), None)

    def page(self, user_id: UserId, statuses: frozenset[BookingStatus] | None = None) -> list[MyBooking]:
        """The buyer's whole page, computed the slow way."""
        mine = [b for b in self.bookings.values() if b.user_id == user_id]
        rows = [MyBooking(b, self.sales_by_id[b.concert_id].facts) for b in mine]
        kept = [row for row in rows if statuses is None or row.booking.status in statuses]
        return sorted(kept, key=my_page_key, reverse=True)

    async def sales(self) -> AsyncIterator[Sequence[Sale]]:
        for concert_id in list(self.sales_by_id):
            if self.before_snapshot is not None:
                await self.before_snapshot()
            snapshot = self.sales_by_id[concert_id]
            if self.after_snapshot is not None:
                await self.after_snapshot()
            yield [snapshot]

    async def buyers(self) -> AsyncIterator[Sequence[BuyerSnapshot]]:
        for user_id in list(self.versions):
            if self.before_snapshot is not None:
                await self.before_snapshot()
            snapshots = await self.buyers_of([user_id])
            if self.after_snapshot is not None:
                await self.after_snapshot()
            yield snapshots

    async def digests(self) -> AsyncIterator[Sequence[BuyerDigest]]:
        snapshots = await self.buyers_of(list(self.versions))
        yield [
            BuyerDigest(buyer.user_id, digest_of(buyer.version, [line_of(each) for each in buyer.bookings]))
            for buyer in snapshots
        ]

    async def buyers_of(self, ids: Sequence[UserId]) -> Sequence[BuyerSnapshot]:
        return [
            BuyerSnapshot(
                user_id,
                self.versions[user_id],
                [booking for booking in self.bookings.values() if booking.user_id == user_id],
            )
            for user_id in ids
        ]

    async def unknown_sales(self, ids: Sequence[ConcertId]) -> Sequence[ConcertId]:
        return [concert_id for concert_id in ids if concert_id not in self.sales_by_id]

    async def unknown_buyers(self, ids: Sequence[UserId]) -> Sequence[UserId]:
        return [user_id for user_id in ids if user_id not in self.versions]

    def _put_sale(self, sale: Sale) -> None:
        self.sales_by_id[sale.concert_id] = sale

    def _put_booking(self, booking: Booking, sale: Sale | None) -> None:
        self.bookings[booking.id] = booking
        self.versions[booking.user_id] += 1
        facts = self.sales_by_id[booking.concert_id].facts
        self.events.append(BookingChanged(booking, facts, sale, self.versions[booking.user_id]))


def new_booking(booking_id: BookingId, user_id: UserId, concert_id: ConcertId, minute: int) -> Booking:
    """Two tickets, just booked."""
    at = NOON + timedelta(minutes=minute)
    return Booking(
        id=booking_id,
        user_id=user_id,
        concert_id=concert_id,
        items=(BookingItem(TicketTypeId(f"{concert_id}-floor"), "Floor «vorn»\n", 2, PRICE),),
        total=Money(9_000, "EUR"),
        status=BookingStatus.AWAITING_PAYMENT,
        is_final=False,
        hold_until=at + timedelta(minutes=10, microseconds=1),
        is_extended=False,
        is_graced=False,
        retry_pay_at=None,
        payment_id=None,
        payment_status=None,
        decline_code=None,
        version=1,
        created_at=at,
        updated_at=at,
    )


def opened() -> WriteSide:
    """Two concerts on sale and nothing booked."""
    writes = WriteSide()
    for concert_id in CONCERTS:
        writes.open_sale(concert_id)
    return writes


def act(writes: WriteSide, choice: int) -> None:
    """One change of the write side; which one is in the number."""
    kind, rest = choice % 4, choice // 4
    if kind == 0:
        writes.book(BUYERS[rest % 2], CONCERTS[rest // 2 % 2], minute=rest // 4 % 3)
    elif kind == 1:
        writes.rename(CONCERTS[rest % 2], f"Title {rest}")
    elif writes.bookings:
        booking_id = list(writes.bookings)[rest % len(writes.bookings)]
        writes.change(booking_id, list(BookingStatus)[rest // 8 % 6])


# Seeded by one draw: nothing may be drawn while the event loop runs.
chances = st.integers(0, 2**32).map(random.Random)
choices = st.lists(st.integers(0, 4 * 8 * 6 * 8), max_size=40)


async def rows_of(
    model: RebuildableReadModel, user_id: UserId, statuses: frozenset[BookingStatus] | None = None
) -> list[MyBooking]:
    """The buyer's page, which must be complete."""
    view = await model.my_page(user_id, PAGE, statuses=statuses)
    assert view is not None
    assert view.total == len(view.page.rows)
    return list(view.page.rows)


async def version_of(model: RebuildableReadModel, user_id: UserId) -> int:
    """The buyer's version, which must be there."""
    view = await model.my_page(user_id, PAGE, statuses=None)
    assert view is not None
    return view.version


async def differences_of(model: RebuildableReadModel, writes: WriteSide) -> list[str]:
    """All lines."""
    return [line async for line in differences(model, writes)]
