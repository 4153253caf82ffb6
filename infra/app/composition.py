"""The composition root: the only place that builds things and decides what stands behind each door."""

import asyncio
import math
import os
import secrets
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime

from domain.events import Event
from domain.ports import Deps, Listener, PaymentGateway, Rules
from infra.auth import Argon2Passwords, MemoryAttemptLimiter, SystemRandomness
from infra.breaker import Breaker, BreakerGateway, BreakerMetrics
from infra.db.checks import PromiseChecks, Standing
from infra.db.engine import DatabaseLimits
from infra.db.outbox import OutboxQueue
from infra.db.promises import PROMISES
from infra.db.source import WriteSideSource
from infra.db.unit import Database
from infra.event_stream import (
    BroadcastEventStream,
    cluster_event_stream,
    memory_event_stream,
    redis_event_stream,
)
from infra.failpoints import Failpoints
from infra.group_commit import SharedCommits
from infra.live_updates import StreamedUpdates
from infra.own_writes import FreshReadModel
from infra.payment_gateway import StripeGateway
from infra.read_model import MemoryReadModel, RebuildableReadModel, Source, redis_read_model
from infra.settings import Settings
from infra.sign_ins import RememberedSignIns
from infra.telemetry import Metrics
from infra.throttle import Throttle
from infra.verifier import Verifier
from infra.wake import Wake, running_wake
from infra.worker import Worker

# More than these and it is a thousand all the same: somebody has to look.
FAILED_REFUNDS_COUNTED = 1_000


@dataclass(frozen=True, slots=True)
class Frontrow:
    """Everything one process is made of."""

    settings: Settings
    deps: Deps
    database: Database
    commits: SharedCommits
    settling: SharedCommits
    checks: PromiseChecks
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
        async with self.deps.write("measure") as unit:
            failed = await unit.payments.failed_refunds(limit=FAILED_REFUNDS_COUNTED)
            bookings, refunds = await unit.sales.all_unsettled()
            halted = await unit.sales.halted()
        standings, now = await self.checks.standings()
        self.metrics.outbox_depth.set(depth)
        self.metrics.outbox_lag_s.set(oldest_s)
        self.metrics.refunds_failed.set(len(failed))
        self.metrics.refunds_open.set(refunds)
        self.metrics.bookings_to_cancel.set(bookings)
        self.metrics.sales_halted.set(len(halted))
        self._measure_promises(standings, now)

    def _measure_promises(self, standings: Mapping[str, Standing], now: datetime) -> None:
        oldest_s = 0.0
        for promise in PROMISES:
            standing = standings.get(promise.name)
            if standing is not None:
                self.metrics.broken_promises.labels(promise=promise.name).set(standing.broken)
            if standing is None or standing.checked_at is None:
                oldest_s = math.inf
            else:
                oldest_s = max(oldest_s, (now - standing.checked_at).total_seconds())
        self.metrics.promises_age_s.set(oldest_s)


@asynccontextmanager
async def composed(
    settings: Settings,
    *,
    without: frozenset[str] = frozenset(),
    failpoints: Failpoints | None = None,
) -> AsyncIterator[Frontrow]:
    """All parts, built and connected; everything that was opened is closed at the end.

    With `failpoints` every door passes them. Raises: AssertionError for those in production.
    """
    assert failpoints is None or not settings.is_production, "nothing may be made to fail in production"
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        read_model = await _read_model(settings, stack)
        fresh = FreshReadModel(read_model, metrics)
        stream = await _stream(settings, stack)
        wake = await stack.enter_async_context(running_wake(stream))
        database = _database(settings, metrics, fresh, wake, left_out=without)
        stack.push_async_callback(database.close)
        passwords = Argon2Passwords(
            memory_kib=settings.password_memory_kib, max_waiting=settings.max_waiting_passwords
        )
        stack.callback(passwords.close)
        commits = _commits(settings, metrics, waiting_max=settings.db_pool_queue_max)
        # Whoever is turned away here has been charged.
        settling = _commits(settings, metrics, waiting_max=None)
        deps = Deps(
            write=database.write,
            together=commits,
            settling=settling,
            reads=database.reads,
            read_model=fresh,
            live=StreamedUpdates(stream),
            gateway=await _gateway(settings, metrics, stack),
            sign_ins=RememberedSignIns(database.reads.viewer),
            passwords=passwords,
            randomness=SystemRandomness(),
            limiter=_limiter(settings),
            rules=_rules(settings),
        )
        queue = database.outbox
        if failpoints is not None:
            deps, queue = failpoints.around(deps), failpoints.around_queue(queue)
        source, checks = WriteSideSource(database), PromiseChecks(database)
        worker = _worker(settings, deps, database, queue, read_model, source, checks, metrics)
        yield Frontrow(
            settings,
            deps,
            database,
            commits,
            settling,
            checks,
            source,
            read_model,
            stream,
            worker,
            wake,
            metrics,
        )


