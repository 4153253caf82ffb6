"""Bookings, their items, their history, and the buyers' versions."""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Row, Select, bindparam, func, select, update

from domain.base import BookingId, ConcertId, Money, PaymentStatus, UserId
from domain.booking import LIVE, PAYABLE, Booking, BookingItem, BookingStatus
from infra.db import writes
from infra.db.statements import Statements, one_of_sent
from infra.db.tables import among, booking_events, booking_items, bookings, buyers, sales


class SqlBookingStore:
    """`domain.ports.BookingStore` in one transaction."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements

    async def add(self, made: Sequence[Booking]) -> None:
        """Insert bookings of one concert with their items, noting the per-person limit they were made under."""
        rows = [
            {
                "id": booking.id,
                "user_id": booking.user_id,
                "concert_id": booking.concert_id,
                "ticket_quantity": booking.ticket_quantity,
                "total_minor": booking.total.amount_minor,
                "currency": booking.total.currency,
                "created_at": booking.created_at,
                **_changing(booking),
            }
            for booking in made
        ]
        items = [
            {
                "booking_id": booking.id,
                "position": position,
                "ticket_type_id": item.ticket_type_id,
                "name": item.name,
                "quantity": item.quantity,
                "unit_price_minor": item.unit_price.amount_minor,
            }
            for booking in made
            for position, item in enumerate(booking.items)
        ]
        await self._statements.later(_ADD, rows)
        await self._statements.later(_ADD_ITEMS, items)

    async def lock(self, booking_ids: Sequence[BookingId]) -> list[Booking]:
        """The bookings that exist, by id, locked until the transaction ends."""
        rows = await self._statements.rows(
            select(bookings)
            .where(self._statements.one_of(bookings.c.id, booking_ids))
            .order_by(bookings.c.id)
            .with_for_update()
        )
        return await with_items(self._statements, rows)

    async def get(self, booking_ids: Sequence[BookingId]) -> list[Booking]:
        """Those that exist, read without a lock: for whoever may hold the sale's already, and decides nothing."""
        if not booking_ids:
            return []
        named = self._statements.one_of(bookings.c.id, booking_ids)
        return await with_items(self._statements, await self._statements.rows(select(bookings).where(named)))

    async def was_approved(self, booking_id: BookingId) -> bool:
        """Whether it ever was APPROVED."""
        row = await self._statements.row(
            select(booking_events.c.version)
            .where(
                booking_events.c.booking_id == booking_id,
                booking_events.c.status == BookingStatus.APPROVED.value,
            )
            .limit(1)
        )
        return row is not None

    async def save(self, changes: Sequence[tuple[Booking, Booking]]) -> None:
        """Compare-and-set on status and version. Raises: AssertionError where a row is not as in the old one."""
        rows = [
            {"was_key": old.id, "was_status": old.status.value, "was_version": old.version} | _changing(new)
            for old, new in writes.net(changes)
        ]
        await self._statements.later(_SAVE, rows)
        for old, new in changes:
            if old.status is BookingStatus.EXPIRED and new.status in LIVE:
                await self._note_limit(new)

    async def add_events(self, changes: Sequence[tuple[Booking | None, Booking, int]]) -> None:
        """One row of the booking's history for each: before, after, and the sale's version then."""
        rows = [
            {
                "booking_id": new.id,
                "version": new.version,
                "was": None if old is None else old.status.value,
                "status": new.status.value,
                "payment_status": None if new.payment_status is None else new.payment_status.value,
                "concert_id": new.concert_id,
                "stock_version": stock_version,
                "occurred_at": new.updated_at,
            }
            for old, new, stock_version in changes
        ]
        await self._statements.later(_ADD_EVENTS, rows)

    async def live_ticket_quantities(
        self, user_ids: Collection[UserId], concert_id: ConcertId
    ) -> dict[UserId, int]:
        """The tickets of all live bookings for one concert of those who have any. Read it under the sale's lock."""
        rows = await self._statements.rows(
            _live_ticket_quantities(self._statements.is_postgres),
            {"of_concert": concert_id, "users": list(user_ids)},
        )
        return {UserId(user_id): int(tickets) for user_id, tickets in rows}

    async def raise_my_page_versions(self, user_ids: Sequence[UserId]) -> list[int]:
        """The next version for each, without gaps; who is named twice has two. Locks the buyers' rows by id."""
        raised = Counter(user_ids)
        rows = await self._statements.returned(
            _RAISE_VERSIONS,
            [{"user_id": user_id, "my_page_version": raised[user_id]} for user_id in sorted(raised)],
        )
        before = {UserId(row.user_id): row.my_page_version - raised[row.user_id] for row in rows}
        versions = []
        for user_id in user_ids:
            before[user_id] += 1
            versions.append(before[user_id])
        return versions

    async def due(self, now: datetime, *, limit: int) -> list[tuple[ConcertId, BookingId]]:
        """Bookings whose hold has passed, longest due first, without locking."""
        rows = await self._statements.rows(
            select(bookings.c.concert_id, bookings.c.id)
            .where(among(bookings.c.status, PAYABLE), bookings.c.hold_until <= now)
            .order_by(bookings.c.hold_until)
            .limit(limit)
        )
        return [(ConcertId(row.concert_id), BookingId(row.id)) for row in rows]

    async def live_of(self, concert_id: ConcertId, *, limit: int) -> list[BookingId]:
        """Some live bookings of a concert, by id, without locking."""
        rows = await self._statements.rows(
            select(bookings.c.id)
            .where(bookings.c.concert_id == concert_id, among(bookings.c.status, LIVE))
            .limit(limit)
        )
        return sorted(BookingId(row.id) for row in rows)

    async def _note_limit(self, booking: Booking) -> None:
        """Seats were taken anew under today's limit: it is the one in force for all the person's bookings."""
        await self._statements.change(
            _NOTE_LIMIT,
            {"of_concert": booking.concert_id, "of_user": booking.user_id},
        )


