"""Who is let in when there is not room for all: queues in front of places, and the turnstile of requests."""

import asyncio
import random

import pytest

from domain.base import Overloaded
from infra.db.turns import Queue, Turns
from infra.graphql_app.turnstile import REFUSED_AT_ONCE, REFUSED_PER_S, Turnstile

pytestmark = pytest.mark.anyio


class Crowd:
    """People who wait, and who of them was served."""

    def __init__(self) -> None:
        self.served: list[str] = []

    async def join(self, queue: Queue, *names: str) -> list["asyncio.Task[None]"]:
        """They stand in the queue, in this order."""
        tasks = [asyncio.create_task(self._wait(queue, name)) for name in names]
        await asyncio.sleep(0)
        return tasks

    async def _wait(self, queue: Queue, name: str) -> None:
        await queue.enter()
        self.served.append(name)


async def serve(queue: Queue, times: int) -> None:
    """Whoever has a place leaves it, again and again."""
    for _ in range(times):
        queue.leave()
        await asyncio.sleep(0)


async def test_who_came_first_is_served_first() -> None:
    """And nobody overtakes between a place's being left and taken again."""
    queue, crowd = Turns(1).queue(length_max=None), Crowd()
    await crowd.join(queue, "first", "second", "third")
    assert crowd.served == ["first"]
    queue.leave()
    await crowd.join(queue, "fourth")
    await serve(queue, 2)
    assert crowd.served == ["first", "second", "third", "fourth"]


async def test_queues_are_served_in_turn() -> None:
    """However long one of them is; an empty one costs nobody a turn."""
    turns, crowd = Turns(1), Crowd()
    bookings, payments, idle = (turns.queue(length_max=None) for _ in range(3))
    await crowd.join(bookings, *(f"b{n}" for n in range(6)))
    await crowd.join(payments, "p0", "p1")
    await serve(idle, 7)
    assert crowd.served in (
        ["b0", "p0", "b1", "p1", "b2", "b3", "b4", "b5"],
        ["b0", "b1", "p0", "b2", "p1", "b3", "b4", "b5"],
    )


async def test_a_full_queue_refuses_at_once() -> None:
    """At the limit everybody waits, one more is refused, and refused nowhere else; with a place free nobody is."""
    turns, crowd = Turns(2), Crowd()
    queue, other = turns.queue(length_max=2), turns.queue(length_max=None)
    await crowd.join(queue, "a", "b", "c", "d")
    assert (crowd.served, len(queue)) == (["a", "b"], 2)
    with pytest.raises(Overloaded):
        queue.check_room()
    with pytest.raises(Overloaded):
        await queue.enter()
    await crowd.join(other, "never refused")
    await serve(queue, 1)
    queue.check_room()
    await serve(queue, 4)
    assert sorted(crowd.served) == ["a", "b", "c", "d", "never refused"]
    await asyncio.wait_for(queue.enter(), 1)


async def test_who_is_refused_hears_how_long_the_others_waited() -> None:
    """At least two seconds; and not all the same, or they would be a rush again."""
    now_s = 0.0
    turns, crowd = Turns(1, clock_s=lambda: now_s), Crowd()
    queue = turns.queue(length_max=1)
    await crowd.join(queue, "inside", "waits")
    heard = told(queue)
    assert min(heard) >= 2_000 and max(heard) <= 4_000 and len(heard) > 10
    now_s = 7.0
    await serve(queue, 1)
    await crowd.join(queue, "waits now")
    heard = told(queue)
    assert min(heard) >= 7_000 and max(heard) <= 14_000


def told(queue: Queue) -> set[int]:
    """What 200 people who find it full are told, milliseconds."""
    heard = set()
    for _ in range(200):
        with pytest.raises(Overloaded) as refused:
            queue.check_room()
        heard.add(refused.value.retry_after_ms or 0)
    return heard


async def test_who_leaves_the_queue_leaves_nothing_behind() -> None:
    """Cancelled at any moment, also in that of being served: no place is lost, and none is given twice."""
    chance, turns = random.Random(7), Turns(2)
    queues = [turns.queue(length_max=None) for _ in range(2)]
    inside, most = 0, 0

    async def visit(queue: Queue) -> None:
        nonlocal inside, most
        await queue.enter()
        inside += 1
        most = max(most, inside)
        try:
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
        finally:
            inside -= 1
            queue.leave()

    tasks = [asyncio.create_task(visit(queues[n % 2])) for n in range(400)]
    while not all(task.done() for task in tasks):
        chance.choice(tasks).cancel()
        await asyncio.sleep(0)
    assert (inside, most, sum(map(len, queues))) == (0, 2, 0)
    assert any(task.cancelled() for task in tasks) and not all(task.cancelled() for task in tasks)
    for queue in queues:
        await asyncio.wait_for(queue.enter(), 1)
    assert await _must_wait(queues[0])


