"""A server for the sandbox inside any running event loop, able to close a connection without an answer."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from infra.sandbox.api import DROP, build_sandbox

BACKLOG = 2_048
# Longer than any client keeps an idle connection, so that none is closed just when a request is on its way.
KEEP_ALIVE_S = 75
STOP_S = 5


@asynccontextmanager
async def running_sandbox(host: str, port: int, *, state_path: Path | None = None) -> AsyncIterator[str]:
    """The sandbox answers at the yielded base URL until the block ends. Port 0 takes a free one.

    Raises: OSError where the address is taken. Installs no signal handlers.
    """
    app = build_sandbox(state_path=state_path)
    async with serving(app, host, port) as base_url:
        try:
            yield base_url
        finally:
            # What hangs or pauses ends now, so that stopping waits for nobody.
            app.state.sandbox.closing.set()


@asynccontextmanager
async def serving(app: ASGIApp, host: str, port: int) -> AsyncIterator[str]:
    """`app` answers at the yielded base URL; the DROP extension lets a request abort its connection."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    # Asyncio turns Nagle's algorithm off only for sockets that name their protocol, which this one does not;
    # head and body of an answer would come 40 ms apart. Accepted connections inherit the option.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server = _Server(
        uvicorn.Config(
            app,
            http=_DroppableProtocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=STOP_S,
        )
    )
    serve = asyncio.create_task(server.serve(sockets=[listener]), name="sandbox server")
    try:
        await server.wait_started(serve)
        address = f"[{host}]" if ":" in host else host
        yield f"http://{address}:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        try:
            await serve
        finally:
            listener.close()


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers, which belong to the process that this server lives in."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._started = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections from here on."""
        try:
            await super().startup(sockets)
        except SystemExit as error:
            # Uvicorn leaves the process when the lifespan fails; it is not ours to end.
            raise RuntimeError("the sandbox could not start; the reason stands in the log") from error
        self._started.set()

    async def wait_started(self, serve: "asyncio.Task[None]") -> None:
        """Return once connections are accepted. Raises: whatever ended `serve` before that."""
        started = asyncio.create_task(self._started.wait())
        await asyncio.wait({serve, started}, return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        if serve.done():
            await serve


class _DroppableProtocol(HttpToolsProtocol):
    """Hands each request the means to abort its connection; ASGI has none, and raising answers 500."""

    def on_message_begin(self) -> None:
        """Add the DROP extension to the new request's scope."""
        super().on_message_begin()
        self.scope["extensions"] = {DROP: {"abort": self.transport.abort}}
