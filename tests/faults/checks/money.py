"""The processor's ledger against the bookings: it has the last word on where the money is."""

from tests.faults.checks.case import Case
from tests.faults.evidence import BookingRow, LedgerRow
from tests.faults.rules import Rule
from tests.faults.timeline import Report

# What an attempt says of itself, and whether money came and whether it went back.
CAPTURED = {"CAPTURED", "REFUND_PENDING", "REFUND_FAILED", "REFUNDED"}
OPEN_PAYMENTS = {"PROCESSING", "UNKNOWN", "REFUND_PENDING"}
# An intent in one of these may still be charged. One that waits for a method may be an orphan of a lost answer,
# which nobody can confirm: those count only if an attempt was made on them.
OPEN_INTENTS = {"requires_action", "processing"}
WAITING_INTENTS = {"requires_payment_method", "requires_confirmation"}


def check_settled(case: Case, report: Report) -> None:
    """Nothing is under way any more."""
    if case.evidence.final.waiting:
        report(Rule.SETTLED, f"{case.evidence.final.waiting} events were not told yet")
    for booking in case.bookings.values():
        if booking.status == "PAYMENT_PENDING":
            report(Rule.SETTLED, f"booking {booking.booking_id} still is PAYMENT_PENDING")
    for payment in case.payments.values():
        if payment.status in OPEN_PAYMENTS:
            report(
                Rule.SETTLED,
                f"payment {payment.payment_id} of {payment.booking_id} still is {payment.status}",
            )


def check_money(case: Case, report: Report) -> None:
    """Money that was kept belongs to an APPROVED booking, one capture each, and what went back went back once."""
    if case.evidence.ledger is None:
        return
    known = {row.booking_id for row in case.evidence.final.bookings}
    for entry in case.evidence.ledger:
        if entry.is_captured and entry.booking_id not in known:
            report(
                Rule.MONEY, f"{entry.intent_id} took money for booking {entry.booking_id}, which is absent"
            )
    attempted = {payment.intent_id for payment in case.payments.values()}
    for booking in case.bookings.values():
        entries = case.ledger.get(booking.booking_id, [])
        _check_captures(booking, entries, report)
        for entry in entries:
            _check_refunds(entry, report)
            is_open = entry.status in OPEN_INTENTS or (
                entry.status in WAITING_INTENTS and entry.intent_id in attempted
            )
            if is_open and booking.status in {"CANCELLED", "EXPIRED", "APPROVED"}:
                report(
                    Rule.SETTLED,
                    f"{entry.intent_id} still is {entry.status}, booking {booking.booking_id} {booking.status}",
                )
    _check_attempts(case, report)


def _check_captures(booking: BookingRow, entries: list[LedgerRow], report: Report) -> None:
    captured = [entry for entry in entries if entry.is_captured]
    kept = [entry for entry in captured if entry.is_kept]
    if len(captured) > 1:
        ids = ", ".join(entry.intent_id for entry in captured)
        report(Rule.CAPTURED_ONCE, f"booking {booking.booking_id} was paid for with {ids}")
    for entry in captured:
        if (entry.amount_minor, entry.currency) != (booking.total_minor, booking.currency):
            report(
                Rule.MONEY,
                f"{entry.intent_id} took {entry.amount_minor} {entry.currency} for booking {booking.booking_id}, "
                f"which costs {booking.total_minor} {booking.currency}",
            )
    if (booking.status == "APPROVED") != bool(kept):
        report(
            Rule.MONEY,
            f"booking {booking.booking_id} is {booking.status}, and of it was kept: "
            f"{', '.join(entry.intent_id for entry in kept) or 'nothing'}",
        )


def _check_refunds(entry: LedgerRow, report: Report) -> None:
    is_whole = entry.refunded_minor in {0, entry.amount_minor if entry.is_captured else 0}
    if not is_whole or (entry.refunds is not None and entry.refunds > 1):
        times = "" if entry.refunds is None else f" in {entry.refunds} refunds"
        report(
            Rule.REFUNDED_ONCE,
            f"{entry.intent_id} gave back {entry.refunded_minor} of {entry.amount_minor}{times}",
        )


def _check_attempts(case: Case, report: Report) -> None:
    """What the attempts on an intent say is what the processor says of it."""
    entries = {entry.intent_id: entry for entry in case.evidence.ledger or ()}
    captured_by: dict[str, str] = {}
    for payment in case.payments.values():
        entry = entries.get(payment.intent_id)
        if entry is None:
            report(Rule.MONEY, f"payment {payment.payment_id}: the processor knows no {payment.intent_id}")
            continue
        if payment.status in CAPTURED:
            captured_by[payment.intent_id] = payment.payment_id
            is_back = payment.status == "REFUNDED"
            is_right = entry.is_captured and is_back != entry.is_kept
            if not is_right and payment.status not in OPEN_PAYMENTS:
                report(
                    Rule.MONEY,
                    f"payment {payment.payment_id} is {payment.status}, {entry.intent_id} is {entry.status} "
                    f"with {entry.refunded_minor} of {entry.amount_minor} given back",
                )
    for intent_id in {payment.intent_id for payment in case.payments.values()}:
        entry = entries.get(intent_id)
        if entry is not None and entry.is_captured and intent_id not in captured_by:
            report(Rule.MONEY, f"{intent_id} took money, and no attempt says so")
