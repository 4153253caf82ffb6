"""My page: the buyer's own last write at once, pages that hold still, and nobody else's bookings."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from infra.read_model import rebuild
from tests.client import MY_PAGE, Api, Concert, Json, until
from tests.db_world import run_sql
from tests.story.conftest import NewWorld
from tests.story.world import World

pytestmark = pytest.mark.anyio

BOOKINGS = 25


# ---------------------------------------------------------------- own writes
async def test_every_own_write_shows_at_once(world: World) -> None:
    """The page asked right after a mutation's answer shows the version that it answered, or a newer one."""
    concert = await world.admin.register(maxTicketsPerUser=100)
    ann = await world.api.new_buyer()
    for _ in range(3):
        booked = await ann.booked(concert)
        await _shows(ann, booked)
        declined = await ann.pay(booked["id"], "pm_card_visa_chargeDeclined")
        await _shows(ann, declined["booking"])
        paid = await ann.pay(booked["id"])
        await _shows(ann, paid["booking"])
        cancelled = await ann.cancel(booked["id"])
        await _shows(ann, cancelled["booking"])


async def test_own_writes_show_without_any_worker(new_world: NewWorld) -> None:
    """With a read model that was never filled, and with one that stands still, the database answers."""
    async with new_world(worker="off") as world:
        concert = await world.admin.register()
        ann = await world.api.new_buyer()
        first = await ann.booked(concert)
        await _shows(ann, first)
        await _filled(world)
        second = await ann.booked(concert)
        await _shows(ann, second)
        await _shows(ann, (await ann.pay(first["id"]))["booking"])
        await _shows(ann, (await ann.cancel(second["id"]))["booking"])
        page = await ann.ask(MY_PAGE)
        assert page["bookings"]["totalCount"] == 2


async def test_what_others_do_to_a_booking_shows_too(world: World) -> None:
    """An admin's cancellation and a processor's refund are changes of the buyer's page like any other."""
    concert = await world.admin.register()
    ann = await world.api.new_buyer()
    kept, cancelled = [await ann.booked(concert) for _ in range(2)]
    await ann.pay(kept["id"])
    answer = await world.admin.cancel(cancelled["id"])
    await _shows(ann, answer["booking"])
    (entry,) = await world.processor.captured()
    await world.processor.refund(entry["payment_intent"])

    async def statuses() -> list[tuple[str, str | None, bool]]:
        return [(row["status"], row["paymentStatus"], row["isFinal"]) for row in await ann.my_rows()]

    assert await until(statuses, lambda seen: seen[1][0] == "CANCELLED") == [
        ("CANCELLED", None, True),
        ("CANCELLED", "REFUNDED", True),
    ]


async def test_rows_say_where_money_and_booking_stand(world: World) -> None:
    """paymentStatus and isFinal follow each step; cancelled with a refund on its way is not final."""
    concert = await world.admin.register(title="Slow Clocks", venue="Tivoli")
    ann = await world.api.new_buyer()
    booking = await ann.booked(concert, 2)
    (row,) = await ann.my_rows()
    assert (row["paymentStatus"], row["isFinal"], row["payBy"]) == (None, False, booking["payBy"])
    assert (row["concertTitle"], row["venue"], row["ticketQuantity"]) == ("Slow Clocks", "Tivoli", 2)
    assert (row["concertId"], row["total"]) == (concert.id, {"amountMinor": 7_000, "currency": "EUR"})
    await ann.pay(booking["id"], "pm_card_visa_chargeDeclined")
    (row,) = await ann.my_rows()
    assert (row["status"], row["paymentStatus"]) == ("AWAITING_PAYMENT", "DECLINED")
    await ann.pay(booking["id"])
    (row,) = await ann.my_rows()
    assert (row["status"], row["paymentStatus"], row["isFinal"]) == ("APPROVED", "CAPTURED", False)
    assert row["payBy"] is None
    await world.processor.control(mode="down")
    await ann.cancel(booking["id"])
    (row,) = await ann.my_rows()
    assert (row["status"], row["paymentStatus"], row["isFinal"]) == ("CANCELLED", "REFUND_PENDING", False)
    await world.processor.control(mode="ok")
    (row,) = await until(ann.my_rows, lambda rows: bool(rows[0]["isFinal"]))
    assert row["paymentStatus"] == "REFUNDED"


