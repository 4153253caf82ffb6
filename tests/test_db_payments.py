"""Payments and idempotency keys in the database."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import chain

import pytest
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from domain.base import BookingId, InProgress, PaymentId, PaymentStatus, TicketTypeId
from domain.booking import SoldOut
from domain.ports import IntentRecord, OpenIntent, StoredOutcome
from infra.db.engine import DatabaseLimits
from infra.db.tables import idempotency_keys, payment_intents
from infra.db.unit import Database
from tests.db_world import NOW, a_booking, a_key, a_payment, a_sale, an_intent, recorded

pytestmark = pytest.mark.anyio

BOOKING = a_booking(a_sale())


async def make_due(database: Database) -> None:
    """The time of every waiting intent has come."""
    async with database.writers.transaction() as statements:
        waiting = payment_intents.c.look_at.is_not(None)
        await statements.change(update(payment_intents).where(waiting).values(look_at=NOW))
        await statements.commit()


# ---------------------------------------------------------------- attempts
async def test_attempt_is_read_back_as_it_was_written(database: Database) -> None:
    """Attempts of a booking come oldest first, with every column that a save may change."""
    first, second = a_payment(BOOKING, "p1"), a_payment(BOOKING, "p0", created_at=NOW + timedelta(seconds=1))
    captured = replace(
        first,
        status=PaymentStatus.CAPTURED,
        captured_at=NOW,
        refunded_at=NOW,
        decline_code="d",
        intent_id="pi_9",
    )
    async with database.write() as unit:
        await unit.payments.add(second)
        await unit.payments.add(first)
        assert await unit.payments.of_booking(BOOKING.id) == [first, second]
        await unit.payments.save((first, captured))
        assert await unit.payments.get(first.id) == captured
        assert await unit.payments.get(PaymentId("none")) is None
        await unit.commit()
    with pytest.raises(AssertionError, match="a row of payments was not as it was read"):
        async with database.write() as unit:
            await unit.payments.save((first, replace(first, status=PaymentStatus.DECLINED)))
            await unit.commit()
    assert await database.reads.payments([first.id, second.id]) == {first.id: captured, second.id: second}


async def test_action_is_kept_with_the_attempt(database: Database) -> None:
    """What the buyer needs to authenticate, and the number for a refund's key."""
    payment = a_payment(BOOKING)
    async with database.write() as unit:
        await unit.payments.add(payment)
        await unit.payments.save_actions({payment.id: ("cs", "https://bank.example")})
        assert await unit.payments.action(payment.id) == ("cs", "https://bank.example")
        assert await unit.payments.next_refund_number(payment.id) == 0
        await unit.payments.raise_refund_number(payment.id)
        assert await unit.payments.next_refund_number(payment.id) == 1


@pytest.mark.parametrize(
    "second", [PaymentStatus.CAPTURED, PaymentStatus.REFUND_PENDING, PaymentStatus.REFUND_FAILED]
)
async def test_booking_has_one_captured_payment_at_most(database: Database, second: PaymentStatus) -> None:
    """The table refuses money on top of money; what was refunded is out of the way."""
    async with database.write() as unit:
        await unit.payments.add(a_payment(BOOKING, "p0", status=PaymentStatus.REFUNDED))
        await unit.payments.add(a_payment(BOOKING, "p1", status=PaymentStatus.CAPTURED))
        await unit.commit()
    with pytest.raises(IntegrityError):
        async with database.write() as unit:
            await unit.payments.add(a_payment(BOOKING, "p2", status=second))
            await unit.commit()
    assert await database.reads.payments([PaymentId("p2")]) == {}


async def test_failed_refunds_are_listed_oldest_first(database: Database) -> None:
    """Only those that failed, up to the limit."""
    async with database.write() as unit:
        for n, status in enumerate(("REFUND_FAILED", "REFUNDED", "REFUND_FAILED", "REFUND_FAILED")):
            booking = replace(BOOKING, id=BookingId(f"b{n}"))
            await unit.payments.add(
                a_payment(
                    booking, f"p{n}", status=PaymentStatus(status), created_at=NOW - timedelta(seconds=n)
                )
            )
        assert [p.id for p in await unit.payments.failed_refunds(limit=2)] == ["p3", "p2"]


