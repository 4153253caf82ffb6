"""What the processor's word leads to, decided in memory: case after case of one concert, under the locks of all.

Nothing is read or written here. A verdict changes the case and leaves on the docket what is to be written.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime

from domain.base import PaymentId, PaymentStatus, UserId
from domain.booking import HOLDING, Action, Booking, BookingStatus, Sale
from domain.events import RefundRequested
from domain.payment import Intent, IntentStatus, Payment
from domain.ports import IntentRecord
from domain.use_cases.booking import Change, showing

UNSETTLED = frozenset({PaymentStatus.PROCESSING, PaymentStatus.REQUIRES_ACTION, PaymentStatus.UNKNOWN})
# We did not count on this money any more or not yet; the processor's word about it wins.
CAPTURABLE = UNSETTLED | {PaymentStatus.DECLINED, PaymentStatus.VOIDED}
# Money that was here, and may turn out to be back with the buyer.
RETURNABLE = frozenset({PaymentStatus.CAPTURED, PaymentStatus.REFUND_PENDING, PaymentStatus.REFUND_FAILED})


@dataclass(frozen=True, slots=True)
class Settled:
    """Where the booking and the intent's latest attempt stand now."""

    booking: Booking
    payment: Payment


@dataclass(slots=True)
class Case:
    """One booking under its lock, what the processor says of its intent, and where it stands by now."""

    intent: Intent
    booking: Booking
    payments: list[Payment]
    attempt: Payment
    record: IntentRecord

    @property
    def is_back(self) -> bool:
        """Whether the money came and did not stay."""
        intent = self.intent
        return intent.is_disputed or intent.refunded_minor >= self.attempt.amount.amount_minor

    @property
    def may_move_stock(self) -> bool:
        """Whether the verdict may move the stock, so that the sale must be locked for it."""
        if self.intent.status is not IntentStatus.SUCCEEDED:
            return False
        if self.attempt.status in CAPTURABLE and self.booking.status in HOLDING | {BookingStatus.EXPIRED}:
            return True
        is_kept = self.booking.status is BookingStatus.APPROVED
        return is_kept and self.is_back and self.attempt.status in RETURNABLE

    @property
    def is_late(self) -> bool:
        """Whether the money may have come after the hold had passed: the seats must be free still."""
        return self.may_move_stock and self.booking.status is BookingStatus.EXPIRED


@dataclass(slots=True)
class Docket:
    """Cases of one concert, decided one after the other, and what is to be written for all of them.

    `sale` is as it is after those decided by now, and so is `owned`: the live tickets of those whose money is late.
    """

    now: datetime
    sale: Sale
    owned: Counter[UserId]
    changes: list[Change] = field(default_factory=list)
    payments: list[tuple[Payment, Payment]] = field(default_factory=list)
    refunds: list[RefundRequested] = field(default_factory=list)
    actions: dict[PaymentId, tuple[str, str | None]] = field(default_factory=dict)
    intents: list[IntentRecord] = field(default_factory=list)


def decide(docket: Docket, case: Case) -> Settled:
    """Booking and payment agree with what the processor says of the intent."""
    intent, attempt, known = case.intent, case.attempt, case.record
    if intent.status is IntentStatus.SUCCEEDED:
        _succeeded(docket, case)
    elif intent.status is IntentStatus.CANCELED:
        _came_to_nothing(docket, case, PaymentStatus.VOIDED)
    elif intent.status is IntentStatus.REQUIRES_ACTION:
        _action_required(docket, case)
    elif intent.status is IntentStatus.REQUIRES_PAYMENT_METHOD and _is_declined(case):
        decline_code = intent.decline_code or "card_declined"
        _came_to_nothing(docket, case, PaymentStatus.DECLINED, decline_code=decline_code)
    if case.attempt != attempt:
        docket.payments.append((attempt, case.attempt))
    is_closed = intent.status in {IntentStatus.SUCCEEDED, IntentStatus.CANCELED}
    learned = replace(known, is_closed=is_closed, charge_id=intent.charge_id or known.charge_id)
    if learned != known:
        docket.intents.append(learned)
    return Settled(case.booking, case.attempt)


