"""Group commit: requests for the same lock share a transaction instead of waiting for each other.

A row lock is held for a commit, some milliseconds. With a booking per commit that is all that a hot concert sells;
with everybody who came meanwhile in the next commit, the lock no longer is what limits it. So it is with approvals
and cancellations: the same row, locked by each.
"""

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar, cast

from domain.base import DatabaseAway, Overloaded
from infra.db.turns import overloaded

Q = TypeVar("Q")
R = TypeVar("R")
Commit = Callable[[Sequence[Q]], Awaitable[Sequence[R | Exception]]]


@dataclass(slots=True, eq=False)
class _Waiting:
    """Somebody who waits for the next commit. `turn` ends with an outcome, or with the lead of the next commit."""

    request: object
    came_at_s: float
    turn: asyncio.Future[object] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


# The end of a turn: carry out the next commit, for yourself and for those behind you.
_LEAD = object()


class SharedCommits:
    """The port `GroupCommit`: in each lane whoever is first carries out the commit, for all who wait behind.

    `batch_max` requests share a commit; with 1 nobody waits for anybody and each has a commit of its own.
    `waiting_max` may wait in each lane, so that one keeps nobody out of another; with None nobody is turned away.
    `on_commit` hears how many shared each commit.
    Concurrency: one event loop. There are no tasks of its own: a commit runs in the task of the one who leads.
    """

    def __init__(
        self, *, batch_max: int, waiting_max: int | None, on_commit: Callable[[int], None] = lambda _: None
    ) -> None:
        self._batch_max = batch_max
        self._waiting_max = math.inf if waiting_max is None else waiting_max
        self._on_commit = on_commit
        # A lane is there while somebody in it carries out a commit.
        self._lanes: dict[str, deque[_Waiting]] = {}
        self._places: Counter[str] = Counter()
        self._waiting = 0
        self._waited_s = 0.0

    @property
    def waiting(self) -> int:
        """How many wait for a commit to end."""
        return self._waiting

    def take_place(self, lane: str) -> Callable[[], None]:
        """A place for somebody on the way to the lane, until what is returned is called.

        Where as many are on the way as may wait, one more is refused before it has cost anything. Raises: Overloaded.
        """
        if self._places[lane] > self._waiting_max:
            raise overloaded(self._waited_s)
        self._places[lane] += 1
        return partial(self._leave, lane)

    def _leave(self, lane: str) -> None:
        self._places[lane] -= 1
        if self._places[lane] == 0:
            del self._places[lane]

    async def __call__(self, lane: str, request: Q, commit: Commit[Q, R], /) -> R:
        """As the port says."""
        if self._batch_max == 1:
            return cast(R, _answer((await commit([request]))[0]))
        queue = self._lanes.get(lane)
        if queue is None:
            self._lanes[lane] = deque()
            return await self._lead(lane, request, commit)
        if len(queue) >= self._waiting_max:
            raise overloaded(self._waited_s)
        mine = _Waiting(request, time.monotonic())
        queue.append(mine)
        self._waiting += 1
        try:
            outcome = await mine.turn
        except asyncio.CancelledError:
            if mine in queue:
                queue.remove(mine)
                self._waiting -= 1
            elif not mine.turn.cancelled() and mine.turn.result() is _LEAD:
                self._hand_on(lane)
            raise
        if outcome is _LEAD:
            return await self._lead(lane, request, commit)
        return cast(R, _answer(outcome))

    async def _lead(self, lane: str, request: Q, commit: Commit[Q, R]) -> R:
        queue = self._lanes[lane]
        others = [self._next(queue) for _ in range(min(len(queue), self._batch_max - 1))]
        self._on_commit(1 + len(others))
        try:
            outcomes = await _carried_out(commit, [request, *(cast(Q, each.request) for each in others)])
        except (DatabaseAway, Overloaded) as failure:
            # Who waits would only hear the same, later.
            for each in (*others, *(self._next(queue) for _ in range(len(queue)))):
                _end(each, failure)
            raise
        except BaseException:
            # It was alone; or it was cancelled, and what became of the others is not known.
            for each in others:
                _end(each, DatabaseAway())
            raise
        finally:
            self._hand_on(lane)
        for each, outcome in zip(others, outcomes[1:], strict=True):
            _end(each, outcome)
        return cast(R, _answer(outcomes[0]))

    def _next(self, queue: deque[_Waiting]) -> _Waiting:
        self._waiting -= 1
        first = queue.popleft()
        self._waited_s = time.monotonic() - first.came_at_s
        return first

    def _hand_on(self, lane: str) -> None:
        """The first who waits leads the next commit, or nothing is in flight any more."""
        queue = self._lanes[lane]
        while queue:
            first = self._next(queue)
            if not first.turn.done():
                first.turn.set_result(_LEAD)
                return
        del self._lanes[lane]


async def _carried_out(commit: Commit[Q, R], requests: Sequence[Q]) -> Sequence[R | Exception]:
    """The outcome of each: of all at once or, where that fails, of one after the other.

    Raises: DatabaseAway, Overloaded, which one at a time would only find again; what a request alone raises.
    """
    try:
        return await commit(requests)
    except (DatabaseAway, Overloaded):
        raise
    except Exception:
        if len(requests) == 1:
            raise
    outcomes: list[R | Exception] = []
    for request in requests:
        try:
            outcomes += await commit([request])
        except Exception as error:  # that one's alone
            outcomes.append(error)
    return outcomes


def _end(waiting: _Waiting, outcome: object) -> None:
    if not waiting.turn.done():  # else it has left
        waiting.turn.set_result(outcome)


def _answer(outcome: object) -> object:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
