"""People whose every step is recorded: each intention has one key, and is tried under it until its outcome is known."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import httpx

from domain.base import BookingId, ConcertId, DomainError, TicketTypeId
from domain.booking import Booking, Quantity, SoldOut, TicketLimit
from domain.ports import Deps
from domain.use_cases.booking import BookConcert, CancelBooking, book_concert, cancel_booking
from domain.use_cases.payment import ActionNeeded, Deferred, Paid, PayBooking, Pending, pay_booking
from domain.user import Viewer
from schema.common import Kind as IdKind
from schema.common import decode_id, encode_id
from tests.client import BOOK, CANCEL, CANCEL_CONCERT, PAY, UPDATE, Api, Json
from tests.fake_processor import OK
from tests.faults.history import History, Kind, Lines, Operation, Reason, Seen
from tests.faults.history import Pending as Recorded

TRIES = 30
NAP_S = 0.05
NAP_MAX_S = 1.0
# What the use cases answer, by the names that the API gives it.
PAY_ANSWERS: dict[type, str] = {
    Paid: "PayBookingSuccess",
    Deferred: "PaymentDeferred",
    Pending: "PaymentPending",
    ActionNeeded: "PaymentActionRequired",
}
# Errors after which certainly nothing was done.
NOTHING_DONE = {"OVERLOADED", "RATE_LIMITED", "TOO_MANY_ATTEMPTS"}


class Certainty(Enum):
    """What one answer says of its request."""

    DONE = "done"
    REFUSED = "refused"  # for good: the same key hears the same again
    NOTHING = "nothing"  # nothing was done, and the same may be tried again
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, or that there was none."""

    certainty: Certainty
    code: str
    seen: Seen | None = None
    reason: Reason | None = None
    retry_after_s: float = 0.0


class Door(Protocol):
    """Where requests are put in. Nothing is raised: what goes wrong is an answer too."""

    async def book(self, concert_id: str, wanted: Lines, *, key: str) -> Answer:
        """bookConcert."""
        ...

    async def pay(self, booking_id: str, method: str, *, key: str) -> Answer:
        """payBooking."""
        ...

    async def cancel(self, booking_id: str, *, key: str) -> Answer:
        """cancelBooking."""
        ...


@dataclass(slots=True)
class RecordedBuyer:
    """One person. `tries`: how often an intention is tried before it stays unknown; at most `nap_max_s` apart."""

    history: History
    door: Door
    user_id: str
    tries: int = TRIES
    nap_max_s: float = NAP_MAX_S

    async def book(self, concert_id: str, wanted: Mapping[str, int], *, key: str | None = None) -> Operation:
        """Seats by ticket type; the operation's `seen` is the booking, where there is one."""
        items = tuple(wanted.items())

        def ask(key: str) -> Awaitable[Answer]:
            return self.door.book(concert_id, items, key=key)

        return await self._intend(Kind.BOOK, ask, key, concert_id=concert_id, wanted=items)

    async def pay(self, booking_id: str, method: str = OK, *, key: str | None = None) -> Operation:
        """With this Stripe PaymentMethod."""
        return await self._intend(
            Kind.PAY, lambda key: self.door.pay(booking_id, method, key=key), key, booking_id=booking_id
        )

    async def cancel(self, booking_id: str, *, key: str | None = None) -> Operation:
        """The seats go back."""
        return await self._intend(
            Kind.CANCEL, lambda key: self.door.cancel(booking_id, key=key), key, booking_id=booking_id
        )

    def key_of_try(self, key: str, number: int) -> str:
        """The key that this try carries: the same each time."""
        return key

    async def _intend(
        self,
        kind: Kind,
        ask: Callable[[str], Awaitable[Answer]],
        given: str | None,
        *,
        concert_id: str | None = None,
        booking_id: str | None = None,
        wanted: Lines = (),
    ) -> Operation:
        key = given or secrets.token_hex(8)
        with self.history.operation(
            kind, self.user_id, key=key, concert_id=concert_id, booking_id=booking_id, wanted=wanted
        ) as recorded:
            await _try(
                ask,
                recorded,
                tries=self.tries,
                nap_max_s=self.nap_max_s,
                key_of_try=lambda number: self.key_of_try(key, number),
            )
        return self.history.operations[-1]


