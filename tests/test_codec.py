"""What is written as JSON is read back as the same noun, event or refusal."""

from dataclasses import fields
from datetime import timedelta

import pytest

from domain.base import (
    BookingId,
    ConcertId,
    DomainError,
    FieldError,
    IdempotencyMismatch,
    InvalidInput,
    NotFound,
    PaymentId,
    PaymentStatus,
    TicketTypeId,
)
from domain.booking import (
    BookingChanged,
    BookingState,
    BookingStatus,
    CapacityTaken,
    SaleChanged,
    SaleClosed,
    SalesClosed,
    SoldOut,
    TicketLimit,
)
from domain.concert import ConcertState
from domain.events import Event, IntentAbandoned, RefundRequested
from domain.my_page import MyBooking
from domain.payment import PaymentDeclined
from domain.user import EmailTaken
from infra.codec import decode, decode_event, decode_refusal, encode, encode_event, encode_refusal
from tests.db_world import NOW, a_booking, a_sale

SALE = a_sale(capacities=(3, 4))
BOOKING = a_booking(
    SALE,
    status=BookingStatus.PAYMENT_PENDING,
    payment_id=PaymentId("p"),
    payment_status=PaymentStatus.UNKNOWN,
    retry_pay_at=NOW,
)


@pytest.mark.parametrize(
    "event",
    [
        BookingChanged(BOOKING, SALE.facts, SALE, 7),
        BookingChanged(BOOKING, SALE.facts, None, 7),
        SaleChanged(SALE),
        SaleClosed(SALE.concert_id),
        RefundRequested(BOOKING.id, PaymentId("p")),
        IntentAbandoned(BOOKING.id),
    ],
)
def test_event_comes_back_equal(event: Event) -> None:
    """Kind and JSON are all it takes."""
    kind, payload = encode_event(event)
    assert kind == type(event).__name__
    assert decode_event(kind, payload) == event


def test_nouns_come_back_equal() -> None:
    """As bytes and as text."""
    row = MyBooking(BOOKING, SALE.facts)
    assert decode(MyBooking, encode(row)) == row
    assert decode(MyBooking, encode(row).decode()) == row


@pytest.mark.parametrize(
    "refusal",
    [
        InvalidInput((FieldError(("items", "0", "quantity"), "must be from 1"), FieldError((), "no"))),
        NotFound("concert"),
        IdempotencyMismatch(),
        EmailTaken(),
        SoldOut(TicketTypeId("t"), 0),
        SalesClosed("SALES_CLOSED", NOW, NOW + timedelta(hours=1)),
        TicketLimit(4, 1),
        CapacityTaken(TicketTypeId("t"), 9),
        BookingState(BookingId("b"), "ALREADY_PAID"),
        ConcertState(ConcertId("c"), "CONCERT_STARTED"),
        PaymentDeclined(BookingId("b"), "insufficient_funds"),
    ],
)
def test_refusal_comes_back_the_same(refusal: DomainError) -> None:
    """Type, code, message, facts and whether it may be tried again; it can be raised."""
    again = decode_refusal(encode_refusal(refusal))
    assert type(again) is type(refusal)
    names = [field.name for field in fields(refusal)]  # type: ignore[arg-type]
    for name in (*names, "code", "message", "retryable", "retry_after_ms"):
        assert getattr(again, name) == getattr(refusal, name)
    with pytest.raises(type(refusal)):
        raise again


@pytest.mark.parametrize("text", ["", "SoldOut", "SoldOut {}", "Exception {}", "DomainErrors {}"])
def test_unreadable_refusal_is_a_value_error(text: str) -> None:
    """Nothing but a refusal of the domain is rebuilt from a text."""
    with pytest.raises(ValueError):
        decode_refusal(text)


@pytest.mark.parametrize(("kind", "payload"), [("SaleClosed", "{}"), ("Sold", "{}"), ("SaleClosed", "")])
def test_unreadable_event_is_a_value_error(kind: str, payload: str) -> None:
    """An unknown kind and a wrong payload are told apart from a fault of ours."""
    with pytest.raises(ValueError):
        decode_event(kind, payload)
