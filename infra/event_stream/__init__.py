"""Announcements to every listener in every process: `broadcaster` in front, backends of our own behind it.

A channel costs one subscription per process, however many listen to it here.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Self

from broadcaster import Broadcast
from broadcaster._base import Subscriber

from domain.ports import Message, Resync
from infra.event_stream.backends import Backend, MemoryBackend
from infra.event_stream.cluster_backend import ClusterBackend
from infra.event_stream.inbox import Inbox, Slots
from infra.event_stream.redis_backend import RedisBackend

__all__ = [
    "BroadcastEventStream",
    "SlotListener",
    "cluster_event_stream",
    "memory_event_stream",
    "redis_event_stream",
]


@asynccontextmanager
async def memory_event_stream() -> AsyncIterator["BroadcastEventStream"]:
    """A stream within this process, until the context ends; then its listeners have ended too."""
    async with _running(MemoryBackend()) as stream:
        yield stream


@asynccontextmanager
async def redis_event_stream(url: str, *, heartbeat_s: float = 2.0) -> AsyncIterator["BroadcastEventStream"]:
    """A stream between processes, until the context ends; then its listeners have ended too.

    Starts whether or not Redis is up. A dead connection is found within two heartbeats.
    """
    async with _running(RedisBackend(url, heartbeat_s=heartbeat_s)) as stream:
        yield stream


@asynccontextmanager
async def cluster_event_stream(
    url: str, *, heartbeat_s: float = 2.0
) -> AsyncIterator["BroadcastEventStream"]:
    """As `redis_event_stream`, by sharded pub/sub on the cluster that the node at `url` belongs to."""
    async with _running(ClusterBackend(url, heartbeat_s=heartbeat_s)) as stream:
        yield stream


class BroadcastEventStream:
    """The port `EventStream`. Concurrency: any number of tasks of one event loop."""

    def __init__(self, broadcast: Broadcast, backend: Backend) -> None:
        self._broadcast = broadcast
        self._backend = backend
        self._fan_outs: dict[str, _FanOut] = {}
        self._is_closed = False

    @property
    def is_connected(self) -> bool:
        """Whether announcements arrive now; for metrics."""
        return self._backend.is_connected

    @property
    def channel_count(self) -> int:
        """How many channels someone listens to; for metrics."""
        return len(self._fan_outs)

    async def publish(self, channel: str, message: Message) -> None:
        """Announce to whoever listens now. Raises: ConnectionError within a second where Redis is down."""
        await self._broadcast.publish(channel, message)

    @asynccontextmanager
    async def listen(self, channel: str) -> AsyncIterator["SlotListener"]:
        """Registered with the bus on entry. Where it is down: entered within a second, a Resync follows."""
        listener = SlotListener()
        if self._is_closed:
            listener.end()
            yield listener
            return
        await self._join(channel, listener)
        try:
            await self._backend.wait_registered(channel)
            yield listener
        finally:
            await self._leave(channel, listener)

    async def close(self) -> None:
        """Every listener has ended and no task is left. May repeat."""
        self._is_closed = True
        while self._fan_outs:
            _, fan_out = self._fan_outs.popitem()
            for listener in fan_out.listeners:
                listener.end()
            await fan_out.end()

    async def _join(self, channel: str, listener: "SlotListener") -> None:
        """Does not wait, so that two first listeners can't get in each other's way."""
        fan_out = self._fan_outs.get(channel)
        if fan_out is None:
            fan_out = self._fan_outs[channel] = _FanOut()
            await fan_out.start(channel, self._broadcast, inbox=self._backend.inbox)
        fan_out.listeners.add(listener)

    async def _leave(self, channel: str, listener: "SlotListener") -> None:
        fan_out = self._fan_outs.get(channel)
        if fan_out is None or listener not in fan_out.listeners:
            return  # Closed meanwhile.
        fan_out.listeners.remove(listener)
        if not fan_out.listeners:
            del self._fan_outs[channel]
            await fan_out.end()


class SlotListener:
    """The port `Listener`. Read by one task; a read that is cancelled loses nothing."""

    def __init__(self) -> None:
        self._slots = Slots()
        self._is_ended = False
        self._has_changed = asyncio.Event()

    def offer(self, item: Message | Resync) -> None:
        """`item` waits here, unless something newer does."""
        self._slots.put(item)
        self._has_changed.set()

    def end(self) -> None:
        """Whoever reads, now or later, is told that it is over."""
        self._is_ended = True
        self._has_changed.set()

    def __aiter__(self) -> Self:
        """This very object."""
        return self

    async def __anext__(self) -> Message | Resync:
        """Wait for what comes next."""
        while not self._is_ended:
            item = self._slots.pop()
            if item is not None:
                return item
            self._has_changed.clear()
            await self._has_changed.wait()
        raise StopAsyncIteration


class _FanOut:
    """One subscription of broadcaster's, and the task that hands on what it brings to all who listen."""

    def __init__(self) -> None:
        self.listeners: set[SlotListener] = set()
        self._subscription = AsyncExitStack()

    async def start(self, channel: str, broadcast: Broadcast, *, inbox: Inbox) -> None:
        """Subscribed. Does not wait."""
        news = await self._subscription.enter_async_context(broadcast.subscribe(channel))
        self._pump = asyncio.create_task(self._hand_on(channel, news, inbox=inbox))

    async def end(self) -> None:
        """No longer subscribed, before anything else runs; then the task has ended."""
        await self._subscription.aclose()
        await self._pump

    async def _hand_on(self, channel: str, news: Subscriber, *, inbox: Inbox) -> None:
        """Ends when the subscription does."""
        async for _ in news:  # type: ignore[union-attr] # broadcaster annotates its generator as optional.
            waiting = inbox.fetch(channel)
            while (item := waiting.pop()) is not None:
                for listener in self.listeners:
                    listener.offer(item)


@asynccontextmanager
async def _running(backend: Backend) -> AsyncIterator[BroadcastEventStream]:
    async with Broadcast(backend=backend) as broadcast:
        stream = BroadcastEventStream(broadcast, backend)
        try:
            yield stream
        finally:
            await stream.close()
