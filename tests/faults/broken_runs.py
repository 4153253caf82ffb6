"""Every way in which a run can break a promise, each a change of the healthy one made by hand."""

from dataclasses import replace

from tests.faults.checker import Evidence, Rule
from tests.faults.evidence import EventRow, Final, KeyRow, LedgerRow, SaleRow
from tests.faults.history import Heard, History, Kind, Opening, Outcome, Reason, Sample, StockRow
from tests.faults.made_by_hand import (
    OK,
    A,
    C,
    Change,
    P,
    X,
    all_of,
    event,
    heard,
    operation,
    seen,
    stock,
    with_heard,
    with_item,
    with_operation,
    with_row,
    without_operation,
    without_row,
)  # fmt: skip


def nothing_happened(run: Evidence) -> Evidence:
    """Everybody was refused, and nothing is there."""
    sale = replace(run.final.sales[0], version=1, stock=stock(0, 0))
    return Evidence(
        history=replace(run.history, operations=[]),
        final=Final((sale,), (), (), (), (), 0),
    )


def two_captures(run: Evidence) -> Evidence:
    """The booking was paid for with two intents; one of them went back."""
    extra = LedgerRow("pi_2", "b1", 100, "EUR", "succeeded", 100, refunds=1)
    return replace(run, ledger=[*(run.ledger or ()), extra])


def two_keys(run: Evidence) -> Evidence:
    """Two requests of Ann's, under different keys, made one booking."""
    keys = (*run.final.keys, KeyRow("ann", "bookConcert", "k10", "b1", None))
    again = replace(run.history.operations[0], key="k10")
    history = replace(run.history, operations=[*run.history.operations, again])
    return replace(run, history=history, final=replace(run.final, keys=keys))


