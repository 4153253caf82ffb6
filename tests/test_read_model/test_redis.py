"""Redis flushed, restarted, frozen, down: readers hear that the read model does not know."""

import asyncio
import time
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from domain.booking import BookingChanged, BookingStatus
from infra.read_model import (
    GenerationLost,
    RedisReadModel,
    rebuild,
    redis_read_model,
)
from infra.read_model.generation import batch_of_events
from infra.read_model.redis_store import CONNECTIONS_MAX, READ_LIMIT_S
from tests.servers import ValkeyServer, running_valkey
from tests.test_read_model.write_side import BUYERS, CONCERTS, PAGE, differences_of, opened

pytestmark = pytest.mark.anyio


async def test_no_key_of_an_old_generation_is_left(redis_model: RedisReadModel, redis: Redis) -> None:
    """Ten rebuilds, one of them abandoned, leave as many keys as the first."""
    writes = opened()
    for user_id in BUYERS:
        writes.change(writes.book(user_id, CONCERTS[0]), BookingStatus.APPROVED)
    await rebuild(redis_model, writes)
    key_count = await redis.dbsize()
    for _ in range(9):
        await rebuild(redis_model, writes)
    await redis.set("somebody else's", "key")
    generation = await redis_model.begin()
    assert generation is not None
    await redis_model.project(writes.events)
    assert await redis.dbsize() > key_count + 2
    await generation.close()

    # The state, two hashes of concerts, and three keys of each buyer.
    assert key_count == 1 + 2 + 2 * 3
    assert await redis.dbsize() == key_count + 1
    assert await differences_of(redis_model, writes) == []


async def test_projections_of_a_moment_share_round_trips(redis_model: RedisReadModel, redis: Redis) -> None:
    """Two hundred at once cost a few scripts, and each is there once its caller goes on."""
    writes = opened()
    await rebuild(redis_model, writes)
    before = len(writes.events)
    for n in range(200):
        writes.book(BUYERS[n % len(BUYERS)], CONCERTS[0])
    events = writes.events[before:]
    await redis.config_resetstat()
    await asyncio.gather(*(redis_model.project([event]) for event in events))
    used = await redis.info("commandstats")
    assert used["cmdstat_evalsha"]["calls"] <= 4
    assert await differences_of(redis_model, writes) == []


async def test_an_event_that_can_not_be_projected_fails_alone(redis_model: RedisReadModel) -> None:
    """Those that would have shared its script are there."""
    writes = opened()
    await rebuild(redis_model, writes)
    before = len(writes.events)
    for user_id in BUYERS:
        writes.book(user_id, CONCERTS[0])
    events = writes.events[before:]
    told = events[0]
    assert isinstance(told, BookingChanged)
    broken = replace(told, booking=replace(told.booking, version=9, decline_code="\ud800"))
    done = await asyncio.gather(
        *(redis_model.project([event]) for event in [*events, broken, *events]), return_exceptions=True
    )
    assert [type(each) for each in done if each is not None] == [TypeError]
    assert await differences_of(redis_model, writes) == []


async def test_flushed_redis_is_not_complete(redis_model: RedisReadModel, valkey: ValkeyServer) -> None:
    """After a flush the very next read says that it does not know, projections or not, until a rebuild."""
    writes = opened()
    await rebuild(redis_model, writes)
    valkey.flush()
    writes.book(BUYERS[0], CONCERTS[0])
    await redis_model.project(writes.events)

    assert await redis_model.sales(CONCERTS) is None
    assert await redis_model.my_page(BUYERS[0], PAGE, statuses=None) is None
    assert await redis_model.check() is True

    await rebuild(redis_model, writes)
    assert await differences_of(redis_model, writes) == []


async def test_flush_during_a_rebuild_voids_it(redis_model: RedisReadModel, valkey: ValkeyServer) -> None:
    """A rebuild whose first half was flushed away does not declare the second half complete."""
    writes = opened()

    async def flush() -> None:
        valkey.flush()

    writes.before_snapshot = flush
    with pytest.raises(GenerationLost):
        await rebuild(redis_model, writes)

    assert await redis_model.sales(CONCERTS) is None


async def test_redis_restarted_with_older_data_is_not_complete() -> None:
    """What a snapshot file brings back is never read, from the first answer on; a check asks for a rebuild."""
    with running_valkey() as server:
        async with redis_read_model(server.url) as model:
            writes = opened()
            booking_id = writes.book(BUYERS[0], CONCERTS[0])
            await rebuild(model, writes)
            await save(server)
            writes.change(booking_id, BookingStatus.APPROVED)
            await model.project(writes.events[-1:])
            server.kill()
            server.start()

            assert await model.my_page(BUYERS[0], PAGE, statuses=None) is None
            assert await model.sales(CONCERTS) is None
            async with Redis.from_url(server.url) as redis:
                assert await redis.exists("frontrow:read-model") == 1
            assert await model.check() is True
            await rebuild(model, writes)
            assert await differences_of(model, writes) == []


