"""The promises of `frontrow verify`, checked all the time, a small part after another, beside the selling."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import structlog

from domain.base import ConcertId
from domain.ports import Deps
from domain.use_cases.halting import halt_sales
from infra.db.checks import PromiseChecks
from infra.db.promises import BEYOND, FIRST, PROMISES, Promise, Walk

log = structlog.get_logger(__name__)

# A worker that dies is replaced after this long; one that is not at it asks again three times in that time.
LEASE_S = 30.0


class Verifier:
    """One worker's part in it; whoever has the lease goes round and round, the others wait for theirs to come.

    A round looks at every concert, then every booking, every buyer, and what is overdue. What is broken is logged
    once, noted for `/metrics` of all processes, and stops the sales of a concert whose stock it is.
    """

    def __init__(
        self, deps: Deps, checks: PromiseChecks, *, worker: str, slice_rows: int, pause_s: float
    ) -> None:
        self.pause_s = pause_s
        self._deps = deps
        self._checks = checks
        self._worker = worker
        self._slice_rows = slice_rows
        self._leads = False
        self._asks_at_s = 0.0
        self._walks = tuple(Walk)
        self._walk = 0
        self._first = FIRST
        # In this round so far, and as it was logged and noted last.
        self._found: Counter[str] = Counter()
        self._known: Counter[str] = Counter()

    async def step(self) -> None:
        """One part is checked, where that is this worker's to do.

        Raises: DatabaseAway, Overloaded; then the same part is next.
        """
        if not await self._may_lead():
            return
        walk = self._walks[self._walk]
        promises = [promise for promise in PROMISES if promise.walk is walk]
        beyond = await self._checks.end_of_part(walk, self._first, rows=self._slice_rows)
        counts = Counter({promise.name: await self._check(promise, beyond) for promise in promises})
        self._found += counts
        self._first = beyond
        if beyond == BEYOND:
            await self._end_walk(promises)

    async def _end_walk(self, promises: Sequence[Promise]) -> None:
        await self._checks.note_checked({promise: self._found[promise.name] for promise in promises})
        for promise in promises:
            self._known[promise.name] = self._found.pop(promise.name, 0)
        self._walk = (self._walk + 1) % len(self._walks)
        self._first = FIRST

    async def _may_lead(self) -> bool:
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._asks_at_s:
            led = self._leads
            self._leads = await self._checks.lease(self._worker, lease_s=LEASE_S)
            self._asks_at_s = now_s + LEASE_S / 3
            if self._leads and not led:
                self._walk, self._first = 0, FIRST
                self._found.clear()
        return self._leads

    async def _check(self, promise: Promise, beyond: str) -> int:
        """How many things break it in this part."""
        found = await self._checks.findings(promise, self._first, beyond)
        count = self._found[promise.name] + len(found)
        if count > self._known[promise.name]:
            log.error("promise.broken", promise=promise.title, count=count, first=found[0].text)
            await self._checks.note_found(promise, count)
            self._known[promise.name] = count
        for concert_id in sorted({finding.concert_id for finding in found if finding.concert_id is not None}):
            await self._halt(concert_id)
        return len(found)

    async def _halt(self, concert_id: ConcertId) -> None:
        faults = await halt_sales(self._deps, concert_id)
        if faults:
            log.error("sales.halted", concert_id=concert_id, faults=faults)