# ---------------------------------------------------------------- pages
async def test_pages_hold_still_while_rows_change(new_world: NewWorld) -> None:
    """Newest first, none twice, none skipped, whatever is booked and cancelled on the way, wherever it is read."""
    async with _busy_buyer(new_world) as (world, ann, concert, bookings):
        first = await _page(ann, first=10)
        assert [edge["node"]["bookingId"] for edge in first["edges"]] == bookings[:10]
        assert first["totalCount"] == BOOKINGS and first["pageInfo"]["hasNextPage"]
        assert first["pageInfo"]["endCursor"] == first["edges"][-1]["cursor"]
        await ann.booked(concert)
        await ann.cancel(bookings[9])
        await ann.cancel(bookings[10])
        async with world.frontrow.working():  # the rest may come from the read model
            await world.outbox_is_empty()
            second = await _page(ann, first=10, after=first["pageInfo"]["endCursor"])
            await ann.cancel(bookings[19])
            await ann.booked(concert)
            third = await _page(ann, first=10, after=second["pageInfo"]["endCursor"])
        rest = [edge["node"]["bookingId"] for edge in second["edges"] + third["edges"]]
        assert rest == bookings[10:]
        assert second["pageInfo"]["hasNextPage"] and not third["pageInfo"]["hasNextPage"]
        assert third["totalCount"] == BOOKINGS + 2


async def test_bookings_of_one_moment_come_once_each(new_world: NewWorld) -> None:
    """Equal times are told apart by id, in the same order by database and read model."""
    async with _busy_buyer(new_world) as (world, ann, _, bookings):
        moment = "2026-05-01T12:00:00.000000+00:00"
        await run_sql(world.frontrow.database, f"UPDATE bookings SET created_at = '{moment}'")
        from_database = await _all_pages(ann, size=4)
        assert sorted(from_database) == sorted(bookings)
        assert await rebuild(world.frontrow.read_model, world.frontrow.source)
        assert await _all_pages(ann, size=7) == from_database


async def test_only_the_wanted_states_are_listed_and_counted(new_world: NewWorld) -> None:
    """The filter holds for rows, pages and totalCount, in the database and in the read model."""
    async with _busy_buyer(new_world) as (world, ann, _, bookings):
        for booking_id in bookings[::2]:
            await ann.cancel(booking_id)
        await ann.pay(bookings[1])
        for _ in range(2):
            cancelled = await _page(ann, first=5, status=["CANCELLED"])
            assert [edge["node"]["bookingId"] for edge in cancelled["edges"]] == bookings[0:10:2]
            assert cancelled["totalCount"] == 13
            rest = await _all_pages(ann, size=5, status=["AWAITING_PAYMENT", "APPROVED"])
            assert rest == bookings[1::2]
            assert (await _page(ann, status=["EXPIRED"])) | {"pageInfo": None} == {
                "totalCount": 0,
                "edges": [],
                "pageInfo": None,
            }
            cursor = cancelled["pageInfo"]["endCursor"]
            assert await _code(ann, after=cursor, status=["APPROVED"]) == "BAD_USER_INPUT"
            assert await _code(ann, after=cursor) == "BAD_USER_INPUT"
            await _filled(world)


