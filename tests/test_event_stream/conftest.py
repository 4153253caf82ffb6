"""A stream of each kind, and servers that a test may kill."""

from collections.abc import AsyncIterator, Iterator

import pytest

from infra.event_stream import (
    BroadcastEventStream,
    cluster_event_stream,
    memory_event_stream,
    redis_event_stream,
)
from tests.servers import ValkeyServer, running_valkey
from tests.test_event_stream.reading import HEARTBEAT_S, until_connected
from tests.valkey_cluster import ValkeyCluster, running_valkey_cluster


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    """A server of the test's own, which it may kill."""
    with running_valkey() as server:
        yield server


@pytest.fixture(scope="session")
def cluster() -> Iterator[ValkeyCluster]:
    """Three nodes, which take two seconds to agree: a test that breaks one puts it right again."""
    with running_valkey_cluster() as nodes:
        yield nodes


@pytest.fixture(params=["memory", "valkey", "cluster"])
async def stream(request: pytest.FixtureRequest) -> AsyncIterator[BroadcastEventStream]:
    """Each kind of stream: a test that uses this one is part of the contract."""
    if request.param == "memory":
        async with memory_event_stream() as memory:
            yield memory
    elif request.param == "cluster":
        nodes: ValkeyCluster = request.getfixturevalue("cluster")
        async with cluster_event_stream(nodes.url) as sharded:
            await until_connected(sharded, True)
            yield sharded
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


@pytest.fixture
async def cluster_stream(cluster: ValkeyCluster) -> AsyncIterator[BroadcastEventStream]:
    """A stream with a fast heartbeat on nodes that may be killed; connected to all of them."""
    async with cluster_event_stream(cluster.url, heartbeat_s=HEARTBEAT_S) as stream:
        await until_connected(stream, True)
        yield stream
