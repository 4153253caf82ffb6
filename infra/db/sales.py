"""Sales and their stock."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, bindparam, func, select, text

from domain.base import ConcertId, Money, TicketTypeId
from domain.booking import LIVE, Sale, StockLine
from infra.db import writes
from infra.db.promises import COUNTERS, Finding, findings
from infra.db.statements import Statements
from infra.db.tables import REFUND_OPEN, UtcDateTime, among, bookings, sale_stock, sales


class SqlSaleStore:
    """`domain.ports.SaleStore` in one transaction."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements

    async def add(self, sale: Sale) -> None:
        """Open a sale."""
        lines = [
            {
                "ticket_type_id": line.ticket_type_id,
                "concert_id": sale.concert_id,
                "position": position,
                **_line_row(line),
            }
            for position, line in enumerate(sale.stock)
        ]
        await self._statements.change(sales.insert(), {"concert_id": sale.concert_id, **_sale_row(sale)})
        await self._statements.change(sale_stock.insert(), lines)

    async def lock(self, concert_id: ConcertId) -> Sale | None:
        """Lock the sale row first, then read it and its stock: nobody else moves them until the end."""
        row = await self._statements.row(_LOCK, {"of_concert": concert_id})
        if row is None:
            return None
        # A statement of its own: under READ COMMITTED it sees what was committed while the first one waited.
        if not self._statements.is_postgres:
            return _sale_from(row, await self._statements.rows(_STOCK, {"of_concert": concert_id}))
        lines = await self._statements.rows(_STOCK_AND_CLOCK, {"of_concert": concert_id})
        self._statements.locked_at = lines[0].locked_at if lines else None
        return _sale_from(row, lines)

    async def get(self, concert_id: ConcertId) -> Sale | None:
        """Read without a lock, in one consistent snapshot."""
        rows = await self._statements.rows(SALES_WITH_STOCK.where(sales.c.concert_id == concert_id))
        return next(iter(sales_from(rows)), None)

    async def save(self, old: Sale, new: Sale) -> None:
        """Write it, and its lines that moved, where they still are as in `old`. Raises: AssertionError otherwise."""
        assert [line.ticket_type_id for line in old.stock] == [line.ticket_type_id for line in new.stock]
        await self._statements.later(
            _SAVE, [{"was_key": old.concert_id, "was_version": old.version} | _sale_row(new)]
        )
        moved = [
            {
                "was_key": was.ticket_type_id,
                "was_capacity": was.capacity,
                "was_held": was.held,
                "was_sold": was.sold,
            }
            | _line_row(line)
            for was, line in zip(old.stock, new.stock, strict=True)
            if was != line
        ]
        if moved:
            await self._statements.later(_SAVE_LINES, moved)

    async def unsettled(self, concert_id: ConcertId) -> tuple[int, int]:
        """How many bookings of it are live, and how many refunds of it are pending or failed."""
        of_concert = bookings.c.concert_id == concert_id
        live = select(func.count()).select_from(bookings).where(of_concert, among(bookings.c.status, LIVE))
        refunds = (
            select(func.count())
            .select_from(bookings)
            .where(of_concert, among(bookings.c.payment_status, REFUND_OPEN))
        )
        (row,) = await self._statements.rows(select(live.scalar_subquery(), refunds.scalar_subquery()))
        return row[0], row[1]

    async def faults(self, concert_id: ConcertId) -> Sequence[str]:
        """What is wrong with its stock, in words, usually nothing. Read it under the sale's lock."""
        found: list[Finding] = []
        for promise in COUNTERS:
            # Nothing sorts between an id and the same with the least character behind it.
            beyond = f"{concert_id}\x01"
            found += await findings(self._statements, promise, first=concert_id, beyond=beyond)
        return [finding.text for finding in found]

    async def halted(self) -> Mapping[ConcertId, datetime]:
        """Since when the sales of which concerts are halted."""
        rows = await self._statements.rows(_HALTED)
        return {ConcertId(row.concert_id): row.halted_at for row in rows}

    async def all_unsettled(self) -> tuple[int, int]:
        """How many bookings of cancelled concerts are live, and how many refunds of any are pending or failed."""
        (row,) = await self._statements.rows(_ALL_UNSETTLED)
        return int(row[0]), row[1]


