"""`GraphQLApp`: the ASGI application of the GraphQL endpoint, HTTP and websocket at one address."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress

import strawberry
from starlette.requests import Request
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect
from strawberry.http.websocket_origin import is_same_origin, normalize_allowed_origins, normalize_origin

from infra.graphql_app.feeds import Feeds
from infra.graphql_app.limits import Limits
from infra.graphql_app.operations import Authenticate, MakeContext, Operations, Rooms
from infra.graphql_app.over_http import HttpEndpoint
from infra.graphql_app.over_socket import PROTOCOL, RESTART, TRY_LATER, WRONG_SUBPROTOCOL, Socket
from infra.graphql_app.sessions import SessionsAlive, SessionWatch
from infra.telemetry import Metrics

# A process with few sockets needs no five seconds to say goodbye.
ONE_BY_ONE_S = 0.01


class GraphQLApp:
    """Mount it as the endpoint of a Route and of a WebSocketRoute; serve only inside `running`.

    The server is uvicorn with `ws=SocketProtocol`. It must cap a websocket message near `limits.max_body_bytes`
    itself (`ws_max_size`), because it holds a whole message before anyone here sees it.

    `shared` names root fields of subscriptions that say the same to everybody, whoever asks. Each of their states is
    whole, and the resolver gives its version to the context.
    """

    def __init__(
        self,
        schema: strawberry.Schema,
        *,
        make_context: MakeContext,
        authenticate: Authenticate,
        sessions_alive: SessionsAlive,
        metrics: Metrics,
        rooms: Rooms | None = None,
        shared: Collection[str] = (),
        limits: Limits | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._metrics = metrics
        self._operations = Operations(
            schema,
            make_context=make_context,
            authenticate=authenticate,
            rooms=rooms or {},
            limits=self._limits,
            metrics=metrics,
            shared=shared,
        )
        self._feeds = Feeds(self._operations, self._limits)
        self._http = HttpEndpoint(self._operations, self._limits)
        self._sessions = SessionWatch(sessions_alive, self._limits)
        self._sockets: set[Socket] = set()
        self._is_stopping = False
        self._origins = normalize_allowed_origins(self._limits.allowed_origins)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Sessions of open sockets are watched inside; on the way out, mutations left alone run to their end.

        Sockets were closed before: by `end_sockets`, and what is left by the server (uvicorn: 1012).
        """
        watch = asyncio.create_task(self._sessions.watch())
        try:
            yield
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch
            await self._operations.finish()
            await self._feeds.finish()

    async def end_sockets(self, *, over_s: float) -> None:
        """Every open socket is closed with 1012, and each new one at once.

        Spread over `over_s`, so that their clients don't all come back to the other processes in one moment.
        """
        self._is_stopping = True
        sockets = list(self._sockets)
        for socket in sockets:
            socket.end(RESTART)
            await asyncio.sleep(min(over_s / len(sockets), ONE_BY_ONE_S))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or one websocket from handshake to close."""
        if scope["type"] != "websocket":
            response = await self._http.respond(Request(scope, receive))
            await response(scope, receive, send)
        elif await self._is_accepted(scope, receive, send):
            socket = self._socket(scope, receive, send)
            self._sockets.add(socket)
            self._metrics.open_sockets.inc()
            try:
                await socket.run()
            finally:
                self._metrics.open_sockets.dec()
                self._sockets.discard(socket)

    def _socket(self, scope: Scope, receive: Receive, send: Send) -> Socket:
        parts = (self._operations, self._feeds, self._sessions, self._limits, self._metrics)
        return Socket(scope, receive, send, *parts)

    async def _is_accepted(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Whether the handshake ends with an open socket."""
        ws = WebSocket(scope, receive, send)
        if not self._is_origin_allowed(ws):
            await ws.close()  # before it is accepted: the handshake is answered 403
            return False
        is_spoken = PROTOCOL in scope["subprotocols"]
        try:
            await ws.accept(PROTOCOL if is_spoken else None)
            if not is_spoken:
                await ws.close(WRONG_SUBPROTOCOL.code, WRONG_SUBPROTOCOL.reason)
            elif self._is_stopping:
                await ws.close(RESTART.code, RESTART.reason)
            elif len(self._sockets) >= self._limits.max_sockets:
                await ws.close(TRY_LATER.code, TRY_LATER.reason)
            else:
                return True
        except WebSocketDisconnect:
            pass  # gone meanwhile
        return False

    def _is_origin_allowed(self, ws: WebSocket) -> bool:
        # Browsers ask nobody before they open a socket to another origin; other clients send no Origin.
        origin = ws.headers.get("origin")
        if origin is None or not self._origins or "*" in self._origins:
            return True
        return normalize_origin(origin) in self._origins or is_same_origin(origin, ws.headers.get("host"))
