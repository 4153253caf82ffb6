"""Malformed and forbidden requests about bookings and over the wire: a typed answer, and nothing changed."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from tests.client import (
    BOOK,
    CANCEL,
    CANCEL_CONCERT,
    GET_BOOKING,
    PAY,
    REGISTER,
    UPDATE,
    WATCH_BOOKING,
    WATCH_COUNT,
    WATCH_MINE,
    Concert,
    Json,
    concert_input,
    socket,
    ticket_type,
)
from tests.story.refusals import GET_NODE, code_of, global_id, is_not_found, item, stream_code, wrong_fields
from tests.story.unchanged import nothing_changes
from tests.story.world import World

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------- bookConcert
async def test_a_quantity_is_a_sensible_number(world: World) -> None:
    """Zero, negative, huge and no whole numbers at all are refused at their path."""
    concert = await world.admin.register()
    ann = await world.api.new_buyer()
    async with nothing_changes(world):
        for quantity in (0, -1, -(2**31), 1_000_001, 2**31 - 1):
            result = await ann.book(concert, quantity)
            assert wrong_fields(result) == [["items", "0", "quantity"]], quantity
        # A million of anything costs more than one card payment may be.
        assert wrong_fields(await ann.book(concert, 1_000_000)) == [["items"]]
        no_ints: tuple[object, ...] = (2**31, -(2**31) - 1, 10**20, 1e20, 1.5, "2", True, None, [], {})
        for no_int in no_ints:
            wanted = {"concertId": concert.id, "items": [item(concert.types[0], no_int)]}
            assert await code_of(ann, BOOK, input=wanted) == "BAD_USER_INPUT", no_int


async def test_the_lines_of_a_booking_are_distinct_and_1_to_20(world: World) -> None:
    """Each wrong line is named, and all of them at once."""
    concert = await world.admin.register(ticketTypes=[ticket_type(f"Row {n}") for n in range(20)])
    ann = await world.api.new_buyer()
    first, second, *_ = concert.types
    async with nothing_changes(world):
        assert wrong_fields(await ann.book_items(concert.id, [])) == [["items"]]
        twice = [item(first), item(second), item(first, 2)]
        assert wrong_fields(await ann.book_items(concert.id, twice)) == [["items", "2", "ticketTypeId"]]
        too_many = [item(each) for each in (*concert.types, first)]
        assert wrong_fields(await ann.book_items(concert.id, too_many)) == [
            ["items"],
            ["items", "20", "ticketTypeId"],
        ]
        several = [item(first, 0), item(second), item(first, -1)]
        assert wrong_fields(await ann.book_items(concert.id, several)) == [
            ["items", "0", "quantity"],
            ["items", "2", "quantity"],
            ["items", "2", "ticketTypeId"],
        ]
        undecodable = [item("x"), item(second), item("")]
        assert wrong_fields(await ann.book_items(concert.id, undecodable)) == [
            ["items", "0", "ticketTypeId"],
            ["items", "2", "ticketTypeId"],
        ]


async def test_outside_its_window_nothing_is_sold(world: World) -> None:
    """Before it opens the answer says when to come back, after it closed that it is over."""
    now = datetime.now(UTC).replace(microsecond=0)
    opens, closes = now + timedelta(days=2), now + timedelta(days=29)
    early = await world.admin.register(salesOpenAt=opens.isoformat(), salesCloseAt=closes.isoformat())
    closed_at = now - timedelta(hours=1)
    late = await world.admin.register(salesCloseAt=closed_at.isoformat())
    ann = await world.api.new_buyer()
    async with nothing_changes(world):
        not_yet = await ann.book(early)
        assert not_yet["__typename"] == "SalesClosedProblem"
        assert (not_yet["code"], not_yet["retryable"]) == ("SALES_NOT_OPEN", True)
        assert 47 * 3_600_000 < not_yet["retryAfterMs"] <= 48 * 3_600_000 + 2_000
        assert datetime.fromisoformat(not_yet["salesOpenAt"]) == opens
        assert datetime.fromisoformat(not_yet["salesCloseAt"]) == closes
        over = await ann.book(late)
        assert (over["__typename"], over["code"]) == ("SalesClosedProblem", "SALES_CLOSED")
        assert (over["retryable"], over["retryAfterMs"]) == (False, None)
        assert datetime.fromisoformat(over["salesCloseAt"]) == closed_at


async def test_what_is_wrong_first_is_told_first(world: World) -> None:
    """Found, input, cancelled, window, per-person limit, seats: of several wrongs the first in this order."""
    now = datetime.now(UTC)
    later = {"salesOpenAt": (now + timedelta(days=1)).isoformat(), "maxTicketsPerUser": 2}
    small = [ticket_type(capacity=3), ticket_type("Balcony", price_minor=99_999_999)]
    concert = await world.admin.register(maxTicketsPerUser=4, ticketTypes=small)
    early = await world.admin.register(ticketTypes=small, **later)
    gone = await world.admin.register(ticketTypes=small, **later)
    await world.admin.ask(CANCEL_CONCERT, input={"concertId": gone.id})
    ann = await world.api.new_buyer()

    async def told(of: Concert, *items: Json, concert_id: str | None = None) -> str:
        return str((await ann.book_items(concert_id or of.id, list(items)))["code"])

    async with nothing_changes(world):
        unknown = global_id("Concert")
        assert await told(concert, item("x", 0), concert_id=unknown) == "NOT_FOUND"
        assert await told(concert, item(early.types[0]), item(concert.types[0], 0)) == "NOT_FOUND"
        assert await told(gone, item(gone.types[0], 0)) == "INVALID_INPUT"
        # Two of these cost more than a card payment may be, which is as wrong wherever it is asked.
        assert await told(gone, item(gone.types[1], 2)) == "INVALID_INPUT"
        assert await told(early, item(early.types[1], 3)) == "INVALID_INPUT"
        assert await told(concert, item(concert.types[1], 5)) == "INVALID_INPUT"
        assert await told(gone, item(gone.types[0], 9)) == "CONCERT_CANCELLED"
        assert await told(early, item(early.types[0], 9)) == "SALES_NOT_OPEN"
        limit = await ann.book(concert, 5)
        assert (limit["code"], limit["maxTicketsPerUser"], limit["remaining"]) == ("TICKET_LIMIT", 4, 4)
        sold_out = await ann.book(concert, 4)
        assert (sold_out["code"], sold_out["available"]) == ("SOLD_OUT", 3)
        assert sold_out["ticketTypeId"] == concert.types[0]
    await ann.booked(concert, 3)
    left = await ann.book(concert, 2)
    assert (left["code"], left["remaining"]) == ("TICKET_LIMIT", 1)


async def test_the_first_short_line_in_input_order_is_told(world: World) -> None:
    """All or none: with one line short nothing of the others is held either."""
    concert = await world.admin.register(
        ticketTypes=[ticket_type("A", capacity=5), ticket_type("B", capacity=1), ticket_type("C", capacity=1)]
    )
    ann = await world.api.new_buyer()
    a, b, c = concert.types
    async with nothing_changes(world):
        short = await ann.book_items(concert.id, [item(a, 2), item(c, 2), item(b, 2)])
        assert (short["code"], short["ticketTypeId"], short["available"]) == ("SOLD_OUT", c, 1)


async def test_a_payment_method_and_a_reason_are_sensible_texts(world: World) -> None:
    """Empty, blank, padded, too long or with NUL: refused at the field, and the processor hears nothing."""
    concert = await world.admin.register()
    ann = await world.api.new_buyer()
    booking = await ann.booked(concert)
    async with nothing_changes(world):
        for method in ("", "  ", " pm_card_visa", "pm\x00", "p" * 256):
            assert set(map(tuple, wrong_fields(await ann.pay(booking["id"], method)))) == {
                ("paymentMethodId",)
            }, method
        for reason in ("r" * 501, "\x00"):
            wanted = {"bookingId": booking["id"], "reason": reason}
            assert wrong_fields(await ann.ask(CANCEL, input=wanted)) == [["reason"]]
    assert await world.processor.ledger() == []
    unknown = await ann.pay(booking["id"], "pm_card_of_nobody")
    assert wrong_fields(unknown) == [["paymentMethodId"]]
    assert (await ann.booking(booking["id"]))["status"] == "AWAITING_PAYMENT"
    assert (await ann.pay(booking["id"]))["__typename"] == "PayBookingSuccess"


# ---------------------------------------------------------------- other people's
async def test_other_peoples_bookings_look_like_nothing(world: World) -> None:
    """Word for word the answer to an unknown id, in every mutation, query, node and stream."""
    concert = await world.admin.register()
    ann, bob = await world.api.new_buyer(), await world.api.new_buyer()
    booking = await ann.booked(concert)
    await ann.pay(booking["id"])
    booking = await ann.booking(booking["id"])
    (row,) = await ann.my_rows()
    unknown = global_id("Booking")
    async with nothing_changes(world):
        assert is_not_found(await bob.pay(booking["id"]))
        assert await bob.pay(booking["id"]) == await bob.pay(unknown)
        assert is_not_found(await bob.cancel(booking["id"]))
        assert await bob.cancel(booking["id"]) == await bob.cancel(unknown)
        for nobody in (bob, world.api):
            assert await nobody.ask(GET_BOOKING, id=booking["id"]) is None
            for theirs in (booking["id"], booking["payment"]["id"], row["id"], ann.user_id):
                assert await nobody.ask(GET_NODE, id=theirs) is None
        assert await bob.my_rows() == []
        assert await stream_code(bob, WATCH_BOOKING, id=booking["id"]) == "NOT_FOUND"
        for query, variables in (
            (PAY, {"input": {"bookingId": booking["id"], "paymentMethodId": "pm_card_visa"}}),
            (CANCEL, {"input": {"bookingId": booking["id"]}}),
            (BOOK, {"input": {"concertId": concert.id, "items": [item(concert.types[0])]}}),
            ("{ myPage { user { id } } }", {}),
        ):
            assert await code_of(world.api, query, **variables) == "UNAUTHENTICATED"
        assert await stream_code(world.api, WATCH_BOOKING, id=booking["id"]) == "UNAUTHENTICATED"
        assert await stream_code(world.api, WATCH_MINE) == "UNAUTHENTICATED"
        for mine in (booking["id"], booking["payment"]["id"], row["id"], ann.user_id):
            assert (await ann.ask(GET_NODE, id=mine))["id"] == mine


async def test_an_admin_sees_and_cancels_a_booking_and_never_pays_it(world: World) -> None:
    """Paying is its owner's; cancelling refunds the owner."""
    concert = await world.admin.register()
    ann = await world.api.new_buyer()
    booking = await ann.booked(concert)
    async with nothing_changes(world):
        assert is_not_found(await world.admin.pay(booking["id"]))
        assert (await world.admin.booking(booking["id"]))["id"] == booking["id"]
        assert (await world.admin.ask(GET_NODE, id=booking["id"]))["__typename"] == "Booking"
        async with world.admin.watching(WATCH_BOOKING, id=booking["id"]) as stream:
            assert (await stream.next())["status"] == "AWAITING_PAYMENT"
    assert (await ann.pay(booking["id"]))["__typename"] == "PayBookingSuccess"
    assert (await world.admin.cancel(booking["id"]))["__typename"] == "CancelBookingSuccess"
    assert (await ann.until_booking(booking["id"], lambda now: now["isFinal"]))["status"] == "CANCELLED"
    (entry,) = await world.processor.captured()
    assert entry["amount_refunded"] == entry["amount"] == 3_500
    assert (await ann.my_rows())[0]["status"] == "CANCELLED"


