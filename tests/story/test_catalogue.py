"""Organising: register, change and cancel concerts, and what buyers see of it at once."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.client import (
    CANCEL_CONCERT,
    MY_PAGE,
    UPDATE,
    WATCH_COUNT,
    Api,
    Concert,
    Json,
    concert_input,
    ticket_type,
    until,
)
from tests.story.conftest import NewWorld
from tests.story.unchanged import nothing_changes
from tests.story.world import World

pytestmark = pytest.mark.anyio

CONCERT = """fragment F on Concert {
  id title performer description venue timeZone startsAt salesOpenAt salesCloseAt maxTicketsPerUser status
  ticketTypes { id name capacity price { amountMinor currency } }
  ticketCount { capacity available held sold ticketTypes { ticketTypeId name capacity } } }"""
REGISTER = f"""mutation($input: RegisterConcertInput!) {{ registerConcert(input: $input) {{
  ... on RegisterConcertSuccess {{ concert {{ ...F }} }} }} }} {CONCERT}"""
CHANGE = f"""mutation($input: UpdateConcertInput!) {{ updateConcert(input: $input) {{
  ... on UpdateConcertSuccess {{ concert {{ ...F }} }} }} }} {CONCERT}"""
GET = f"query($id: ID!) {{ concert(id: $id) {{ ...F }} }} {CONCERT}"
NODE = f"query($id: ID!) {{ node(id: $id) {{ ...F }} }} {CONCERT}"
TEXTS = ("title", "performer", "description", "venue", "timeZone")
TIMES = ("startsAt", "salesOpenAt", "salesCloseAt")


def in_utc(moment: datetime) -> str:
    """As the API answers it."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


async def registered(world: World, **facts: Any) -> Json:
    """The concert with every field."""
    return dict((await world.admin.ask(REGISTER, input=concert_input(**facts)))["concert"])


async def changed(world: World, concert_id: str, **facts: Any) -> Json:
    """The concert after updateConcert."""
    return dict((await world.admin.ask(CHANGE, input={"concertId": concert_id} | facts))["concert"])


def sold(concert: Json) -> Concert:
    """The same, to book."""
    return Concert(concert["id"], [each["id"] for each in concert["ticketTypes"]])


async def begun(world: World, concert: Concert) -> None:
    """The concert has started: a harmless change is refused for that."""

    async def change() -> Json:
        return dict(await world.admin.ask(UPDATE, input={"concertId": concert.id, "description": ""}))

    refused = await until(change, lambda result: result["__typename"] != "UpdateConcertSuccess")
    assert (refused["__typename"], refused["code"]) == ("ConcertStateProblem", "CONCERT_STARTED"), refused


def soon(*, starts_in_s: float) -> Json:
    """A concert that starts in a moment and sells until then."""
    starts_at = (datetime.now(UTC) + timedelta(seconds=starts_in_s)).isoformat()
    return {"startsAt": starts_at, "salesCloseAt": starts_at}


