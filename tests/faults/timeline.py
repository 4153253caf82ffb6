"""The replay: a concert's committed changes, in the order of its stock version, against the model.

Only a change that moves the stock raises the version; any other carries the one in force. Bookings that end in one
transaction (a batch of expiries, or of a cancelled concert) share its last version, and the version rises by one for
each of them. What raises it without a booking is the organiser's: those changes fill the gaps, in their order.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

from domain.booking import BookingStatus
from tests.faults.evidence import BookingRow, EventRow, SaleRow
from tests.faults.history import Kind, Lines, Opening, Operation
from tests.faults.model import Change, Line, NotAllowed, SaleModel
from tests.faults.rules import Rule, Violation

_ASPECTS = {"transition": Rule.TRANSITION, "stock": Rule.STOCK, "limit": Rule.LIMIT}


class Report(Protocol):
    """Takes a violation."""

    def __call__(self, rule: Rule, text: str) -> None:
        """It was found."""
        ...


@dataclass(slots=True)
class State:
    """The sale at one version. Nobody saw it before `from_s` or after `until_s`, seconds of the wall clock."""

    version: int
    stock: dict[str, tuple[int, int, int]]  # capacity, held, sold
    max_tickets_per_user: int
    is_cancelled: bool
    from_s: float
    until_s: float = float("inf")

    def available(self, ticket_type_id: str) -> int:
        """Seats nobody holds or owns."""
        capacity, held, sold = self.stock.get(ticket_type_id, (0, 0, 0))
        return capacity - held - sold


@dataclass(slots=True)
class Timeline:
    """All states of one sale that a transaction left, oldest first, and the tickets of each person over them."""

    concert_id: str
    states: list[State]
    # Per person: from the state at this index on, so many live tickets.
    tickets: defaultdict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    _versions: list[int] = field(default_factory=list)
    _from: list[float] = field(default_factory=list)
    _until: list[float] = field(default_factory=list)

    def close(self) -> None:
        """All states are there; now they can be searched."""
        until_s = float("inf")
        for state in reversed(self.states):
            state.until_s = until_s = min(until_s, state.until_s)
        self._versions = [state.version for state in self.states]
        self._from = [state.from_s for state in self.states]
        self._until = [state.until_s for state in self.states]

    def at_version(self, version: int) -> State | None:
        """The state with this version, None where no transaction left one."""
        at = bisect_left(self._versions, version)
        found = at < len(self.states) and self._versions[at] == version
        return self.states[at] if found else None

    def between(self, from_s: float, until_s: float) -> range:
        """The indexes of all states that somebody could see in this time."""
        return range(bisect_left(self._until, from_s), bisect_right(self._from, until_s))

    def tickets_between(self, user_id: str, indexes: range) -> set[int]:
        """Every number of live tickets that the person had in one of these states."""
        changes = self.tickets.get(user_id, [])
        at = bisect_right(changes, (indexes.start, 1 << 31)) - 1
        seen = {changes[at][1] if at >= 0 else 0}
        return seen | {count for index, count in changes[at + 1 :] if index < indexes.stop}


@dataclass(frozen=True, slots=True)
class Committed:
    """What is there of one concert in the end. `organised`: the organiser's changes that happened, in order.

    `known_until_s`: by this time of the wall clock a booking's version was certainly committed.
    """

    sale: SaleRow
    bookings: dict[str, BookingRow]
    events: Sequence[EventRow]
    organised: Sequence[Operation]
    known_until_s: dict[tuple[str, int], float]


def change_of(event: EventRow, bookings: dict[str, BookingRow]) -> Change:
    """The event as the model takes it."""
    booking = bookings.get(event.booking_id)
    items: Lines = () if booking is None else booking.items
    return Change(
        booking_id=event.booking_id,
        user_id="" if booking is None else booking.user_id,
        items=items,
        was=None if event.was is None else BookingStatus(event.was),
        status=BookingStatus(event.status),
    )


def replay(opening: Opening, committed: Committed, report: Report) -> Timeline:
    """Every change, one after the other; what the model does not allow is reported and happens all the same."""
    replaying = _Replay(opening, committed, report)
    changes = [(event, change_of(event, committed.bookings)) for event in committed.events]
    # Within one version the change that made it comes first; what else carries it came later.
    changes.sort(
        key=lambda pair: (pair[0].stock_version, not pair[1].moves_stock, pair[0].booking_id, pair[0].version)
    )
    for version, group in groupby(changes, key=lambda pair: pair[0].stock_version):
        replaying.version(version, list(group))
    replaying.end()
    return replaying.timeline


class _Replay:
    def __init__(self, opening: Opening, committed: Committed, report: Report) -> None:
        self._committed = committed
        self._report = report
        self._organised = list(committed.organised)
        self._version = opening.version
        self._versions_of: dict[str, int] = {}
        self._model = SaleModel(
            {kind: Line(capacity) for kind, capacity in opening.capacities}, opening.max_tickets_per_user
        )
        self.timeline = Timeline(opening.concert_id, [])
        self._keep(float("-inf"))

    def version(self, version: int, group: list[tuple[EventRow, Change]]) -> None:
        """All changes that carry this version."""
        moving = [pair for pair in group if pair[1].moves_stock]
        if moving:
            self._move(version, moving)
        elif version > self._version:
            self._organise(version)
        for event, change in group[len(moving) :]:
            self._check_position(event)
            self._apply(event, change)

    def end(self) -> None:
        """The sale is where its changes led."""
        sale = self._committed.sale
        if sale.version > self._version:
            self._organise(sale.version)
        elif sale.version < self._version:
            self._report(
                Rule.ORDER,
                f"sale {sale.concert_id} ends at version {sale.version}, changes at {self._version}",
            )
        ends = {row.ticket_type_id: (row.capacity, row.held, row.sold) for row in sale.stock}
        if ends != (led := self._stock()):
            self._report(Rule.COUNTERS, f"sale {sale.concert_id} ends with {ends}, its changes lead to {led}")
        for booking in self._committed.bookings.values():
            last = self._model.bookings.get(booking.booking_id)
            if last is None or last.value != booking.status:
                led_to = "nothing" if last is None else last.value
                self._report(
                    Rule.TRANSITION,
                    f"{booking.booking_id} is {booking.status}, its history leads to {led_to}",
                )
            elif self._versions_of[booking.booking_id] != booking.version:
                self._report(
                    Rule.ORDER,
                    f"{booking.booking_id} is at version {booking.version}, "
                    f"its history ends at {self._versions_of[booking.booking_id]}",
                )
        self.timeline.close()

    def _move(self, version: int, moving: list[tuple[EventRow, Change]]) -> None:
        gap = version - self._version - len(moving)
        if gap > 0:
            self._organise(self._version + gap)
        elif gap < 0:
            names = ", ".join(event.booking_id for event, _ in moving)
            self._report(
                Rule.ORDER,
                f"sale {self.timeline.concert_id} went from version {self._version} to {version} "
                f"with {len(moving)} changes: {names}",
            )
        self._version = version
        for event, change in moving:
            self._check_position(event)
            self._apply(event, change)
            self.timeline.tickets[change.user_id].append(
                (len(self.timeline.states), self._model.tickets[change.user_id])
            )
        # Read under the sale's lock where somebody booked: everything before was committed by then.
        booked = [event.occurred_s for event, change in moving if change.was is None]
        known = [
            until_s
            for event, _ in moving
            if (until_s := self._committed.known_until_s.get((event.booking_id, event.version))) is not None
        ]
        self.timeline.states[-1].until_s = min([*booked, *known], default=float("inf"))
        self._keep(max(event.occurred_s for event, _ in moving))

    def _organise(self, version: int) -> None:
        """The organiser's changes up to this version."""
        while self._version < version:
            if not self._organised:
                self._report(
                    Rule.ORDER,
                    f"nothing made versions {self._version + 1} to {version} of sale {self.timeline.concert_id}",
                )
                self._version = version
                self._keep(float("-inf"))
                return
            wanted = self._organised.pop(0)
            try:
                if wanted.kind is Kind.CLOSE:
                    self._model.close()
                else:
                    self._model.change_sale(wanted.wanted, wanted.limit)
            except NotAllowed as error:
                self._report(Rule.STOCK, f"sale {self.timeline.concert_id}: {error}")
            self._version += 1
            self._keep(float("-inf"))

    def _apply(self, event: EventRow, change: Change) -> None:
        try:
            self._model.check(change)
        except NotAllowed as error:
            self._report(
                _ASPECTS[error.aspect],
                f"{event.booking_id} version {event.version} at stock version {event.stock_version}: {error}",
            )
        self._model.move(change)

    def _check_position(self, event: EventRow) -> None:
        expected = self._versions_of.get(event.booking_id, 0) + 1
        if event.version != expected:
            self._report(
                Rule.ORDER,
                f"{event.booking_id} version {event.version} comes where {expected} should, "
                f"at stock version {event.stock_version}",
            )
        self._versions_of[event.booking_id] = max(event.version, expected)

    def _keep(self, from_s: float) -> None:
        if self.timeline.states:
            from_s = max(from_s, self.timeline.states[-1].from_s)
        model = self._model
        self.timeline.states.append(
            State(self._version, self._stock(), model.max_tickets_per_user, model.is_cancelled, from_s)
        )

    def _stock(self) -> dict[str, tuple[int, int, int]]:
        return {kind: (line.capacity, line.held, line.sold) for kind, line in self._model.lines.items()}


def violations_of(found: list[Violation]) -> Report:
    """A report into a list."""

    def report(rule: Rule, text: str) -> None:
        found.append(Violation(rule, text))

    return report
