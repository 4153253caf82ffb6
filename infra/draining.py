"""Stopping without a dropped request: not ready first, then nobody new, then nobody is left.

uvicorn closes its listener, idle connections and every socket in one moment, and has no hook before that. Whoever waits
at a listener that closes, or sends on a connection just as it is closed, is cut off without an answer.
"""

import asyncio
import ctypes
import signal
import socket
import struct
import sys
import time
from asyncio.trsock import TransportSocket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from uvicorn.supervisors import Multiprocess

from infra.app import drain

# Open sockets are closed over this long, or their clients would all come back at once.
SPREAD_S = 5.0
# Whoever came last is let in and has so long to send a request, before connections without one are closed.
LINGER_S = 1.0
NAP_S = 0.02


@contextmanager
def drained_at_sigterm(app: Starlette, *, for_s: float, owns_listener: bool) -> Iterator[None]:
    """The server hears of SIGTERM `for_s` later and once nobody comes any more; of a second one at once.

    A listener that is shared with other processes is left open to them.
    """
    loop = asyncio.get_running_loop()
    stop_server = signal.getsignal(signal.SIGTERM)
    draining: list[asyncio.Task[None]] = []

    async def drain_and_stop() -> None:
        await asyncio.gather(drain(app, over_s=SPREAD_S), asyncio.sleep(for_s))
        # The handler that uvicorn has set is a method of its server.
        server = getattr(stop_server, "__self__", None)
        if isinstance(server, uvicorn.Server):
            await _let_in_the_last(server, owns_listener=owns_listener)
        if callable(stop_server):
            stop_server(signal.SIGTERM, None)

    def hear(number: int, frame: FrameType | None) -> None:
        if draining and callable(stop_server):
            stop_server(number, frame)
        else:
            loop.call_soon_threadsafe(lambda: draining.append(loop.create_task(drain_and_stop())))

    signal.signal(signal.SIGTERM, hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, stop_server)
        for task in draining:
            task.cancel()


async def _let_in_the_last(server: uvicorn.Server, *, owns_listener: bool) -> None:
    """Nobody else comes, and everybody has had an answer and was told to leave, or had the time to ask."""
    if owns_listener:
        for listening in server.servers:
            for listener in listening.sockets:
                turn_away(listener)
    await asyncio.sleep(LINGER_S)
    for listening in server.servers:
        listening.close()
    for _ in range(round(LINGER_S / NAP_S)):
        if not server.server_state.connections:
            break
        await asyncio.sleep(NAP_S)


class Processes(Multiprocess):
    """Several processes behind one listener."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket], *, drain_s: float) -> None:
        super().__init__(config, sockets)
        self._drain_s = drain_s

    def terminate_all(self) -> None:
        """All are told to stop; when they have drained nobody else is let in, and only they hold the listener."""
        super().terminate_all()
        time.sleep(self._drain_s)
        for listener in self.sockets:
            turn_away(listener)
            listener.close()


# asm-generic/socket.h. A program of classic BPF (linux/filter.h) sees a packet from its TCP header on.
_SO_ATTACH_FILTER = 26
_NO_NEW_CONNECTION = (
    (0x30, 0, 0, 13),  # load the byte with the flags
    (0x54, 0, 0, 0x12),  # of these SYN and ACK
    (0x15, 0, 1, 0x02),  # SYN alone begins a connection
    (0x06, 0, 0, 0),  # and is not seen
    (0x06, 0, 0, 0xFFFF_FFFF),  # everything else is
)


def turn_away(listener: socket.socket | TransportSocket) -> None:
    """Nobody new is connected; who knocks is not heard, tries again a second later and is refused then.

    A listener that just closes resets those whom the kernel had let in and the process had not. Only Linux can do
    it; elsewhere those few are cut off.
    """
    if sys.platform != "linux":
        return
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in _NO_NEW_CONNECTION)
    program = ctypes.create_string_buffer(code)
    pointer = struct.pack("HL", len(_NO_NEW_CONNECTION), ctypes.addressof(program))
    with suppress(OSError):  # a kernel in a sandbox may not know it
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)
