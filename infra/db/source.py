"""The write side from end to end, for filling a read model and for comparing it."""

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeVar

from sqlalchemy import Column, select

from domain.base import ConcertId, UserId
from domain.booking import Booking, Sale
from infra.db.bookings import with_items
from infra.db.engine import Pool
from infra.db.sales import SALES_WITH_STOCK, sales_from
from infra.db.tables import bookings, buyers, sales
from infra.db.unit import Database
from infra.read_model.generation import BuyerSnapshot

_Id = TypeVar("_Id", ConcertId, UserId)


class WriteSideSource:
    """`infra.read_model.Source`: each batch is one snapshot, taken when it is asked for.

    Nothing is held open between two batches. Raises: DatabaseAway, Overloaded.
    """

    def __init__(
        self, database: Database, *, sales_per_batch: int = 500, buyers_per_batch: int = 200
    ) -> None:
        self._readers: Pool = database.steady_readers
        self._sales_per_batch = sales_per_batch
        self._buyers_per_batch = buyers_per_batch

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
                some = await statements.rows(
                    select(buyers)
                    .where(buyers.c.user_id > last)
                    .order_by(buyers.c.user_id)
                    .limit(self._buyers_per_batch)
                )
                ids = [row.user_id for row in some]
                rows = await statements.rows(
                    select(bookings).where(statements.one_of(bookings.c.user_id, ids))
                )
                found = await with_items(statements, rows)
            if not some:
                return
            owned: defaultdict[str, list[Booking]] = defaultdict(list)
            for booking in found:
                owned[booking.user_id].append(booking)
            yield [
                BuyerSnapshot(UserId(row.user_id), row.my_page_version, owned[row.user_id]) for row in some
            ]
            last = ids[-1]

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
