"""People who ask in a closed loop, each the next thing as soon as the last is answered, in a process of their own.

Every answer is parsed, and only what is right counts. What the crowd itself costs is told with the result.
"""

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import TypeVar

import orjson

from bench.wire import Connection, connected, numbered

J = TypeVar("J")
S = TypeVar("S")
# Who has not been answered this long after the end is not going to be.
PATIENCE_S = 30.0
LOST = "connection lost"
UNANSWERED = "no answer"


@dataclass(frozen=True)
class Rush:
    """What to ask: `requests` in turn, each by the next buyer, counted from `first_buyer`.

    An answer is right where its field `field` has the type `wanted`. With `buyers` the count starts anew there.
    """

    port: int
    requests: tuple[bytes, ...]
    field: str
    wanted: str
    connections: int
    seconds: float
    warm_up_s: float = 0.5
    first_buyer: int = 0
    buyers: int | None = None


@dataclass(frozen=True)
class Seen:
    """What was answered. `asked` and `acknowledged` count from the start, all else what came after warming up."""

    asked: int
    acknowledged: int
    done: int
    refused: Counter[str]
    seconds: float
    done_ms: list[float]
    crowd_cpu_s: float

    @property
    def per_s(self) -> float:
        """Right answers per second."""
        return self.done / self.seconds

    def ms(self, part: float) -> float:
        """That quantile of how long right answers took; infinite where there were none."""
        return quantile(self.done_ms, part)


def quantile(ordered: list[float], part: float) -> float:
    """The value that `part` of the others are not above, infinite where there are none."""
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("inf")


@contextmanager
def crowd() -> Iterator["Crowd"]:
    """A process that is there until the end."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield Crowd(pool)


class Crowd:
    """The process that people are in. Its garbage is collected between two rushes only."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def rush(self, rush: Rush) -> Seen:
        """Let them; what they saw."""
        return self.begin(_rushed, rush).result()

    def begin(self, acting: Callable[[J], Coroutine[None, None, S]], what: J) -> "Future[S]":
        """Let them do something else, on an event loop of their own; what they will have seen."""
        return self._pool.submit(_done, acting, what)


def outcome(status: int, body: bytes, field_name: str) -> str:
    """The type of the field's value, the code of a problem or an error, or what is wrong with the whole answer."""
    try:
        answer = orjson.loads(body)
        value = answer["data"][field_name] if "errors" not in answer else answer["errors"][0]["extensions"]
        return str(value.get("code") or value["__typename"])
    except (ValueError, TypeError, KeyError, AttributeError, IndexError):
        return f"HTTP {status}"


def _done(acting: Callable[[J], Coroutine[None, None, S]], what: J) -> S:
    gc.collect()
    gc.disable()
    try:
        return asyncio.run(acting(what))
    finally:
        gc.enable()


async def _rushed(rush: Rush) -> Seen:
    return await _Rushing(rush).run()


@dataclass
class _Rushing:
    rush: Rush
    asked: int = 0
    acknowledged: int = 0
    open: int = 0
    measured_from_s: float = float("inf")
    ends_s: float = float("inf")
    all_answered: asyncio.Event = field(default_factory=asyncio.Event)
    refused: Counter[str] = field(default_factory=Counter)
    done_s: list[float] = field(default_factory=list)

    async def run(self) -> Seen:
        people = [_Person(self) for _ in range(self.rush.connections)]
        for person in people:
            await person.connect()
        began_s = time.perf_counter()
        self.measured_from_s = began_s + self.rush.warm_up_s
        self.ends_s = self.measured_from_s + self.rush.seconds
        cpu_s = time.process_time()
        for person in people:
            person.ask()
        await asyncio.sleep(self.rush.warm_up_s + self.rush.seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                await self.all_answered.wait()
        cpu_s = time.process_time() - cpu_s
        self.refused.update({UNANSWERED: self.open} if self.open else {})
        for person in people:
            person.leave()
        done_ms = sorted(1_000 * took_s for took_s in self.done_s)
        return Seen(
            self.asked, self.acknowledged, len(done_ms), self.refused, self.rush.seconds, done_ms, cpu_s
        )

    def next_request(self) -> bytes:
        number = self.asked
        self.asked += 1
        request = self.rush.requests[number % len(self.rush.requests)]
        buyer = number if self.rush.buyers is None else number % self.rush.buyers
        return numbered(request, self.rush.first_buyer + buyer)

    def saw(self, outcome: str, *, began_s: float, now_s: float) -> None:
        self.open -= 1
        if not self.open and now_s >= self.ends_s:
            self.all_answered.set()
        is_right = outcome == self.rush.wanted
        self.acknowledged += is_right
        if self.measured_from_s <= now_s < self.ends_s:
            if is_right:
                self.done_s.append(now_s - began_s)
            else:
                self.refused[outcome] += 1


class _Person:
    def __init__(self, rushing: _Rushing) -> None:
        self._rushing = rushing
        self._connection: Connection | None = None
        self._began_s = 0.0
        self._again: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        self._connection = await connected(self._rushing.rush.port, self._answered, self._lost)

    def ask(self) -> None:
        assert self._connection is not None
        self._rushing.open += 1
        self._began_s = time.perf_counter()
        self._connection.ask(self._rushing.next_request())

    def leave(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _answered(self, status: int, body: bytes) -> None:
        self._heard(outcome(status, body, self._rushing.rush.field))
        if time.perf_counter() < self._rushing.ends_s:
            self.ask()

    def _lost(self) -> None:
        self._heard(LOST)
        if time.perf_counter() < self._rushing.ends_s:
            self._again = asyncio.create_task(self._come_back())

    async def _come_back(self) -> None:
        await self.connect()
        self.ask()

    def _heard(self, outcome: str) -> None:
        self._rushing.saw(outcome, began_s=self._began_s, now_s=time.perf_counter())