_OF_CONCERT = bindparam("of_concert", type_=sales.c.concert_id.type)
_LOCK = select(sales).where(sales.c.concert_id == _OF_CONCERT).with_for_update()
_STOCK = select(sale_stock).where(sale_stock.c.concert_id == _OF_CONCERT).order_by(sale_stock.c.position)
_STOCK_AND_CLOCK = _STOCK.add_columns(func.clock_timestamp(type_=UtcDateTime).label("locked_at"))
_SAVE = writes.update(
    sales,
    *(column.name for column in sales.c if not column.primary_key),
    key=sales.c.concert_id,
    was_version=sales.c.version,
)
_SAVE_LINES = writes.update(
    sale_stock,
    *("name", "price_minor", "currency", "capacity", "held", "sold"),
    key=sale_stock.c.ticket_type_id,
    was_capacity=sale_stock.c.capacity,
    was_held=sale_stock.c.held,
    was_sold=sale_stock.c.sold,
)

# In these words on both databases, or the partial indexes are not used.
_IS_CANCELLED: ColumnElement[bool] = text("sales.is_cancelled")  # type: ignore[assignment]
_IS_HALTED: ColumnElement[bool] = text("halted_at IS NOT NULL")  # type: ignore[assignment]
_HALTED = select(sales.c.concert_id, sales.c.halted_at).where(_IS_HALTED).order_by(sales.c.concert_id)
# Sale by sale: joined, SQLite would go through the live bookings of every concert.
_LIVE_OF_SALE = (
    select(func.count())
    .select_from(bookings)
    .where(bookings.c.concert_id == sales.c.concert_id, among(bookings.c.status, LIVE))
    .correlate(sales)
    .scalar_subquery()
)
_ALL_UNSETTLED = select(
    select(func.coalesce(func.sum(_LIVE_OF_SALE), 0))
    .select_from(sales)
    .where(_IS_CANCELLED)
    .scalar_subquery(),
    select(func.count())
    .select_from(bookings)
    .where(among(bookings.c.payment_status, REFUND_OPEN))
    .scalar_subquery(),
)

# One statement, hence one snapshot: the rows of a sale follow each other.
SALES_WITH_STOCK: Select[*tuple[Any, ...]] = (
    select(
        sales,
        sale_stock.c.ticket_type_id,
        sale_stock.c.name,
        sale_stock.c.price_minor,
        sale_stock.c.currency,
        sale_stock.c.capacity,
        sale_stock.c.held,
        sale_stock.c.sold,
    )
    .join(sale_stock, sale_stock.c.concert_id == sales.c.concert_id)
    .order_by(sales.c.concert_id, sale_stock.c.position)
)


def sales_from(rows: Sequence[Row[*tuple[Any, ...]]]) -> list[Sale]:
    """The sales in rows of `SALES_WITH_STOCK`."""
    found = []
    for _, group in groupby(rows, key=lambda row: row.concert_id):
        lines = list(group)
        found.append(_sale_from(lines[0], lines))
    return found


def _sale_from(row: Row[*tuple[Any, ...]], lines: Sequence[Row[*tuple[Any, ...]]]) -> Sale:
    return Sale(
        concert_id=ConcertId(row.concert_id),
        title=row.title,
        venue=row.venue,
        starts_at=row.starts_at,
        sales_open_at=row.sales_open_at,
        sales_close_at=row.sales_close_at,
        max_tickets_per_user=row.max_tickets_per_user,
        is_cancelled=row.is_cancelled,
        version=row.version,
        stock=tuple(
            StockLine(
                ticket_type_id=TicketTypeId(line.ticket_type_id),
                name=line.name,
                price=Money(line.price_minor, line.currency),
                capacity=line.capacity,
                held=line.held,
                sold=line.sold,
            )
            for line in lines
        ),
        halted_at=row.halted_at,
    )


def _sale_row(sale: Sale) -> dict[str, object]:
    """All but its key."""
    return {
        "title": sale.title,
        "venue": sale.venue,
        "starts_at": sale.starts_at,
        "sales_open_at": sale.sales_open_at,
        "sales_close_at": sale.sales_close_at,
        "max_tickets_per_user": sale.max_tickets_per_user,
        "is_cancelled": sale.is_cancelled,
        "version": sale.version,
        "halted_at": sale.halted_at,
    }


def _line_row(line: StockLine) -> dict[str, object]:
    """All but its key and its place."""
    return {
        "name": line.name,
        "price_minor": line.price.amount_minor,
        "currency": line.price.currency,
        "capacity": line.capacity,
        "held": line.held,
        "sold": line.sold,
    }
