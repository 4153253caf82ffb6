"""The migrations make exactly the tables that the code works with."""

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import create_async_engine

from domain.base import DatabaseAway
from infra.db.migrations import is_migrated, migrate
from infra.db.tables import metadata
from tests.databases import PostgresDatabases


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A database without a table."""
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path / 'empty.db'}"
        return
    databases: PostgresDatabases = request.getfixturevalue("postgres_databases")
    with databases.empty() as url:
        yield url


@pytest.mark.anyio
async def test_migrated_tables_are_the_ones_in_the_code(database_url: str) -> None:
    """Columns, types, indexes and constraints: Alembic finds no difference, and no CHECK or WHERE is missing."""

    def differences(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        found: list[Any] = compare_metadata(context, metadata)
        return found

    def definitions(connection: Connection) -> dict[str, Any]:
        inspector = inspect(connection)
        return {
            table.name: (
                sorted(
                    (check["name"] or "", check["sqltext"])
                    for check in inspector.get_check_constraints(table.name)
                ),
                sorted(
                    (index["name"] or "", index["unique"], *map(str, index["dialect_options"].values()))
                    for index in inspector.get_indexes(table.name)
                ),
                sorted(
                    (column["name"], str(column["type"]), column["nullable"])
                    for column in inspector.get_columns(table.name)
                ),
            )
            for table in metadata.sorted_tables
        }

    def made_from_code(connection: Connection) -> dict[str, Any]:
        metadata.drop_all(connection)
        metadata.create_all(connection)
        return definitions(connection)

    engine = create_async_engine(database_url)
    async with engine.begin() as connection:
        assert await connection.run_sync(differences) == []
        migrated = await connection.run_sync(definitions)
        assert migrated == await connection.run_sync(made_from_code)
        assert len(migrated["bookings"][0]) == 4
    await engine.dispose()


@pytest.mark.anyio
async def test_migrating_tells_its_steps_and_may_repeat(empty_url: str) -> None:
    """Each step once; afterwards there is nothing left to do."""
    steps: list[str] = []
    assert not await is_migrated(empty_url)
    await migrate(empty_url, steps.append)
    assert await is_migrated(empty_url)
    await migrate(empty_url, steps.append)
    assert steps == [f"Made migration {number}." for number in ("0001", "0002", "0003")]


@pytest.mark.anyio
async def test_parallel_migrations_wait_for_each_other(empty_url: str) -> None:
    """Four processes that start at once make the tables once."""
    steps: list[str] = []
    await asyncio.gather(*(migrate(empty_url, steps.append) for _ in range(4)))
    assert steps == [f"Made migration {number}." for number in ("0001", "0002", "0003")]


@pytest.mark.anyio
async def test_migrating_waits_for_whoever_writes_a_file_that_is_not_wal_yet(tmp_path: Path) -> None:
    """SQLite itself answers "locked" at once there, whatever time it was given."""
    file = tmp_path / "empty.db"
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    migrating = asyncio.create_task(migrate(f"sqlite+aiosqlite:///{file}"))
    done, _ = await asyncio.wait([migrating], timeout=0.3)
    assert not done
    other.execute("ROLLBACK")
    other.close()
    await migrating
    assert await is_migrated(f"sqlite+aiosqlite:///{file}")


@pytest.mark.anyio
async def test_other_release_is_not_migrated(empty_url: str) -> None:
    """A database that a newer release migrated is not what this one needs."""
    await migrate(empty_url)
    engine = create_async_engine(empty_url)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await engine.dispose()
    assert not await is_migrated(empty_url)


def test_looking_makes_no_file(tmp_path: Path) -> None:
    """Asking about a SQLite file that is not there does not make one."""
    assert not asyncio.run(is_migrated(f"sqlite+aiosqlite:///{tmp_path / 'none.db'}"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.anyio
async def test_absent_server_is_said_to_be_away() -> None:
    """No traceback of a driver, but the port's own error."""
    with pytest.raises(DatabaseAway):
        await is_migrated("postgresql+asyncpg://nobody@127.0.0.1:1/none")
