"""Wakes the workers at a commit, through the event stream. A hint only: whoever listens polls as well."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from domain.ports import EventStream, Listener, Message

WAKE_CHANNEL = "wake"
PUBLISH_EVERY_S = 0.005


@asynccontextmanager
async def running_wake(stream: EventStream) -> AsyncIterator["Wake"]:
    """A wake signal, until the context ends. A wake asked for in the last moment may be dropped."""
    wake = Wake(stream)
    sender = asyncio.create_task(wake.send_wakes())
    try:
        yield wake
    finally:
        sender.cancel()
        await asyncio.wait([sender])


class Wake:
    """Many wakes in, at most one announcement per `PUBLISH_EVERY_S` out."""

    def __init__(self, stream: EventStream) -> None:
        self._stream = stream
        self._is_due = asyncio.Event()
        self.failed_count = 0

    def publish_wake(self) -> None:
        """Everyone in `wakes` is told that there is work. Never waits, never fails; failures are counted."""
        self._is_due.set()

    def wakes(self) -> AbstractAsyncContextManager[Listener]:
        """A listener that hears one item, whatever it is, for any number of wakes since it was last read."""
        return self._stream.listen(WAKE_CHANNEL)

    async def send_wakes(self) -> None:
        """Announce, for ever; `running_wake` owns the task."""
        while True:
            await self._is_due.wait()
            self._is_due.clear()
            try:
                await self._stream.publish(WAKE_CHANNEL, Message("wake", 0, b""))
            except ConnectionError:
                self.failed_count += 1
            await asyncio.sleep(PUBLISH_EVERY_S)
