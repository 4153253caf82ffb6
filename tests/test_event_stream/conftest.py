"""A stream of each kind, and servers that a test may kill."""

from collections.abc import AsyncIterator, Iterator

import pytest

from infra.event_stream import BroadcastEventStream, memory_event_stream, redis_event_stream
from tests.servers import ValkeyServer, running_valkey
from tests.test_event_stream.reading import HEARTBEAT_S, until_connected


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    """A server of the test's own, which it may kill."""
    with running_valkey() as server:
        yield server


@pytest.fixture(params=["memory", "valkey"])
async def stream(request: pytest.FixtureRequest) -> AsyncIterator[BroadcastEventStream]:
    """Each kind of stream: a test that uses this one is part of the contract."""
    if request.param == "memory":
        async with memory_event_stream() as memory:
            yield memory
    else:
        server: ValkeyServer = request.getfixturevalue("valkey")
        async with redis_event_stream(server.url) as redis:
            await until_connected(redis, True)
            yield redis


@pytest.fixture
async def redis_stream(valkey: ValkeyServer) -> AsyncIterator[BroadcastEventStream]:
    """A stream with a fast heartbeat on a server that may be killed; connected."""
    async with redis_event_stream(valkey.url, heartbeat_s=HEARTBEAT_S) as stream:
        await until_connected(stream, True)
        yield stream
