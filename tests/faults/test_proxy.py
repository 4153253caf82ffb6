"""Connections that are cut, swallow everything or lose one reply, between Frontrow and its servers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import make_url

from domain.base import ConcertId
from infra.settings import Settings
from tests.client import WATCH_COUNT, Api, Concert, Json, ticket_type, until
from tests.faults.proxy import Proxy, running_proxy
from tests.story.world import World, raw, running_world

pytestmark = pytest.mark.anyio

BOOKING_TRIES = 100


@asynccontextmanager
async def world_behind(
    database_url: str, redis_url: str, **facts: Any
) -> AsyncIterator[tuple[World, Proxy, Proxy]]:
    """A running Frontrow, the proxy before its database and the one before its Redis."""
    url = make_url(database_url)
    redis = urlsplit(redis_url)
    async with running_proxy(url.port or 5432) as to_database, running_proxy(redis.port or 6379) as to_redis:
        settings = Settings(
            database_url=url.set(host="127.0.0.1", port=to_database.port).render_as_string(
                hide_password=False
            ),
            redis_url=redis._replace(netloc=f"127.0.0.1:{to_redis.port}").geturl(),
            demo=False,
            payment_timeout_ms=20_000,
            redis_heartbeat_s=0.3,
            **facts,
        )
        async with running_world(settings) as world:
            yield world, to_database, to_redis


async def test_a_lost_reply_to_commit_is_told_as_retryable_and_books_once(
    postgres_database_url: str, redis_url: str
) -> None:
    """The database has committed, nobody has heard: the same key finds the booking, a new one is never made."""
    async with world_behind(postgres_database_url, redis_url, worker="off") as (world, to_database, _):
        concert = await world.admin.register()
        buyer = await world.api.new_buyer()
        for word, seats in ((b"INSERT INTO idempotency_keys", (10, 0, 0)), (b"COMMIT;", (9, 1, 0))):
            to_database.cut_reply_to(word)
            (error,) = await _errors_of(buyer, concert, key="once")
            assert error["extensions"]["code"] == "RETRYABLE"
            assert error["extensions"]["retryAfterMs"] > 0
            assert await _seats(world, concert) == seats
        assert to_database.cut_count == 2
        booked = await buyer.book(concert, key="once")
        assert booked["__typename"] == "BookConcertSuccess"
        assert [row["bookingId"] for row in await buyer.my_rows()] == [booked["booking"]["id"]]
        assert await _seats(world, concert) == (9, 1, 0)


async def test_a_connection_lost_after_the_answer_is_known_is_nobodys_business(
    postgres_database_url: str, redis_url: str
) -> None:
    """What was read stands, and the pool has as many connections afterwards as before."""
    async with world_behind(postgres_database_url, redis_url, worker="off", db_pool_size=2) as parts:
        world, to_database, _ = parts
        concert = await world.admin.register()
        concert_id = ConcertId(raw(concert.id))
        database = world.frontrow.database
        for _ in range(5):
            to_database.cut_reply_to(b"ROLLBACK;")
            async with database.write("look") as unit:
                sale = await unit.sales.get(concert_id)
            assert sale is not None and sale.stock[0].available == 10
        assert to_database.cut_count == 5
        async with database.write("one") as one, database.write("two") as two:
            assert await one.sales.get(concert_id) == await two.sales.get(concert_id) == sale


async def test_connections_reset_in_a_rush_sell_no_seat_twice(
    postgres_database_url: str, redis_url: str
) -> None:
    """Buyers who repeat under their key get one booking each, however often the database's connections break."""
    async with world_behind(postgres_database_url, redis_url) as (world, to_database, to_redis):
        concert = await world.admin.register(ticketTypes=[ticket_type(capacity=6)])
        buyers = [await world.api.new_buyer() for _ in range(8)]
        booking = [asyncio.create_task(_until_told(buyer, concert)) for buyer in buyers]
        for _ in range(5):
            await asyncio.sleep(0.03)
            to_database.cut()
            to_redis.cut()
        told = await asyncio.gather(*booking)
        kinds = sorted(result["__typename"] for result in told)
        assert kinds == ["BookConcertSuccess"] * 6 + ["SoldOutProblem"] * 2
        assert await world.api.seats(concert) == (0, 6, 0)


