"""Connections to SQLite or PostgreSQL, the transactions on them, and what the database's errors mean.

SQLite has one writer, who queues in this process instead of spinning on a busy file, and readers with
snapshots of their own. PostgreSQL has a pool each for writers, readers and the catalogue, so that none can
starve another.
"""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, event, exc, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection, QueuePool

from domain.base import Overloaded, Unavailable
from infra.db.errors import LockTimeout, port_errors
from infra.db.statements import Statements
from infra.db.turns import Turns


@dataclass(frozen=True, slots=True)
class DatabaseLimits:
    """How many connections, and how long anything may take. SQLite always has one writer."""

    writers: int = 10
    readers: int = 8
    catalogue_readers: int = 4
    catalogue_writers: int = 4
    queue_s: float = 25.0
    # Enough for 600 people who want the same seat at the same moment.
    queue_max: int = 700
    connect_s: float = 5.0
    statement_s: float = 15.0
    lock_s: float = 10.0
    catalogue_lock_s: float = 1.0
    # For what looks at everything there is, such as `frontrow verify`.
    patient_statement_s: float = 3_600.0


class Pool:
    """Some connections, and a queue of bounded length and patience in front of them: first come, first served.

    One that `gives_up` refuses everybody in the queue once somebody found the tables locked.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        turns: Turns,
        *,
        queue_s: float,
        queue_max: int | None,
        gives_up: bool = False,
    ) -> None:
        self.engine = engine
        self._turns = turns
        self._queue = turns.queue(length_max=queue_max)
        self._queue_s = queue_s
        self._gives_up = gives_up
        self._unavailable_at_s = -math.inf
        # Without a transaction around it one statement costs one round trip instead of three. SQLite's driver
        # can't be told so, and has no round trips.
        self._is_sqlite = engine.dialect.name == "sqlite"
        options = {} if self._is_sqlite else {"isolation_level": "AUTOCOMMIT"}
        self._without_transaction = engine.execution_options(**options)

    def beside(self, *, queue_max: int | None) -> "Pool":
        """The same connections behind another queue; with None nobody is turned away from it."""
        return Pool(self.engine, self._turns, queue_s=self._queue_s, queue_max=queue_max)

    @property
    def waiting(self) -> int:
        """How many wait for a connection in this queue."""
        return len(self._queue)

    def check_room(self) -> None:
        """Raises: Overloaded where the queue is as long as it may be."""
        self._queue.check_room()

    def transaction(self) -> AbstractAsyncContextManager[Statements]:
        """Rolled back at the end unless committed. Raises: Overloaded, DatabaseAway."""
        return self._statements(self.engine, begins=True)

    def single(self) -> AbstractAsyncContextManager[Statements]:
        """For one statement that reads, a snapshot by itself. Raises: Overloaded, DatabaseAway."""
        return self._statements(self._without_transaction, begins=self._is_sqlite)

    @asynccontextmanager
    async def _statements(self, engine: AsyncEngine, *, begins: bool) -> AsyncIterator[Statements]:
        clock_s = asyncio.get_running_loop().time
        came_at_s = clock_s()
        if not self._queue.enter_at_once():
            try:
                async with asyncio.timeout(self._queue_s):
                    await self._queue.enter()
            except TimeoutError as error:
                raise Overloaded from error
        try:
            if came_at_s <= self._unavailable_at_s:
                # What somebody found locked while this one waited is not waited for once more.
                raise LockTimeout
            async with _lent(engine) as connection:
                statements = Statements(connection)
                if begins:
                    await statements.begin()
                yield statements
        except (Unavailable, LockTimeout):
            if self._gives_up:
                self._unavailable_at_s = clock_s()
            raise
        finally:
            self._queue.leave()


@asynccontextmanager
async def _lent(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection, given back in the end; what it has not committed by then is rolled back."""
    with port_errors():
        connection = await _connected(engine)
    try:
        yield connection
    finally:
        # To its end, or whoever is cancelled meanwhile leaves the pool a connection short, or one open that is closed.
        giving = asyncio.ensure_future(_give_back(connection))
        try:
            await asyncio.shield(giving)
        finally:
            if not giving.done():
                await asyncio.wait([giving])