# ---------------------------------------------------------------- registering
async def test_a_concert_is_shown_as_it_was_registered(world: World) -> None:
    """Every field comes back, trimmed and in UTC, in the answer, in `concert`, in `node`, to everyone."""
    zone = datetime.now().astimezone().tzinfo
    starts_at = datetime.now(zone).replace(microsecond=123_456) + timedelta(days=30)
    wanted = {
        "title": "  Straße & Ünder 夜行 🎺 ",
        "performer": "The Signal Keepers",
        "description": "Line one\nLine two",
        "venue": "Paradiso",
        "timeZone": "Europe/Amsterdam",
        "startsAt": starts_at.isoformat(),
        "salesOpenAt": (starts_at - timedelta(days=40)).isoformat(),
        "salesCloseAt": starts_at.isoformat(),
        "maxTicketsPerUser": 3,
        "ticketTypes": [
            ticket_type("Zebra", capacity=5) | {"price": {"amountMinor": 1, "currency": "KRW"}},
            ticket_type("Antelope", capacity=7) | {"price": {"amountMinor": 99_999_999, "currency": "KRW"}},
            ticket_type("Monkey", capacity=1) | {"price": {"amountMinor": 5_000, "currency": "KRW"}},
        ],
    }
    concert = await registered(world, **wanted)
    assert {name: concert[name] for name in TEXTS} == {name: str(wanted[name]).strip() for name in TEXTS}
    assert concert["startsAt"] == concert["salesCloseAt"] == in_utc(starts_at)
    assert concert["salesOpenAt"] == in_utc(starts_at - timedelta(days=40))
    assert (concert["maxTicketsPerUser"], concert["status"]) == (3, "SCHEDULED")
    types = [{name: kind[name] for name in ("name", "price", "capacity")} for kind in concert["ticketTypes"]]
    assert types == wanted["ticketTypes"]
    count = concert["ticketCount"]
    assert (count["capacity"], count["available"], count["held"], count["sold"]) == (13, 13, 0, 0)
    assert [line["ticketTypeId"] for line in count["ticketTypes"]] == sold(concert).types
    assert await world.api.ask(GET, id=concert["id"]) == concert
    assert await world.api.ask(NODE, id=concert["id"]) == concert
    kind = "query($id: ID!) { node(id: $id) { id ... on TicketType { name capacity } } }"
    for line in concert["ticketTypes"]:
        assert await world.api.ask(kind, id=line["id"]) == {
            name: line[name] for name in ("id", "name", "capacity")
        }


async def test_what_is_not_said_has_its_default(world: World) -> None:
    """No description, UTC, six tickets a person."""
    concert = await registered(world)
    assert (concert["description"], concert["timeZone"], concert["maxTicketsPerUser"]) == ("", "UTC", 6)


# ---------------------------------------------------------------- updating
async def test_each_fact_is_changed_alone(world: World) -> None:
    """What is given changes, in the answer and for every reader; what is absent or null stays as it is."""
    before = await registered(world)
    days = {name: datetime.fromisoformat(before[name]) for name in TIMES}
    changes: list[Json] = [
        {"title": "Day Trains"},
        {"performer": "The Sleepers"},
        {"description": "New"},
        {"description": ""},
        {"venue": "Vera"},
        {"timeZone": "Asia/Seoul"},
        {"startsAt": in_utc(days["startsAt"] + timedelta(days=1))},
        {"salesOpenAt": in_utc(days["salesOpenAt"] - timedelta(days=1))},
        {"salesCloseAt": in_utc(days["salesCloseAt"] + timedelta(days=1))},
        {"maxTicketsPerUser": 2},
    ]
    nulls = dict.fromkeys((*TEXTS, *TIMES, "maxTicketsPerUser", "capacities"))
    for change in changes:
        after = await changed(world, before["id"], **(nulls | change))
        assert after == before | change
        assert await world.api.ask(GET, id=before["id"]) == after
        before = after
    async with nothing_changes(world):
        assert await changed(world, before["id"], **nulls) == before
        assert await changed(world, before["id"]) == before


async def test_a_change_tells_the_sale_at_once(world: World) -> None:
    """Window, limit and capacity hold for the next booking; the live count's version rises and its stream says so."""
    concert = await world.admin.register(ticketTypes=[ticket_type(), ticket_type("Balcony", capacity=4)])
    ann = await world.api.new_buyer()
    now = datetime.now(UTC)
    async with world.api.watching(WATCH_COUNT, id=concert.id) as stream:
        version = (await stream.next())["version"]

        async def change(**facts: Any) -> Json:
            nonlocal version
            await changed(world, concert.id, **facts)
            count = await world.api.count(concert)
            assert count["version"] > version
            version = count["version"]
            (*_, told) = await stream.until(lambda state: state["version"] >= version)
            assert told == count
            return count

        await change(maxTicketsPerUser=1)
        assert (await ann.book(concert, 2))["code"] == "TICKET_LIMIT"
        await change(maxTicketsPerUser=9)
        await change(salesOpenAt=(now + timedelta(days=1)).isoformat())
        assert (await ann.book(concert, 2))["code"] == "SALES_NOT_OPEN"
        await change(
            salesOpenAt=(now - timedelta(days=2)).isoformat(),
            salesCloseAt=(now - timedelta(days=1)).isoformat(),
        )
        assert (await ann.book(concert, 2))["code"] == "SALES_CLOSED"
        await change(salesCloseAt=(now + timedelta(days=1)).isoformat())
        count = await change(capacities=[{"ticketTypeId": concert.types[1], "capacity": 1}])
        assert [line["capacity"] for line in count["ticketTypes"]] == [10, 1]
        assert (await ann.book(concert, 2, line=1))["code"] == "SOLD_OUT"
        await change(capacities=[{"ticketTypeId": concert.types[1], "capacity": 2}])
        assert (await ann.book(concert, 2, line=1))["__typename"] == "BookConcertSuccess"
    shown = (await world.api.ask(GET, id=concert.id))["ticketTypes"]
    assert [kind["capacity"] for kind in shown] == [10, 2]


