"""A client of the public endpoint, as the tests' buyers and organisers use it: HTTP and graphql-transport-ws."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, TypeVar
from uuid import uuid4

import httpx
import websockets

T = TypeVar("T")
Json = dict[str, Any]

PATIENCE_S = 10.0
PASSWORD = "correct horse battery"
# The least memory that argon2 takes: its hash is there in a fraction of a millisecond instead of 30.
HASH_KIB = 64

BOOKING = """fragment B on Booking {
  id concertId status isFinal payBy retryPayAt version createdAt updatedAt total { amountMinor currency }
  items { ticketTypeId name quantity unitPrice { amountMinor currency } }
  payment { id status declineCode capturedAt refundedAt amount { amountMinor currency } } }"""
COUNT = """fragment C on TicketCount {
  concertId status capacity available held sold version
  ticketTypes { ticketTypeId name capacity available held sold price { amountMinor currency } } }"""
PROBLEM = "... on Problem { code message retryable retryAfterMs }"
STATE_PROBLEM = f"... on BookingStateProblem {{ booking {{ ...B }} }} {PROBLEM}"

REGISTER = f"""mutation($input: RegisterConcertInput!) {{ registerConcert(input: $input) {{ __typename
  ... on RegisterConcertSuccess {{ concert {{ id title status ticketTypes {{ id name capacity }} }} }}
  ... on InvalidInputProblem {{ fields {{ path message }} }} {PROBLEM} }} }}"""
UPDATE = f"""mutation($input: UpdateConcertInput!) {{ updateConcert(input: $input) {{ __typename
  ... on UpdateConcertSuccess {{ concert {{ id title status ticketTypes {{ id name capacity }} }} }}
  ... on CapacityProblem {{ ticketTypeId taken }}
  ... on InvalidInputProblem {{ fields {{ path message }} }} {PROBLEM} }} }}"""
CANCEL_CONCERT = f"""mutation($input: CancelConcertInput!) {{ cancelConcert(input: $input) {{ __typename
  ... on CancelConcertSuccess {{ bookingsToCancel refundsOpen concert {{ id status }} }}
  ... on InvalidInputProblem {{ fields {{ path message }} }} {PROBLEM} }} }}"""
BOOK = f"""mutation($input: BookConcertInput!) {{ bookConcert(input: $input) {{ __typename
  ... on BookConcertSuccess {{ booking {{ ...B }} }}
  ... on SoldOutProblem {{ ticketTypeId available }}
  ... on TicketLimitProblem {{ maxTicketsPerUser remaining }}
  ... on SalesClosedProblem {{ salesOpenAt salesCloseAt }}
  ... on InvalidInputProblem {{ fields {{ path message }} }} {PROBLEM} }} }} {BOOKING}"""
PAY = f"""mutation($input: PayBookingInput!) {{ payBooking(input: $input) {{ __typename
  ... on PayBookingSuccess {{ booking {{ ...B }} }}
  ... on PaymentDeferred {{ comeBackMs: retryAfterMs booking {{ ...B }} }}
  ... on PaymentPending {{ booking {{ ...B }} }}
  ... on PaymentActionRequired {{ clientSecret redirectUrl booking {{ ...B }} }}
  ... on PaymentDeclinedProblem {{ declineCode booking {{ ...B }} }}
  ... on InvalidInputProblem {{ fields {{ path message }} }} {STATE_PROBLEM} }} }} {BOOKING}"""
CANCEL = f"""mutation($input: CancelBookingInput!) {{ cancelBooking(input: $input) {{ __typename
  ... on CancelBookingSuccess {{ booking {{ ...B }} }}
  ... on InvalidInputProblem {{ fields {{ path message }} }} {STATE_PROBLEM} }} }} {BOOKING}"""
GET_COUNT = f"query($id: ID!) {{ ticketCount(concertId: $id) {{ ...C }} }} {COUNT}"
GET_BOOKING = f"query($id: ID!) {{ booking(id: $id) {{ ...B }} }} {BOOKING}"
MY_PAGE = """query($first: Int! = 20, $after: String, $status: [BookingStatus!]) { myPage { user { id email }
  bookings(first: $first, after: $after, status: $status) { totalCount pageInfo { hasNextPage endCursor }
  edges { cursor node { id bookingId concertId concertTitle venue startsAt ticketQuantity status isFinal
    paymentStatus payBy version total { amountMinor currency } } } } } }"""
WATCH_COUNT = f"subscription($id: ID!) {{ ticketCount(concertId: $id) {{ ...C }} }} {COUNT}"
UPDATE_FIELDS = """bookingId concertId status isFinal paymentStatus declineCode payBy retryPayAt version occurredAt
  booking { bookingId status version concertTitle }"""
WATCH_BOOKING = f"subscription($id: ID!) {{ bookingStatus(bookingId: $id) {{ {UPDATE_FIELDS} }} }}"
WATCH_MINE = f"subscription($since: DateTime) {{ myBookingUpdates(since: $since) {{ {UPDATE_FIELDS} }} }}"

_numbers = count(1)


@dataclass(frozen=True)
class Concert:
    """A registered concert and its ticket types' ids, in order."""

    id: str
    types: list[str]


