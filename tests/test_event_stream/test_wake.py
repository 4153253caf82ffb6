"""Waking the workers through the stream."""

import asyncio

import pytest

from domain.ports import EventStream, Message, Resync
from infra.event_stream import BroadcastEventStream, memory_event_stream
from infra.wake import PUBLISH_EVERY_S, WAKE_CHANNEL, running_wake
from tests.servers import ValkeyServer
from tests.test_event_stream.reading import next_item, until

pytestmark = pytest.mark.anyio


async def test_wake_reaches_every_worker(stream: BroadcastEventStream) -> None:
    """Each listener of the wake signal hears, and hears again after it has read."""
    async with running_wake(stream) as wake, wake.wakes() as first, wake.wakes() as second:
        for _ in range(3):
            wake.publish_wake()
            await next_item(first)
            await next_item(second)


async def test_burst_of_wakes_costs_few_announcements() -> None:
    """A thousand commits in a row are announced at most once per pause, and the first one at once."""
    clock_s = asyncio.get_running_loop().time
    async with memory_event_stream() as memory:
        bus = _CountingStream(memory)
        async with running_wake(bus) as wake, wake.wakes() as listener:
            started_at_s = clock_s()
            for _ in range(1_000):
                wake.publish_wake()
                await asyncio.sleep(0)
            assert 1 <= bus.published_count <= 1 + (clock_s() - started_at_s) / PUBLISH_EVERY_S
            await next_item(listener)


async def test_wake_asked_for_while_one_is_sent_is_not_lost() -> None:
    """A commit that falls between an announcement and its pause is announced after the pause."""
    async with memory_event_stream() as memory, running_wake(memory) as wake, wake.wakes() as listener:
        wake.publish_wake()
        await next_item(listener)
        wake.publish_wake()
        await next_item(listener)


async def test_failed_wake_is_counted_and_the_next_one_is_sent(
    valkey: ValkeyServer, redis_stream: BroadcastEventStream
) -> None:
    """Redis being down costs the caller nothing, and wakes go on when it is back."""
    async with running_wake(redis_stream) as wake:
        valkey.kill()
        wake.publish_wake()
        await until(lambda: wake.failed_count == 1)
        valkey.start()
        async with wake.wakes() as listener:
            wake.publish_wake()
            assert await next_item(listener) in (Resync(), Message("wake", 0, b""))
    assert wake.failed_count == 1


class _CountingStream:
    """Any stream, counting what is announced on the wake channel."""

    def __init__(self, stream: EventStream) -> None:
        self._stream = stream
        self.listen = stream.listen
        self.published_count = 0

    async def publish(self, channel: str, message: Message) -> None:
        assert channel == WAKE_CHANNEL
        self.published_count += 1
        await self._stream.publish(channel, message)
