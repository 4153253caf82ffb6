"""Places that are handed on: within a queue to whoever came first, between several queues in turn."""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable

from domain.base import Overloaded

# What somebody is told who can't even wait: not before this, units of milliseconds. Being told no costs half as much
# CPU as booking. Three times as many people as can be served left 64 to 91 % of the work with one second, and 90 % and
# more with two: whoever waits fills the time until they come back.
RETRY_AFTER_MIN_MS = 2_000


def overloaded(waited_s: float) -> Overloaded:
    """What somebody is told who can't even wait, where whoever is served now has waited for so long."""
    # Not all at the same moment, or they would be a rush again.
    wait_ms = max(RETRY_AFTER_MIN_MS, round(waited_s * 1_000))
    return Overloaded(random.randint(wait_ms, 2 * wait_ms))


class Turns:
    """So many places, and the queues in front of them.

    Between the queues it is turn and turn about, so that a rush in one of them keeps nobody in another waiting.
    Concurrency: one event loop. asyncio's own semaphore knows one queue, and SQLAlchemy's lets newcomers overtake.
    """

    def __init__(self, places: int, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.clock_s = clock_s
        self._free = places
        self._queues: deque[Queue] = deque()

    def queue(self, *, length_max: int | None) -> "Queue":
        """One more queue. With None nobody is turned away from it."""
        queue = Queue(self, length_max)
        self._queues.append(queue)
        return queue

    def take(self) -> bool:
        """A place is the caller's, if one is free; nobody waits then."""
        if self._free == 0:
            return False
        self._free -= 1
        return True

    def hand_on(self) -> None:
        """A place is somebody else's now, or free."""
        for _ in range(len(self._queues)):
            self._queues.rotate(-1)
            if self._queues[-1].serve():
                return
        self._free += 1


class Queue:
    """One of the queues in front of the places."""

    def __init__(self, turns: Turns, length_max: int | None) -> None:
        assert length_max is None or length_max > 0, "a place may be free where nobody may wait"
        self._turns = turns
        self._length_max = length_max
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._waited_s = 0.0

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def check_room(self) -> None:
        """Raises: Overloaded where the queue is as long as it may be.

        Whoever is served now has waited about as long as somebody who came now would.
        """
        if self._length_max is not None and len(self._waiting) >= self._length_max:
            raise overloaded(self._waited_s)

    def enter_at_once(self) -> bool:
        """A place is the caller's, until `leave`, if one is free; nobody waits then."""
        return self._turns.take()

    async def enter(self) -> None:
        """A place is the caller's, until `leave`. Raises: Overloaded at once where nobody may wait any more."""
        if self.enter_at_once():
            return
        self.check_room()
        came_at_s = self._turns.clock_s()
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it had got the place in this very moment
                self._turns.hand_on()
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise
        self._waited_s = self._turns.clock_s() - came_at_s

    def leave(self) -> None:
        """The place is somebody else's now, or free."""
        self._turns.hand_on()

    def serve(self) -> bool:
        """Whether somebody waited here, who has the place now."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return True
        return False
