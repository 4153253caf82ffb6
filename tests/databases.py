"""Fresh PostgreSQL databases, each a copy of a migrated one, on a server that may be anybody's."""

import asyncio
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
from sqlalchemy import make_url

from infra.db.migrations import migrate
from infra.db.tables import metadata

# What a database was used for makes it slower: statistics of tables that were full, rows and pages that are dead.
USES_MAX = 10


class PostgresDatabases:
    """Makes databases on one server and takes them away again. Its own are named frontrow_test_..."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self._template = _new_name()
        self._clean: list[str] = []
        self._uses: Counter[str] = Counter()

    @classmethod
    @contextmanager
    def prepared(cls, url: str) -> Iterator["PostgresDatabases"]:
        """With its template, migrated once. `url` names a database to give orders from."""
        databases = cls(url)
        databases._command(f'CREATE DATABASE "{databases._template}"')
        try:
            asyncio.run(migrate(databases._named(databases._template)))
            yield databases
        finally:
            for name in (databases._template, *databases._clean):
                databases._drop(name)

    @contextmanager
    def fresh(self) -> Iterator[str]:
        """The URL of a migrated database with nothing in it; one that was used and emptied, if there is one.

        Each is used a few times: copying one for every test would cost more than most tests themselves.
        """
        name = self._clean.pop() if self._clean else self._copy(self._template)
        self._uses[name] += 1
        try:
            yield self._named(name)
        finally:
            if self._uses[name] < USES_MAX and asyncio.run(_is_emptied(self._named(name))):
                self._clean.append(name)
            else:
                self._drop(name)

    @contextmanager
    def untouched(self) -> Iterator[str]:
        """The URL of a migrated database that nobody has used: its planner has no statistics of what once was there."""
        name = self._copy(self._template)
        try:
            yield self._named(name)
        finally:
            self._drop(name)

    @contextmanager
    def empty(self) -> Iterator[str]:
        """The URL of a database without a table, gone in the end."""
        name = self._copy("template1")
        try:
            yield self._named(name)
        finally:
            self._drop(name)

    def _copy(self, template: str) -> str:
        name = _new_name()
        # PostgreSQL 15's other way to copy took six times as long.
        self._command(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY FILE_COPY')
        return name

    def _drop(self, name: str) -> None:
        self._command(f'DROP DATABASE "{name}" WITH (FORCE)')

    def _command(self, sql: str) -> None:
        asyncio.run(_execute(self._named(self._url.database or "postgres"), sql))

    def _named(self, name: str) -> str:
        return self._url.set(database=name).render_as_string(hide_password=False)


async def _is_emptied(url: str) -> bool:
    """Whether it is as it was made again: nobody connected, every table there and empty."""
    everybody_else = "datname = current_database() AND pid <> pg_backend_pid()"
    tables = "; ".join(f"DELETE FROM {table.name}" for table in reversed(metadata.sorted_tables))
    try:
        await _execute(
            url,
            f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {everybody_else}; {tables}",
        )
    except asyncpg.UndefinedTableError:
        return False
    return True


async def _execute(url: str, sql: str) -> None:
    connection = await asyncpg.connect(url.replace("postgresql+asyncpg://", "postgresql://", 1))
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


def _new_name() -> str:
    return f"frontrow_test_{secrets.token_hex(4)}"
