"""The whole shop as it should be: the sales of `model.py`, and what money does to bookings (DESIGN.md, "One payment").

The processor's intents are modelled too, so that every answer can be foretold from what was asked before.
"""

from dataclasses import dataclass, field
from enum import Enum

from domain.base import PaymentStatus
from domain.booking import BookingStatus
from domain.payment import IntentStatus
from tests.fake_processor import ACTION, DECLINED, OK
from tests.faults.history import Lines
from tests.faults.model import HOLDING, LIVE, OVER, Change, SaleModel

B, P, S = BookingStatus, PaymentStatus, IntentStatus
PAYABLE = HOLDING - {B.PAYMENT_PENDING}
OPEN_INTENT = {S.REQUIRES_PAYMENT_METHOD, S.REQUIRES_ACTION}
UNSETTLED = {P.PROCESSING, P.REQUIRES_ACTION, P.UNKNOWN}
# A processor's word about money wins over what was believed of these.
CAPTURABLE = UNSETTLED | {P.DECLINED, P.VOIDED}
OPEN_ATTEMPT = UNSETTLED | {P.REFUND_PENDING}


class Fault(Enum):
    """What goes wrong at the processor while somebody pays."""

    NONE = "none"
    CREATE_LOST = "create lost"
    CREATE_DONE_AND_LOST = "create done and lost"
    CREATE_BROKE = "create broke"
    NOT_SENT = "not sent"
    LOST = "lost"
    DONE_AND_LOST = "done and lost"


class Chore(Enum):
    """What comes of refunds and cancellations at the processor."""

    DONE = "done"
    LOST = "lost"  # done, and the answer lost
    REFUSED = "refused"


@dataclass(eq=False, slots=True)
class Intent:
    """One intent at the processor. `charge` numbers its charges, failed ones included."""

    status: IntentStatus = S.REQUIRES_PAYMENT_METHOD
    charge: int = 0
    is_refunded: bool = False
    is_disputed: bool = False
    # The charge whose verdict the shop knows.
    settled_charge: int = 0

    def confirm(self, method: str) -> None:
        """The card is charged, declined, or its owner is asked."""
        if self.status not in OPEN_INTENT:
            return
        if method == ACTION:
            self.status = S.REQUIRES_ACTION
        elif method in {OK, DECLINED}:
            self.status = S.SUCCEEDED if method == OK else S.REQUIRES_PAYMENT_METHOD
            self.charge += 1

    def authenticate(self, *, succeeds: bool) -> None:
        """The buyer is done with the bank's page."""
        if self.status is S.REQUIRES_ACTION:
            self.status = S.SUCCEEDED if succeeds else S.REQUIRES_PAYMENT_METHOD
            self.charge += succeeds

    def cancel(self) -> None:
        """It can't be charged any more, if it was not."""
        if self.status in OPEN_INTENT:
            self.status = S.CANCELED

    def refund(self) -> PaymentStatus:
        """Its money goes back, unless the card's bank has taken it."""
        if self.is_disputed:
            return P.REFUND_FAILED
        self.is_refunded = True
        return P.REFUNDED

    @property
    def is_back(self) -> bool:
        """Whether its money went back."""
        return self.status is S.SUCCEEDED and (self.is_refunded or self.is_disputed)


@dataclass(eq=False, slots=True)
class Attempt:
    """One confirm of an intent."""

    intent: Intent
    method: str
    status: PaymentStatus = P.PROCESSING
    # What the processor repeats under the refund's key, once it has said something there.
    refund_answer: PaymentStatus | None = None


