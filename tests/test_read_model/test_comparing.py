"""Comparing a read model with the write side: every field that differs is named, and nothing else."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from domain.booking import BookingStatus
from infra.read_model import RebuildableReadModel, RedisReadModel, rebuild
from infra.read_model.scripts import STATE
from tests.test_read_model.write_side import (
    BUYERS,
    CONCERTS,
    PAGE,
    WriteSide,
    differences_of,
    opened,
    version_of,
)

pytestmark = pytest.mark.anyio

Tamper = Callable[[Redis, str], Awaitable[object]]
# More than one call of Lua's unpack takes.
MANY = 1_001


def busy() -> WriteSide:
    """Ada has bookings of every status, Bob has one."""
    writes = opened()
    for status in BookingStatus:
        writes.change(writes.book(BUYERS[0], CONCERTS[0]), status)
    writes.book(BUYERS[1], CONCERTS[1])
    return writes


async def keys_of(redis: Redis, user_id: str) -> str:
    """What the keys of a buyer begin with."""
    current = await redis.hget(STATE, "current")
    assert isinstance(current, bytes)
    return f"{STATE}:{current.decode()}:{{{user_id}}}:"


async def test_nobody_is_suspected_where_all_is_equal(redis_model: RedisReadModel) -> None:
    """Also where a buyer has more bookings of one status than fit into one call."""
    writes = busy()
    for number in range(MANY):
        writes.book(BUYERS[1], CONCERTS[0], minute=number)
    await rebuild(redis_model, writes)
    async for buyers in writes.digests():
        assert await redis_model.unlike(buyers) == []
    assert await differences_of(redis_model, writes) == []


@pytest.mark.parametrize(
    ("tamper", "told"),
    [
        (lambda redis, ada: redis.incr(f"{ada}version"), "buyer ada.version: "),
        (lambda redis, ada: redis.delete(f"{ada}version"), "buyer ada.version: "),
        (lambda redis, ada: redis.delete(f"{ada}APPROVED"), "buyer ada.total: "),
        (lambda redis, ada: _put_under_another_status(redis, ada), "buyer ada.APPROVED: []"),
        (
            lambda redis, ada: redis.zadd(f"{ada}EXPIRED", {"2027-05-01 booking-0001": 0}),
            "buyer ada.total: ",
        ),
        (lambda redis, ada: redis.hdel(f"{ada}bookings", "booking-0004"), "buyer ada: can't be read"),
        (lambda redis, ada: _redate(redis, ada), "booking booking-0004.updated_at: "),
    ],
    ids=range(7),
)
async def test_each_difference_is_named(
    redis_model: RedisReadModel, redis: Redis, tamper: Tamper, told: str
) -> None:
    """Version, sets and documents of one buyer; nobody else is suspected."""
    writes = busy()
    await rebuild(redis_model, writes)
    await tamper(redis, await keys_of(redis, "ada"))
    async for buyers in writes.digests():
        assert await redis_model.unlike(buyers) == ["ada"]
    lines = await differences_of(redis_model, writes)
    assert lines[0].startswith(told)
    assert not any("bob" in line or "concert" in line for line in lines)


async def _put_under_another_status(redis: Redis, ada: str) -> None:
    await redis.rename(f"{ada}APPROVED", f"{ada}other")
    await redis.zunionstore(f"{ada}EXPIRED", [f"{ada}EXPIRED", f"{ada}other"])


async def _redate(redis: Redis, ada: str) -> None:
    doc = await redis.hget(f"{ada}bookings", "booking-0004")
    assert isinstance(doc, bytes)
    changed = doc.replace(b'"updated_at":"2027', b'"updated_at":"2028')
    await redis.hset(f"{ada}bookings", "booking-0004", changed)


async def test_facts_are_compared_too(model: RebuildableReadModel) -> None:
    """A title that the read model has not heard of, in the counts' own copy and in the pages'."""
    writes = busy()
    await rebuild(model, writes)
    old = writes.sales_by_id[CONCERTS[1]]
    writes.sales_by_id[CONCERTS[1]] = replace(old, title="Day Music")
    assert await differences_of(model, writes) == [
        "sale concert-b.title: 'Night Music' in the read model, 'Day Music' in the database",
        "facts concert-b.title: 'Night Music' in the read model, 'Day Music' in the database",
    ]


async def test_what_the_write_side_does_not_know_is_named(model: RebuildableReadModel) -> None:
    """A sale and a buyer that only the read model still has; nothing is said of the others."""
    writes = busy()
    await rebuild(model, writes)
    del writes.sales_by_id[CONCERTS[1]]
    del writes.versions[BUYERS[1]]
    assert await differences_of(model, writes) == [
        "sale concert-b: only in the read model",
        "buyer bob: only in the read model",
    ]


async def test_other_words_for_the_same_are_no_difference(redis_model: RedisReadModel, redis: Redis) -> None:
    """Another release may have written its fields in another order."""
    writes = busy()
    await rebuild(redis_model, writes)
    ada = await keys_of(redis, "ada")
    doc = await redis.hget(f"{ada}bookings", "booking-0004")
    assert isinstance(doc, bytes)
    await redis.hset(f"{ada}bookings", "booking-0004", doc.replace(b":", b": ", 1))
    assert await differences_of(redis_model, writes) == []


async def test_page_without_its_concerts_facts_is_not_complete(model: RebuildableReadModel) -> None:
    """A rebuild saw the buyer of a concert whose sale comes by event: until then the database is read."""
    writes = opened()
    writes.book(BUYERS[1], CONCERTS[1])
    del writes.sales_by_id[CONCERTS[1]]
    await rebuild(model, writes)
    assert await model.my_page(BUYERS[1], PAGE, statuses=None) is None
    await model.project(writes.events)
    assert await version_of(model, BUYERS[1]) == 1
