"""The statements of one transaction."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import (
    ARRAY,
    Column,
    ColumnElement,
    CursorResult,
    Executable,
    Interval,
    LargeBinary,
    Row,
    Table,
    Text,
    func,
    literal,
    select,
    text,
    tuple_,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.base import Unavailable
from infra.db.errors import catalogue_errors, port_errors
from infra.db.tables import UtcDateTime

T = TypeVar("T")

# Values by the names of columns and of bound parameters; several rows for an INSERT.
Parameters = Mapping[str, object] | Sequence[Mapping[str, object]] | None


class Statements:
    """The statements of one transaction. Raises (all methods): DatabaseAway, TableMissing.

    What runs often is built once, with its values as parameters: building a statement with twenty values in it
    took SQLAlchemy longer (0.3 ms) than PostgreSQL took to execute it.
    """

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection
        self.is_postgres = connection.dialect.name == "postgresql"

    async def rows(
        self, statement: Executable, parameters: Parameters = None
    ) -> Sequence[Row[*tuple[Any, ...]]]:
        """All rows."""
        return (await self._run(statement, parameters)).all()

    async def row(self, statement: Executable, parameters: Parameters = None) -> Row[*tuple[Any, ...]] | None:
        """The only row, if there is one."""
        return (await self._run(statement, parameters)).one_or_none()

    async def change(self, statement: Executable, parameters: Parameters = None) -> int:
        """How many rows were written."""
        return (await self._run(statement, parameters)).rowcount

    async def change_each(
        self,
        statement: Executable,
        rows: Sequence[Mapping[str, object]],
        *,
        check: Callable[[], Awaitable[bool]],
    ) -> bool:
        """Whether each row's parameters changed one row. Several are sent together; `check` looks what came of it."""
        if len(rows) == 1:
            return await self.change(statement, rows[0]) == 1
        await self.change(statement, rows)
        return await check()

    async def begin(self) -> None:
        """Start the transaction; on SQLite a writer has the file to itself from here on."""
        with port_errors():
            await self._whole(_begun(self.connection))

    async def commit(self) -> None:
        """All of it is durable. Raises: DatabaseAway where that is not certain."""
        with port_errors():
            await self._whole(self.connection.commit())

    async def now(self) -> datetime:
        """The database's clock at this moment. SQLite runs on this machine, and has this clock."""
        if not self.is_postgres:
            return datetime.now(UTC)
        (row,) = await self.rows(select(func.clock_timestamp()))
        now: datetime = row[0]
        return now

    def clock(self, *, plus_s: float = 0.0) -> ColumnElement[datetime]:
        """The database's clock when the statement began, an index can be searched with it."""
        later = timedelta(seconds=plus_s)
        if not self.is_postgres:
            return literal(datetime.now(UTC) + later, UtcDateTime)
        moment: ColumnElement[datetime] = func.statement_timestamp(type_=UtcDateTime)
        return moment + literal(later, Interval) if plus_s else moment

    def insert(self, table: Table) -> "postgresql.Insert | sqlite.Insert":
        """An INSERT that knows ON CONFLICT."""
        return postgresql.insert(table) if self.is_postgres else sqlite.insert(table)

    def one_of(self, column: Column[Any], ids: Collection[str] | Collection[bytes]) -> ColumnElement[bool]:
        """`column` is one of `ids`, in one prepared statement for any number of them."""
        if self.is_postgres:
            kind = LargeBinary() if isinstance(column.type, LargeBinary) else Text()
            return column == func.any(literal(list(ids), ARRAY(kind)))
        return column.in_(list(ids))

    def one_of_pairs(
        self, columns: tuple[Column[Any], Column[Any]], pairs: Collection[tuple[str, str]]
    ) -> ColumnElement[bool]:
        """`columns` are one of `pairs`, in one prepared statement for any number of them."""
        if not self.is_postgres:
            return tuple_(*columns).in_(list(pairs))
        sides = [literal([pair[side] for pair in pairs], ARRAY(Text)) for side in (0, 1)]
        return tuple_(*columns).in_(select(*(func.unnest(side) for side in sides)))

    @asynccontextmanager
    async def catalogue(self, *, lock_s: float | None) -> AsyncIterator[None]:
        """Inside, the catalogue's tables may be locked or gone; with None they are left out.

        Raises: Unavailable in all three cases.
        """
        if lock_s is None:
            raise Unavailable("concert")
        if self.is_postgres:
            await self.rows(select(func.set_config("lock_timeout", f"{lock_s * 1_000:.0f}", True)))
        with catalogue_errors():
            yield
        if self.is_postgres:
            await self._run(text("SET LOCAL lock_timeout TO DEFAULT"))

    async def _run(
        self, statement: Executable, parameters: Parameters = None
    ) -> CursorResult[*tuple[Any, ...]]:
        with port_errors():
            try:
                return await self._whole(self.connection.execute(statement, parameters))
            except OSError:
                # Not one of the driver's errors, so SQLAlchemy would wait to roll back what does not answer.
                await self.connection.invalidate()
                raise

    async def _whole(self, operation: Coroutine[object, object, T]) -> T:
        """The operation's result; whoever is cancelled meanwhile leaves only once it has ended.

        A SQLite connection works in a thread that hears of no cancel: given up in the middle of its BEGIN, it
        takes the write lock after everybody has left. asyncpg cancels in the server.
        """
        if self.is_postgres:
            return await operation
        task = asyncio.ensure_future(operation)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            while not task.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # looked at: nobody is left to hear of it
            raise


async def _begun(connection: AsyncConnection) -> None:
    await connection.begin()
