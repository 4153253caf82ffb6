"""A burst of requests is begun bit by bit, so that what is under way goes on in between."""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from infra.db.turns import overloaded

# In one turn of the event loop. A commit takes some fifteen turns, so a turn must stay short whatever comes.
BEGUN_PER_TURN = 2
# At three times what can be done two of three are refused, and whoever doesn't wait as told comes more often still. A
# refusal takes 0.4 ms: so many a second leave most of the time to the others, and so many at once make no turn long.
REFUSED_PER_S = 800
REFUSED_AT_ONCE = 32
# The last of them hears of it after two and a half seconds. More are told at once, or nobody who is still there would
# hear of it at all.
REFUSED_WAITING_MAX = 2_000


class Turnstile:
    """Lets some through in each turn of the event loop, first come, first served; who is told no has a gate of its own.

    Without it all requests that came together are begun in one turn, which takes as long as all of them: everything
    under way stands still meanwhile, most of all who holds a lock in the database and waits for its next answer.
    Letting more through after a long turn makes the next one longer still: measured, a commit took seven seconds.
    Where more come than can be begun, at most `waiting_max` wait, or they would wait for longer and longer.
    """

    def __init__(self, *, waiting_max: int, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._waiting_max = waiting_max
        self._begun = _Gate(BEGUN_PER_TURN)
        self._is_turning = False
        self._waited_s = 0.0
        self._refused = _Gate(REFUSED_AT_ONCE)
        self._refilled_at_s = self._clock_s()
        self._is_waiting = False

    async def passed(self) -> None:
        """It is the caller's turn to be begun. Raises: Overloaded at once where as many wait as may."""
        if self._begun.is_open():
            self._turn()
            return
        if len(self._begun.waiting) >= self._waiting_max:
            raise overloaded(self._waited_s)
        came_at_s = self._clock_s()
        await self._begun.wait()
        self._waited_s = self._clock_s() - came_at_s

    def _turn(self) -> None:
        if not self._is_turning:
            self._is_turning = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        """The event loop has turned."""
        self._begun.let_through(BEGUN_PER_TURN)
        self._is_turning = False
        if self._begun.left < BEGUN_PER_TURN:  # else nobody came through in the meantime
            self._turn()

    async def refused(self) -> bool:
        """It is the caller's turn to be told no; False where so many wait for it that the caller can't."""
        self._refill()
        if self._refused.is_open():
            return True
        if len(self._refused.waiting) >= REFUSED_WAITING_MAX:
            return False
        self._wait()
        await self._refused.wait()
        return True

    def _wait(self) -> None:
        if not self._is_waiting:
            self._is_waiting = True
            asyncio.get_running_loop().call_later(1 / REFUSED_PER_S, self._go_on)

    def _go_on(self) -> None:
        """Somebody else may be told no by now."""
        self._refill()
        self._is_waiting = False
        if self._refused.waiting:
            self._wait()

    def _refill(self) -> None:
        now_s = self._clock_s()
        more = (now_s - self._refilled_at_s) * REFUSED_PER_S
        self._refilled_at_s = now_s
        self._refused.let_through(min(REFUSED_AT_ONCE, self._refused.left + more))


class _Gate:
    """So many may pass; the others wait."""

    def __init__(self, places: float) -> None:
        self.left = places
        self.waiting: deque[asyncio.Future[None]] = deque()

    def is_open(self) -> bool:
        """Pass, where one more may."""
        if self.left < 1:
            return False
        self.left -= 1
        return True

    async def wait(self) -> None:
        """Until it is the caller's turn."""
        turn = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        await turn

    def let_through(self, places: float) -> None:
        """So many may pass now, who has waited longest first."""
        self.left = places
        while self.waiting and self.left >= 1:
            turn = self.waiting.popleft()
            if not turn.done():  # else its caller has left
                turn.set_result(None)
                self.left -= 1
