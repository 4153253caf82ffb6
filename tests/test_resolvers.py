"""The resolvers over a small world: who sees what, which refusal stands where, and what a page costs."""

from dataclasses import replace

import pytest
from graphql import GraphQLError
from strawberry.types.execution import PreExecutionError

from domain.base import DomainError, IdempotencyMismatch, Overloaded, TooManyAttempts, Unavailable
from domain.booking import BookingState
from domain.user import Viewer
from resolvers.context import make_context
from schema.common import Kind, encode_id
from schema.user import User
from tests.resolver_world import (
    ADMIN,
    ANN,
    BEN,
    BOOKING,
    EVERYONE,
    SCHEMA,
    FakeLive,
    FakeReads,
    World,
    a_sale,
    raw,
)

pytestmark = pytest.mark.anyio


def code(error: GraphQLError) -> str:
    """The refusal's code, as the transport will tell it."""
    assert isinstance(error.original_error, DomainError)
    return error.original_error.code


# ---------------------------------------------------------------- who sees what
@pytest.mark.parametrize(
    ("kind", "typename", "seen_by"),
    [
        (Kind.CONCERT, "Concert", EVERYONE),
        (Kind.TICKET_TYPE, "TicketType", EVERYONE),
        (Kind.USER, "User", (ANN, ADMIN)),
        (Kind.BOOKING, "Booking", (ANN, ADMIN)),
        (Kind.PAYMENT, "Payment", (ANN, ADMIN)),
        (Kind.MY_BOOKING, "MyBooking", (ANN, ADMIN)),
        (Kind.SESSION, None, ()),
    ],
)
async def test_node_shows_each_type_to_those_who_may_see_it(
    kind: Kind, typename: str | None, seen_by: tuple[Viewer | None, ...]
) -> None:
    """Ann's own things for Ann and admins, the catalogue for everyone; for others null without an error."""
    id = encode_id(kind, raw(101) if kind is Kind.TICKET_TYPE else raw(1))
    for viewer in EVERYONE:
        data, errors = await World().ask(
            "query ($id: ID!) { node(id: $id) { __typename id } }", viewer=viewer, id=id
        )
        assert errors == []
        assert data["node"] == ({"__typename": typename, "id": id} if viewer in seen_by else None)
        absent, errors = await World().ask(
            "query ($id: ID!) { node(id: $id) { id } }", viewer=viewer, id=encode_id(kind, raw(999))
        )
        assert (absent, errors) == ({"node": None}, [])


async def test_an_email_address_is_shown_to_its_owner_and_admins_only() -> None:
    """Even where a user object is reached, somebody else's address is null."""
    shown = [User.of(ANN.user, seen_by=viewer).email for viewer in EVERYONE]
    assert shown == [None, "p1@example.org", None, "p1@example.org"]


async def test_a_query_answers_null_for_an_id_of_another_type_and_refuses_nonsense() -> None:
    """Null is for what is not there, BAD_USER_INPUT for what is no id at all; neighbours stay intact."""
    query = (
        "query ($user: ID!) { concert(id: $user) { id } booking(id: $user) { id } "
        "ticketCount(concertId: $user) { held } viewer { name } "
        'bad: concert(id: "x") { id } worse: node(id: "x") { id } }'
    )
    data, errors = await World().ask(query, viewer=ANN, user=encode_id(Kind.USER, raw(1)))
    expected = {"concert": None, "booking": None, "ticketCount": None, "bad": None, "worse": None}
    assert data == {**expected, "viewer": {"name": "Person 1"}}
    assert [(code(error), error.path) for error in errors] == [
        ("BAD_USER_INPUT", ["bad"]),
        ("BAD_USER_INPUT", ["worse"]),
    ]


MUTATIONS = {
    "registerConcert": (
        'registerConcert(input: {title: "", performer: "", venue: "", startsAt: "2027-01-01T00:00:00Z", '
        'salesOpenAt: "2027-01-01T00:00:00Z", salesCloseAt: "2027-01-01T00:00:00Z", ticketTypes: []})'
    ),
    "updateConcert": 'updateConcert(input: {concertId: "x"})',
    "cancelConcert": 'cancelConcert(input: {concertId: "x"})',
    "bookConcert": 'bookConcert(input: {concertId: "x", items: []})',
    "payBooking": 'payBooking(input: {bookingId: "x", paymentMethodId: ""})',
    "cancelBooking": 'cancelBooking(input: {bookingId: "x"})',
}


