"""Idempotency keys: a keyed mutation happens once, and a repeat hears what the first one heard."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, text, update

from domain.base import IdempotencyMismatch
from domain.use_cases.keys import scope_of
from domain.use_cases.payment import PayBooking
from infra.db.tables import idempotency_keys
from infra.db.unit import Database
from infra.settings import WorkerPlace
from tests.client import (
    BOOK,
    CANCEL,
    CANCEL_CONCERT,
    PAY,
    REGISTER,
    UPDATE,
    Json,
    concert_input,
    until,
)
from tests.fake_processor import FakeProcessor
from tests.paying import customer, running_shop
from tests.story.conftest import NewWorld
from tests.story.crowd import assert_promises_hold, at_once, told
from tests.story.keyed import Keyed, items
from tests.story.refusals import wrong_fields
from tests.story.unchanged import nothing_changes
from tests.story.world import World

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------- the six mutations
async def a_registration(world: World) -> Keyed:
    """registerConcert."""
    wanted = concert_input()
    other = wanted | {"title": "Day Trains"}
    return Keyed(world.admin, REGISTER, wanted, other, "RegisterConcertSuccess")


async def an_update(world: World) -> Keyed:
    """updateConcert."""
    concert = await world.admin.register()
    wanted = {"concertId": concert.id, "title": "Day Trains"}
    return Keyed(world.admin, UPDATE, wanted, wanted | {"title": "Last Trains"}, "UpdateConcertSuccess")


async def a_cancelled_concert(world: World) -> Keyed:
    """cancelConcert."""
    concert, other = await world.admin.register(), await world.admin.register()
    wanted = {"concertId": concert.id}
    return Keyed(world.admin, CANCEL_CONCERT, wanted, {"concertId": other.id}, "CancelConcertSuccess")


async def a_booking(world: World) -> Keyed:
    """bookConcert."""
    concert = await world.admin.register()
    wanted = {"concertId": concert.id, "items": items(concert, 1)}
    other = wanted | {"items": items(concert, 2)}
    return Keyed(await world.api.new_buyer(), BOOK, wanted, other, "BookConcertSuccess")


async def a_payment(world: World) -> Keyed:
    """payBooking."""
    ann = await world.api.new_buyer()
    booking = await ann.booked(await world.admin.register())
    wanted = {"bookingId": booking["id"], "paymentMethodId": "pm_card_visa"}
    other = wanted | {"paymentMethodId": "pm_card_mastercard"}
    return Keyed(ann, PAY, wanted, other, "PayBookingSuccess")


async def a_cancelled_booking(world: World) -> Keyed:
    """cancelBooking, of a hold."""
    ann = await world.api.new_buyer()
    booking = await ann.booked(await world.admin.register())
    wanted = {"bookingId": booking["id"]}
    return Keyed(ann, CANCEL, wanted, wanted | {"reason": "ill"}, "CancelBookingSuccess")


MUTATIONS = [
    a_registration,
    an_update,
    a_cancelled_concert,
    a_booking,
    a_payment,
    a_cancelled_booking,
]
each_mutation = pytest.mark.parametrize(
    "make", MUTATIONS, ids=[(make.__doc__ or "").split(",")[0].rstrip(".") for make in MUTATIONS]
)
Make = Callable[[World], Awaitable[Keyed]]


@each_mutation
async def test_a_repeat_answers_alike_and_nothing_happens_twice(world: World, make: Make) -> None:
    """Type, id and facts are those of the first answer; not a row changes, and other arguments are refused."""
    keyed = await make(world)
    first = await keyed.send()
    assert first["__typename"] == keyed.success
    ledger = await world.processor.ledger()
    async with nothing_changes(world):
        assert [await keyed.send() for _ in range(2)] == [first, first]
        refused = await keyed.send_other()
        assert (refused["__typename"], refused["code"], refused["retryable"]) == (
            "IdempotencyProblem",
            "IDEMPOTENCY_MISMATCH",
            False,
        )
    assert await world.processor.ledger() == ledger


@each_mutation
async def test_parallel_repeats_have_one_effect(world: World, make: Make) -> None:
    """Twenty at once: each hears the first one's answer, or that it is still running."""
    keyed = await make(world)
    answers = await at_once(keyed.send() for _ in range(20))
    heard = told(answers)
    running = [answer for answer in answers if answer.get("code") == "IN_PROGRESS"]
    assert all(each["retryable"] and each["retryAfterMs"] > 0 for each in running)
    may_run = {"IN_PROGRESS"} | ({"PaymentPending"} if keyed.success == "PayBookingSuccess" else set())
    assert keyed.success in heard and set(heard) <= {keyed.success} | may_run
    done = [answer for answer in answers if answer["__typename"] == keyed.success]
    assert len({str(facts(answer)) for answer in done}) == 1
    async with nothing_changes(world):
        assert facts(await keyed.send()) == facts(done[0])
    assert len(await world.processor.ledger()) == (keyed.success == "PayBookingSuccess")
    await assert_promises_hold(world)


