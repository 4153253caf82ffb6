"""A burst of requests is begun bit by bit, so that what is under way goes on in between."""

import asyncio
import time
from collections import deque

from infra.db.turns import overloaded

# In one turn of the event loop. A commit takes some fifteen turns, so a turn must stay short whatever comes. At three
# times what can be done, two of three are refused.
BEGUN_PER_TURN = 2
REFUSED_PER_TURN = 4


class Turnstile:
    """Lets some through in each turn of the event loop, first come, first served.

    Without it all requests that came together are begun in one turn, which takes as long as all of them: everything
    under way stands still meanwhile, most of all who holds a lock in the database and waits for its next answer.
    Letting more through after a long turn makes the next one longer still: measured, a commit took seven seconds.
    Where more come than can be begun, at most `waiting_max` wait, or they would wait for longer and longer.
    """

    def __init__(self, *, waiting_max: int) -> None:
        self._waiting_max = waiting_max
        self._is_free = True
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._refused: deque[asyncio.Future[None]] = deque()
        self._waited_s = 0.0

    async def passed(self) -> None:
        """It is the caller's turn. Raises: Overloaded where as many wait as may."""
        loop = asyncio.get_running_loop()
        if self._is_free:
            self._is_free = False
            loop.call_soon(self._next)
            return
        turn = loop.create_future()
        if len(self._waiting) >= self._waiting_max:
            self._refused.append(turn)
            await turn
            raise overloaded(self._waited_s)
        came_at_s = time.monotonic()
        self._waiting.append(turn)
        await turn
        self._waited_s = time.monotonic() - came_at_s

    def _next(self) -> None:
        """The event loop has turned."""
        left = _let_through(self._waiting, BEGUN_PER_TURN)
        _let_through(self._refused, REFUSED_PER_TURN)
        self._is_free = left > 0 and not self._refused
        if not self._is_free:
            asyncio.get_running_loop().call_soon(self._next)


def _let_through(queue: deque[asyncio.Future[None]], number: int) -> int:
    """The first so many go on; how many more could have."""
    while queue and number > 0:
        turn = queue.popleft()
        if not turn.done():  # else its caller has left
            turn.set_result(None)
            number -= 1
    return number
