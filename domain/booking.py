"""The core: sales with their stock, bookings with their states, and what may change which.

Synchronous and pure: a use case locks rows, asks these functions what the new state is, and writes it with
compare-and-set.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum

from domain.base import (
    BookingId,
    ConcertId,
    DomainError,
    Money,
    PaymentId,
    PaymentStatus,
    TicketTypeId,
    UserId,
)

# After an attempt came to nothing a buyer gets at least this long to try again, once per booking.
GRACE_S = 120
QUANTITY_MAX = 1_000_000
ITEMS_MAX = 20


# ---------------------------------------------------------------- the sale
@dataclass(frozen=True, slots=True)
class StockLine:
    """The seats of one ticket type: capacity = available + held + sold."""

    ticket_type_id: TicketTypeId
    name: str
    price: Money
    capacity: int
    held: int
    sold: int

    @property
    def available(self) -> int:
        """Seats nobody holds or owns."""
        return self.capacity - self.held - self.sold

    @property
    def taken(self) -> int:
        """Seats that somebody holds or owns."""
        return self.held + self.sold


@dataclass(frozen=True, slots=True)
class ConcertFacts:
    """What a buyer's page shows of a concert: the sale's own copy, so that it needs no catalogue."""

    concert_id: ConcertId
    title: str
    venue: str
    starts_at: datetime
    version: int


@dataclass(frozen=True, slots=True)
class Sale:
    """The sale of one concert: window, limit, stock. `version` rises with every change of any of it.

    Serves as the live count too: a Sale in an event or an answer is one consistent snapshot.
    """

    concert_id: ConcertId
    title: str
    venue: str
    starts_at: datetime
    sales_open_at: datetime
    sales_close_at: datetime
    max_tickets_per_user: int
    is_cancelled: bool
    version: int
    stock: tuple[StockLine, ...]

    @property
    def facts(self) -> ConcertFacts:
        """The part that my page shows."""
        return ConcertFacts(self.concert_id, self.title, self.venue, self.starts_at, self.version)

    def line(self, ticket_type_id: TicketTypeId) -> StockLine | None:
        """The stock of one ticket type, None where it is not this concert's."""
        return next((line for line in self.stock if line.ticket_type_id == ticket_type_id), None)

    def with_held(self, quantities: "Quantities") -> "Sale":
        """Seats taken off sale for a new hold. They must be available."""
        return self._moved(quantities, held=1, sold=0)

    def with_sold(self, quantities: "Quantities") -> "Sale":
        """A hold became owned."""
        return self._moved(quantities, held=-1, sold=1)

    def with_sold_again(self, quantities: "Quantities") -> "Sale":
        """Seats of an expired hold, available again, became owned."""
        return self._moved(quantities, held=0, sold=1)

    def with_hold_released(self, quantities: "Quantities") -> "Sale":
        """A hold ended; the seats return to sale unless the concert is cancelled."""
        return self._moved(quantities, held=-1, sold=0)

    def with_sold_released(self, quantities: "Quantities") -> "Sale":
        """Owned seats were given back; they return to sale unless the concert is cancelled."""
        return self._moved(quantities, held=0, sold=-1)

    def has_seats(self, quantities: "Quantities") -> bool:
        """Whether all of them are available at once."""
        return all((line := self.line(q.ticket_type_id)) and line.available >= q.quantity for q in quantities)

    def closed(self) -> "Sale":
        """Cancelled: capacity falls to what is taken, so nothing is available."""
        return replace(
            self,
            is_cancelled=True,
            version=self.version + 1,
            stock=tuple(replace(line, capacity=line.taken) for line in self.stock),
        )

    def _moved(self, quantities: "Quantities", *, held: int, sold: int) -> "Sale":
        wanted = {q.ticket_type_id: q.quantity for q in quantities}
        lines = []
        for line in self.stock:
            n = wanted.get(line.ticket_type_id, 0)
            moved = replace(line, held=line.held + n * held, sold=line.sold + n * sold)
            if self.is_cancelled:
                moved = replace(moved, capacity=moved.taken)
            assert moved.held >= 0 and moved.sold >= 0 and moved.available >= 0, "stock went out of bounds"
            lines.append(moved)
        return replace(self, stock=tuple(lines), version=self.version + 1)


@dataclass(frozen=True, slots=True)
class Quantity:
    """How many tickets of one type. Distinct types within one booking."""

    ticket_type_id: TicketTypeId
    quantity: int


Quantities = tuple[Quantity, ...]


# ---------------------------------------------------------------- bookings
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


@dataclass(frozen=True, slots=True)
class BookingChanged:
    """A booking has a new version. Carries whole states, so the newest one alone is enough.

    `sale` is set where the change moved the stock. `my_page_version` counts the buyer's changes without gaps.
    """

    booking: Booking
    facts: ConcertFacts
    sale: Sale | None
    my_page_version: int


@dataclass(frozen=True, slots=True)
class SaleChanged:
    """A sale was opened, changed or closed."""

    sale: Sale


@dataclass(frozen=True, slots=True)
class SaleClosed:
    """The concert was cancelled: every booking of it is to be cancelled and refunded."""

    concert_id: ConcertId


# ---------------------------------------------------------------- refusals
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
    """The sales window is not open, or the concert was cancelled."""

    code: str  # SALES_NOT_OPEN | SALES_CLOSED | CONCERT_CANCELLED
    sales_open_at: datetime
    sales_close_at: datetime
    retry_after_ms: int | None = None

    @property
    def retryable(self) -> bool:  # type: ignore[override]
        """Only a window that is still to open can be tried again."""
        return self.code == "SALES_NOT_OPEN"

    @property
    def message(self) -> str:
        if self.code == "SALES_NOT_OPEN":
            return f"Sales open at {self.sales_open_at:%Y-%m-%d %H:%M} UTC."
        if self.code == "SALES_CLOSED":
            return f"Sales closed at {self.sales_close_at:%Y-%m-%d %H:%M} UTC."
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


def check_seats(sale: Sale, quantities: Quantities) -> None:
    """Raises: SoldOut for the first line in input order that is short."""
    for wanted in quantities:
        line = sale.line(wanted.ticket_type_id)
        assert line is not None, "the ticket type was checked before"
        if line.available < wanted.quantity:
            raise SoldOut(wanted.ticket_type_id, line.available)
