"""GraphQL over a websocket: the graphql-transport-ws protocol, for subscriptions and queries.

Source: github.com/enisdenjo/graphql-ws, PROTOCOL.md, which names the close codes.
What bounds memory per socket: uvicorn hands over one received message and stops reading the connection until it
is taken; a message is sent only while the transport holds less than 64 KiB, so an operation waits with its next
answer until the client has read; and a client that reads nothing for `send_timeout_s` is given up.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack, aclosing, suppress
from dataclasses import dataclass

import orjson
import structlog
from graphql import OperationType
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketDisconnected

from domain.base import BadUserInput, Overloaded
from domain.user import Unauthenticated, Viewer
from infra.auth import bearer_token
from infra.graphql_app.caller import Caller, client_of, new_request_id, token_of
from infra.graphql_app.errors import RateLimited
from infra.graphql_app.limits import Limits
from infra.graphql_app.operations import Operations, Result
from infra.graphql_app.requests import OperationRequest, decode_json, read_request
from infra.graphql_app.sessions import SessionWatch
from infra.telemetry import Metrics

PROTOCOL = "graphql-transport-ws"

_log = structlog.get_logger("frontrow.graphql")


@dataclass(frozen=True, slots=True)
class Ending:
    """A close code and a reason of at most 123 bytes."""

    code: int
    reason: str


# Protocol violations and what may befall a socket, by the protocol's own codes.
FORBIDDEN = Ending(4403, "Forbidden")
INIT_TIMEOUT = Ending(4408, "Connection initialisation timeout")
SECOND_INIT = Ending(4429, "Too many initialisation requests")
NO_ACK = Ending(4401, "Unauthorized")
WRONG_SUBPROTOCOL = Ending(4406, "Subprotocol not acceptable")
# Ours: the client took nothing for `send_timeout_s`.
UNREAD = Ending(4410, "Messages are not read")
# RFC 6455, section 7.4.1, and its registry.
RESTART = Ending(1012, "Service restart")
TOO_BIG = Ending(1009, "Message too big")
BROKEN = Ending(1011, "Internal error")
TRY_LATER = Ending(1013, "Try again later")


class _Ended(Exception):
    """The client's message ends the socket."""

    def __init__(self, ending: Ending) -> None:
        self.ending = ending
        super().__init__(ending.reason)