async def test_my_page_shows_the_new_title_and_the_booking_keeps_its_copy(world: World) -> None:
    """Title, venue and start follow the concert; names and prices of what was booked don't move."""
    concert = await world.admin.register()
    ann = await world.api.new_buyer()
    booking = await ann.booked(concert, 2)
    starts_at = in_utc(datetime.now(UTC) + timedelta(days=40))
    await changed(world, concert.id, title="Day Trains", venue="Vera", startsAt=starts_at)

    async def row() -> Json:
        (only,) = await ann.my_rows()
        return only

    shown = await until(row, lambda now: now["concertTitle"] == "Day Trains")
    assert (shown["venue"], shown["startsAt"]) == ("Vera", starts_at)
    await changed(world, concert.id, capacities=[{"ticketTypeId": concert.types[0], "capacity": 50}])
    kept = await ann.booking(booking["id"])
    assert (kept["items"], kept["total"]) == (booking["items"], booking["total"])
    await ann.pay(booking["id"])
    (entry,) = await world.processor.captured()
    assert entry["amount"] == 7_000


async def test_a_limit_below_what_somebody_has_takes_nothing_away(world: World) -> None:
    """They keep their tickets and get no more; `frontrow verify` has nothing against it."""
    concert = await world.admin.register()
    ann = await world.api.new_buyer()
    booking = await ann.booked(concert, 4)
    await changed(world, concert.id, maxTicketsPerUser=2)
    refused = await ann.book(concert)
    assert (refused["code"], refused["maxTicketsPerUser"], refused["remaining"]) == ("TICKET_LIMIT", 2, 0)
    assert (await ann.pay(booking["id"]))["__typename"] == "PayBookingSuccess"


# ---------------------------------------------------------------- once it has started
async def test_a_concert_that_has_started_is_left_as_it_is(world: World) -> None:
    """No change, no cancelling, no booking, no giving back; holds ended at the start."""
    facts = soon(starts_in_s=6)
    concert = await world.admin.register(**facts)
    ann = await world.api.new_buyer()
    paid, unpaid = await ann.booked(concert), await ann.booked(concert)
    # The hold is ten minutes long, and the concert nearer than that.
    assert datetime.fromisoformat(unpaid["payBy"]) == datetime.fromisoformat(facts["startsAt"])
    assert (await ann.pay(paid["id"]))["__typename"] == "PayBookingSuccess"
    await begun(world, concert)
    await ann.until_booking(unpaid["id"], lambda now: now["status"] == "EXPIRED")
    assert await ann.seats(concert) == (9, 0, 1)
    async with nothing_changes(world):
        refused = await world.admin.ask(CANCEL_CONCERT, input={"concertId": concert.id})
        assert (refused["__typename"], refused["code"]) == ("ConcertStateProblem", "CONCERT_STARTED")
        assert (await ann.book(concert))["code"] == "SALES_CLOSED"
        for who in (ann, world.admin):
            late = await who.cancel(paid["id"])
            assert (late["__typename"], late["code"]) == ("BookingStateProblem", "CANCELLATION_CLOSED")
            assert late["booking"]["status"] == "APPROVED"
        assert (await ann.cancel(unpaid["id"]))["code"] == "HOLD_EXPIRED"
        assert (await ann.pay(unpaid["id"]))["code"] == "HOLD_EXPIRED"
    (entry,) = await world.processor.captured()
    assert entry["amount_refunded"] == 0


