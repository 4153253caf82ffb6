"""What tests stand on: asyncio, and fresh databases of both kinds."""

import asyncio
import gc
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import certifi
import pytest
from redis import Redis

from infra.db.migrations import migrate
from infra.db.unit import Database
from tests.databases import PostgresDatabases
from tests.servers import running_postgres, running_valkey

KINDS = ("sqlite", "postgres")


def pytest_collection_finish() -> None:
    """What was imported and collected stays to the end: the garbage collector need not go through it ever again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """asyncio is what Frontrow runs on."""
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def cheap_secrets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A password's hash takes little of the 30 ms, and an HTTP client reads one certificate, not all in 33 ms."""
    end = "-----END CERTIFICATE-----\n"
    file = tmp_path_factory.mktemp("tls") / "one.pem"
    file.write_text(Path(certifi.where()).read_text().partition(end)[0] + end)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SSL_CERT_FILE", str(file))
        yield


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest) -> str:
    """A migrated database with nothing in it, once on SQLite and once on PostgreSQL."""
    url: str = request.getfixturevalue(f"{request.param}_database_url")
    return url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """The same, opened."""
    database = Database(database_url)
    yield database
    await database.close()


@pytest.fixture
def sqlite_database_url(migrated_sqlite: Path, tmp_path: Path) -> str:
    """A migrated SQLite database with nothing in it."""
    file = tmp_path / "frontrow.db"
    shutil.copy(migrated_sqlite, file)
    return f"sqlite+aiosqlite:///{file}"


@pytest.fixture
def postgres_database_url(postgres_databases: PostgresDatabases) -> Iterator[str]:
    """A migrated PostgreSQL database with nothing in it."""
    with postgres_databases.fresh() as url:
        yield url


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file to copy; never opened again."""
    file = tmp_path_factory.mktemp("template") / "frontrow.db"
    asyncio.run(migrate(f"sqlite+aiosqlite:///{file}"))
    return file


@pytest.fixture(scope="session")
def postgres_databases() -> Iterator[PostgresDatabases]:
    """PostgreSQL, started once, or the one that FRONTROW_TEST_DATABASE_URL names."""
    with ExitStack() as stack:
        url = os.environ.get("FRONTROW_TEST_DATABASE_URL")
        if url is None:
            url = stack.enter_context(running_postgres()).url("postgres")
        yield stack.enter_context(PostgresDatabases.prepared(url))


@pytest.fixture
def redis_url(redis_server_url: str) -> str:
    """An empty database of it."""
    with Redis.from_url(redis_server_url) as redis:
        redis.flushdb()
    return redis_server_url


@pytest.fixture(scope="session")
def redis_server_url() -> Iterator[str]:
    """Valkey, started once, or the one that FRONTROW_TEST_REDIS_URL names."""
    given = os.environ.get("FRONTROW_TEST_REDIS_URL")
    if given is not None:
        # Each of the processes that run tests at once (pytest-xdist) has a database of its own there.
        number = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
        yield urlsplit(given)._replace(path=f"/{number}").geturl()
        return
    with running_valkey() as server:
        yield server.url
