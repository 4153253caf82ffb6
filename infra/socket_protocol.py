"""uvicorn's websocket protocol, with an end to everything that a client who does not read could hold on to.

uvicorn 0.54 lets a close frame wait for room that never comes, keeps a closed connection until the peer has taken
what is buffered, and answers pings whether or not anyone takes the answers.
"""

import asyncio
import socket

from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

# What the kernel takes per connection, up to 4 MB by itself: counts that wait there are old when they are read.
# It allows itself twice this (man 7 socket, SO_SNDBUF).
SEND_BUFFER_BYTES = 65_536


class SocketProtocol(WebSocketsSansIOProtocol):
    """For `uvicorn.Config(ws=...)`. What a connection holds is bounded, in bytes and in time after its close."""

    # A closed connection whose peer does not take what is left is cut off after this.
    linger_s = 10.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """With a send buffer of our size."""
        super().connection_made(transport)
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)

    # Who does not read is not listened to either: pings are answered without asking whether there is room.
    def pause_writing(self) -> None:
        """There is no more room."""
        super().pause_writing()
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        """There is room again."""
        super().resume_writing()
        if not self.read_paused:
            self.transport.resume_reading()

    async def receive(self) -> ASGIReceiveEvent:
        """The next event."""
        event = await super().receive()
        if not self.writable.is_set():
            self.transport.pause_reading()
        return event

    async def send(self, message: ASGISendEvent) -> None:
        """Wait for room, but not with a close: it is the last that is sent."""
        if message["type"] == "websocket.close":
            self.writable.set()
        await super().send(message)

    async def run_asgi(self) -> None:
        """Serve it; afterwards the peer has `linger_s` to take what is left."""
        await super().run_asgi()
        if not self.disconnected:
            self.loop.call_later(self.linger_s, self.transport.abort)

    def keepalive_timeout(self) -> None:
        """Cut it off: who does not answer does not read either."""
        super().keepalive_timeout()
        self.transport.abort()
