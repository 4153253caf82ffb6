"""Named points at every step, where a test makes the process die, an operation fail, stand still or be cancelled.

Nothing of this is there unless the composition root is given `Failpoints`, which it refuses in production. Every door
is wrapped then, and a call through it passes a point before and, where that differs from the next one's before,
a point after. Names say transaction, store and method: at `book.bookings.add` the booking is about to be inserted,
at `book.commit` nothing of it is committed, at `book.commit.answered` all of it is. `gateway.confirm_intent.answered`:
the processor has answered and nobody knows yet.
"""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from enum import Enum
from inspect import iscoroutinefunction
from typing import Any, cast

from domain.base import DatabaseAway
from domain.payment import OutcomeUnknown
from domain.ports import Deps, WriteUnit
from infra.db.outbox import OutboxQueue


class Action(Enum):
    """What happens at an armed point."""

    KILL = "kill"  # kill -9 of this very process
    STOP = "stop"  # SIGTERM, and the step is under way until its task is cancelled
    CANCEL = "cancel"  # the task is cancelled
    ERROR = "error"  # the door fails as it may: the database is away, the processor's answer lost, Redis down
    PAUSE = "pause"  # the step stands still until `resume`


@dataclass(slots=True)
class _Armed:
    action: Action
    passes_left: int


class Failpoints:
    """The points of one process, all of them harmless until armed. An armed point acts once.

    `on_reached` hears the name of a point as it acts.
    """

    def __init__(self, on_reached: Callable[[str], None] = lambda _: None) -> None:
        self.seen: Counter[str] = Counter()
        self._armed: dict[str, _Armed] = {}
        self._on_reached = on_reached
        self._standing: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def arm(self, point: str, action: Action, *, after: int = 0) -> None:
        """The point acts once, after it was passed `after` times."""
        self._armed[point] = _Armed(action, after)

    def disarm(self) -> None:
        """Every point is harmless again."""
        self._armed.clear()

    def resume(self) -> None:
        """Whoever stands still at a point goes on. Concurrency: from any thread, as `arm` and `disarm`."""
        while self._standing:
            loop, may_go_on = self._standing.pop()
            loop.call_soon_threadsafe(may_go_on.set)

    async def reach(self, point: str, failure: Exception) -> None:
        """Pass the point, or suffer what it is armed with. Raises: `failure`, CancelledError."""
        self.seen[point] += 1
        armed = self._armed.get(point)
        if armed is None:
            return
        if armed.passes_left > 0:
            armed.passes_left -= 1
            return
        self._armed.pop(point, None)
        may_go_on = asyncio.Event()
        if armed.action is Action.PAUSE:
            self._standing.append((asyncio.get_running_loop(), may_go_on))
        self._on_reached(point)
        match armed.action:
            case Action.KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            case Action.STOP:
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.Event().wait()
            case Action.CANCEL:
                task = asyncio.current_task()
                assert task is not None, "a step runs in a task"
                task.cancel()
                await asyncio.sleep(0)
            case Action.ERROR:
                raise failure
            case Action.PAUSE:
                await may_go_on.wait()

    def around(self, deps: Deps) -> Deps:
        """The same doors, with points before and after each call."""

        @asynccontextmanager
        async def write(name: str, /, *, module: str = "booking") -> AsyncIterator[WriteUnit]:
            await self.reach(f"{name}.begin", DatabaseAway())
            async with deps.write(name, module=module) as unit:
                yield cast(WriteUnit, _Unit(unit, name, self))

        lost = OutcomeUnknown("a failpoint swallowed the answer", is_stored=False)
        return replace(
            deps,
            write=write,
            gateway=cast(Any, _Door(deps.gateway, "gateway", self, lost)),
            read_model=cast(Any, _Door(deps.read_model, "read_model", self, ConnectionError("a failpoint"))),
            live=cast(Any, _Door(deps.live, "live", self, ConnectionError("a failpoint"))),
        )

    def around_queue(self, queue: OutboxQueue) -> OutboxQueue:
        """The relay's side of the outbox, with points before and after each call."""
        return cast(OutboxQueue, _Door(queue, "relay", self, DatabaseAway()))


class _Door:
    """Anything with async methods, which pass a point before and one after."""

    has_points_after = True

    def __init__(self, inner: object, name: str, failpoints: Failpoints, failure: Exception) -> None:
        self._inner = inner
        self._name = name
        self._failpoints = failpoints
        self._failure = failure

    def __getattr__(self, method: str) -> Any:
        call = getattr(self._inner, method)
        return self._passing(f"{self._name}.{method}", call) if iscoroutinefunction(call) else call

    def _passing(
        self, point: str, call: Callable[..., Awaitable[object]]
    ) -> Callable[..., Awaitable[object]]:
        async def pass_through(*args: object, **kwargs: object) -> object:
            await self._failpoints.reach(point, self._failure)
            answer = await call(*args, **kwargs)
            if self.has_points_after:
                await self._failpoints.reach(f"{point}.answered", self._failure)
            return answer

        return pass_through


class _Store(_Door):
    """A store of a transaction: until the commit, after one call is before the next."""

    has_points_after = False


class _Unit:
    """A `WriteUnit` whose stores and whose commit pass points."""

    def __init__(self, inner: WriteUnit, name: str, failpoints: Failpoints) -> None:
        self._inner = inner
        self._name = name
        self._failpoints = failpoints

    def __getattr__(self, name: str) -> Any:
        part = getattr(self._inner, name)
        if name == "now":
            return part
        return _Store(part, f"{self._name}.{name}", self._failpoints, DatabaseAway())

    async def commit(self) -> None:
        point = f"{self._name}.commit"
        await self._failpoints.reach(point, DatabaseAway())
        await self._inner.commit()
        await self._failpoints.reach(f"{point}.answered", DatabaseAway())
