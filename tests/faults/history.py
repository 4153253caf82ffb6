"""What clients did and heard, with times: the record that every fault test is judged by.

Times are seconds of `time.monotonic()`, which all processes of a machine share. Ids are the house's own ("raw"), not
the global ones of the API. A key is given with every operation: by it the final read resolves what stayed unknown.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

# (ticket type id, number) per line, in the order wanted.
Lines = tuple[tuple[str, int], ...]


class Kind(Enum):
    """What was asked for; the value is the mutation's name, which an idempotency key belongs to."""

    BOOK = "bookConcert"
    PAY = "payBooking"
    CANCEL = "cancelBooking"
    CHANGE = "updateConcert"
    CLOSE = "cancelConcert"


class Outcome(Enum):
    """What the client knows in the end."""

    OK = "ok"
    REFUSED = "refused"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Seen:
    """A booking as an answer showed it."""

    booking_id: str
    status: str
    version: int
    items: Lines
    total_minor: int
    payment_status: str | None = None


@dataclass(frozen=True, slots=True)
class Reason:
    """The facts that came with a refusal, where it has any."""

    ticket_type_id: str | None = None
    available: int | None = None
    max_tickets_per_user: int | None = None
    remaining: int | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """One intention of one client, retries under its key included.

    `wanted`: seats to book, or new capacities. `said`: every try's answer, oldest first. `code`: the success's type,
    the refusal's code, or why nothing is known; `answered_s` is then when the client gave up.
    """

    kind: Kind
    user_id: str
    key: str | None
    invoked_s: float
    answered_s: float
    outcome: Outcome
    code: str
    said: tuple[str, ...] = ()
    concert_id: str | None = None
    booking_id: str | None = None
    wanted: Lines = ()
    limit: int | None = None
    seen: Seen | None = None
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class Opening:
    """A sale before anybody bought of it."""

    concert_id: str
    version: int
    max_tickets_per_user: int
    capacities: Lines


@dataclass(frozen=True, slots=True)
class StockRow:
    """The seats of one ticket type; `counted_...` are the sums over bookings in the same snapshot, where asked for."""

    ticket_type_id: str
    capacity: int
    held: int
    sold: int
    counted_held: int | None = None
    counted_sold: int | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One concert's stock as a second connection saw it, some time between `began_s` and `ended_s`."""

    concert_id: str
    began_s: float
    ended_s: float
    version: int
    stock: tuple[StockRow, ...]


class Mark(Enum):
    """What happened to a subscriber, as opposed to what it was told."""

    CONNECTED = "connected"  # the next message is a first one: it replaces what was held
    PAUSED = "paused"  # the subscriber reads no more
    RESUMED = "resumed"  # it reads again


@dataclass(frozen=True, slots=True)
class Heard:
    """One entry of a subscription: a mark, or a state of `subject_id` (a concert, or a booking)."""

    at_s: float
    mark: Mark | None = None
    subject_id: str = ""
    version: int = 0
    status: str | None = None
    stock: tuple[StockRow, ...] = ()
    # What the message itself says is available, per ticket type and in all.
    available: Lines = ()
    available_in_all: int | None = None


@dataclass(slots=True)
class Recording:
    """All that one subscriber heard of these concerts or bookings, in order."""

    name: str
    subject_ids: tuple[str, ...]
    entries: list[Heard] = field(default_factory=list)

    def mark(self, mark: Mark) -> None:
        """It happened now."""
        self.entries.append(Heard(time.monotonic(), mark))

    @property
    def versions(self) -> dict[str, int]:
        """The newest version heard of each subject."""
        newest: dict[str, int] = {}
        for entry in self.entries:
            if entry.mark is None:
                newest[entry.subject_id] = max(entry.version, newest.get(entry.subject_id, 0))
        return newest


@dataclass(slots=True)
class Pending:
    """An operation that is under way; exactly one of `ok`, `refused` and `unknown` ends it."""

    said: list[str] = field(default_factory=list)
    outcome: Outcome | None = None
    code: str = ""
    seen: Seen | None = None
    reason: Reason | None = None

    def ok(self, code: str, seen: Seen | None = None) -> None:
        """It was done."""
        self._end(Outcome.OK, code)
        self.seen = seen

    def refused(self, code: str, reason: Reason | None = None) -> None:
        """It was certainly not done."""
        self._end(Outcome.REFUSED, code)
        self.reason = reason

    def unknown(self, code: str) -> None:
        """Nobody said."""
        self._end(Outcome.UNKNOWN, code)

    def _end(self, outcome: Outcome, code: str) -> None:
        assert self.outcome is None, "an operation ends once"
        self.outcome, self.code = outcome, code


@dataclass(slots=True)
class History:
    """All operations, in the order in which they ended."""

    openings: list[Opening] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    # Seconds to add to a monotonic time for the wall clock's, which the database's clock shows.
    wall_offset_s: float = field(default_factory=lambda: time.time() - time.monotonic())

    @contextmanager
    def operation(
        self,
        kind: Kind,
        user_id: str,
        *,
        key: str | None,
        concert_id: str | None = None,
        booking_id: str | None = None,
        wanted: Lines = (),
        limit: int | None = None,
    ) -> Iterator[Pending]:
        """Recorded when the block ends; unknown where it ends without a word."""
        pending, invoked_s = Pending(), time.monotonic()
        try:
            yield pending
        finally:
            if pending.outcome is None:
                pending.unknown("the client went away")
            assert pending.outcome is not None
            self.operations.append(
                Operation(
                    kind=kind,
                    user_id=user_id,
                    key=key,
                    invoked_s=invoked_s,
                    answered_s=time.monotonic(),
                    outcome=pending.outcome,
                    code=pending.code,
                    said=tuple(pending.said),
                    concert_id=concert_id,
                    booking_id=booking_id,
                    wanted=wanted,
                    limit=limit,
                    seen=pending.seen,
                    reason=pending.reason,
                )
            )