BROKEN: list[tuple[str, Change, set[Rule]]] = [
    ("nothing happened", nothing_happened, {Rule.SOMETHING_HAPPENED}),
    (
        "no concert is judged",
        lambda run: replace(run, history=History([], [], 0.0), recordings=[], samples=None),
        {Rule.SOMETHING_HAPPENED},
    ),
    (
        "nobody looked at the stock",
        lambda run: replace(run, samples=[]),
        {Rule.SOMETHING_HAPPENED},
    ),
    (
        "a booking is told with another status than its history has",
        with_operation(0, seen=seen("b1", 1, P, 1)),
        {Rule.ACKNOWLEDGED},
    ),
    (
        "a booking is told with other seats than it has",
        with_operation(0, wanted=(("t", 2),), seen=seen("b1", 2, A, 1)),
        {Rule.ACKNOWLEDGED},
    ),
    ("a version is told that never was", with_operation(2, seen=seen("b2", 2, A, 7)), {Rule.ACKNOWLEDGED}),
    (
        "an attempt that was declined, so they were told, has the money",
        with_operation(1, outcome=Outcome.REFUSED, code="PAYMENT_DECLINED", seen=None),
        {Rule.REFUSED, Rule.REASON},
    ),
    (
        "a request that was refused has cancelled",
        with_operation(7, outcome=Outcome.REFUSED, code="HOLD_EXPIRED", seen=None),
        {Rule.REFUSED, Rule.ASKED},
    ),
    (
        "a key was claimed and left without an outcome",
        lambda run: replace(
            run,
            final=replace(run.final, keys=(*run.final.keys, KeyRow("dan", "bookConcert", "k9", None, None))),
        ),
        {Rule.WHOLE},
    ),
    (
        "a booking that nobody was told of has other seats than were asked for",
        with_operation(6, wanted=(("t", 2),)),
        {Rule.WHOLE},
    ),
    ("told of 1 free seat where none was", with_operation(3, reason=Reason("t", 1)), {Rule.REASON}),
    (
        "told of no free seat where there were enough",
        with_operation(3, invoked_s=70.0, answered_s=70.5),
        {Rule.REASON},
    ),
    (
        "told of a limit that was not reached",
        with_operation(4, user_id="eve"),
        {Rule.REASON},
    ),
    (
        "told that a hold has passed before it did",
        with_operation(5, invoked_s=14.0, answered_s=14.5),
        {Rule.REASON},
    ),
    (
        "told that a booking was cancelled, which was not",
        with_operation(5, code="ALREADY_CANCELLED"),
        {Rule.REASON},
    ),
    (
        "told to come back later though the processor was well",
        with_operation(5, code="PaymentDeferred", outcome=Outcome.OK),
        {Rule.REASON},
    ),
    ("one booking was made under two keys", two_keys, {Rule.KEYS}),
    ("a booking that was told has a key that is kept nowhere", without_row("keys", 0), {Rule.KEYS}),
    ("nobody asked for a booking", without_operation(6), {Rule.ASKED}),
    ("nobody asked for a cancellation", without_operation(7), {Rule.ASKED}),
    ("nobody asked to pay", without_operation(1), {Rule.ASKED}),
    (
        "somebody was told INTERNAL, and then the truth",
        with_operation(0, said=("INTERNAL", "BookConcertSuccess")),
        {Rule.NO_INTERNAL},
    ),
    (
        "an expired booking is cancelled",
        all_of(
            with_row("bookings", 1, status=C, version=3),
            lambda run: replace(
                run,
                final=replace(run.final, events=(*run.final.events, event("b2", 3, X, C, 7, 63.0))),
                history=replace(
                    run.history,
                    operations=[
                        *run.history.operations,
                        operation(Kind.CANCEL, "bob", "k11", 63, "CancelBookingSuccess", booking_id="b2"),
                    ],
                ),
            ),
            with_heard(1, lambda entries: [*entries, Heard(64.0, None, "b2", 3, status=C)]),
        ),
        {Rule.TRANSITION, Rule.REAL_TIME},
    ),
    (
        "a booking is where its history does not lead",
        with_row("bookings", 1, status=A),
        {Rule.TRANSITION},
    ),
    (
        "two seats are given where one is left",
        lambda run: replace(
            run,
            history=replace(run.history, openings=[Opening("c", 1, 2, (("t", 2),))]),
            final=replace(run.final, sales=(SaleRow("c", 7, False, 2, stock(0, 1, capacity=2)),)),
            samples=None,
            recordings=[],
        ),
        {Rule.STOCK, Rule.REASON},
    ),
    (
        "somebody has two tickets where one is allowed",
        lambda run: replace(
            run,
            history=replace(
                run.history,
                openings=[Opening("c", 1, 1, (("t", 3),))],
                operations=[op for op in run.history.operations if op.code != "TICKET_LIMIT"],
            ),
        ),
        {Rule.LIMIT},
    ),
    (
        "a change of the stock is in no booking's history",
        all_of(
            with_row("sales", 0, version=8),
            with_item("samples", 2, version=8),
            with_heard(0, lambda entries: [*entries[:-1], heard(70.0, 8, 0, 1)]),
        ),
        {Rule.ORDER},
    ),
    (
        "two changes have the same version",
        all_of(
            with_row("events", 5, stock_version=5),
            with_row("events", 6, stock_version=6),
            with_row("sales", 0, version=6),
            with_item("samples", 2, version=6),
            with_heard(0, lambda entries: [*entries[:-1], heard(70.0, 6, 0, 1)]),
        ),
        {Rule.ORDER},
    ),
    ("a version of a booking is missing", with_row("bookings", 0, version=4), {Rule.ORDER}),
    (
        "what was asked later comes first",
        with_operation(0, invoked_s=12.6, answered_s=13.0),
        {Rule.REAL_TIME},
    ),
    (
        "a look shows an older state than was acknowledged before",
        with_item("samples", 1, began_s=12.7, ended_s=12.8),
        {Rule.REAL_TIME},
    ),
    (
        "a look shows a state that never was",
        with_item("samples", 1, stock=stock(1, 1)),
        {Rule.CONSERVATION},
    ),
    (
        "a look shows more taken than there is",
        with_item("samples", 1, stock=stock(3, 1)),
        {Rule.CONSERVATION},
    ),
    (
        "the stock went back",
        lambda run: replace(run, samples=[*(run.samples or ()), Sample("c", 71.0, 71.1, 6, stock(1, 1))]),
        {Rule.CONSERVATION, Rule.REAL_TIME},
    ),
    (
        "the counters are not the sums in a look",
        with_item("samples", 1, stock=(StockRow("t", 3, 0, 1, 1, 1),)),
        {Rule.COUNTERS},
    ),
    ("the counters are not the sums in the end", with_row("sales", 0, stock=stock(1, 1)), {Rule.COUNTERS}),
    ("a booking was paid for twice", two_captures, {Rule.CAPTURED_ONCE}),
    (
        "money went back twice",
        all_of(
            with_item("ledger", 0, refunded_minor=100, refunds=2),
            with_row("bookings", 0, status=C, version=4),
            with_row("payments", 0, status="REFUNDED"),
            with_row("sales", 0, version=8, stock=stock(0, 0)),
            lambda run: replace(
                run,
                final=replace(run.final, events=(*run.final.events, cancelled_by_the_processor())),
                samples=None,
                recordings=[],
            ),
        ),
        {Rule.REFUNDED_ONCE},
    ),
    (
        "a part of the money went back",
        with_item("ledger", 0, refunded_minor=40, refunds=1),
        {Rule.REFUNDED_ONCE},
    ),
    (
        "an approved booking's money went back",
        with_item("ledger", 0, refunded_minor=100, refunds=1),
        {Rule.MONEY},
    ),
    ("an approved booking was never paid", with_item("ledger", 0, status="canceled"), {Rule.MONEY}),
    ("another amount was taken", with_item("ledger", 0, amount_minor=99), {Rule.MONEY}),
    (
        "an expired booking's money was kept",
        lambda run: replace(
            run, ledger=[*(run.ledger or ()), LedgerRow("pi_2", "b2", 200, "EUR", "succeeded", 0)]
        ),
        {Rule.MONEY},
    ),
    (
        "money was taken for a booking that is absent",
        lambda run: replace(
            run, ledger=[*(run.ledger or ()), LedgerRow("pi_2", "b9", 200, "EUR", "succeeded", 0)]
        ),
        {Rule.MONEY},
    ),
    ("no attempt says that it took the money", with_row("payments", 0, status="DECLINED"), {Rule.MONEY}),
    ("events were not told", lambda run: replace(run, final=replace(run.final, waiting=1)), {Rule.SETTLED}),
    (
        "an attempt is still under way",
        with_row("payments", 0, status="REFUND_PENDING"),
        {Rule.SETTLED},
    ),
    (
        "a booking that is over can still be charged",
        lambda run: replace(
            run, ledger=[*(run.ledger or ()), LedgerRow("pi_2", "b2", 200, "EUR", "requires_action", 0)]
        ),
        {Rule.SETTLED},
    ),
    ("a subscriber hears nothing", with_heard(0, lambda entries: entries[:1]), {Rule.STREAM_SILENT}),
    (
        "a stream goes back",
        with_heard(0, lambda entries: [*entries, heard(71.0, 6, 1, 1)]),
        {Rule.STREAM_REVERSAL, Rule.STREAM_BACKLOG},
    ),
    (
        "a stream says the same twice",
        with_heard(1, lambda entries: [entries[0], *entries]),
        {Rule.STREAM_REVERSAL},
    ),
    (
        "a stream goes back when it is connected anew",
        with_heard(0, lambda entries: [*entries[:4], heard(13.1, 3, 0, 1), *entries[5:]]),
        {Rule.STREAM_REVERSAL},
    ),
    ("a stream ends too early", with_heard(1, lambda entries: entries[:1]), {Rule.STREAM_STALE}),
    (
        "a message shows a stock that there never was",
        with_heard(0, lambda entries: [*entries[:-1], heard(70.0, 7, 1, 1)]),
        {Rule.STREAM_PAYLOAD},
    ),
    (
        "a message says that more is available than is",
        with_heard(0, lambda entries: [*entries[:-1], heard(70.0, 7, 0, 1, available=3)]),
        {Rule.STREAM_PAYLOAD},
    ),
    (
        "a message shows a status that the booking did not have",
        with_heard(1, lambda entries: [replace(entries[0], status=P), entries[1]]),
        {Rule.STREAM_PAYLOAD},
    ),
    (
        "a slow reader finds an old state waiting",
        with_heard(0, lambda entries: [*entries[:-1], heard(69.1, 5, 0, 1), entries[-1]]),
        {Rule.STREAM_BACKLOG},
    ),
    (
        "the read model differs",
        lambda run: replace(run, read_model=["sale c: missing in the read model"]),
        {Rule.READ_MODEL},
    ),
]


def cancelled_by_the_processor() -> EventRow:
    """Somebody refunded b1 there."""
    return replace(event("b1", 4, OK, C, 8, 65.0), payment_status="REFUNDED")
