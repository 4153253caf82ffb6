"""Every root field on one screen, and the schema they make."""

from datetime import datetime

import strawberry
from strawberry.schema.config import StrawberryConfig

import resolvers.booking
import resolvers.concert
import resolvers.my_page
import resolvers.node
import resolvers.payment
import resolvers.user
from schema.booking import Booking
from schema.common import DATE_TIME, Node
from schema.concert import Concert, ConcertConnection, TicketCount
from schema.my_page import MyPage
from schema.results import (
    BookConcertResult,
    CancelBookingResult,
    CancelConcertResult,
    LogInResult,
    LogOutResult,
    PayBookingResult,
    RegisterConcertResult,
    SignUpResult,
    UpdateConcertResult,
)
from schema.user import User

field, mutation, subscription = strawberry.field, strawberry.mutation, strawberry.subscription


@strawberry.type(
    description="Reading. Null stands only beside an error, or where there is nothing for the viewer to see."
)
class Query:
    """What can be read."""

    node: Node | None = field(
        resolver=resolvers.node.node,
        description=("Anything with a global id. Null when absent or not yours to see."),
    )
    viewer: User | None = field(
        resolver=resolvers.user.viewer, description=("Who is signed in, null when nobody is.")
    )
    concert: Concert | None = field(
        resolver=resolvers.concert.concert, description=("One concert, null when absent.")
    )
    concerts: ConcertConnection | None = field(
        resolver=resolvers.concert.concerts,
        description=("A page of the catalogue. Give `first` or `last`, not both."),
    )
    ticket_count: TicketCount | None = field(
        resolver=resolvers.booking.ticket_count,
        description="The live count of a concert, null when absent. Works while the catalogue is down.",
    )
    booking: Booking | None = field(
        resolver=resolvers.booking.booking,
        description=("A booking of yours; admins see any. Null for everyone else."),
    )
    my_page: MyPage | None = field(
        resolver=resolvers.my_page.my_page, description="Your own page. Needs a signed-in person."
    )


@strawberry.type(
    description=(
        "Changing. Run over HTTP POST only. Expected failures are members of the result; others "
        "stand in `errors`."
    )
)
class Mutation:
    """What can be changed."""

    sign_up: SignUpResult | None = mutation(
        resolver=resolvers.user.sign_up, description=("Make an account and sign in.")
    )
    log_in: LogInResult | None = mutation(resolver=resolvers.user.log_in, description="Sign in.")
    log_out: LogOutResult | None = mutation(
        resolver=resolvers.user.log_out,
        description="Sign out: the token stops working, open sockets close. Fine when nobody is signed in.",
    )
    register_concert: RegisterConcertResult | None = mutation(
        resolver=resolvers.concert.register_concert, description="Put a concert on sale. Admins only."
    )
    update_concert: UpdateConcertResult | None = mutation(
        resolver=resolvers.concert.update_concert, description="Change a concert. Admins only."
    )
    cancel_concert: CancelConcertResult | None = mutation(
        resolver=resolvers.concert.cancel_concert,
        description=(
            "Call a concert off: cancels every booking of it and refunds every captured payment. Admins only."
        ),
    )
    book_concert: BookConcertResult | None = mutation(
        resolver=resolvers.booking.book_concert,
        description=(
            "Hold seats, all or none. Checks in this order: found, input, cancelled, window, per-person "
            "limit, seats."
        ),
    )
    pay_booking: PayBookingResult | None = mutation(
        resolver=resolvers.payment.pay_booking, description="Pay a booking of yours. Never charges twice."
    )
    cancel_booking: CancelBookingResult | None = mutation(
        resolver=resolvers.booking.cancel_booking,
        description=(
            "Give a booking up before the concert starts: its owner or an admin. What was paid is refunded."
        ),
    )


@strawberry.type(
    description=(
        "Live states: first the one of now, then every later one. A burst may be merged; the last "
        "state never is missed."
    )
)
class Subscription:
    """What is pushed."""

    ticket_count = subscription(
        resolver=resolvers.booking.watch_ticket_count, description="A concert's live count, for everyone."
    )
    booking_status = subscription(
        resolver=resolvers.booking.watch_booking_status,
        description="A booking's state, for its owner and admins. Completes once it is final.",
    )
    my_booking_updates = subscription(
        resolver=resolvers.my_page.watch_my_booking_updates, description="Every booking of the viewer."
    )


def build_schema() -> strawberry.Schema:
    """The schema, ready to execute. May be called any number of times."""
    return strawberry.Schema(
        query=Query,
        mutation=Mutation,
        subscription=Subscription,
        config=StrawberryConfig(scalar_map={datetime: DATE_TIME}),
    )