class Socket:
    """One connection from its acceptance to its close. `run` owns every task of it."""

    def __init__(
        self, ws: WebSocket, operations: Operations, sessions: SessionWatch, limits: Limits, metrics: Metrics
    ) -> None:
        self._ws = ws
        self._operations = operations
        self._sessions = sessions
        self._limits = limits
        self._metrics = metrics
        self._viewer: Viewer | None = None
        self._is_init_received = False
        self._is_acknowledged = False
        self._running: dict[str, asyncio.Task[None]] = {}
        # Also those that were completed and are still on their way out: they hold resources until they are.
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._at_end = ExitStack()

    def end(self, ending: Ending) -> None:
        """Close it for this reason, unless it is ending already."""
        if not self._ending.done():
            self._ending.set_result(ending)

    def end_forbidden(self) -> None:
        """Its session has ended."""
        self.end(FORBIDDEN)

    async def run(self) -> None:
        """Serve the accepted connection until either side ends it; nothing of it runs on afterwards."""
        loop = asyncio.get_running_loop()
        with self._at_end:
            self._at_end.callback(loop.call_later(self._limits.init_timeout_s, self._check_init).cancel)
            reader = asyncio.create_task(self._read())
            reader.add_done_callback(self._look_at)
            try:
                either: set[asyncio.Future[None] | asyncio.Future[Ending]] = {reader, self._ending}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            finally:
                tasks = {reader, *self._tasks}
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
        if self._ending.done():
            await self._close(self._ending.result())

    # ------------------------------------------------------------ what comes in
    async def _read(self) -> None:
        try:
            while True:
                message = await self._ws.receive()
                if message["type"] == "websocket.disconnect":
                    return
                await self._take(_fields(message, limit=self._limits.max_body_bytes))
        except _Ended as ended:
            self.end(ended.ending)
        except _GONE:
            return

    async def _take(self, fields: Mapping[str, object]) -> None:
        match fields.get("type"):
            case "connection_init":
                await self._initialise(_payload(fields))
            case "ping":
                _payload(fields)
                await self._send({"type": "pong"})
            case "pong":
                _payload(fields)
            case "subscribe":
                await self._subscribe(_id(fields), _payload(fields))
            case "complete":
                if operation := self._running.pop(_id(fields), None):
                    operation.cancel()
            case _:
                raise _malformed("Unknown message type")

    async def _initialise(self, payload: Mapping[str, object] | None) -> None:
        if self._is_init_received:
            raise _Ended(SECOND_INIT)
        self._is_init_received = True
        try:
            async with asyncio.timeout(self._limits.init_timeout_s):
                self._viewer = await self._operations.viewer_of(self._token(payload or {}))
        except Unauthenticated as error:
            raise _Ended(FORBIDDEN) from error
        except Exception as error:  # the edge: the token could not be looked up
            _log.warning("could not sign in on a socket", exc_info=error)
            raise _Ended(TRY_LATER) from error
        if self._viewer is not None:
            self._watch(self._viewer)
        await self._send({"type": "connection_ack"})
        self._is_acknowledged = True

    def _token(self, payload: Mapping[str, object]) -> str | None:
        # Named as the header is, whose name has no case either.
        given = next((payload[name] for name in payload if name.lower() == "authorization"), None)
        if given is None:
            return token_of(self._ws)
        if not isinstance(given, str):
            raise Unauthenticated()
        return bearer_token(given)

    def _watch(self, viewer: Viewer) -> None:
        self._sessions.add(viewer.session.id, self)
        self._at_end.callback(self._sessions.remove, viewer.session.id, self)
        # The watch asks the database, which may be away; this holds without it.
        timer = asyncio.get_running_loop().call_later(viewer.session_left_s, self.end_forbidden)
        self._at_end.callback(timer.cancel)

    def _check_init(self) -> None:
        if not self._is_init_received:
            self.end(INIT_TIMEOUT)

    async def _subscribe(self, operation_id: str, payload: Mapping[str, object] | None) -> None:
        if not self._is_acknowledged:
            raise _Ended(NO_ACK)
        try:
            request = read_request(payload)
        except BadUserInput as error:
            raise _malformed(error.reason) from error
        if operation_id in self._running:
            raise _Ended(Ending(4409, f"Subscriber for {operation_id} already exists"))
        if len(self._tasks) >= self._limits.max_subscriptions_per_socket:
            too_many = RateLimited(self._limits.max_subscriptions_per_socket)
            result = self._operations.refused([too_many], request_id=new_request_id())
            await self._send({"type": "error", "id": operation_id, "payload": result.errors})
            return
        task = asyncio.create_task(self._operate(operation_id, request))
        self._running[operation_id] = task
        self._tasks.add(task)
        task.add_done_callback(self._look_at)

    # ------------------------------------------------------------ what goes out
    async def _operate(self, operation_id: str, request: OperationRequest) -> None:
        """Answer one operation to its end. Cancelled by the client's `complete` and with the socket."""
        request_id = new_request_id()
        last: dict[str, object] = {"type": "complete", "id": operation_id}
        try:
            with structlog.contextvars.bound_contextvars(request_id=request_id):
                async with aclosing(self._results(request, request_id)) as results:
                    async for result in results:
                        if result.is_refusal:
                            last = {"type": "error", "id": operation_id, "payload": result.errors}
                            break
                        await self._send({"type": "next", "id": operation_id, "payload": result.payload()})
            # First, because the client may use the id again as soon as it has read the last message.
            del self._running[operation_id]
            await self._send(last)
        except _Ended as ended:
            self.end(ended.ending)
        except _GONE:
            return

    async def _results(self, request: OperationRequest, request_id: str) -> AsyncGenerator[Result, None]:
        operation = self._operations.find(request, request_id=request_id)
        if isinstance(operation, Result):
            yield operation
            return
        caller = Caller(self._viewer, request_id, client_of(self._ws))
        match operation.kind:
            case OperationType.MUTATION:
                # It would be cancelled with the socket, half done.
                refused = BadUserInput("Send a mutation by POST: it must not depend on a socket.")
                yield self._operations.refused([refused], request_id=request_id)
            case OperationType.QUERY:
                try:
                    with self._operations.admitted():
                        result = await self._operations.run(operation, request, caller)
                except Overloaded as error:
                    result = self._operations.refused([error], request_id=request_id)
                yield result
            case OperationType.SUBSCRIPTION:
                with self._metrics.subscribers.track_inprogress():
                    async with aclosing(self._operations.stream(operation, request, caller)) as results:
                        async for result in results:
                            yield result

    async def _send(self, message: Mapping[str, object]) -> None:
        """Hand it to the transport once that has room. Raises: _Ended where that takes too long."""
        try:
            async with asyncio.timeout(self._limits.send_timeout_s):
                await self._ws.send({"type": "websocket.send", "text": orjson.dumps(message).decode()})
        except TimeoutError as error:
            raise _Ended(UNREAD) from error

    async def _close(self, ending: Ending) -> None:
        # A close frame has room for 123 bytes (RFC 6455, section 5.5).
        reason = ending.reason.encode()[:123].decode(errors="ignore")
        with suppress(*_GONE, TimeoutError):
            async with asyncio.timeout(self._limits.send_timeout_s):
                await self._ws.close(ending.code, reason)

    def _look_at(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("unexpected error on a socket", exc_info=error)
            self.end(BROKEN)


# Whatever a library calls it: the other side is gone, and there is nobody to tell.
_GONE = (WebSocketDisconnect, WebSocketDisconnected)


def _fields(message: Mapping[str, object], *, limit: int) -> Mapping[str, object]:
    """The message's fields. Raises: _Ended."""
    text = message.get("text")
    if not isinstance(text, str):
        raise _malformed("Send text, not binary")
    if len(text) > limit:
        raise _Ended(TOO_BIG)
    try:
        fields = decode_json(text)
    except BadUserInput as error:
        raise _malformed(error.reason) from error
    if not isinstance(fields, dict):
        raise _malformed("A message must be an object")
    return fields


def _id(fields: Mapping[str, object]) -> str:
    operation_id = fields.get("id")
    if not isinstance(operation_id, str) or not operation_id:
        raise _malformed("`id` must be a string with at least one character")
    return operation_id


def _payload(fields: Mapping[str, object]) -> Mapping[str, object] | None:
    payload = fields.get("payload")
    if payload is not None and not isinstance(payload, dict):
        raise _malformed("`payload` must be an object or null")
    return payload


def _malformed(reason: str) -> _Ended:
    return _Ended(Ending(4400, reason))  # "Invalid message"
