"""Sharing a commit: who shares which, who is told what, and who never waits."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from domain.base import DatabaseAway, DomainError, InProgress, NotFound, Overloaded
from infra.group_commit import SharedCommits

pytestmark = pytest.mark.anyio


@dataclass
class Counter:
    """Serves requests in commits that last until they are let go."""

    commits: SharedCommits
    may_commit: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    begun: asyncio.Queue[list[str]] = field(default_factory=asyncio.Queue)
    batches: list[list[str]] = field(default_factory=list)
    failing: dict[str, Exception] = field(default_factory=dict)

    async def commit(self, requests: Sequence[str]) -> Sequence[str | DomainError]:
        """Fails with what one of them fails with; a request that begins with "no" is refused."""
        self.batches.append(list(requests))
        self.begun.put_nowait(list(requests))
        await self.may_commit.acquire()
        for request in requests:
            if request in self.failing:
                raise self.failing[request]
        return [NotFound(each) if each.startswith("no") else f"{each} done" for each in requests]

    def open(self) -> None:
        """Every commit, begun or not, may end."""
        for _ in range(100):
            self.may_commit.release()

    async def ask(self, request: str, lane: str = "c1") -> str:
        """Wait for the request's own outcome."""
        return await self.commits(lane, request, self.commit)

    async def all_asking(self, *requests: str, lane: str = "c1") -> list[asyncio.Task[str]]:
        """One after the other, until each is in flight or waits."""
        tasks = []
        for request in requests:
            tasks.append(asyncio.create_task(self.ask(request, lane)))
            await asyncio.sleep(0)
        return tasks


def counter(*, batch_max: int = 100, waiting_max: int | None = 100) -> Counter:
    """With room for a hundred."""
    return Counter(SharedCommits(batch_max=batch_max, waiting_max=waiting_max))


async def outcomes(tasks: Sequence[asyncio.Task[str]]) -> list[str | BaseException]:
    """What each was told."""
    return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)


async def test_who_comes_during_a_commit_shares_the_next() -> None:
    """The first goes at once and alone; the others follow together, in the order they came."""
    desk = counter()
    tasks = await desk.all_asking("a", "b", "c", "d")
    assert (desk.batches, desk.commits.waiting) == ([["a"]], 3)
    desk.open()
    assert await outcomes(tasks) == ["a done", "b done", "c done", "d done"]
    assert (desk.batches, desk.commits.waiting) == ([["a"], ["b", "c", "d"]], 0)


async def test_a_lone_request_waits_for_nobody() -> None:
    """Each of two that come one after the other has a commit of its own, begun before anything else runs."""
    desk = counter()
    desk.open()
    for request in ("a", "b"):
        task = asyncio.create_task(desk.ask(request))
        await asyncio.sleep(0)
        assert task.done()
    assert desk.batches == [["a"], ["b"]]


async def test_a_refusal_is_for_whom_it_is_meant() -> None:
    """Each hears its own outcome; the neighbours' are their own."""
    desk = counter()
    tasks = await desk.all_asking("a", "no", "b", "nor")
    desk.open()
    first, refused, second, other = await outcomes(tasks)
    assert (first, second) == ("a done", "b done")
    assert isinstance(refused, NotFound) and isinstance(other, NotFound) and refused is not other


async def test_one_bad_request_fails_nobody_else() -> None:
    """A commit that fails is done again, one by one, and only who makes it fail is told so."""
    desk = counter()
    desk.failing["bad"] = ValueError("poison")
    tasks = await desk.all_asking("a", "b", "bad", "c")
    desk.open()
    told = await outcomes(tasks)
    assert [told[0], told[1], told[3]] == ["a done", "b done", "c done"]
    assert isinstance(told[2], ValueError)
    assert desk.batches == [["a"], ["b", "bad", "c"], ["b"], ["bad"], ["c"]]


@pytest.mark.parametrize("failure", [DatabaseAway(), Overloaded()])
async def test_a_lost_database_is_everybodys(failure: DomainError) -> None:
    """Nothing is tried again, because what was lost may have been the answer; who waits need not find out alone."""
    desk = counter(batch_max=2)
    desk.failing["b"] = failure
    tasks = await desk.all_asking("a", "b", "c", "d", "e")
    desk.open()
    assert await outcomes(tasks) == ["a done", failure, failure, failure, failure]
    assert desk.batches == [["a"], ["b", "c"]]
    assert await desk.ask("f") == "f done"


async def test_what_one_alone_is_refused_for_is_nobody_elses() -> None:
    """A commit of one that fails tells those who wait nothing: they have theirs."""
    desk = counter(batch_max=2)
    desk.failing["a"] = InProgress()
    tasks = await desk.all_asking("a", "b", "c")
    desk.open()
    told = await outcomes(tasks)
    assert isinstance(told[0], InProgress) and told[1:] == ["b done", "c done"]


