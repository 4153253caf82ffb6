"""Expected failures: what a mutation's result union has beside success, and the table refusal -> Problem.

A problem is a view of the domain's refusal: code, message and facts are read from it, never repeated here.
"""

from datetime import datetime

import strawberry

from domain.base import (
    BookingId,
    DomainError,
    IdempotencyMismatch,
    InProgress,
    InvalidInput,
    NotFound,
    Overloaded,
    TooManyAttempts,
)
from domain.booking import BookingState, CapacityTaken, SalesClosed, SoldOut, TicketLimit
from domain.concert import ConcertState
from domain.payment import PaymentDeclined
from domain.user import EmailTaken, WrongCredentials
from schema.booking import Booking
from schema.common import FieldInfo, Kind, encode_id


@strawberry.interface(description="An expected failure. Nothing was changed unless the type says otherwise.")
class Problem:
    """What all problems tell."""

    error: strawberry.Private[DomainError]

    @strawberry.field(
        description="Stable, in SCREAMING_SNAKE_CASE. Treat one you don't know by its type and `retryable`."
    )
    def code(self) -> str:
        """The refusal's code."""
        return self.error.code

    @strawberry.field(description="What happened and what to do, for a person, in English.")
    def message(self) -> str:
        """The refusal's message."""
        return self.error.message

    @strawberry.field(
        description=(
            "True: nothing was stored, send the same again with the same key, after `retryAfterMs`. "
            "False: the outcome is kept under the key, and a new try needs a new key."
        )
    )
    def retryable(self) -> bool:
        """Whether the same may be sent again."""
        return self.error.retryable

    @strawberry.field(description="How long to wait before trying again, in milliseconds, where that helps.")
    def retry_after_ms(self) -> int | None:
        """When to send it again."""
        return self.error.retry_after_ms


@strawberry.type(description="One wrong place of the input.")
class FieldProblem:
    """A path and what is wrong there."""

    path: list[str] = strawberry.field(
        description=(
            'Below `input`, list positions as text, e.g. `["ticketTypes", "1", "price", "amountMinor"]`.'
        )
    )
    message: str = strawberry.field(description="What is wrong, for a person.")


@strawberry.type(description="The input breaks a rule. Code `INVALID_INPUT`.")
class InvalidInputProblem(Problem):
    """Every wrong place at once."""

    error: strawberry.Private[InvalidInput]

    @strawberry.field(description="Every wrong place, at least one.")
    def fields(self) -> list[FieldProblem]:
        """The refusal's fields."""
        return [FieldProblem(path=list(f.path), message=f.message) for f in self.error.fields]


@strawberry.type(description="There is no such thing, or it is not yours to see. Code `NOT_FOUND`.")
class NotFoundProblem(Problem):
    """Absent or foreign: the two look the same."""


@strawberry.type(
    description=(
        "The idempotency key was used with other arguments (`IDEMPOTENCY_MISMATCH`), or its first "
        "request is still running (`IN_PROGRESS`, retryable)."
    )
)
class IdempotencyProblem(Problem):
    """The key stands in the way."""


@strawberry.type(description="Somebody has signed up with this address. Code `EMAIL_TAKEN`.")
class EmailTakenProblem(Problem):
    """The address is in use."""


@strawberry.type(description="The address or the password is wrong. Code `WRONG_CREDENTIALS`.")
class WrongCredentialsProblem(Problem):
    """Which of the two is not told."""


@strawberry.type(description="You asked too often. Code `TOO_MANY_ATTEMPTS`, retryable.")
class TooManyAttemptsProblem(Problem):
    """Nothing was done."""


@strawberry.type(
    description=(
        "Fewer seats are free than you asked for; none were held. Code `SOLD_OUT`. Held seats may "
        "return to sale."
    )
)
class SoldOutProblem(Problem):
    """The first line, in input order, that is short."""

    error: strawberry.Private[SoldOut]

    @strawberry.field(description="The first ticket type, in the order of your input, that is short.")
    def ticket_type_id(self) -> strawberry.ID:
        """Which one."""
        return encode_id(Kind.TICKET_TYPE, self.error.ticket_type_id)

    @strawberry.field(description="How many of it were free when you asked.")
    def available(self) -> int:
        """How many were left."""
        return self.error.available


@strawberry.type(
    description=(
        "Nothing is on sale: not yet (`SALES_NOT_OPEN`, retryable), no more (`SALES_CLOSED`), the concert "
        "was called off (`CONCERT_CANCELLED`), or sales are stopped for a check (`SALES_HALTED`, retryable)."
    )
)
class SalesClosedProblem(Problem):
    """Outside the sales window, or stopped."""

    error: strawberry.Private[SalesClosed]

    @strawberry.field(description="From when tickets can be booked.")
    def sales_open_at(self) -> datetime:
        """The window's start."""
        return self.error.sales_open_at

    @strawberry.field(description="Until when tickets can be booked.")
    def sales_close_at(self) -> datetime:
        """The window's end."""
        return self.error.sales_close_at


