"""Feeds: whoever comes when, whatever takes how long, each is told the state of now first and never an older one."""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from domain.base import Overloaded
from infra.graphql_app.errors import FormattedError
from infra.graphql_app.feeds import NEXT_AFTER_S, TOLD_AT_ONCE, Feed
from infra.graphql_app.operations import Result, refusal

pytestmark = pytest.mark.anyio

LIMIT_S = 10.0
# As fast as they come.
APART_S = 0.0


@dataclass(eq=False)
class Told:
    """A subscriber, and what it was told."""

    committed_before: int
    versions: list[int] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)

    def tell(self, payload: bytes, *, version: int) -> None:
        """As a slot does, an older state is passed over."""
        assert payload == b'{"data":{"version":%d}}' % version
        if version > max(self.versions, default=0):
            self.versions.append(version)

    def fail(self, errors: Sequence[FormattedError], *, code: str) -> None:
        """The end."""
        self.ends.append(code)

    def complete(self) -> None:
        """The end."""
        self.ends.append("OK")


class Shop:
    """A count in a database, and a bus that announces it later; reading takes as long as `naps` says."""

    def __init__(self, *, apart_s: float = APART_S) -> None:
        self.committed = 1
        self.naps = iter(lambda: 0.0, None)
        self.opened = self.open = self.shown = 0
        # The version with which a stream ends.
        self.last = 0
        self.is_empty = False
        # What the next streams come to instead of opening.
        self.problems: list[Exception] = []
        self.may_tell = asyncio.Event()
        self.may_tell.set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.feed = Feed(self._stream, apart_s=apart_s, tasks=self.tasks, on_empty=self._see_empty)
        self._listeners: dict[asyncio.Event, int] = {}

    def join(self) -> Told:
        """One more subscriber."""
        told = Told(self.committed)
        self.feed.join(told)
        return told

    def commit(self) -> int:
        """The count has changed; nobody has been told."""
        self.committed += 1
        return self.committed

    def announce(self, version: int) -> None:
        """Whoever listens hears of it."""
        for listener in self._listeners:
            self._listeners[listener] = max(version, self._listeners[listener])
            listener.set()

    async def _stream(self, request_id: str) -> AsyncGenerator[Result, None]:
        """As `watch_sale` does: listens first, reads then, and passes on what is newer."""
        self.opened += 1
        self.open += 1
        listener = asyncio.Event()
        self._listeners[listener] = 0
        try:
            await asyncio.sleep(next(self.naps))
            latest = self.committed
            await asyncio.sleep(next(self.naps))
            await self.may_tell.wait()
            if self.problems:
                yield refusal([self.problems.pop()], request_id=request_id)
                return
            yield self._shown(latest)
            while True:
                await listener.wait()
                listener.clear()
                if self._listeners[listener] > latest:
                    latest = self._listeners[listener]
                    yield self._shown(latest)
                if latest == self.last:
                    return
        finally:
            del self._listeners[listener]
            self.open -= 1

    def _shown(self, version: int) -> Result:
        self.shown += 1
        return Result({"version": version}, (), is_refusal=False, version=version)

    def _see_empty(self) -> None:
        assert not self.is_empty
        self.is_empty = True


@asynccontextmanager
async def a_shop(*, apart_s: float = APART_S) -> AsyncIterator[Shop]:
    """A shop that a feed watches until the block ends; then nothing of it is left."""
    shop = Shop(apart_s=apart_s)
    try:
        yield shop
    finally:
        for told in (*shop.feed._subscribers, *shop.feed._newcomers):
            shop.feed.leave(told)
        async with asyncio.timeout(LIMIT_S):
            while shop.tasks:
                await asyncio.wait(shop.tasks)
    assert shop.open == 0


