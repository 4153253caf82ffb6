"""From the outbox to its reactions: claim by lease, react, delete; what fails backs off alone.

Delivery is at least once. Several lanes, so that a slow processor never delays what needs none.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial

import structlog

from domain.base import DatabaseAway, DomainError, Overloaded
from domain.events import Event
from domain.payment import GatewayError, NotSent
from domain.ports import Deps
from domain.reactions import react
from infra.db.outbox import First, OutboxQueue, OutboxRow
from infra.telemetry import Metrics
from infra.throttle import Throttle

log = structlog.get_logger(__name__)

# What a lane may hold at once: a worker that dies leaves no more than this to wait for its lease.
CLAIM_MAX = 100
# A lane that calls the processor holds no more than it may send in so long, well within its lease.
AHEAD_S = 2.0
# After a worker's death what it had claimed waits for the end of its lease, and people may be watching. Where a
# reaction takes longer than its lease, another worker does the same again, which changes nothing.
LEASE_S = 5.0
PARALLEL = 16
# Wakes may be lost (Redis down, a row that backed off): look anyway.
POLL_S = 0.5
# The n-th try after a failure waits twice as long as the one before, up to this: money owed is sent back within
# a minute of the processor being well.
BACKOFF_FIRST_S = 0.25
BACKOFF_MAX_S = 15.0
# A server being away is no fault of the row's. Once Redis is back the read model is right within two seconds
# (DESIGN.md, "What is always true").
AWAY_BACKOFF_MAX_S = 1.0
EXPECTED = (DomainError, GatewayError, ConnectionError)


class Relay:
    """One lane: the rows of some kinds of events, for ever; with a `throttle`, as fast as that lets it.

    Concurrency: any number of lanes and processes; within its lease no row is worked on twice.
    """

    def __init__(
        self,
        deps: Deps,
        queue: OutboxQueue,
        *,
        kinds: Sequence[type[Event]],
        worker: str,
        metrics: Metrics,
        lease_s: float = LEASE_S,
        throttle: Throttle | None = None,
        react: Callable[[Deps, Event], Awaitable[None]] = react,
    ) -> None:
        self._deps = deps
        self._queue = queue
        self._kinds = kinds
        self._worker = worker
        self._metrics = metrics
        self._lease_s = lease_s
        self._react = react
        self._throttle = throttle
        self._has_work = asyncio.Event()
        self._parallel = asyncio.Semaphore(PARALLEL)

    def wake(self) -> None:
        """There may be work: look now."""
        self._has_work.set()

    async def run(self) -> None:
        """Relay until cancelled."""
        while True:
            self._has_work.clear()
            try:
                relayed = await self.relay_some()
            except DomainError as error:  # the database is away: what is in it waits
                log.warning("relay.waits", lane=self._worker, error=str(error))
                await asyncio.sleep(POLL_S)
                continue
            except Exception:
                # An edge: if the lane ended, nothing would be told any more, and nobody would hear of it.
                log.exception("relay.broke", lane=self._worker)
                await asyncio.sleep(POLL_S)
                continue
            if relayed == 0:
                # Not asyncio.wait_for: before Python 3.12 a wake in the moment of a cancel swallows that.
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await self._has_work.wait()

    async def relay_some(self) -> int:
        """One claim's rows are done or backing off; how many it were."""
        rows = await self._claim()
        done = await asyncio.gather(*(self._relay(row) for row in rows))
        told = [row.id for row, is_done in zip(rows, done, strict=True) if is_done]
        await _noted(partial(self._queue.done, told))
        return len(rows)

    async def _claim(self) -> list[OutboxRow]:
        limit, first = CLAIM_MAX, First.OLDEST
        if self._throttle is not None:
            await self._throttle.rested()
            limit = min(limit, self._throttle.calls_within(AHEAD_S))
            # One person's refund does not wait behind the ten thousand of a concert that was called off before.
            first = First.NEWEST
        return await self._queue.claim(
            worker=self._worker, lease_s=self._lease_s, limit=limit, kinds=self._kinds, first=first
        )

    async def _relay(self, row: OutboxRow) -> bool:
        async with self._parallel:
            try:
                await self._react(self._deps, row.event)
            except EXPECTED as error:
                await self._back_off(row, error)
            except Exception as error:
                log.exception("relay.reaction_broke", row=row.id, kind=type(row.event).__name__)
                await self._back_off(row, error)
            else:
                return True
        return False

    async def _back_off(self, row: OutboxRow, error: Exception) -> None:
        self._metrics.relay_failures.labels(event=type(row.event).__name__).inc()
        longest_s = AWAY_BACKOFF_MAX_S if isinstance(error, ConnectionError | DatabaseAway) else BACKOFF_MAX_S
        wait_s = min(longest_s, BACKOFF_FIRST_S * 2 ** min(row.attempts, 10))
        if isinstance(error, NotSent):
            wait_s = max(wait_s, error.retry_after_ms / 1_000)
        log.warning(
            "relay.backs_off", row=row.id, kind=type(row.event).__name__, wait_s=wait_s, error=str(error)
        )
        said = f"{type(error).__name__}: {error}"
        await _noted(partial(self._queue.failed, row.id, error=said, retry_after_s=wait_s))


async def _noted(note: Callable[[], Awaitable[None]]) -> None:
    """The database has it, however long it is away. Left to its lease, a row would wait after it is back."""
    while True:
        try:
            return await note()
        except (DatabaseAway, Overloaded) as error:
            log.warning("relay.waits", error=str(error))
        await asyncio.sleep(POLL_S)
