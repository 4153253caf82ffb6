"""Ids that name nothing, or not what is asked for: told apart, and nothing changed."""

from typing import Any
from uuid import uuid4

import pytest

from tests.client import (
    BOOK,
    CANCEL,
    CANCEL_CONCERT,
    GET_BOOKING,
    GET_COUNT,
    PAY,
    UPDATE,
    WATCH_BOOKING,
    WATCH_COUNT,
    Api,
)
from tests.story.refusals import GET_NODE, code_of, global_id, is_not_found, item, stream_code, wrong_fields
from tests.story.unchanged import nothing_changes
from tests.story.world import World

pytestmark = pytest.mark.anyio

GET_CONCERT = "query($id: ID!) { concert(id: $id) { id } }"

# Nothing that the API ever gave out.
NO_IDS = (
    "",
    "1",
    "%%%",
    "\x00",
    "é",
    str(uuid4()),
    global_id("Concert") + "=",
    global_id("Concert", "1"),
    global_id("Concert", str(uuid4()).upper()),
    global_id("Venue"),
    "Q" * 5_000,
)


async def test_a_wrong_id_in_a_mutation_is_told_apart_and_changes_nothing(world: World) -> None:
    """What can't be decoded is invalid at its path; of another type or unknown, it is not found."""
    concert = await world.admin.register()
    other = await world.admin.register()
    ann = await world.api.new_buyer()
    booking = await ann.booked(concert)
    kind = concert.types[0]
    # For each place of an id: who asks, the mutation, the input around the id, its path, what else to put there.
    places: list[tuple[Api, str, Any, list[str], list[str]]] = [
        (world.admin, UPDATE, lambda i: {"concertId": i, "title": "X"}, ["concertId"], [kind]),
        (
            world.admin,
            UPDATE,
            lambda i: {"concertId": concert.id, "capacities": [{"ticketTypeId": i, "capacity": 99}]},
            ["capacities", "0", "ticketTypeId"],
            [concert.id, other.types[0], global_id("TicketType")],
        ),
        (world.admin, CANCEL_CONCERT, lambda i: {"concertId": i}, ["concertId"], [booking["id"]]),
        (ann, BOOK, lambda i: {"concertId": i, "items": [item(kind)]}, ["concertId"], [kind]),
        (
            ann,
            BOOK,
            lambda i: {"concertId": concert.id, "items": [item(i)]},
            ["items", "0", "ticketTypeId"],
            [concert.id, other.types[0], global_id("TicketType")],
        ),
        (
            ann,
            PAY,
            lambda i: {"bookingId": i, "paymentMethodId": "pm_card_visa"},
            ["bookingId"],
            [concert.id, global_id("Booking"), global_id("MyBooking", str(uuid4()))],
        ),
        (ann, CANCEL, lambda i: {"bookingId": i}, ["bookingId"], [concert.id, global_id("Booking")]),
    ]
    async with nothing_changes(world):
        for who, mutation, around, path, others in places:
            for text in NO_IDS:
                result = await who.ask(mutation, input=around(text))
                assert wrong_fields(result) == [path], (path, text)
            for text in [*others, global_id("Concert"), global_id("User"), global_id("Session")]:
                assert is_not_found(await who.ask(mutation, input=around(text))), (path, text)


async def test_a_wrong_id_in_a_query_is_null_or_bad_input(world: World) -> None:
    """Null where it names nothing of that type, BAD_USER_INPUT where it can't be decoded."""
    concert = await world.admin.register()
    ann = await world.api.new_buyer()
    booking = await ann.booked(concert)
    queries = {GET_CONCERT: booking["id"], GET_COUNT: concert.types[0], GET_BOOKING: concert.id}
    for query, of_another_type in queries.items():
        for text in NO_IDS:
            assert await code_of(ann, query, id=text) == "BAD_USER_INPUT", text
        for text in (of_another_type, ann.user_id, *map(global_id, ("Concert", "Booking", "Session"))):
            assert await ann.ask(query, id=text) is None, text
    for text in NO_IDS:
        assert await code_of(ann, GET_NODE, id=text) == "BAD_USER_INPUT", text
    for kind in ("Concert", "TicketType", "Booking", "Payment", "User", "MyBooking", "Session"):
        assert await ann.ask(GET_NODE, id=global_id(kind)) is None, kind


async def test_a_stream_of_nothing_is_refused(world: World) -> None:
    """NOT_FOUND for an id of another type or of nothing, BAD_USER_INPUT for no id at all."""
    concert = await world.admin.register()
    ann = await world.api.new_buyer()
    booking = await ann.booked(concert)
    for query, of_another_type in ((WATCH_COUNT, booking["id"]), (WATCH_BOOKING, concert.id)):
        for text in ("", "1", global_id("Concert") + "="):
            assert await stream_code(ann, query, id=text) == "BAD_USER_INPUT", text
        for text in (of_another_type, global_id("Concert"), global_id("Booking")):
            assert await stream_code(ann, query, id=text) == "NOT_FOUND", text
