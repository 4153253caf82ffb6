"""Fresh PostgreSQL databases, each a copy of a migrated one, on a server that may be anybody's."""

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
from sqlalchemy import make_url

from infra.db.migrations import migrate


class PostgresDatabases:
    """Makes databases on one server and takes them away again. Its own are named frontrow_test_..."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self._template = f"frontrow_test_template_{secrets.token_hex(4)}"

    @classmethod
    @contextmanager
    def prepared(cls, url: str) -> Iterator["PostgresDatabases"]:
        """With its template, migrated once. `url` names a database to give orders from."""
        databases = cls(url)
        databases.command(f'CREATE DATABASE "{databases._template}"')
        try:
            asyncio.run(migrate(databases._named(databases._template)))
            yield databases
        finally:
            databases.command(f'DROP DATABASE "{databases._template}" WITH (FORCE)')

    @contextmanager
    def fresh(self) -> Iterator[str]:
        """The URL of a migrated database with nothing in it, gone in the end."""
        with self.empty(template=self._template) as url:
            yield url

    @contextmanager
    def empty(self, *, template: str = "template1") -> Iterator[str]:
        """The URL of a copy of `template`, gone in the end."""
        name = f"frontrow_test_{secrets.token_hex(4)}"
        self.command(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        try:
            yield self._named(name)
        finally:
            self.command(f'DROP DATABASE "{name}" WITH (FORCE)')

    def command(self, sql: str) -> None:
        """Run one statement outside of any transaction."""
        asyncio.run(self._command(sql))

    async def _command(self, sql: str) -> None:
        connection = await asyncpg.connect(plain(self._url.render_as_string(hide_password=False)))
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    def _named(self, name: str) -> str:
        return self._url.set(database=name).render_as_string(hide_password=False)


def plain(url: str) -> str:
    """SQLAlchemy's URL as asyncpg reads it."""
    return url.replace("postgresql+asyncpg://", "postgresql://", 1)
