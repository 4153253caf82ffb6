"""The statements of one transaction."""

import asyncio
from collections.abc import AsyncIterator, Collection, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import (
    ARRAY,
    Column,
    ColumnElement,
    CursorResult,
    Executable,
    Row,
    Table,
    bindparam,
    func,
    literal,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.base import Unavailable
from infra.db.errors import catalogue_errors, port_errors
from infra.db.tables import UtcDateTime
from infra.db.writes import Values, Write, clock, plain, together

T = TypeVar("T")

# Several rows for an INSERT.
Parameters = Values | Sequence[Values] | None
Ids = Collection[str] | Collection[bytes] | Collection[int]
_Waiting = list[tuple[Write, list[Values]]]


class Statements:
    """The statements of one transaction. Raises (all methods): DatabaseAway, TableMissing.

    What runs often is built once, with its values as parameters: building a statement with twenty values in it
    took SQLAlchemy longer (0.3 ms) than PostgreSQL took to execute it. What is written waits for the next statement
    and is sent with what else waits then (`writes.py`).
    """

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection
        self.is_postgres = connection.dialect.name == "postgresql"
        # What the clock said when the last sale was locked, for `now`.
        self.locked_at: datetime | None = None
        self._later: _Waiting = []

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

    async def later(self, write: Write, rows: Sequence[Values]) -> None:
        """Written before the next statement is sent, or the commit, together with what else waits for that.

        Raises: AssertionError then, where one of the rows was not as it was read.
        """
        assert all(row.keys() == write.names for row in rows), f"each of {sorted(write.names)} has a value"
        for waiting, its_rows in self._later:
            if waiting is write and write.only_adds:
                its_rows += rows
                return
            if waiting.table is write.table:
                await self.flush()
                break
        self._later.append((write, [*rows]))

    async def returned(self, write: Write, rows: Sequence[Values]) -> Sequence[Row[*tuple[Any, ...]]]:
        """What this one returns, sent now with all that waits."""
        await self.later(write, rows)
        return await self.flush()

    async def flush(self) -> Sequence[Row[*tuple[Any, ...]]]:
        """Whatever waits is sent; what the last of it returns. Raises: AssertionError as in `later`."""
        waiting, self._later = self._later, []
        if not waiting:
            return []
        write_all = self._at_once if self.is_postgres else self._one_by_one
        written, returned = await write_all(waiting)
        for (write, rows), count in zip(waiting, written, strict=True):
            is_done = write.returning or count == len(rows)
            assert is_done, f"a row of {write.table.name} was not as it was read"
        return returned

    async def _at_once(self, waiting: _Waiting) -> tuple[Sequence[int], Sequence[Row[*tuple[Any, ...]]]]:
        parameters: dict[str, object] = {}
        with port_errors():
            for write, rows in waiting:
                parameters |= write.sent(rows)
        found = await self.rows(together(tuple(write for write, _ in waiting)), parameters)
        written = found[0][: len(waiting)]
        return written, [row for row in found if row[-1] is not None] if waiting[-1][0].returning else []

    async def _one_by_one(self, waiting: _Waiting) -> tuple[Sequence[int], Sequence[Row[*tuple[Any, ...]]]]:
        written: list[int] = []
        returned: Sequence[Row[*tuple[Any, ...]]] = []
        for write, rows in waiting:
            if write.returning:
                returned = await self.rows(write.on_sqlite.returning(*write.returning), write.each(rows))
                written.append(len(returned))
            else:
                written.append(await self.change(write.on_sqlite, write.each(rows)))
        return written, returned

    async def begin(self) -> None:
        """Start the transaction; on SQLite a writer has the file to itself from here on."""
        with port_errors():
            await self._whole(_begun(self.connection))

    async def commit(self) -> None:
        """All of it is durable. Raises: DatabaseAway where that is not certain."""
        await self.flush()
        with port_errors():
            await self._whole(self.connection.commit())

    async def now(self) -> datetime:
        """The database's clock, at this moment or when the last sale was locked."""
        if self.locked_at is not None:
            return self.locked_at
        if not self.is_postgres:
            return datetime.now(UTC)
        (row,) = await self.rows(_NOW)
        now: datetime = row[0]
        return now

    def clock(self, *, plus_s: float = 0.0) -> ColumnElement[datetime]:
        """The database's clock when the statement begins, an index can be searched with it."""
        return clock(is_postgres=self.is_postgres, plus_s=plus_s)

    def insert(self, table: Table) -> "postgresql.Insert | sqlite.Insert":
        """An INSERT that knows ON CONFLICT."""
        return postgresql.insert(table) if self.is_postgres else sqlite.insert(table)

    def one_of(
        self, column: Column[Any], ids: Collection[str] | Collection[bytes] | Collection[int]
    ) -> ColumnElement[bool]:
        """`column` is one of `ids`, in one prepared statement for any number of them."""
        if self.is_postgres:
            return column == func.any(literal(list(ids), ARRAY(plain(column.type))))
        return column.in_(list(ids))

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
        if self._later:
            await self.flush()
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


def one_of_sent(column: Column[Any], name: str, *, is_postgres: bool) -> ColumnElement[bool]:
    """`column` is one of those that are sent as the parameter `name`: for statements that are built once."""
    if is_postgres:
        return column == func.any(bindparam(name, type_=ARRAY(plain(column.type))))
    return column.in_(bindparam(name, expanding=True))


_NOW = select(func.clock_timestamp(type_=UtcDateTime))


async def _begun(connection: AsyncConnection) -> None:
    await connection.begin()
