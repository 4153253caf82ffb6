"""`frontrow verify` finds every broken promise, and nothing else."""

from datetime import timedelta
from itertools import pairwise

import pytest

from infra.db.invariants import broken
from infra.db.promises import BEYOND, FIRST, PROMISES, Walk, findings
from infra.db.unit import Database
from tests.db_world import a_sale
from tests.fake_processor import FakeProcessor
from tests.paying import running_shop
from tests.whole_story import Story, Storyteller

pytestmark = pytest.mark.anyio

PAST = "'2026-01-01T00:00:00.000000+00:00'"


@pytest.fixture(scope="module")
def storyteller() -> Storyteller:
    """Has told nothing yet."""
    return Storyteller()


@pytest.fixture
async def story(database: Database, storyteller: Storyteller) -> Story:
    """Every kind of booking."""
    return await storyteller.tell(database)


async def test_empty_database_breaks_no_promise(database: Database) -> None:
    """Nothing to say; each check is announced."""
    told: list[str] = []
    assert [line async for line in broken(database, progress=told.append)] == []
    assert told == [f"Checking: {promise.title}" for promise in PROMISES]


async def test_whole_story_breaks_no_promise(story: Story) -> None:
    """Bookings of every state, payments, refunds and histories as the use cases leave them."""
    assert await story.broken() == []


