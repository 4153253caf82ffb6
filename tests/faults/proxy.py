"""A TCP proxy that loses what it is told to: replies, everything, or whole connections."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

CHUNK_BYTES = 65_536


class Proxy:
    """Stands between Frontrow and one server on loopback. Harmless until told otherwise."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._passes = asyncio.Event()
        self._passes.set()
        self._fatal_word: bytes | None = None
        self.port = 0
        self.cut_count = 0
        # How much of what was sent had to wait.
        self.swallowed = 0

    def cut_reply_to(self, word: bytes) -> None:
        """The next request with this word in it reaches the server, and its connection is reset before the reply."""
        self._fatal_word = word

    def cut(self) -> None:
        """Every open connection is reset."""
        for writer in list(self._writers):
            writer.transport.abort()

    def swallow(self) -> None:
        """Like a cable pulled out: connections are accepted and stay open, and nothing comes through."""
        self._passes.clear()

    def let_through(self) -> None:
        """What was swallowed goes on its way."""
        self._passes.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        inner: asyncio.StreamWriter | None = None
        try:
            back, inner = await asyncio.open_connection("127.0.0.1", self._target_port)
            self._writers.add(inner)
            link = _Link()
            either = [
                asyncio.create_task(self._forward(reader, inner, link)),
                asyncio.create_task(self._back(back, writer, link)),
            ]
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for half in either:
                    half.cancel()
                await asyncio.wait(either)
        except OSError:
            pass  # nobody is behind it: the client's connection is reset below
        finally:
            for each in (writer, inner):
                if each is not None:
                    each.transport.abort()
                    self._writers.discard(each)
            self._tasks.discard(task)

    async def close(self) -> None:
        """Every connection has ended."""
        self.let_through()
        while self._tasks:
            self.cut()
            await asyncio.wait(self._tasks, timeout=0.1)

    async def _forward(
        self, reader: asyncio.StreamReader, inner: asyncio.StreamWriter, link: "_Link"
    ) -> None:
        with suppress(OSError):
            while chunk := await reader.read(CHUNK_BYTES):
                self.swallowed += not self._passes.is_set()
                await self._passes.wait()
                if self._fatal_word is not None and self._fatal_word in chunk:
                    self._fatal_word = None
                    link.is_doomed = True
                inner.write(chunk)
                await inner.drain()

    async def _back(self, back: asyncio.StreamReader, writer: asyncio.StreamWriter, link: "_Link") -> None:
        with suppress(OSError):
            while chunk := await back.read(CHUNK_BYTES):
                await self._passes.wait()
                if link.is_doomed:
                    # The server has answered, so it has done what was asked; the answer ends here.
                    self.cut_count += 1
                    return
                writer.write(chunk)
                await writer.drain()


class _Link:
    is_doomed = False


@asynccontextmanager
async def running_proxy(target_port: int) -> AsyncIterator[Proxy]:
    """Until the block ends; then its connections are reset."""
    proxy = Proxy(target_port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
