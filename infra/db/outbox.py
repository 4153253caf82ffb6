"""Events waiting to be told: written with what they tell of, claimed by lease, deleted once they are told."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from functools import cache
from typing import Any

from sqlalchemy import Integer, bindparam, delete, func, select, update
from sqlalchemy.sql.dml import ReturningUpdate

from domain.events import Event
from infra.codec import decode_event, encode_event
from infra.db import writes
from infra.db.engine import Pool
from infra.db.statements import Statements
from infra.db.tables import outbox

ERROR_MAX_LENGTH = 1_000
# A row that can't be read is set aside for so long: it may be a newer release's.
UNREADABLE_RETRY_S = 300.0


class SqlOutbox:
    """`domain.ports.Outbox` in one transaction. `added` is what was put in so far."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements
        self.added: list[Event] = []

    async def add(self, *events: Event) -> None:
        """Tell them after the commit, at least once."""
        if not events:
            return
        encoded = [encode_event(event) for event in events]
        await self._statements.later(
            _ADD, [{"kind": kind, "payload": payload, "attempts": 0} for kind, payload in encoded]
        )
        self.added += events


_ADD = writes.insert(
    outbox,
    *("kind", "payload", "attempts"),
    computed=lambda given: {"created_at": given.clock(), "due_at": given.clock()},
)


class First(Enum):
    """Whose turn it is among the rows that are due."""

    OLDEST = "oldest"
    NEWEST = "newest"


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """One claimed event. `attempts` counts this one too."""

    id: int
    event: Event
    attempts: int
    created_at: datetime


class OutboxQueue:
    """The relay's side, each call a transaction of its own. Raises (all methods): DatabaseAway, Overloaded."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def claim(
        self,
        *,
        worker: str,
        lease_s: float,
        limit: int,
        kinds: Sequence[type[Event]],
        first: First = First.OLDEST,
    ) -> list[OutboxRow]:
        """Up to `limit` due rows of these kinds, nobody else's for `lease_s`.

        Concurrency: two workers never get the same row; the lease is committed when this returns, and a row
        whose lease ran out is claimed anew. What is due is looked for, not what comes after the last one seen:
        a transaction that commits late is found.
        """
        claim = _claim(self._pool.engine.dialect.name == "postgresql", tuple(kinds), first, lease_s)
        async with self._pool.transaction() as statements:
            rows = await statements.rows(claim, {"how_many": limit, "by": worker})
            claimed = []
            for row in sorted(rows, key=lambda row: (row.created_at, row.id)):
                try:
                    event = decode_event(row.kind, row.payload)
                except ValueError as error:
                    await _set_aside(statements, row.id, error=str(error), retry_after_s=UNREADABLE_RETRY_S)
                    continue
                claimed.append(OutboxRow(row.id, event, row.attempts, row.created_at))
            await statements.commit()
        return claimed

    async def done(self, ids: Sequence[int]) -> None:
        """These are told: forget them. May repeat."""
        if not ids:
            return
        async with self._pool.transaction() as statements:
            # In one order, in case a worker whose lease ran out deletes the same ones.
            told = statements.one_of(outbox.c.id, ids)
            await statements.rows(select(outbox.c.id).where(told).order_by(outbox.c.id).with_for_update())
            await statements.change(delete(outbox).where(told))
            await statements.commit()

    async def failed(self, row_id: int, *, error: str, retry_after_s: float) -> None:
        """This one is tried again then; the others go on."""
        async with self._pool.transaction() as statements:
            await _set_aside(statements, row_id, error=error, retry_after_s=retry_after_s)
            await statements.commit()

    async def lag(self) -> tuple[int, float]:
        """How many events wait, and for how many seconds the oldest has."""
        async with self._pool.transaction() as statements:
            (row,) = await statements.rows(select(func.count(), func.min(outbox.c.created_at)))
            age_s = 0.0 if row[1] is None else (await statements.now() - row[1]).total_seconds()
        return row[0], max(0.0, age_s)


@cache
def _claim(
    is_postgres: bool, kinds: tuple[type[Event], ...], first: First, lease_s: float
) -> ReturningUpdate[Any]:
    by = (outbox.c.due_at, outbox.c.id)
    names = [kind.__name__ for kind in kinds]
    due = (
        select(outbox.c.id)
        .where(outbox.c.due_at <= writes.clock(is_postgres=is_postgres), outbox.c.kind.in_(names))
        .order_by(*(column.desc() for column in by) if first is First.NEWEST else by)
        .limit(bindparam("how_many", type_=Integer))
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    return (
        update(outbox)
        .where(outbox.c.id.in_(select(due.c.id)))
        .values(
            due_at=writes.clock(is_postgres=is_postgres, plus_s=lease_s),
            worker=bindparam("by"),
            attempts=outbox.c.attempts + 1,
        )
        .returning(outbox)
    )


async def _set_aside(statements: Statements, row_id: int, *, error: str, retry_after_s: float) -> None:
    await statements.change(
        update(outbox)
        .where(outbox.c.id == row_id)
        .values(due_at=statements.clock(plus_s=retry_after_s), worker=None, error=error[:ERROR_MAX_LENGTH])
    )
