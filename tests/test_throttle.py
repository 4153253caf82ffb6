"""The worker's calls to the processor: an even pace, a bounded number at once, and a rest after a refusal."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from operator import le

import pytest

from domain.payment import NotSent, OutcomeUnknown
from infra.throttle import REST_FIRST_S, REST_MAX_S, Throttle
from tests.client import until

pytestmark = pytest.mark.anyio


@dataclass
class Clock:
    """Stands still unless moved."""

    now_s: float = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def at_full_speed(*, max_in_flight: int = 10, clock: Callable[[], float] = time.monotonic) -> Throttle:
    """One that takes no time of a test."""
    return Throttle(max_in_flight=max_in_flight, per_s=100_000, clock=clock)


async def works() -> str:
    """The processor answers."""
    return "answer"


def refused(*, wish_ms: int = 1) -> Callable[[], Awaitable[str]]:
    """The processor says that this was too much."""

    async def refuse() -> str:
        raise NotSent("429", retry_after_ms=wish_ms)

    return refuse


async def rest_of(throttle: Throttle) -> int:
    """For how many milliseconds nobody is let through, who would have called."""

    async def never() -> str:
        pytest.fail("the throttle let a call through")

    with pytest.raises(NotSent) as left_alone:
        await throttle.call(never)
    return left_alone.value.retry_after_ms


async def rest_after(throttle: Throttle, *calls: Callable[[], Awaitable[str]]) -> int:
    """The rest that follows on these calls, all of them refused."""
    answers = await asyncio.gather(*(throttle.call(call) for call in calls), return_exceptions=True)
    assert all(isinstance(answer, NotSent) for answer in answers)
    return await rest_of(throttle)


async def test_calls_start_at_an_even_pace() -> None:
    """Twenty come at once and a hundred a second are allowed: the last starts no sooner than 0.19 s after the first."""
    throttle, starts = Throttle(max_in_flight=20, per_s=100), list[float]()

    async def call() -> None:
        starts.append(time.monotonic())

    await asyncio.gather(*(throttle.call(call) for _ in range(20)))
    # A timer of the event loop may be a clock's tick early.
    assert len(starts) == 20 and starts[-1] - starts[0] > 0.19 - 0.005
    assert throttle.calls_within(2.0) == 200


async def test_only_so_many_are_under_way() -> None:
    """Ten come and three may be inside: the fourth starts when one of them has ended."""
    throttle, started, may_end = at_full_speed(max_in_flight=3), list[int](), asyncio.Semaphore(0)

    async def call(number: int) -> None:
        started.append(number)
        await may_end.acquire()

    async def begun() -> int:
        return len(started)

    calls = [asyncio.create_task(throttle.call(partial(call, n))) for n in range(10)]
    for inside in range(3, 11):
        await until(begun, partial(le, inside))
        assert len(started) == inside
        may_end.release()
    for _ in range(2):
        may_end.release()
    await asyncio.gather(*calls)
    assert sorted(started) == list(range(10))


async def test_after_a_refusal_nobody_calls_for_a_while() -> None:
    """Whoever comes meanwhile hears at once how long that is; who waits for its end may call then."""
    throttle = at_full_speed()
    began_s = time.monotonic()
    assert 0 < await rest_after(throttle, refused()) <= REST_FIRST_S * 1_000
    await throttle.rested()
    assert time.monotonic() - began_s >= REST_FIRST_S
    assert await throttle.call(works) == "answer"


async def test_each_refusal_in_a_row_doubles_the_rest() -> None:
    """Refused together counts once; an answer starts anew; there is a longest rest, unless the processor wants more."""
    clock = Clock()
    throttle = at_full_speed(clock=clock)
    for rest_s in (1, 2, 4, REST_MAX_S, REST_MAX_S):
        assert await rest_after(throttle, *[refused()] * 5) == rest_s * 1_000
        clock.now_s += rest_s
    assert await throttle.call(works) == "answer"
    assert await rest_after(throttle, refused()) == 1_000
    clock.now_s += 1
    assert await rest_after(throttle, refused(wish_ms=30_000)) == 30_000


async def test_an_unknown_outcome_asks_for_no_rest() -> None:
    """A time-out says nothing about being too fast."""
    throttle = at_full_speed()

    async def lost() -> str:
        raise OutcomeUnknown("no answer", is_stored=False)

    with pytest.raises(OutcomeUnknown):
        await throttle.call(lost)
    assert await throttle.call(works) == "answer"


async def test_a_call_that_is_cancelled_gives_its_place_back() -> None:
    """A worker that stops in the middle of a call, or while it waits for its turn."""
    throttle, is_inside = at_full_speed(max_in_flight=1), asyncio.Event()

    async def hang() -> str:
        is_inside.set()
        await asyncio.Event().wait()
        return ""

    hanging = [asyncio.create_task(throttle.call(hang)) for _ in range(2)]
    await is_inside.wait()
    for call in hanging:
        call.cancel()
    await asyncio.wait(hanging)
    assert await throttle.call(works) == "answer"
