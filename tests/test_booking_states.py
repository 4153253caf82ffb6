"""The state machine of a booking and of a payment: every pair of state and action, allowed or refused."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product

import pytest

from domain.base import BookingId, ConcertId, Money, PaymentId, PaymentStatus, TicketTypeId, UserId
from domain.booking import (
    GRACE_S,
    Action,
    Booking,
    BookingItem,
    BookingState,
    BookingStatus,
    check_cancellable,
    check_payable,
)
from domain.payment import TRANSITIONS as PAYMENT_TRANSITIONS
from domain.payment import Payment

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
HOLD_S = 600
STARTS_AT = NOW + timedelta(days=1)

# Written out from the contract and the design, not read from the code.
ALLOWED = {
    ("AWAITING_PAYMENT", "send"): "PAYMENT_PENDING",
    ("AWAITING_PAYMENT", "defer"): "PAYMENT_DEFERRED",
    ("AWAITING_PAYMENT", "capture"): "APPROVED",
    ("AWAITING_PAYMENT", "expire"): "EXPIRED",
    ("AWAITING_PAYMENT", "cancel"): "CANCELLED",
    ("PAYMENT_DEFERRED", "send"): "PAYMENT_PENDING",
    ("PAYMENT_DEFERRED", "defer"): "PAYMENT_DEFERRED",
    ("PAYMENT_DEFERRED", "capture"): "APPROVED",
    ("PAYMENT_DEFERRED", "expire"): "EXPIRED",
    ("PAYMENT_DEFERRED", "cancel"): "CANCELLED",
    ("PAYMENT_PENDING", "return"): "AWAITING_PAYMENT",
    ("PAYMENT_PENDING", "capture"): "APPROVED",
    ("PAYMENT_PENDING", "cancel"): "CANCELLED",
    ("APPROVED", "cancel"): "CANCELLED",
    ("APPROVED", "reverse"): "CANCELLED",
    ("EXPIRED", "capture"): "APPROVED",
}


def a_booking(status: BookingStatus = BookingStatus.AWAITING_PAYMENT) -> Booking:
    """One ticket, held for ten minutes from NOW."""
    return Booking(
        id=BookingId("b"),
        user_id=UserId("u"),
        concert_id=ConcertId("c"),
        items=(BookingItem(TicketTypeId("t"), "Standing", 1, Money(3_500, "EUR")),),
        total=Money(3_500, "EUR"),
        status=status,
        is_final=False,
        hold_until=NOW + timedelta(seconds=HOLD_S),
        is_extended=False,
        is_graced=False,
        retry_pay_at=None,
        payment_id=None,
        payment_status=None,
        decline_code=None,
        version=7,
        created_at=NOW,
        updated_at=NOW,
    )


@pytest.mark.parametrize(("status", "action"), list(product(BookingStatus, Action)))
def test_every_pair_of_state_and_action_leads_where_the_design_says(
    status: BookingStatus, action: Action
) -> None:
    """An allowed action raises the version by one; any other is refused outright."""
    to = ALLOWED.get((status.value, action.value))
    later = NOW + timedelta(seconds=1)
    if to is None:
        with pytest.raises(AssertionError):
            a_booking(status).after(action, later)
        return
    moved = a_booking(status).after(action, later)
    assert (moved.status.value, moved.version, moved.updated_at) == (to, 8, later)
    assert moved.is_final is (to in {"CANCELLED", "EXPIRED"})


PAYABLE_CODE = {
    "AWAITING_PAYMENT": None,
    "PAYMENT_DEFERRED": None,
    "PAYMENT_PENDING": "PAYMENT_IN_PROGRESS",
    "APPROVED": "ALREADY_PAID",
    "CANCELLED": "ALREADY_CANCELLED",
    "EXPIRED": "HOLD_EXPIRED",
}
CANCELLABLE_CODE = {
    "AWAITING_PAYMENT": None,
    "PAYMENT_DEFERRED": None,
    "PAYMENT_PENDING": None,
    "APPROVED": None,
    "CANCELLED": "ALREADY_CANCELLED",
    "EXPIRED": "HOLD_EXPIRED",
}


@pytest.mark.parametrize("status", BookingStatus)
def test_paying_is_refused_with_the_code_of_the_state(status: BookingStatus) -> None:
    """Only a payment under way is worth asking again."""
    code = PAYABLE_CODE[status.value]
    if code is None:
        check_payable(a_booking(status), False, NOW)
        return
    with pytest.raises(BookingState) as refusal:
        check_payable(a_booking(status), False, NOW)
    assert refusal.value.code == code
    assert refusal.value.retryable is (code == "PAYMENT_IN_PROGRESS")


@pytest.mark.parametrize("status", BookingStatus)
def test_cancelling_is_refused_with_the_code_of_the_state(status: BookingStatus) -> None:
    """A payment under way does not hinder a cancellation: its money follows."""
    code = CANCELLABLE_CODE[status.value]
    if code is None:
        check_cancellable(a_booking(status), STARTS_AT, NOW)
        return
    with pytest.raises(BookingState) as refusal:
        check_cancellable(a_booking(status), STARTS_AT, NOW)
    assert refusal.value.code == code


def test_nothing_is_cancelled_once_the_concert_has_started() -> None:
    """The start itself is too late."""
    check_cancellable(a_booking(), NOW + timedelta(microseconds=1), NOW)
    with pytest.raises(BookingState) as refusal:
        check_cancellable(a_booking(), NOW, NOW)
    assert refusal.value.code == "CANCELLATION_CLOSED"


def test_a_hold_that_passed_and_is_not_swept_yet_cannot_be_paid() -> None:
    """The database's clock decides, not the sweeper."""
    booking = a_booking()
    check_payable(booking, False, booking.hold_until - timedelta(microseconds=1))
    with pytest.raises(BookingState) as refusal:
        check_payable(booking, False, booking.hold_until)
    assert refusal.value.code == "HOLD_EXPIRED"