async def _connected(engine: AsyncEngine) -> AsyncConnection:
    """A connection that is there already, or a new one.

    A new one is made to its end: what is cancelled meanwhile would leave it open, with nobody to close it.
    """
    pool = engine.pool
    if isinstance(pool, QueuePool) and pool.checkedin() > 0:
        return await engine.connect()
    making = asyncio.ensure_future(engine.connect().start())
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        await asyncio.wait([making])
        if not making.cancelled() and making.exception() is None:
            await _give_back(making.result())
        raise


async def _give_back(connection: AsyncConnection) -> None:
    try:
        await connection.close()
    except (exc.DBAPIError, OSError):
        # It is lost, and its transaction with it. What was read or committed is known: nobody needs to hear of this.
        return


# ---------------------------------------------------------------- engines
def is_sqlite(url: str) -> bool:
    """Whether it names a SQLite file. Raises: ValueError for anything but a file and PostgreSQL."""
    parsed = make_url(url)
    if parsed.drivername == "postgresql+asyncpg":
        return False
    if parsed.drivername != "sqlite+aiosqlite" or parsed.database in (None, "", ":memory:"):
        raise ValueError("the database is sqlite+aiosqlite:///FILE or postgresql+asyncpg://...")
    return True


def sqlite_engine(url: str, limits: DatabaseLimits, *, writes: bool) -> AsyncEngine:
    """One writer, or readers that can't write."""
    engine = create_async_engine(
        url,
        pool_size=1 if writes else limits.readers,
        max_overflow=0,
        hide_parameters=True,
        # The driver's own transaction control off: it begins too late and never for a SELECT.
        connect_args={"isolation_level": None, "timeout": limits.lock_s},
    )
    begin = "BEGIN IMMEDIATE" if writes else "BEGIN"

    def prepare(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        # FULL: a commit that answered is on the disk, also after a power cut.
        settings = ["journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"]
        for setting in settings if writes else [*settings, "query_only = ON"]:
            cursor.execute(f"PRAGMA {setting}")
        cursor.close()

    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine.sync_engine, "connect", prepare)
    event.listen(engine.sync_engine, "begin", start)
    return engine


def postgres_engine(
    url: str,
    limits: DatabaseLimits,
    *,
    size: int,
    isolation: str = "READ COMMITTED",
    lock_s: float | None = None,
) -> AsyncEngine:
    """A pool whose connections notice a restarted server before they are used."""
    server_settings = {
        "application_name": "frontrow",
        # Also where the server says less: "off" loses what was answered, "local" loses it with the machine when a
        # standby takes over. "remote_apply" keeps nothing that "on" does not, and nobody reads from a standby here.
        "synchronous_commit": "on",
        "lock_timeout": f"{(lock_s or limits.lock_s) * 1_000:.0f}",
        "statement_timeout": f"{limits.statement_s * 1_000:.0f}",
        # A process that stands still in the middle of a transaction lets go of its locks.
        "idle_in_transaction_session_timeout": f"{limits.statement_s * 1_000:.0f}",
    }
    engine = create_async_engine(
        url,
        pool_size=size,
        max_overflow=0,
        hide_parameters=True,
        isolation_level=isolation,
        connect_args={
            "timeout": limits.connect_s,
            # Past the server's own time-out: only for a server that does not answer at all.
            "command_timeout": limits.statement_s + 2.0,
            "server_settings": server_settings,
        },
    )

    def check_out(connection: DBAPIConnection, _: ConnectionPoolEntry, __: PoolProxiedConnection) -> None:
        # The event loop has seen the end of a lost connection already: no round trip is needed to know.
        if connection.driver_connection.is_closed():
            raise exc.InvalidatePoolError

    event.listen(engine.sync_engine, "checkout", check_out)
    return engine
