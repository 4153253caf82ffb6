"""What holds for every event stream."""

import asyncio

import pytest

from domain.ports import Message, Resync
from infra.event_stream import (
    BroadcastEventStream,
    cluster_event_stream,
    memory_event_stream,
    redis_event_stream,
)
from infra.event_stream.inbox import SLOTS_MAX, Inbox, Slots
from tests.servers import ValkeyServer
from tests.test_event_stream.reading import DONE, LIMIT_S, all_until_done, next_item
from tests.valkey_cluster import ValkeyCluster

pytestmark = pytest.mark.anyio


async def test_every_listener_of_a_channel_hears_and_no_other(stream: BroadcastEventStream) -> None:
    """An announcement reaches all who listen on its channel and nobody else."""
    async with stream.listen("a") as first, stream.listen("a") as second, stream.listen("b") as other:
        await stream.publish("a", Message("k", 1, b"hello"))
        await stream.publish("b", DONE)
        assert await next_item(first) == Message("k", 1, b"hello")
        assert await next_item(second) == Message("k", 1, b"hello")
        assert await next_item(other) == DONE


async def test_any_bytes_arrive_as_they_were_sent(stream: BroadcastEventStream) -> None:
    """Key, version and body come back exactly, whatever characters, bytes and lengths they have."""
    messages = [
        Message("", 0, b""),
        Message("좌석 \x00\r\n", -(2**63), bytes(range(256))),
        Message("k", 2**63 - 1, b"\x00" * 1_000_000),
    ]
    async with stream.listen("a") as listener:
        for message in messages:
            await stream.publish("a", message)
            assert await next_item(listener) == message


async def test_burst_collapses_into_its_newest_version(stream: BroadcastEventStream) -> None:
    """A listener that did not read during 1,000 versions finds one item, and it is the last."""
    async with stream.listen("a") as slow, stream.listen("a") as quick:
        for version in range(1, 1_001):
            await stream.publish("a", Message("k", version, b"%d" % version))
        await stream.publish("a", DONE)
        await all_until_done(quick)
        assert await all_until_done(slow) == [Message("k", 1_000, b"1000"), DONE]


async def test_late_older_version_does_not_replace_a_newer_one(stream: BroadcastEventStream) -> None:
    """Of two waiting versions the higher one is read, whichever came last."""
    async with stream.listen("a") as slow, stream.listen("a") as quick:
        for message in (Message("k", 2, b"new"), Message("k", 1, b"old"), DONE):
            await stream.publish("a", message)
        await all_until_done(quick)
        assert await all_until_done(slow) == [Message("k", 2, b"new"), DONE]


async def test_keys_are_read_in_the_order_they_came(stream: BroadcastEventStream) -> None:
    """A key keeps its place in the row when a newer version replaces the waiting one."""
    async with stream.listen("a") as slow, stream.listen("a") as quick:
        for message in (Message("x", 1, b""), Message("y", 1, b""), Message("x", 2, b""), DONE):
            await stream.publish("a", message)
        await all_until_done(quick)
        assert await all_until_done(slow) == [Message("x", 2, b""), Message("y", 1, b""), DONE]


async def test_too_many_waiting_keys_become_a_resync(stream: BroadcastEventStream) -> None:
    """One key more than there are slots is answered with a Resync, and what comes after it still arrives."""
    async with stream.listen("a") as slow, stream.listen("a") as quick:
        for number in range(SLOTS_MAX + 1):
            await stream.publish("a", Message(str(number), 1, b""))
        await stream.publish("a", DONE)
        await all_until_done(quick)
        assert await all_until_done(slow) == [Resync(), DONE]


async def test_two_first_listeners_at_once_both_hear(stream: BroadcastEventStream) -> None:
    """Two listeners that open the same channel in the same moment are both registered, every time."""
    for number in range(50):
        both_listen = asyncio.Barrier(3)

        async def hear(channel: str, both_listen: asyncio.Barrier = both_listen) -> Message | Resync:
            async with stream.listen(channel) as listener:
                await both_listen.wait()
                return await next_item(listener)

        async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as tasks:
            heard = [tasks.create_task(hear(f"a{number}")) for _ in range(2)]
            await both_listen.wait()
            await stream.publish(f"a{number}", DONE)
        assert [task.result() for task in heard] == [DONE, DONE]


