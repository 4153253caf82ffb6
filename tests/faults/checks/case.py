"""The evidence, indexed: each lookup that a rule needs."""

from collections import defaultdict
from dataclasses import dataclass, field

from tests.faults.evidence import BookingRow, EventRow, Evidence, KeyRow, LedgerRow, PaymentRow
from tests.faults.history import Kind, Operation, Outcome
from tests.faults.timeline import Committed, Report, Timeline, replay

# The client's and the database's clock are one machine's, read at different moments.
CLOCK_SLACK_S = 0.1


@dataclass(slots=True)
class Case:
    """One run. `judged`: the ids of the concerts that have an opening."""

    evidence: Evidence
    judged: frozenset[str]
    bookings: dict[str, BookingRow] = field(default_factory=dict)
    events: dict[str, list[EventRow]] = field(default_factory=dict)
    payments: dict[str, PaymentRow] = field(default_factory=dict)
    keys: dict[tuple[str, str, str], KeyRow] = field(default_factory=dict)
    ledger: dict[str, list[LedgerRow]] = field(default_factory=dict)
    of_booking: dict[str, list[Operation]] = field(default_factory=dict)
    timelines: dict[str, Timeline] = field(default_factory=dict)
    _first_asked_s: dict[tuple[str, Kind, str | None], float] = field(default_factory=dict)
    _elsewhere: frozenset[str] = frozenset()

    @classmethod
    def of(cls, evidence: Evidence) -> "Case":
        """Everything but the replay."""
        final = evidence.final
        case = cls(evidence, frozenset(opening.concert_id for opening in evidence.history.openings))
        case.bookings = {row.booking_id: row for row in final.bookings if row.concert_id in case.judged}
        case._elsewhere = frozenset(row.booking_id for row in final.bookings) - frozenset(case.bookings)
        case.payments = {row.payment_id: row for row in final.payments if row.booking_id in case.bookings}
        case.keys = {(row.user_id, row.mutation, row.key): row for row in final.keys}
        events: defaultdict[str, list[EventRow]] = defaultdict(list)
        for event in sorted(final.events, key=lambda event: event.version):
            events[event.booking_id].append(event)
        ledger: defaultdict[str, list[LedgerRow]] = defaultdict(list)
        for entry in evidence.ledger or ():
            if entry.booking_id is not None:
                ledger[entry.booking_id].append(entry)
        operations: defaultdict[str, list[Operation]] = defaultdict(list)
        for operation in evidence.history.operations:
            if operation.booking_id is not None:
                operations[operation.booking_id].append(operation)
            name = (operation.user_id, operation.kind, operation.key)
            earlier_s = case._first_asked_s.get(name, operation.invoked_s)
            case._first_asked_s[name] = min(earlier_s, operation.invoked_s)
        case.events, case.ledger, case.of_booking = dict(events), dict(ledger), dict(operations)
        return case

    def key_of(self, operation: Operation) -> KeyRow | None:
        """What its key led to, None where nothing is kept of it."""
        if operation.key is None:
            return None
        return self.keys.get((operation.user_id, operation.kind.value, operation.key))

    def asked_s(self, operation: Operation) -> float:
        """When this was first asked for: a key that is used again hears of what it led to then."""
        if operation.key is None:
            return operation.invoked_s
        return self._first_asked_s[(operation.user_id, operation.kind, operation.key)]

    def was_done(self, operation: Operation) -> bool:
        """Whether it happened, as far as client and final read know together."""
        if operation.outcome is Outcome.UNKNOWN:
            row = self.key_of(operation)
            return row is not None and row.reference is not None
        return operation.outcome is Outcome.OK

    def is_judged(self, operation: Operation) -> bool:
        """Whether it is about a concert that is judged."""
        if operation.concert_id is not None:
            return operation.concert_id in self.judged
        # A booking that is gone is judged too: somebody was told of it.
        return operation.booking_id not in self._elsewhere

    def event_that(self, booking_id: str, status: str) -> EventRow | None:
        """The change that brought the booking into this status, the first if there were several."""
        for event in self.events.get(booking_id, ()):
            if event.status == status and event.was != status:
                return event
        return None

    def event_at(self, booking_id: str, version: int) -> EventRow | None:
        """The change that made this version of the booking."""
        return next((event for event in self.events.get(booking_id, ()) if event.version == version), None)

    def made_by(self, operation: Operation) -> EventRow | None:
        """The change of stock that the operation made, None where it made none or nobody knows."""
        if operation.kind is Kind.BOOK:
            row = self.key_of(operation)
            booking_id = operation.seen.booking_id if operation.seen else (row.reference if row else None)
            return None if booking_id is None else self.event_at(booking_id, 1)
        if operation.booking_id is None or not self.was_done(operation):
            return None
        if operation.kind is Kind.CANCEL:
            return self.event_that(operation.booking_id, "CANCELLED")
        is_paid = operation.code == "PayBookingSuccess"
        return self.event_that(operation.booking_id, "APPROVED") if is_paid else None

    def wall(self, monotonic_s: float) -> float:
        """The same moment on the wall clock."""
        return monotonic_s + self.evidence.history.wall_offset_s

    def replay(self, report: Report) -> None:
        """All concerts' changes run through the model; the timelines are there."""
        events: defaultdict[str, list[EventRow]] = defaultdict(list)
        for event in self.evidence.final.events:
            events[event.concert_id].append(event)
        bookings: defaultdict[str, dict[str, BookingRow]] = defaultdict(dict)
        for booking in self.bookings.values():
            bookings[booking.concert_id][booking.booking_id] = booking
        sales = {sale.concert_id: sale for sale in self.evidence.final.sales}
        known_until_s = self._known_until_s()
        organised = sorted(
            (op for op in self.evidence.history.operations if op.kind in {Kind.CHANGE, Kind.CLOSE}),
            key=lambda op: op.invoked_s,
        )
        for opening in self.evidence.history.openings:
            concert_id = opening.concert_id
            committed = Committed(
                sale=sales[concert_id],
                bookings=bookings[concert_id],
                events=events[concert_id],
                organised=[op for op in organised if op.concert_id == concert_id and self.was_done(op)],
                known_until_s=known_until_s,
            )
            self.timelines[concert_id] = replay(opening, committed, report)

    def _known_until_s(self) -> dict[tuple[str, int], float]:
        known = {}
        for operation in self.evidence.history.operations:
            if operation.outcome is Outcome.OK and (event := self.made_by(operation)) is not None:
                known[(event.booking_id, event.version)] = self.wall(operation.answered_s)
        return known
