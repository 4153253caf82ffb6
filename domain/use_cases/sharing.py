"""Requests that share a commit: what must not be in the same one, and what to do where others were faster."""

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TypeVar

from domain.base import InProgress

Q = TypeVar("Q")
R = TypeVar("R")
T = TypeVar("T")

# Each time a parallel request was faster under one of the keys; a key is taken once.
OVERTAKEN_MAX = 3


async def apart(
    requests: Sequence[Q],
    *,
    names: Callable[[Q], Collection[object]],
    commit: Callable[[Sequence[Q]], Awaitable[Sequence[R | Exception]]],
) -> Sequence[R | Exception]:
    """The outcome of each; no two that have a name in common are in the same `commit`.

    Who repeats another's name is in a later one and finds what the other's led to, once it is committed.
    """
    known: set[object] = set()
    firsts: list[int] = []
    repeats: list[int] = []
    for position, request in enumerate(requests):
        named = names(request)
        (firsts if known.isdisjoint(named) else repeats).append(position)
        known.update(named)
    outcomes: dict[int, R | Exception] = dict(
        zip(firsts, await commit([requests[p] for p in firsts]), strict=True)
    )
    if repeats:
        try:
            answers = await apart([requests[p] for p in repeats], names=names, commit=commit)
        except Exception as failure:  # whatever it is: the others are committed, and must not be done again
            answers = [failure] * len(repeats)
        outcomes |= zip(repeats, answers, strict=True)
    return [outcomes[position] for position in range(len(requests))]


async def unless_overtaken(attempt: Callable[[], Awaitable[T | None]]) -> T:
    """What an attempt leads to that no parallel transaction overtakes; one that was overtaken committed nothing.

    Raises: InProgress where every one was.
    """
    for _ in range(OVERTAKEN_MAX):
        outcome = await attempt()
        if outcome is not None:
            return outcome
    raise InProgress