async def test_first_listener_racing_with_the_last_one_leaving_hears(stream: BroadcastEventStream) -> None:
    """A channel that is left and entered in the same moment, in either order, still delivers."""
    for number in range(100):
        leaving = stream.listen("a")
        await leaving.__aenter__()
        entering = stream.listen("a")
        leave, enter = leaving.__aexit__(None, None, None), entering.__aenter__()
        if number % 2:
            _, listener = await asyncio.gather(leave, enter)
        else:
            listener, _ = await asyncio.gather(enter, leave)
        await stream.publish("a", Message("k", number, b""))
        assert await next_item(listener) == Message("k", number, b"")
        await entering.__aexit__(None, None, None)
    assert stream.channel_count == 0


async def test_cancelled_read_loses_nothing(stream: BroadcastEventStream) -> None:
    """A reader that gave up waiting finds on its next read what came meanwhile."""
    async with stream.listen("a") as listener:
        reading = asyncio.ensure_future(anext(listener))
        await asyncio.wait([reading], timeout=0)
        reading.cancel()
        await stream.publish("a", DONE)
        await asyncio.wait([reading])
        assert reading.cancelled()
        assert await next_item(listener) == DONE


async def test_ended_listeners_leave_nothing_behind(stream: BroadcastEventStream) -> None:
    """After the last listener left, cancelled ones included, no channel and no task of theirs is left."""
    tasks_before = asyncio.all_tasks()

    async def read_for_ever(channel: str, entered: asyncio.Event) -> None:
        async with stream.listen(channel) as listener:
            entered.set()
            async for _ in listener:
                pass

    all_entered = [asyncio.Event() for _ in range(20)]
    readers = [asyncio.create_task(read_for_ever(f"a{n % 7}", event)) for n, event in enumerate(all_entered)]
    for entered in all_entered:
        await asyncio.wait_for(entered.wait(), LIMIT_S)
    assert stream.channel_count == 7
    for reader in readers:
        reader.cancel()
    await asyncio.wait(readers)
    assert stream.channel_count == 0
    assert asyncio.all_tasks() == tasks_before


@pytest.mark.parametrize("kind", ["memory", "valkey", "cluster"])
async def test_closing_the_stream_ends_its_listeners(
    kind: str, valkey: ValkeyServer, cluster: ValkeyCluster
) -> None:
    """A reader that waits while the stream closes is told that it is over, as is one that comes later."""
    tasks_before = asyncio.all_tasks()
    opened = {
        "memory": memory_event_stream(),
        "valkey": redis_event_stream(valkey.url),
        "cluster": cluster_event_stream(cluster.url),
    }[kind]
    entered = asyncio.Event()

    async def read_all(stream: BroadcastEventStream) -> list[Message | Resync]:
        async with stream.listen("a") as listener:
            entered.set()
            return [item async for item in listener]

    async with asyncio.timeout(LIMIT_S), opened as stream:
        reader = asyncio.create_task(read_all(stream))
        await asyncio.wait_for(entered.wait(), LIMIT_S)
    assert await asyncio.wait_for(reader, LIMIT_S) == []
    assert await asyncio.wait_for(read_all(stream), LIMIT_S) == []
    assert asyncio.all_tasks() == tasks_before


def test_resync_is_read_before_the_messages_that_wait() -> None:
    """A Resync overtakes waiting messages, any number of them are one, and the messages are kept."""
    slots = Slots()
    for item in (DONE, Resync(), Resync()):
        slots.put(item)
    assert [slots.pop(), slots.pop(), slots.pop()] == [Resync(), DONE, None]


async def test_burst_is_one_entry_in_the_queues_behind_the_inbox() -> None:
    """A channel is named once however much came for it, and again only after it was fetched."""
    inbox = Inbox()
    for version in range(1_000):
        inbox.put("a", Message("k", version, b""))
    inbox.put("b", DONE)
    assert [await inbox.next_channel(), await inbox.next_channel()] == ["a", "b"]
    inbox.put("a", DONE)
    inbox.fetch("b")
    inbox.put("b", DONE)
    assert await inbox.next_channel() == "b"
    assert inbox.fetch("a").pop() == Message("k", 999, b"")
