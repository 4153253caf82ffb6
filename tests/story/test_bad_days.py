"""The processor's bad days: down, hanging, charging without an answer, failing, declining; and late money."""

import asyncio
import hashlib
import hmac
import json
import time
from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import update

from domain.use_cases.booking import expire_due
from infra.db.tables import bookings
from infra.settings import WorkerPlace
from tests.client import Api, Concert, Json, until
from tests.story.conftest import NewWorld
from tests.story.world import WEBHOOK_SECRET, World

pytestmark = pytest.mark.anyio

# Short enough for a test, long enough for a busy machine.
TIMEOUT_MS = 1_500
# Given up before the reconciler has looked for the first time, a second after the attempt was sent.
HASTY_MS = 700
QUICK: dict[str, Any] = {
    "payment_timeout_ms": TIMEOUT_MS,
    "breaker_reset_s": 0.3,
    "payment_settle_after_s": 0.5,
}


def when(text: str) -> datetime:
    """A DateTime of an answer."""
    return datetime.fromisoformat(text)


async def test_a_processor_that_is_down_makes_people_pay_a_little_later(new_world: NewWorld) -> None:
    """The seats stay held, once for another whole hold; after recovery the same key pays."""
    async with new_world(**QUICK, hold_s=300) as world:
        concert, ann, booking = await a_booking(world)
        await world.processor.control(mode="down")
        deferred = await ann.pay(booking["id"], key="k")
        assert deferred["__typename"] == "PaymentDeferred" and deferred["comeBackMs"] > 0
        now = deferred["booking"]
        assert now["status"] == "PAYMENT_DEFERRED" and now["payment"] is None
        assert when(now["payBy"]) > when(booking["payBy"])
        assert when(now["retryPayAt"]) > when(now["updatedAt"])
        again = await ann.pay(booking["id"], key="k")
        assert (again["__typename"], again["booking"]["payBy"]) == ("PaymentDeferred", now["payBy"])
        assert await ann.seats(concert) == (9, 1, 0)
        assert await world.processor.ledger() == []
        await world.processor.control(mode="ok")
        paid = await until(lambda: ann.pay(booking["id"], key="k"), is_paid)
        assert paid["booking"]["status"] == "APPROVED"
        assert len(await world.processor.captured()) == 1


async def test_the_open_breaker_spares_the_processor_and_closes_again(new_world: NewWorld) -> None:
    """Five failures in a row open it; while it is open nothing is sent; one trial that works closes it."""
    async with new_world(**QUICK | {"breaker_reset_s": 1.0}) as world:
        concert = await world.admin.register(ticketTypes=[seats(20)])
        buyers = [await world.api.new_buyer() for _ in range(7)]
        held = [await buyer.booked(concert) for buyer in buyers]
        await world.processor.control(fail_rate=1.0)
        for buyer, booking in zip(buyers[:5], held[:5], strict=True):
            assert (await buyer.pay(booking["id"]))["__typename"] == "PaymentDeferred"
        assert await breaker_state(world) == "open"
        await world.processor.control(fail_rate=0)
        spared = await buyers[5].pay(held[5]["id"])
        assert spared["__typename"] == "PaymentDeferred" and 0 < spared["comeBackMs"] <= 1_000
        assert await world.processor.ledger() == []
        await until(lambda: buyers[6].pay(held[6]["id"]), is_paid)
        assert await breaker_state(world) == "closed"


async def test_declines_never_open_the_breaker(new_world: NewWorld) -> None:
    """Six declined cards are no outage: the seventh card is charged."""
    async with new_world(**QUICK) as world:
        _, ann, booking = await a_booking(world)
        for _ in range(6):
            declined = await ann.pay(booking["id"], "pm_card_visa_chargeDeclined")
            assert declined["__typename"] == "PaymentDeclinedProblem"
        assert await breaker_state(world) == "closed"
        assert (await ann.pay(booking["id"]))["__typename"] == "PayBookingSuccess"


async def test_a_hanging_processor_is_not_waited_for(new_world: NewWorld) -> None:
    """Nothing was charged: pay a little later. Booking and browsing go on meanwhile."""
    async with new_world(**QUICK) as world:
        concert, ann, booking = await a_booking(world)
        await world.processor.control(mode="hang")
        paying = asyncio.create_task(ann.pay(booking["id"]))
        ben = await world.api.new_buyer()
        for _ in range(3):
            await ben.booked(concert)
            await ben.my_rows()
        assert (await paying)["__typename"] == "PaymentDeferred"
        await world.processor.control(mode="ok")
        await until(lambda: ann.pay(booking["id"]), is_paid)