# ---------------------------------------------------------------- intents
async def test_booking_has_one_live_intent_at_most(database: Database) -> None:
    """A second one needs the first to be closed; each is found by its ids."""
    first, second = an_intent(BOOKING, "p1"), an_intent(BOOKING, "p2")
    async with database.write() as unit:
        await unit.payments.put_intents(first)
        await unit.commit()
    with pytest.raises(IntegrityError):
        async with database.write() as unit:
            await unit.payments.put_intents(second)
            await unit.commit()
    closed = replace(
        first, is_closed=True, charge_id="ch", create_number=3, creating_key="k", creating_until=NOW
    )
    async with database.write() as unit:
        await unit.payments.put_intents(closed)
        assert await unit.payments.open_intent(BOOKING.id) is None
        assert await unit.payments.with_open_intents([BOOKING.id]) == set()
        await unit.payments.put_intents(second)
        assert await unit.payments.open_intent(BOOKING.id) == second
        assert await unit.payments.with_open_intents([BOOKING.id, BookingId("b9")]) == {BOOKING.id}
        assert await unit.payments.intent(first.payment_id) == closed
        find = unit.payments.find_intent
        assert await find(payment_id=first.payment_id, intent_id=None) == closed
        assert await find(payment_id=PaymentId("p9"), intent_id="pi_p2") == second
        assert await find(payment_id=PaymentId("p9"), intent_id="pi_p9") is None
        assert await find(payment_id=None, intent_id=None) is None


async def test_many_intents_are_put_together(database: Database) -> None:
    """New ones and known ones, each as it is: only what is open and known to the processor is looked at."""
    bookings = [replace(BOOKING, id=BookingId(f"b{n}")) for n in range(4)]
    first, second, third, fourth = (an_intent(booking, f"p{n}") for n, booking in enumerate(bookings))
    closed = replace(second, is_closed=True, charge_id="ch")
    nameless = replace(third, intent_id=None, creating_until=NOW, creating_key="k")
    async with database.write() as unit:
        await unit.payments.put_intents(first, second)
        await unit.commit()
    async with database.write() as unit:
        with recorded(database) as seen:
            await unit.payments.put_intents(replace(first, create_number=2), closed, nameless, fourth)
            await unit.commit()
        assert len(seen) == 1
    async with database.write() as unit:
        named = ["p3", "p2", "p1", "p0", "none"]
        found = await unit.payments.intents([PaymentId(each) for each in named])
        assert await unit.payments.intents([]) == {}
    assert found == {
        "p0": replace(first, create_number=2),
        "p1": closed,
        "p2": nameless,
        "p3": fourth,
    }
    await make_due(database)
    async with database.write() as unit:
        due = await unit.payments.claim_open_intents(lease_s=60, limit=9)
    assert sorted(intent.payment_id for intent in due) == ["p0", "p3"]


async def test_due_intents_are_leased_to_one_caller(database: Database) -> None:
    """Five callers at once share twenty due intents; nobody's are claimed again before the lease is over."""
    async with database.write() as unit:
        for n in range(20):
            await unit.payments.put_intents(an_intent(replace(BOOKING, id=BookingId(f"b{n}")), f"p{n}"))
        await unit.payments.put_intents(
            an_intent(replace(BOOKING, id=BookingId("new")), "new", intent_id=None)
        )
        await unit.payments.put_intents(
            an_intent(replace(BOOKING, id=BookingId("old")), "old", is_closed=True)
        )
        assert await unit.payments.claim_open_intents(lease_s=60, limit=9) == [], (
            "whoever put it has a second"
        )
        await unit.commit()
    await make_due(database)

    async def claim(limit: int) -> list[PaymentId]:
        async with database.write() as unit:
            claimed = await unit.payments.claim_open_intents(lease_s=60, limit=limit)
            await unit.commit()
            return [intent.payment_id for intent in claimed]

    claims = await asyncio.gather(*(claim(5) for _ in range(5)))
    assert sorted(chain.from_iterable(claims)) == sorted(PaymentId(f"p{n}") for n in range(20))
    assert await claim(5) == []


async def test_intent_is_looked_at_again_when_it_was_said(database: Database) -> None:
    """Looks in vain are counted until somebody touches the intent; a closed one is not looked at again."""
    record = an_intent(BOOKING)
    last = OpenIntent(record.payment_id, record.booking_id, "pi", asked=0)

    async def claim() -> list[int]:
        nonlocal last
        async with database.write() as unit:
            claimed = await unit.payments.claim_open_intents(lease_s=60, limit=9)
            await unit.commit()
        last = claimed[0] if claimed else last
        return [intent.asked for intent in claimed]

    async def again(after_s: float) -> None:
        async with database.write() as unit:
            await unit.payments.look_again(last, after_s=after_s)
            await unit.commit()

    async def put(record: IntentRecord) -> None:
        async with database.write() as unit:
            await unit.payments.put_intents(record)
            await unit.commit()

    await put(record)
    await again(after_s=0)
    assert await claim() == [1]
    await again(after_s=0)
    assert await claim() == [2]
    await put(record)
    await again(after_s=60)
    await make_due(database)
    assert await claim() == [0], "who had claimed it before it was touched puts nothing off"
    await again(after_s=60)
    assert await claim() == []
    await put(record)
    await make_due(database)
    assert await claim() == [0]
    await put(replace(record, is_closed=True))
    await again(after_s=0)
    assert await claim() == []


