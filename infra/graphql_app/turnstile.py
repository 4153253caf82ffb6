"""A burst of requests is begun bit by bit, so that what is under way goes on in between."""

import asyncio
import time
from collections import deque

from infra.db.turns import overloaded

# In one turn of the event loop. A commit takes some fifteen turns, so a turn must stay short whatever comes. At three
# times what can be done two of three are refused, and whoever doesn't wait as told comes more often still.
BEGUN_PER_TURN = 2
REFUSED_PER_TURN = 8


class Turnstile:
    """Lets some through in each turn of the event loop, first come, first served; who is told no has a gate of its own.

    Without it all requests that came together are begun in one turn, which takes as long as all of them: everything
    under way stands still meanwhile, most of all who holds a lock in the database and waits for its next answer.
    Letting more through after a long turn makes the next one longer still: measured, a commit took seven seconds.
    Where more come than can be begun, at most `waiting_max` wait, or they would wait for longer and longer.
    """

    def __init__(self, *, waiting_max: int) -> None:
        self._waiting_max = waiting_max
        self._begun = _Gate(BEGUN_PER_TURN)
        self._refused = _Gate(REFUSED_PER_TURN)
        self._is_turning = False
        self._waited_s = 0.0

    async def passed(self) -> None:
        """It is the caller's turn to be begun. Raises: Overloaded where as many wait as may."""
        if self._begun.is_open():
            self._turn()
            return
        if len(self._begun.waiting) >= self._waiting_max:
            await self.refused()
            raise overloaded(self._waited_s)
        came_at_s = time.monotonic()
        await self._begun.wait()
        self._waited_s = time.monotonic() - came_at_s

    async def refused(self) -> None:
        """It is the caller's turn to be told no."""
        if self._refused.is_open():
            self._turn()
        else:
            await self._refused.wait()

    def _turn(self) -> None:
        if not self._is_turning:
            self._is_turning = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        """The event loop has turned."""
        self._begun.let_through()
        self._refused.let_through()
        self._is_turning = self._begun.is_used or self._refused.is_used
        if self._is_turning:
            asyncio.get_running_loop().call_soon(self._next)


class _Gate:
    """So many may pass in each turn; the others wait."""

    def __init__(self, per_turn: int) -> None:
        self._per_turn = per_turn
        self._left = per_turn
        self.waiting: deque[asyncio.Future[None]] = deque()

    @property
    def is_used(self) -> bool:
        """Whether somebody passed in this turn, so that fewer may than in the next."""
        return self._left < self._per_turn

    def is_open(self) -> bool:
        """Pass, where one more may."""
        if self._left == 0:
            return False
        self._left -= 1
        return True

    async def wait(self) -> None:
        """Until it is the caller's turn."""
        turn = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        await turn

    def let_through(self) -> None:
        """It is a new turn, and who has waited longest passes first."""
        self._left = self._per_turn
        while self.waiting and self._left > 0:
            turn = self.waiting.popleft()
            if not turn.done():  # else its caller has left
                turn.set_result(None)
                self._left -= 1