async def test_an_unknown_outcome_is_settled_with_one_charge(new_world: NewWorld) -> None:
    """The processor charged and never answered: PENDING, then APPROVED, and never sent twice."""
    async with new_world(**QUICK | {"payment_timeout_ms": HASTY_MS}) as world:
        _, ann, booking = await a_booking(world)
        await world.processor.control(mode="charge_then_hang")
        pending = await until(lambda: ann.pay(booking["id"], key="k"), is_sent)
        assert (pending["__typename"], pending["booking"]["status"]) == ("PaymentPending", "PAYMENT_PENDING")
        assert pending["booking"]["payBy"] is None
        other = await ann.pay(booking["id"], key="another")
        assert other["__typename"] in {"BookingStateProblem", "PayBookingSuccess"}
        await ann.until_booking(booking["id"], lambda now: now["status"] == "APPROVED")
        assert (await ann.pay(booking["id"], key="k"))["__typename"] == "PayBookingSuccess"
        (entry,) = await world.processor.captured()
        assert entry["amount_refunded"] == 0 and len(await world.processor.ledger()) == 1


async def test_a_confirm_that_never_arrived_is_cancelled_and_paid_anew(new_world: NewWorld) -> None:
    """500 on confirm says nothing: it is UNKNOWN until the cancelled intent proves that nothing was charged."""
    async with new_world(**QUICK) as world:
        _, ann, booking = await a_booking(world)
        await ann.pay(booking["id"], "pm_card_visa_chargeDeclined")
        await world.processor.control(fail_rate=1.0)
        pending = await ann.pay(booking["id"], key="k")
        assert (pending["__typename"], pending["booking"]["payment"]["status"]) == (
            "PaymentPending",
            "UNKNOWN",
        )
        await world.processor.control(fail_rate=0)
        back = await ann.until_booking(booking["id"], lambda now: now["status"] == "AWAITING_PAYMENT")
        assert back["payment"]["status"] == "VOIDED"
        paid = await until(lambda: ann.pay(booking["id"], key="k"), is_paid)
        assert paid["booking"]["status"] == "APPROVED"
        (entry,) = await world.processor.captured()
        assert entry["amount_refunded"] == 0


async def test_a_create_that_failed_for_good_is_asked_under_a_new_key(new_world: NewWorld) -> None:
    """The processor repeats a stored 500 under the same key; we don't wait for that to be forgotten."""
    async with new_world(**QUICK) as world:
        _, ann, booking = await a_booking(world)
        await world.processor.control(fail_rate=1.0)
        assert (await ann.pay(booking["id"]))["__typename"] == "PaymentDeferred"
        await world.processor.control(fail_rate=0)
        assert (await ann.pay(booking["id"]))["__typename"] == "PayBookingSuccess"


async def test_cancelling_while_the_outcome_is_unknown_ends_with_one_refund(new_world: NewWorld) -> None:
    """The booking is cancelled at once; the charge that turns up goes back."""
    async with new_world(**QUICK | {"payment_timeout_ms": HASTY_MS}) as world:
        concert, ann, booking = await a_booking(world)
        await world.processor.control(mode="charge_then_hang")
        pending = await until(lambda: ann.pay(booking["id"]), is_sent)
        assert pending["__typename"] == "PaymentPending"
        cancelled = await ann.cancel(booking["id"])
        if cancelled["__typename"] == "CancelBookingSuccess":
            assert cancelled["booking"]["status"] == "CANCELLED"
        final = await ann.until_booking(booking["id"], lambda now: now["isFinal"])
        assert final["payment"]["status"] == "REFUNDED"
        assert await ann.seats(concert) == (10, 0, 0)
        (entry,) = await world.processor.captured()
        assert entry["amount_refunded"] == entry["amount"]


