"""The ASGI application of one API process: GraphQL, health, metrics and the processor's webhooks."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

import structlog
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from domain.base import BadUserInput, DomainError
from domain.payment import GatewayError
from domain.use_cases.settlement import hear_webhook
from domain.use_cases.user import authenticate
from infra.app.composition import Frontrow, composed
from infra.failpoints import Failpoints
from infra.graphql_app import GraphQLApp, Limits
from infra.graphql_app.operations import Variables
from infra.settings import Settings, WorkerPlace
from infra.webhooks import BadPayload, BadSignature, verify_webhook
from resolvers.context import make_context
from schema.common import decode_id
from schema.root import build_schema

log = structlog.get_logger(__name__)

GRAPHQL_PATH = "/graphql"
# Subscriptions that say the same to everybody, whoever asks: one execution for all who watch the same.
SHARED = frozenset({"ticketCount"})
READY_S = 2.0
WEBHOOK_MAX_BYTES = 1_048_576


def build_app(
    settings: Settings,
    *,
    without: frozenset[str] = frozenset(),
    failpoints: Failpoints | None = None,
) -> Starlette:
    """The ASGI application of one API process, with a worker inside unless that is switched off."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            frontrow = await stack.enter_async_context(
                composed(settings, without=without, failpoints=failpoints)
            )
            if settings.worker is WorkerPlace.INLINE:
                await stack.enter_async_context(frontrow.working())
            graphql = _graphql(frontrow)
            await stack.enter_async_context(graphql.running())
            app.state.frontrow = frontrow
            app.state.graphql = graphql
            app.state.is_stopping = False
            yield

    counted = [
        Middleware(_CountRequests),
        Middleware(
            CORSMiddleware,
            allow_origins=_web_origins(settings),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After"],
        ),
    ]
    return _Api(
        routes=[
            # For a path with a root before it, and to lead here from one with a slash after it.
            Route(GRAPHQL_PATH, _GraphQLRoute()),
            Route("/healthz", _healthz),
            Route("/readyz", _readyz),
            Route("/metrics", _metrics),
            Route("/webhooks/stripe", _webhook, methods=["POST"]),
        ],
        middleware=counted,
        lifespan=lifespan,
    )


async def drain(app: Starlette, *, over_s: float) -> None:
    """Not ready any more, so that nothing new is sent here; open sockets are closed, requests are still answered."""
    app.state.is_stopping = True
    await app.state.graphql.end_sockets(over_s=over_s)


def _graphql(frontrow: Frontrow) -> GraphQLApp:
    settings = frontrow.settings
    return GraphQLApp(
        build_schema(),
        make_context=partial(make_context, frontrow.deps),
        authenticate=partial(authenticate, frontrow.deps),
        sessions_alive=frontrow.database.steady_reads.live_sessions,
        metrics=frontrow.metrics,
        rooms={
            "bookConcert": partial(_place_to_book, frontrow),
            "cancelBooking": lambda *_: frontrow.database.writers.check_room(),
            "payBooking": lambda *_: frontrow.database.payers.check_room(),
        },
        shared=SHARED,
        limits=Limits(
            max_tokens=settings.max_query_tokens,
            max_depth=settings.max_query_depth,
            max_aliases=settings.max_query_aliases,
            max_body_bytes=settings.max_body_bytes,
            max_in_flight=settings.max_in_flight,
            max_not_begun=settings.max_not_begun,
            max_sockets=settings.max_sockets,
            max_subscriptions_per_socket=settings.max_subscriptions_per_socket,
            shared_updates_per_s=settings.ticket_count_updates_per_s,
            init_timeout_s=settings.socket_init_timeout_s,
            allowed_origins=_socket_origins(settings),
        ),
    )


def _place_to_book(frontrow: Frontrow, variables: Variables, places: ExitStack) -> None:
    """One place, whatever the variables say: nobody asked yet who the caller is. Raises: Overloaded.

    Where the concert stands in no variable, that is found out later, at a higher price.
    """
    frontrow.database.writers.check_room()
    for given in variables.values():
        text = given.get("concertId") if isinstance(given, dict) else None
        if isinstance(text, str):
            with suppress(BadUserInput):
                places.callback(frontrow.commits.take_place(decode_id(text)[1]))
                return


