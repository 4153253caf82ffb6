"""The sale of a concert: its window, its limit and its stock."""

from dataclasses import dataclass, replace
from datetime import datetime

from domain.base import ConcertId, Money, TicketTypeId


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
    # Since when nothing is sold because the stock is broken. What was encoded before there was this has none.
    halted_at: datetime | None = None

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
