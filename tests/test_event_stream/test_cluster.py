"""What a cluster can do to a stream: a node dies, freezes or comes back, and a slot moves."""

import asyncio

import pytest
from redis.crc import key_slot

from domain.ports import Message, Resync
from infra.app.composition import composed
from infra.event_stream import BroadcastEventStream, cluster_event_stream
from infra.event_stream.redis_backend import CHANNEL_PREFIX, PUBLISH_LIMIT_S, REGISTER_LIMIT_S
from infra.settings import Settings
from tests.servers import ValkeyServer
from tests.test_event_stream.reading import DONE, HEARTBEAT_S, LIMIT_S, next_item, until, until_connected
from tests.valkey_cluster import NODES, SLOTS, ValkeyCluster, ValkeyNode, running_valkey_cluster

pytestmark = pytest.mark.anyio

# One on each node, and one more on the first one's.
FIRST, SECOND, THIRD, FIRST_TOO = "d", "a", "b", "h"


async def test_each_node_carries_the_channels_whose_slots_it_has(
    cluster: ValkeyCluster, cluster_stream: BroadcastEventStream
) -> None:
    """Another process hears each channel by its own node, which knows of nobody when the last listener left."""
    channels = (FIRST, SECOND, THIRD)
    assert [_owner(cluster, channel) for channel in channels] == list(cluster.nodes)
    for channel in channels:
        async with cluster_stream.listen(channel) as listener, cluster_event_stream(cluster.url) as other:
            assert [_has_subscriber(node, channel) for node in cluster.nodes] == [
                node is _owner(cluster, channel) for node in cluster.nodes
            ]
            await other.publish(channel, DONE)
            assert await next_item(listener) == DONE
        node = _owner(cluster, channel)
        await until(lambda node=node, channel=channel: not _has_subscriber(node, channel))  # type: ignore[misc]


async def test_channel_follows_its_slot_to_another_node(
    cluster: ValkeyCluster, cluster_stream: BroadcastEventStream
) -> None:
    """Who heard nothing while the slot moved gets one Resync, after which all is heard; nobody else gets one."""
    source, target = _owner(cluster, FIRST), cluster.nodes[1]
    async with (
        cluster_event_stream(cluster.url) as other,
        cluster_stream.listen(FIRST) as listener,
        cluster_stream.listen(FIRST_TOO) as neighbour,
    ):
        await other.publish(FIRST, Message("k", 1, b""))
        assert await next_item(listener) == Message("k", 1, b"")
        for version, (here, there) in enumerate([(source, target), (target, source)], start=2):
            cluster.move_slot(CHANNEL_PREFIX + FIRST, here, there)
            assert await next_item(listener) == Resync()
            for publisher in (other, cluster_stream):
                await publisher.publish(FIRST, Message("k", version, b""))
                assert await next_item(listener) == Message("k", version, b"")
        await other.publish(FIRST_TOO, DONE)
        assert await next_item(neighbour) == DONE
    assert not _has_subscriber(source, FIRST) and not _has_subscriber(target, FIRST)


async def test_channel_whose_slot_nobody_has_disturbs_no_other() -> None:
    """Its last node refuses it once; after that the node's others are heard as ever, and it is, with its slot."""
    with running_valkey_cluster() as cluster:
        node, slot = _owner(cluster, FIRST), key_slot((CHANNEL_PREFIX + FIRST).encode())
        for each in cluster.nodes:
            each.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
        async with (
            cluster_event_stream(cluster.url, heartbeat_s=HEARTBEAT_S) as stream,
            stream.listen(FIRST) as listener,
            stream.listen(FIRST_TOO) as neighbour,
        ):
            for each in cluster.nodes:
                each.ask("CLUSTER", "DELSLOTS", slot)
            await until_connected(stream, False)
            await asyncio.sleep(10 * HEARTBEAT_S)
            await stream.publish(FIRST_TOO, DONE)
            assert await next_item(neighbour) in (DONE, Resync())
            await stream.publish(FIRST_TOO, DONE)
            assert await next_item(neighbour) == DONE
            node.ask("CLUSTER", "ADDSLOTS", slot)
            assert await next_item(listener) == Resync()
            await until_connected(stream, True)
            await stream.publish(FIRST, DONE)
            assert await next_item(listener) == DONE


async def test_nothing_is_lost_while_a_slot_moves(
    cluster: ValkeyCluster, cluster_stream: BroadcastEventStream
) -> None:
    """With a snapshot read at each Resync, whoever listens knows the last of what was announced all the while."""
    source, target = _owner(cluster, FIRST), cluster.nodes[2]
    newest = known = 0

    async def follow(listening: asyncio.Event) -> None:
        nonlocal known
        async with cluster_stream.listen(FIRST) as listener:
            listening.set()
            async for item in listener:
                known = max(known, newest if isinstance(item, Resync) else item.version)

    async with cluster_event_stream(cluster.url) as other, asyncio.TaskGroup() as tasks:
        following = tasks.create_task(follow(listening := asyncio.Event()))
        await listening.wait()
        for here, there in [(source, target), (target, source)] * 3:
            moving = asyncio.ensure_future(
                asyncio.to_thread(cluster.move_slot, CHANNEL_PREFIX + FIRST, here, there)
            )
            for _ in range(20):
                newest += 1
                await other.publish(FIRST, Message("k", newest, b""))
            await moving
        await until(lambda: known == newest)
        following.cancel()


