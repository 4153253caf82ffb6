"""Everything that can stand in the outbox: the alphabet of `domain/reactions.py`."""

from dataclasses import dataclass

from domain.base import BookingId, PaymentId
from domain.booking import BookingChanged, SaleChanged, SaleClosed


@dataclass(frozen=True, slots=True)
class RefundRequested:
    """A captured payment is to be given back in full."""

    booking_id: BookingId
    payment_id: PaymentId


@dataclass(frozen=True, slots=True)
class IntentAbandoned:
    """The booking is over: its live intent, if any, is to be cancelled and what it says settled."""

    booking_id: BookingId


Event = BookingChanged | SaleChanged | SaleClosed | RefundRequested | IntentAbandoned
