"""Runs made by hand, and ways to change them: what the checker is tested on."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.faults.checker import Evidence
from tests.faults.evidence import (
    BookingRow,
    EventRow,
    Final,
    KeyRow,
    LedgerRow,
    PaymentRow,
    SaleRow,
)
from tests.faults.history import (
    Heard,
    History,
    Kind,
    Mark,
    Opening,
    Operation,
    Outcome,
    Reason,
    Recording,
    Sample,
    Seen,
    StockRow,
)

A, P, OK, X, C = "AWAITING_PAYMENT", "PAYMENT_PENDING", "APPROVED", "EXPIRED", "CANCELLED"


def stock(held: int, sold: int, *, capacity: int = 3) -> tuple[StockRow, ...]:
    """Of the only ticket type."""
    return (StockRow("t", capacity, held, sold, held, sold),)


def event(booking_id: str, version: int, was: str | None, status: str, at: int, when_s: float) -> EventRow:
    """A change at this version of the stock."""
    payment = {P: "PROCESSING", OK: "CAPTURED"}.get(status)
    return EventRow(booking_id, version, was, status, payment, "c", at, when_s)


def booking(booking_id: str, user_id: str, tickets: int, status: str, version: int) -> BookingRow:
    """A booking of so many seats at 100 each."""
    return BookingRow(
        booking_id, user_id, "c", status, version, (("t", tickets),), 100 * tickets, "EUR", hold_until_s=50.0
    )


def seen(booking_id: str, tickets: int, status: str, version: int, payment: str | None = None) -> Seen:
    """The same as an answer showed it."""
    return Seen(booking_id, status, version, (("t", tickets),), 100 * tickets, payment)


def operation(kind: Kind, user_id: str, key: str, asked_s: float, code: str, **facts: Any) -> Operation:
    """Answered half a second later."""
    told: dict[str, Any] = {"outcome": Outcome.OK, "said": (code,), "answered_s": asked_s + 0.5} | facts
    return Operation(kind=kind, user_id=user_id, key=key, invoked_s=asked_s, code=code, **told)


def a_run() -> Evidence:
    """Ann buys one of three seats; Bob holds two and lets them expire; Cyd books, hears nothing, and cancels."""
    return Evidence(
        history=History([Opening("c", 1, 2, (("t", 3),))], _operations(), wall_offset_s=0.0),
        final=_final(),
        ledger=[LedgerRow("pi_1", "b1", 100, "EUR", "succeeded", 0, refunds=0)],
        samples=[
            Sample("c", 5.0, 5.1, 1, stock(0, 0)),
            Sample("c", 11.6, 11.7, 3, stock(0, 1)),
            Sample("c", 70.0, 70.1, 7, stock(0, 1)),
        ],
        recordings=_recordings(),
        read_model=[],
        is_calm=True,
    )


def _operations() -> list[Operation]:
    book, pay, cancel = Kind.BOOK, Kind.PAY, Kind.CANCEL
    two, one = (("t", 2),), (("t", 1),)
    return [
        operation(book, "ann", "k1", 10, "BookConcertSuccess", concert_id="c", wanted=one, seen=seen("b1", 1, A, 1)),
        operation(pay, "ann", "k2", 11, "PayBookingSuccess", booking_id="b1", seen=seen("b1", 1, OK, 3, "CAPTURED")),
        operation(book, "bob", "k3", 12, "BookConcertSuccess", concert_id="c", wanted=two, seen=seen("b2", 2, A, 1)),
        operation(
            book, "eve", "k4", 13, "SOLD_OUT",
            concert_id="c", wanted=one, outcome=Outcome.REFUSED, reason=Reason("t", 0),
        ),
        operation(
            book, "bob", "k5", 14, "TICKET_LIMIT", concert_id="c", wanted=one, outcome=Outcome.REFUSED,
            reason=Reason(max_tickets_per_user=2, remaining=0),
        ),
        operation(pay, "bob", "k6", 52, "HOLD_EXPIRED", booking_id="b2", outcome=Outcome.REFUSED),
        operation(book, "cyd", "k7", 60, "ReadTimeout", concert_id="c", wanted=one, outcome=Outcome.UNKNOWN),
        operation(cancel, "cyd", "k8", 62, "CancelBookingSuccess", booking_id="b3", seen=seen("b3", 1, C, 2)),
        operation(book, "dan", "k9", 63, "ReadTimeout", concert_id="c", wanted=one, outcome=Outcome.UNKNOWN),
    ]  # fmt: skip


def _final() -> Final:
    return Final(
        sales=(SaleRow("c", 7, False, 2, stock(0, 1)),),
        bookings=(
            booking("b1", "ann", 1, OK, 3),
            booking("b2", "bob", 2, X, 2),
            booking("b3", "cyd", 1, C, 2),
        ),
        events=(
            event("b1", 1, None, A, 2, 10.2),
            event("b1", 2, A, P, 2, 11.1),
            event("b1", 3, P, OK, 3, 11.2),
            event("b2", 1, None, A, 4, 12.2),
            event("b2", 2, A, X, 5, 51.0),
            event("b3", 1, None, A, 6, 60.2),
            event("b3", 2, A, C, 7, 62.2),
        ),
        payments=(PaymentRow("p1", "b1", 100, "EUR", "CAPTURED", "pi_1"),),
        keys=(
            KeyRow("ann", "bookConcert", "k1", "b1", None),
            KeyRow("ann", "payBooking", "k2", "p1", None),
            KeyRow("bob", "bookConcert", "k3", "b2", None),
            KeyRow("eve", "bookConcert", "k4", None, "SoldOut {}"),
            KeyRow("cyd", "bookConcert", "k7", "b3", None),
            KeyRow("cyd", "cancelBooking", "k8", "b3", None),
        ),
        waiting=0,
    )


def _recordings() -> list[Recording]:
    return [
        Recording(
            "counts",
            ("c",),
            [
                Heard(5.0, Mark.CONNECTED),
                heard(5.1, 1, 0, 0),
                heard(12.6, 4, 2, 1),
                Heard(13.0, Mark.CONNECTED),
                heard(13.1, 4, 2, 1),
                Heard(14.0, Mark.PAUSED),
                Heard(69.0, Mark.RESUMED),
                heard(70.0, 7, 0, 1),
            ],
        ),
        Recording(
            "booking",
            ("b2",),
            [Heard(13.0, None, "b2", 1, status=A), Heard(52.0, None, "b2", 2, status=X)],
        ),
    ]


def heard(at_s: float, version: int, held: int, sold: int, *, available: int | None = None) -> Heard:
    """The count as a message."""
    free = 3 - held - sold if available is None else available
    rows = (StockRow("t", 3, held, sold),)
    return Heard(at_s, None, "c", version, stock=rows, available=(("t", free),), available_in_all=free)


def a_long_run(bookings: int) -> Evidence:
    """So many bookings and half as many payments."""
    concerts = [f"c{n}" for n in range(10)]
    version, held, sold = (dict.fromkeys(concerts, start) for start in (1, 0, 0))
    history = History([Opening(name, 1, 1_000_000, (("t", 1_000_000),)) for name in concerts], [], 0.0)
    final: dict[str, list[Any]] = {"bookings": [], "events": [], "payments": [], "keys": []}
    ledger, samples = [], []
    for n in range(bookings):
        concert, name, user = concerts[n % 10], f"b{n}", f"u{n % 500}"
        at_s = n * 0.01
        version[concert] += 1
        held[concert] += 1
        final["events"].append(
            replace(event(name, 1, None, A, version[concert], at_s + 0.001), concert_id=concert)
        )
        final["keys"].append(KeyRow(user, "bookConcert", f"k{n}", name, None))
        history.operations.append(
            operation(
                Kind.BOOK, user, f"k{n}", at_s, "BookConcertSuccess",
                concert_id=concert, wanted=(("t", 1),), seen=seen(name, 1, A, 1),
            )
        )  # fmt: skip
        row = replace(booking(name, user, 1, A, 1), concert_id=concert)
        if n % 2:
            version[concert] += 1
            held[concert] -= 1
            sold[concert] += 1
            paid = [
                event(name, 2, A, P, version[concert] - 1, at_s),
                event(name, 3, P, OK, version[concert], at_s + 0.002),
            ]
            final["events"] += [replace(each, concert_id=concert) for each in paid]
            final["payments"].append(PaymentRow(f"p{n}", name, 100, "EUR", "CAPTURED", f"pi_{n}"))
            final["keys"].append(KeyRow(user, "payBooking", f"q{n}", f"p{n}", None))
            ledger.append(LedgerRow(f"pi_{n}", name, 100, "EUR", "succeeded", 0))
            history.operations.append(
                operation(
                    Kind.PAY, user, f"q{n}", at_s + 0.0005, "PayBookingSuccess",
                    booking_id=name, seen=seen(name, 1, OK, 3, "CAPTURED"),
                )
            )  # fmt: skip
            row = replace(row, status=OK, version=3)
        final["bookings"].append(row)
        samples.append(
            Sample(
                concert, at_s + 0.003, at_s + 0.004, version[concert],
                (StockRow("t", 1_000_000, held[concert], sold[concert]),),
            )
        )  # fmt: skip
    sales = tuple(
        SaleRow(name, version[name], False, 1_000_000, (StockRow("t", 1_000_000, held[name], sold[name]),))
        for name in concerts
    )
    rows: dict[str, Any] = {table: tuple(found) for table, found in final.items()}
    return Evidence(history, Final(sales=sales, waiting=0, **rows), ledger, samples)


# ---------------------------------------------------------------- changing a run
Change = Callable[[Evidence], Evidence]


def with_operation(number: int, **facts: Any) -> Change:
    """One operation is another."""

    def change(run: Evidence) -> Evidence:
        operations = list(run.history.operations)
        operations[number] = replace(operations[number], **facts)
        return replace(run, history=replace(run.history, operations=operations))

    return change


def without_operation(number: int) -> Change:
    """One operation was never recorded."""

    def change(run: Evidence) -> Evidence:
        operations = [each for at, each in enumerate(run.history.operations) if at != number]
        return replace(run, history=replace(run.history, operations=operations))

    return change


def with_row(table: str, number: int, **facts: Any) -> Change:
    """One row of the final read is another."""

    def change(run: Evidence) -> Evidence:
        rows = list(getattr(run.final, table))
        rows[number] = replace(rows[number], **facts)
        changed: dict[str, Any] = {table: tuple(rows)}
        return replace(run, final=replace(run.final, **changed))

    return change


def without_row(table: str, number: int) -> Change:
    """One row of the final read is missing."""

    def change(run: Evidence) -> Evidence:
        rows = [row for at, row in enumerate(getattr(run.final, table)) if at != number]
        changed: dict[str, Any] = {table: tuple(rows)}
        return replace(run, final=replace(run.final, **changed))

    return change


def with_item(name: str, number: int, **facts: Any) -> Change:
    """One look, or one row of the ledger, is another."""

    def change(run: Evidence) -> Evidence:
        items = list(getattr(run, name))
        items[number] = replace(items[number], **facts)
        changed: dict[str, Any] = {name: items}
        return replace(run, **changed)

    return change


def with_heard(recording: int, entries: Callable[[list[Heard]], list[Heard]]) -> Change:
    """One subscriber heard something else."""

    def change(run: Evidence) -> Evidence:
        recordings = list(run.recordings)
        recordings[recording] = replace(
            recordings[recording], entries=entries(list(recordings[recording].entries))
        )
        return replace(run, recordings=recordings)

    return change


def all_of(*changes: Change) -> Change:
    """One after the other."""

    def change(run: Evidence) -> Evidence:
        for each in changes:
            run = each(run)
        return run

    return change
