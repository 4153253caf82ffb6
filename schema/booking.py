"""Bookings, as their buyers see them."""

from datetime import datetime

import strawberry

from domain.base import TicketTypeId
from domain.booking import ITEMS_MAX, QUANTITY_MAX, BookingStatus
from domain.booking import Booking as BookingNoun
from domain.booking import BookingItem as BookingItemNoun
from schema.common import KEY_DESCRIPTION, FieldInfo, Kind, Money, Node, describe_enum, encode_id
from schema.concert import Concert, TicketType
from schema.payment import Payment

describe_enum(
    BookingStatus,
    "Where a booking stands. Treat a value you don't know like `PAYMENT_PENDING`.",
    {
        "AWAITING_PAYMENT": "The seats are held until `payBy`.",
        "PAYMENT_DEFERRED": (
            "The payment processor is overloaded or down and nothing was sent to it: the seats stay "
            "held, pay again between `retryPayAt` and `payBy`."
        ),
        "PAYMENT_PENDING": (
            "A payment is under way or its outcome is not known yet: the seats stay held while it is settled."
        ),
        "APPROVED": "Paid: one captured, not refunded payment exists.",
        "CANCELLED": "Given up; what was paid is given back.",
        "EXPIRED": "Not paid in time; the seats are on sale again.",
    },
)


@strawberry.type(description="The tickets of one type in a booking: the booking's own copy.")
class BookingItem:
    """One line of a booking."""

    raw_ticket_type_id: strawberry.Private[TicketTypeId]
    ticket_type_id: strawberry.ID = strawberry.field(description="The ticket type's id.")
    name: str = strawberry.field(description="The ticket type's name when the booking was made.")
    quantity: int = strawberry.field(description="How many tickets.")
    unit_price: Money = strawberry.field(description="Of one ticket, when the booking was made.")

    @strawberry.field(
        description="The catalogue's entry now. Null beside an error while that module is down."
    )
    async def ticket_type(self, info: FieldInfo) -> TicketType | None:
        """Batched."""
        noun = await info.context.loaders.ticket_type(self.raw_ticket_type_id)
        return None if noun is None else TicketType.of(noun)

    @classmethod
    def of(cls, noun: BookingItemNoun) -> "BookingItem":
        """As its buyer sees it."""
        return cls(
            raw_ticket_type_id=noun.ticket_type_id,
            ticket_type_id=encode_id(Kind.TICKET_TYPE, noun.ticket_type_id),
            name=noun.name,
            quantity=noun.quantity,
            unit_price=Money.of(noun.unit_price),
        )


@strawberry.type(
    description="Tickets of one concert that somebody holds or owns. Its buyer and admins see it."
)
class Booking(Node):
    """One booking."""

    noun: strawberry.Private[BookingNoun]
    concert_id: strawberry.ID = strawberry.field(description="The concert's id.")
    items: list[BookingItem] = strawberry.field(
        description=f"From 1 to {ITEMS_MAX}, one per ticket type, with names and prices as of then."
    )
    total: Money = strawberry.field(description="What is to pay or was paid.")
    status: BookingStatus = strawberry.field(description="Where the booking stands.")
    is_final: bool = strawberry.field(
        description="Whether nothing will change any more: cancelled or expired, and no money on its way."
    )
    pay_by: datetime | None = strawberry.field(
        description="Until when it can be paid. Null in every state that can't be paid."
    )
    retry_pay_at: datetime | None = strawberry.field(
        description="While `PAYMENT_DEFERRED`: don't pay again before this. Null otherwise."
    )
    version: int = strawberry.field(
        description="Rises with every change of the booking or its latest payment; may jump."
    )
    created_at: datetime = strawberry.field(description="When it was made.")
    updated_at: datetime = strawberry.field(description="When this version came to be.")

    @strawberry.field(
        description="The catalogue's entry now. Null beside an error while that module is down."
    )
    async def concert(self, info: FieldInfo) -> Concert | None:
        """Batched."""
        noun = await info.context.loaders.concert(self.noun.concert_id)
        return None if noun is None else Concert.of(noun)

    @strawberry.field(description="The latest attempt to pay it, null before the first.")
    async def payment(self, info: FieldInfo) -> Payment | None:
        """Batched, and shown as it stood in this version of the booking, so that the two never disagree."""
        booking = self.noun
        if booking.payment_id is None or booking.payment_status is None:
            return None
        found = await info.context.loaders.payment(booking.payment_id)
        if found is None:
            return None
        return Payment.of(found.as_of(booking.payment_status, decline_code=booking.decline_code))

    @classmethod
    def of(cls, noun: BookingNoun) -> "Booking":
        """As its buyer sees it."""
        return cls(
            id=encode_id(Kind.BOOKING, noun.id),
            noun=noun,
            concert_id=encode_id(Kind.CONCERT, noun.concert_id),
            items=[BookingItem.of(item) for item in noun.items],
            total=Money.of(noun.total),
            status=noun.status,
            is_final=noun.is_final,
            pay_by=noun.pay_by,
            retry_pay_at=retry_pay_at(noun),
            version=noun.version,
            created_at=noun.created_at,
            updated_at=noun.updated_at,
        )


def retry_pay_at(noun: BookingNoun) -> datetime | None:
    """When a deferred booking may be paid again, None for any other."""
    return noun.retry_pay_at if noun.status is BookingStatus.PAYMENT_DEFERRED else None


@strawberry.input(description="How many tickets of one type.")
class BookingItemInput:
    """A line of `bookConcert`."""

    ticket_type_id: strawberry.ID = strawberry.field(
        description="A ticket type of this concert, at most once per booking."
    )
    quantity: int = strawberry.field(
        description=f"From 1 to {QUANTITY_MAX}, and within the concert's `maxTicketsPerUser`."
    )


@strawberry.input(description="Which seats to hold.")
class BookConcertInput:
    """What `bookConcert` takes."""

    concert_id: strawberry.ID = strawberry.field(description="The concert.")
    items: list[BookingItemInput] = strawberry.field(
        description=f"From 1 to {ITEMS_MAX}. The seats are held all or none."
    )
    idempotency_key: str | None = strawberry.field(default=strawberry.UNSET, description=KEY_DESCRIPTION)


@strawberry.input(description="Which booking to give up.")
class CancelBookingInput:
    """What `cancelBooking` takes."""

    booking_id: strawberry.ID = strawberry.field(description="A booking of yours; admins may give any.")
    reason: str | None = strawberry.field(
        default=strawberry.UNSET, description="For the organiser, at most 500 characters."
    )
    idempotency_key: str | None = strawberry.field(default=strawberry.UNSET, description=KEY_DESCRIPTION)