async def test_only_admins_organise(world: World) -> None:
    """Nobody is UNAUTHENTICATED, a customer FORBIDDEN, and the catalogue and the sale stay as they are."""
    concert = await world.admin.register()
    ann = await world.api.new_buyer()
    mutations = {
        REGISTER: concert_input(),
        UPDATE: {"concertId": concert.id, "title": "Mine now"},
        CANCEL_CONCERT: {"concertId": concert.id},
    }
    async with nothing_changes(world):
        for mutation, wanted in mutations.items():
            # Also when the input is nonsense: a stranger's is not even looked at.
            for sent in (wanted, wanted | {"concertId": "x"} if "concertId" in wanted else wanted):
                assert await code_of(world.api, mutation, input=sent) == "UNAUTHENTICATED"
                assert await code_of(ann, mutation, input=sent) == "FORBIDDEN"


# ---------------------------------------------------------------- over the wire
async def test_a_mutation_runs_by_post_only(world: World) -> None:
    """By GET or over a websocket it is refused and does nothing."""
    concert = await world.admin.register()
    ann = await world.api.new_buyer()
    wanted = {"input": {"concertId": concert.id, "items": [item(concert.types[0])]}}
    headers = {"Authorization": f"Bearer {ann.token}"}
    async with nothing_changes(world):
        parameters = {"query": BOOK, "variables": json.dumps(wanted)}
        by_get = await ann.http.get(f"{ann.url}/graphql", params=parameters, headers=headers)
        assert by_get.status_code == 405 and by_get.headers["allow"] == "POST"
        assert by_get.json()["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"
        async with ann.watching(BOOK, **wanted) as stream:
            message = await stream.message()
            assert message["type"] == "error", message
            assert message["payload"][0]["extensions"]["code"] == "BAD_USER_INPUT"
            # The socket survives, and so does everything on it.
            payload = {"query": WATCH_COUNT, "variables": {"id": concert.id}}
            await stream.ws.send(json.dumps({"id": "2", "type": "subscribe", "payload": payload}))
            assert (await stream.next())["available"] == 10


async def test_what_is_no_request_is_refused_with_a_code(world: World) -> None:
    """Oversized, broken, unknown or not of the schema: 4xx or a coded error, and nothing happens."""
    concert = await world.admin.register()
    ann = await world.api.new_buyer()
    wanted = {"concertId": concert.id, "items": [item(concert.types[0])]}
    good = {"query": BOOK, "variables": {"input": wanted}}
    bodies: list[tuple[bytes, int, str]] = [
        (json.dumps(good | {"padding": "x" * 102_400}).encode(), 413, "BAD_USER_INPUT"),
        (json.dumps(good).encode()[:-1], 400, "BAD_USER_INPUT"),
        (b"", 400, "BAD_USER_INPUT"),
        (b"\xff\xfe", 400, "BAD_USER_INPUT"),
        (b"[" * 50_000, 400, "BAD_USER_INPUT"),
        (json.dumps([good]).encode(), 400, "BAD_USER_INPUT"),
        (json.dumps(good | {"query": "{"}).encode(), 200, "GRAPHQL_PARSE_FAILED"),
        (json.dumps(good | {"operationName": "Sell"}).encode(), 200, "BAD_USER_INPUT"),
        (json.dumps(good | {"query": "{ seats }"}).encode(), 200, "GRAPHQL_VALIDATION_FAILED"),
        (json.dumps({"query": "mutation { refundAll }"}).encode(), 200, "GRAPHQL_VALIDATION_FAILED"),
        (json.dumps({"query": "{ __typename " * 20 + "}" * 20}).encode(), 200, "GRAPHQL_VALIDATION_FAILED"),
        # Half a surrogate pair is no UTF-8, in JSON and in the document.
        (json.dumps({"query": '{ concert(id: "\ud800") { id } }'}).encode(), 400, "BAD_USER_INPUT"),
        (b'{"query": "{ concert(id: \\"\\\\ud800\\") { id } }"}', 200, "GRAPHQL_PARSE_FAILED"),
    ]
    headers = {"Authorization": f"Bearer {ann.token}", "Content-Type": "application/json"}
    async with nothing_changes(world):
        for body, status, code in bodies:
            answer = await ann.http.post(f"{ann.url}/graphql", content=body, headers=headers)
            seen = (answer.status_code, answer.json()["errors"][0]["extensions"]["code"])
            assert seen == (status, code), body[:200]
            assert "data" not in answer.json()
        for field in ("seats", "idempotencykey"):
            unknown = {"input": wanted | {field: 1}}
            assert await code_of(ann, BOOK, **unknown) == "BAD_USER_INPUT"
    async with socket(ann.url, token=ann.token) as ws:
        await ws.send("{")
        await ws.wait_closed()
        assert ws.close_code == 4400
