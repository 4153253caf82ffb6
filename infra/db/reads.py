"""Reads of the write side: a fixed number of statements each, in one consistent snapshot."""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Row, Select, and_, func, select

from domain.base import (
    BookingId,
    ConcertId,
    Page,
    PageQuery,
    PaymentId,
    SessionId,
    TicketTypeId,
    Unavailable,
    UserId,
)
from domain.booking import Booking, BookingStatus, ConcertFacts, Sale
from domain.concert import Concert, ConcertFilter, ConcertOrder, ConcertStatus, TicketType
from domain.my_page import MyBooking, MyPageView
from domain.payment import Payment
from domain.user import User, Viewer
from infra.db import writes
from infra.db.bookings import booking_from, items_of, with_items
from infra.db.concerts import concert_from, ticket_type_from
from infra.db.engine import Pool
from infra.db.errors import catalogue_errors
from infra.db.paging import page_of, page_rows
from infra.db.payments import payment_from
from infra.db.sales import SALES_WITH_STOCK, sales_from
from infra.db.statements import Statements, one_of_sent
from infra.db.tables import (
    bookings,
    buyers,
    concerts,
    payments,
    sales,
    sessions,
    ticket_types,
    users,
)
from infra.db.users import user_from, viewer_from
from infra.shared_call import SharedCall


