"""Sales and bookings: open, change and close a sale; book, cancel and expire.

Every change of a booking is recorded by `record`: the row by compare-and-set, its history, the stock if it moved,
the buyer's my-page version and one outbox row that carries whole states. Whatever changes many bookings of one
concert takes them together: one lock of the sale, one write of its stock, one commit. What the sweeper or a cancelled
concert ends comes in batches; buyers who book or cancel while a transaction is in flight share the next one, and so
do those who pay (`settlement`).
"""

from domain.use_cases.booking.cancelling import (
    BATCH,
    CancelBooking,
    abandon_intents,
    cancel_booking,
    cancel_bookings,
    request_refunds,
)
from domain.use_cases.booking.expiring import expire_due
from domain.use_cases.booking.holding import BookConcert, book_concert
from domain.use_cases.booking.recording import Change, lock_sale_of, lock_visible, record, sale_of, showing
from domain.use_cases.booking.sales import change_sale, close_sale, open_sale, with_capacity

__all__ = [
    "BATCH",
    "BookConcert",
    "CancelBooking",
    "Change",
    "abandon_intents",
    "book_concert",
    "cancel_booking",
    "cancel_bookings",
    "change_sale",
    "close_sale",
    "expire_due",
    "lock_sale_of",
    "lock_visible",
    "open_sale",
    "record",
    "request_refunds",
    "sale_of",
    "showing",
    "with_capacity",
]
