"""The write side from end to end, for filling a read model and for comparing it."""

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Column, Row, literal_column, select

from domain.base import ConcertId, UserId
from domain.booking import Booking, Sale
from infra.db.bookings import with_items
from infra.db.engine import Pool
from infra.db.lines import BOOKING_LINE
from infra.db.sales import SALES_WITH_STOCK, sales_from
from infra.db.statements import Statements
from infra.db.tables import bookings, buyers, sales
from infra.db.unit import Database
from infra.read_model.documents import digest_of, line_of
from infra.read_model.generation import BuyerDigest, BuyerSnapshot

_Id = TypeVar("_Id", ConcertId, UserId)
_Buyers = Sequence[Row[*tuple[Any, ...]]]


class WriteSideSource:
    """`infra.read_model.Source`: each batch is one snapshot, taken when it is asked for.

    Nothing is held open between two batches. Raises: DatabaseAway, Overloaded.
    """

    def __init__(
        self,
        database: Database,
        *,
        sales_per_batch: int = 500,
        buyers_per_batch: int = 200,
        digests_per_batch: int = 5_000,
    ) -> None:
        self._readers: Pool = database.steady_readers
        self._sales_per_batch = sales_per_batch
        self._buyers_per_batch = buyers_per_batch
        # The bookings of many buyers share pages of the table, which PostgreSQL reads in their order, each once.
        self._digests_per_batch = digests_per_batch

    async def sales(self) -> AsyncIterator[Sequence[Sale]]:
        """Every sale once, by concert id."""
        last = ""
        while True:
            some = (
                select(sales.c.concert_id)
                .where(sales.c.concert_id > last)
                .order_by(sales.c.concert_id)
                .limit(self._sales_per_batch)
            )
            async with self._readers.transaction() as statements:
                rows = await statements.rows(SALES_WITH_STOCK.where(sales.c.concert_id.in_(some)))
            batch = sales_from(rows)
            if not batch:
                return
            yield batch
            last = batch[-1].concert_id

    async def buyers(self) -> AsyncIterator[Sequence[BuyerSnapshot]]:
        """Every buyer whose version is above 0, once, by id, with all their bookings."""
        last = ""
        while True:
            async with self._readers.transaction() as statements:
                some = await _buyers_after(last, statements, limit=self._buyers_per_batch)
                batch = await _snapshots(statements, some)
            if not some:
                return
            yield batch
            last = some[-1].user_id

    async def digests(self) -> AsyncIterator[Sequence[BuyerDigest]]:
        """The same buyers, by id."""
        last = ""
        while True:
            async with self._readers.transaction() as statements:
                some = await _buyers_after(last, statements, limit=self._digests_per_batch)
                lines = await _lines(statements, some)
            if not some:
                return
            yield [
                BuyerDigest(UserId(user_id), digest_of(version, lines[user_id])) for user_id, version in some
            ]
            last = some[-1].user_id

    async def buyers_of(self, ids: Sequence[UserId]) -> Sequence[BuyerSnapshot]:
        """These of them, in any order."""
        async with self._readers.transaction() as statements:
            some = await statements.rows(select(buyers).where(statements.one_of(buyers.c.user_id, ids)))
            return await _snapshots(statements, some)

    async def unknown_sales(self, ids: Sequence[ConcertId]) -> Sequence[ConcertId]:
        """Those of which there is no sale."""
        return await self._unknown(sales.c.concert_id, ids)

    async def unknown_buyers(self, ids: Sequence[UserId]) -> Sequence[UserId]:
        """Those of which there is no buyer."""
        return await self._unknown(buyers.c.user_id, ids)

    async def _unknown(self, column: Column[Any], ids: Sequence[_Id]) -> Sequence[_Id]:
        async with self._readers.single() as statements:
            rows = await statements.rows(select(column).where(statements.one_of(column, ids)))
        known = {row[0] for row in rows}
        return [each for each in ids if each not in known]


async def _buyers_after(last: str, statements: Statements, *, limit: int) -> _Buyers:
    return await statements.rows(
        select(buyers).where(buyers.c.user_id > last).order_by(buyers.c.user_id).limit(limit)
    )


async def _snapshots(statements: Statements, some: _Buyers) -> list[BuyerSnapshot]:
    owned: defaultdict[str, list[Booking]] = defaultdict(list)
    for booking in await _bookings_of(statements, some):
        owned[booking.user_id].append(booking)
    return [BuyerSnapshot(UserId(user_id), version, owned[user_id]) for user_id, version in some]


async def _lines(statements: Statements, some: _Buyers) -> Mapping[str, list[str]]:
    """What `line_of` says of each booking, by buyer."""
    lines: defaultdict[str, list[str]] = defaultdict(list)
    if statements.is_postgres:
        ids = [user_id for user_id, _ in some]
        written = select(bookings.c.user_id, literal_column(BOOKING_LINE))
        for user_id, line in await statements.rows(written.where(statements.one_of(bookings.c.user_id, ids))):
            lines[user_id].append(line)
    else:
        for booking in await _bookings_of(statements, some):
            lines[booking.user_id].append(line_of(booking))
    return lines


async def _bookings_of(statements: Statements, some: _Buyers) -> list[Booking]:
    ids = [user_id for user_id, _ in some]
    rows = await statements.rows(select(bookings).where(statements.one_of(bookings.c.user_id, ids)))
    return await with_items(statements, rows)
