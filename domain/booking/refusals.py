"""What the booking module refuses, and the checks that refuse it."""

from dataclasses import dataclass
from datetime import datetime

from domain.base import BookingId, DomainError, TicketTypeId
from domain.booking.sale import Quantities, Sale
from domain.booking.states import Booking, BookingStatus

# Somebody has to look at the stock of a halted sale; until then asking often helps nobody.
HALTED_RETRY_MS = 30_000


@dataclass(eq=False)
class SoldOut(DomainError):
    """Fewer seats of a type are free than were asked for."""

    ticket_type_id: TicketTypeId
    available: int
    code = "SOLD_OUT"

    @property
    def message(self) -> str:
        if self.available == 0:
            return "These tickets are sold out right now. Held seats may return to sale."
        return f"Only {self.available} of these tickets are left."


@dataclass(eq=False)
class SalesClosed(DomainError):
    """The sales window is not open, the concert was cancelled, or its sales are stopped for a check."""

    code: str  # SALES_NOT_OPEN | SALES_CLOSED | CONCERT_CANCELLED | SALES_HALTED
    sales_open_at: datetime
    sales_close_at: datetime
    retry_after_ms: int | None = None

    @property
    def retryable(self) -> bool:  # type: ignore[override]
        """A window that is still to open, and sales that may go on."""
        return self.code in {"SALES_NOT_OPEN", "SALES_HALTED"}

    @property
    def message(self) -> str:
        if self.code == "SALES_NOT_OPEN":
            return f"Sales open at {self.sales_open_at:%Y-%m-%d %H:%M} UTC."
        if self.code == "SALES_CLOSED":
            return f"Sales closed at {self.sales_close_at:%Y-%m-%d %H:%M} UTC."
        if self.code == "SALES_HALTED":
            return "Sales of this concert are stopped while its seats are counted again. Try again later."
        return "The concert was cancelled."


@dataclass(eq=False)
class TicketLimit(DomainError):
    """The person would have more live tickets of this concert than one person may."""

    max_tickets_per_user: int
    remaining: int
    code = "TICKET_LIMIT"

    @property
    def message(self) -> str:
        limit, remaining = self.max_tickets_per_user, self.remaining
        return f"One person may have {limit} tickets of this concert; {remaining} more are allowed."


@dataclass(eq=False)
class CapacityTaken(DomainError):
    """More seats of a type are taken than the wanted capacity."""

    ticket_type_id: TicketTypeId
    taken: int
    code = "CAPACITY_TAKEN"

    @property
    def message(self) -> str:
        return f"{self.taken} seats of this ticket type are held or sold; the capacity can't be less."


_STATE_MESSAGES = {
    "HOLD_EXPIRED": "The hold has expired and the seats are on sale again. Book anew.",
    "ALREADY_PAID": "The booking is paid.",
    "ALREADY_CANCELLED": "The booking was cancelled.",
    "PAYMENT_IN_PROGRESS": "A payment of this booking is under way. Watch its status.",
    "CONCERT_CANCELLED": "The concert was cancelled; what was paid is refunded.",
    "CANCELLATION_CLOSED": "The concert has started; the booking can't be cancelled any more.",
}


@dataclass(eq=False)
class BookingState(DomainError):
    """The booking's state does not allow what was asked."""

    booking_id: BookingId
    code: str  # a key of _STATE_MESSAGES
    retry_after_ms: int | None = None

    @property
    def retryable(self) -> bool:  # type: ignore[override]
        """Only a payment under way may end in a state that allows it."""
        return self.code == "PAYMENT_IN_PROGRESS"

    @property
    def message(self) -> str:
        return _STATE_MESSAGES[self.code]


def payment_in_progress(booking_id: BookingId) -> BookingState:
    """A payment is under way: ask again in a second."""
    return BookingState(booking_id, "PAYMENT_IN_PROGRESS", retry_after_ms=1_000)


def check_payable(booking: Booking, sale_is_cancelled: bool, now: datetime) -> None:
    """Raises: BookingState where the booking can't be paid now."""
    if sale_is_cancelled:
        raise BookingState(booking.id, "CONCERT_CANCELLED")
    if booking.status is BookingStatus.PAYMENT_PENDING:
        raise payment_in_progress(booking.id)
    if booking.status is BookingStatus.APPROVED:
        raise BookingState(booking.id, "ALREADY_PAID")
    if booking.status is BookingStatus.CANCELLED:
        raise BookingState(booking.id, "ALREADY_CANCELLED")
    if booking.status is BookingStatus.EXPIRED or booking.hold_until <= now:
        raise BookingState(booking.id, "HOLD_EXPIRED")


def check_cancellable(booking: Booking, starts_at: datetime, now: datetime) -> None:
    """Raises: BookingState where the booking can't be cancelled by a person now."""
    if booking.status is BookingStatus.CANCELLED:
        raise BookingState(booking.id, "ALREADY_CANCELLED")
    if booking.status is BookingStatus.EXPIRED:
        raise BookingState(booking.id, "HOLD_EXPIRED")
    if starts_at <= now:
        raise BookingState(booking.id, "CANCELLATION_CLOSED")


def check_window(sale: Sale, now: datetime) -> None:
    """Raises: SalesClosed where nothing can be booked now."""
    if sale.is_cancelled:
        raise SalesClosed("CONCERT_CANCELLED", sale.sales_open_at, sale.sales_close_at)
    if now < sale.sales_open_at:
        wait_ms = min(int((sale.sales_open_at - now).total_seconds() * 1_000) + 1, 2**31 - 1)
        raise SalesClosed("SALES_NOT_OPEN", sale.sales_open_at, sale.sales_close_at, wait_ms)
    if now >= sale.sales_close_at:
        raise SalesClosed("SALES_CLOSED", sale.sales_open_at, sale.sales_close_at)
    if sale.halted_at is not None:
        raise SalesClosed("SALES_HALTED", sale.sales_open_at, sale.sales_close_at, HALTED_RETRY_MS)


def check_seats(sale: Sale, quantities: Quantities) -> None:
    """Raises: SoldOut for the first line in input order that is short."""
    for wanted in quantities:
        line = sale.line(wanted.ticket_type_id)
        assert line is not None, "the ticket type was checked before"
        if line.available < wanted.quantity:
            raise SoldOut(wanted.ticket_type_id, line.available)
