"""HTTP over one keep-alive connection, as cheap as Python allows: what is asked is encoded long before."""

import asyncio
import json
import re
from collections.abc import Callable

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
# Where the buyer's number goes in a request, twelve digits: encoding it costs nothing but this.
NUMBER = b"BUYERNUMBER#"
HEAD_END = b"\r\n\r\n"


def post(body: object, *, path: str = "/graphql", token: str | None = None) -> bytes:
    """The bytes of a request. A text `NUMBER` in body or token is replaced by `numbered`."""
    encoded = json.dumps(body, separators=(",", ":")).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "host: 127.0.0.1",
        "content-type: application/json",
        "accept: application/json",
        *([] if token is None else [f"authorization: Bearer {token}"]),
        f"content-length: {len(encoded)}",
    ]
    return "\r\n".join(lines).encode() + HEAD_END + encoded


def numbered(request: bytes, number: int) -> bytes:
    """The request of one buyer."""
    return request.replace(NUMBER, b"%012d" % number)


def whole_answer(received: bytes) -> tuple[int, bytes] | None:
    """Status and body once all of an answer is there. Two answers at once never come: nobody asks ahead."""
    head_end = received.find(HEAD_END)
    if head_end < 0:
        return None
    body = received[head_end + 4 :]
    length = _LENGTH.search(received, 0, head_end)
    if length is None:
        raise ValueError(f"an answer without its length: {received[:head_end]!r}")
    if len(body) < int(length[1]):
        return None
    return int(received[9:12]), body


class Connection(asyncio.Protocol):
    """One that stays open. `answered` hears status and body of each answer, `lost` that the other side left."""

    def __init__(self, answered: Callable[[int, bytes], None], lost: Callable[[], None]) -> None:
        self._answered, self._lost = answered, lost
        self._transport: asyncio.WriteTransport | None = None
        self._received = b""

    def ask(self, request: bytes) -> None:
        """Send it. One at a time."""
        assert self._transport is not None, "not connected"
        self._transport.write(request)

    def close(self) -> None:
        """Leave, without a word to `lost`."""
        self._lost = lambda: None
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's word that it is open."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """asyncio's word that something came."""
        self._received = self._received + data if self._received else data
        answer = whole_answer(self._received)
        if answer is not None:
            self._received = b""
            self._answered(*answer)

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio's word that it is closed."""
        self._lost()


class Talk:
    """A connection whose answers are awaited, for whoever does one thing after the other."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: Connection | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body. Raises: ConnectionError."""
        if self._connection is None:
            self._connection = await connected(self._port, self._answered, self._lost)
        self._answer = asyncio.get_running_loop().create_future()
        self._connection.ask(request)
        return await self._answer

    def close(self) -> None:
        """Leave."""
        if self._connection is not None:
            self._connection.close()

    def _answered(self, status: int, body: bytes) -> None:
        if self._answer is not None:
            self._answer.set_result((status, body))

    def _lost(self) -> None:
        self._connection = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("the connection was closed"))


async def connected(
    port: int, answered: Callable[[int, bytes], None], lost: Callable[[], None]
) -> Connection:
    """An open connection to a port of loopback."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(answered, lost), "127.0.0.1", port)
    return connection
