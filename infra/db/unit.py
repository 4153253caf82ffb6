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
    Pool,
    is_sqlite,
    postgres_engine,
    sqlite_engine,
)
from infra.db.errors import LockTimeout
from infra.db.idempotency import SqlIdempotencyStore
from infra.db.outbox import OutboxQueue, SqlOutbox
from infra.db.payments import SqlPaymentStore
from infra.db.reads import SqlReads
from infra.db.sales import SqlSaleStore
from infra.db.statements import Statements
from infra.db.turns import Turns
from infra.db.users import SqlUserStore

# Who begins something waits in a queue of bounded length, payers in another than everybody else, so that neither rush
# starves the other. What was begun before and what the worker does waits in a third and is never turned away: money
# may have moved, seats must come back.
_BUYERS = frozenset({"book", "cancel", "sign_up", "log_in.find", "log_in", "log_out"})
_PAYERS = frozenset({"pay.begin", "webhook.find"})


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
        """The database's clock, at this moment or when the last sale was locked, never the transaction's start."""
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
        self.writers, self._organisers, self.readers, catalogue_readers, self.patient_readers = self.pools
        self.payers = self.writers.beside(queue_max=limits.queue_max)
        self.steady_writers = self.writers.beside(queue_max=None)
        self.steady_readers = self.readers.beside(queue_max=None)
        catalogue = catalogue_readers if has_catalogue else None
        self.reads = SqlReads(self.readers, catalogue=catalogue)
        self.steady_reads = SqlReads(self.steady_readers, catalogue=catalogue)
        self.outbox = OutboxQueue(self.steady_writers)

    def waiting(self) -> dict[str, int]:
        """How many requests wait for a connection, by queue."""
        return {
            "bookings": self.writers.waiting,
            "payments": self.payers.waiting,
            "reads": self.readers.waiting,
            "begun": self.steady_writers.waiting,
        }

    @asynccontextmanager
    async def write(
        self, name: str = "unnamed", /, *, module: str = "booking"
    ) -> AsyncIterator[SqlWriteUnit]:
        """A transaction that may write, rolled back unless committed.

        Raises: Overloaded, at once where its queue is full; DatabaseAway; Unavailable where others found the
        catalogue locked.
        """
        async with self._writing(name, module) as statements:
            opened_at_s = time.perf_counter()
            try:
                yield SqlWriteUnit(
                    statements, catalogue_lock_s=self._catalogue_lock_s, on_commit=self._on_commit
                )
            finally:
                self._on_end(name, time.perf_counter() - opened_at_s)

    @asynccontextmanager
    async def _writing(self, name: str, module: str) -> AsyncIterator[Statements]:
        if module != "concert":
            async with self._writers_of(name).transaction() as statements:
                yield statements
            return
        async with AsyncExitStack() as stack:
            try:
                statements = await stack.enter_async_context(self._organisers.transaction())
            except LockTimeout as error:
                raise Unavailable(module) from error
            yield statements

    def _writers_of(self, name: str) -> Pool:
        if name in _PAYERS:
            return self.payers
        return self.writers if name in _BUYERS else self.steady_writers

    async def close(self) -> None:
        """Nothing of it is open any more."""
        for pool in self.pools:
            await pool.engine.dispose()


def _pools(url: str, limits: DatabaseLimits) -> tuple[Pool, Pool, Pool, Pool, Pool]:
    """Writers, readers, and both of the catalogue's; and readers of everything."""

    def pool(engine: AsyncEngine, size: int) -> Pool:
        return Pool(engine, Turns(size), queue_s=limits.queue_s, queue_max=limits.queue_max)

    def catalogue_pool(engine: AsyncEngine, size: int) -> Pool:
        # Long enough to hear that the tables are locked, if they are.
        queue_s = max(limits.queue_s, 5 * limits.catalogue_lock_s)
        return Pool(engine, Turns(size), queue_s=queue_s, queue_max=limits.queue_max, gives_up=True)

    if is_sqlite(url):
        writers = pool(sqlite_engine(url, limits, writes=True), 1)
        readers = pool(sqlite_engine(url, limits, writes=False), limits.readers)
        # SQLite can't lock one table, and has no time-outs for statements.
        return writers, writers, readers, readers, readers
    writing = postgres_engine(url, limits, size=limits.writers)
    organising = postgres_engine(url, limits, size=limits.catalogue_writers)
    reading = postgres_engine(url, limits, size=limits.readers, isolation="REPEATABLE READ")
    catalogue = postgres_engine(url, limits, size=limits.catalogue_readers, lock_s=limits.catalogue_lock_s)
    patience = replace(limits, statement_s=limits.patient_statement_s)
    patient = postgres_engine(url, patience, size=1, isolation="REPEATABLE READ")
    return (
        pool(writing, limits.writers),
        catalogue_pool(organising, limits.catalogue_writers),
        pool(_read_only(reading), limits.readers),
        catalogue_pool(_read_only(catalogue), limits.catalogue_readers),
        pool(_read_only(patient), 1),
    )


def _read_only(engine: AsyncEngine) -> AsyncEngine:
    return engine.execution_options(postgresql_readonly=True)