async def test_who_is_cancelled_while_being_served_hands_the_place_on() -> None:
    """It was given away in this very moment, and the next one gets it."""
    queue, crowd = Turns(1).queue(length_max=None), Crowd()
    _, leaving, _ = await crowd.join(queue, "inside", "leaving", "next")
    queue.leave()
    leaving.cancel()
    await asyncio.wait([leaving])
    await asyncio.sleep(0)
    assert (leaving.cancelled(), crowd.served) == (True, ["inside", "next"])


async def _must_wait(queue: Queue) -> bool:
    task = asyncio.create_task(queue.enter())
    await asyncio.sleep(0)
    is_waiting = not task.done()
    task.cancel()
    await asyncio.wait([task])
    return is_waiting


# ---------------------------------------------------------------- the turnstile
async def test_two_requests_are_begun_in_each_turn_of_the_loop() -> None:
    """In the order of their coming, and whatever else is under way has its turn in between."""
    turnstile, seen = Turnstile(waiting_max=10), list[str]()

    async def come(name: str) -> None:
        await turnstile.passed()
        seen.append(name)

    async def go_on() -> None:
        for _ in range(4):
            seen.append("-")
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        for number in range(7):
            tasks.create_task(come(str(number)))
        tasks.create_task(go_on())
    assert [name for name in seen if name != "-"] == [str(number) for number in range(7)]
    assert all("-" in seen[seen.index(a) : seen.index(b)] for a, b in (("1", "2"), ("3", "4")))
    assert all(
        "-" not in seen[seen.index(a) : seen.index(b)] for a, b in (("0", "1"), ("2", "3"), ("4", "5"))
    )
    await asyncio.wait_for(turnstile.passed(), 1)


async def test_who_goes_away_at_the_turnstile_holds_up_nobody() -> None:
    """Its turn is the next one's."""
    turnstile = Turnstile(waiting_max=3)
    tasks = [asyncio.create_task(turnstile.passed()) for _ in range(5)]
    await asyncio.sleep(0)
    tasks[3].cancel()
    await asyncio.wait_for(asyncio.wait(tasks), 1)
    assert [task.cancelled() for task in tasks] == [False, False, False, True, False]


async def test_no_more_wait_at_the_turnstile_than_may() -> None:
    """One more is refused at once, and there is room again as soon as somebody has passed."""
    turnstile = Turnstile(waiting_max=2)
    tasks = [asyncio.create_task(turnstile.passed()) for _ in range(6)]
    told = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 1)
    assert told[:4] == [None] * 4
    assert [type(refusal) for refusal in told[4:]] == [Overloaded, Overloaded]
    assert all(isinstance(each, Overloaded) and (each.retry_after_ms or 0) >= 1_000 for each in told[4:])
    await asyncio.wait_for(turnstile.passed(), 1)


async def test_who_is_told_no_waits_for_nobody_who_is_begun() -> None:
    """Many pass at once, however many wait to be begun; then only so many a second, first come, first served."""
    clock_s = 0.0
    turnstile, seen = Turnstile(waiting_max=100, clock_s=lambda: clock_s), list[int]()

    async def come(number: int) -> None:
        await turnstile.refused()
        seen.append(number)

    async with asyncio.TaskGroup() as tasks:
        begun = [tasks.create_task(turnstile.passed()) for _ in range(100)]
        for number in range(REFUSED_AT_ONCE + 5):
            tasks.create_task(come(number))
        await asyncio.sleep(0)
        assert seen == list(range(REFUSED_AT_ONCE))
        assert not all(each.done() for each in begun)
        await asyncio.sleep(10 / REFUSED_PER_S)
        assert len(seen) == REFUSED_AT_ONCE, "no time has passed by its clock"
        clock_s = 3.5 / REFUSED_PER_S
        await asyncio.sleep(10 / REFUSED_PER_S)
        assert seen == list(range(REFUSED_AT_ONCE + 3))
        clock_s = 3_600.0
    assert seen == list(range(REFUSED_AT_ONCE + 5))
    clock_s = 7_200.0
    for _ in range(REFUSED_AT_ONCE):
        await asyncio.wait_for(turnstile.refused(), 1)


async def test_no_more_wait_to_be_told_no_than_hear_of_it_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind them it is told at once: else who waits first has left by the time, and nobody hears of it."""
    monkeypatch.setattr("infra.graphql_app.turnstile.REFUSED_WAITING_MAX", 3)
    turnstile = Turnstile(waiting_max=1, clock_s=lambda: 0.0)
    assert [await turnstile.refused() for _ in range(REFUSED_AT_ONCE)] == [True] * REFUSED_AT_ONCE
    waiting = [asyncio.create_task(turnstile.refused()) for _ in range(3)]
    await asyncio.sleep(0)
    assert not await asyncio.wait_for(turnstile.refused(), 1)
    assert not any(task.done() for task in waiting)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
