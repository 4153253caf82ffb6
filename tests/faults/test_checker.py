"""The checker on histories made by hand: a healthy one, and one for every way in which a promise can be broken."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.broken_runs import BROKEN
from tests.faults.checker import Evidence, Rule, assert_healthy, check
from tests.faults.evidence import LedgerRow, SaleRow
from tests.faults.history import Kind, Opening, Outcome, Reason
from tests.faults.made_by_hand import (
    OK,
    C,
    Change,
    X,
    a_long_run,
    a_run,
    booking,
    event,
    operation,
    stock,
    with_operation,
    with_row,
    without_operation,
)  # fmt: skip


def test_a_healthy_run_breaks_nothing() -> None:
    """What was done, refused and never answered all fits the end."""
    assert check(a_run()) == []
    assert_healthy(a_run())


@pytest.mark.parametrize(
    ("change", "rules"), [pytest.param(change, rules, id=name) for name, change, rules in BROKEN]
)
def test_a_broken_promise_is_named(change: Change, rules: set[Rule]) -> None:
    """The rule that the run breaks, and no other."""
    assert {violation.rule for violation in check(change(a_run()))} == rules


def test_every_rule_is_proven() -> None:
    """There is a run above that breaks it."""
    assert {rule for _, _, rules in BROKEN for rule in rules} == set(Rule)


def test_a_batch_shares_its_last_version() -> None:
    """Bookings that end in one transaction carry one version, which rose by one for each of them."""
    run = a_run()
    events = list(run.final.events)
    events[4] = replace(events[4], stock_version=7)  # b2 expires together with b3
    events[5] = replace(events[5], stock_version=5)
    events[6] = replace(events[6], status=X)
    bookings = (*run.final.bookings[:2], booking("b3", "cyd", 1, X, 2))
    cancel_refused = with_operation(7, outcome=Outcome.REFUSED, code="HOLD_EXPIRED", seen=None)(run)
    keys = tuple(row for row in run.final.keys if row.key != "k8")
    final = replace(run.final, events=tuple(events), bookings=bookings, keys=keys)
    sales = (SaleRow("c", 7, False, 2, stock(0, 1, capacity=4)),)
    history = replace(cancel_refused.history, openings=[Opening("c", 1, 2, (("t", 4),))])
    history.operations[3] = replace(
        history.operations[3], reason=Reason("t", 0), invoked_s=61.0, answered_s=61.5
    )
    batched = Evidence(history, replace(final, sales=sales), run.ledger)
    assert check(batched) == []


def test_the_organiser_fills_the_gaps() -> None:
    """A new capacity and a cancelled concert raise the version without a booking."""
    run = a_run()
    more = operation(
        Kind.CHANGE, "boss", "k20", 64, "UpdateConcertSuccess", concert_id="c", wanted=(("t", 9),)
    )
    close = operation(Kind.CLOSE, "boss", "k21", 65, "CancelConcertSuccess", concert_id="c")
    refused = operation(
        Kind.BOOK, "eve", "k22", 66, "CONCERT_CANCELLED",
        concert_id="c", wanted=(("t", 1),), outcome=Outcome.REFUSED,
    )  # fmt: skip
    cancelled = replace(event("b1", 4, OK, C, 10, 67.0), payment_status="REFUND_PENDING")
    changed = replace(
        run,
        history=replace(run.history, operations=[*run.history.operations, more, close, refused]),
        final=replace(
            run.final,
            sales=(SaleRow("c", 10, True, 2, stock(0, 0, capacity=0)),),
            bookings=(booking("b1", "ann", 1, C, 4), *run.final.bookings[1:]),
            events=(*run.final.events, cancelled),
            payments=(replace(run.final.payments[0], status="REFUNDED"),),
        ),
        ledger=[LedgerRow("pi_1", "b1", 100, "EUR", "succeeded", 100)],
        recordings=[],
    )
    assert check(changed) == []
    assert {
        found.rule for found in check(without_operation(len(changed.history.operations) - 2)(changed))
    } >= {Rule.ORDER}


def test_a_run_is_kept_and_read_again(tmp_path: Path) -> None:
    """What a failed run left says the same when it is judged once more."""
    run = with_row("sales", 0, stock=stock(1, 1))(a_run())
    with pytest.raises(AssertionError, match="COUNTERS"):
        assert_healthy(run, keep_in=tmp_path)
    kept = Evidence.load(tmp_path / "evidence.jsonl")
    assert kept == run
    assert check(kept) == check(run)


def test_thirty_thousand_operations_are_judged_in_seconds() -> None:
    """Ten concerts, half of the bookings paid for, and a look at every stock at each of them."""
    run = a_long_run(20_000)
    began_s = time.perf_counter()
    assert check(run) == []
    assert time.perf_counter() - began_s < 60  # 2.6 s on two cores
