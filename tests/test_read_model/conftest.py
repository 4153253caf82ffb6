"""The two read models, each empty at first."""

from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from infra.read_model import (
    MemoryReadModel,
    RebuildableReadModel,
    RedisReadModel,
    redis_read_model,
)
from tests.servers import ValkeyServer, running_valkey

# A busy machine is no frozen server; tests about those have the product's own limit.
PATIENCE_S = 10.0


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """A server for the tests that do not end it."""
    with running_valkey() as server:
        yield server


@pytest.fixture
async def redis_model(valkey: ValkeyServer) -> AsyncIterator[RedisReadModel]:
    """A read model in an empty Valkey."""
    valkey.flush()
    async with redis_read_model(valkey.url, read_limit_s=PATIENCE_S) as model:
        yield model


@pytest.fixture
async def redis(valkey: ValkeyServer) -> AsyncIterator[Redis]:
    """The same Valkey, seen from outside."""
    async with Redis.from_url(valkey.url) as client:
        yield client


@pytest.fixture(params=["memory", "redis"])
async def model(request: pytest.FixtureRequest) -> AsyncIterator[RebuildableReadModel]:
    """Each of the two, empty."""
    if request.param == "memory":
        yield MemoryReadModel()
        return
    server = request.getfixturevalue("valkey")
    server.flush()
    async with redis_read_model(server.url, read_limit_s=PATIENCE_S) as redis_model:
        yield redis_model