def facts(answer: Json) -> Json:
    """What does not go on changing by itself: a cancelled concert's progress does."""
    return {name: value for name, value in answer.items() if name not in {"bookingsToCancel", "refundsOpen"}}


@each_mutation
async def test_a_key_has_from_1_to_255_characters(world: World, make: Make) -> None:
    """One that is empty or longer is the caller's mistake and does nothing; both bounds work."""
    keyed = await make(world)
    async with nothing_changes(world):
        for key in ("", "k" * 256):
            assert wrong_fields(await keyed.send(key)) == [["idempotencyKey"]]
    longest = "\N{MUSICAL SYMBOL G CLEF}" * 255
    first = await keyed.send(longest)
    assert first["__typename"] == keyed.success
    async with nothing_changes(world):
        assert await keyed.send(longest) == first
    assert (await keyed.send_other("1"))["__typename"] != "InvalidInputProblem"


# ---------------------------------------------------------------- what a key belongs to
async def test_a_key_belongs_to_one_person_and_one_mutation(world: World) -> None:
    """Somebody else's, and another mutation's, are other keys, though they read the same."""
    concert = await world.admin.register()
    ann, eve = await world.api.new_buyer(), await world.api.new_buyer()
    hers, theirs = [(await who.book(concert, key="k"))["booking"]["id"] for who in (ann, eve)]
    assert hers != theirs
    assert (await ann.pay(hers, key="k"))["__typename"] == "PayBookingSuccess"
    assert (await ann.cancel(hers, key="k"))["__typename"] == "CancelBookingSuccess"
    assert (await eve.cancel(theirs, key="k"))["__typename"] == "CancelBookingSuccess"
    assert (await ann.book(concert, key="k"))["booking"]["id"] == hers
    assert await ann.seats(concert) == (10, 0, 0)


async def test_without_a_key_each_request_is_its_own(world: World) -> None:
    """Two bookings, then a refusal for what is done already."""
    concert = await world.admin.register()
    ann = await world.api.new_buyer()
    first, second = await ann.booked(concert), await ann.booked(concert)
    assert first["id"] != second["id"]
    assert (await ann.cancel(first["id"]))["__typename"] == "CancelBookingSuccess"
    assert (await ann.cancel(first["id"]))["code"] == "ALREADY_CANCELLED"


async def test_a_repeat_shows_the_booking_as_it_is_now(world: World) -> None:
    """Booked, paid, cancelled and refunded meanwhile: each key keeps its type and shows today's booking."""
    concert = await world.admin.register()
    ann = await world.api.new_buyer()
    booking_id = (await ann.book(concert, key="book"))["booking"]["id"]
    await ann.pay(booking_id, key="pay")
    booked = await ann.book(concert, key="book")
    assert (booked["__typename"], booked["booking"]["status"]) == ("BookConcertSuccess", "APPROVED")
    await ann.cancel(booking_id, key="cancel")
    final = await ann.until_booking(booking_id, lambda now: now["isFinal"])
    assert final["payment"]["status"] == "REFUNDED"
    for answer, success in (
        (await ann.book(concert, key="book"), "BookConcertSuccess"),
        (await ann.pay(booking_id, key="pay"), "PayBookingSuccess"),
        (await ann.cancel(booking_id, key="cancel"), "CancelBookingSuccess"),
    ):
        assert (answer["__typename"], answer["booking"]) == (success, final)
    assert await ann.seats(concert) == (10, 0, 0)
    assert len(await world.processor.ledger()) == 1