@dataclass(eq=False, slots=True)
class BookingModel:
    """One booking. `intents`: all there are at the processor. `live`: the one that may still be charged, if known."""

    booking_id: str
    user_id: str
    concert_id: str
    items: Lines
    has_passed: bool = False
    is_extended: bool = False
    is_graced: bool = False
    was_approved: bool = False
    attempts: list[Attempt] = field(default_factory=list)
    intents: list[Intent] = field(default_factory=list)
    live: Intent | None = None
    # Made at the processor, and the answer that named it lost.
    unseen: Intent | None = None
    has_begun_to_pay: bool = False
    refunds_asked: list[Attempt] = field(default_factory=list)
    is_abandoned: bool = False

    def attempt_on(self, intent: Intent) -> Attempt | None:
        """The latest."""
        return next((attempt for attempt in reversed(self.attempts) if attempt.intent is intent), None)


@dataclass(slots=True)
class ShopModel:
    """Sales and bookings by id. Every method answers what the shop must, by the names of the API."""

    sales: dict[str, SaleModel]
    bookings: dict[str, BookingModel] = field(default_factory=dict)

    def status(self, booking: BookingModel) -> BookingStatus:
        """Where it stands."""
        return self.sales[booking.concert_id].bookings[booking.booking_id]

    def is_final(self, booking: BookingModel) -> bool:
        """Whether it is over and no money may still move."""
        return self.status(booking) in OVER and all(a.status not in OPEN_ATTEMPT for a in booking.attempts)

    # ------------------------------------------------------------ what people do
    def book(self, user_id: str, concert_id: str, items: Lines) -> str:
        """The seats are held, by `booked`, or why not."""
        return self.sales[concert_id].refusal(user_id, items) or "BookConcertSuccess"

    def booked(self, booking_id: str, user_id: str, concert_id: str, items: Lines) -> None:
        """The shop has given them this id."""
        booking = self.bookings[booking_id] = BookingModel(booking_id, user_id, concert_id, items)
        self._become(booking, B.AWAITING_PAYMENT)

    def cancel(self, booking: BookingModel) -> str:
        """By its owner."""
        status = self.status(booking)
        if status is B.CANCELLED:
            return "ALREADY_CANCELLED"
        if status is B.EXPIRED:
            return "HOLD_EXPIRED"
        self._end(booking, B.CANCELLED)
        return "CancelBookingSuccess"

    def pay(self, booking: BookingModel, method: str, fault: Fault) -> str:
        """With this method, while this goes wrong."""
        if (refusal := self._refusal_to_pay(booking)) is not None:
            return refusal
        last = booking.attempts[-1] if booking.attempts else None
        waits = last is not None and last.status is P.REQUIRES_ACTION
        if last is not None and waits:
            if last.method != method:
                last.intent.cancel()
            self.settle(booking, last.intent)
            if last.status not in {P.VOIDED, P.DECLINED}:
                return self.answer(booking, last)
            if (refusal := self._refusal_to_pay(booking)) is not None:
                return refusal
        booking.has_begun_to_pay = True
        intent = booking.live or self._created(booking, fault)
        booking.live = intent
        if intent is None:
            self._defer(booking)
            return "PaymentDeferred"
        attempt = Attempt(intent, method)
        booking.attempts.append(attempt)
        self._become(booking, B.PAYMENT_PENDING)
        return self._confirm(booking, attempt, fault)

    def answer(self, booking: BookingModel, attempt: Attempt) -> str:
        """What a payer is told of this attempt as it stands."""
        match attempt.status:
            case P.VOIDED:
                return self._over(booking) or "PaymentDeferred"
            case P.DECLINED:
                return "PAYMENT_DECLINED"
            case P.PROCESSING | P.UNKNOWN:
                return "PaymentPending"
            case P.REQUIRES_ACTION:
                return self._over(booking) or "PaymentActionRequired"
        over = None if booking.was_approved else self._over(booking)
        return over or "PayBookingSuccess"

    def _created(self, booking: BookingModel, fault: Fault) -> Intent | None:
        """The booking's new intent, None where it is not there or not known."""
        if fault is Fault.CREATE_BROKE:
            booking.unseen = None  # the next one is asked for under another key
        if fault in {Fault.CREATE_BROKE, Fault.CREATE_LOST}:
            return None
        if booking.unseen is None:
            booking.unseen = Intent()
            booking.intents.append(booking.unseen)
        if fault is Fault.CREATE_DONE_AND_LOST:
            return None
        created, booking.unseen = booking.unseen, None
        return created

    def _confirm(self, booking: BookingModel, attempt: Attempt, fault: Fault) -> str:
        if fault is Fault.NOT_SENT:
            attempt.status = P.VOIDED
            self._return(booking)
            self._defer(booking)
            return "PaymentDeferred"
        if fault is Fault.LOST:
            attempt.status = P.UNKNOWN
            return "PaymentPending"
        attempt.intent.confirm(attempt.method)
        if fault is Fault.DONE_AND_LOST:
            attempt.status = P.UNKNOWN
            return "PaymentPending"
        if attempt.method not in {OK, DECLINED, ACTION}:
            attempt.status = P.VOIDED
            self._return(booking)
            return "INVALID_INPUT"
        self.settle(booking, attempt.intent)
        return self.answer(booking, attempt)

    def _refusal_to_pay(self, booking: BookingModel) -> str | None:
        if self.sales[booking.concert_id].is_cancelled:
            return "CONCERT_CANCELLED"
        status = self.status(booking)
        if status in PAYABLE:
            return "HOLD_EXPIRED" if booking.has_passed else None
        return {
            B.PAYMENT_PENDING: "PAYMENT_IN_PROGRESS",
            B.APPROVED: "ALREADY_PAID",
            B.CANCELLED: "ALREADY_CANCELLED",
            B.EXPIRED: "HOLD_EXPIRED",
        }[status]

    def _over(self, booking: BookingModel) -> str | None:
        return self._refusal_to_pay(booking) if self.status(booking) in OVER else None

    # ------------------------------------------------------------ what the processor says
    def settle(self, booking: BookingModel, intent: Intent, *, is_refund_failed: bool = False) -> None:
        """The shop has heard how the intent stands, and maybe that a refund of it came back."""
        attempt = booking.attempt_on(intent)
        if attempt is not None:
            match intent.status:
                case S.SUCCEEDED:
                    self._captured(booking, attempt, intent)
                    if is_refund_failed and not intent.is_back and attempt.status is P.REFUNDED:
                        attempt.status = P.REFUND_FAILED
                case S.CANCELED:
                    self._came_to_nothing(booking, attempt, P.VOIDED)
                case S.REQUIRES_ACTION:
                    if attempt.status in UNSETTLED - {P.REQUIRES_ACTION}:
                        attempt.status = P.REQUIRES_ACTION
                        self._return(booking)
                case S.REQUIRES_PAYMENT_METHOD:
                    is_new = intent.charge != intent.settled_charge
                    if attempt.status is P.REQUIRES_ACTION or is_new:
                        self._came_to_nothing(booking, attempt, P.DECLINED)
            intent.settled_charge = intent.charge
        if booking.live is intent and intent.status not in OPEN_INTENT:
            booking.live = None
            booking.has_begun_to_pay = False

    def _captured(self, booking: BookingModel, attempt: Attempt, intent: Intent) -> None:
        if attempt.status in CAPTURABLE:
            sale, status = self.sales[booking.concert_id], self.status(booking)
            is_late = status is B.EXPIRED and sale.refusal(booking.user_id, booking.items) is None
            if status in HOLDING or is_late:
                attempt.status = P.CAPTURED
                self._become(booking, B.APPROVED)
            else:
                attempt.status = P.REFUND_PENDING
                booking.refunds_asked.append(attempt)
        if intent.is_back and attempt.status in {P.CAPTURED, P.REFUND_PENDING, P.REFUND_FAILED}:
            attempt.status = P.REFUNDED
            if self.status(booking) is B.APPROVED:
                self._become(booking, B.CANCELLED)

    def _came_to_nothing(self, booking: BookingModel, attempt: Attempt, status: PaymentStatus) -> None:
        if attempt.status in UNSETTLED:
            attempt.status = status
            self._return(booking)

    # ------------------------------------------------------------ what the worker does
    def expire(self) -> list[str]:
        """Every hold that has passed is over; whose they were."""
        passed = [b for b in self.bookings.values() if b.has_passed and self.status(b) in PAYABLE]
        for booking in passed:
            self._end(booking, B.EXPIRED)
        return [booking.booking_id for booking in passed]

    def reconcile(self, booking: BookingModel) -> None:
        """One look at its live intent; what is not confirmed by then never will be."""
        intent = booking.live
        if intent is None:
            return
        self.settle(booking, intent)
        attempt = booking.attempt_on(intent)
        if attempt is None:
            return
        is_unwanted = self.status(booking) in OVER and attempt.status in UNSETTLED | {P.DECLINED}
        if is_unwanted or attempt.status in {P.PROCESSING, P.UNKNOWN}:
            intent.cancel()
            self.settle(booking, intent)

    def refund(self, booking: BookingModel, attempt: Attempt, chore: Chore) -> None:
        """The refund was asked for and is tried once."""
        if attempt.status is P.REFUND_PENDING:
            if chore is Chore.REFUSED:
                attempt.status = P.REFUND_FAILED
            else:
                attempt.refund_answer = attempt.refund_answer or attempt.intent.refund()
            if chore is Chore.DONE and attempt.refund_answer is not None:
                attempt.status = attempt.refund_answer
        if attempt.status is not P.REFUND_PENDING:
            booking.refunds_asked.remove(attempt)

    def close_intent(self, booking: BookingModel, chore: Chore) -> None:
        """The over booking's live intent is cancelled."""
        if booking.live is None:
            booking.is_abandoned = False
            return
        if chore is not Chore.REFUSED:
            booking.live.cancel()
        if chore is Chore.DONE:
            self.settle(booking, booking.live)
            booking.is_abandoned = False

    def retry_refunds(self) -> None:
        """Those that failed are asked for anew."""
        for booking in self.bookings.values():
            for attempt in booking.attempts:
                if attempt.status is P.REFUND_FAILED:
                    attempt.status, attempt.refund_answer = P.REFUND_PENDING, None
                    booking.refunds_asked.append(attempt)

    def close_sale(self, concert_id: str) -> None:
        """The concert is cancelled."""
        self.sales[concert_id].close()

    def cancel_all(self, concert_id: str) -> None:
        """Every live booking of the cancelled concert is cancelled."""
        for booking in self.bookings.values():
            if booking.concert_id == concert_id and self.status(booking) in LIVE:
                self._end(booking, B.CANCELLED)

    # ------------------------------------------------------------ how a booking moves
    def _become(self, booking: BookingModel, status: BookingStatus) -> None:
        sale = self.sales[booking.concert_id]
        was = sale.bookings.get(booking.booking_id)
        sale.apply(Change(booking.booking_id, booking.user_id, booking.items, was, status))
        booking.was_approved = booking.was_approved or status is B.APPROVED

    def _end(self, booking: BookingModel, status: BookingStatus) -> None:
        for attempt in booking.attempts:
            if attempt.status is P.CAPTURED:
                attempt.status = P.REFUND_PENDING
                booking.refunds_asked.append(attempt)
        self._become(booking, status)
        booking.is_abandoned = booking.is_abandoned or booking.has_begun_to_pay

    def _defer(self, booking: BookingModel) -> None:
        self._become(booking, B.PAYMENT_DEFERRED)
        if not booking.is_extended:
            booking.has_passed = False
        booking.is_extended = True

    def _return(self, booking: BookingModel) -> None:
        """Payable again, where it waited for this; the first time with time left."""
        if self.status(booking) is not B.PAYMENT_PENDING:
            return
        self._become(booking, B.AWAITING_PAYMENT)
        if not booking.is_graced:
            booking.has_passed = False
        booking.is_graced = True