async def test_a_refund_waits_for_the_processor(new_world: NewWorld) -> None:
    """Cancelled while the processor is down: the seats are free at once, the money follows when it is back."""
    async with new_world(**QUICK) as world:
        concert, ann, booking = await a_booking(world)
        await ann.pay(booking["id"])
        await world.processor.control(fail_rate=1.0)
        cancelled = await ann.cancel(booking["id"])
        assert cancelled["booking"]["payment"]["status"] == "REFUND_PENDING"
        assert not cancelled["booking"]["isFinal"] and await ann.seats(concert) == (10, 0, 0)
        await world.processor.control(fail_rate=0)
        final = await ann.until_booking(booking["id"], lambda now: now["isFinal"])
        assert final["payment"]["status"] == "REFUNDED" and final["payment"]["refundedAt"]
        (entry,) = await world.processor.captured()
        assert entry["amount_refunded"] == entry["amount"]


async def test_another_card_takes_the_place_of_an_authentication(new_world: NewWorld) -> None:
    """The old intent is cancelled first, so that nobody can pay twice through its page."""
    async with new_world(**QUICK) as world:
        _, ann, booking = await a_booking(world)
        asked = await ann.pay(booking["id"], "pm_card_authenticationRequired")
        assert asked["__typename"] == "PaymentActionRequired"
        paid = await ann.pay(booking["id"])
        assert paid["__typename"] == "PayBookingSuccess"
        await world.processor.http.get(asked["redirectUrl"])
        states = sorted(entry["status"] for entry in await world.processor.ledger())
        assert states == ["canceled", "succeeded"]


async def test_nobody_is_sent_to_authenticate_a_cancelled_booking(new_world: NewWorld) -> None:
    """The attempt waits for the buyer until the worker has cancelled its intent; they hear of the cancel."""
    async with new_world(**QUICK, worker=WorkerPlace.OFF) as world:
        _, ann, booking = await a_booking(world)
        method = "pm_card_authenticationRequired"
        assert (await ann.pay(booking["id"], method, key="k"))["__typename"] == "PaymentActionRequired"
        await ann.cancel(booking["id"])
        again = await ann.pay(booking["id"], method, key="k")
        assert (again["code"], again["booking"]["payment"]["status"]) == (
            "ALREADY_CANCELLED",
            "REQUIRES_ACTION",
        )


async def test_an_authentication_that_fails_is_a_decline(new_world: NewWorld) -> None:
    """The buyer is told by the stream of their bookings, and may try another card."""
    async with new_world(**QUICK) as world:
        _, ann, booking = await a_booking(world)
        asked = await ann.pay(booking["id"], "pm_card_authenticationRequired")
        await world.processor.http.get(asked["redirectUrl"] + "?outcome=fail")
        declined = await ann.until_booking(booking["id"], lambda now: now["payment"]["status"] == "DECLINED")
        assert declined["status"] == "AWAITING_PAYMENT" and declined["payment"]["declineCode"]
        assert (await ann.pay(booking["id"]))["__typename"] == "PayBookingSuccess"


async def test_a_method_that_does_not_exist_is_the_callers_mistake(new_world: NewWorld) -> None:
    """Nothing was charged, the seats stay held, and the field is named."""
    async with new_world(**QUICK) as world:
        _, ann, booking = await a_booking(world)
        for key in ("k", "k"):
            refused = await ann.pay(booking["id"], "pm_card_of_nobody", key=key)
            assert refused["__typename"] == "InvalidInputProblem"
            assert refused["fields"][0]["path"] == ["paymentMethodId"]
        assert (await ann.booking(booking["id"]))["status"] == "AWAITING_PAYMENT"
        assert (await ann.pay(booking["id"]))["__typename"] == "PayBookingSuccess"


@pytest.mark.parametrize("is_free", [True, False])
async def test_late_money_gets_its_seats_back_or_goes_back(new_world: NewWorld, is_free: bool) -> None:
    """Paid on the processor's page after the hold had expired: the same seats if they are free, else one refund."""
    async with new_world(**QUICK, worker=WorkerPlace.OFF) as world:
        concert, ann, booking = await a_booking(world, capacity=1)
        await world.processor.control(webhook_url="")
        asked = await ann.pay(booking["id"], "pm_card_authenticationRequired")
        await world.processor.http.get(asked["redirectUrl"])
        await let_hold_pass(world)
        assert await expire_due(world.frontrow.deps) == 1
        if not is_free:
            await (await world.api.new_buyer()).booked(concert)
        async with world.frontrow.worker.running():
            status = "CAPTURED" if is_free else "REFUNDED"
            late = await ann.until_booking(booking["id"], lambda now: now["payment"]["status"] == status)
        assert (late["status"], late["isFinal"]) == (("APPROVED", False) if is_free else ("EXPIRED", True))
        assert await ann.seats(concert) == ((0, 0, 1) if is_free else (0, 1, 0))
        (entry,) = await world.processor.captured()
        assert entry["amount_refunded"] == (0 if is_free else entry["amount"])