async def test_webhook_counts_once(database: Database) -> None:
    """Ten deliveries of one event at once: one is the first; a first one that is rolled back is none."""

    async def hear(event_id: str) -> bool:
        async with database.write() as unit:
            is_first = await unit.payments.add_webhooks([event_id]) == {event_id}
            await unit.commit()
            return is_first

    async with database.write() as unit:
        assert await unit.payments.add_webhooks(["evt_1"]) == {"evt_1"}
    assert sum(await asyncio.gather(*(hear("evt_1") for _ in range(10)))) == 1
    assert await hear("evt_2")
    async with database.write() as unit:
        assert await unit.payments.add_webhooks(["evt_3", "evt_2", "evt_1", "evt_0"]) == {"evt_0", "evt_3"}


# ---------------------------------------------------------------- idempotency keys
async def test_key_repeats_its_outcome(database: Database) -> None:
    """A reference or the very refusal, with the hash it came with; other keys are free."""
    refusal = SoldOut(TicketTypeId("t"), 3)
    async with database.write() as unit:
        for key in ("k1", "k2"):
            assert await unit.idempotency.find(a_key(key)) is None
            assert await unit.idempotency.claim(a_key(key)) is None
        await unit.idempotency.finish(a_key("k1"), reference="b1")
        await unit.idempotency.finish(a_key("k2"), refusal=refusal)
        await unit.commit()
    async with database.write() as unit:
        again = a_key("k1", arguments_hash="other")
        assert await unit.idempotency.claim(again) == StoredOutcome("h", "b1", None)
        stored = await unit.idempotency.find(a_key("k2"))
        assert stored is not None and isinstance(stored.refusal, SoldOut)
        assert (stored.refusal.ticket_type_id, stored.refusal.available) == ("t", 3)
        assert stored.refusal.message == refusal.message
        assert await unit.idempotency.claim(a_key("k3")) is None
        assert await unit.idempotency.claim(replace(a_key("k1"), mutation="payBooking")) is None


@pytest.mark.parametrize("is_committed", [True, False])
async def test_claim_waits_for_the_one_before(database: Database, is_committed: bool) -> None:
    """The second of two parallel claims hears the first one's outcome, or gets the key if that was rolled back."""
    is_claimed, may_end = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        async with database.write() as unit:
            assert await unit.idempotency.claim(a_key()) is None
            is_claimed.set()
            await may_end.wait()
            await unit.idempotency.finish(a_key(), reference="b1")
            if is_committed:
                await unit.commit()

    async def second() -> StoredOutcome | None:
        await is_claimed.wait()
        async with database.write() as unit:
            return await unit.idempotency.claim(a_key())

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(first())
        waiting = tasks.create_task(second())
        await is_claimed.wait()
        # Long enough to answer, had it not waited.
        assert await asyncio.wait([waiting], timeout=0.3) == (set(), {waiting})
        may_end.set()
    assert waiting.result() == (StoredOutcome("h", "b1", None) if is_committed else None)


async def test_claim_that_waits_too_long_is_in_progress(postgres_database_url: str) -> None:
    """A key whose first request takes longer than a lock may be waited for is answered: ask again."""
    database = Database(postgres_database_url, limits=DatabaseLimits(lock_s=0.1))
    async with database.write() as slow:
        await slow.idempotency.claim(a_key())
        with pytest.raises(InProgress):
            async with database.write() as unit:
                await unit.idempotency.claim(a_key())
    await database.close()


async def test_keys_are_forgotten_after_72_hours(database: Database) -> None:
    """An old key is free again, with other arguments too; the reaper takes the oldest first."""

    async def age(key: str, claimed_at: datetime) -> None:
        async with database.writers.transaction() as statements:
            is_it = idempotency_keys.c.key == key
            await statements.change(update(idempotency_keys).where(is_it).values(claimed_at=claimed_at))
            await statements.commit()

    now = datetime.now(UTC)
    async with database.write() as unit:
        for key in ("k1", "k2", "k3"):
            await unit.idempotency.claim(a_key(key))
            await unit.idempotency.finish(a_key(key), reference=key)
        await unit.commit()
    await age("k1", now - timedelta(hours=73))
    await age("k2", now - timedelta(hours=71))
    async with database.write() as unit:
        assert await unit.idempotency.find(a_key("k1")) is None
        assert await unit.idempotency.find(a_key("k2")) == StoredOutcome("h", "k2", None)
        assert await unit.idempotency.claim(a_key("k2")) == StoredOutcome("h", "k2", None)
        assert await unit.idempotency.claim(a_key("k1", arguments_hash="other")) is None
    async with database.write() as unit:
        before = now - timedelta(hours=1)
        assert await unit.idempotency.reap(before=before, limit=1) == 1
        assert await unit.idempotency.find(a_key("k2")) is not None
        assert await unit.idempotency.reap(before=before, limit=9) == 1
        assert await unit.idempotency.reap(before=before, limit=9) == 0
        assert await unit.idempotency.find(a_key("k3")) is not None
