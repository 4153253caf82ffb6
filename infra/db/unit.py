"""The database as the rest of the house sees it: transactions that write, reads, and the outbox's far end."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime

from domain.events import Event
from infra.db.bookings import SqlBookingStore
from infra.db.concerts import SqlConcertStore
from infra.db.engine import (
    DatabaseLimits,
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
        catalogue_lock_s: float,
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
    """One database. `on_commit` hears the events of each commit at once; it must not fail or wait."""

    def __init__(
        self,
        url: str,
        *,
        limits: DatabaseLimits | None = None,
        on_commit: Callable[[Sequence[Event]], None] = lambda _: None,
    ) -> None:
        self.limits = limits or DatabaseLimits()
        self._on_commit = on_commit
        self.writers, self.readers, self._catalogue_readers = _pools(url, self.limits)
        self.reads = SqlReads(self.readers, catalogue=self._catalogue_readers)
        self.outbox = OutboxQueue(self.writers)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[SqlWriteUnit]:
        """A transaction that may write, rolled back unless committed. Raises: Overloaded, DatabaseAway."""
        async with self.writers.transaction() as statements:
            yield SqlWriteUnit(
                statements, catalogue_lock_s=self.limits.catalogue_lock_s, on_commit=self._on_commit
            )

    async def close(self) -> None:
        """Nothing of it is open any more."""
        for pool in {self.writers, self.readers, self._catalogue_readers}:
            await pool.engine.dispose()


def _pools(url: str, limits: DatabaseLimits) -> tuple[Pool, Pool, Pool]:
    """Writers, readers, and readers of the catalogue."""
    if is_sqlite(url):
        writers = Pool(sqlite_engine(url, limits, writes=True), size=1, queue_s=limits.queue_s)
        reading = sqlite_engine(url, limits, writes=False)
        readers = Pool(reading, size=limits.readers, queue_s=limits.queue_s)
        # SQLite can't lock one table, so nobody waits for the catalogue alone.
        return writers, readers, readers
    writing = postgres_engine(url, limits, size=limits.writers)
    reading = postgres_engine(url, limits, size=limits.readers, isolation="REPEATABLE READ")
    catalogue = postgres_engine(url, limits, size=limits.catalogue_readers, lock_s=limits.catalogue_lock_s)
    return (
        Pool(writing, size=limits.writers, queue_s=limits.queue_s),
        Pool(
            reading.execution_options(postgresql_readonly=True), size=limits.readers, queue_s=limits.queue_s
        ),
        # Who finds them all waiting for a lock does not queue for long.
        Pool(catalogue, size=limits.catalogue_readers, queue_s=limits.catalogue_lock_s),
    )
