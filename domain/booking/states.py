"""A booking, its states, and which action leads from one to the next."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum

from domain.base import BookingId, ConcertId, Money, PaymentId, PaymentStatus, TicketTypeId, UserId
from domain.booking.sale import Quantities, Quantity

# After an attempt came to nothing a buyer gets at least this long to try again, once per booking.
GRACE_S = 120
QUANTITY_MAX = 1_000_000
ITEMS_MAX = 20


class BookingStatus(Enum):
    """Where a booking stands."""

    AWAITING_PAYMENT = "AWAITING_PAYMENT"
    PAYMENT_DEFERRED = "PAYMENT_DEFERRED"
    PAYMENT_PENDING = "PAYMENT_PENDING"
    APPROVED = "APPROVED"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"


PAYABLE = frozenset({BookingStatus.AWAITING_PAYMENT, BookingStatus.PAYMENT_DEFERRED})
HOLDING = PAYABLE | {BookingStatus.PAYMENT_PENDING}
LIVE = HOLDING | {BookingStatus.APPROVED}


class Action(Enum):
    """What can happen to a booking."""

    SEND = "send"  # an attempt is committed as sent
    DEFER = "defer"  # nothing was sent: the processor is overloaded or down
    RETURN = "return"  # the attempt came to nothing: declined, action required, nothing charged
    CAPTURE = "capture"  # the money is here
    EXPIRE = "expire"  # payBy passed
    CANCEL = "cancel"  # by its owner, an admin, or because the concert was cancelled
    REVERSE = "reverse"  # refunded or disputed at the processor


_S, _A = BookingStatus, Action
# The whole state machine. What is not listed is refused. EXPIRED --capture--> APPROVED needs free seats, the limit
# and a concert that is on; otherwise the money goes back and the booking stays as it is.
TRANSITIONS: dict[tuple[BookingStatus, Action], BookingStatus] = {
    (_S.AWAITING_PAYMENT, _A.SEND): _S.PAYMENT_PENDING,
    (_S.PAYMENT_DEFERRED, _A.SEND): _S.PAYMENT_PENDING,
    (_S.AWAITING_PAYMENT, _A.DEFER): _S.PAYMENT_DEFERRED,
    (_S.PAYMENT_DEFERRED, _A.DEFER): _S.PAYMENT_DEFERRED,
    (_S.PAYMENT_PENDING, _A.RETURN): _S.AWAITING_PAYMENT,
    (_S.AWAITING_PAYMENT, _A.CAPTURE): _S.APPROVED,
    (_S.PAYMENT_DEFERRED, _A.CAPTURE): _S.APPROVED,
    (_S.PAYMENT_PENDING, _A.CAPTURE): _S.APPROVED,
    (_S.EXPIRED, _A.CAPTURE): _S.APPROVED,
    (_S.AWAITING_PAYMENT, _A.EXPIRE): _S.EXPIRED,
    (_S.PAYMENT_DEFERRED, _A.EXPIRE): _S.EXPIRED,
    (_S.AWAITING_PAYMENT, _A.CANCEL): _S.CANCELLED,
    (_S.PAYMENT_DEFERRED, _A.CANCEL): _S.CANCELLED,
    (_S.PAYMENT_PENDING, _A.CANCEL): _S.CANCELLED,
    (_S.APPROVED, _A.CANCEL): _S.CANCELLED,
    (_S.APPROVED, _A.REVERSE): _S.CANCELLED,
}


@dataclass(frozen=True, slots=True)
class BookingItem:
    """The booking's own copy of one line: name and price as they were when it was made."""

    ticket_type_id: TicketTypeId
    name: str
    quantity: int
    unit_price: Money


@dataclass(frozen=True, slots=True)
class Booking:
    """One booking with the standing of its latest payment. `version` rises with every change of either.

    `is_final`: CANCELLED or EXPIRED and no money may still move. `is_extended` and `is_graced` remember that the
    one extension (deferred) and the one grace (an attempt came to nothing) were given.
    """

    id: BookingId
    user_id: UserId
    concert_id: ConcertId
    items: tuple[BookingItem, ...]
    total: Money
    status: BookingStatus
    is_final: bool
    hold_until: datetime
    is_extended: bool
    is_graced: bool
    retry_pay_at: datetime | None
    payment_id: PaymentId | None
    payment_status: PaymentStatus | None
    decline_code: str | None
    version: int
    created_at: datetime
    updated_at: datetime

    @property
    def quantities(self) -> Quantities:
        """The seats it takes."""
        return tuple(Quantity(item.ticket_type_id, item.quantity) for item in self.items)

    @property
    def ticket_quantity(self) -> int:
        """All its tickets together."""
        return sum(item.quantity for item in self.items)

    @property
    def pay_by(self) -> datetime | None:
        """Until when it can be paid, None where it can't."""
        return self.hold_until if self.status in PAYABLE else None

    def after(self, action: Action, now: datetime) -> "Booking":
        """The booking in its next state. Raises: AssertionError for what the table does not list."""
        to = TRANSITIONS.get((self.status, action))
        assert to is not None, f"{self.status.value} does not allow {action.value}"
        return replace(
            self,
            status=to,
            is_final=to in {BookingStatus.CANCELLED, BookingStatus.EXPIRED},
            retry_pay_at=None,
            version=self.version + 1,
            updated_at=now,
        )

    def showing(
        self,
        payment_id: PaymentId,
        *,
        status: PaymentStatus,
        decline_code: str | None,
        money_may_move: bool,
    ) -> "Booking":
        """With its latest payment's standing; `money_may_move` is about all its payments."""
        is_over = self.status in {BookingStatus.CANCELLED, BookingStatus.EXPIRED}
        return replace(
            self,
            payment_id=payment_id,
            payment_status=status,
            decline_code=decline_code,
            is_final=is_over and not money_may_move,
        )

    def touched(self, now: datetime) -> "Booking":
        """The same state with a new version: only its latest payment changed."""
        return replace(self, version=self.version + 1, updated_at=now)

    def deferred(
        self, now: datetime, *, hold_s: int, starts_at: datetime, retry_pay_at: datetime
    ) -> "Booking":
        """Pay a little later: the first time the hold starts anew, never past the concert's start."""
        until = self.hold_until
        if not self.is_extended:
            until = max(until, min(now + timedelta(seconds=hold_s), starts_at))
        moved = self.after(Action.DEFER, now)
        return replace(moved, hold_until=until, is_extended=True, retry_pay_at=retry_pay_at)

    def returned(self, now: datetime) -> "Booking":
        """The attempt came to nothing: payable again, once with at least GRACE_S left."""
        moved = self.after(Action.RETURN, now)
        if self.is_graced:
            return moved
        return replace(
            moved, hold_until=max(self.hold_until, now + timedelta(seconds=GRACE_S)), is_graced=True
        )
