"""GraphQL over a websocket: the graphql-transport-ws protocol, for subscriptions and queries.

Source: github.com/enisdenjo/graphql-ws, PROTOCOL.md, which names the close codes.
What bounds memory per socket: uvicorn hands over one received message and stops reading the connection until it
is taken; a message is sent only while the transport holds less than 64 KiB, so an operation waits with its next
answer until the client has read; and a client that reads nothing for `send_timeout_s` is given up.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass

import structlog
from graphql import OperationType
from starlette.types import Receive, Scope, Send

from domain.base import BadUserInput, Overloaded
from domain.user import Unauthenticated, Viewer
from infra.auth import bearer_token
from infra.graphql_app import messages
from infra.graphql_app.caller import Caller, Headers, client_of, new_request_id, token_of
from infra.graphql_app.documents import Operation
from infra.graphql_app.errors import RateLimited
from infra.graphql_app.feeds import Feed, Feeds
from infra.graphql_app.limits import Limits
from infra.graphql_app.operations import Operations, Result
from infra.graphql_app.outlet import Line, Outlet, Slot
from infra.graphql_app.requests import OperationRequest, decode_json, read_request
from infra.graphql_app.sessions import SessionWatch
from infra.socket_protocol import EXTENSION
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


class _Left(Exception):
    """The client has left."""


class Socket:
    """One connection from its acceptance to its close. `run` owns every task of it."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        operations: Operations,
        feeds: Feeds,
        sessions: SessionWatch,
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send_event = send
        self._operations = operations
        self._feeds = feeds
        self._sessions = sessions
        self._limits = limits
        self._metrics = metrics
        line: Line = scope["extensions"][EXTENSION]
        self._outlet = Outlet(line, self._end_unread, send_timeout_s=limits.send_timeout_s)
        self._viewer: Viewer | None = None
        self._is_init_received = False
        self._is_acknowledged = False
        # Operations of this socket alone, and those that it shares with others, by the client's ids.
        self._running: dict[str, asyncio.Task[None]] = {}
        self._watching: dict[str, tuple[Feed, Slot]] = {}
        # Also those that were completed and are still on their way out: they hold resources until they are.
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._ending: Ending | None = None

    def end(self, ending: Ending) -> None:
        """Close it for this reason, unless it is ending already."""
        if self._ending is None and not self._time.expired():
            self._ending = ending
            self._time.reschedule(asyncio.get_running_loop().time())

    def end_forbidden(self) -> None:
        """Its session has ended."""
        self.end(FORBIDDEN)

    def _end_unread(self) -> None:
        self.end(UNREAD)

    async def run(self) -> None:
        """Serve the accepted connection until either side ends it; nothing of it runs on afterwards."""
        try:
            # Whatever ends the socket from our side does it by this timer, so that nothing else need wait for that.
            async with asyncio.timeout(self._limits.init_timeout_s) as self._time:
                while True:
                    # No name here keeps the last message while the next one is waited for.
                    await self._take(_fields(await self._receive(), limit=self._limits.max_body_bytes))
        except _Left:
            pass
        except _Ended as ended:
            self._ending = ended.ending
        except TimeoutError:
            if self._ending is None:
                self._ending = FORBIDDEN if self._is_init_received else INIT_TIMEOUT
        except Exception as error:  # the edge
            _log.error("unexpected error on a socket", exc_info=error)
            self._ending = BROKEN
        finally:
            is_closed_here = self._ending is not None
            self._ending = self._ending or BROKEN  # from here on nothing ends it any more
            await self._let_go()
        if is_closed_here:
            await self._close(self._ending)

    async def _let_go(self) -> None:
        if self._viewer is not None:
            self._sessions.remove(self._viewer.session.id, self)
        for operation_id in tuple(self._watching):
            self._unwatch(operation_id)
        self._outlet.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # ------------------------------------------------------------ what comes in
    async def _take(self, fields: Mapping[str, object]) -> None:
        match fields.get("type"):
            case "connection_init":
                await self._initialise(_payload(fields))
            case "ping":
                _payload(fields)
                await self._send(messages.PONG)
            case "pong":
                _payload(fields)
            case "subscribe":
                await self._subscribe(_id(fields), _payload(fields))
            case "complete":
                self._complete(_id(fields))
            case _:
                raise _malformed("Unknown message type")

    async def _initialise(self, payload: Mapping[str, object] | None) -> None:
        if self._is_init_received:
            raise _Ended(SECOND_INIT)
        self._is_init_received = True
        self._time.reschedule(None)
        try:
            async with asyncio.timeout(self._limits.init_timeout_s):
                viewer = await self._operations.viewer_of(self._token(payload or {}))
        except Unauthenticated as error:
            raise _Ended(FORBIDDEN) from error
        except Exception as error:  # the edge: the token could not be looked up
            _log.warning("could not sign in on a socket", exc_info=error)
            raise _Ended(TRY_LATER) from error
        if viewer is not None:
            self._viewer = viewer
            self._sessions.add(viewer.session.id, self)
            # The watch asks the database, which may be away; this holds without it.
            self._time.reschedule(asyncio.get_running_loop().time() + viewer.session_left_s)
        self._scope["headers"].clear()  # nobody looks at them any more, and they are 1 KB
        await self._send(messages.ACK)
        self._is_acknowledged = True

    def _token(self, payload: Mapping[str, object]) -> str | None:
        # Named as the header is, whose name has no case either.
        given = next((payload[name] for name in payload if name.lower() == "authorization"), None)
        if given is None:
            return token_of(Headers(self._scope))
        if not isinstance(given, str):
            raise Unauthenticated()
        return bearer_token(given)

    async def _subscribe(self, operation_id: str, payload: Mapping[str, object] | None) -> None:
        if not self._is_acknowledged:
            raise _Ended(NO_ACK)
        try:
            request = read_request(payload)
        except BadUserInput as error:
            raise _malformed(error.reason) from error
        if operation_id in self._running or operation_id in self._watching:
            raise _Ended(Ending(4409, f"Subscriber for {operation_id} already exists"))
        request_id = new_request_id()
        if len(self._tasks) + len(self._watching) >= self._limits.max_subscriptions_per_socket:
            too_many = RateLimited(self._limits.max_subscriptions_per_socket)
            result = self._operations.refused([too_many], request_id=request_id)
            await self._send(messages.error(operation_id, result.errors))
            return
        operation = self._operations.find(request, request_id=request_id)
        if isinstance(operation, Operation) and self._watch(operation_id, operation, request):
            return
        task = asyncio.create_task(self._operate(operation_id, operation, request, request_id))
        self._running[operation_id] = task
        self._tasks[task] = None
        task.add_done_callback(self._look_at)

    def _complete(self, operation_id: str) -> None:
        """The client wants no more of it."""
        if task := self._running.pop(operation_id, None):
            task.cancel()
        if operation_id in self._watching:
            self._unwatch(operation_id)

    # ------------------------------------------------------------ what is shared with other sockets
    def _watch(self, operation_id: str, operation: Operation, request: OperationRequest) -> bool:
        """Whether it is a stream that others may share: then this socket is told of it from here on."""
        slot = Slot(self._outlet, operation_id, on_end=self._see_ended)
        feed = self._feeds.join(operation, request, slot)
        if feed is None:
            return False
        self._watching[operation_id] = (feed, slot)
        self._metrics.subscribers.inc()
        return True

    def _unwatch(self, operation_id: str) -> None:
        feed, slot = self._watching[operation_id]
        feed.leave(slot)
        self._outlet.forget(slot)
        self._see_ended(operation_id, "CANCELLED")

    def _see_ended(self, operation_id: str, code: str) -> None:
        del self._watching[operation_id]
        self._metrics.subscribers.dec()
        self._operations.count(OperationType.SUBSCRIPTION, code)

    # ------------------------------------------------------------ what is this socket's own
    async def _operate(
        self,
        operation_id: str,
        operation: Operation | Result,
        request: OperationRequest,
        request_id: str,
    ) -> None:
        """Answer one operation to its end. Cancelled by the client's `complete` and with the socket."""
        start, last = messages.next_start(operation_id), messages.complete(operation_id)
        try:
            with structlog.contextvars.bound_contextvars(request_id=request_id):
                async with aclosing(self._results(operation, request, request_id)) as results:
                    async for result in results:
                        if result.is_refusal:
                            last = messages.error(operation_id, result.errors)
                            break
                        await self._send(start + messages.encoded(result.payload()) + messages.NEXT_END)
            # First, because the client may use the id again as soon as it has read the last message.
            del self._running[operation_id]
            await self._send(last)
        except _Ended as ended:
            self.end(ended.ending)

    async def _results(
        self, operation: Operation | Result, request: OperationRequest, request_id: str
    ) -> AsyncGenerator[Result, None]:
        if isinstance(operation, Result):
            yield operation
            return
        caller = Caller(self._viewer, request_id, client_of(self._scope))
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

    async def _send(self, message: bytes) -> None:
        """Hand it to the transport once that has room. Raises: _Ended where that takes too long."""
        try:
            await self._outlet.send(message)
        except TimeoutError as error:
            raise _Ended(UNREAD) from error

    async def _close(self, ending: Ending) -> None:
        # A close frame has room for 123 bytes (RFC 6455, section 5.5).
        reason = ending.reason.encode()[:123].decode(errors="ignore")
        with suppress(OSError):  # gone, or in no time
            async with asyncio.timeout(self._limits.send_timeout_s):
                await self._send_event({"type": "websocket.close", "code": ending.code, "reason": reason})

    def _look_at(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("unexpected error on a socket", exc_info=error)
            self.end(BROKEN)


def _fields(message: Mapping[str, object], *, limit: int) -> Mapping[str, object]:
    """The message's fields. Raises: _Left, _Ended."""
    if message["type"] == "websocket.disconnect":
        raise _Left()
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
