"""Everything that a run left to judge it by, and a file to keep it in."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from tests.faults.history import History, Lines, Opening, Operation, Recording, Sample, StockRow


@dataclass(frozen=True, slots=True)
class SaleRow:
    """A sale at rest."""

    concert_id: str
    version: int
    is_cancelled: bool
    max_tickets_per_user: int
    stock: tuple[StockRow, ...]


@dataclass(frozen=True, slots=True)
class BookingRow:
    """A booking at rest. Times are the wall clock's, seconds."""

    booking_id: str
    user_id: str
    concert_id: str
    status: str
    version: int
    items: Lines
    total_minor: int
    currency: str
    hold_until_s: float


@dataclass(frozen=True, slots=True)
class EventRow:
    """One row of a booking's history. Times are the wall clock's, seconds."""

    booking_id: str
    version: int
    was: str | None
    status: str
    payment_status: str | None
    concert_id: str
    stock_version: int
    occurred_s: float


@dataclass(frozen=True, slots=True)
class PaymentRow:
    """One attempt at rest."""

    payment_id: str
    booking_id: str
    amount_minor: int
    currency: str
    status: str
    intent_id: str


@dataclass(frozen=True, slots=True)
class KeyRow:
    """What an idempotency key led to: the id of what it made or changed, or a refusal."""

    user_id: str
    mutation: str
    key: str
    reference: str | None
    refusal: str | None


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One intent as the processor keeps it. `refunds`: how many moved money, None where it doesn't say."""

    intent_id: str
    booking_id: str | None
    amount_minor: int
    currency: str
    status: str
    refunded_minor: int
    refunds: int | None = None

    @property
    def is_captured(self) -> bool:
        """Whether money came."""
        return self.status == "succeeded"

    @property
    def is_kept(self) -> bool:
        """Whether it came and did not go back."""
        return self.is_captured and self.refunded_minor < self.amount_minor


@dataclass(frozen=True, slots=True)
class Final:
    """The database once it is quiet, in one snapshot. `waiting`: events that were not told yet."""

    sales: tuple[SaleRow, ...]
    bookings: tuple[BookingRow, ...]
    events: tuple[EventRow, ...]
    payments: tuple[PaymentRow, ...]
    keys: tuple[KeyRow, ...]
    waiting: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the checker is given. What was not observed is None, and then not judged.

    `read_model`: where it differs from the database, one text each. `is_calm`: the test knows that the processor
    answered every call in time, so that nobody may be told to pay later.
    """

    history: History
    final: Final
    ledger: Sequence[LedgerRow] | None = None
    samples: Sequence[Sample] | None = None
    recordings: Sequence[Recording] = ()
    read_model: Sequence[str] | None = None
    is_calm: bool = False

    def save(self, path: Path) -> None:
        """Keep it, one JSON value per line: kind and record."""
        path.write_text("".join(f"{line}\n" for line in self._lines()))

    @classmethod
    def load(cls, path: Path) -> "Evidence":
        """What `save` kept."""
        lines = [_LINE.validate_json(line) for line in path.read_text().splitlines()]
        (head,) = [record for record in lines if isinstance(record, Head)]
        return cls(
            history=History(
                openings=[record for record in lines if isinstance(record, Opening)],
                operations=[record for record in lines if isinstance(record, Operation)],
                wall_offset_s=head.wall_offset_s,
            ),
            final=head.final,
            ledger=None if head.ledger is None else list(head.ledger),
            samples=[record for record in lines if isinstance(record, Sample)] if head.is_sampled else None,
            recordings=[record for record in lines if isinstance(record, Recording)],
            read_model=None if head.read_model is None else list(head.read_model),
            is_calm=head.is_calm,
        )

    def _lines(self) -> Iterator[str]:
        head = Head(
            wall_offset_s=self.history.wall_offset_s,
            final=self.final,
            ledger=None if self.ledger is None else tuple(self.ledger),
            is_sampled=self.samples is not None,
            read_model=None if self.read_model is None else tuple(self.read_model),
            is_calm=self.is_calm,
        )
        records: list[Record] = [head, *self.history.openings, *self.history.operations]
        for record in (*records, *(self.samples or ()), *self.recordings):
            yield _LINE.dump_json(record).decode()


@dataclass(frozen=True, slots=True)
class Head:
    """The part of the evidence that is no list of observations."""

    wall_offset_s: float
    final: Final
    ledger: tuple[LedgerRow, ...] | None
    is_sampled: bool
    read_model: tuple[str, ...] | None
    is_calm: bool


Record = Head | Opening | Operation | Sample | Recording
_LINE: TypeAdapter[Record] = TypeAdapter(Record)
