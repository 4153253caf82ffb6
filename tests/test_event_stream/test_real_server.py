"""What a real server can do to a stream: die, freeze, come back, and answer late."""

import asyncio

import pytest
from redis.asyncio import Redis

from domain.ports import Message, Resync
from infra.event_stream import BroadcastEventStream, redis_event_stream
from infra.event_stream.redis_backend import CHANNEL_PREFIX, PUBLISH_LIMIT_S, REGISTER_LIMIT_S
from tests.servers import ValkeyServer
from tests.test_event_stream.manual_server import running_manual_server
from tests.test_event_stream.reading import (
    DONE,
    HEARTBEAT_S,
    LIMIT_S,
    all_until_done,
    next_item,
    until_connected,
)

pytestmark = pytest.mark.anyio


async def test_last_listener_leaving_unsubscribes(
    valkey: ValkeyServer, redis_stream: BroadcastEventStream
) -> None:
    """The server knows of a channel once while anyone here listens, and not at all afterwards."""
    async with _client(valkey) as client:
        async with redis_stream.listen("a"):
            async with redis_stream.listen("a"):
                assert await _subscriber_count(client, "a") == 1
            assert await _subscriber_count(client, "a") == 1
        async with asyncio.timeout(LIMIT_S):
            while await _subscriber_count(client, "a"):
                pass


async def test_streams_of_two_processes_hear_each_other(
    valkey: ValkeyServer, redis_stream: BroadcastEventStream
) -> None:
    """What one stream announces, the listener of another one on the same server hears."""
    async with redis_event_stream(valkey.url) as other, other.listen("a") as listener:
        await redis_stream.publish("a", DONE)
        assert await next_item(listener) == DONE


async def test_announcements_of_a_moment_share_round_trips(
    valkey: ValkeyServer, redis_stream: BroadcastEventStream
) -> None:
    """A thousand on two channels at once are a dozen commands, and arrive in the order they were announced."""
    said = [Message(f"k{n}", 1, b"%d" % n) for n in range(1_000)]
    async with (
        _client(valkey) as client,
        redis_stream.listen("a") as listener,
        redis_stream.listen("b") as other,
    ):
        await client.config_resetstat()
        await asyncio.gather(*(redis_stream.publish("ab"[n % 2], each) for n, each in enumerate(said)))
        for channel in "ab":
            await redis_stream.publish(channel, DONE)
        heard = {channel: await all_until_done(each) for channel, each in (("a", listener), ("b", other))}
        used = await client.info("commandstats")
    assert used["cmdstat_publish"]["calls"] == 1_002
    # The first one goes alone, then a hundred at a time; the first script is sent again, with its text.
    assert 10 <= used["cmdstat_evalsha"]["calls"] <= 11
    assert heard == {"a": [*said[::2], DONE], "b": [*said[1::2], DONE]}


async def test_restarted_server_brings_a_resync_then_live_again(
    valkey: ValkeyServer, redis_stream: BroadcastEventStream
) -> None:
    """After kill and start every listener of every channel gets one Resync, and then each announcement."""
    async with (
        redis_stream.listen("a") as first,
        redis_stream.listen("a") as second,
        redis_stream.listen("b") as other,
    ):
        valkey.kill()
        await until_connected(redis_stream, False)
        valkey.start()
        assert [await next_item(listener) for listener in (first, second, other)] == [Resync()] * 3
        await redis_stream.publish("a", DONE)
        await redis_stream.publish("b", DONE)
        assert [await next_item(listener) for listener in (first, second, other)] == [DONE] * 3


async def test_half_open_connection_is_found_by_the_heartbeat(
    valkey: ValkeyServer, redis_stream: BroadcastEventStream
) -> None:
    """A server that keeps its connections and says nothing counts as lost after two heartbeats."""
    async with redis_stream.listen("a") as listener:
        valkey.pause()
        async with asyncio.timeout(4 * HEARTBEAT_S):
            await until_connected(redis_stream, False)
        valkey.resume()
        assert await next_item(listener) == Resync()
        await redis_stream.publish("a", DONE)
        assert await next_item(listener) == DONE


