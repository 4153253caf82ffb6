"""A websocket client at the wire that reads only when it is told to, and then tells exactly what it was sent."""

import asyncio
import base64
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

# Small, so that what is not read fills up soon; much smaller, and reading all of it takes seconds.
RECEIVE_BUFFER_BYTES = 16_384
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10  # RFC 6455, section 11.8
READ_LIMIT_S = 30.0


@dataclass
class Frame:
    """What came in one frame."""

    opcode: int
    payload: bytes

    @property
    def close_code(self) -> int:
        """Of a close frame."""
        assert self.opcode == CLOSE
        return int.from_bytes(self.payload[:2])


def masked(opcode: int, payload: bytes) -> bytes:
    """A client's frame, masked with zeros."""
    length = len(payload)
    size = bytes([0x80 | length]) if length < 126 else b"\xfe" + length.to_bytes(2)
    return bytes([0x80 | opcode]) + size + bytes(4) + payload


class DeafClient:
    """An open socket of the graphql-transport-ws protocol, whose answers pile up."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._unparsed = b""

    async def send(self, frames: bytes) -> None:
        """As many as there are."""
        await asyncio.get_running_loop().sock_sendall(self._connection, frames)

    async def subscribe(self, operation_id: str, query: str, **variables: object) -> None:
        """Ask for a stream; the answer is not read."""
        payload = {"query": query, "variables": variables}
        message = {"id": operation_id, "type": "subscribe", "payload": payload}
        await self.send(masked(TEXT, json.dumps(message).encode()))

    async def next(self) -> Frame | None:
        """Read one frame; None where the connection has ended."""
        head = await self._take(2)
        if head is None:
            return None
        length = head[1]
        if length >= 126:
            length = int.from_bytes(await self._take(2 if length == 126 else 8) or b"")
        payload = await self._take(length)
        return None if payload is None else Frame(head[0] & 0x0F, payload)

    async def until_close(self) -> list[Frame]:
        """Read all that was sent, up to the close frame, or to the end of a connection without one."""
        frames = []
        while (frame := await self.next()) is not None:
            frames.append(frame)
            if frame.opcode == CLOSE:
                break
        return frames

    async def _take(self, length: int) -> bytes | None:
        while len(self._unparsed) < length:
            async with asyncio.timeout(READ_LIMIT_S):
                try:
                    more = await asyncio.get_running_loop().sock_recv(self._connection, 65_536)
                except ConnectionResetError:
                    return None
            if not more:
                return None
            self._unparsed += more
        taken, self._unparsed = self._unparsed[:length], self._unparsed[length:]
        return taken

    async def shake_hands(self, host: str) -> None:
        """Upgraded and acknowledged."""
        request = (
            f"GET /graphql HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Protocol: graphql-transport-ws\r\n\r\n"
        )
        await asyncio.get_running_loop().sock_sendall(self._connection, request.encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += await self._take(1) or b""
        assert answer.startswith(b"HTTP/1.1 101 "), answer
        await self.send(masked(TEXT, b'{"type":"connection_init"}'))
        acknowledged = await self.next()
        assert acknowledged == Frame(TEXT, b'{"type":"connection_ack"}')


@asynccontextmanager
async def deaf_client(url: str) -> AsyncIterator[DeafClient]:
    """Connected to the endpoint of the server there."""
    address = urlsplit(url)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, (address.hostname, address.port))
        client = DeafClient(connection)
        await client.shake_hands(address.netloc)
        yield client
