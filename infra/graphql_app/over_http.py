"""GraphQL over HTTP: GET for queries, POST for queries and mutations, GraphiQL for browsers.

Source: the GraphQL-over-HTTP draft. A client that accepts `application/graphql-response+json` gets 4xx and 5xx
for what came to nothing; with `application/json` everything that could be read answers 200. Both get 503 with
Retry-After when there is no room, because load balancers look at the status.
"""

import asyncio
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import ceil

import orjson
import structlog
from graphql import OperationType
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from strawberry.http.ides import get_graphql_ide_html

from domain.base import BadUserInput, Overloaded
from domain.user import Viewer
from infra.graphql_app.caller import Caller, Headers, client_of, request_id_of, token_of
from infra.graphql_app.documents import Operation
from infra.graphql_app.errors import retry_after_ms_of
from infra.graphql_app.limits import Limits
from infra.graphql_app.media import JSON, RESPONSE_JSON, accepts_html, negotiate, parse_media_type
from infra.graphql_app.operations import Operations, Result
from infra.graphql_app.requests import OperationRequest, decode_json, read_request
from infra.graphql_app.turnstile import Turnstile

# What a refusal's code is as a status, for clients that accept RESPONSE_JSON; any other is 400.
_STATUS = {"UNAUTHENTICATED": 401, "FORBIDDEN": 403, "INTERNAL": 500, "UNAVAILABLE": 503, "RETRYABLE": 503}


