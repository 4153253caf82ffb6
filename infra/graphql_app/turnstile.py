"""A burst of requests is begun one by one, so that what is under way goes on in between."""

import asyncio
from collections import deque


class Turnstile:
    """Lets one through in each turn of the event loop, first come, first served.

    Without it all requests that came together are begun in one turn, which takes as long as all of them: everything
    under way stands still meanwhile, most of all who holds a lock in the database and waits for its next answer.
    """

    def __init__(self) -> None:
        self._is_free = True
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def passed(self) -> None:
        """It is the caller's turn."""
        loop = asyncio.get_running_loop()
        if self._is_free:
            self._is_free = False
            loop.call_soon(self._next)
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _next(self) -> None:
        """The event loop has turned."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # else its caller has left
                turn.set_result(None)
                asyncio.get_running_loop().call_soon(self._next)
                return
        self._is_free = True
