"""Bounded ways to wait for what a stream brings."""

import asyncio
from collections.abc import Callable

from domain.ports import Listener, Message, Resync
from infra.event_stream import BroadcastEventStream

LIMIT_S = 10.0
HEARTBEAT_S = 0.2
DONE = Message("done", 1, b"")


async def next_item(listener: Listener) -> Message | Resync:
    """What comes next."""
    async with asyncio.timeout(LIMIT_S):
        return await anext(aiter(listener))


async def all_until_done(listener: Listener) -> list[Message | Resync]:
    """All that comes until `DONE`, which is the last of it."""
    items = [await next_item(listener)]
    while items[-1] != DONE:
        items.append(await next_item(listener))
    return items


async def until(condition: Callable[[], bool]) -> None:
    """`condition` holds."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110 - what the server did to us sets no event of ours.
            await asyncio.sleep(0.005)


async def until_connected(stream: BroadcastEventStream, is_connected: bool) -> None:
    """The stream has found its server, or has found that it is gone."""
    await until(lambda: stream.is_connected is is_connected)