@dataclass(eq=False)
class _Refused(Exception):
    """Not run, and HTTP has a status of its own for the reason, whatever the client accepts."""

    status: int
    reason: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is asked for over HTTP."""

    request: Request
    headers: Headers
    request_id: str
    for_what: OperationRequest

    def by(self, viewer: Viewer | None, refusal: Overloaded | None = None) -> Caller:
        """Who asks; with a refusal nobody looked."""
        return Caller(viewer, self.request_id, client_of(self.request.scope), refusal)


class HttpEndpoint:
    """Answers requests, whatever is sent: a malformed one hears what is wrong with it, never a 500."""

    def __init__(self, operations: Operations, limits: Limits) -> None:
        self._operations = operations
        self._limits = limits
        self._graphiql = get_graphql_ide_html()
        self._turnstile = Turnstile(waiting_max=limits.max_not_begun)

    async def respond(self, request: Request) -> Response:
        """The response. Its X-Request-Id stands on every log line and in every error, too."""
        given = Headers(request.scope)
        request_id = request_id_of(given)
        # Not `bound_contextvars`, which first looks at all that is bound: this is done for every request.
        bound = structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            return await self._response(request, given, request_id)
        finally:
            structlog.contextvars.reset_contextvars(**bound)

    async def _response(self, request: Request, given: Headers, request_id: str) -> Response:
        headers = {
            "x-request-id": request_id,
            "cache-control": "no-store",
            "vary": "accept, authorization",
        }
        if _is_browser(request, given):
            return HTMLResponse(self._graphiql, headers=headers)
        media_type = negotiate(given.all(b"accept"))
        try:
            if media_type is None:
                raise _Refused(406, f"There is {RESPONSE_JSON} and {JSON}: accept one of them.")
            asked = _Asked(request, given, request_id, await self._read(request, given))
            result = await self._result(asked)
            status = _status(result, media_type)
            headers |= _headers(result, status)
        except _Refused as refused:
            result = self._operations.refused([BadUserInput(refused.reason)], request_id=request_id)
            status = refused.status
            headers |= refused.headers
        headers["content-type"] = f"{media_type or JSON}; charset=utf-8"
        return Response(orjson.dumps(result.payload()), status, headers=headers)

    async def _result(self, asked: _Asked) -> Result:
        """The answer to what could be read. Raises: _Refused."""
        try:
            with ExitStack() as places:
                known = self._operations.known(asked.for_what)
                no_room = self._no_room(asked, known, places)
                if no_room is None:
                    await self._turnstile.passed()
                    with self._operations.admitted():
                        operation = self._operations.find(asked.for_what, request_id=asked.request_id)
                        if known is None:
                            no_room = self._no_room(asked, operation, places)
                        if no_room is None:
                            return await self._run(asked, operation)
            # Out here no place is held any more while it waits for its turn.
            return await self._refusal(asked, no_room)
        except Overloaded as error:
            await self._turnstile.refused()
            return self._operations.refused([error], request_id=asked.request_id)
        except TimeoutError:
            return self._operations.refused([Overloaded()], request_id=asked.request_id)
        except _Refused:
            raise
        except Exception as error:  # the edge: the token could not be looked up
            return self._operations.refused([error], request_id=asked.request_id)

    def _no_room(
        self, asked: _Asked, operation: Operation | Result | None, places: ExitStack
    ) -> Overloaded | None:
        """The refusal where the operation would find no place; else it has one. Nobody asked who the caller is."""
        if not isinstance(operation, Operation) or asked.request.method != "POST":
            return None
        return self._operations.take_place(operation, asked.for_what, places)

    async def _refusal(self, asked: _Asked, no_room: Overloaded) -> Result:
        """The answer to who is told no, when it is its turn. With more than may wait for that it is a plain one."""
        has_waited = await self._turnstile.refused()
        operation = self._operations.known(asked.for_what)
        if operation is None or not has_waited:
            return self._operations.refused([no_room], request_id=asked.request_id)
        return await self._operations.refuse(operation, asked.for_what, asked.by(None, no_room))

    async def _run(self, asked: _Asked, operation: Operation | Result) -> Result:
        """The answer to a request whose turn it is. Raises: _Refused, Unauthenticated, TimeoutError."""
        async with asyncio.timeout(self._limits.request_timeout_s):
            viewer = await self._operations.viewer_of(token_of(asked.headers))
        if isinstance(operation, Result):
            return operation
        _check_kind(operation.kind, asked.request.method)
        return await self._operations.run(operation, asked.for_what, asked.by(viewer))

    async def _read(self, request: Request, given: Headers) -> OperationRequest:
        try:
            if request.method == "GET":
                return read_request(_query_fields(request))
            if request.method != "POST":
                raise _Refused(405, "Use GET or POST.", {"allow": "GET, POST"})
            _check_content_type(given)
            return read_request(decode_json(await self._body(request, given)))
        except BadUserInput as error:
            raise _Refused(400, error.reason) from error

    async def _body(self, request: Request, given: Headers) -> bytes:
        """The body, read no further than the limit."""
        limit = self._limits.max_body_bytes
        # What is left of the body must not be taken for the next request.
        close = {"connection": "close"}
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                if _declared_length(given) > limit:
                    raise _Refused(413, f"The body is larger than {limit} bytes.", close)
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limit:
                        raise _Refused(413, f"The body is larger than {limit} bytes.", close)
        except TimeoutError as error:
            raise _Refused(408, "The body did not come in time.", close) from error
        except ClientDisconnect as error:
            raise _Refused(400, "The body ended early.", close) from error
        return bytes(body)


def _is_browser(request: Request, given: Headers) -> bool:
    if request.method != "GET" or "query" in request.query_params or "extensions" in request.query_params:
        return False
    return accepts_html(given.all(b"accept"))


def _query_fields(request: Request) -> dict[str, object]:
    """The parameters of a GET, decoded; an empty one counts as absent."""
    given = {name: value for name, value in request.query_params.items() if value}
    fields: dict[str, object] = {name: given.get(name) for name in ("query", "operationName")}
    for name in ("variables", "extensions"):
        fields[name] = decode_json(given[name]) if name in given else None
    return fields


def _check_content_type(given: Headers) -> None:
    # JSON only: a web page of another origin can send a form or text without asking first, but not this.
    media_type, parameters = parse_media_type(given.first(b"content-type"))
    if media_type != JSON or parameters.get("charset", "utf-8") not in ("utf-8", "utf8"):
        raise _Refused(415, f"Send the body as {JSON} in UTF-8.")
    if any(coding.lower() != "identity" for coding in given.all(b"content-encoding")):
        raise _Refused(415, "Send the body without content-encoding.")


def _declared_length(given: Headers) -> int:
    length = given.first(b"content-length")
    return int(length) if length.isascii() and length.isdigit() else 0


def _check_kind(kind: OperationType, method: str) -> None:
    if kind is OperationType.SUBSCRIPTION:
        raise _Refused(
            400, "Subscriptions run over a websocket: connect to this address with graphql-transport-ws."
        )
    if kind is OperationType.MUTATION and method == "GET":
        raise _Refused(405, "GET runs queries only: send a mutation by POST.", {"allow": "POST"})


def _status(result: Result, media_type: str) -> int:
    if not result.is_refusal:
        return 200
    if result.code == "OVERLOADED":
        return 503
    return 200 if media_type == JSON else _STATUS.get(result.code, 400)


def _headers(result: Result, status: int) -> dict[str, str]:
    if status == 401:
        return {"www-authenticate": "Bearer"}
    if status != 503:
        return {}
    return {"retry-after": str(ceil(retry_after_ms_of(result.errors[0]) / 1_000))}