async def test_restarted_node_brings_a_resync_to_its_own_channels(
    cluster: ValkeyCluster, cluster_stream: BroadcastEventStream
) -> None:
    """While a node is dead the others are heard as ever; back again it brings one Resync, then live again."""
    node = _owner(cluster, FIRST)
    async with (
        cluster_stream.listen(FIRST) as first,
        cluster_stream.listen(FIRST_TOO) as first_too,
        cluster_stream.listen(SECOND) as other,
    ):
        node.kill()
        await until_connected(cluster_stream, False)
        await cluster_stream.publish(SECOND, DONE)
        assert await next_item(other) == DONE
        node.start()
        assert [await next_item(listener) for listener in (first, first_too)] == [Resync()] * 2
        for channel, listener in ((FIRST, first), (FIRST_TOO, first_too), (SECOND, other)):
            await cluster_stream.publish(channel, DONE)
            assert await next_item(listener) == DONE


async def test_half_open_connection_to_one_node_is_found_by_the_heartbeat(
    cluster: ValkeyCluster, cluster_stream: BroadcastEventStream
) -> None:
    """A node that keeps its connections and says nothing counts as lost after two heartbeats, alone."""
    node = _owner(cluster, FIRST)
    async with cluster_stream.listen(FIRST) as listener, cluster_stream.listen(THIRD) as other:
        node.pause()
        async with asyncio.timeout(4 * HEARTBEAT_S):
            await until_connected(cluster_stream, False)
        await cluster_stream.publish(THIRD, DONE)
        assert await next_item(other) == DONE
        node.resume()
        assert await next_item(listener) == Resync()
        for channel, reader in ((FIRST, listener), (THIRD, other)):
            await cluster_stream.publish(channel, DONE)
            assert await next_item(reader) == DONE


async def test_slots_of_a_dead_node_are_found_at_whoever_took_them() -> None:
    """A node that never comes back is forgotten, and its channels are heard by the node that the others name."""
    with running_valkey_cluster() as cluster:
        dead, heir, third = cluster.nodes
        async with (
            cluster_event_stream(cluster.url, heartbeat_s=HEARTBEAT_S) as stream,
            stream.listen(FIRST) as listener,
        ):
            dead.kill()
            await until_connected(stream, False)
            cluster.give_slots(range(SLOTS // NODES), heir, told=(heir, third))
            assert await next_item(listener) == Resync()
            await stream.publish(FIRST, DONE)
            assert await next_item(listener) == DONE
            await until_connected(stream, True)


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_publish_raises_within_its_bound_while_its_node_is_down(
    fault: str, cluster: ValkeyCluster, cluster_stream: BroadcastEventStream
) -> None:
    """Announcing by a dead or frozen node is a ConnectionError in bounded time, and works afterwards."""
    node = _owner(cluster, FIRST)
    getattr(node, fault)()
    async with asyncio.timeout(PUBLISH_LIMIT_S + 0.5):
        with pytest.raises(ConnectionError, match="cannot publish to Redis"):
            await cluster_stream.publish(FIRST, DONE)
    node.start() if fault == "kill" else node.resume()
    await cluster_stream.publish(FIRST, DONE)


async def test_listening_begins_while_the_cluster_is_down(cluster: ValkeyCluster) -> None:
    """A listener enters after a second although no node answers, and gets a Resync once they do."""
    for node in cluster.nodes:
        node.pause()
    async with cluster_event_stream(cluster.url, heartbeat_s=HEARTBEAT_S) as stream:
        entering_at = asyncio.get_running_loop().time()
        async with stream.listen(FIRST) as listener:
            assert asyncio.get_running_loop().time() - entering_at < REGISTER_LIMIT_S + 0.5
            assert not stream.is_connected
            with pytest.raises(ConnectionError, match="cannot publish to Redis"):
                await stream.publish(FIRST, DONE)
            for node in cluster.nodes:
                node.resume()
            assert await next_item(listener) == Resync()
            await stream.publish(FIRST, DONE)
            assert await next_item(listener) == DONE


async def test_setting_puts_announcements_on_the_cluster(
    cluster: ValkeyCluster, valkey: ValkeyServer, sqlite_database_url: str
) -> None:
    """With the cluster's URL set what is announced goes by it, and the read model's Redis carries none of it."""
    settings = Settings(
        database_url=sqlite_database_url, redis_url=valkey.url, redis_cluster_url=cluster.url, demo=False
    )
    async with composed(settings) as parts, parts.stream.listen(FIRST):
        assert _has_subscriber(_owner(cluster, FIRST), FIRST)


async def test_closing_is_prompt_while_a_node_is_frozen(cluster: ValkeyCluster) -> None:
    """A frozen node does not hold up the end of the stream."""
    node = _owner(cluster, FIRST)
    async with asyncio.timeout(LIMIT_S), cluster_event_stream(cluster.url) as stream:
        await until_connected(stream, True)
        node.pause()
        closing_at = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - closing_at < REGISTER_LIMIT_S / 2
    node.resume()


def _owner(cluster: ValkeyCluster, channel: str) -> ValkeyNode:
    return cluster.owner(CHANNEL_PREFIX + channel)


def _has_subscriber(node: ValkeyNode, channel: str) -> bool:
    return node.ask("PUBSUB", "SHARDNUMSUB", CHANNEL_PREFIX + channel) == [CHANNEL_PREFIX + channel, 1]
