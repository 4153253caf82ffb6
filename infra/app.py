"""The composition root: the only place that builds things and decides what stands behind each door."""

import asyncio
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import structlog
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from domain.base import DomainError
from domain.events import Event
from domain.payment import GatewayError
from domain.ports import Deps, Listener, PaymentGateway, Rules
from domain.use_cases.settlement import hear_webhook
from domain.use_cases.user import authenticate
from infra.auth import Argon2Passwords, MemoryAttemptLimiter, SystemRandomness
from infra.breaker import Breaker, BreakerGateway, BreakerMetrics
from infra.db.engine import DatabaseLimits
from infra.db.source import WriteSideSource
from infra.db.unit import Database
from infra.event_stream import BroadcastEventStream, memory_event_stream, redis_event_stream
from infra.graphql_app import GraphQLApp, Limits
from infra.live_updates import StreamedUpdates
from infra.own_writes import FreshReadModel
from infra.payment_gateway import BadPayload, BadSignature, StripeGateway, verify_webhook
from infra.read_model import MemoryReadModel, RebuildableReadModel, Source, redis_read_model
from infra.settings import Settings, WorkerPlace
from infra.telemetry import Metrics
from infra.wake import Wake, running_wake
from infra.worker import Worker
from resolvers.context import make_context
from schema.root import build_schema

log = structlog.get_logger(__name__)

READY_S = 2.0
WEBHOOK_MAX_BYTES = 1_048_576
# More than these and it is a thousand all the same: somebody has to look.
FAILED_REFUNDS_COUNTED = 1_000


@dataclass(frozen=True, slots=True)
class Frontrow:
    """Everything one process is made of."""

    settings: Settings
    deps: Deps
    database: Database
    source: Source
    read_model: RebuildableReadModel
    stream: BroadcastEventStream
    worker: Worker
    wake: Wake
    metrics: Metrics

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """A worker works in this process, woken by every process's commits, until the block ends."""
        async with self.wake.wakes() as wakes, self.worker.running():
            task = asyncio.create_task(self._pass_on(wakes), name="wakes")
            try:
                yield
            finally:
                task.cancel()
                await asyncio.wait([task])

    async def _pass_on(self, wakes: Listener) -> None:
        async for _ in wakes:
            self.worker.wake()

    async def measure(self) -> None:
        """What the database knows stands in the metrics. Raises: DatabaseAway, Overloaded."""
        depth, oldest_s = await self.database.outbox.lag()
        async with self.deps.write() as unit:
            failed = await unit.payments.failed_refunds(limit=FAILED_REFUNDS_COUNTED)
        self.metrics.outbox_depth.set(depth)
        self.metrics.outbox_lag_s.set(oldest_s)
        self.metrics.refunds_failed.set(len(failed))


@asynccontextmanager
async def composed(settings: Settings, *, without: frozenset[str] = frozenset()) -> AsyncIterator[Frontrow]:
    """All parts, built and connected; everything that was opened is closed at the end."""
    metrics = Metrics.build()
    async with AsyncExitStack() as stack:
        read_model = await _read_model(settings, stack)
        fresh = FreshReadModel(read_model, metrics)
        stream = await _stream(settings, stack)
        wake = await stack.enter_async_context(running_wake(stream))

        def committed(events: Sequence[Event]) -> None:
            if events:
                fresh.committed(events)
                wake.publish_wake()

        database = Database(
            settings.database_url,
            limits=_database_limits(settings),
            on_commit=committed,
            left_out=without,
        )
        stack.push_async_callback(database.close)
        passwords = Argon2Passwords(max_waiting=settings.max_waiting_passwords)
        stack.callback(passwords.close)
        deps = Deps(
            write=database.write,
            reads=database.reads,
            read_model=fresh,
            live=StreamedUpdates(stream),
            gateway=await _gateway(settings, metrics, stack),
            passwords=passwords,
            randomness=SystemRandomness(),
            limiter=_limiter(settings),
            rules=Rules(
                hold_s=settings.hold_s,
                session_s=settings.session_lifetime_s,
                payment_timeout_ms=settings.payment_timeout_ms,
                settle_after_s=settings.payment_settle_after_s,
            ),
        )
        source = WriteSideSource(database)
        worker = Worker(
            deps,
            database.outbox,
            read_model=read_model,
            source=source,
            name=f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}",
            metrics=metrics,
        )
        yield Frontrow(settings, deps, database, source, read_model, stream, worker, wake, metrics)


async def _read_model(settings: Settings, stack: AsyncExitStack) -> RebuildableReadModel:
    if settings.redis_url is None:
        return MemoryReadModel()
    return await stack.enter_async_context(redis_read_model(settings.redis_url))