BROKEN: list[tuple[str, list[str]]] = [
    (
        "UPDATE sale_stock SET capacity = capacity + 1 WHERE concert_id = 'c0001'",
        ["stock_bounds: ticket type c0001-t9 of concert c0001: capacity 2, held 1, sold 0"],
    ),
    (
        "UPDATE sale_stock SET held = held + 1 WHERE ticket_type_id = 'c-t9'",
        ["stock_sums: ticket type c-t9 of concert c: held 4, sold 2; bookings hold 3, own 2"],
    ),
    (
        "UPDATE sale_stock SET sold = 1 WHERE ticket_type_id = 'c-t8'",
        ["stock_sums: ticket type c-t8 of concert c: held 0, sold 1; bookings hold 0, own 0"],
    ),
    (
        "UPDATE booking_items SET ticket_type_id = 'lost' WHERE booking_id = '{held}'",
        [
            "stock_sums: ticket type c-t9 of concert c: held 3, sold 2; bookings hold 2, own 2",
            "stock_sums: ticket type lost of concert c: no stock; bookings hold 1, own 0",
        ],
    ),
    (
        "UPDATE bookings SET max_tickets_per_user = 2",
        ["ticket_limit: user ada has 3 tickets of concert c, allowed were 2"],
    ),
    (
        "DELETE FROM outbox WHERE kind = 'SaleClosed'",
        ["bookings_called_off: concert c0001 is cancelled, has live bookings, and nobody cancels them"],
    ),
    (
        "UPDATE bookings SET ticket_quantity = 2 WHERE id = '{expired}'",
        ["booking_sums: booking expired is of 2 tickets for 3500; its items are 1 for 3500"],
    ),
    (
        "UPDATE bookings SET total_minor = 1 WHERE id = '{expired}'",
        ["booking_sums: booking expired is of 1 tickets for 1; its items are 1 for 3500"],
    ),
    (
        "UPDATE payments SET amount_minor = 6999 WHERE id = '{paid_pay2}'",
        [
            "approved_is_paid: booking paid is APPROVED, to pay 7000 EUR; captured payments 1, paid 6999 EUR",
        ],
    ),
    (
        "UPDATE payments SET currency = 'USD' WHERE id = '{paid_pay2}'",
        [
            "approved_is_paid: booking paid is APPROVED, to pay 7000 EUR; captured payments 1, paid 7000 USD",
        ],
    ),
    (
        "UPDATE payments SET status = 'VOIDED' WHERE id = '{paid_pay2}'",
        [
            "approved_is_paid: booking paid is APPROVED, to pay 7000 EUR; captured payments 0, paid 0 ",
            "shown_payment: booking paid shows paid_pay2 as CAPTURED; that one is VOIDED",
        ],
    ),
    (
        "UPDATE payments SET status = 'CAPTURED' WHERE id = '{refunding_pay1}'",
        [
            "approved_is_paid: booking refunding is CANCELLED, to pay 10500 EUR; captured payments 1, paid 10500 EUR",
            "final_is_final: booking refunding is CANCELLED and not final; no money may move",
            "shown_payment: booking refunding shows refunding_pay1 as REFUND_PENDING; that one is CAPTURED",
        ],
    ),
    (
        "UPDATE payments SET status = 'CAPTURED', booking_id = 'lost' WHERE id = '{paid_pay1}'",
        ["approved_is_paid: booking lost is absent, and captured payments 1"],
    ),
    (
        "UPDATE payments SET status = 'REFUNDED' WHERE id = '{paid_pay1}'",
        ["captured_once: booking paid: money was captured 2 times"],
    ),
    (
        "DELETE FROM outbox WHERE kind = 'RefundRequested'",
        [
            "refunds_under_way: payment refunding_pay1 of booking refunding is REFUND_PENDING, "
            "and nobody asks for it"
        ],
    ),
    (
        "UPDATE payments SET status = 'UNKNOWN' WHERE id = '{paid_pay1}'",
        [
            "attempts_are_watched: payment paid_pay1 of booking paid is UNKNOWN, and nobody looks at its intent",
            "pending_is_sent: booking paid is APPROVED, and attempts under way are 1",
        ],
    ),
    (
        "UPDATE bookings SET status = 'PAYMENT_PENDING' WHERE id = '{held}'",
        [
            "history_ends_now: booking held, version 1, is PAYMENT_PENDING; its history ends "
            "as AWAITING_PAYMENT at stock 2 of 14",
            "pending_is_sent: booking held is PAYMENT_PENDING, and attempts under way are 0",
        ],
    ),
    (
        "UPDATE payments SET status = 'UNKNOWN', booking_id = '{sent}' WHERE id = '{paid_pay1}'",
        [
            "attempts_are_watched: payment paid_pay1 of booking sent is UNKNOWN, and nobody looks at its intent",
            "pending_is_sent: booking sent is PAYMENT_PENDING, and attempts under way are 2",
        ],
    ),
    (
        "UPDATE payment_intents SET look_at = NULL",
        [
            "attempts_are_watched: intent sent_intent1 of booking sent is open, and nobody looks at it",
            "attempts_are_watched: payment sent_pay1 of booking sent is UNKNOWN, and nobody looks at its intent",
        ],
    ),
    (
        "UPDATE bookings SET payment_id = '{paid_pay1}' WHERE id = '{paid}'",
        ["shown_payment: booking paid shows paid_pay1 as CAPTURED; that one is DECLINED"],
    ),
    (
        "UPDATE bookings SET decline_code = 'stolen_card' WHERE id = '{paid}'",
        ["shown_payment: booking paid shows paid_pay2 as CAPTURED; that one is CAPTURED"],
    ),
    (
        "UPDATE bookings SET payment_id = 'lost' WHERE id = '{held}'",
        ["shown_payment: booking held shows lost as nothing; that one is absent"],
    ),
    (
        "UPDATE bookings SET is_final = TRUE WHERE id = '{refunding}'",
        ["final_is_final: booking refunding is CANCELLED and final; money may move"],
    ),
    (
        "UPDATE bookings SET is_final = FALSE WHERE id = '{expired}'",
        ["final_is_final: booking expired is EXPIRED and not final; no money may move"],
    ),
    (
        "DELETE FROM booking_events WHERE booking_id = '{expired}' AND version = 1",
        [
            "history_is_a_chain: booking expired, version 2: from AWAITING_PAYMENT to EXPIRED at stock 9; "
            "before it version 0, nothing at stock 0"
        ],
    ),
    (
        "UPDATE booking_events SET was = 'PAYMENT_DEFERRED' WHERE booking_id = '{expired}' AND version = 2",
        [
            "history_is_a_chain: booking expired, version 2: from PAYMENT_DEFERRED to EXPIRED at stock 9; "
            "before it version 1, AWAITING_PAYMENT at stock 8"
        ],
    ),
    (
        "UPDATE booking_events SET status = 'EXPIRED' WHERE booking_id = '{held}'",
        [
            "history_ends_now: booking held, version 1, is AWAITING_PAYMENT; its history ends "
            "as EXPIRED at stock 2 of 14",
            "history_is_a_chain: booking held, version 1: from nothing to EXPIRED at stock 2; "
            "before it version 0, nothing at stock 0",
        ],
    ),
    (
        "UPDATE booking_events SET stock_version = 10 WHERE booking_id = '{expired}' AND version = 1",
        [
            "history_is_a_chain: booking expired, version 2: from AWAITING_PAYMENT to EXPIRED at stock 9; "
            "before it version 1, AWAITING_PAYMENT at stock 10"
        ],
    ),
    (
        "UPDATE booking_events SET stock_version = 15 WHERE booking_id = '{held}'",
        [
            "history_ends_now: booking held, version 1, is AWAITING_PAYMENT; its history ends "
            "as AWAITING_PAYMENT at stock 15 of 14"
        ],
    ),
    (
        "UPDATE booking_events SET concert_id = 'c0001' WHERE booking_id = '{held}'",
        [
            "history_ends_now: booking held, version 1, is AWAITING_PAYMENT; its history ends "
            "as AWAITING_PAYMENT at stock 2 of 14"
        ],
    ),
    (
        "UPDATE booking_events SET payment_status = NULL WHERE booking_id = '{sent}' AND version = 3",
        [
            "history_ends_now: booking sent, version 3, is PAYMENT_PENDING; its history ends "
            "as PAYMENT_PENDING at stock 10 of 14"
        ],
    ),
    (
        "DELETE FROM booking_events WHERE booking_id = '{expired}' AND version = 2",
        ["history_ends_now: booking expired, version 2, is EXPIRED; its history ends before"],
    ),
    (
        "UPDATE bookings SET version = 1, status = 'AWAITING_PAYMENT' WHERE id = '{deferred}'",
        [
            "changes_are_counted: buyer dan has version 2 after 1 changes",
            "history_ends_now: booking deferred, version 1, is AWAITING_PAYMENT; its history ends later",
        ],
    ),
    (
        "UPDATE buyers SET my_page_version = 3 WHERE user_id = 'dan'",
        ["changes_are_counted: buyer dan has version 3 after 2 changes"],
    ),
    (
        "DELETE FROM buyers WHERE user_id = 'dan'",
        ["changes_are_counted: buyer dan has version 0 after 2 changes"],
    ),
    (
        "INSERT INTO buyers VALUES ('zoe', 1)",
        ["changes_are_counted: buyer zoe has version 1 and no booking"],
    ),
    (
        "UPDATE idempotency_keys SET reference = 'lost' WHERE mutation = 'bookConcert'",
        ["answers_are_kept: bookConcert of user ada led to lost, which is not there"],
    ),
    (
        "UPDATE idempotency_keys SET reference = '{paid}' WHERE mutation = 'payBooking'",
        ["answers_are_kept: payBooking of user ada led to paid, which is not there"],
    ),
    (
        "UPDATE idempotency_keys SET reference = NULL WHERE mutation = 'bookConcert'",
        ["answers_are_kept: bookConcert of user ada led to nothing, which is not there"],
    ),
    (
        f"UPDATE bookings SET hold_until = {PAST}, updated_at = {PAST} WHERE id = '{{held}}'",
        ["holds_end: booking held is AWAITING_PAYMENT since its hold has ended"],
    ),
    (
        f"UPDATE payment_intents SET look_at = {PAST} WHERE look_at IS NOT NULL",
        ["looks_happen: intent sent_intent1 of booking sent was to be looked at"],
    ),
    (
        f"UPDATE outbox SET id = 0, error = 'no answer', attempts = 3, created_at = {PAST} "
        "WHERE kind = 'RefundRequested'",
        ["events_are_told: RefundRequested 0 waits after 3 attempts: no answer"],
    ),
    (
        f"UPDATE idempotency_keys SET claimed_at = {PAST} WHERE mutation = 'payBooking'",
        ["keys_are_forgotten: payBooking of user ada keeps its key"],
    ),
]


