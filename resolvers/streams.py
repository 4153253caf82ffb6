"""How a subscription answers: states of the domain, shown one by one; the source closes with the stream."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


async def opened(states: AsyncIterator[S], show: Callable[[S], T]) -> AsyncGenerator[T, None]:
    """The stream, its first state read: a refusal is raised here, where it is the operation's error."""
    return shown(states, show, await anext(states))


async def shown(states: AsyncIterator[S], show: Callable[[S], T], *read: S) -> AsyncGenerator[T, None]:
    """The stream, those states first that were read before."""
    try:
        for state in read:
            yield show(state)
        async for state in states:
            yield show(state)
    finally:
        # Left to the garbage collector it would go on listening for a while.
        if isinstance(states, AsyncGenerator):
            await states.aclose()