async def _try(
    ask: Callable[[str], Awaitable[Answer]],
    recorded: Recorded,
    *,
    tries: int,
    key_of_try: Callable[[int], str],
    nap_max_s: float = NAP_MAX_S,
) -> None:
    """Ask until the outcome is known, or `tries` times."""
    may_be_done = False
    for number in range(tries):
        answer = await ask(key_of_try(number))
        recorded.said.append(answer.code)
        match answer.certainty:
            case Certainty.DONE:
                return recorded.ok(answer.code, answer.seen)
            case Certainty.REFUSED:
                return recorded.refused(answer.code, answer.reason)
            case Certainty.UNKNOWN:
                may_be_done = True
        if number + 1 < tries:
            await asyncio.sleep(min(nap_max_s, max(answer.retry_after_s, NAP_S)))
    if may_be_done:
        recorded.unknown(answer.code)
    else:
        recorded.refused(answer.code, answer.reason)


# ---------------------------------------------------------------- over HTTP
@dataclass(slots=True)
class OverHttp:
    """The public endpoint, at the API processes in turn: a try after a failure meets the next one."""

    apis: list[Api]
    _turn: int = 0

    async def book(self, concert_id: str, wanted: Lines, *, key: str) -> Answer:
        """bookConcert."""
        items = [{"ticketTypeId": encode_id(IdKind.TICKET_TYPE, kind), "quantity": n} for kind, n in wanted]
        concert = encode_id(IdKind.CONCERT, concert_id)
        return await self._ask(BOOK, {"concertId": concert, "items": items, "idempotencyKey": key})

    async def pay(self, booking_id: str, method: str, *, key: str) -> Answer:
        """payBooking."""
        booking = encode_id(IdKind.BOOKING, booking_id)
        return await self._ask(PAY, {"bookingId": booking, "paymentMethodId": method, "idempotencyKey": key})

    async def cancel(self, booking_id: str, *, key: str) -> Answer:
        """cancelBooking."""
        booking = encode_id(IdKind.BOOKING, booking_id)
        return await self._ask(CANCEL, {"bookingId": booking, "idempotencyKey": key})

    async def change(self, concert_id: str, capacities: Lines, limit: int | None, *, key: str) -> Answer:
        """updateConcert."""
        wanted: Json = {"concertId": encode_id(IdKind.CONCERT, concert_id), "idempotencyKey": key}
        if capacities:
            wanted["capacities"] = [
                {"ticketTypeId": encode_id(IdKind.TICKET_TYPE, kind), "capacity": n} for kind, n in capacities
            ]
        if limit is not None:
            wanted["maxTicketsPerUser"] = limit
        return await self._ask(UPDATE, wanted)

    async def close(self, concert_id: str, *, key: str) -> Answer:
        """cancelConcert."""
        concert = encode_id(IdKind.CONCERT, concert_id)
        return await self._ask(CANCEL_CONCERT, {"concertId": concert, "idempotencyKey": key})

    async def _ask(self, query: str, wanted: Json) -> Answer:
        api = self.apis[self._turn % len(self.apis)]
        self._turn += 1
        try:
            response = await api.post(query, input=wanted)
            body = response.json()
        except httpx.ConnectError:
            return Answer(Certainty.NOTHING, "CONNECT")
        except (httpx.HTTPError, ValueError) as error:
            return Answer(Certainty.UNKNOWN, type(error).__name__)
        return _understood(body, response.status_code)


def _understood(body: Any, status: int) -> Answer:
    if not isinstance(body, dict) or ("errors" not in body and "data" not in body):
        return Answer(Certainty.UNKNOWN, f"HTTP {status}")
    if "errors" in body:
        facts = body["errors"][0].get("extensions", {})
        code = str(facts.get("code"))
        certainty = Certainty.NOTHING if code in NOTHING_DONE else Certainty.UNKNOWN
        return Answer(certainty, code, retry_after_s=(facts.get("retryAfterMs") or 0) / 1_000)
    (result,) = body["data"].values()
    if "code" not in result:
        booking = result.get("booking")
        return Answer(Certainty.DONE, result["__typename"], None if booking is None else _seen(booking))
    certainty = Certainty.NOTHING if result["retryable"] else Certainty.REFUSED
    return Answer(
        certainty,
        result["code"],
        reason=_reason(result),
        retry_after_s=(result["retryAfterMs"] or 0) / 1_000,
    )


def raw(global_id: str) -> str:
    """What the house itself calls the thing."""
    return decode_id(global_id)[1]


def _seen(booking: Json) -> Seen:
    payment = booking["payment"]
    return Seen(
        booking_id=raw(booking["id"]),
        status=booking["status"],
        version=booking["version"],
        items=tuple((raw(item["ticketTypeId"]), item["quantity"]) for item in booking["items"]),
        total_minor=booking["total"]["amountMinor"],
        payment_status=None if payment is None else payment["status"],
    )


