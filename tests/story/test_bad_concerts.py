"""Concerts that can't be: every wrong field by its path, and nothing is registered or changed."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.client import CANCEL_CONCERT, REGISTER, UPDATE, Json, concert_input, ticket_type
from tests.story.refusals import code_of, wrong_fields
from tests.story.unchanged import nothing_changes
from tests.story.world import World

pytestmark = pytest.mark.anyio


def from_now(**distance: float) -> str:
    """A time so far from now."""
    return (datetime.now(UTC) + timedelta(**distance)).isoformat()


def money(amount_minor: int = 3_500, currency: str = "EUR") -> Json:
    """A price."""
    return {"amountMinor": amount_minor, "currency": currency}


def of_type(**facts: Any) -> Json:
    """A concert whose second ticket type has these facts."""
    return {"ticketTypes": [ticket_type(), ticket_type("Balcony") | facts]}


def wrong_registrations() -> list[tuple[Json, list[list[str]]]]:
    """Facts of a concert, and the paths where they are wrong."""
    second = ["ticketTypes", "1"]
    amount, currency = [*second, "price", "amountMinor"], [*second, "price", "currency"]
    long = "x" * 201
    return [
        *(({field: ""}, [[field]]) for field in ("title", "performer", "venue")),
        *(({field: " \t\n"}, [[field]]) for field in ("title", "performer", "venue")),
        *(({field: long}, [[field]]) for field in ("title", "performer", "venue")),
        *(({field: "a\x00b"}, [[field]]) for field in ("title", "performer", "venue", "description")),
        ({"description": "x" * 10_001}, [["description"]]),
        *(
            ({"timeZone": zone}, [["timeZone"]])
            for zone in (
                "",
                "Mars/Olympus",
                "europe/berlin",
                "+02:00",
                "../../etc/passwd",
                "Europe",
                "\x00",
                long,
            )
        ),
        ({"startsAt": from_now(seconds=-1)}, [["startsAt"], ["salesCloseAt"]]),
        ({"salesCloseAt": from_now(days=-2)}, [["salesCloseAt"]]),
        ({"salesOpenAt": from_now(days=29.5)}, [["salesCloseAt"]]),
        ({"salesCloseAt": from_now(days=31)}, [["salesCloseAt"]]),
        *(({"maxTicketsPerUser": n}, [["maxTicketsPerUser"]]) for n in (0, -1, 2**31 - 1)),
        ({"ticketTypes": []}, [["ticketTypes"]]),
        ({"ticketTypes": [ticket_type(f"Row {n}") for n in range(21)]}, [["ticketTypes"]]),
        (of_type(name=""), [[*second, "name"]]),
        (of_type(name=long), [[*second, "name"]]),
        (of_type(name=" standing "), [[*second, "name"]]),
        *((of_type(capacity=n), [[*second, "capacity"]]) for n in (0, -1, 10_000_001, 2**31 - 1)),
        *((of_type(price=money(n)), [amount]) for n in (0, -1, 100_000_000, 2**31 - 1)),
        (of_type(price=money(currency="USD")), [currency]),
        *(
            (
                {"ticketTypes": [ticket_type() | {"price": money(currency=code)}]},
                [["ticketTypes", "0", *currency[2:]]],
            )
            for code in ("eur", "XYZ", "EURO", "", "€", "E\x00R")
        ),
        ({"idempotencyKey": ""}, [["idempotencyKey"]]),
        ({"idempotencyKey": "k" * 256}, [["idempotencyKey"]]),
    ]


async def test_a_wrong_concert_is_refused_at_the_very_field(world: World) -> None:
    """Texts, zone, dates, limit, ticket types, prices and capacities; the path leads to the wrong place."""
    async with nothing_changes(world):
        for facts, paths in wrong_registrations():
            assert wrong_fields(await world.admin.ask(REGISTER, input=concert_input(**facts))) == paths, facts


async def test_all_wrong_fields_are_told_at_once(world: World) -> None:
    """A person mends an input once, not field by field."""
    wrong = concert_input(
        title=" ",
        timeZone="Nowhere",
        maxTicketsPerUser=0,
        ticketTypes=[
            ticket_type(price_minor=0),
            ticket_type("Standing", capacity=0) | {"price": money(currency="usd")},
        ],
    )
    async with nothing_changes(world):
        paths = {tuple(path) for path in wrong_fields(await world.admin.ask(REGISTER, input=wrong))}
    assert paths == {
        ("title",),
        ("timeZone",),
        ("maxTicketsPerUser",),
        ("ticketTypes", "0", "price", "amountMinor"),
        ("ticketTypes", "1", "name"),
        ("ticketTypes", "1", "price", "currency"),
        ("ticketTypes", "1", "capacity"),
    }


async def test_what_no_type_allows_is_bad_user_input(world: World) -> None:
    """Times without an offset or that don't exist, and numbers beyond 32 bits."""
    wrong: list[Json] = [
        *(
            {"startsAt": text}
            for text in (
                "2100-05-01",
                "2100-05-01T20:00:00",
                "2100-05-01 20:00:00Z",
                "2100-02-30T20:00:00Z",
                "2100-05-01T24:00:00Z",
                "2100-05-01T20:00Z",
                "2100-05-01T20:00:00+0200",
                "2100-05-01T20:00:00+25:00",
                "0001-01-01T00:00:00+14:00",
                "9999-12-31T23:59:59-14:00",
                "+10000-01-01T00:00:00Z",
                "tomorrow",
                "",
                4_112_035_200,
                None,
            )
        ),
        *({"maxTicketsPerUser": n} for n in (2**31, 10**20, 1.5, "6")),
        *(of_type(capacity=n) for n in (2**31, -(2**31) - 1, 1e20, None)),
        *(of_type(price=price) for price in (money(2**31), {"amountMinor": 5}, {"currency": "EUR"}, None, 5)),
        {"title": None},
        {"title": 7},
        {"ticketTypes": None},
        {"color": "red"},
    ]
    async with nothing_changes(world):
        for facts in wrong:
            assert await code_of(world.admin, REGISTER, input=concert_input(**facts)) == "BAD_USER_INPUT", (
                facts
            )


