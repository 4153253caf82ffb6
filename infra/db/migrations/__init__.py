"""Making the tables, and telling whether they are what this release needs. Runs Alembic from code."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from infra.db.engine import DatabaseLimits, is_sqlite, postgres_engine, sqlite_engine
from infra.db.errors import port_errors

# A migration may have to wait for running transactions, and may work on every row.
PATIENT = DatabaseLimits(statement_s=86_400.0, lock_s=60.0)
# Any number of our own; PostgreSQL documentation, section 9.28.10, "Advisory Lock Functions".
ADVISORY_LOCK = 7_242_001
BUSY_NAP_S = 0.05


async def migrate(url: str, progress: Callable[[str], None] = lambda _: None) -> None:
    """The tables are what this release needs; `progress` hears of each step.

    Concurrency: one at a time, a second caller waits and finds nothing left to do. All steps or none.
    Raises: DatabaseAway.
    """
    with port_errors():
        async with _connected(url, writes=True) as connection, connection.begin():
            if connection.dialect.name == "postgresql":
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})"))
            await connection.run_sync(_upgrade, progress)


async def is_migrated(url: str) -> bool:
    """Whether the tables are exactly what this release needs. Raises: DatabaseAway."""
    if is_sqlite(url) and not await asyncio.to_thread(Path(make_url(url).database or "").exists):
        return False
    with port_errors():
        async with _connected(url, writes=False) as connection:
            return await connection.run_sync(_is_at_head)


@asynccontextmanager
async def _connected(url: str, *, writes: bool) -> AsyncIterator[AsyncConnection]:
    engine = (
        sqlite_engine(url, PATIENT, writes=writes)
        if is_sqlite(url)
        else postgres_engine(url, PATIENT, size=1)
    )
    try:
        async with AsyncExitStack() as stack:
            yield await _let_in(engine, stack)
    finally:
        await engine.dispose()


async def _let_in(engine: AsyncEngine, stack: AsyncExitStack) -> AsyncConnection:
    """A connection, closed with the stack.

    SQLite waits for a lock, but not in the middle of switching a new file to WAL: where another process does that
    at the same moment it is "locked" at once (SQLite documentation, "sqlite3_busy_handler").
    """
    clock_s = asyncio.get_running_loop().time
    deadline_s = clock_s() + PATIENT.lock_s
    while True:
        try:
            return await stack.enter_async_context(engine.connect())
        except OperationalError:
            if engine.dialect.name != "sqlite" or clock_s() > deadline_s:
                raise
        await asyncio.sleep(random.uniform(0, BUSY_NAP_S))


def _upgrade(connection: Connection, progress: Callable[[str], None]) -> None:
    config = _config()
    config.attributes["connection"] = connection
    config.attributes["progress"] = progress
    command.upgrade(config, "head")


def _is_at_head(connection: Connection) -> bool:
    heads = ScriptDirectory.from_config(_config()).get_heads()
    if not inspect(connection).has_table("alembic_version"):
        return False
    return set(MigrationContext.configure(connection).get_current_heads()) == set(heads)


def _config() -> Config:
    config = Config()
    # Alembic reads % as the start of a name.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
