"""One call for everybody who asks at about the same time."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

# A call that takes so long may hang with its connection: whoever comes after it waits no longer.
NEXT_AFTER_S = 1.0
# Some hundred bytes of a statement each.
IDS_MAX = 1_000


class SharedCall(Generic[K, V]):
    """A call with many ids, one at a time: a thousand who ask together cost one or two, whatever ids they ask for.

    Only a call that begins after the question answers it. A stream asks once it hears what is announced, and an
    older snapshot would leave a hole. So who asks while one is under way shares the next with all who do, up to
    `ids_max` ids in the order they came; behind those comes another.
    Concurrency: any tasks of one event loop. A failure is everybody's; a cancelled caller takes nothing from
    the others, and the last one takes the call along.
    """

    def __init__(
        self,
        call: Callable[[Collection[K]], Awaitable[Mapping[K, V]]],
        *,
        next_after_s: float = NEXT_AFTER_S,
        ids_max: int = IDS_MAX,
    ) -> None:
        self._call = call
        self._next_after_s = next_after_s
        self._ids_max = ids_max
        # The one that may still be joined, and the task of the newest.
        self._coming: _Turn[K, V] | None = None
        self._newest: asyncio.Task[Mapping[K, V] | Exception] | None = None

    async def __call__(self, ids: Collection[K]) -> dict[K, V]:
        """What `call` says of these ids."""
        turn = self._coming
        if turn is None or len(turn.ids) + len(ids) > self._ids_max:
            turn = self._coming = _Turn()
            turn.task = self._newest = asyncio.create_task(self._take(turn, after=self._newest))
        turn.ids.update(dict.fromkeys(ids))
        turn.askers += 1
        try:
            # Unlike the task itself this may be cancelled.
            found = await asyncio.shield(turn.task)
            if isinstance(found, Exception):
                raise found
        finally:
            turn.askers -= 1
            if turn.askers == 0 and not turn.task.done():
                await self._give_up(turn)
        return {each: found[each] for each in ids if each in found}

    async def _take(
        self, turn: "_Turn[K, V]", *, after: asyncio.Task[Mapping[K, V] | Exception] | None
    ) -> Mapping[K, V] | Exception:
        """What the call says, or how it failed: raised by each asker, so that one who has left makes no noise."""
        if after is not None:
            await asyncio.wait([after], timeout=self._next_after_s)
        # Who asks from here on asks too late for this one.
        self._close(turn)
        try:
            return await self._call(turn.ids)
        except Exception as error:
            return error
        finally:
            if self._newest is turn.task:
                self._newest = None

    def _close(self, turn: "_Turn[K, V]") -> None:
        if self._coming is turn:
            self._coming = None

    async def _give_up(self, turn: "_Turn[K, V]") -> None:
        self._close(turn)
        turn.task.cancel()
        await asyncio.wait([turn.task])


@dataclass(slots=True, eq=False)
class _Turn(Generic[K, V]):
    """One call that is to come or under way, what of, and how many wait for it."""

    ids: dict[K, None] = field(default_factory=dict)
    task: "asyncio.Task[Mapping[K, V] | Exception]" = field(init=False)
    askers: int = 0
