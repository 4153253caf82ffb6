"""What each mutation can answer: its success and every failure a client should expect of it."""

from typing import Annotated

import strawberry

from schema.booking import Booking
from schema.concert import Concert
from schema.problems import (
    BookingStateProblem,
    CapacityProblem,
    ConcertStateProblem,
    EmailTakenProblem,
    IdempotencyProblem,
    InvalidInputProblem,
    NotFoundProblem,
    OverloadedProblem,
    PaymentDeclinedProblem,
    SalesClosedProblem,
    SoldOutProblem,
    TicketLimitProblem,
    TooManyAttemptsProblem,
    WrongCredentialsProblem,
)
from schema.user import Session


@strawberry.type(description="You are signed in.")
class SignInSuccess:
    """Of `signUp` and `logIn`."""

    session: Session = strawberry.field(description="The log-in.")
    access_token: str = strawberry.field(
        description=(
            "Send it as `Authorization: Bearer TOKEN`, and as `authorization` in a websocket's "
            "`connection_init`. It is shown this once."
        )
    )


@strawberry.type(description="Nobody is signed in any more.")
class LogOutSuccess:
    """Of `logOut`."""

    ok: bool = strawberry.field(description="Always true.")


@strawberry.type(description="The concert is registered, and sells within its window.")
class RegisterConcertSuccess:
    """Of `registerConcert`."""

    concert: Concert = strawberry.field(description="The new concert.")


@strawberry.type(description="The concert is changed.")
class UpdateConcertSuccess:
    """Of `updateConcert`."""

    concert: Concert = strawberry.field(description="The concert as it is now.")


@strawberry.type(
    description=(
        "The concert is called off. Its bookings are cancelled and refunded next; asking again "
        "tells how far that is."
    )
)
class CancelConcertSuccess:
    """Of `cancelConcert`."""

    concert: Concert = strawberry.field(description="The concert as it is now.")
    bookings_to_cancel: int = strawberry.field(description="Bookings of it that are still to be cancelled.")
    refunds_open: int = strawberry.field(description="Refunds of it that are pending or failed.")


@strawberry.type(description="The seats are held until the booking's `payBy`.")
class BookConcertSuccess:
    """Of `bookConcert`."""

    booking: Booking = strawberry.field(description="The new booking, `AWAITING_PAYMENT`.")


@strawberry.type(description="The money is here and the tickets are yours.")
class PayBookingSuccess:
    """Of `payBooking`."""

    booking: Booking = strawberry.field(description="The booking, `APPROVED`.")


@strawberry.type(
    description=(
        "The payment processor is overloaded or down. Nothing was sent to it and the seats stay "
        "held: pay again later."
    )
)
class PaymentDeferred:
    """Of `payBooking`. Stored nowhere: the same key may be used again."""

    booking: Booking = strawberry.field(description="The booking, `PAYMENT_DEFERRED`, with its `payBy`.")
    retry_after_ms: int = strawberry.field(
        description="How long to wait before paying again, in milliseconds."
    )


@strawberry.type(
    description="The payment's outcome is not known yet. It is being settled: watch `bookingStatus`."
)
class PaymentPending:
    """Of `payBooking`."""

    booking: Booking = strawberry.field(description="The booking, `PAYMENT_PENDING`.")


@strawberry.type(
    description=(
        "The buyer must authenticate, e.g. by 3-D Secure. Then watch `bookingStatus`, or pay with "
        "the same method again."
    )
)
class PaymentActionRequired:
    """Of `payBooking`."""

    booking: Booking = strawberry.field(description="The booking, `AWAITING_PAYMENT`.")
    client_secret: str = strawberry.field(description="For Stripe.js, `stripe.handleNextAction`.")
    redirect_url: str | None = strawberry.field(
        description="A page on which the buyer authenticates, where the processor offers one."
    )


@strawberry.type(
    description="The booking is given up: its seats are on sale again, and what was paid is refunded next."
)
class CancelBookingSuccess:
    """Of `cancelBooking`."""

    booking: Booking = strawberry.field(description="The booking, `CANCELLED`.")


SignUpResult = Annotated[
    SignInSuccess | EmailTakenProblem | InvalidInputProblem | TooManyAttemptsProblem | OverloadedProblem,
    strawberry.union("SignUpResult", description="What `signUp` can answer."),
]
LogInResult = Annotated[
    SignInSuccess | WrongCredentialsProblem | TooManyAttemptsProblem | OverloadedProblem,
    strawberry.union("LogInResult", description="What `logIn` can answer."),
]
LogOutResult = Annotated[
    LogOutSuccess, strawberry.union("LogOutResult", description="What `logOut` can answer.")
]
RegisterConcertResult = Annotated[
    RegisterConcertSuccess | InvalidInputProblem | IdempotencyProblem,
    strawberry.union("RegisterConcertResult", description="What `registerConcert` can answer."),
]
UpdateConcertResult = Annotated[
    UpdateConcertSuccess
    | InvalidInputProblem
    | NotFoundProblem
    | ConcertStateProblem
    | CapacityProblem
    | IdempotencyProblem,
    strawberry.union("UpdateConcertResult", description="What `updateConcert` can answer."),
]
CancelConcertResult = Annotated[
    CancelConcertSuccess | InvalidInputProblem | NotFoundProblem | ConcertStateProblem | IdempotencyProblem,
    strawberry.union("CancelConcertResult", description="What `cancelConcert` can answer."),
]
BookConcertResult = Annotated[
    BookConcertSuccess
    | SoldOutProblem
    | SalesClosedProblem
    | TicketLimitProblem
    | NotFoundProblem
    | InvalidInputProblem
    | IdempotencyProblem
    | TooManyAttemptsProblem
    | OverloadedProblem,
    strawberry.union("BookConcertResult", description="What `bookConcert` can answer."),
]
PayBookingResult = Annotated[
    PayBookingSuccess
    | PaymentDeferred
    | PaymentPending
    | PaymentActionRequired
    | PaymentDeclinedProblem
    | BookingStateProblem
    | NotFoundProblem
    | InvalidInputProblem
    | IdempotencyProblem
    | TooManyAttemptsProblem
    | OverloadedProblem,
    strawberry.union("PayBookingResult", description="What `payBooking` can answer."),
]
CancelBookingResult = Annotated[
    CancelBookingSuccess
    | BookingStateProblem
    | NotFoundProblem
    | InvalidInputProblem
    | IdempotencyProblem
    | OverloadedProblem,
    strawberry.union("CancelBookingResult", description="What `cancelBooking` can answer."),
]