# ---------------------------------------------------------------- 72 hours
async def test_a_key_is_forgotten_after_72_hours(new_world: NewWorld) -> None:
    """Until then it is kept; then the same request is a new one, and the worker throws the old row away."""
    async with new_world(worker=WorkerPlace.OFF) as world:
        concert = await world.admin.register()
        ann = await world.api.new_buyer()
        first = await ann.book(concert, key="k")
        booking_id = first["booking"]["id"]
        await ann.pay(booking_id, key="k")
        await age_keys(world, hours=71.9)
        assert (await ann.book(concert, key="k"))["booking"]["id"] == booking_id
        await age_keys(world, hours=72.1)
        anew = await ann.book(concert, key="k")
        assert anew["__typename"] == "BookConcertSuccess" and anew["booking"]["id"] != booking_id
        assert (await ann.pay(booking_id, key="k"))["code"] == "ALREADY_PAID"
        assert (await ann.book(concert, key="k"))["booking"]["id"] == anew["booking"]["id"]
        await ann.book(concert, key="kept")
        await age_keys(world, hours=73, key="k")
        async with world.frontrow.worker.running():
            assert await until(lambda: keys_kept(world), lambda kept: "k" not in kept) == ["kept"]


# ---------------------------------------------------------------- one key, two bookings at once
async def test_a_refusal_never_takes_the_place_of_another_bookings_outcome(database: Database) -> None:
    """While one booking's pay settles the key, a refused pay of another one waits and hears of a mismatch."""
    async with running_shop(database, FakeProcessor()) as shop:
        sale = await shop.open_sale()
        paid, over = await shop.book(sale), await shop.book(sale)
        await shop.cancel(over)
        command = PayBooking(paid.id, "pm_card_visa", "k")
        scope = scope_of(customer("ada").user.id, "payBooking", command)
        assert scope is not None
        async with database.write() as unit:
            assert await unit.idempotency.claim(scope) is None
            other = asyncio.create_task(shop.pay(over, key="k"))
            await until(lambda: waits_for_a_lock(database), bool)
            await unit.idempotency.finish(scope, reference="the-first")
            await unit.commit()
        with pytest.raises(IdempotencyMismatch):
            await other
        async with database.write() as unit:
            stored = await unit.idempotency.find(scope)
        assert stored is not None and (stored.reference, stored.refusal) == ("the-first", None)


# ---------------------------------------------------------------- helpers
async def age_keys(world: World, *, hours: float, key: str = "k") -> None:
    """The key was claimed so long ago."""
    claimed_at = datetime.now(UTC) - timedelta(hours=hours)
    async with world.frontrow.database.writers.transaction() as statements:
        ours = update(idempotency_keys).where(idempotency_keys.c.key == key)
        await statements.change(ours.values(claimed_at=claimed_at))
        await statements.commit()


async def keys_kept(world: World) -> list[str]:
    """The keys that are stored."""
    async with world.frontrow.database.writers.transaction() as statements:
        rows = await statements.rows(select(idempotency_keys.c.key).order_by(idempotency_keys.c.key))
    return [row.key for row in rows]


async def waits_for_a_lock(database: Database) -> bool:
    """Whether a transaction waits for another one; SQLite's writers queue before they begin."""
    if database.writers.engine.dialect.name == "sqlite":
        return True
    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    async with database.readers.transaction() as statements:
        (row,) = await statements.rows(waiting)
    return bool(row[0])