class SqlReads:
    """`domain.ports.Reads`. Raises (all methods): DatabaseAway, Overloaded; those of the catalogue: Unavailable."""

    def __init__(self, readers: Pool, *, catalogue: Pool | None) -> None:
        self._readers = readers
        self._catalogue_readers = catalogue
        self._shared_sales = SharedCall(self._read_sales)
        self._shared_viewers = SharedCall(self._read_viewers)

    async def now(self) -> datetime:
        """The database's clock."""
        async with self._readers.single() as statements:
            return await statements.now()

    # ------------------------------------------------------------ user
    async def viewer(self, token_hash: bytes) -> Viewer | None:
        """Who holds this token; None where it is unknown or ended. Many who ask together are answered by one read."""
        return (await self._shared_viewers([token_hash])).get(token_hash)

    async def _read_viewers(self, token_hashes: Collection[bytes]) -> Mapping[bytes, Viewer]:
        async with self._readers.single() as statements:
            rows = await statements.rows(_viewers(statements.is_postgres), {"hashes": list(token_hashes)})
        return {bytes(row.token_hash): viewer_from(row) for row in rows}

    async def live_sessions(self, session_ids: Collection[SessionId]) -> set[SessionId]:
        """Those that have not ended."""
        async with self._readers.single() as statements:
            rows = await statements.rows(
                select(sessions.c.id).where(
                    statements.one_of(sessions.c.id, session_ids), sessions.c.expires_at > statements.clock()
                )
            )
        return {SessionId(row.id) for row in rows}

    async def users(self, ids: Collection[UserId]) -> Mapping[UserId, User]:
        """People by id."""
        async with self._readers.single() as statements:
            rows = await statements.rows(select(users).where(statements.one_of(users.c.id, ids)))
        return {UserId(row.id): user_from(row) for row in rows}

    # ------------------------------------------------------------ concert
    async def concerts(self, ids: Collection[ConcertId]) -> Mapping[ConcertId, Concert]:
        """Catalogue entries by id."""
        async with self._catalogue() as statements:
            rows = await statements.rows(select(concerts).where(statements.one_of(concerts.c.id, ids)))
        return {ConcertId(row.id): concert_from(row) for row in rows}

    async def concert_page(
        self, query: PageQuery, *, where: ConcertFilter, order: ConcertOrder
    ) -> Page[Concert]:
        """A page of the catalogue; the key of a row is `concert_page_key`."""
        column = concerts.c.title if order is ConcertOrder.TITLE_ASC else concerts.c.starts_at
        async with self._catalogue() as statements:
            rows = await page_rows(
                statements,
                _filtered(select(concerts), where, statements),
                query,
                key=(column, concerts.c.id),
                is_descending=order is ConcertOrder.STARTS_AT_DESC,
            )
        return page_of([concert_from(row) for row in rows], query)

    async def concert_total(self, where: ConcertFilter) -> int:
        """How many entries the filter leaves."""
        async with self._catalogue() as statements:
            counted = select(func.count()).select_from(concerts)
            (row,) = await statements.rows(_filtered(counted, where, statements))
        return int(row[0])

    async def ticket_types(self, ids: Collection[TicketTypeId]) -> Mapping[TicketTypeId, TicketType]:
        """Ticket types by id."""
        async with self._catalogue() as statements:
            rows = await statements.rows(
                select(ticket_types).where(statements.one_of(ticket_types.c.id, ids))
            )
        return {TicketTypeId(row.id): ticket_type_from(row) for row in rows}

    async def ticket_types_of(self, ids: Collection[ConcertId]) -> Mapping[ConcertId, Sequence[TicketType]]:
        """Ticket types by concert, in the order registered."""
        async with self._catalogue() as statements:
            rows = await statements.rows(
                select(ticket_types)
                .where(statements.one_of(ticket_types.c.concert_id, ids))
                .order_by(ticket_types.c.concert_id, ticket_types.c.position)
            )
        found: dict[ConcertId, list[TicketType]] = {}
        for row in rows:
            found.setdefault(ConcertId(row.concert_id), []).append(ticket_type_from(row))
        return found

    # ------------------------------------------------------------ booking and payment
    async def sales(self, ids: Collection[ConcertId]) -> Mapping[ConcertId, Sale]:
        """Sales with their stock by concert. Who asks for the same at the same time is answered by one read."""
        return await self._shared_sales(ids)

    async def _read_sales(self, ids: Collection[ConcertId]) -> Mapping[ConcertId, Sale]:
        async with self._readers.single() as statements:
            rows = await statements.rows(SALES_WITH_STOCK.where(statements.one_of(sales.c.concert_id, ids)))
        return {sale.concert_id: sale for sale in sales_from(rows)}

    async def bookings(self, ids: Collection[BookingId]) -> Mapping[BookingId, Booking]:
        """Bookings with their items by id."""
        async with self._readers.transaction() as statements:
            rows = await statements.rows(select(bookings).where(statements.one_of(bookings.c.id, ids)))
            found = await with_items(statements, rows)
        return {booking.id: booking for booking in found}

    async def booked_concerts(self, ids: Collection[BookingId]) -> Mapping[BookingId, ConcertId]:
        """The concerts of bookings, by booking: what never changes, without the rest."""
        async with self._readers.single() as statements:
            named = statements.one_of(bookings.c.id, ids)
            rows = await statements.rows(select(bookings.c.id, bookings.c.concert_id).where(named))
        return {BookingId(row.id): ConcertId(row.concert_id) for row in rows}

    async def payments(self, ids: Collection[PaymentId]) -> Mapping[PaymentId, Payment]:
        """Attempts by id."""
        async with self._readers.single() as statements:
            rows = await statements.rows(select(payments).where(statements.one_of(payments.c.id, ids)))
        return {PaymentId(row.id): payment_from(row) for row in rows}

    # ------------------------------------------------------------ my page
    async def my_bookings(self, ids: Collection[BookingId]) -> Mapping[BookingId, MyBooking]:
        """Rows of my page by booking."""
        async with self._readers.transaction() as statements:
            rows = await statements.rows(MY_BOOKINGS.where(statements.one_of(bookings.c.id, ids)))
            found = await my_bookings_from(statements, rows)
        return {row.booking.id: row for row in found}

    async def my_page_version(self, user_id: UserId) -> int:
        """The buyer's version; 0 before the first booking."""
        async with self._readers.single() as statements:
            row = await statements.row(select(buyers.c.my_page_version).where(buyers.c.user_id == user_id))
        return 0 if row is None else int(row.my_page_version)

    async def my_page(
        self, user_id: UserId, query: PageQuery, *, statuses: frozenset[BookingStatus] | None
    ) -> MyPageView:
        """The buyer's page, newest first; the key of a row is `my_page_key`."""
        wanted = [bookings.c.user_id == user_id]
        if statuses is not None:
            wanted.append(bookings.c.status.in_(sorted(status.value for status in statuses)))
        version = select(buyers.c.my_page_version).where(buyers.c.user_id == user_id).scalar_subquery()
        counted = select(func.count(), version).select_from(bookings).where(*wanted)
        async with self._readers.transaction() as statements:
            rows = await page_rows(
                statements,
                MY_BOOKINGS.where(*wanted),
                query,
                key=(bookings.c.created_at, bookings.c.id),
                is_descending=True,
            )
            found = await my_bookings_from(statements, rows)
            ((total, at_version),) = await statements.rows(counted)
        return MyPageView(version=at_version or 0, page=page_of(found, query), total=total)

    async def my_changes(self, user_id: UserId, *, since: datetime | None, limit: int) -> Sequence[MyBooking]:
        """The buyer's bookings changed at or after `since`, or all that are not final; oldest change first."""
        changed = bookings.c.is_final.is_(False) if since is None else bookings.c.updated_at >= since
        async with self._readers.transaction() as statements:
            rows = await statements.rows(
                MY_BOOKINGS.where(bookings.c.user_id == user_id, changed)
                .order_by(bookings.c.updated_at, bookings.c.id)
                .limit(limit)
            )
            return await my_bookings_from(statements, rows)

    @asynccontextmanager
    async def _catalogue(self) -> AsyncIterator[Statements]:
        if self._catalogue_readers is None:
            raise Unavailable("concert")
        with catalogue_errors():
            async with self._catalogue_readers.single() as statements:
                yield statements


