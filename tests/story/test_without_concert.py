"""The catalogue is left out, gone or locked: its fields say so, and everything else goes on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from infra.settings import Settings
from tests.client import (
    BOOKING,
    COUNT,
    PATIENCE_S,
    WATCH_BOOKING,
    WATCH_COUNT,
    WATCH_MINE,
    Api,
    Concert,
    Json,
    concert_input,
    ticket_type,
)
from tests.db_world import run_sql
from tests.story.conftest import NewWorld
from tests.story.world import World, running_world

pytestmark = pytest.mark.anyio

WITHOUT = frozenset({"concert"})

ONE_DOCUMENT = f"""query($concert: ID!, $type: ID!, $booking: ID!) {{
  concert(id: $concert) {{ title }}
  concerts {{ edges {{ node {{ title }} }} }}
  total: concerts {{ totalCount }}
  concertNode: node(id: $concert) {{ id }}
  typeNode: node(id: $type) {{ id }}
  ticketCount(concertId: $concert) {{ ...C }}
  booking(id: $booking) {{ ...B concert {{ title }} items {{ ticketType {{ name }} }} }}
  bookingNode: node(id: $booking) {{ id }}
  myPage {{ bookings {{ totalCount edges {{ node {{ bookingId concertTitle venue }} }} }} }}
  viewer {{ id }} }} {BOOKING} {COUNT}"""
CATALOGUE_PATHS: list[list[str | int]] = [
    ["booking", "concert"],
    ["booking", "items", 0, "ticketType"],
    ["concert"],
    ["concertNode"],
    ["concerts"],
    ["total"],
    ["typeNode"],
]


@dataclass
class Before:
    """What was there while the catalogue was."""

    concert: Concert
    buyer: Api
    admin: Api
    booking: Json


# ---------------------------------------------------------------- left out, or gone
@pytest.mark.parametrize(
    ("without", "is_dropped"),
    [(WITHOUT, False), (WITHOUT, True), (frozenset[str](), True)],
    ids=["left-out", "left-out-and-gone", "gone"],
)
async def test_everything_else_works_without_the_catalogue(
    new_world: NewWorld, without: frozenset[str], is_dropped: bool
) -> None:
    """Its fields are UNAVAILABLE beside intact neighbours; people book, pay, cancel and watch."""
    async with new_world() as world:
        before = await _something_on_sale(world)
        if is_dropped:
            for table in ("ticket_types", "concerts"):
                await run_sql(world.frontrow.database, f"DROP TABLE {table}")
    async with new_world(without=without) as world:
        before = _moved(before, world)
        await _catalogue_is_unavailable(before)
        await _selling_goes_on(world, before)
        await _organising_changes_nothing(before)


# ---------------------------------------------------------------- locked
async def test_everything_else_works_while_the_catalogue_is_locked(postgres_world: World) -> None:
    """The same while somebody else holds its tables, and it is back the moment they let go."""
    world = postgres_world
    before = await _something_on_sale(world)
    async with _locked_catalogue(world):
        await _catalogue_is_unavailable(before)
        await _selling_goes_on(world, before)
        await _organising_changes_nothing(before)
    answer = (await _ask_everything(before)).json()
    assert "errors" not in answer
    assert answer["data"]["concert"]["title"] == answer["data"]["booking"]["concert"]["title"]


@pytest.mark.parametrize("tables", ["concerts, ticket_types", "ticket_types"])
async def test_a_locked_catalogue_keeps_nobody_from_selling(
    postgres_database_url: str, redis_url: str, tables: str
) -> None:
    """However many ask for it and organise meanwhile: two connections are enough to sell, and nobody queues."""
    settings = Settings(
        database_url=postgres_database_url,
        redis_url=redis_url,
        demo=False,
        payment_timeout_ms=20_000,
        db_pool_size=2,
        # Shorter than the catalogue is waited for: whoever queued behind that would be refused.
        db_pool_wait_s=0.5,
    )
    async with running_world(settings) as world:
        before = await _something_on_sale(world)
        buyer = before.buyer
        async with _locked_catalogue(world, tables):
            pressure = [asyncio.create_task(_press(before)) for _ in range(10)]
            # A second for every time that somebody waits would be three times as much.
            async with asyncio.timeout(2 * PATIENCE_S):
                for _ in range(10):
                    booking = await buyer.booked(before.concert)
                    assert await buyer.my_rows() != []
                    assert (await buyer.count(before.concert))["held"] == 2
                    assert (await buyer.pay(booking["id"]))["__typename"] == "PayBookingSuccess"
                    assert (await buyer.cancel(booking["id"]))["__typename"] == "CancelBookingSuccess"
            for task in pressure:
                assert not task.done(), task.result()
                task.cancel()
            await asyncio.wait(pressure)


# ---------------------------------------------------------------- helpers
@pytest.fixture
async def postgres_world(postgres_database_url: str, redis_url: str) -> AsyncIterator[World]:
    """SQLite can't lock one table."""
    settings = Settings(
        database_url=postgres_database_url, redis_url=redis_url, demo=False, payment_timeout_ms=20_000
    )
    async with running_world(settings) as world:
        yield world


@asynccontextmanager
async def _locked_catalogue(world: World, tables: str = "concerts, ticket_types") -> AsyncIterator[None]:
    """Somebody else has the tables to themselves until the block ends."""
    url = world.settings.database_url.replace("postgresql+asyncpg:", "postgresql:", 1)
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()