def concert_input(**facts: Any) -> Json:
    """A concert that sells now: one ticket type of ten seats, unless told otherwise."""
    now = datetime.now(UTC)
    return {
        "title": "Night Trains",
        "performer": "The Signal Keepers",
        "venue": "Paradiso",
        "startsAt": (now + timedelta(days=30)).isoformat(),
        "salesOpenAt": (now - timedelta(days=1)).isoformat(),
        "salesCloseAt": (now + timedelta(days=29)).isoformat(),
        "ticketTypes": [ticket_type()],
    } | facts


def ticket_type(name: str = "Standing", *, price_minor: int = 3_500, capacity: int = 10) -> Json:
    """One ticket type, in euro cents."""
    return {"name": name, "price": {"amountMinor": price_minor, "currency": "EUR"}, "capacity": capacity}


@dataclass
class Api:
    """The endpoint as one person uses it; without a token as nobody."""

    url: str
    http: httpx.AsyncClient
    token: str | None = None
    user_id: str = ""
    _headers: dict[str, str] = field(default_factory=dict)

    async def post(self, query: str, **variables: Any) -> httpx.Response:
        """The bare answer."""
        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        body = {"query": query, "variables": variables}
        return await self.http.post(f"{self.url}/graphql", json=body, headers=headers)

    async def ask(self, query: str, **variables: Any) -> Any:
        """The only root field's value; any error fails the test with its text."""
        answer = (await self.post(query, **variables)).json()
        assert "errors" not in answer, answer["errors"]
        return next(iter(answer["data"].values()))

    async def error(self, query: str, **variables: Any) -> Json:
        """The only error, which there must be."""
        answer = (await self.post(query, **variables)).json()
        (error,) = answer["errors"]
        return dict(error)

    def signed_in(self, token: str, user_id: str = "") -> "Api":
        """The same endpoint as somebody else."""
        return Api(self.url, self.http, token, user_id)

    async def new_buyer(self) -> "Api":
        """Somebody with a fresh account."""
        name = f"buyer-{next(_numbers)}-{uuid4().hex[:8]}"
        result = await self.ask(
            "mutation($input: SignUpInput!) { signUp(input: $input) { __typename "
            f"... on SignInSuccess {{ accessToken session {{ user {{ id }} }} }} {PROBLEM} }} }}",
            input={"email": f"{name}@example.org", "password": PASSWORD, "name": name},
        )
        assert result["__typename"] == "SignInSuccess", result
        return self.signed_in(result["accessToken"], result["session"]["user"]["id"])

    async def register(self, **facts: Any) -> Concert:
        """A concert that sells now."""
        result = await self.ask(REGISTER, input=concert_input(**facts))
        assert result["__typename"] == "RegisterConcertSuccess", result
        concert = result["concert"]
        return Concert(concert["id"], [each["id"] for each in concert["ticketTypes"]])

    async def book(
        self, concert: Concert, quantity: int = 1, *, line: int = 0, key: str | None = None
    ) -> Json:
        """bookConcert of one ticket type."""
        items = [{"ticketTypeId": concert.types[line], "quantity": quantity}]
        return await self.book_items(concert.id, items, key=key)

    async def book_items(self, concert_id: str, items: list[Json], *, key: str | None = None) -> Json:
        """bookConcert."""
        wanted = {"concertId": concert_id, "items": items, "idempotencyKey": key}
        return dict(await self.ask(BOOK, input=wanted))

    async def booked(self, concert: Concert, quantity: int = 1, *, line: int = 0) -> Json:
        """A booking that worked."""
        result = await self.book(concert, quantity, line=line)
        assert result["__typename"] == "BookConcertSuccess", result
        return dict(result["booking"])

    async def pay(self, booking_id: str, method: str = "pm_card_visa", *, key: str | None = None) -> Json:
        """payBooking."""
        wanted = {"bookingId": booking_id, "paymentMethodId": method, "idempotencyKey": key}
        return dict(await self.ask(PAY, input=wanted))

    async def cancel(self, booking_id: str, *, key: str | None = None) -> Json:
        """cancelBooking."""
        return dict(await self.ask(CANCEL, input={"bookingId": booking_id, "idempotencyKey": key}))

    async def count(self, concert: Concert) -> Json:
        """The live count."""
        return dict(await self.ask(GET_COUNT, id=concert.id))

    async def seats(self, concert: Concert) -> tuple[int, int, int]:
        """available, held, sold."""
        now = await self.count(concert)
        assert now["available"] + now["held"] + now["sold"] == now["capacity"]
        return now["available"], now["held"], now["sold"]

    async def booking(self, booking_id: str) -> Json:
        """The booking as it is now."""
        return dict(await self.ask(GET_BOOKING, id=booking_id))

    async def my_rows(self, **variables: Any) -> list[Json]:
        """The rows of my page."""
        page = await self.ask(MY_PAGE, **variables)
        return [edge["node"] for edge in page["bookings"]["edges"]]

    async def until_booking(self, booking_id: str, is_right: Callable[[Json], bool]) -> Json:
        """The booking once it is as it should be."""
        return await until(lambda: self.booking(booking_id), is_right)

    @asynccontextmanager
    async def watching(self, query: str, **variables: Any) -> AsyncIterator["Stream"]:
        """A subscription of its own socket."""
        async with socket(self.url, token=self.token) as ws:
            await ws.send(
                json.dumps(
                    {"id": "1", "type": "subscribe", "payload": {"query": query, "variables": variables}}
                )
            )
            yield Stream(ws)