async def test_quiet_connection_to_a_live_server_is_kept(redis_stream: BroadcastEventStream) -> None:
    """Silence over many heartbeats, with and without a channel, is no loss: no Resync comes."""
    await asyncio.sleep(5 * HEARTBEAT_S)
    assert redis_stream.is_connected
    async with redis_stream.listen("a") as listener:
        await asyncio.sleep(5 * HEARTBEAT_S)
        await redis_stream.publish("a", DONE)
        assert await next_item(listener) == DONE


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_publish_raises_within_its_bound_while_the_server_is_down(
    fault: str, valkey: ValkeyServer, redis_stream: BroadcastEventStream
) -> None:
    """Announcing to a dead or frozen server is a ConnectionError in bounded time, and works afterwards."""
    getattr(valkey, fault)()
    async with asyncio.timeout(PUBLISH_LIMIT_S + 0.5):
        with pytest.raises(ConnectionError, match="cannot publish to Redis"):
            await redis_stream.publish("a", DONE)
    valkey.start() if fault == "kill" else valkey.resume()
    await redis_stream.publish("a", DONE)


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_listening_begins_while_the_server_is_down(fault: str, valkey: ValkeyServer) -> None:
    """A listener enters after a second although the server is down, and gets a Resync once it is back."""
    getattr(valkey, fault)()
    async with redis_event_stream(valkey.url, heartbeat_s=HEARTBEAT_S) as stream:
        async with asyncio.timeout(REGISTER_LIMIT_S + 0.5), stream.listen("a") as listener:
            pass
        async with stream.listen("a") as listener:
            assert not stream.is_connected
            valkey.start() if fault == "kill" else valkey.resume()
            assert await next_item(listener) == Resync()
            await stream.publish("a", DONE)
            assert await next_item(listener) == DONE


async def test_who_joins_a_listener_during_an_outage_need_not_wait(
    valkey: ValkeyServer, redis_stream: BroadcastEventStream
) -> None:
    """The Resync that the others are owed is theirs too."""
    async with redis_stream.listen("a") as first:
        valkey.kill()
        await until_connected(redis_stream, False)
        async with asyncio.timeout(REGISTER_LIMIT_S / 2), redis_stream.listen("a") as second:
            pass
        async with redis_stream.listen("a") as second:
            valkey.start()
            assert [await next_item(listener) for listener in (first, second)] == [Resync()] * 2
            await redis_stream.publish("a", DONE)
            assert [await next_item(listener) for listener in (first, second)] == [DONE] * 2


async def test_closing_is_prompt_while_the_server_is_frozen(valkey: ValkeyServer) -> None:
    """Neither a frozen server nor someone who waits to be registered holds up the end of the stream."""
    valkey.pause()
    async with asyncio.timeout(REGISTER_LIMIT_S / 2):
        async with redis_event_stream(valkey.url) as stream:
            listening = stream.listen("a")
            entering = asyncio.ensure_future(listening.__aenter__())
            await asyncio.wait([entering], timeout=0)
        listener = await entering
        assert [item async for item in listener] == []


async def test_closing_is_prompt_in_whatever_moment_the_connection_dies() -> None:
    """The loss is heard of some steps of the event loop after it: one close of these falls into each of them."""
    for steps in range(25):
        async with (
            running_manual_server() as server,
            asyncio.timeout(LIMIT_S),
            redis_event_stream(server.url) as stream,
        ):
            await until_connected(stream, True)
            server.drop()
            for _ in range(steps):
                await asyncio.sleep(0)


async def test_unreadable_announcement_is_a_resync(
    valkey: ValkeyServer, redis_stream: BroadcastEventStream
) -> None:
    """Bytes that are no announcement of ours ask for a fresh snapshot on their channel, and break nothing."""
    async with (
        _client(valkey) as client,
        redis_stream.listen("a") as listener,
        redis_stream.listen("b") as other,
    ):
        for junk in (b"", b"junk", b"\x00" * 11 + b"\x01\xff"):
            await client.publish(CHANNEL_PREFIX + "a", junk)
            assert await next_item(listener) == Resync()
        for channel, reader in (("a", listener), ("b", other)):
            await redis_stream.publish(channel, DONE)
            assert await next_item(reader) == DONE


async def test_answer_to_an_abandoned_subscribe_registers_nobody() -> None:
    """A listener that follows one who left early waits for the answer to its own SUBSCRIBE."""
    async with running_manual_server() as server, redis_event_stream(server.url) as stream:
        on_other, on_abandoned, on_entering = (stream.listen(channel) for channel in ("b", "a", "a"))
        entering_other = asyncio.ensure_future(on_other.__aenter__())
        await server.receive(b"SUBSCRIBE")
        server.send(b"subscribe", b"frontrow:b", 1)
        other = await entering_other
        abandoned = asyncio.ensure_future(on_abandoned.__aenter__())
        await server.receive(b"SUBSCRIBE")
        abandoned.cancel()
        await server.receive(b"UNSUBSCRIBE")
        entering = asyncio.ensure_future(on_entering.__aenter__())
        await server.receive(b"SUBSCRIBE")
        server.send(b"subscribe", b"frontrow:a", 2)
        server.send(b"unsubscribe", b"frontrow:a", 1)
        server.send(b"message", b"frontrow:b", b"junk")
        assert await next_item(other) == Resync()
        assert not entering.done()
        server.send(b"subscribe", b"frontrow:a", 2)
        await entering


def _client(valkey: ValkeyServer) -> Redis:
    # With a socket time-out redis-py swallows the cancellation of asyncio.timeout now and then, on Python 3.11.
    return Redis.from_url(valkey.url, socket_timeout=None)


async def _subscriber_count(client: Redis, channel: str) -> int:
    ((_, count),) = await client.pubsub_numsub(CHANNEL_PREFIX + channel)
    return int(count)
