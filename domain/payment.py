"""Payments: one attempt to collect a booking's total, its states, and what a processor may answer.

`payment` owns attempts and refunds. A booking has at most one live intent at the processor; every confirm of
it is an attempt, a `Payment` of its own.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum

from domain.base import BookingId, DomainError, Money, PaymentId, UserId
from domain.base import PaymentStatus as PaymentStatus

# While an attempt is in one of these, money may still move.
OPEN_STATUSES = frozenset(
    {
        PaymentStatus.PROCESSING,
        PaymentStatus.REQUIRES_ACTION,
        PaymentStatus.UNKNOWN,
        PaymentStatus.REFUND_PENDING,
    }
)

# The money was here, and may be again with the buyer.
CAPTURED_STATUSES = frozenset(
    {
        PaymentStatus.CAPTURED,
        PaymentStatus.REFUND_PENDING,
        PaymentStatus.REFUNDED,
        PaymentStatus.REFUND_FAILED,
    }
)

# Every allowed change of an attempt; anything else is a programmer's mistake. DECLINED and VOIDED may still turn out
# captured: a processor's late word about money always wins over ours.
TRANSITIONS: dict[PaymentStatus, frozenset[PaymentStatus]] = {
    PaymentStatus.PROCESSING: frozenset(
        {
            PaymentStatus.REQUIRES_ACTION,
            PaymentStatus.CAPTURED,
            PaymentStatus.DECLINED,
            PaymentStatus.UNKNOWN,
            PaymentStatus.VOIDED,
        }
    ),
    PaymentStatus.REQUIRES_ACTION: frozenset(
        {
            PaymentStatus.CAPTURED,
            PaymentStatus.DECLINED,
            PaymentStatus.VOIDED,
        }
    ),
    PaymentStatus.UNKNOWN: frozenset(
        {
            PaymentStatus.REQUIRES_ACTION,
            PaymentStatus.CAPTURED,
            PaymentStatus.DECLINED,
            PaymentStatus.VOIDED,
        }
    ),
    PaymentStatus.DECLINED: frozenset({PaymentStatus.CAPTURED}),
    PaymentStatus.VOIDED: frozenset({PaymentStatus.CAPTURED}),
    PaymentStatus.CAPTURED: frozenset({PaymentStatus.REFUND_PENDING, PaymentStatus.REFUNDED}),
    PaymentStatus.REFUND_PENDING: frozenset({PaymentStatus.REFUNDED, PaymentStatus.REFUND_FAILED}),
    PaymentStatus.REFUND_FAILED: frozenset({PaymentStatus.REFUND_PENDING, PaymentStatus.REFUNDED}),
    # A bank may send a refund back days after the processor called it through.
    PaymentStatus.REFUNDED: frozenset({PaymentStatus.REFUND_FAILED}),
}


@dataclass(frozen=True, slots=True)
class Payment:
    """One attempt. Units: `amount` in the currency's minor unit; times are aware UTC."""

    id: PaymentId
    booking_id: BookingId
    user_id: UserId
    amount: Money
    status: PaymentStatus
    payment_method_id: str
    intent_id: str
    decline_code: str | None
    created_at: datetime
    captured_at: datetime | None
    refunded_at: datetime | None

    def becoming(self, status: PaymentStatus, now: datetime, *, decline_code: str | None = None) -> "Payment":
        """The attempt in its next state. Raises: AssertionError for what the table does not list."""
        assert status in TRANSITIONS[self.status], f"{self.status.value} does not become {status.value}"
        return replace(
            self,
            status=status,
            decline_code=decline_code,
            captured_at=now if status is PaymentStatus.CAPTURED else self.captured_at,
            refunded_at=now if status is PaymentStatus.REFUNDED else None,
        )

    def as_of(self, status: PaymentStatus, *, decline_code: str | None) -> "Payment":
        """The attempt as it stood in this status: it may have moved on since its booking was read."""
        return replace(
            self,
            status=status,
            decline_code=decline_code,
            captured_at=self.captured_at if status in CAPTURED_STATUSES else None,
            refunded_at=self.refunded_at if status is PaymentStatus.REFUNDED else None,
        )

    @property
    def is_open(self) -> bool:
        """Whether money may still move."""
        return self.status in OPEN_STATUSES


class IntentStatus(Enum):
    """Where a PaymentIntent stands at the processor.

    Source: Stripe API reference, "The PaymentIntent object", attribute `status`.
    """

    REQUIRES_PAYMENT_METHOD = "requires_payment_method"
    REQUIRES_CONFIRMATION = "requires_confirmation"
    REQUIRES_ACTION = "requires_action"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    CANCELED = "canceled"


@dataclass(frozen=True, slots=True)
class Intent:
    """What the processor says of one PaymentIntent.

    `charge_id` is the newest charge, a failed one included: it tells one attempt's decline from an earlier one's.
    `decline_code` is set after a declined confirm. `refunded_minor` counts succeeded and pending refunds;
    `is_disputed` is true once the cardholder's bank took the money back, `is_refund_failed` where a webhook told that
    a refund came back: only then less refunded than before is a fact, and not an answer from before the refund.
    """

    id: str
    status: IntentStatus
    payment_id: PaymentId | None
    charge_id: str | None = None
    payment_method_id: str | None = None
    decline_code: str | None = None
    client_secret: str = ""
    redirect_url: str | None = None
    refunded_minor: int = 0
    is_disputed: bool = False
    is_refund_failed: bool = False


class RefundStatus(Enum):
    """Where a refund stands at the processor (Stripe API reference, "The Refund object")."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class GatewayError(Exception):
    """The processor gave no usable answer. Which subclass says whether money may have moved."""


class NotSent(GatewayError):
    """Nothing reached the processor or it refused to look at it: nothing was charged, come back later.

    The open breaker, the full bulkhead, 401, 403 and 429.
    """

    def __init__(self, message: str, *, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class OutcomeUnknown(GatewayError):
    """It was sent and the answer is missing or says nothing: time-out, reset, 409, 5xx.

    `is_stored` is true where the processor answered with an error that its idempotency key will repeat (a 5xx).
    """

    def __init__(self, message: str, *, is_stored: bool) -> None:
        super().__init__(message)
        self.is_stored = is_stored


class RequestRefused(GatewayError):
    """The processor understood and refused (any other 4xx): nothing was charged and asking again changes nothing.

    `param` names the parameter it disliked, where it said so.
    """

    def __init__(self, message: str, *, code: str | None, param: str | None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


@dataclass(eq=False)
class PaymentDeclined(DomainError):
    """The card was declined; the seats stay held and another method may be tried under a new key."""

    booking_id: BookingId
    decline_code: str
    code = "PAYMENT_DECLINED"

    @property
    def message(self) -> str:
        return "The card was declined. Try another card, or ask the bank."
