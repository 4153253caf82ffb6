"""The database as the rest of the house sees it: transactions that write, reads, and the outbox's far end."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncEngine

from domain.base import Unavailable
from domain.events import Event
from infra.db.bookings import SqlBookingStore
from infra.db.concerts import SqlConcertStore
from infra.db.engine import (
    DatabaseLimits,
    LockTimeout,
    Pool,
    Statements,
    is_sqlite,
    postgres_engine,
    sqlite_engine,
)
from infra.db.idempotency import SqlIdempotencyStore
from infra.db.outbox import OutboxQueue, SqlOutbox
from infra.db.payments import SqlPaymentStore
from infra.db.reads import SqlReads
from infra.db.sales import SqlSaleStore
from infra.db.users import SqlUserStore


class SqlWriteUnit:
    """`domain.ports.WriteUnit`: one transaction and the stores in it."""

    def __init__(
        self,
        statements: Statements,
        *,
        catalogue_lock_s: float | None,
        on_commit: Callable[[Sequence[Event]], None],
    ) -> None:
        self._statements = statements
        self._on_commit = on_commit
        self._outbox = SqlOutbox(statements)
        self.users = SqlUserStore(statements)
        self.concerts = SqlConcertStore(statements, lock_s=catalogue_lock_s)
        self.sales = SqlSaleStore(statements)
        self.bookings = SqlBookingStore(statements)
        self.payments = SqlPaymentStore(statements)
        self.idempotency = SqlIdempotencyStore(statements)
        self.outbox = self._outbox

    async def now(self) -> datetime:
        """The database's clock at this moment, not the transaction's start."""
        return await self._statements.now()

    async def commit(self) -> None:
        """All of it is durable when this returns. Raises: DatabaseAway where that is not certain."""
        await self._statements.commit()
        self._on_commit(self._outbox.added)


class Database:
    """One database; connections are made when they are needed.

    `on_commit` hears the events of each commit at once, `on_end` each transaction's name and how long it was open,
    seconds; neither may fail or wait. With "concert" among the modules `left_out`, whatever needs the catalogue's
    tables is Unavailable.
    """

    def __init__(
        self,
        url: str,
        *,
        limits: DatabaseLimits | None = None,
        on_commit: Callable[[Sequence[Event]], None] = lambda _: None,
        on_end: Callable[[str, float], None] = lambda _name, _duration_s: None,
        left_out: frozenset[str] = frozenset(),
    ) -> None:
        limits = limits or DatabaseLimits()
        has_catalogue = "concert" not in left_out
        self._on_commit = on_commit
        self._on_end = on_end
        self._catalogue_lock_s = limits.catalogue_lock_s if has_catalogue else None
        self.pools = _pools(url, limits)
        (
            self.writers,
            self._catalogue_writers,
            self.readers,
            catalogue_readers,
            self.patient_readers,
        ) = self.pools
        self.reads = SqlReads(self.readers, catalogue=catalogue_readers if has_catalogue else None)
        self.outbox = OutboxQueue(self.writers)

    @asynccontextmanager
    async def write(
        self, name: str = "unnamed", /, *, module: str = "booking"
    ) -> AsyncIterator[SqlWriteUnit]:
        """A transaction that may write, rolled back unless committed.

        Raises: Overloaded, DatabaseAway; Unavailable where others found the catalogue locked.
        """
        async with self._writing(module) as statements:
            opened_at_s = time.perf_counter()
            try:
                yield SqlWriteUnit(
                    statements, catalogue_lock_s=self._catalogue_lock_s, on_commit=self._on_commit
                )
            finally:
                self._on_end(name, time.perf_counter() - opened_at_s)

    @asynccontextmanager
    async def _writing(self, module: str) -> AsyncIterator[Statements]:
        if module != "concert":
            async with self.writers.transaction() as statements:
                yield statements
            return
        async with AsyncExitStack() as stack:
            try:
                statements = await stack.enter_async_context(self._catalogue_writers.transaction())
            except LockTimeout as error:
                raise Unavailable(module) from error
            yield statements

    async def close(self) -> None:
        """Nothing of it is open any more."""
        for pool in self.pools:
            await pool.engine.dispose()


def _pools(url: str, limits: DatabaseLimits) -> tuple[Pool, Pool, Pool, Pool, Pool]:
    """Writers, readers, and both of the catalogue's; and readers of everything."""
    if is_sqlite(url):
        writers = Pool(sqlite_engine(url, limits, writes=True), size=1, queue_s=limits.queue_s)
        reading = sqlite_engine(url, limits, writes=False)
        readers = Pool(reading, size=limits.readers, queue_s=limits.queue_s)
        # SQLite can't lock one table, and has no time-outs for statements.
        return writers, writers, readers, readers, readers
    writing = postgres_engine(url, limits, size=limits.writers)
    organising = postgres_engine(url, limits, size=limits.catalogue_writers)
    reading = postgres_engine(url, limits, size=limits.readers, isolation="REPEATABLE READ")
    catalogue = postgres_engine(url, limits, size=limits.catalogue_readers, lock_s=limits.catalogue_lock_s)
    patience = replace(limits, statement_s=limits.patient_statement_s)
    patient = postgres_engine(url, patience, size=1, isolation="REPEATABLE READ")
    # Long enough to hear that the tables are locked, if they are.
    catalogue_queue_s = max(limits.queue_s, 5 * limits.catalogue_lock_s)
    return (
        Pool(writing, size=limits.writers, queue_s=limits.queue_s),
        Pool(organising, size=limits.catalogue_writers, queue_s=catalogue_queue_s, gives_up=True),
        Pool(_read_only(reading), size=limits.readers, queue_s=limits.queue_s),
        Pool(
            _read_only(catalogue),
            size=limits.catalogue_readers,
            queue_s=catalogue_queue_s,
            gives_up=True,
        ),
        Pool(_read_only(patient), size=1, queue_s=limits.queue_s),
    )


def _read_only(engine: AsyncEngine) -> AsyncEngine:
    return engine.execution_options(postgresql_readonly=True)
