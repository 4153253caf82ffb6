"""Requests that are made to share a commit."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from domain.ports import Deps
from infra.failpoints import Action, Failpoints
from infra.group_commit import SharedCommits
from tests.paying import Shop

T = TypeVar("T")
Ask = Callable[[Deps], Awaitable[T]]
# Whoever does not wait by then never will.
PATIENCE_S = 10.0


async def all_at_once(shop: Shop, transaction: str, asks: Sequence[Ask[T]]) -> list[T | Exception]:
    """The first has a commit alone, which ends when all others wait: they share the second. What each hears."""
    reached = asyncio.Event()
    failpoints = Failpoints(lambda _: reached.set())
    sizes: list[int] = []
    together = SharedCommits(batch_max=100, waiting_max=100, on_commit=sizes.append)
    deps = failpoints.around(replace(shop.deps, together=together, settling=together))
    failpoints.arm(f"{transaction}.commit", Action.PAUSE)
    tasks = [asyncio.create_task(heard(asks[0](deps)))]
    async with asyncio.timeout(PATIENCE_S):
        await reached.wait()
        for number, ask in enumerate(asks[1:], start=1):
            tasks.append(asyncio.create_task(heard(ask(deps))))
            while together.waiting < number:  # noqa: ASYNC110 - who waits sets no event
                await asyncio.sleep(0)
    failpoints.resume()
    outcomes = [await task for task in tasks]
    assert sizes == [1, len(asks) - 1]
    return outcomes


async def heard(answer: Awaitable[T]) -> T | Exception:
    """The answer or the error."""
    try:
        return await answer
    except Exception as error:  # whatever it is, it is one request's own
        return error