async def until(condition: Callable[[], bool]) -> None:
    """The condition holds."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0)


async def until_all_have(told: Sequence[Told], version: int) -> None:
    """The newest that each was told is this one."""
    await until(lambda: all(each.versions[-1:] == [version] for each in told))


async def test_who_come_together_share_one_stream() -> None:
    """Opened once, however many there are."""
    async with a_shop() as shop:
        told = [shop.join() for _ in range(1_000)]
        await until_all_have(told, 1)
        shop.announce(shop.commit())
        await until_all_have(told, 2)
        assert shop.opened == 1
        assert all(each.versions == [1, 2] for each in told)


async def test_who_comes_later_is_not_told_what_is_old() -> None:
    """What has been committed by then and announced to nobody; the others hear of it then, too, and once."""
    async with a_shop() as shop:
        first = shop.join()
        await until_all_have([first], 1)
        version = shop.commit()
        second = shop.join()
        await until_all_have([first, second], 2)
        shop.announce(version)
        shop.announce(shop.commit())
        await until_all_have([first, second], 3)
        assert (first.versions, second.versions) == ([1, 2, 3], [2, 3])
        await until(lambda: shop.open == 1)
        assert shop.opened == 2


async def test_who_come_while_a_stream_opens_share_the_next() -> None:
    """Not the one that may have read already, and not one each."""
    async with a_shop() as shop:
        shop.may_tell.clear()
        first = shop.join()
        await until(lambda: shop.opened == 1)
        shop.commit()
        later = [shop.join() for _ in range(10)]
        shop.may_tell.set()
        await until_all_have([first, *later], 2)
        assert all(each.versions == [2] for each in later)
        assert shop.opened == 2


async def test_a_stream_that_hangs_holds_up_only_those_who_came_before_it() -> None:
    """Whoever comes later waits a second at most, and their stream serves the others, too."""
    async with a_shop() as shop:
        shop.naps = iter([3_600.0, 0.0, 0.0])
        first = shop.join()
        await until(lambda: shop.opened == 1)
        second = shop.join()
        await until_all_have([first, second], 1)
        await until(lambda: shop.open == 1)
        assert shop.opened == 2


async def test_a_stream_that_hangs_alone_is_not_begun_again() -> None:
    """Nobody came later, so there is nothing that another one would do better."""
    async with a_shop() as shop:
        shop.naps = iter([3_600.0])
        shop.join()
        await asyncio.sleep(NEXT_AFTER_S + 0.1)
        assert shop.opened == 1


async def test_a_refusal_reaches_all_who_asked_and_nobody_else() -> None:
    """Who is served goes on; who came while it was on its way is served by the next, and need not wait for it."""
    async with a_shop() as shop:
        served = shop.join()
        await until_all_have([served], 1)
        shop.may_tell.clear()
        refused = [shop.join() for _ in range(3)]
        await until(lambda: shop.opened == 2)
        later = shop.join()
        shop.problems.append(Overloaded())
        started = asyncio.get_running_loop().time()
        shop.may_tell.set()
        await until_all_have([later], 1)
        assert asyncio.get_running_loop().time() - started < NEXT_AFTER_S / 2
        shop.announce(shop.commit())
        await until_all_have([served, later], 2)
        assert [(each.versions, each.ends) for each in refused] == [([], ["OVERLOADED"])] * 3
        assert served.ends == later.ends == []


async def test_a_stream_that_ends_ends_for_all_of_them_after_its_last_state() -> None:
    """And with it the feed, which nobody is left to listen to."""
    async with a_shop(apart_s=0.02) as shop:
        told = [shop.join() for _ in range(3)]
        await until_all_have(told, 1)
        shop.announce(shop.commit())
        await until_all_have(told, 2)
        shop.last = shop.commit()
        shop.announce(shop.last)
        await until(lambda: all(each.ends for each in told))
        assert [(each.versions, each.ends) for each in told] == [([1, 2, 3], ["OK"])] * 3
        assert shop.is_empty


async def test_who_leaves_while_all_are_told_is_told_nothing_more() -> None:
    """Telling a crowd takes a while, and whoever has left may use its id for something else."""
    async with a_shop() as shop:
        told = [shop.join() for _ in range(2 * TOLD_AT_ONCE)]
        await until_all_have(told, 1)
        shop.announce(shop.commit())
        await until(lambda: told[0].versions != [1])
        shop.feed.leave(told[-1])
        await until_all_have(told[:-1], 2)
        assert told[-1].versions == [1]


async def test_the_last_one_who_leaves_ends_the_stream() -> None:
    """Not the first, whichever came first; one that is only opening ends, too."""
    async with a_shop() as shop:
        first, second = shop.join(), shop.join()
        await until_all_have([first, second], 1)
        shop.feed.leave(first)
        shop.announce(shop.commit())
        await until_all_have([second], 2)
        assert (first.versions, shop.is_empty) == ([1], False)
        third = shop.join()
        shop.feed.leave(second)
        await asyncio.sleep(0)
        shop.feed.leave(third)
        assert shop.is_empty
        await asyncio.wait(shop.tasks)
        assert shop.open == 0


async def test_a_burst_is_merged_and_its_last_state_is_told() -> None:
    """The first at once, the last for sure, and in between no more than there is time for."""
    apart_s, changes = 0.05, 200
    async with a_shop(apart_s=apart_s) as shop:
        loop = asyncio.get_running_loop()
        told = [shop.join() for _ in range(3)]
        await until_all_have(told, 1)
        await asyncio.sleep(apart_s)
        started = loop.time()
        shop.announce(shop.commit())
        for _ in range(3):
            await asyncio.sleep(0)
        await until_all_have(told, 2)
        assert loop.time() - started < apart_s
        for _ in range(changes):
            shop.announce(shop.commit())
            await asyncio.sleep(0.001)
        await until_all_have(told, 2 + changes)
        most = 2 + (loop.time() - started) / apart_s
        assert all(3 < len(each.versions) <= most for each in told)
        assert shop.shown <= most


async def test_newcomers_do_not_make_the_others_hear_more() -> None:
    """What their streams read is told to all in its time, and at last."""
    apart_s = 0.05
    async with a_shop(apart_s=apart_s) as shop:
        loop = asyncio.get_running_loop()
        first = shop.join()
        await until_all_have([first], 1)
        started = loop.time()
        others = []
        for _ in range(50):
            shop.announce(shop.commit())
            others.append(shop.join())
            await asyncio.sleep(0.005)
        await until_all_have([first, *others], 51)
        assert len(first.versions) <= 2 + (loop.time() - started) / apart_s


@pytest.mark.parametrize("seed", range(20))
async def test_nobody_misses_or_goes_back_whoever_comes_when(seed: int) -> None:
    """Each is first told a state as new as it came, then newer ones only, and at last the newest."""
    chance = random.Random(seed)
    async with a_shop(apart_s=chance.choice([0.0, 0.002])) as shop:
        shop.naps = iter(lambda: chance.choice([0.0, 0.0, 0.001, 0.004]), None)
        here, gone = [shop.join()], []
        unannounced: list[int] = []
        for _ in range(300):
            match chance.randrange(6):
                case 0:
                    here += [shop.join() for _ in range(chance.choice([1, 1, 5, 250]))]
                case 1 if len(here) > 1:
                    gone.append(here.pop(chance.randrange(len(here))))
                    shop.feed.leave(gone[-1])
                case 2 | 3:
                    unannounced.append(shop.commit())
                case 4 if unannounced:
                    shop.announce(unannounced.pop(chance.randrange(len(unannounced))))
                case _:
                    await asyncio.sleep(chance.choice([0.0, 0.0, 0.001]))
        for version in unannounced:
            shop.announce(version)
        await until_all_have(here, shop.committed)
        for told in (*here, *gone):
            assert all(version >= told.committed_before for version in told.versions[:1])
            assert all(before < after for before, after in pairwise(told.versions))