def _web_origins(settings: Settings) -> list[str]:
    if settings.allowed_origins or settings.is_production:
        return list(settings.allowed_origins)
    return ["*"]


def _socket_origins(settings: Settings) -> tuple[str, ...]:
    """Empty would mean any: in production a page of our own origin is always let in, others by name only."""
    if settings.allowed_origins or not settings.is_production:
        return settings.allowed_origins
    return (settings.public_url,)


class _Api(Starlette):
    """Leads GraphQL past routes and Starlette's own middleware, and a socket past all of it.

    They do nothing for it, take a thirtieth of the CPU of a booking, and would hold 3 KB while a socket lives. So what
    is added to the application later, by `add_middleware` or as a handler of exceptions, is not GraphQL's.
    """

    def __init__(self, *, middleware: Sequence[Middleware], **options: Any) -> None:
        super().__init__(middleware=middleware, **options)
        self._graphql: ASGIApp = _GraphQLRoute()
        for make, args, kwargs in reversed(middleware):
            self._graphql = make(self._graphql, *args, **kwargs)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, one websocket, or the life of the process."""
        if scope.get("path") != GRAPHQL_PATH:
            await super().__call__(scope, receive, send)
        elif scope["type"] == "websocket":
            await self.state.graphql(scope, receive, send)
        else:
            scope["app"] = self
            await self._graphql(scope, receive, send)


class _GraphQLRoute:
    """Hands on to the endpoint of the running application."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await scope["app"].state.graphql(scope, receive, send)


class _CountRequests:
    """Every HTTP request is counted and timed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, started = 500, time.perf_counter()

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if scope["app"].state.is_stopping:
                    # On a connection that is kept the next request might come just as it is closed.
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            metrics = scope["app"].state.frontrow.metrics
            metrics.saw_http_request(scope["method"], status, duration_s=time.perf_counter() - started)


async def _healthz(request: Request) -> Response:
    """The process runs and its event loop turns."""
    return PlainTextResponse("ok\n")


async def _readyz(request: Request) -> Response:
    """Able to answer: the database is there. Redis or the processor being down leaves it ready."""
    frontrow: Frontrow = request.app.state.frontrow
    if request.app.state.is_stopping:
        return PlainTextResponse("stopping\n", 503)
    try:
        async with asyncio.timeout(READY_S):
            await frontrow.database.steady_reads.now()
    except (DomainError, TimeoutError):
        return PlainTextResponse("the database does not answer\n", 503)
    return PlainTextResponse("ready\n")


async def _metrics(request: Request) -> Response:
    """Prometheus text format. The database is asked at each look: workers have no `/metrics` of their own."""
    frontrow: Frontrow = request.app.state.frontrow
    try:
        async with asyncio.timeout(READY_S):
            await frontrow.measure()
    except (DomainError, TimeoutError) as error:
        log.warning("metrics.old", error=str(error))
    commits = {"commits": frontrow.commits.waiting, "settlements": frontrow.settling.waiting}
    waiting = {**frontrow.database.waiting(), **commits}
    for queue, length in waiting.items():
        frontrow.metrics.waiting.labels(queue=queue).set(length)
    frontrow.metrics.event_stream_connected.set(frontrow.stream.is_connected)
    return Response(frontrow.metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _webhook(request: Request) -> Response:
    """What the processor tells. 200: stored, heard before or none of ours; 503: send it again."""
    frontrow: Frontrow = request.app.state.frontrow
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > WEBHOOK_MAX_BYTES:
            return PlainTextResponse("too large\n", 413)
    header = request.headers.get("stripe-signature", "")
    try:
        event = verify_webhook(body, header, frontrow.settings.webhook_secrets)
    except BadSignature:
        return PlainTextResponse("the signature is missing, wrong or too old\n", 400)
    except BadPayload:
        return PlainTextResponse("this is no event\n", 400)
    try:
        is_ours = await hear_webhook(
            frontrow.deps,
            event.id,
            payment_id=event.payment_id,
            intent_id=event.intent_id,
            is_of_intent=event.is_of_intent,
            is_refund_failed=event.is_refund_failed,
        )
    except (DomainError, GatewayError) as error:
        log.warning("webhook.later", event_id=event.id, type=event.type, error=str(error))
        return PlainTextResponse("try again later\n", 503)
    return PlainTextResponse("heard\n" if is_ours else "none of ours\n")