def _reason(problem: Json) -> Reason | None:
    if problem["code"] == "SOLD_OUT":
        return Reason(ticket_type_id=raw(problem["ticketTypeId"]), available=problem["available"])
    if problem["code"] == "TICKET_LIMIT":
        return Reason(max_tickets_per_user=problem["maxTicketsPerUser"], remaining=problem["remaining"])
    return None


@dataclass(slots=True)
class RecordedOrganiser:
    """An admin whose changes of a sale are recorded. One at a time per concert."""

    history: History
    door: OverHttp
    user_id: str
    tries: int = TRIES

    async def change(
        self, concert_id: str, capacities: Mapping[str, int] | None = None, *, limit: int | None = None
    ) -> Operation:
        """Other capacities, or another limit; something must differ."""
        lines = tuple((capacities or {}).items())
        return await self._intend(
            Kind.CHANGE,
            lambda key: self.door.change(concert_id, lines, limit, key=key),
            concert_id=concert_id,
            wanted=lines,
            limit=limit,
        )

    async def close(self, concert_id: str) -> Operation:
        """The concert is cancelled."""
        return await self._intend(
            Kind.CLOSE, lambda key: self.door.close(concert_id, key=key), concert_id=concert_id
        )

    async def _intend(
        self,
        kind: Kind,
        ask: Callable[[str], Awaitable[Answer]],
        *,
        concert_id: str,
        wanted: Lines = (),
        limit: int | None = None,
    ) -> Operation:
        key = secrets.token_hex(8)
        with self.history.operation(
            kind, self.user_id, key=key, concert_id=concert_id, wanted=wanted, limit=limit
        ) as recorded:
            await _try(ask, recorded, tries=self.tries, key_of_try=lambda _: key)
        return self.history.operations[-1]


# ---------------------------------------------------------------- without an application around it
@dataclass(slots=True)
class OverUseCases:
    """The use cases themselves, in this process."""

    deps: Deps
    viewer: Viewer

    async def book(self, concert_id: str, wanted: Lines, *, key: str) -> Answer:
        """book_concert."""
        quantities = tuple(Quantity(TicketTypeId(kind), n) for kind, n in wanted)
        command = BookConcert(ConcertId(concert_id), quantities, key)
        return await _answered(lambda: self._book(command))

    async def pay(self, booking_id: str, method: str, *, key: str) -> Answer:
        """pay_booking."""
        command = PayBooking(BookingId(booking_id), method, key)
        return await _answered(lambda: self._pay(command))

    async def cancel(self, booking_id: str, *, key: str) -> Answer:
        """cancel_booking."""
        command = CancelBooking(BookingId(booking_id), idempotency_key=key)
        return await _answered(lambda: self._cancel(command))

    async def _book(self, command: BookConcert) -> Answer:
        return _done("BookConcertSuccess", await book_concert(self.deps, self.viewer, command))

    async def _pay(self, command: PayBooking) -> Answer:
        answer = await pay_booking(self.deps, self.viewer, command)
        return _done(PAY_ANSWERS[type(answer)], answer.booking)

    async def _cancel(self, command: CancelBooking) -> Answer:
        return _done("CancelBookingSuccess", await cancel_booking(self.deps, self.viewer, command))


def _done(code: str, booking: Booking) -> Answer:
    seen = Seen(
        booking_id=booking.id,
        status=booking.status.value,
        version=booking.version,
        items=tuple((item.ticket_type_id, item.quantity) for item in booking.items),
        total_minor=booking.total.amount_minor,
        payment_status=None if booking.payment_status is None else booking.payment_status.value,
    )
    return Answer(Certainty.DONE, code, seen)


async def _answered(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    try:
        return await ask()
    except DomainError as refusal:
        return _refused(refusal)
    except Exception as error:
        # The API would mask it; here its name tells what to look for.
        return Answer(Certainty.UNKNOWN, f"INTERNAL {error!r}")


def _refused(refusal: DomainError) -> Answer:
    reason = None
    if isinstance(refusal, SoldOut):
        reason = Reason(ticket_type_id=refusal.ticket_type_id, available=refusal.available)
    elif isinstance(refusal, TicketLimit):
        reason = Reason(max_tickets_per_user=refusal.max_tickets_per_user, remaining=refusal.remaining)
    certainty = Certainty.REFUSED
    if refusal.code in {"RETRYABLE", "IN_PROGRESS", "UNAVAILABLE"}:
        certainty = Certainty.UNKNOWN
    elif refusal.retryable:
        certainty = Certainty.NOTHING
    return Answer(certainty, refusal.code, reason=reason, retry_after_s=(refusal.retry_after_ms or 0) / 1_000)