async def _stream(settings: Settings, stack: AsyncExitStack) -> BroadcastEventStream:
    if settings.redis_url is None:
        return await stack.enter_async_context(memory_event_stream())
    return await stack.enter_async_context(
        redis_event_stream(settings.redis_url, heartbeat_s=settings.redis_heartbeat_s)
    )


async def _gateway(settings: Settings, metrics: Metrics, stack: AsyncExitStack) -> PaymentGateway:
    """The processor behind the breaker. Without a key nothing can be paid: commands that don't pay need none."""
    key = settings.stripe_api_key
    gateway = StripeGateway(
        "sk_test_none" if key is None else key.get_secret_value(),
        api_base=settings.stripe_api_base,
        return_url=settings.public_url,
        payment_timeout_ms=settings.payment_timeout_ms,
    )
    stack.push_async_callback(gateway.aclose)
    breaker = Breaker(
        fail_max=settings.breaker_fail_max,
        window=settings.breaker_window,
        fail_share=settings.breaker_fail_rate,
        reset_s=settings.breaker_reset_s,
        max_in_flight=settings.payment_max_in_flight,
        listeners=[BreakerMetrics(metrics)],
    )
    return BreakerGateway(gateway, breaker)


def _database_limits(settings: Settings) -> DatabaseLimits:
    return DatabaseLimits(
        writers=settings.db_pool_size,
        readers=settings.db_pool_size,
        queue_s=settings.db_pool_wait_s,
    )


def _limiter(settings: Settings) -> MemoryAttemptLimiter:
    return MemoryAttemptLimiter(
        {
            "log_in": (settings.log_in_failures_max, settings.log_in_window_s),
            "sign_up": (settings.sign_ups_per_min, 60),
            "book": (settings.bookings_per_min, 60),
            "pay": (settings.payments_per_min, 60),
        }
    )


# ---------------------------------------------------------------- HTTP
def build_app(settings: Settings, *, without: frozenset[str] = frozenset()) -> Starlette:
    """The ASGI application of one API process, with a worker inside unless that is switched off."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            frontrow = await stack.enter_async_context(composed(settings, without=without))
            if settings.worker is WorkerPlace.INLINE:
                await stack.enter_async_context(frontrow.working())
            graphql = _graphql(frontrow)
            await stack.enter_async_context(graphql.running())
            app.state.frontrow = frontrow
            app.state.graphql = graphql
            app.state.is_stopping = False
            yield

    return Starlette(
        routes=[
            Route("/graphql", _GraphQLRoute()),
            WebSocketRoute("/graphql", _GraphQLRoute()),
            Route("/healthz", _healthz),
            Route("/readyz", _readyz),
            Route("/metrics", _metrics),
            Route("/webhooks/stripe", _webhook, methods=["POST"]),
        ],
        middleware=[
            Middleware(_CountRequests),
            Middleware(
                CORSMiddleware,
                allow_origins=_web_origins(settings),
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["X-Request-Id", "Retry-After"],
            ),
        ],
        lifespan=lifespan,
    )


async def drain(app: Starlette, *, over_s: float) -> None:
    """Not ready any more, so that nothing new is sent here; open sockets are closed, requests go on."""
    app.state.is_stopping = True
    await app.state.graphql.end_sockets(over_s=over_s)


def _graphql(frontrow: Frontrow) -> GraphQLApp:
    settings = frontrow.settings
    return GraphQLApp(
        build_schema(),
        make_context=partial(make_context, frontrow.deps),
        authenticate=partial(authenticate, frontrow.deps),
        sessions_alive=frontrow.deps.reads.live_sessions,
        metrics=frontrow.metrics,
        limits=Limits(
            max_tokens=settings.max_query_tokens,
            max_depth=settings.max_query_depth,
            max_aliases=settings.max_query_aliases,
            max_body_bytes=settings.max_body_bytes,
            max_sockets=settings.max_sockets,
            max_subscriptions_per_socket=settings.max_subscriptions_per_socket,
            init_timeout_s=settings.socket_init_timeout_s,
            allowed_origins=_socket_origins(settings),
        ),
    )


def _web_origins(settings: Settings) -> list[str]:
    if settings.allowed_origins or settings.is_production:
        return list(settings.allowed_origins)
    return ["*"]


def _socket_origins(settings: Settings) -> tuple[str, ...]:
    """Empty would mean any: in production a page of our own origin is always let in, others by name only."""
    if settings.allowed_origins or not settings.is_production:
        return settings.allowed_origins
    return (settings.public_url,)


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
            await frontrow.deps.reads.now()
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
            frontrow.deps, event.id, payment_id=event.payment_id, intent_id=event.intent_id
        )
    except (DomainError, GatewayError) as error:
        log.warning("webhook.later", event_id=event.id, type=event.type, error=str(error))
        return PlainTextResponse("try again later\n", 503)
    return PlainTextResponse("heard\n" if is_ours else "none of ours\n")