async def _something_on_sale(world: World) -> Before:
    types = [ticket_type(), ticket_type("Balcony")]
    concert = await world.admin.register(ticketTypes=types, maxTicketsPerUser=20)
    buyer = await world.api.new_buyer()
    return Before(concert, buyer, world.admin, await buyer.booked(concert))


def _moved(before: Before, world: World) -> Before:
    """The same people at another process: a session is good at all of them."""

    def here(api: Api) -> Api:
        return Api(world.api.url, world.api.http, api.token, api.user_id)

    return Before(before.concert, here(before.buyer), here(before.admin), before.booking)


async def _ask_everything(before: Before) -> Any:
    concert = before.concert
    ids = {"concert": concert.id, "type": concert.types[0], "booking": before.booking["id"]}
    return await before.buyer.post(ONE_DOCUMENT, **ids)


async def _catalogue_is_unavailable(before: Before) -> None:
    answer = (await _ask_everything(before)).json()
    assert sorted((error["path"] for error in answer["errors"]), key=str) == CATALOGUE_PATHS
    assert {error["extensions"]["code"] for error in answer["errors"]} == {"UNAVAILABLE"}
    data = answer["data"]
    assert [data[name] for name in ("concert", "concerts", "total", "concertNode", "typeNode")] == [None] * 5
    booking = data["booking"]
    assert booking.pop("concert") is None
    assert [item.pop("ticketType") for item in booking["items"]] == [None]
    assert booking == before.booking
    count = data["ticketCount"]
    assert (count["available"], count["held"], count["sold"]) == (19, 1, 0)
    assert [line["name"] for line in count["ticketTypes"]] == ["Standing", "Balcony"]
    (edge,) = data["myPage"]["bookings"]["edges"]
    facts = {"bookingId": booking["id"], "concertTitle": "Night Trains", "venue": "Paradiso"}
    assert (edge["node"], data["bookingNode"]) == (facts, {"id": booking["id"]})
    assert data["viewer"] == {"id": before.buyer.user_id}


async def _selling_goes_on(world: World, before: Before) -> None:
    ann, concert = before.buyer, before.concert
    async with (
        world.api.watching(WATCH_COUNT, id=concert.id) as counts,
        ann.watching(WATCH_MINE) as mine,
        ann.watching(WATCH_BOOKING, id=before.booking["id"]) as old,
    ):
        assert (await counts.next())["held"] == 1
        assert (await mine.next())["bookingId"] == before.booking["id"]
        assert (await old.next())["status"] == "AWAITING_PAYMENT"
        booked = await ann.booked(concert, 2, line=1)
        assert (booked["items"][0]["name"], booked["total"]["amountMinor"]) == ("Balcony", 7_000)
        await counts.until(lambda now: now["held"] == 3)
        assert (await mine.next())["booking"]["concertTitle"] == "Night Trains"
        assert (await ann.pay(booked["id"]))["__typename"] == "PayBookingSuccess"
        assert await ann.seats(concert) == (17, 1, 2)
        assert {row["status"] for row in await ann.my_rows()} == {"AWAITING_PAYMENT", "APPROVED"}
        assert (await ann.book(concert, 99))["__typename"] == "TicketLimitProblem"
        for booking_id in (booked["id"], before.booking["id"]):
            assert (await ann.cancel(booking_id))["__typename"] == "CancelBookingSuccess"
        await old.until(lambda now: now["isFinal"])
        await counts.until(lambda now: now["available"] == 20)
        await mine.until(lambda now: now["paymentStatus"] == "REFUNDED")
    assert await ann.seats(concert) == (20, 0, 0)


async def _organising_changes_nothing(before: Before) -> None:
    concert, organiser = before.concert, before.admin
    count = await organiser.count(concert)
    calls = [
        ("registerConcert", "RegisterConcertInput", concert_input()),
        ("updateConcert", "UpdateConcertInput", {"concertId": concert.id, "title": "Other"}),
        ("cancelConcert", "CancelConcertInput", {"concertId": concert.id}),
    ]
    booking = {"concertId": concert.id, "items": [{"ticketTypeId": concert.types[0], "quantity": 1}]}
    for mutation, kind, wanted in calls:
        document = (
            f"mutation($wanted: {kind}!, $booking: BookConcertInput!) {{ "
            f"{mutation}(input: $wanted) {{ __typename }} bookConcert(input: $booking) "
            "{ ... on BookConcertSuccess { booking { id } } } }"
        )
        answer = (await organiser.post(document, wanted=wanted, booking=booking)).json()
        (error,) = answer["errors"]
        assert (error["path"], error["extensions"]["code"]) == ([mutation], "UNAVAILABLE")
        assert answer["data"][mutation] is None
        await organiser.cancel(answer["data"]["bookConcert"]["booking"]["id"])
    now = await organiser.count(concert)
    assert now | {"version": 0} == count | {"version": 0}
    assert now["version"] == count["version"] + 2 * len(calls)


async def _press(before: Before) -> None:
    """Ask for the catalogue and organise in it, again and again."""
    update = "mutation($input: UpdateConcertInput!) { updateConcert(input: $input) { __typename } }"
    capacity = {"ticketTypeId": before.concert.types[0], "capacity": 11}
    while True:
        wanted = {"concertId": before.concert.id, "title": "Other", "capacities": [capacity]}
        asked, updated = await asyncio.gather(
            before.buyer.post("{ concerts { edges { node { ticketTypes { name } } } } }"),
            before.admin.post(update, input=wanted),
        )
        for error in [*asked.json()["errors"], *updated.json()["errors"]]:
            assert error["extensions"]["code"] == "UNAVAILABLE", error
