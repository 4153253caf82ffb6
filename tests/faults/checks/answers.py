"""What clients were told, against what is there."""

from collections import defaultdict
from collections.abc import Callable, Iterator

from tests.faults.checks.case import CLOCK_SLACK_S, Case
from tests.faults.history import Kind, Operation, Outcome
from tests.faults.rules import Rule
from tests.faults.timeline import Report, Timeline

MOVING = (Kind.BOOK, Kind.PAY, Kind.CANCEL)
PAYABLE = ("AWAITING_PAYMENT", "PAYMENT_DEFERRED")
# Refusals of payBooking after which nothing of the request is kept.
NOTHING_KEPT = {"PAYMENT_IN_PROGRESS", "OVERLOADED", "RATE_LIMITED"}


def check_answers(case: Case, report: Report) -> None:
    """Every answer agrees with the final read, and every change has somebody who asked for it."""
    operations = [op for op in case.evidence.history.operations if case.is_judged(op)]
    if not any(op.outcome is Outcome.OK and op.kind in MOVING for op in operations):
        report(Rule.SOMETHING_HAPPENED, f"{len(operations)} operations, none of which was done")
    for operation in operations:
        for code in operation.said:
            if code.startswith("INTERNAL"):
                report(Rule.NO_INTERNAL, f"{_named(operation)}: told {code}")
        match operation.outcome:
            case Outcome.OK:
                _check_acknowledged(case, operation, report)
            case Outcome.REFUSED:
                _check_refused(case, operation, report)
                if (wrong := _wrong_reason(case, operation)) is not None:
                    report(Rule.REASON, f"{_named(operation)}: {wrong}")
            case Outcome.UNKNOWN:
                _check_whole(case, operation, report)
    _check_keys(case, operations, report)
    _check_asked(case, report)
    _check_calm(case, operations, report)


def check_real_time(case: Case, report: Report) -> None:
    """Whatever was answered before something else was asked has the lower version, concert by concert.

    A look at the stock, and a message of a stream, are answers too.
    """
    spans: defaultdict[str, list[tuple[float, float, int, bool, str]]] = defaultdict(list)
    for operation in case.evidence.history.operations:
        if (event := case.made_by(operation)) is not None and event.concert_id in case.judged:
            is_known = operation.outcome is Outcome.OK
            answered_s = operation.answered_s if is_known else float("inf")
            spans[event.concert_id].append(
                (case.asked_s(operation), answered_s, event.stock_version, True, _named(operation))
            )
    for sample in case.evidence.samples or ():
        if sample.concert_id in case.judged:
            spans[sample.concert_id].append(
                (sample.began_s, sample.ended_s, sample.version, False, "a look at the stock")
            )
    for recording in case.evidence.recordings:
        for entry in recording.entries:
            if entry.mark is None and entry.subject_id in case.judged:
                # Heard late is no fault here: it says of what comes after, not of what came before.
                spans[entry.subject_id].append(
                    (float("inf"), entry.at_s, entry.version, False, f"a message of {recording.name}")
                )
    for concert_id, found in spans.items():
        for text in _disordered(found):
            report(Rule.REAL_TIME, f"concert {concert_id}: {text}")


def _disordered(spans: list[tuple[float, float, int, bool, str]]) -> Iterator[str]:
    by_end = sorted(spans, key=lambda span: span[1])
    at, floor, floor_name = 0, 0, ""
    for asked_s, _, version, is_change, name in sorted(spans):
        while at < len(by_end) and by_end[at][1] < asked_s:
            if by_end[at][2] > floor:
                floor, floor_name = by_end[at][2], by_end[at][4]
            at += 1
        if asked_s == float("inf"):
            return
        if version < floor or (is_change and version == floor):
            yield f"{name} has version {version}, and {floor_name} had {floor} before it was asked"


# ---------------------------------------------------------------- done, refused, unknown
def _check_acknowledged(case: Case, operation: Operation, report: Report) -> None:
    seen = operation.seen
    if seen is None:
        return
    booking = case.bookings.get(seen.booking_id)
    if booking is None:
        report(Rule.ACKNOWLEDGED, f"{_named(operation)}: {seen.booking_id} is gone")
        return
    if (booking.user_id, booking.items, booking.total_minor) != (
        operation.user_id,
        seen.items,
        seen.total_minor,
    ):
        report(Rule.ACKNOWLEDGED, f"{_named(operation)}: told {seen}, there is {booking}")
    event = case.event_at(seen.booking_id, seen.version)
    if event is None or (event.status, event.payment_status) != (seen.status, seen.payment_status):
        report(Rule.ACKNOWLEDGED, f"{_named(operation)}: told {seen}, its history has {event}")
    if operation.kind is Kind.BOOK and operation.wanted != seen.items:
        report(Rule.ACKNOWLEDGED, f"{_named(operation)}: wanted {operation.wanted}, got {seen.items}")


