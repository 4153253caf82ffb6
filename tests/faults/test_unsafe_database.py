"""A PostgreSQL that may lose what it has answered is refused at the start, unless told otherwise."""

import asyncio
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from infra.db.migrations import migrate
from infra.db.unit import Database
from tests.servers import running_postgres, running_valkey
from tests.shell import PATIENCE_S, Shell

# What `serve` and `worker` need besides a database.
REST = {"demo": "0", "stripe_api_key": "sk_test_x", "allow_unsafe_database": "0"}


@pytest.fixture(scope="module")
def durable_url() -> Iterator[str]:
    """A migrated database on a server that keeps what it commits."""
    with running_postgres(is_durable=True) as server:
        server.create_database("frontrow")
        asyncio.run(migrate(server.url("frontrow")))
        yield server.url("frontrow")


@pytest.fixture
def commits(durable_url: str) -> Iterator[Database]:
    """The same, opened; how its sessions commit is put back in the end."""
    database = Database(durable_url)
    yield database
    asyncio.run(_say(database, "ALTER DATABASE frontrow RESET synchronous_commit"))


async def _say(database: Database, sql: str) -> str:
    """How those who connect afterwards commit."""
    async with database.writers.transaction() as statements:
        await statements.change(text(sql))
        await statements.commit()
    await database.close()
    async with database.writers.transaction() as statements:
        (row,) = await statements.rows(text("SHOW synchronous_commit"))
    await database.close()
    return str(row[0])


def refusal(shell: Shell, *arguments: str) -> str:
    """What the command said before it ended with 1."""
    with shell.running(*arguments) as refused:
        said = refused.hears("Error: (.*)")[1]
        assert refused.process.wait(PATIENCE_S) == 1
    return said


def test_no_process_sells_on_a_server_that_forgets() -> None:
    """Without fsync and full page writes neither API nor worker starts; looking at what is there still works."""
    with running_postgres() as server, running_valkey() as valkey:
        server.create_database("frontrow")
        asyncio.run(migrate(server.url("frontrow")))
        shell = Shell(REST | {"database_url": server.url("frontrow"), "redis_url": valkey.url})
        for command in (["serve", "--port", "0"], ["worker"]):
            line = refusal(shell, *command)
            assert line.startswith("PostgreSQL runs with fsync = off and full_page_writes = off: ")
            assert "FRONTROW_ALLOW_UNSAFE_DATABASE=1" in line
        assert shell.run("verify", redis_url="").exit_code == 0
        with shell.running("serve", "--port", "0", allow_unsafe_database="1") as served:
            served.hears(r"Frontrow serves http://")


def test_commits_that_are_not_waited_for_are_refused(durable_url: str, commits: Database) -> None:
    """Also where only this database is set so; everything on again, it starts."""
    shell = Shell(REST | {"database_url": durable_url})
    asyncio.run(_say(commits, "ALTER DATABASE frontrow SET synchronous_commit = off"))
    line = refusal(shell, "serve", "--port", "0")
    assert line.startswith("PostgreSQL runs with synchronous_commit = off: ")
    asyncio.run(_say(commits, "ALTER DATABASE frontrow RESET synchronous_commit"))
    with shell.running("serve", "--port", "0") as served:
        served.hears(r"Frontrow serves http://")


@pytest.mark.parametrize("told", ["off", "local", "remote_write", "remote_apply"])
def test_our_own_commits_are_always_on_the_disk(commits: Database, told: str) -> None:
    """Whatever the server says, and however late it comes to say so."""
    assert asyncio.run(_say(commits, f"ALTER DATABASE frontrow SET synchronous_commit = {told}")) == "on"
