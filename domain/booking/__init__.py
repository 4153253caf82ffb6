"""The core: sales with their stock, bookings with their states, and what may change which.

Synchronous and pure: a use case locks rows, asks these functions what the new state is, and writes it with
compare-and-set.

Against DESIGN.md, only a change that moves the stock raises the sale's version; any other carries the current one
in its history row. That spares a hot concert two locks of its sale row per payment, and the versions of one booking
order its own changes.
"""

from domain.booking.events import BookingChanged, SaleChanged, SaleClosed
from domain.booking.refusals import (
    BookingState,
    CapacityTaken,
    SalesClosed,
    SoldOut,
    TicketLimit,
    check_cancellable,
    check_payable,
    check_seats,
    check_window,
    payment_in_progress,
)
from domain.booking.sale import ConcertFacts, Quantities, Quantity, Sale, StockLine
from domain.booking.states import (
    GRACE_S,
    HOLDING,
    ITEMS_MAX,
    LIVE,
    PAYABLE,
    QUANTITY_MAX,
    TRANSITIONS,
    Action,
    Booking,
    BookingItem,
    BookingStatus,
)

__all__ = [
    "GRACE_S",
    "HOLDING",
    "ITEMS_MAX",
    "LIVE",
    "PAYABLE",
    "QUANTITY_MAX",
    "TRANSITIONS",
    "Action",
    "Booking",
    "BookingChanged",
    "BookingItem",
    "BookingState",
    "BookingStatus",
    "CapacityTaken",
    "ConcertFacts",
    "Quantities",
    "Quantity",
    "Sale",
    "SaleChanged",
    "SaleClosed",
    "SalesClosed",
    "SoldOut",
    "StockLine",
    "TicketLimit",
    "check_cancellable",
    "check_payable",
    "check_seats",
    "check_window",
    "payment_in_progress",
]