_OF_CONCERT = bindparam("of_concert", type_=bookings.c.concert_id.type)
_LIMIT = select(sales.c.max_tickets_per_user).where(sales.c.concert_id == _OF_CONCERT).scalar_subquery()


@cache
def _live_ticket_quantities(is_postgres: bool) -> Select[*tuple[Any, ...]]:
    return (
        select(bookings.c.user_id, func.sum(bookings.c.ticket_quantity))
        .where(
            bookings.c.concert_id == _OF_CONCERT,
            one_of_sent(bookings.c.user_id, "users", is_postgres=is_postgres),
            among(bookings.c.status, LIVE),
        )
        .group_by(bookings.c.user_id)
    )


_CHANGING = (
    "status",
    "is_final",
    "hold_until",
    "is_extended",
    "is_graced",
    "retry_pay_at",
    "payment_id",
    "payment_status",
    "decline_code",
    "version",
    "updated_at",
)
_ADD = writes.insert(
    bookings,
    *("id", "user_id", "concert_id", "ticket_quantity", "total_minor", "currency", "created_at"),
    *_CHANGING,
    computed=lambda given: {
        "max_tickets_per_user": select(sales.c.max_tickets_per_user)
        .where(sales.c.concert_id == given["concert_id"])
        .scalar_subquery()
    },
)
_SAVE = writes.update(
    bookings,
    *_CHANGING,
    key=bookings.c.id,
    was_status=bookings.c.status,
    was_version=bookings.c.version,
)
_ADD_ITEMS = writes.insert(booking_items, *booking_items.c.keys())
_ADD_EVENTS = writes.insert(booking_events, *booking_events.c.keys())
_RAISE_VERSIONS = writes.insert(
    buyers,
    *("user_id", "my_page_version"),
    conflict=lambda insert, _: insert.on_conflict_do_update(
        index_elements=["user_id"],
        set_={"my_page_version": buyers.c.my_page_version + insert.excluded.my_page_version},
    ),
    returning=[buyers.c.user_id, buyers.c.my_page_version],
)
_LIVE_OF_USER = (
    bookings.c.concert_id == _OF_CONCERT,
    bookings.c.user_id == bindparam("of_user"),
    among(bookings.c.status, LIVE),
)
_NOTE_LIMIT = update(bookings).where(*_LIVE_OF_USER).values(max_tickets_per_user=_LIMIT)


async def with_items(statements: Statements, rows: Sequence[Row[*tuple[Any, ...]]]) -> list[Booking]:
    """The bookings in rows of `bookings`, in the same order, with their items: one more statement."""
    items = await items_of(statements, [row.id for row in rows])
    return [booking_from(row, items[row.id]) for row in rows]


async def items_of(
    statements: Statements, booking_ids: Collection[str]
) -> dict[str, list[Row[*tuple[Any, ...]]]]:
    """Rows of `booking_items` by booking, each in its order."""
    found: defaultdict[str, list[Row[*tuple[Any, ...]]]] = defaultdict(list)
    if not booking_ids:
        return found
    rows = await statements.rows(
        select(booking_items)
        .where(statements.one_of(booking_items.c.booking_id, booking_ids))
        .order_by(booking_items.c.booking_id, booking_items.c.position)
    )
    for row in rows:
        found[row.booking_id].append(row)
    return found


def booking_from(row: Row[*tuple[Any, ...]], items: Sequence[Row[*tuple[Any, ...]]]) -> Booking:
    """The booking in a row that begins as those of `bookings` do, and its rows of `booking_items`.

    Both are taken apart in the order of their tables' columns: asked by name, a row needs 0.3 us for each of them,
    and with a page of bookings that was half of all the work.
    """
    (
        booking_id,
        user_id,
        concert_id,
        status,
        is_final,
        _,
        total_minor,
        currency,
        _,
        hold_until,
        is_extended,
        is_graced,
        retry_pay_at,
        payment_id,
        payment_status,
        decline_code,
        version,
        created_at,
        updated_at,
    ) = row[: len(bookings.c)]
    return Booking(
        id=booking_id,
        user_id=user_id,
        concert_id=concert_id,
        items=tuple([_item_from(item, currency) for item in items]),
        total=Money(total_minor, currency),
        status=BookingStatus(status),
        is_final=is_final,
        hold_until=hold_until,
        is_extended=is_extended,
        is_graced=is_graced,
        retry_pay_at=retry_pay_at,
        payment_id=payment_id,
        payment_status=None if payment_status is None else PaymentStatus(payment_status),
        decline_code=decline_code,
        version=version,
        created_at=created_at,
        updated_at=updated_at,
    )


def _item_from(row: Row[*tuple[Any, ...]], currency: str) -> BookingItem:
    _, _, ticket_type_id, name, quantity, unit_price_minor = row
    return BookingItem(ticket_type_id, name, quantity, Money(unit_price_minor, currency))


def _changing(booking: Booking) -> dict[str, object]:
    """The columns that a change may write."""
    return {
        "status": booking.status.value,
        "is_final": booking.is_final,
        "hold_until": booking.hold_until,
        "is_extended": booking.is_extended,
        "is_graced": booking.is_graced,
        "retry_pay_at": booking.retry_pay_at,
        "payment_id": booking.payment_id,
        "payment_status": None if booking.payment_status is None else booking.payment_status.value,
        "decline_code": booking.decline_code,
        "version": booking.version,
        "updated_at": booking.updated_at,
    }
