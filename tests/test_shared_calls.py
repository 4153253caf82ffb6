"""A read shared by all who ask at the same time, done by hand so that every order can be tried."""

import asyncio
from collections.abc import Collection

import pytest

from domain.base import DatabaseAway
from infra.shared_call import SharedCall
from tests.toy_schema import until

pytestmark = pytest.mark.anyio

Answer = dict[str, int]


class ManualRead:
    """A read that ends when the test says so; it says its number of every id."""

    def __init__(self, *, next_after_s: float = 60, ids_max: int = 1_000) -> None:
        self.shared = SharedCall(self, next_after_s=next_after_s, ids_max=ids_max)
        self.begun: list[tuple[frozenset[str], asyncio.Future[Answer]]] = []

    async def __call__(self, ids: Collection[str]) -> Answer:
        """Wait for `end`."""
        ending: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.begun.append((frozenset(ids), ending))
        return await ending

    async def ask(self, *ids: str, times: int = 1) -> "list[asyncio.Task[Answer]]":
        """So many callers, who have asked."""
        tasks = [asyncio.create_task(self.shared(ids)) for _ in range(times)]
        await settled()
        return tasks

    async def end(self, number: int) -> None:
        """The read of this number, counted from 0, has answered."""
        ids, ending = self.begun[number]
        ending.set_result(dict.fromkeys(ids, number))
        await settled()


async def settled() -> None:
    """All that can happen without anybody doing anything has."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_all_who_ask_together_are_answered_by_one_read() -> None:
    """A thousand of them, in any order of the ids; afterwards the next one reads anew."""
    read = ManualRead()
    askers = [read.shared(ids) for ids in (("a", "b"), ("b", "a")) for _ in range(500)]
    tasks = [asyncio.create_task(asker) for asker in askers]
    await settled()
    assert [ids for ids, _ in read.begun] == [{"a", "b"}]
    await read.end(0)
    assert [await task for task in tasks] == [{"a": 0, "b": 0}] * 1_000
    (later,) = await read.ask("b", "a")
    await read.end(1)
    assert await later == {"a": 1, "b": 1}


async def test_who_asks_while_a_read_is_under_way_shares_the_next() -> None:
    """It may have begun too early for them; the next begins when it ends, and is one for all of them."""
    read = ManualRead()
    early = await read.ask("a", times=2)
    late = await read.ask("a", times=300) + await read.ask("a", times=300)
    assert len(read.begun) == 1
    await read.end(0)
    assert [task.result() for task in early] == [{"a": 0}] * 2
    assert [task.done() for task in late] == [False] * 600
    too_late = await read.ask("a")
    await read.end(1)
    assert [task.result() for task in late] == [{"a": 1}] * 600
    await read.end(2)
    assert [await task for task in too_late] == [{"a": 2}]


async def test_other_ids_share_a_read_too() -> None:
    """All that is asked for while a read is under way is read next, and each hears of its own ids only."""
    read = ManualRead()
    (a,) = await read.ask("a")
    (b,), (both,) = await read.ask("b"), await read.ask("c", "b")
    await read.end(0)
    assert [ids for ids, _ in read.begun] == [{"a"}, {"b", "c"}]
    await read.end(1)
    assert [task.result() for task in (a, b, both)] == [{"a": 0}, {"b": 1}, {"b": 1, "c": 1}]


async def test_what_there_is_no_row_of_is_left_out() -> None:
    """An id that `read` says nothing of is in nobody's answer."""
    read = ManualRead()
    (task,) = await read.ask("a", "b")
    read.begun[0][1].set_result({"b": 7})
    assert await task == {"b": 7}


async def test_no_read_grows_past_its_limit() -> None:
    """Whose ids don't fit into the next read share the one behind it; more than fit into any are one by themselves."""
    read = ManualRead(ids_max=2)
    (a,) = await read.ask("a")
    (bc,), (de,), (f,) = await read.ask("b", "c"), await read.ask("d"), await read.ask("e", "f")
    for number in range(4):
        await read.end(number)
    assert [ids for ids, _ in read.begun] == [{"a"}, {"b", "c"}, {"d"}, {"e", "f"}]
    assert [task.result() for task in (a, bc, de, f)] == [
        {"a": 0},
        {"b": 1, "c": 1},
        {"d": 2},
        {"e": 3, "f": 3},
    ]


async def test_a_failure_is_everybodys_and_the_next_read_is_not_kept_from_trying() -> None:
    """All who shared it are told, at once; who asked meanwhile is answered by the next."""
    read = ManualRead()
    early, late = await read.ask("a", times=3), await read.ask("a", times=3)
    read.begun[0][1].set_exception(DatabaseAway())
    await settled()
    assert [type(task.exception()) for task in early] == [DatabaseAway] * 3
    await read.end(1)
    assert [task.result() for task in late] == [{"a": 1}] * 3


async def test_a_cancelled_caller_takes_nothing_from_the_others() -> None:
    """Whether it asked first or not, and whether its read has begun or not."""
    read = ManualRead()
    early, late = await read.ask("a", times=3), await read.ask("a", times=3)
    for task in (early[0], early[1], late[0], late[1]):
        task.cancel()
    await settled()
    await read.end(0)
    await read.end(1)
    assert [task.cancelled() for task in early + late] == [True, True, False] * 2
    assert (early[2].result(), late[2].result()) == ({"a": 0}, {"a": 1})


async def test_a_read_that_nobody_waits_for_is_cancelled() -> None:
    """Also one that was still to come; who asks in that very moment is answered all the same."""
    read, tasks_before = ManualRead(), asyncio.all_tasks()
    early, late = await read.ask("a", times=2), await read.ask("a", times=2)
    for task in late:
        task.cancel()
    await settled()
    for task in early:
        task.cancel()
    newcomers = await read.ask("a", times=2)
    assert read.begun[0][1].cancelled()
    assert len(read.begun) == 2
    await read.end(1)
    assert [task.result() for task in newcomers] == [{"a": 1}] * 2
    assert [task.cancelled() for task in early + late] == [True] * 4
    assert asyncio.all_tasks() == tasks_before


async def test_a_read_that_hangs_holds_up_the_next_only_for_a_while() -> None:
    """Each is answered by its own read, whichever ends first; who comes after both waits for the newer one."""
    read = ManualRead(next_after_s=0.5)
    (hanging,), (late,) = await read.ask("a"), await read.ask("a")
    await until(lambda: len(read.begun) == 2)
    await read.end(0)
    assert (hanging.result(), late.done()) == ({"a": 0}, False)
    (later,) = await read.ask("a")
    assert len(read.begun) == 2
    await until(lambda: len(read.begun) == 3)
    await read.end(2)
    await read.end(1)
    assert (late.result(), later.result()) == ({"a": 1}, {"a": 2})
    await read.ask("a")
    assert len(read.begun) == 4
    await read.end(3)