async def test_a_half_open_redis_is_found_out_and_streams_catch_up(
    postgres_database_url: str, redis_url: str
) -> None:
    """Nothing comes through and nothing is refused: booking goes on, and the stream has the newest count soon."""
    async with world_behind(postgres_database_url, redis_url) as (world, _, to_redis):
        concert = await world.admin.register()
        buyer = await world.api.new_buyer()
        async with world.api.watching(WATCH_COUNT, id=concert.id) as counts:
            assert (await counts.next())["available"] == 10
            to_redis.swallow()
            booked = await buyer.booked(concert, 2)
            assert await world.api.seats(concert) == (8, 2, 0)
            assert [row["bookingId"] for row in await buyer.my_rows()] == [booked["id"]]
            to_redis.let_through()
            seen = await counts.until(lambda now: now["held"] == 2)
            versions = [now["version"] for now in seen]
            assert versions == sorted(set(versions))


async def test_a_black_hole_before_the_database_is_told_as_retryable(
    postgres_database_url: str, redis_url: str
) -> None:
    """A request that the database never answers ends in time, and the same key works once the line is back."""
    async with world_behind(postgres_database_url, redis_url, worker="off") as (world, to_database, _):
        concert = await world.admin.register()
        buyer = await world.api.new_buyer()
        await buyer.ask("{ viewer { id } }")  # who asks is remembered for a moment, and not what is asked for
        to_database.swallow()
        asking = asyncio.create_task(_errors_of(buyer, concert, key="once"))
        await until(lambda: _swallowed(to_database), bool)
        to_database.cut()
        to_database.let_through()
        (error,) = await asking
        assert error["extensions"]["code"] == "RETRYABLE"
        assert (await _until_told(buyer, concert, key="once"))["__typename"] == "BookConcertSuccess"
        assert await world.api.seats(concert) == (9, 1, 0)


async def _seats(world: World, concert: Concert) -> tuple[int, int, int]:
    """available, held, sold: what the database says."""
    concert_id = ConcertId(raw(concert.id))
    (line,) = (await world.frontrow.deps.reads.sales([concert_id]))[concert_id].stock
    return line.available, line.held, line.sold


async def _swallowed(line: Proxy) -> int:
    return line.swallowed


async def _errors_of(buyer: Api, concert: Concert, *, key: str) -> list[Json]:
    query = "mutation($i: BookConcertInput!) { bookConcert(input: $i) { __typename } }"
    items = [{"ticketTypeId": concert.types[0], "quantity": 1}]
    wanted = {"concertId": concert.id, "items": items, "idempotencyKey": key}
    return list((await buyer.post(query, i=wanted)).json()["errors"])


async def _until_told(buyer: Api, concert: Concert, *, key: str = "the same") -> Json:
    """What the mutation answers, asked under one key until it does."""
    for _ in range(BOOKING_TRIES):
        answer = (await buyer.post(_BOOK_QUERY, i=_wanted(concert, key))).json()
        if "errors" not in answer and not answer["data"]["bookConcert"].get("retryable"):
            return dict(answer["data"]["bookConcert"])
        if "errors" in answer:
            assert answer["errors"][0]["extensions"]["code"] in {"RETRYABLE", "OVERLOADED"}, answer
        await asyncio.sleep(0.05)
    raise AssertionError("never told")


def _wanted(concert: Concert, key: str) -> Json:
    items = [{"ticketTypeId": concert.types[0], "quantity": 1}]
    return {"concertId": concert.id, "items": items, "idempotencyKey": key}


_BOOK_QUERY = """mutation($i: BookConcertInput!) { bookConcert(input: $i) { __typename
  ... on Problem { code retryable } } }"""