def _database(
    settings: Settings, metrics: Metrics, fresh: FreshReadModel, wake: Wake, *, left_out: frozenset[str]
) -> Database:
    def committed(events: Sequence[Event]) -> None:
        if events:
            fresh.committed(events)
            wake.publish_wake()

    return Database(
        settings.database_url,
        limits=_database_limits(settings),
        on_commit=committed,
        on_end=metrics.saw_transaction,
        left_out=left_out,
    )


async def _read_model(settings: Settings, stack: AsyncExitStack) -> RebuildableReadModel:
    if settings.redis_url is None:
        return MemoryReadModel()
    return await stack.enter_async_context(redis_read_model(settings.redis_url))


async def _stream(settings: Settings, stack: AsyncExitStack) -> BroadcastEventStream:
    if settings.redis_url is None:
        return await stack.enter_async_context(memory_event_stream())
    if settings.redis_cluster_url is not None:
        return await stack.enter_async_context(
            cluster_event_stream(settings.redis_cluster_url, heartbeat_s=settings.redis_heartbeat_s)
        )
    return await stack.enter_async_context(
        redis_event_stream(settings.redis_url, heartbeat_s=settings.redis_heartbeat_s)
    )


async def _gateway(settings: Settings, metrics: Metrics, stack: AsyncExitStack) -> PaymentGateway:
    """The processor behind the breaker. Without a key nothing can be paid: commands that don't pay need none."""
    key = settings.stripe_api_key
    at_once = settings.payment_max_in_flight
    gateway = StripeGateway(
        "sk_test_none" if key is None else key.get_secret_value(),
        api_base=settings.stripe_api_base,
        return_url=settings.public_url,
        payment_timeout_ms=settings.payment_timeout_ms,
        # So that payments that hang leave connections to who asks how they stand, and these to refunds.
        max_connections=2 * at_once + settings.worker_calls_max_in_flight,
    )
    stack.push_async_callback(gateway.aclose)
    breaker = Breaker(
        fail_max=settings.breaker_fail_max,
        window=settings.breaker_window,
        fail_share=settings.breaker_fail_rate,
        reset_s=settings.breaker_reset_s,
        max_in_flight=at_once,
        listeners=[BreakerMetrics(metrics)],
    )
    return BreakerGateway(gateway, breaker, looks_max=at_once)


def _commits(settings: Settings, metrics: Metrics, *, waiting_max: int | None) -> SharedCommits:
    return SharedCommits(
        batch_max=settings.booking_batch_max,
        waiting_max=waiting_max,
        on_commit=metrics.bookings_per_commit.observe,
    )


def _worker(
    settings: Settings,
    deps: Deps,
    database: Database,
    queue: OutboxQueue,
    read_model: RebuildableReadModel,
    source: Source,
    checks: PromiseChecks,
    metrics: Metrics,
) -> Worker:
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    return Worker(
        replace(deps, reads=database.steady_reads),
        queue,
        read_model=read_model,
        source=source,
        name=name,
        metrics=metrics,
        throttle=_throttle(settings),
        verifier=_verifier(settings, deps, checks, worker=name),
    )


def _verifier(settings: Settings, deps: Deps, checks: PromiseChecks, *, worker: str) -> Verifier:
    return Verifier(
        deps,
        checks,
        worker=worker,
        slice_rows=settings.verify_slice_rows,
        pause_s=settings.verify_pause_s,
    )


def _throttle(settings: Settings) -> Throttle:
    return Throttle(max_in_flight=settings.worker_calls_max_in_flight, per_s=settings.worker_calls_per_s)


def _rules(settings: Settings) -> Rules:
    return Rules(
        hold_s=settings.hold_s,
        session_s=settings.session_lifetime_s,
        payment_timeout_ms=settings.payment_timeout_ms,
        settle_after_s=settings.payment_settle_after_s,
    )


def _database_limits(settings: Settings) -> DatabaseLimits:
    return DatabaseLimits(
        writers=settings.db_pool_size,
        readers=settings.db_pool_size,
        queue_s=settings.db_pool_wait_s,
        queue_max=settings.db_pool_queue_max,
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