async def test_a_deferred_payment_never_holds_past_the_start(world: World) -> None:
    """The one extension of a hold ends at the start, too."""
    facts = soon(starts_in_s=60)
    concert = await world.admin.register(**facts)
    ann = await world.api.new_buyer()
    booking = await ann.booked(concert)
    await world.processor.control(mode="down")
    deferred = await ann.pay(booking["id"])
    assert (deferred["__typename"], deferred["booking"]["status"]) == ("PaymentDeferred", "PAYMENT_DEFERRED")
    pay_by = datetime.fromisoformat(deferred["booking"]["payBy"])
    assert pay_by == datetime.fromisoformat(facts["startsAt"])


# ---------------------------------------------------------------- cancelling
async def test_a_cancelled_concert_cancels_and_refunds_every_booking(new_world: NewWorld) -> None:
    """Nothing sells from the answer on; 250 bookings are cancelled, the paid ones refunded once, all counted down."""
    paid_count, booking_count = 6, 250
    async with new_world(bookings_per_min=10_000) as world:
        concert = await world.admin.register(
            maxTicketsPerUser=1_000, ticketTypes=[ticket_type(capacity=booking_count + 50)]
        )
        ann, bob = await world.api.new_buyer(), await world.api.new_buyer()
        bookings = []
        for _ in range(booking_count // 10):
            bookings += await asyncio.gather(*(ann.booked(concert) for _ in range(10)))
        paid = await asyncio.gather(*(ann.pay(booking["id"]) for booking in bookings[:paid_count]))
        assert {answer["__typename"] for answer in paid} == {"PayBookingSuccess"}
        gone = await bob.booked(concert, 2)
        await bob.cancel(gone["id"])
        async with world.api.watching(WATCH_COUNT, id=concert.id) as stream:
            answer = await world.admin.ask(CANCEL_CONCERT, input={"concertId": concert.id})
            assert answer["concert"]["status"] == "CANCELLED"
            assert 0 <= answer["bookingsToCancel"] <= booking_count
            refused = await bob.book(concert)
            assert (refused["__typename"], refused["code"]) == ("SalesClosedProblem", "CONCERT_CANCELLED")
            done = await asked_until_done(world.admin, concert)
            assert done == {"bookingsToCancel": 0, "refundsOpen": 0}
            seen = await stream.until(lambda now: now["status"] == "CANCELLED" and now["capacity"] == 0)
        for now in seen:
            assert now["available"] + now["held"] + now["sold"] == now["capacity"]
            assert now["available"] == 0 or now["status"] == "SCHEDULED"
        assert await ann.seats(concert) == (0, 0, 0)
        page = await ann.ask(MY_PAGE, first=1, status=["CANCELLED"])
        assert page["bookings"]["totalCount"] == booking_count
        first = await ann.until_booking(bookings[0]["id"], lambda now: now["isFinal"])
        assert (first["status"], first["payment"]["status"]) == ("CANCELLED", "REFUNDED")
        unpaid = await ann.booking(bookings[-1]["id"])
        assert (unpaid["status"], unpaid["isFinal"], unpaid["payment"]) == ("CANCELLED", True, None)
        captured = await world.processor.captured()
        assert [entry["amount_refunded"] for entry in captured] == [3_500] * paid_count
        paying = await ann.pay(bookings[-1]["id"])
        assert (paying["__typename"], paying["code"]) == ("BookingStateProblem", "CONCERT_CANCELLED")
        shown = await world.api.ask(GET, id=concert.id)
        assert (shown["status"], shown["ticketTypes"][0]["capacity"]) == ("CANCELLED", booking_count + 50)


async def asked_until_done(admin: Api, concert: Concert) -> Json:
    """cancelConcert, again and again, until nothing is left to do; the numbers never rise again."""
    asked: list[int] = []

    async def ask() -> Json:
        answer = await admin.ask(CANCEL_CONCERT, input={"concertId": concert.id})
        asked.append(answer["bookingsToCancel"])
        return {name: answer[name] for name in ("bookingsToCancel", "refundsOpen")}

    done = await until(ask, lambda answer: not any(answer.values()))
    assert asked == sorted(asked, reverse=True)
    return done