@pytest.mark.parametrize("name", MUTATIONS)
async def test_the_guard_comes_before_the_input(name: str) -> None:
    """A stranger's input is not even looked at, and a customer organises nothing."""
    mutation = f"mutation {{ {MUTATIONS[name]} {{ __typename }} }}"
    data, [error] = await World().ask(mutation)
    assert (data, code(error)) == ({name: None}, "UNAUTHENTICATED")
    if name.endswith("Concert") and name != "bookConcert":
        data, [error] = await World().ask(mutation, viewer=ANN)
        assert (data, code(error)) == ({name: None}, "FORBIDDEN")


async def test_my_page_needs_a_viewer() -> None:
    """Nobody has no page."""
    data, [error] = await World().ask("{ myPage { user { name } } }")
    assert (data, code(error)) == ({"myPage": None}, "UNAUTHENTICATED")


# ---------------------------------------------------------------- ids in mutations
CONCERT = encode_id(Kind.CONCERT, raw(1))
STALLS = encode_id(Kind.TICKET_TYPE, raw(101))
BOOK = """mutation ($concert: ID!, $types: [BookingItemInput!]!) {
  bookConcert(input: {concertId: $concert, items: $types}) {
    __typename ... on Problem { code } ... on InvalidInputProblem { fields { path } }
  }
}"""


@pytest.mark.parametrize(
    ("concert_id", "type_ids", "answer"),
    [
        ("x", [STALLS], [["concertId"]]),
        (CONCERT, ["x", STALLS, "y"], [["items", "0", "ticketTypeId"], ["items", "2", "ticketTypeId"]]),
        (STALLS, [STALLS], None),
        (CONCERT, ["x", CONCERT], None),
        (encode_id(Kind.CONCERT, raw(999)), ["x"], None),
    ],
)
async def test_a_wrong_id_in_a_mutation_is_invalid_or_not_found(
    concert_id: str, type_ids: list[str], answer: list[list[str]] | None
) -> None:
    """Undecodable: InvalidInputProblem with its path; another type: NotFoundProblem; found comes before input."""
    items = [{"ticketTypeId": type_id, "quantity": 1} for type_id in type_ids]
    data, errors = await World().ask(BOOK, viewer=ANN, concert=concert_id, types=items)
    assert errors == []
    if answer is None:
        assert data["bookConcert"] == {"__typename": "NotFoundProblem", "code": "NOT_FOUND"}
    else:
        assert data["bookConcert"] == {
            "__typename": "InvalidInputProblem",
            "code": "INVALID_INPUT",
            "fields": [{"path": path} for path in answer],
        }


# ---------------------------------------------------------------- refusals
ITEMS = [{"ticketTypeId": STALLS, "quantity": 1}]


async def test_a_refusal_the_union_expects_becomes_its_member() -> None:
    """Code, message, retryable and retryAfterMs are the refusal's own."""
    query = BOOK.replace("{ code }", "{ code message retryable retryAfterMs }")
    for refusal in (TooManyAttempts(1_500), IdempotencyMismatch()):
        data, errors = await World(refusal=refusal).ask(query, viewer=ANN, concert=CONCERT, types=ITEMS)
        assert errors == []
        name = {"TOO_MANY_ATTEMPTS": "TooManyAttemptsProblem", "IDEMPOTENCY_MISMATCH": "IdempotencyProblem"}
        assert data["bookConcert"] == {
            "__typename": name[refusal.code],
            "code": refusal.code,
            "message": refusal.message,
            "retryable": refusal.retryable,
            "retryAfterMs": refusal.retry_after_ms,
        }


@pytest.mark.parametrize("refusal", [Unavailable("concert"), BookingState(BOOKING.id, "ALREADY_PAID")])
async def test_a_refusal_the_union_does_not_expect_is_an_error(refusal: DomainError) -> None:
    """Whether it has no problem at all, or one that this mutation never promised."""
    data, [error] = await World(refusal=refusal).ask(BOOK, viewer=ANN, concert=CONCERT, types=ITEMS)
    assert data == {"bookConcert": None} and error.original_error is refusal


async def test_overloaded_is_a_problem_where_promised() -> None:
    """signUp promises OverloadedProblem; its guard is the limiter, asked before anything is stored."""
    mutation = (
        'mutation { signUp(input: {email: "a@b.cd", password: "long enough", name: "A"}) { __typename } }'
    )
    data, errors = await World(refusal=Overloaded()).ask(mutation)
    assert (data, errors) == ({"signUp": {"__typename": "OverloadedProblem"}}, [])


async def test_a_problem_shows_its_booking_as_it_is_now() -> None:
    """Two mutations in one document: the second answer is not served from what the first one read."""
    pay = f'payBooking(input: {{bookingId: "{encode_id(Kind.BOOKING, raw(1))}", paymentMethodId: "pm"}})'
    problem = "{ ... on BookingStateProblem { code booking { version payment { status } } } }"
    world = World(refusal=BookingState(BOOKING.id, "ALREADY_PAID"))
    data, errors = await world.ask(f"mutation {{ a: {pay} {problem} b: {pay} {problem} }}", viewer=ANN)
    assert errors == []
    payment = {"status": "CAPTURED"}
    assert [data[alias]["booking"] for alias in "ab"] == [
        {"version": 4, "payment": payment},
        {"version": 5, "payment": payment},
    ]