async def test_the_odd_times_that_exist_are_taken(world: World) -> None:
    """From the year 1 to the year 9999, with any offset, answered as the same moment in UTC."""
    times = {
        "startsAt": "9999-12-31T23:59:59.999999Z",
        "salesOpenAt": "0001-01-01t00:00:00z",
        "salesCloseAt": "2100-05-01T20:00:00.5+05:45",
    }
    query = """mutation($input: RegisterConcertInput!) { registerConcert(input: $input) {
      ... on RegisterConcertSuccess { concert { id startsAt salesOpenAt salesCloseAt } } } }"""
    concert = (await world.admin.ask(query, input=concert_input(**times)))["concert"]
    expected = {
        "startsAt": "9999-12-31T23:59:59.999999Z",
        "salesOpenAt": "0001-01-01T00:00:00Z",
        "salesCloseAt": "2100-05-01T14:15:00.500000Z",
    }
    assert {name: concert[name] for name in expected} == expected
    read = await world.api.ask(
        "query($id: ID!) { concert(id: $id) { startsAt salesOpenAt salesCloseAt } }", id=concert["id"]
    )
    assert read == expected
    ann = await world.api.new_buyer()
    count = await ann.ask("query($id: ID!) { ticketCount(concertId: $id) { salesOpenAt } }", id=concert["id"])
    assert count["salesOpenAt"] == expected["salesOpenAt"]


async def test_the_largest_concert_is_taken_and_nothing_past_it(world: World) -> None:
    """Every limit holds at the limit: texts, ticket types, capacities and prices."""
    wide = "\N{TICKET}" * 200
    concert = await world.admin.register(
        title=wide,
        performer=wide,
        venue=wide,
        description="d" * 10_000,
        maxTicketsPerUser=10_000_000,
        ticketTypes=[
            ticket_type(f"{n:03}" + "x" * 197, price_minor=99_999_999, capacity=10_000_000) for n in range(20)
        ],
    )
    assert (await world.api.count(concert))["available"] == 200_000_000
    ann = await world.api.new_buyer()
    booking = await ann.booked(concert, line=19)
    assert booking["total"] == {"amountMinor": 99_999_999, "currency": "EUR"}
    assert (await ann.pay(booking["id"]))["__typename"] == "PayBookingSuccess"