@dataclass
class Stream:
    """What one subscription says."""

    ws: websockets.ClientConnection

    async def message(self) -> Json:
        """The next message of the protocol; pings are answered."""
        while True:
            async with asyncio.timeout(PATIENCE_S):
                message: Json = json.loads(await self.ws.recv())
            if message["type"] == "ping":
                await self.ws.send('{"type":"pong"}')
            else:
                return message

    async def next(self) -> Json:
        """The next value of the only root field."""
        message = await self.message()
        assert message["type"] == "next", message
        assert "errors" not in message["payload"], message
        return dict(next(iter(message["payload"]["data"].values())))

    async def until(self, is_right: Callable[[Json], bool]) -> list[Json]:
        """Every value up to and including the first that is right."""
        seen = [await self.next()]
        while not is_right(seen[-1]):
            seen.append(await self.next())
        return seen


@asynccontextmanager
async def socket(url: str, *, token: str | None = None) -> AsyncIterator[websockets.ClientConnection]:
    """An acknowledged graphql-transport-ws socket."""
    ws_url = url.replace("http://", "ws://") + "/graphql"
    async with websockets.connect(
        ws_url, subprotocols=[websockets.Subprotocol("graphql-transport-ws")]
    ) as ws:
        payload = {} if token is None else {"authorization": f"Bearer {token}"}
        await ws.send(json.dumps({"type": "connection_init", "payload": payload}))
        answer = json.loads(await ws.recv())
        assert answer["type"] == "connection_ack", answer
        yield ws


@asynccontextmanager
async def recorded(watching: AbstractAsyncContextManager[Stream]) -> AsyncIterator[list[Json]]:
    """All that a stream says until the block ends, in a list that grows."""
    seen: list[Json] = []

    async def listen(stream: Stream) -> None:
        while True:
            with suppress(TimeoutError):  # nothing to say for a while
                seen.append(await stream.next())

    async with watching as stream:
        listening = asyncio.create_task(listen(stream))
        try:
            yield seen
        finally:
            listening.cancel()
            await asyncio.wait([listening])


async def until_now(seen: list[Json], is_right: Callable[[list[Json]], bool]) -> None:
    """What was heard is right."""

    async def heard() -> list[Json]:
        return seen

    await until(heard, is_right)


async def until(read: Callable[[], Awaitable[T]], is_right: Callable[[T], bool]) -> T:
    """What is read once it is right; fails with the last value when patience ends."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE_S
    while not is_right(value := await read()):
        assert loop.time() < deadline, value
        await asyncio.sleep(0.02)
    return value