def _check_refused(case: Case, operation: Operation, report: Report) -> None:
    row = case.key_of(operation)
    if row is None or row.reference is None:
        return
    if operation.kind is not Kind.PAY or operation.code in NOTHING_KEPT:
        report(Rule.REFUSED, f"{_named(operation)}: its key made {row.reference}")
    elif operation.code == "PAYMENT_DECLINED" and case.payments[row.reference].status == "CAPTURED":
        report(Rule.REFUSED, f"{_named(operation)}: attempt {row.reference} took the money")


def _check_whole(case: Case, operation: Operation, report: Report) -> None:
    row = case.key_of(operation)
    if row is None:
        return
    if row.reference is None and row.refusal is None:
        report(Rule.WHOLE, f"{_named(operation)}: its key is claimed and has no outcome")
    if row.reference is None:
        return
    if operation.kind is Kind.BOOK:
        booking = case.bookings.get(row.reference)
        if booking is None or case.event_at(row.reference, 1) is None or booking.items != operation.wanted:
            report(
                Rule.WHOLE, f"{_named(operation)}: its key made {row.reference}, of which there is {booking}"
            )
    elif operation.kind is Kind.PAY and row.reference not in case.payments:
        report(Rule.WHOLE, f"{_named(operation)}: its key made attempt {row.reference}, which is absent")
    elif operation.kind is Kind.CANCEL and case.event_that(row.reference, "CANCELLED") is None:
        report(
            Rule.WHOLE, f"{_named(operation)}: its key cancelled {row.reference}, which was never CANCELLED"
        )


# ---------------------------------------------------------------- who asked
def _check_keys(case: Case, operations: list[Operation], report: Report) -> None:
    makers: defaultdict[str, set[tuple[str, str | None]]] = defaultdict(set)
    for operation in operations:
        if operation.kind is not Kind.BOOK:
            continue
        row = case.key_of(operation)
        seen_id = operation.seen.booking_id if operation.seen else None
        if row is not None and row.reference is not None:
            makers[row.reference].add((operation.user_id, operation.key))
            if seen_id is not None and seen_id != row.reference:
                report(Rule.KEYS, f"{_named(operation)}: told {seen_id}, its key made {row.reference}")
        elif seen_id is not None:
            makers[seen_id].add((operation.user_id, operation.key))
            if operation.key is not None:
                report(Rule.KEYS, f"{_named(operation)}: told {seen_id}, and its key is kept nowhere")
    for booking in case.bookings.values():
        if len(makers[booking.booking_id]) != 1:
            keys = sorted(str(key) for _, key in makers[booking.booking_id])
            rule = Rule.KEYS if keys else Rule.ASKED
            report(rule, f"booking {booking.booking_id} of {booking.user_id} was made under the keys {keys}")


def _check_asked(case: Case, report: Report) -> None:
    closed = {
        op.concert_id
        for op in case.evidence.history.operations
        if op.kind is Kind.CLOSE and case.was_done(op)
    }
    paid = {payment.booking_id for payment in case.payments.values()}
    for booking in case.bookings.values():
        asked = case.of_booking.get(booking.booking_id, [])
        if booking.booking_id in paid and not any(op.kind is Kind.PAY for op in asked):
            report(Rule.ASKED, f"nobody asked to pay {booking.booking_id}")
        cancelled = case.event_that(booking.booking_id, "CANCELLED")
        if cancelled is None or booking.concert_id in closed or _is_reversal(cancelled.payment_status):
            continue
        if not any(op.kind is Kind.CANCEL and case.was_done(op) for op in asked):
            report(Rule.ASKED, f"nobody asked to cancel {booking.booking_id}")


def _is_reversal(payment_status: str | None) -> bool:
    """Whether the money had gone back at the processor, which cancels the booking here."""
    return payment_status == "REFUNDED"


def _check_calm(case: Case, operations: list[Operation], report: Report) -> None:
    if not case.evidence.is_calm:
        return
    for operation in operations:
        if operation.code in {"PaymentDeferred", "PaymentPending"}:
            report(Rule.REASON, f"{_named(operation)}: told {operation.code}, and the processor was well")