# A booking with the facts of its concert: both are the booking module's own.
MY_BOOKINGS: Select[*tuple[Any, ...]] = select(
    bookings,
    sales.c.title,
    sales.c.venue,
    sales.c.starts_at,
    sales.c.version.label("facts_version"),
).join(sales, sales.c.concert_id == bookings.c.concert_id)


async def my_bookings_from(statements: Statements, rows: Sequence[Row[*tuple[Any, ...]]]) -> list[MyBooking]:
    """The rows of my page in rows of `MY_BOOKINGS`, in the same order: one more statement."""
    items = await items_of(statements, [row.id for row in rows])
    return [
        MyBooking(
            booking=booking_from(row, items[row.id]),
            facts=ConcertFacts(
                concert_id=ConcertId(row.concert_id),
                title=row.title,
                venue=row.venue,
                starts_at=row.starts_at,
                version=row.facts_version,
            ),
        )
        for row in rows
    ]


@cache
def _viewers(is_postgres: bool) -> Select[*tuple[Any, ...]]:
    now = writes.clock(is_postgres=is_postgres)
    return (
        select(
            users,
            sessions.c.token_hash,
            sessions.c.id.label("session_id"),
            sessions.c.created_at.label("session_created_at"),
            sessions.c.expires_at,
            now.label("now"),
        )
        .join(sessions, sessions.c.user_id == users.c.id)
        .where(
            one_of_sent(sessions.c.token_hash, "hashes", is_postgres=is_postgres),
            sessions.c.expires_at > now,
        )
    )


def _filtered(
    statement: Select[*tuple[Any, ...]], where: ConcertFilter, statements: Statements
) -> Select[*tuple[Any, ...]]:
    for word in (where.search or "").casefold().split():
        statement = statement.where(concerts.c.search_text.contains(word, autoescape=True))
    if where.starts_after is not None:
        statement = statement.where(concerts.c.starts_at > where.starts_after)
    if where.starts_before is not None:
        statement = statement.where(concerts.c.starts_at < where.starts_before)
    if where.on_sale is not None:
        now = statements.clock()
        is_on_sale = and_(
            concerts.c.status == ConcertStatus.SCHEDULED.value,
            concerts.c.sales_open_at <= now,
            concerts.c.sales_close_at > now,
        )
        statement = statement.where(is_on_sale if where.on_sale else ~is_on_sale)
    return statement
