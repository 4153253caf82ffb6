"""Everything that goes on without being asked: relay, expiry, reconciler, reaper, read model's keeper, verifier.

Runs inside `serve` or as `frontrow worker`, any number of them: each row is claimed by lease, nobody leads. Only the
promises are checked by one at a time.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import structlog

from domain.base import DatabaseAway
from domain.booking import BookingChanged, SaleChanged, SaleClosed
from domain.events import IntentAbandoned, RefundRequested
from domain.ports import Deps, OpenIntent
from domain.use_cases.booking import expire_due
from domain.use_cases.settlement import claim_open_intents, look_again, reconcile
from infra.db.outbox import OutboxQueue
from infra.read_model import GenerationLost, RebuildableReadModel, Source, rebuild
from infra.relay import EXPECTED, Relay
from infra.telemetry import Metrics
from infra.throttle import Throttle, ThrottledGateway
from infra.verifier import Verifier

log = structlog.get_logger(__name__)

# The processor takes its time, and so does a batch of cancellations: doing either twice at once helps nobody.
CHORE_LEASE_S = 30.0
EXPIRE_EVERY_S = 0.25
RECONCILE_EVERY_S = 0.25
RECONCILE_MAX = 50
KEEP_EVERY_S = 1.0
REAP_EVERY_S = 600.0
REAP_MAX = 1_000
# Keys are kept 72 h (contract, "retry").
KEY_LIFE = timedelta(hours=72)
# The processor sends an event again for three days (Stripe, "Webhooks", "Retry behaviour"). One that came later than
# this would be read anew and change nothing.
WEBHOOK_LIFE = timedelta(days=7)


class Worker:
    """The tasks of one worker; `run` owns them all."""

    def __init__(
        self,
        deps: Deps,
        queue: OutboxQueue,
        *,
        read_model: RebuildableReadModel,
        source: Source,
        name: str,
        metrics: Metrics,
        throttle: Throttle,
        verifier: Verifier,
    ) -> None:
        # Nobody waits for what the worker asks the processor, and people who pay must not wait for the worker.
        deps = replace(deps, gateway=ThrottledGateway(deps.gateway, throttle))
        self._deps = deps
        self._throttle = throttle
        self._read_model = read_model
        self._source = source
        self._verifier = verifier
        # Looked at in vain: the database went away, and left to their leases they would wait after it is back.
        self._in_vain: list[OpenIntent] = []
        self._woken = (
            Relay(deps, queue, kinds=(BookingChanged, SaleChanged), worker=name, metrics=metrics),
            Relay(
                deps,
                queue,
                kinds=(RefundRequested, IntentAbandoned),
                worker=f"{name}-chores",
                metrics=metrics,
                lease_s=CHORE_LEASE_S,
                throttle=throttle,
            ),
        )
        # Cancelling the bookings of a concert asks the processor nothing, and must not wait for it. It is so rare
        # that this lane is not woken by every commit: it looks twice a second, and goes on while there is more.
        self._closing = Relay(
            deps,
            queue,
            kinds=(SaleClosed,),
            worker=f"{name}-closing",
            metrics=metrics,
            lease_s=CHORE_LEASE_S,
        )

    def wake(self) -> None:
        """Something was committed."""
        for lane in self._woken:
            lane.wake()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """At work until the block ends; what was claimed and is not done waits for its lease."""
        task = asyncio.create_task(self.run(), name="worker")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for lane in (*self._woken, self._closing):
                tasks.create_task(lane.run())
            tasks.create_task(_every(EXPIRE_EVERY_S, self._expire))
            tasks.create_task(_every(RECONCILE_EVERY_S, self._reconcile))
            tasks.create_task(_every(KEEP_EVERY_S, self._keep_read_model))
            tasks.create_task(_every(REAP_EVERY_S, self._reap))
            tasks.create_task(self._verify())

    async def _expire(self) -> None:
        while await expire_due(self._deps):
            pass

    async def _reconcile(self) -> None:
        await self._throttle.rested()
        while self._in_vain:
            await look_again(self._deps, self._in_vain[-1], after_s=0)
            self._in_vain.pop()
        claimed = await claim_open_intents(self._deps, limit=RECONCILE_MAX)
        await asyncio.gather(*(self._look(intent) for intent in claimed))

    async def _look(self, intent: OpenIntent) -> None:
        try:
            await reconcile(self._deps, intent)
        except EXPECTED as error:
            log.warning("reconcile.failed", payment_id=intent.payment_id, error=str(error))
            if isinstance(error, DatabaseAway):
                self._in_vain.append(intent)
        except Exception:
            log.exception("reconcile.broke", payment_id=intent.payment_id)

    async def _keep_read_model(self) -> None:
        """Rebuilt where it was flushed, restarted with older data or never filled."""
        if await self._read_model.check():
            try:
                if await rebuild(self._read_model, self._source):
                    log.info("read_model.rebuilt")
            except GenerationLost:
                log.info("read_model.rebuilt_elsewhere")

    async def _reap(self) -> None:
        while await self._reap_some():
            pass

    async def _verify(self) -> None:
        # Not the first thing of all: what a process was started for comes before that.
        await asyncio.sleep(self._verifier.pause_s)
        await _every(self._verifier.pause_s, self._verifier.step)

    async def _reap_some(self) -> bool:
        """A batch of old keys and one of old webhooks is forgotten; whether there may be more."""
        async with self._deps.write("reap") as unit:
            now = await unit.now()
            keys = await unit.idempotency.reap(before=now - KEY_LIFE, limit=REAP_MAX)
            webhooks = await unit.payments.reap_webhooks(before=now - WEBHOOK_LIFE, limit=REAP_MAX)
            await unit.commit()
        return max(keys, webhooks) == REAP_MAX


async def _every(wait_s: float, work: Callable[[], Awaitable[object]]) -> None:
    while True:
        try:
            await work()
        except EXPECTED as error:
            log.warning("worker.waits", work=work.__name__, error=str(error))
        except Exception:
            log.exception("worker.broke", work=work.__name__)
        await asyncio.sleep(wait_s)
