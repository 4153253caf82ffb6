"""One read for everybody who asks the same at about the same time."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

# A read that takes so long may hang with its connection: whoever comes after it waits no longer.
NEXT_AFTER_S = 1.0


class SharedRead(Generic[K, V]):
    """A batch read, one at a time for the same ids: a thousand who ask together cost one or two.

    Only a read that begins after the question answers it. A stream asks once it hears what is announced, and an
    older snapshot would leave a hole. So who asks while a read is under way shares the next with all who do.
    Concurrency: any tasks of one event loop. A failure is everybody's; a cancelled caller takes nothing from
    the others, and the last one takes the read along.
    """

    def __init__(
        self,
        read: Callable[[Collection[K]], Awaitable[Mapping[K, V]]],
        *,
        next_after_s: float = NEXT_AFTER_S,
    ) -> None:
        self._read = read
        self._next_after_s = next_after_s
        self._coming: dict[frozenset[K], _Turn[K, V]] = {}
        self._under_way: dict[frozenset[K], asyncio.Task[Mapping[K, V]]] = {}

    async def __call__(self, ids: Collection[K]) -> Mapping[K, V]:
        """What `read` says of these ids, and said to others too: not to be changed."""
        asked = frozenset(ids)
        turn = self._coming.get(asked)
        if turn is None:
            turn = self._coming[asked] = _Turn()
            turn.task = asyncio.create_task(self._take(asked, after=self._under_way.get(asked)))
        turn.askers += 1
        try:
            # Unlike the task itself this may be cancelled.
            await asyncio.wait([turn.task])
        finally:
            turn.askers -= 1
            if turn.askers == 0 and not turn.task.done():
                await self._give_up(asked, turn)
        return turn.task.result()

    async def _take(self, asked: frozenset[K], *, after: asyncio.Task[Mapping[K, V]] | None) -> Mapping[K, V]:
        if after is not None:
            await asyncio.wait([after], timeout=self._next_after_s)
        # Who asks from here on asks too late for this one.
        task = self._under_way[asked] = self._coming.pop(asked).task
        try:
            return await self._read(asked)
        finally:
            if self._under_way.get(asked) is task:
                del self._under_way[asked]

    async def _give_up(self, asked: frozenset[K], turn: "_Turn[K, V]") -> None:
        if self._coming.get(asked) is turn:
            del self._coming[asked]
        turn.task.cancel()
        await asyncio.wait([turn.task])
        if not turn.task.cancelled():
            turn.task.exception()  # looked at: nobody is left to hear of it


@dataclass(slots=True, eq=False)
class _Turn(Generic[K, V]):
    """One read that is to come or under way, and how many wait for it."""

    task: "asyncio.Task[Mapping[K, V]]" = field(init=False)
    askers: int = 0