@pytest.mark.parametrize(
    ("harm", "found"),
    BROKEN,
    ids=[f"{n}-{found[0].partition(':')[0]}" for n, (_, found) in enumerate(BROKEN)],
)
async def test_broken_promise_is_told(story: Story, harm: str, found: list[str]) -> None:
    """Exactly those that the harm breaks, with the numbers."""
    await story.harm(harm)
    assert await story.broken() == found


def test_every_promise_was_seen_broken() -> None:
    """A new promise needs a row above."""
    seen = {line.split(":")[0] for _, found in BROKEN for line in found}
    assert seen == {promise.name for promise in PROMISES}


async def test_limit_that_was_lowered_later_breaks_nothing(story: Story, database: Database) -> None:
    """Only the limit in force at the last booking counts, not the one before or after it."""
    await story.harm("UPDATE sales SET max_tickets_per_user = 4 WHERE concert_id = 'c'")
    async with running_shop(database, FakeProcessor()) as shop:
        sale = await shop.sale(a_sale().concert_id)
        story.names["later"] = (await shop.book(sale, "ada")).id
    await story.harm("UPDATE sales SET max_tickets_per_user = 1")
    assert await story.broken() == []
    await story.harm("UPDATE bookings SET max_tickets_per_user = 3 WHERE id = '{later}'")
    assert await story.broken() == ["ticket_limit: user ada has 4 tickets of concert c, allowed were 3"]


