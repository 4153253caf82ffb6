"""How a subscription answers: states of the domain, shown one by one; the source closes with the stream."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


async def opened(states: AsyncIterator[S], show: Callable[[S], T]) -> AsyncGenerator[T, None]:
    """The stream, its first state read: a refusal is raised here, where it is the operation's error."""
    first = await anext(states)
    return _following(first, states, show)


async def shown(states: AsyncIterator[S], show: Callable[[S], T]) -> AsyncGenerator[T, None]:
    """The stream, for one that may be silent at first."""
    try:
        async for state in states:
            yield show(state)
    finally:
        # Left to the garbage collector it would go on listening for a while.
        if isinstance(states, AsyncGenerator):
            await states.aclose()


async def _following(first: S, states: AsyncIterator[S], show: Callable[[S], T]) -> AsyncGenerator[T, None]:
    rest = shown(states, show)
    try:
        yield show(first)
        async for state in rest:
            yield state
    finally:
        await rest.aclose()
        if isinstance(states, AsyncGenerator):
            await states.aclose()
