"""A burst of requests is begun one by one, so that what is under way goes on in between."""

import asyncio
import time
from collections import deque

from infra.db.turns import overloaded


class Turnstile:
    """Lets one through in each turn of the event loop, first come, first served.

    Without it all requests that came together are begun in one turn, which takes as long as all of them: everything
    under way stands still meanwhile, most of all who holds a lock in the database and waits for its next answer.
    Where more come than can be begun, at most `waiting_max` wait, or they would wait for longer and longer.
    """

    def __init__(self, *, waiting_max: int) -> None:
        self._waiting_max = waiting_max
        self._is_free = True
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._waited_s = 0.0

    async def passed(self) -> None:
        """It is the caller's turn. Raises: Overloaded at once where as many wait as may."""
        loop = asyncio.get_running_loop()
        if self._is_free:
            self._is_free = False
            loop.call_soon(self._next)
            return
        if len(self._waiting) >= self._waiting_max:
            raise overloaded(self._waited_s)
        came_at_s = time.monotonic()
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn
        self._waited_s = time.monotonic() - came_at_s

    def _next(self) -> None:
        """The event loop has turned."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # else its caller has left
                turn.set_result(None)
                asyncio.get_running_loop().call_soon(self._next)
                return
        self._is_free = True