async def test_who_leaves_while_waiting_takes_the_request_along() -> None:
    """It is in no commit, and the others are."""
    desk = counter()
    tasks = await desk.all_asking("a", "b", "c")
    tasks[1].cancel()
    await asyncio.sleep(0)
    assert desk.commits.waiting == 1
    desk.open()
    told = await outcomes(tasks)
    assert (told[0], told[2]) == ("a done", "c done")
    assert isinstance(told[1], asyncio.CancelledError)
    assert desk.batches == [["a"], ["c"]]


async def test_who_leaves_when_it_should_lead_hands_on() -> None:
    """The lane does not stand still because the one whose turn it was has gone."""
    desk = counter()
    leaving: list[asyncio.Task[str]] = []

    async def commit(requests: Sequence[str]) -> Sequence[str | DomainError]:
        outcome = await desk.commit(requests)
        # Runs after the lead was handed on and before the new leader does.
        asyncio.get_running_loop().call_soon(leaving[0].cancel)
        return outcome

    first = asyncio.create_task(desk.commits("c1", "a", commit))
    await desk.begun.get()
    leaving = await desk.all_asking("b")
    last = await desk.all_asking("c")
    desk.open()
    told = await outcomes([first, *leaving, *last])
    assert (told[0], told[2]) == ("a done", "c done")
    assert isinstance(told[1], asyncio.CancelledError)
    assert desk.batches == [["a"], ["c"]]


async def test_a_leader_that_is_cancelled_leaves_the_others_an_answer() -> None:
    """Whether it was committed nobody knows: they are told to ask again, and who waits is served."""
    desk = counter(batch_max=2)
    tasks = await desk.all_asking("a", "b", "c", "d")
    desk.may_commit.release()
    assert [await desk.begun.get(), await desk.begun.get()] == [["a"], ["b", "c"]]
    tasks[1].cancel()
    assert await desk.begun.get() == ["d"]
    desk.open()
    told = await outcomes(tasks)
    assert (told[0], told[3]) == ("a done", "d done")
    assert isinstance(told[1], asyncio.CancelledError) and isinstance(told[2], DatabaseAway)


async def test_lanes_do_not_wait_for_each_other() -> None:
    """Another concert's commit is begun while this one's is in flight; an empty lane leaves nothing behind."""
    desk = counter()
    tasks = await desk.all_asking("a") + await desk.all_asking("b", lane="c2")
    assert desk.batches == [["a"], ["b"]]
    desk.open()
    await outcomes(tasks)
    assert desk.commits._lanes == {}


async def test_no_more_share_a_commit_than_may() -> None:
    """What is too many for one commit goes into the next."""
    desk = counter(batch_max=2)
    tasks = await desk.all_asking("a", "b", "c", "d")
    desk.open()
    assert await outcomes(tasks) == ["a done", "b done", "c done", "d done"]
    assert desk.batches == [["a"], ["b", "c"], ["d"]]


async def test_no_more_wait_than_may() -> None:
    """One more is refused at once and told when to come back; in another lane there is room."""
    desk = counter(waiting_max=2)
    tasks = await desk.all_asking("a", "b", "c")
    with pytest.raises(Overloaded) as refused:
        await desk.ask("d")
    assert refused.value.retry_after_ms is not None and refused.value.retry_after_ms >= 1_000
    tasks += await desk.all_asking("e", "f", lane="c2")
    desk.open()
    assert await outcomes(tasks) == ["a done", "b done", "c done", "e done", "f done"]
    assert await desk.ask("d") == "d done"


async def test_nobody_is_turned_away_where_any_number_may_wait() -> None:
    """Who has been charged waits behind however many came before."""
    desk = counter(waiting_max=None)
    tasks = await desk.all_asking(*(str(number) for number in range(1_000)))
    assert desk.commits.waiting == 999
    desk.open()
    assert await outcomes(tasks) == [f"{number} done" for number in range(1_000)]
    assert [len(batch) for batch in desk.batches] == [1, *[100] * 9, 99]


async def test_no_more_are_on_the_way_than_may_wait() -> None:
    """One more has no place, in this lane only; a place is free again as soon as somebody is answered."""
    commits = SharedCommits(batch_max=100, waiting_max=2)
    leaves = [commits.take_place("c1") for _ in range(3)]
    with pytest.raises(Overloaded):
        commits.take_place("c1")
    leaves.append(commits.take_place("c2"))
    leaves.pop(0)()
    leaves.append(commits.take_place("c1"))
    for leave in leaves:
        leave()
    assert not commits._places


async def test_with_one_per_commit_nobody_waits_here() -> None:
    """Every request begins its own commit at once: the database's lock orders them."""
    desk = counter(batch_max=1)
    tasks = await desk.all_asking("a", "b")
    assert desk.batches == [["a"], ["b"]]
    desk.open()
    assert await outcomes(tasks) == ["a done", "b done"]
