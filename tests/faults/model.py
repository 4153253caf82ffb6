"""One concert's sale as it should be: one thread, no clock, no database, nothing shared with the code it judges."""

from dataclasses import dataclass, field

from domain.booking import BookingStatus
from tests.faults.history import Lines

_S = BookingStatus
HOLDING = frozenset({_S.AWAITING_PAYMENT, _S.PAYMENT_DEFERRED, _S.PAYMENT_PENDING})
LIVE = HOLDING | {_S.APPROVED}
OVER = frozenset({_S.CANCELLED, _S.EXPIRED})

# DESIGN.md, "One booking", written down a second time. A state may follow itself: only the payment moved then.
NEXT: dict[BookingStatus | None, frozenset[BookingStatus]] = {
    None: frozenset({_S.AWAITING_PAYMENT}),
    _S.AWAITING_PAYMENT: frozenset(
        {_S.AWAITING_PAYMENT, _S.PAYMENT_DEFERRED, _S.PAYMENT_PENDING, _S.APPROVED, _S.EXPIRED, _S.CANCELLED}
    ),
    _S.PAYMENT_DEFERRED: frozenset(
        {_S.PAYMENT_DEFERRED, _S.PAYMENT_PENDING, _S.APPROVED, _S.EXPIRED, _S.CANCELLED}
    ),
    _S.PAYMENT_PENDING: frozenset({_S.PAYMENT_PENDING, _S.AWAITING_PAYMENT, _S.APPROVED, _S.CANCELLED}),
    _S.APPROVED: frozenset({_S.APPROVED, _S.CANCELLED}),
    _S.EXPIRED: frozenset({_S.EXPIRED, _S.APPROVED}),
    _S.CANCELLED: frozenset({_S.CANCELLED}),
}


class NotAllowed(Exception):
    """The change breaks a rule; `aspect` is "transition", "stock" or "limit"."""

    def __init__(self, aspect: str, message: str) -> None:
        super().__init__(message)
        self.aspect = aspect


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one booking; `was` is None for a new one."""

    booking_id: str
    user_id: str
    items: Lines
    was: BookingStatus | None
    status: BookingStatus

    @property
    def moves_stock(self) -> bool:
        """Whether seats change hands."""
        return _place(self.was) != _place(self.status)

    @property
    def takes_seats(self) -> bool:
        """Whether seats leave the sale."""
        return _place(self.was) is None and _place(self.status) is not None


@dataclass(slots=True)
class Line:
    """The seats of one ticket type."""

    capacity: int
    held: int = 0
    sold: int = 0

    @property
    def available(self) -> int:
        """Seats nobody holds or owns."""
        return self.capacity - self.held - self.sold


@dataclass(slots=True)
class SaleModel:
    """A sale: `lines` by ticket type, every booking's status, and the live tickets of each person."""

    lines: dict[str, Line]
    max_tickets_per_user: int
    is_cancelled: bool = False
    bookings: dict[str, BookingStatus] = field(default_factory=dict)
    tickets: dict[str, int] = field(default_factory=dict)

    def refusal(self, user_id: str, items: Lines) -> str | None:
        """What who wants these seats now must hear; None where they get them. In the order of the contract."""
        if self.is_cancelled:
            return "CONCERT_CANCELLED"
        if self.tickets.get(user_id, 0) + sum(n for _, n in items) > self.max_tickets_per_user:
            return "TICKET_LIMIT"
        if any(self.lines[kind].available < n for kind, n in items):
            return "SOLD_OUT"
        return None

    def apply(self, change: Change) -> None:
        """The change has happened. Raises: NotAllowed; nothing has changed then."""
        self.check(change)
        self.move(change)

    def check(self, change: Change) -> None:
        """Raises: NotAllowed."""
        known = self.bookings.get(change.booking_id)
        if known is not change.was:
            raise NotAllowed("transition", f"it was {_name(known)}, and its history says {_name(change.was)}")
        if change.status not in NEXT[change.was]:
            raise NotAllowed("transition", f"{_name(change.was)} became {change.status.value}")
        if change.takes_seats:
            refusal = self.refusal(change.user_id, change.items)
            if refusal is not None:
                aspect = "limit" if refusal == "TICKET_LIMIT" else "stock"
                raise NotAllowed(aspect, f"{change.status.value} against {refusal}, {self._standing(change)}")

    def move(self, change: Change) -> None:
        """The change has happened, allowed or not."""
        for kind, n in change.items:
            line = self.lines.setdefault(kind, Line(0))
            for place, moved in ((_place(change.was), -n), (_place(change.status), n)):
                if place == "held":
                    line.held += moved
                elif place == "sold":
                    line.sold += moved
            if self.is_cancelled:
                line.capacity = line.held + line.sold
        count = sum(n for _, n in change.items)
        owned = self.tickets.get(change.user_id, 0)
        owned -= count if change.was in LIVE else 0
        self.tickets[change.user_id] = owned + (count if change.status in LIVE else 0)
        self.bookings[change.booking_id] = change.status

    def change_sale(self, capacities: Lines, limit: int | None) -> None:
        """The organiser wants it so. Raises: NotAllowed for a capacity below what is taken."""
        for kind, capacity in capacities:
            line = self.lines[kind]
            line.capacity = capacity
            if line.available < 0:
                raise NotAllowed("stock", f"capacity {capacity} of {kind} with {line.held + line.sold} taken")
        if limit is not None:
            self.max_tickets_per_user = limit

    def close(self) -> None:
        """The concert is cancelled: nothing of it is ever available again."""
        self.is_cancelled = True
        for line in self.lines.values():
            line.capacity = line.held + line.sold

    def _standing(self, change: Change) -> str:
        free = ", ".join(f"{self.lines[kind].available} of {kind} free" for kind, _ in change.items)
        return f"{free}, {self.tickets.get(change.user_id, 0)} tickets of {change.user_id}"


def _place(status: BookingStatus | None) -> str | None:
    if status in HOLDING:
        return "held"
    return "sold" if status is _S.APPROVED else None


def _name(status: BookingStatus | None) -> str:
    return "absent" if status is None else status.value