async def test_a_wrong_change_is_refused_at_the_very_field(world: World) -> None:
    """The rules of registering hold for updating, for what is given together with what stays."""
    concert = await world.admin.register()
    kind = concert.types[0]
    twice = [{"ticketTypeId": kind, "capacity": 20}, {"ticketTypeId": kind, "capacity": 30}]
    cases: list[tuple[Json, list[list[str]]]] = [
        ({"title": " "}, [["title"]]),
        ({"venue": "x" * 201}, [["venue"]]),
        ({"description": "\x00"}, [["description"]]),
        ({"timeZone": "Nowhere"}, [["timeZone"]]),
        ({"startsAt": from_now(days=-1)}, [["startsAt"], ["salesCloseAt"]]),
        ({"startsAt": from_now(days=28)}, [["salesCloseAt"]]),
        ({"salesCloseAt": from_now(days=31)}, [["salesCloseAt"]]),
        ({"salesOpenAt": from_now(days=29.5)}, [["salesCloseAt"]]),
        ({"maxTicketsPerUser": 0}, [["maxTicketsPerUser"]]),
        ({"capacities": [{"ticketTypeId": kind, "capacity": -1}]}, [["capacities", "0", "capacity"]]),
        ({"capacities": [{"ticketTypeId": kind, "capacity": 10_000_001}]}, [["capacities", "0", "capacity"]]),
        ({"capacities": twice}, [["capacities", "1", "ticketTypeId"]]),
        (
            {"title": "", "maxTicketsPerUser": -1, "capacities": [{"ticketTypeId": kind, "capacity": -1}]},
            [["title"], ["maxTicketsPerUser"], ["capacities", "0", "capacity"]],
        ),
    ]
    async with nothing_changes(world):
        for change, paths in cases:
            result = await world.admin.ask(UPDATE, input={"concertId": concert.id} | change)
            assert wrong_fields(result) == paths, change
        huge = {"concertId": concert.id, "capacities": [{"ticketTypeId": kind, "capacity": 2**31}]}
        assert await code_of(world.admin, UPDATE, input=huge) == "BAD_USER_INPUT"


async def test_a_capacity_never_falls_below_what_is_taken(world: World) -> None:
    """Held and sold seats stay theirs, the answer says how many; down to just those is fine."""
    concert = await world.admin.register(ticketTypes=[ticket_type(), ticket_type("Balcony")])
    ann = await world.api.new_buyer()
    await ann.booked(concert, 2, line=1)
    paid = await ann.booked(concert, 3, line=1)
    await ann.pay(paid["id"])

    async def resize(*capacities: int) -> Json:
        lines = [
            {"ticketTypeId": kind, "capacity": capacity}
            for kind, capacity in zip(concert.types, capacities, strict=True)
        ]
        wanted = {"concertId": concert.id, "title": "Resized", "capacities": lines}
        return dict(await world.admin.ask(UPDATE, input=wanted))

    async with nothing_changes(world):
        for capacity in (0, 4):
            refused = await resize(99, capacity)
            assert (refused["__typename"], refused["code"]) == ("CapacityProblem", "CAPACITY_TAKEN")
            assert (refused["ticketTypeId"], refused["taken"]) == (concert.types[1], 5)
    assert (await resize(0, 5))["__typename"] == "UpdateConcertSuccess"
    assert await ann.seats(concert) == (0, 2, 3)
    assert (await ann.book(concert))["code"] == "SOLD_OUT"


async def test_a_cancelled_concert_is_not_changed_any_more(world: World) -> None:
    """CONCERT_CANCELLED comes before the input; cancelling again is no mistake."""
    concert = await world.admin.register()
    await world.admin.ask(CANCEL_CONCERT, input={"concertId": concert.id})
    async with nothing_changes(world):
        for change in ({"title": "Back again"}, {"title": ""}):
            refused = await world.admin.ask(UPDATE, input={"concertId": concert.id} | change)
            assert (refused["__typename"], refused["code"]) == ("ConcertStateProblem", "CONCERT_CANCELLED")
        again = await world.admin.ask(CANCEL_CONCERT, input={"concertId": concert.id})
        assert again["__typename"] == "CancelConcertSuccess"
