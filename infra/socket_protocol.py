"""uvicorn's websocket protocol, with an end to everything that a client who does not read could hold on to.

uvicorn 0.54 lets a close frame wait for room that never comes, keeps a closed connection until the peer has taken
what is buffered, and answers pings whether or not anyone takes the answers. And a connection that is only open costs
it 10 KB, most of it in queues where nothing waits and in the handshake's headers: here it costs 3.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.config import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.exceptions import InvalidState
from websockets.http11 import Request

# Where an application finds its connection among the scope's extensions.
EXTENSION = "frontrow.line"
# What the kernel takes per connection, up to 4 MB by itself: counts that wait there are old when they are read.
# It allows itself twice this (man 7 socket, SO_SNDBUF).
SEND_BUFFER_BYTES = 65_536


class SocketProtocol(WebSocketsSansIOProtocol):
    """For `uvicorn.Config(ws=...)`. What a connection holds is bounded, in bytes and in time after its close."""

    # uvicorn's own attributes, too: 36 of them take 300 bytes here, and 1.6 KB in a dict.
    __slots__ = (
        "app", "app_state", "asgi_version", "client", "close_sent", "close_timeout",
        "close_timer", "config", "conn", "connections", "curr_msg_data_type", "default_headers", "disconnected",
        "frames", "handshake_complete", "handshake_initiated", "initial_response", "last_ping_rtt", "logger", "loop",
        "on_room", "pending_ping_payload", "ping_interval", "ping_sent_at", "ping_timeout", "ping_timer",
        "pong_timer", "queue", "read_paused", "request", "response", "root_path", "scheme", "scope", "server",
        "tasks", "transport", "writable",
    )  # fmt: skip

    # A closed connection whose peer does not take what is left is cut off after this.
    linger_s = 10.0

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.queue = _Mailbox()  # type: ignore[assignment]
        self.writable = _Gate()  # type: ignore[assignment]
        # Called when there is room again.
        self.on_room: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """With a send buffer of our size."""
        super().connection_made(transport)
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)

    def handle_connect(self, event: Request) -> None:
        """The handshake: whoever is told of it is given this connection, too."""
        super().handle_connect(event)
        if not self.close_sent:  # else it was refused
            self.scope["extensions"][EXTENSION] = self  # type: ignore[assignment] # one dict less

    # ------------------------------------------------------------ for the application
    @property
    def has_room(self) -> bool:
        """Whether the transport holds little enough to be given more."""
        return self.writable.is_set()

    async def room(self) -> None:
        """Wait for room."""
        await self.writable.wait()

    def write(self, text: bytes) -> None:
        """Hand a message to the transport, room or not. Nothing where the connection is closing.

        What ASGI's `send` does, without a task that waits for it.
        """
        if self.transport.is_closing():
            return
        try:
            self.conn.send_text(text)
        except InvalidState:
            return
        self.transport.write(b"".join(self.conn.data_to_send()))

    # ------------------------------------------------------------ what bounds it
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
        if self.on_room is not None:
            self.on_room()

    async def receive(self) -> ASGIReceiveEvent:
        """The next event."""
        mailbox: _Mailbox = self.queue  # type: ignore[assignment]
        while mailbox.empty():
            await mailbox.arrival()
        event = mailbox.take()
        if self.read_paused and mailbox.empty():
            self.read_paused = False
            if self.has_room:
                self.transport.resume_reading()
        return event

    async def send(self, message: ASGISendEvent) -> None:
        """Wait for room, but not with a close: it is the last that is sent."""
        if message["type"] == "websocket.close":
            self.writable.set()
        await super().send(message)
        if message["type"] == "websocket.accept":
            # Not needed any more: 5 KB with what a browser sends. websockets' parser holds on to the request itself.
            self.request.headers.clear()
            del self.request, self.response

    async def run_asgi(self) -> None:
        """Serve it; afterwards the peer has `linger_s` to take what is left."""
        await super().run_asgi()
        del self.scope["extensions"][EXTENSION]  # a circle otherwise
        if not self.disconnected:
            self.loop.call_later(self.linger_s, self.transport.abort)

    def keepalive_timeout(self) -> None:
        """Cut it off: who does not answer does not read either."""
        super().keepalive_timeout()
        self.transport.abort()


class _Gate:
    """What of `asyncio.Event` is needed; it costs little while nobody waits."""

    __slots__ = ("_event", "_is_open")

    def __init__(self) -> None:
        self._is_open = True
        self._event: asyncio.Event | None = None

    def is_set(self) -> bool:
        """Whether it is open."""
        return self._is_open

    def set(self) -> None:
        """Open it: whoever waits goes on."""
        self._is_open = True
        if self._event is not None:
            self._event.set()
            self._event = None

    def clear(self) -> None:
        """Close it."""
        self._is_open = False

    async def wait(self) -> None:
        """It is open, or was meanwhile."""
        if not self._is_open:
            if self._event is None:
                self._event = asyncio.Event()
            await self._event.wait()


class _Mailbox:
    """What of `asyncio.Queue` is needed by one reader; it costs little while it is empty."""

    __slots__ = ("_arrival", "_events")

    def __init__(self) -> None:
        self._events: deque[ASGIReceiveEvent] | None = None
        self._arrival: asyncio.Future[None] | None = None

    def empty(self) -> bool:
        """Whether nothing waits."""
        return self._events is None

    def put_nowait(self, event: ASGIReceiveEvent) -> None:
        """It waits to be read."""
        if self._events is None:
            self._events = deque()
        self._events.append(event)
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def arrival(self) -> asyncio.Future[None]:
        """Done when something comes."""
        self._arrival = asyncio.get_running_loop().create_future()
        return self._arrival

    def take(self) -> ASGIReceiveEvent:
        """What came first of what waits."""
        assert self._events is not None, "nothing waits"
        event = self._events.popleft()
        if not self._events:
            self._events = None
        return event