def _is_declined(case: Case) -> bool:
    """Whether this attempt was declined. An earlier attempt's failed charge says nothing about a later one."""
    if case.attempt.status is PaymentStatus.REQUIRES_ACTION:
        return True
    return case.intent.charge_id is not None and case.intent.charge_id != case.record.charge_id


def _succeeded(docket: Docket, case: Case) -> None:
    if case.attempt.status in CAPTURABLE:
        _captured(docket, case)
    if case.is_back and case.attempt.status in RETURNABLE:
        _returned_money(docket, case)
    elif case.intent.is_refund_failed and not case.is_back and case.attempt.status is PaymentStatus.REFUNDED:
        _move_attempt(docket, case, PaymentStatus.REFUND_FAILED)
        _touch(docket, case)


def _captured(docket: Docket, case: Case) -> None:
    """The money is here: the booking is APPROVED in the same transaction, or the money goes back, once."""
    _move_attempt(docket, case, PaymentStatus.CAPTURED)
    if case.booking.status in HOLDING:
        _change(docket, case, Action.CAPTURE, docket.sale.with_sold(case.booking.quantities))
    elif case.booking.status is BookingStatus.EXPIRED and _can_sell_again(docket, case.booking):
        docket.owned[case.booking.user_id] += case.booking.ticket_quantity
        _change(docket, case, Action.CAPTURE, docket.sale.with_sold_again(case.booking.quantities))
    else:
        docket.refunds.append(RefundRequested(case.booking.id, case.attempt.id))
        _move_attempt(docket, case, PaymentStatus.REFUND_PENDING)
        _touch(docket, case)


def _can_sell_again(docket: Docket, booking: Booking) -> bool:
    """Whether the seats of an expired hold are free, and still this buyer's to have."""
    sale = docket.sale
    if sale.is_cancelled or sale.halted_at is not None:
        return False
    tickets = docket.owned[booking.user_id] + booking.ticket_quantity
    return tickets <= sale.max_tickets_per_user and sale.has_seats(booking.quantities)


def _returned_money(docket: Docket, case: Case) -> None:
    """The money went back. An approved booking was reversed at the processor: it is CANCELLED."""
    _move_attempt(docket, case, PaymentStatus.REFUNDED)
    if case.booking.status is not BookingStatus.APPROVED:
        _touch(docket, case)
        return
    docket.owned[case.booking.user_id] -= case.booking.ticket_quantity
    _change(docket, case, Action.REVERSE, docket.sale.with_sold_released(case.booking.quantities))


def _action_required(docket: Docket, case: Case) -> None:
    if case.attempt.status not in UNSETTLED:
        return
    docket.actions[case.attempt.id] = (case.intent.client_secret, case.intent.redirect_url)
    if case.attempt.status is PaymentStatus.REQUIRES_ACTION:
        return
    _move_attempt(docket, case, PaymentStatus.REQUIRES_ACTION)
    _return(docket, case)


def _came_to_nothing(
    docket: Docket, case: Case, status: PaymentStatus, *, decline_code: str | None = None
) -> None:
    """The attempt is over and nothing was charged."""
    if case.attempt.status not in UNSETTLED:
        return
    _move_attempt(docket, case, status, decline_code=decline_code)
    _return(docket, case)


# ---------------------------------------------------------------- what is left on the docket
def _move_attempt(
    docket: Docket, case: Case, status: PaymentStatus, *, decline_code: str | None = None
) -> None:
    moved = case.attempt.becoming(status, docket.now, decline_code=decline_code)
    case.payments[case.payments.index(case.attempt)] = moved
    case.attempt = moved


def _return(docket: Docket, case: Case) -> None:
    """A booking that waited for this attempt can be paid again."""
    if case.booking.status is BookingStatus.PAYMENT_PENDING:
        _record(docket, case, case.booking.returned(docket.now))
    else:
        _touch(docket, case)


def _touch(docket: Docket, case: Case) -> None:
    """Only the payment's standing changed."""
    _record(docket, case, case.booking.touched(docket.now))


def _change(docket: Docket, case: Case, action: Action, moved: Sale) -> None:
    """The booking's state changed, and the stock with it."""
    docket.sale = moved
    _record(docket, case, case.booking.after(action, docket.now))


def _record(docket: Docket, case: Case, booking: Booking) -> None:
    new = showing(booking, case.payments)
    docket.changes.append(Change(case.booking, new, docket.sale))
    case.booking = new