async def test_hold_is_not_late_where_a_payment_was_under_way_until_now(story: Story) -> None:
    """It ended long ago, and only now the payment came to nothing: somebody comes by in a moment."""
    await story.harm(f"UPDATE bookings SET hold_until = {PAST}")
    assert await story.broken() == []


async def test_what_is_due_may_take_its_time(story: Story, database: Database) -> None:
    """Nothing is late a moment before its time, and each is a moment after."""
    async with database.readers.single() as statements:
        now = await statements.now()
    for promise in (promise for promise in PROMISES if promise.late_s is not None):
        column = {
            "holds_end": "bookings SET updated_at = '2026-01-01T00:00:00.000000+00:00', hold_until",
            "looks_happen": "payment_intents SET look_at",
            "events_are_told": "outbox SET created_at",
            "keys_are_forgotten": "idempotency_keys SET claimed_at",
        }[promise.name]
        for margin_s, is_late in ((-60.0, True), (60.0, False)):
            moment = now - timedelta(seconds=promise.late_s or 0) + timedelta(seconds=margin_s)
            await story.harm(f"UPDATE {column} = '{moment.isoformat(timespec='microseconds')}'")
            said = {line.split(":")[0] for line in await story.broken()}
            assert said - {"attempts_are_watched"} == ({promise.name} if is_late else set())


@pytest.mark.parametrize("walk", [walk for walk in Walk if walk is not Walk.WHOLE])
async def test_each_finding_is_in_one_part(story: Story, database: Database, walk: Walk) -> None:
    """Whatever the ids between parts, all parts together find what one look at everything does, each thing once."""
    await story.harm(
        "UPDATE sale_stock SET held = held + 1 WHERE held < capacity",
        "UPDATE bookings SET is_final = NOT is_final, max_tickets_per_user = 1, ticket_quantity = 9",
        "UPDATE buyers SET my_page_version = 99",
        "UPDATE idempotency_keys SET reference = 'lost'",
    )
    bounds = [FIRST, *sorted([*story.names.values(), "c", "ada", "bob", "eve"]), BEYOND]
    async with database.patient_readers.transaction() as statements:
        for promise in (promise for promise in PROMISES if promise.walk is walk):
            whole = sorted(each.text for each in await findings(statements, promise))
            parts = [
                each.text
                for first, beyond in pairwise(bounds)
                for each in await findings(statements, promise, first=first, beyond=beyond)
            ]
            assert sorted(parts) == whole