@strawberry.type(
    description="You would have more tickets of this concert than one person may. Code `TICKET_LIMIT`."
)
class TicketLimitProblem(Problem):
    """The per-person limit, over all live bookings."""

    error: strawberry.Private[TicketLimit]

    @strawberry.field(description="How many tickets one person may have of this concert.")
    def max_tickets_per_user(self) -> int:
        """The limit."""
        return self.error.max_tickets_per_user

    @strawberry.field(description="How many more you may book.")
    def remaining(self) -> int:
        """What is left of it."""
        return self.error.remaining


@strawberry.type(description="More seats are held or sold than the new capacity. Code `CAPACITY_TAKEN`.")
class CapacityProblem(Problem):
    """The capacity can't fall below what is taken."""

    error: strawberry.Private[CapacityTaken]

    @strawberry.field(description="Which ticket type.")
    def ticket_type_id(self) -> strawberry.ID:
        """Which one."""
        return encode_id(Kind.TICKET_TYPE, self.error.ticket_type_id)

    @strawberry.field(description="Its seats held or sold: the least its capacity can be.")
    def taken(self) -> int:
        """How many are taken."""
        return self.error.taken


@strawberry.type(
    description=(
        "The concert can't be changed: it was called off (`CONCERT_CANCELLED`) or has started "
        "(`CONCERT_STARTED`)."
    )
)
class ConcertStateProblem(Problem):
    """The concert's state does not allow it."""

    error: strawberry.Private[ConcertState]

    @strawberry.field(description="Which concert.")
    def concert_id(self) -> strawberry.ID:
        """Which one."""
        return encode_id(Kind.CONCERT, self.error.concert_id)


async def _booking_now(info: FieldInfo, booking_id: BookingId) -> Booking:
    noun = await info.context.loaders.booking(booking_id)
    assert noun is not None, "a refusal names a booking that exists"
    return Booking.of(noun)


@strawberry.type(
    description=(
        "The booking's state does not allow it: `HOLD_EXPIRED`, `ALREADY_PAID`, "
        "`ALREADY_CANCELLED`, `CONCERT_CANCELLED`, `CANCELLATION_CLOSED` (the concert has started) "
        "or `PAYMENT_IN_PROGRESS` (retryable)."
    )
)
class BookingStateProblem(Problem):
    """The booking's state does not allow it."""

    error: strawberry.Private[BookingState]

    @strawberry.field(description="The booking as it is now.")
    async def booking(self, info: FieldInfo) -> Booking:
        """Read when asked for."""
        return await _booking_now(info, self.error.booking_id)


@strawberry.type(
    description=(
        "The card was declined and nothing was charged. Code `PAYMENT_DECLINED`. The seats stay "
        "held: pay with another method, or the same one again, under a new key."
    )
)
class PaymentDeclinedProblem(Problem):
    """The attempt is over; the booking can still be paid."""

    error: strawberry.Private[PaymentDeclined]

    @strawberry.field(description="The booking as it is now.")
    async def booking(self, info: FieldInfo) -> Booking:
        """Read when asked for."""
        return await _booking_now(info, self.error.booking_id)

    @strawberry.field(description="Why, in the processor's words, e.g. `insufficient_funds`.")
    def decline_code(self) -> str:
        """The processor's reason."""
        return self.error.decline_code


@strawberry.type(
    description="More is asked of us than we can do in time. Nothing was done. Code `OVERLOADED`, retryable."
)
class OverloadedProblem(Problem):
    """Come back a little later."""


# What is not in here is nobody's expected outcome and stands in "errors".
PROBLEMS: dict[type[DomainError], type[Problem]] = {
    InvalidInput: InvalidInputProblem,
    NotFound: NotFoundProblem,
    IdempotencyMismatch: IdempotencyProblem,
    InProgress: IdempotencyProblem,
    EmailTaken: EmailTakenProblem,
    WrongCredentials: WrongCredentialsProblem,
    TooManyAttempts: TooManyAttemptsProblem,
    SoldOut: SoldOutProblem,
    SalesClosed: SalesClosedProblem,
    TicketLimit: TicketLimitProblem,
    CapacityTaken: CapacityProblem,
    ConcertState: ConcertStateProblem,
    BookingState: BookingStateProblem,
    PaymentDeclined: PaymentDeclinedProblem,
    Overloaded: OverloadedProblem,
}


def problem_of(error: DomainError) -> Problem | None:
    """The refusal as a client sees it, None where it is no expected outcome."""
    problem = PROBLEMS.get(type(error))
    return None if problem is None else problem(error=error)