def test_a_cancelled_concert_takes_no_payment() -> None:
    """Also before its bookings have been reached."""
    with pytest.raises(BookingState) as refusal:
        check_payable(a_booking(), True, NOW)
    assert refusal.value.code == "CONCERT_CANCELLED"


def test_the_first_deferral_starts_the_hold_anew_and_later_ones_leave_it() -> None:
    """Paying a little later costs nobody their seats, and holds them no longer than twice."""
    at, retry = NOW + timedelta(seconds=500), NOW + timedelta(seconds=505)
    once = a_booking().deferred(at, hold_s=HOLD_S, starts_at=STARTS_AT, retry_pay_at=retry)
    assert (once.pay_by, once.retry_pay_at) == (at + timedelta(seconds=HOLD_S), retry)
    later = at + timedelta(seconds=100)
    twice = once.deferred(later, hold_s=HOLD_S, starts_at=STARTS_AT, retry_pay_at=later)
    assert twice.pay_by == once.pay_by


def test_a_deferral_never_extends_the_hold_past_the_start() -> None:
    """Nobody pays for a concert that is over."""
    starts_at = NOW + timedelta(seconds=700)
    at = NOW + timedelta(seconds=500)
    moved = a_booking().deferred(at, hold_s=HOLD_S, starts_at=starts_at, retry_pay_at=at)
    assert moved.pay_by == starts_at


def test_an_attempt_that_came_to_nothing_leaves_two_minutes_once() -> None:
    """A decline in the last second is no reason to lose the seats, but only the first one counts."""
    late = NOW + timedelta(seconds=HOLD_S - 1)
    returned = replace(a_booking(BookingStatus.PAYMENT_PENDING)).returned(late)
    assert returned.pay_by == late + timedelta(seconds=GRACE_S)
    again = replace(returned, status=BookingStatus.PAYMENT_PENDING).returned(late + timedelta(seconds=119))
    assert again.pay_by == returned.pay_by


@pytest.mark.parametrize("status", BookingStatus)
def test_pay_by_is_null_in_every_state_that_cannot_be_paid(status: BookingStatus) -> None:
    """A front end may show a countdown whenever it is set."""
    is_payable = status.value in {"AWAITING_PAYMENT", "PAYMENT_DEFERRED"}
    assert (a_booking(status).pay_by is not None) is is_payable


@pytest.mark.parametrize(("status", "money_may_move"), list(product(BookingStatus, (True, False))))
def test_final_means_over_and_no_money_moving(status: BookingStatus, money_may_move: bool) -> None:
    """APPROVED is never final: it may still be cancelled."""
    shown = a_booking(status).showing(
        PaymentId("p"), status=PaymentStatus.UNKNOWN, decline_code=None, money_may_move=money_may_move
    )
    assert shown.is_final is (status.value in {"CANCELLED", "EXPIRED"} and not money_may_move)


@pytest.mark.parametrize(("status", "to"), list(product(PaymentStatus, PaymentStatus)))
def test_a_payment_moves_only_as_its_table_says(status: PaymentStatus, to: PaymentStatus) -> None:
    """Times are set by the change they are about, and by no other."""
    payment = Payment(
        id=PaymentId("p"),
        booking_id=BookingId("b"),
        user_id=UserId("u"),
        amount=Money(3_500, "EUR"),
        status=status,
        payment_method_id="pm_card_visa",
        intent_id="pi",
        decline_code=None,
        created_at=NOW,
        captured_at=None,
        refunded_at=None,
    )
    if to not in PAYMENT_TRANSITIONS[status]:
        with pytest.raises(AssertionError):
            payment.becoming(to, NOW)
        return
    moved = payment.becoming(to, NOW)
    assert moved.status is to
    assert (moved.captured_at is not None) is (to is PaymentStatus.CAPTURED)
    assert (moved.refunded_at is not None) is (to is PaymentStatus.REFUNDED)


def test_money_that_went_back_never_comes_again() -> None:
    """What was refunded can at most come back from the buyer's bank, and captured money can only go back."""
    assert PAYMENT_TRANSITIONS[PaymentStatus.REFUNDED] == {PaymentStatus.REFUND_FAILED}
    assert PAYMENT_TRANSITIONS[PaymentStatus.CAPTURED] == {
        PaymentStatus.REFUND_PENDING,
        PaymentStatus.REFUNDED,
    }