# ---------------------------------------------------------------- what a page costs
async def test_a_page_of_concerts_costs_three_batches_however_long_it_is() -> None:
    """The page, its ticket types, its counts: 1 concert and 100 cost the same."""
    query = "query ($n: Int) { concerts(first: $n) { edges { node { ticketTypes { id } ticketCount { held } } } } }"
    for n in (1, 50, 100):
        world = World(reads=FakeReads(concert_count=100))
        data, errors = await world.ask(query, n=n)
        assert errors == [] and len(data["concerts"]["edges"]) == n
        assert sorted(world.reads.asked) == [("concert_page", n), ("sales", n), ("ticket_types_of", n)]


async def test_the_live_count_adds_up() -> None:
    """The sums are over the ticket types."""
    query = f'{{ ticketCount(concertId: "{CONCERT}") {{ capacity available held sold version }} }}'
    data, _ = await World().ask(query)
    assert data["ticketCount"] == {"capacity": 30, "available": 24, "held": 2, "sold": 4, "version": 7}


async def test_a_booking_stands_while_the_catalogue_is_down() -> None:
    """Its concert is null beside UNAVAILABLE; its own copy of names and prices is intact."""
    id = encode_id(Kind.BOOKING, raw(1))
    query = f'{{ booking(id: "{id}") {{ concert {{ title }} items {{ name quantity }} }} }}'
    data, [error] = await World(reads=FakeReads(is_catalogue_down=True)).ask(query, viewer=ANN)
    assert data["booking"] == {"concert": None, "items": [{"name": "Stalls", "quantity": 2}]}
    assert (code(error), error.path) == ("UNAVAILABLE", ["booking", "concert"])


# ---------------------------------------------------------------- streams
async def test_a_stream_opens_with_now_and_goes_on_with_newer_states() -> None:
    """Snapshot, then each newer version; the listener is gone when the stream ends."""
    newer = replace(a_sale(1), version=9)
    world = World(live=FakeLive(said=[replace(newer, version=6), newer, newer]))
    answers = await world.watch(f'subscription {{ ticketCount(concertId: "{CONCERT}") {{ version }} }}')
    assert [answer.data for answer in answers] == [
        {"ticketCount": {"version": 7}},
        {"ticketCount": {"version": 9}},
    ]
    assert world.live.listening == 0


async def test_a_stream_left_in_the_middle_stops_listening_at_once() -> None:
    """Closing it closes its source, not some garbage collection later."""
    world = World(live=FakeLive(said=[replace(a_sale(1), version=8)]))
    context = make_context(world.deps, viewer=None, request_id="r", client="127.0.0.1")
    query = f'subscription {{ ticketCount(concertId: "{CONCERT}") {{ version }} }}'
    answers = await SCHEMA.subscribe(query, context_value=context)
    await anext(answers)
    assert world.live.listening == 1
    await answers.aclose()
    assert world.live.listening == 0


@pytest.mark.parametrize(
    ("subscription", "viewer", "refusal"),
    [
        (f'ticketCount(concertId: "{encode_id(Kind.CONCERT, raw(999))}") {{ held }}', None, "NOT_FOUND"),
        (f'ticketCount(concertId: "{STALLS}") {{ held }}', None, "NOT_FOUND"),
        ('ticketCount(concertId: "x") { held }', None, "BAD_USER_INPUT"),
        (
            f'bookingStatus(bookingId: "{encode_id(Kind.BOOKING, raw(1))}") {{ version }}',
            None,
            "UNAUTHENTICATED",
        ),
        (f'bookingStatus(bookingId: "{encode_id(Kind.BOOKING, raw(1))}") {{ version }}', BEN, "NOT_FOUND"),
        (f'bookingStatus(bookingId: "{encode_id(Kind.BOOKING, raw(999))}") {{ version }}', ANN, "NOT_FOUND"),
        ("myBookingUpdates { version }", None, "UNAUTHENTICATED"),
    ],
)
async def test_a_stream_that_cannot_open_is_an_error_of_its_operation(
    subscription: str, viewer: Viewer | None, refusal: str
) -> None:
    """One answer that is no message of the stream: the transport turns it into `error`."""
    world = World()
    [answer] = await world.watch(f"subscription {{ {subscription} }}", viewer=viewer)
    assert isinstance(answer, PreExecutionError) and answer.errors is not None
    assert [code(error) for error in answer.errors] == [refusal]
    assert world.live.listening == 0