# ---------------------------------------------------------------- why it was refused
def _wrong_reason(case: Case, operation: Operation) -> str | None:
    """What is wrong with the reason given, None where it was true at some moment while the client waited."""
    if operation.kind is Kind.BOOK and operation.concert_id in case.timelines:
        check = _BOOKING_REASONS.get(operation.code)
        return None if check is None else check(case, operation, case.timelines[operation.concert_id])
    if operation.kind in {Kind.PAY, Kind.CANCEL} and operation.booking_id is not None:
        return _wrong_state(case, operation, operation.booking_id)
    return None


def _window(case: Case, operation: Operation, timeline: Timeline) -> range:
    return timeline.between(
        case.wall(case.asked_s(operation)) - CLOCK_SLACK_S, case.wall(operation.answered_s) + CLOCK_SLACK_S
    )


def _wrong_sold_out(case: Case, operation: Operation, timeline: Timeline) -> str | None:
    reason, kinds = operation.reason, dict(operation.wanted)
    if reason is None or reason.ticket_type_id is None or reason.available is None:
        return None
    if reason.available >= kinds.get(reason.ticket_type_id, 0):
        return f"{reason.available} were enough"
    window = _window(case, operation, timeline)
    if any(timeline.states[at].available(reason.ticket_type_id) == reason.available for at in window):
        return None
    shown = sorted({timeline.states[at].available(reason.ticket_type_id) for at in window})
    return f"told that {reason.available} are free, meanwhile it were {shown}"


def _wrong_limit(case: Case, operation: Operation, timeline: Timeline) -> str | None:
    reason, wanted = operation.reason, sum(n for _, n in operation.wanted)
    if reason is None or reason.max_tickets_per_user is None or reason.remaining is None:
        return None
    if wanted <= reason.remaining:
        return f"{reason.remaining} were enough"
    window = _window(case, operation, timeline)
    limits = {timeline.states[at].max_tickets_per_user for at in window}
    owned = timeline.tickets_between(operation.user_id, window)
    if reason.max_tickets_per_user in limits and reason.remaining in {
        max(0, reason.max_tickets_per_user - tickets) for tickets in owned
    }:
        return None
    return f"told {reason}, meanwhile the limit was {sorted(limits)} and they had {sorted(owned)}"


def _wrong_cancelled(case: Case, operation: Operation, timeline: Timeline) -> str | None:
    window = _window(case, operation, timeline)
    return None if any(timeline.states[at].is_cancelled for at in window) else "the concert was on"


_BOOKING_REASONS: dict[str, Callable[[Case, Operation, Timeline], str | None]] = {
    "SOLD_OUT": _wrong_sold_out,
    "TICKET_LIMIT": _wrong_limit,
    "CONCERT_CANCELLED": _wrong_cancelled,
}


def _wrong_state(case: Case, operation: Operation, booking_id: str) -> str | None:
    booking, until_s = case.bookings.get(booking_id), case.wall(operation.answered_s) + CLOCK_SLACK_S
    if booking is None:
        return None
    if operation.code == "NOT_FOUND":
        return "it is there" if booking.user_id == operation.user_id else None
    if operation.code == "HOLD_EXPIRED":
        expired = case.event_that(booking_id, "EXPIRED")
        was_over = booking.hold_until_s <= until_s or (expired is not None and expired.occurred_s <= until_s)
        # An attempt that was under way when the hold passed may have given it more time since.
        is_extended = any(
            event.occurred_s >= case.wall(operation.invoked_s) and event.status in PAYABLE
            for event in case.events.get(booking_id, ())
        )
        return (
            None if was_over or is_extended else f"it is held until {booking.hold_until_s}, after {until_s}"
        )
    if operation.code == "CONCERT_CANCELLED":
        is_on = not any(state.is_cancelled for state in case.timelines[booking.concert_id].states)
        return "the concert was on" if is_on else None
    if operation.code == "PAYMENT_DECLINED":
        is_declined = any(event.payment_status == "DECLINED" for event in case.events.get(booking_id, ()))
        return None if is_declined else "no attempt was declined"
    status = {"ALREADY_PAID": "APPROVED", "ALREADY_CANCELLED": "CANCELLED"}.get(operation.code)
    if status is None:
        return None
    event = case.event_that(booking_id, status)
    if event is None or event.occurred_s > until_s:
        return f"it was not {status}"
    return None


def _named(operation: Operation) -> str:
    what = operation.booking_id or operation.concert_id
    return f"{operation.kind.value} of {what} by {operation.user_id} ({operation.outcome.value} {operation.code})"
