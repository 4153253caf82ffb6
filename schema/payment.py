"""Payments, as clients see them."""

from datetime import datetime

import strawberry

from domain.payment import Payment as PaymentNoun
from domain.payment import PaymentStatus
from schema.common import Kind, Money, Node, describe_enum, encode_id

describe_enum(
    PaymentStatus,
    "Where an attempt to pay stands. Treat a value you don't know like `UNKNOWN`.",
    {
        "PROCESSING": "Sent to the processor, not answered yet.",
        "REQUIRES_ACTION": "The buyer must authenticate, e.g. by 3-D Secure.",
        "CAPTURED": "The money is here.",
        "DECLINED": "The card was declined: nothing was charged.",
        "UNKNOWN": "Sent, and the answer got lost. It is being settled and never charged twice.",
        "VOIDED": "Certainly never charged.",
        "REFUND_PENDING": "Captured before, and on its way back.",
        "REFUNDED": "Captured before, and given back in full.",
        "REFUND_FAILED": "The refund was refused by the processor. The organiser sees to it.",
    },
)


@strawberry.type(description="One attempt to pay a booking. Its buyer and admins see it.")
class Payment(Node):
    """One attempt."""

    amount: Money = strawberry.field(description="The booking's total.")
    status: PaymentStatus = strawberry.field(description="Where the attempt stands.")
    decline_code: str | None = strawberry.field(
        description="Why the card was declined, in the processor's words, e.g. `insufficient_funds`."
    )
    created_at: datetime = strawberry.field(description="When it was sent to the processor.")
    captured_at: datetime | None = strawberry.field(description="When the money was taken, null before.")
    refunded_at: datetime | None = strawberry.field(description="When the money was given back, null before.")

    @classmethod
    def of(cls, noun: PaymentNoun) -> "Payment":
        """As its buyer sees it."""
        return cls(
            id=encode_id(Kind.PAYMENT, noun.id),
            amount=Money.of(noun.amount),
            status=noun.status,
            decline_code=noun.decline_code,
            created_at=noun.created_at,
            captured_at=noun.captured_at,
            refunded_at=noun.refunded_at,
        )


@strawberry.input(description="Which booking to pay, and how.")
class PayBookingInput:
    """What `payBooking` takes."""

    booking_id: strawberry.ID = strawberry.field(
        description="A booking of yours that can be paid: see its `payBy`."
    )
    payment_method_id: str = strawberry.field(
        description="A Stripe PaymentMethod, e.g. `pm_card_visa`, made by Stripe.js in the buyer's browser."
    )
    idempotency_key: str | None = strawberry.field(
        default=strawberry.UNSET,
        description=(
            "From 1 to 255 characters of your choice, one per try. Sent again, it never charges again, "
            "and answers where that attempt stands now. Kept for 72 hours."
        ),
    )
