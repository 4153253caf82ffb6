"""The promises checked a part at a time, by one worker after another, and what was found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select

from infra.db.promises import BEYOND, Finding, Promise, Walk, findings
from infra.db.tables import bookings, buyers, leases, promise_checks, sale_stock
from infra.db.unit import Database

LEASE = "promises"


@dataclass(frozen=True, slots=True)
class Standing:
    """How a promise stands: what broke it when all was looked at last, or since; and when that was, if ever."""

    broken: int
    checked_at: datetime | None


class PromiseChecks:
    """Parts to look at, what is broken in them, and the notes of it that every process reads.

    Raises (all methods): DatabaseAway, Overloaded.
    """

    def __init__(self, database: Database) -> None:
        # Like `frontrow verify`: on PostgreSQL a connection of its own, so that nobody who sells waits for it.
        self._readers = database.patient_readers
        self._writers = database.steady_writers
        self._quick_readers = database.steady_readers

    async def lease(self, worker: str, *, lease_s: float) -> bool:
        """Whether it is this worker that checks for so long; asking again renews it."""
        async with self._writers.transaction() as statements:
            until = statements.clock(plus_s=lease_s)
            insert = statements.insert(leases).values(name=LEASE, worker=worker, until=until)
            taken = await statements.change(
                insert.on_conflict_do_update(
                    index_elements=["name"],
                    set_={"worker": worker, "until": until},
                    where=(leases.c.worker == worker) | (leases.c.until <= statements.clock()),
                )
            )
            await statements.commit()
        return taken == 1

    async def end_of_part(self, walk: Walk, first: str, *, rows: int) -> str:
        """Where the part ends that begins with the id `first`: about so many bookings or buyers further on.

        A concert is never divided, however many bookings it has.
        """
        if walk is Walk.WHOLE:
            return BEYOND
        if walk is Walk.CONCERTS:
            return await self._concerts_with(first, seats=rows)
        column = bookings.c.id if walk is Walk.BOOKINGS else buyers.c.user_id
        async with self._readers.single() as statements:
            row = await statements.row(
                select(column).where(column >= first).order_by(column).offset(rows).limit(1)
            )
        return BEYOND if row is None else str(row[0])

    async def _concerts_with(self, first: str, *, seats: int) -> str:
        taken = func.sum(sale_stock.c.held + sale_stock.c.sold)
        async with self._readers.single() as statements:
            found = await statements.rows(
                select(sale_stock.c.concert_id, taken)
                .where(sale_stock.c.concert_id >= first)
                .group_by(sale_stock.c.concert_id)
                .order_by(sale_stock.c.concert_id)
                .limit(seats + 1)
            )
        weight = 0
        for concert_id, count in found:
            if weight >= seats:
                return str(concert_id)
            # Those without a booking are work, too; and a broken counter may be anything.
            weight += max(1, count)
        return BEYOND

    async def findings(self, promise: Promise, first: str, beyond: str) -> Sequence[Finding]:
        """What breaks it among these ids, a limited number."""
        async with self._readers.transaction() as statements:
            return await findings(statements, promise, first=first, beyond=beyond)

    async def note_found(self, promise: Promise, count: int) -> None:
        """So much is broken, and not all was looked at yet."""
        async with self._writers.transaction() as statements:
            insert = statements.insert(promise_checks)
            await statements.change(
                insert.values(promise=promise.name, broken=count, checked_at=None).on_conflict_do_update(
                    index_elements=["promise"],
                    set_={"broken": insert.excluded.broken},
                    where=promise_checks.c.broken < insert.excluded.broken,
                )
            )
            await statements.commit()

    async def note_checked(self, counts: Mapping[Promise, int]) -> None:
        """All was looked at just now, and so much is broken."""
        async with self._writers.transaction() as statements:
            insert = statements.insert(promise_checks).values(checked_at=statements.clock())
            for promise, count in counts.items():
                await statements.change(
                    insert.values(promise=promise.name, broken=count).on_conflict_do_update(
                        index_elements=["promise"],
                        set_={"broken": insert.excluded.broken, "checked_at": insert.excluded.checked_at},
                    )
                )
            await statements.commit()

    async def standings(self) -> tuple[dict[str, Standing], datetime]:
        """How the promises stand by name, as far as they were checked, and what time it is."""
        async with self._quick_readers.transaction() as statements:
            rows = await statements.rows(select(promise_checks))
            now = await statements.now()
        return {row.promise: Standing(row.broken, row.checked_at) for row in rows}, now