async def test_a_refund_made_at_the_processor_cancels_the_booking(new_world: NewWorld) -> None:
    """The webhook tells; the seats return to sale."""
    async with new_world(**QUICK) as world:
        concert, ann, booking = await a_booking(world)
        await ann.pay(booking["id"])
        (entry,) = await world.processor.captured()
        await world.processor.refund(entry["payment_intent"])
        final = await ann.until_booking(booking["id"], lambda now: now["isFinal"])
        assert (final["status"], final["payment"]["status"]) == ("CANCELLED", "REFUNDED")
        assert await ann.seats(concert) == (10, 0, 0)


async def test_webhooks_are_believed_only_with_a_signature_and_only_once(world: World) -> None:
    """Forged: 400. Foreign: 200 and nothing happens. Repeated: 200 and nothing happens again."""
    _, ann, booking = await a_booking(world)
    await ann.pay(booking["id"])
    (entry,) = await world.processor.captured()
    event = webhook_event(entry["payment_intent"], entry["metadata"])
    before = await ann.booking(booking["id"])
    assert await deliver(world, event, secret="whsec_somebody_elses") == 400
    assert await deliver(world, event, at=time.time() - 301) == 400
    assert await deliver(world, b"not json") == 400
    assert await deliver(world, webhook_event("pi_of_nobody", {})) == 200
    assert [await deliver(world, event), await deliver(world, event)] == [200, 200]
    assert await ann.booking(booking["id"]) == before


# ---------------------------------------------------------------- means
def seats(capacity: int) -> Json:
    """One ticket type of so many seats."""
    return {"name": "Standing", "price": {"amountMinor": 3_500, "currency": "EUR"}, "capacity": capacity}


async def a_booking(world: World, *, capacity: int = 10) -> tuple[Concert, Api, Json]:
    """A concert, a buyer and a seat held for them."""
    concert = await world.admin.register(ticketTypes=[seats(capacity)])
    ann = await world.api.new_buyer()
    return concert, ann, await ann.booked(concert)


def is_paid(answer: Json) -> bool:
    """Whether payBooking ended well."""
    return bool(answer["__typename"] == "PayBookingSuccess")


def is_sent(answer: Json) -> bool:
    """Whether payBooking got further than creating the intent, which a busy machine may be too slow for."""
    return bool(answer["__typename"] != "PaymentDeferred")


async def breaker_state(world: World) -> str:
    """What the metrics say of the breaker."""
    text = (await world.processor.http.get(f"{world.api.url}/metrics")).text
    (line,) = [
        line
        for line in text.splitlines()
        if line.startswith("frontrow_breaker_state{") and line.endswith(" 1.0")
    ]
    return line.split('"')[1]


async def let_hold_pass(world: World) -> None:
    """Every hold has just passed."""
    async with world.frontrow.database.writers.transaction() as statements:
        now = await statements.now()
        await statements.change(update(bookings).values(hold_until=now))
        await statements.commit()


def webhook_event(intent_id: str, metadata: Json) -> bytes:
    """A payment_intent.succeeded as the processor writes it."""
    intent = {"id": intent_id, "object": "payment_intent", "metadata": metadata}
    return json.dumps(
        {
            "id": f"evt_{uuid4().hex}",
            "object": "event",
            "type": "payment_intent.succeeded",
            "data": {"object": intent},
        }
    ).encode()


async def deliver(world: World, body: bytes, *, secret: str = WEBHOOK_SECRET, at: float | None = None) -> int:
    """The status that a signed webhook is answered with."""
    stamp = int(time.time() if at is None else at)
    signature = hmac.new(secret.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
    answer = await world.processor.http.post(
        f"{world.api.url}/webhooks/stripe",
        content=body,
        headers={"Stripe-Signature": f"t={stamp},v1={signature}"},
    )
    return answer.status_code
