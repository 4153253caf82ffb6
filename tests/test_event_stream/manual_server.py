"""A Redis at the wire whose answers a test gives by hand, for orders that a real one rarely shows."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.test_event_stream.reading import LIMIT_S


class ManualServer:
    """A Redis that takes every command and answers a subscriber only when the test says so."""

    def __init__(self) -> None:
        self.url = ""
        self._commands: asyncio.Queue[list[bytes]] = asyncio.Queue()
        self._writer: asyncio.StreamWriter | None = None

    async def receive(self, name: bytes) -> None:
        """The client's next command, but for PING, was `name`."""
        command = await asyncio.wait_for(self._commands.get(), LIMIT_S)
        assert command[0] == name

    def send(self, kind: bytes, channel: bytes, last: bytes | int) -> None:
        """What the server pushes."""
        assert self._writer is not None
        tail = b":%d\r\n" % last if isinstance(last, int) else b"$%d\r\n%b\r\n" % (len(last), last)
        head = (len(kind), kind, len(channel), channel)
        self._writer.write(b"*3\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % head + tail)

    def drop(self) -> None:
        """The connection is reset."""
        assert self._writer is not None
        self._writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until the client closes it, however it does."""
        self._writer = writer
        with suppress(ConnectionError):
            await self._answer(reader, writer)
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while count := (await reader.readline())[1:]:
            command = []
            for _ in range(int(count)):
                length = int((await reader.readline())[1:])
                command.append((await reader.readexactly(length + 2))[:-2])
            if command[0] in (b"CLIENT", b"PING"):
                writer.write(b"+OK\r\n")
            else:
                self._commands.put_nowait(command)


@asynccontextmanager
async def running_manual_server() -> AsyncIterator[ManualServer]:
    """It listens on a port of its own."""
    manual = ManualServer()
    async with await asyncio.start_server(manual.serve, "127.0.0.1", 0) as server:
        manual.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        yield manual