async def test_page_sizes_are_from_1_to_100(world: World) -> None:
    """20 where none is given; anything else than 1 to 100 and a cursor that is none are refused."""
    concert = await world.admin.register(maxTicketsPerUser=100, ticketTypes=[_seats(50)])
    ann = await world.api.new_buyer()
    await asyncio.gather(*(ann.booked(concert) for _ in range(21)))
    page = await _page(ann)
    assert (len(page["edges"]), page["totalCount"], page["pageInfo"]["hasNextPage"]) == (20, 21, True)
    assert len((await _page(ann, first=100))["edges"]) == 21
    assert len((await _page(ann, first=1))["edges"]) == 1
    for first in (0, -1, 101):
        assert await _code(ann, first=first) == "BAD_USER_INPUT"
    assert await _code(ann, after="nonsense") == "BAD_USER_INPUT"


# ---------------------------------------------------------------- whose
async def test_nobody_sees_somebody_elses_page(world: World) -> None:
    """Bookings, counts and nodes of others stay out of sight; without a token there is no page."""
    concert = await world.admin.register()
    ann, bob = await world.api.new_buyer(), await world.api.new_buyer()
    for _ in range(3):
        await ann.booked(concert)
    own = (await bob.booked(concert))["id"]
    page = await _page(bob)
    assert [edge["node"]["bookingId"] for edge in page["edges"]] == [own] and page["totalCount"] == 1
    assert (await _page(bob, status=["CANCELLED"]))["totalCount"] == 0
    (row, *_) = await ann.my_rows()
    get_row = "query($id: ID!) { node(id: $id) { ... on MyBooking { bookingId status } } }"
    assert await bob.ask(get_row, id=row["id"]) is None
    assert await world.api.ask(get_row, id=row["id"]) is None
    assert await ann.ask(get_row, id=row["id"]) == {"bookingId": row["bookingId"], "status": row["status"]}
    assert await world.admin.ask(get_row, id=row["id"]) is not None
    error = await world.api.error(MY_PAGE)
    assert (error["path"], error["extensions"]["code"]) == (["myPage"], "UNAUTHENTICATED")
    admins = await _page(world.admin)
    assert (admins["edges"], admins["totalCount"]) == ([], 0)


# ---------------------------------------------------------------- helpers
@asynccontextmanager
async def _busy_buyer(new_world: NewWorld) -> AsyncIterator[tuple[World, Api, Concert, list[str]]]:
    """Somebody with many bookings, newest first, in a house without a worker."""
    async with new_world(worker="off") as world:
        concert = await world.admin.register(maxTicketsPerUser=100, ticketTypes=[_seats(100)])
        ann = await world.api.new_buyer()
        bookings = [(await ann.booked(concert))["id"] for _ in range(BOOKINGS)]
        yield world, ann, concert, bookings[::-1]


def _seats(capacity: int) -> Json:
    return {"name": "Standing", "price": {"amountMinor": 3_500, "currency": "EUR"}, "capacity": capacity}


async def _filled(world: World) -> None:
    """The read model is complete as of now, and nobody keeps it so."""
    async with world.frontrow.working():
        await world.outbox_is_empty()
        await until(world.frontrow.read_model.check, lambda must_be_rebuilt: not must_be_rebuilt)


async def _shows(ann: Api, booking: Json) -> None:
    """My page has this booking in this version or a newer one."""
    rows = {row["bookingId"]: row for row in await ann.my_rows()}
    row = rows[booking["id"]]
    assert row["version"] >= booking["version"]
    assert row["version"] > booking["version"] or row["status"] == booking["status"]


async def _page(ann: Api, **variables: object) -> Json:
    return dict((await ann.ask(MY_PAGE, **variables))["bookings"])


async def _all_pages(ann: Api, *, size: int, **variables: object) -> list[str]:
    found: list[str] = []
    after = None
    while True:
        page = await _page(ann, first=size, after=after, **variables)
        assert len(page["edges"]) <= size
        assert len(found) < BOOKINGS, "the pages go on and on"
        found += [edge["node"]["bookingId"] for edge in page["edges"]]
        if not page["pageInfo"]["hasNextPage"]:
            return found
        after = page["pageInfo"]["endCursor"]


async def _code(ann: Api, **variables: object) -> str:
    return str((await ann.error(MY_PAGE, **variables))["extensions"]["code"])