async def test_redis_restarted_during_a_rebuild_voids_it() -> None:
    """The lease came back from the snapshot file, what was written after it did not: the rebuild is void."""
    with running_valkey() as server:
        async with redis_read_model(server.url) as model:
            generation = await model.begin()
            await save(server)
            assert generation is not None
            server.kill()
            server.start()

            with pytest.raises(GenerationLost):
                await generation.switch()
            await generation.close()

            assert await model.sales(CONCERTS) is None
            assert await rebuild(model, opened()) is True


async def save(server: ValkeyServer) -> None:
    """What it holds now comes back after a kill."""
    async with Redis.from_url(server.url) as redis:
        await redis.save()


async def test_rebuild_that_died_is_taken_over(redis_model: RedisReadModel, redis: Redis) -> None:
    """Once the lease has ended another begins, and the one that only seemed dead can't finish."""
    writes = opened()
    slow = await redis_model.begin()
    assert slow is not None
    await redis.delete("frontrow:read-model:lease")  # as if its time were over
    await redis_model.check()
    await redis_model.project(writes.events)
    assert await redis.keys() == []

    assert await rebuild(redis_model, writes) is True
    with pytest.raises(GenerationLost):
        await slow.add(batch_of_events(writes.events))
    with pytest.raises(GenerationLost):
        await slow.switch()
    assert await differences_of(redis_model, writes) == []


async def test_every_batch_renews_the_lease(redis_model: RedisReadModel, redis: Redis) -> None:
    """A rebuild may take longer than its lease, as long as it goes on."""
    generation = await redis_model.begin()
    assert generation is not None
    await redis.pexpire("frontrow:read-model:lease", 1_000)

    await generation.add(batch_of_events(opened().events))

    assert await redis.pttl("frontrow:read-model:lease") > 1_000


async def test_redis_that_does_not_answer_is_an_error_in_time(valkey: ValkeyServer) -> None:
    """A frozen server costs a reader 300 ms, however many there are, and is used again once it is back."""
    valkey.flush()
    async with redis_read_model(valkey.url) as model:
        writes = opened()
        await rebuild(model, writes)
        valkey.pause()
        try:
            began = time.monotonic()
            asked = [model.my_page(BUYERS[0], PAGE, statuses=None) for _ in range(3 * CONNECTIONS_MAX)]
            heard = await asyncio.gather(*asked, return_exceptions=True)
            took_s = time.monotonic() - began
            assert [type(answer) for answer in heard] == [ConnectionError] * len(asked)
            assert READ_LIMIT_S <= took_s < READ_LIMIT_S + 0.7
        finally:
            valkey.resume()

        assert await model.sales(CONCERTS) == writes.sales_by_id


async def test_a_slow_digest_is_waited_for(valkey: ValkeyServer) -> None:
    """Nobody waits for a comparison: a server that stands still for longer than a reader waits breaks none off."""
    valkey.flush()
    async with redis_read_model(valkey.url) as model:
        writes = opened()
        writes.book(BUYERS[0], CONCERTS[0])
        await rebuild(model, writes)
        (buyers,) = [buyers async for buyers in writes.digests()]
        valkey.pause()
        try:
            comparing = asyncio.create_task(model.unlike(buyers))
            await asyncio.sleep(READ_LIMIT_S + 0.1)
        finally:
            valkey.resume()

        assert await comparing == []


async def test_readers_beyond_the_connections_get_their_turn(redis_model: RedisReadModel) -> None:
    """With more readers than connections nobody is passed over: when the first has 20 answers, all have 10."""
    await rebuild(redis_model, opened())
    answers = [0] * (CONNECTIONS_MAX + 10)
    fewest: list[int] = []

    async def read(reader: int) -> None:
        while answers[reader] < 20:
            assert await redis_model.sales(CONCERTS) is not None
            answers[reader] += 1
        fewest.append(min(answers))

    await asyncio.gather(*map(read, range(len(answers))))

    assert fewest[0] >= 10


async def test_redis_that_is_down_is_a_connection_error() -> None:
    """Reading, projecting and checking all say so by the port's own error."""
    with running_valkey() as server:
        async with redis_read_model(server.url) as model:
            writes = opened()
            await rebuild(model, writes)
            server.kill()

            with pytest.raises(ConnectionError):
                await model.sales(CONCERTS)
            with pytest.raises(ConnectionError):
                await model.project(writes.events)
            with pytest.raises(ConnectionError):
                await model.check()


async def test_missing_or_unreadable_document_sends_readers_to_the_database(
    redis_model: RedisReadModel, redis: Redis
) -> None:
    """A document evicted, or written by another release, is never shown in part."""
    writes = opened()
    booking_ids = [writes.book(user_id, CONCERTS[0]) for user_id in BUYERS]
    await rebuild(redis_model, writes)
    (ada,) = [key async for key in redis.scan_iter("*{ada}:bookings")]
    (bob,) = [key async for key in redis.scan_iter("*{bob}:bookings")]
    await redis.hdel(ada, booking_ids[0])
    await redis.hset(bob, booking_ids[1], "1 AWAITING_PAYMENT concert-a\n{}")

    assert await redis_model.my_page(BUYERS[0], PAGE, statuses=None) is None
    assert await redis_model.my_page(BUYERS[1], PAGE, statuses=None) is None
    assert await redis_model.sales(CONCERTS) == writes.sales_by_id
