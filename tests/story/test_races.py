"""Many at once: one wins, the others hear it, and every seat and every cent is where it should be."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from random import Random

import pytest

from domain.base import BookingId, DomainError
from domain.booking import Booking, BookingStatus
from domain.use_cases.payment import Paid
from infra.db.unit import Database
from tests.client import CANCEL_CONCERT, ticket_type
from tests.fake_processor import FakeProcessor
from tests.paying import Shop, assert_money_follows, running_shop
from tests.story.conftest import NewWorld
from tests.story.crowd import a_crowd, assert_promises_hold, at_once, told
from tests.story.world import World

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------- seats
async def test_the_last_seat_goes_to_one_of_500(world: World) -> None:
    """One is told of a booking, 499 of no seats, and exactly one seat is held."""
    concert = await world.admin.register(ticketTypes=[ticket_type(capacity=1)])
    async with a_crowd(world, 500) as people:
        answers = await at_once(person.book(concert) for person in people)
    assert told(answers) == {"BookConcertSuccess": 1, "SOLD_OUT": 499}
    refused = [answer for answer in answers if answer["__typename"] == "SoldOutProblem"]
    assert {(each["ticketTypeId"], each["available"]) for each in refused} == {(concert.types[0], 0)}
    assert not any(each["retryable"] for each in refused)
    assert await world.api.seats(concert) == (0, 1, 0)
    await assert_promises_hold(world)


@pytest.mark.parametrize(("quantity", "bookings", "remaining"), [(1, 4, 0), (3, 1, 1)])
async def test_the_limit_holds_under_parallel_bookings(
    world: World, quantity: int, bookings: int, remaining: int
) -> None:
    """Twenty bookings of one person at once get the four tickets that one person may have, and no more."""
    concert = await world.admin.register(maxTicketsPerUser=4, ticketTypes=[ticket_type(capacity=100)])
    ann = await world.api.new_buyer()
    answers = await at_once(ann.book(concert, quantity) for _ in range(20))
    assert told(answers) == {"BookConcertSuccess": bookings, "TICKET_LIMIT": 20 - bookings}
    refused = [answer for answer in answers if answer["__typename"] == "TicketLimitProblem"]
    assert {(each["maxTicketsPerUser"], each["remaining"]) for each in refused} == {(4, remaining)}
    taken = quantity * bookings
    assert await ann.seats(concert) == (100 - taken, taken, 0)
    await assert_promises_hold(world)


async def test_ticket_types_in_opposite_order_never_block_each_other(world: World) -> None:
    """Sixty people book the same two types, half of them in the other order: all get their seats."""
    concert = await world.admin.register(
        ticketTypes=[ticket_type(capacity=60), ticket_type("Balcony", capacity=60)]
    )
    items = [{"ticketTypeId": each, "quantity": 1} for each in concert.types]
    async with a_crowd(world, 60) as people:
        answers = await at_once(
            person.book_items(concert.id, items[:: 1 if n % 2 else -1]) for n, person in enumerate(people)
        )
    assert told(answers) == {"BookConcertSuccess": 60}
    assert await world.api.seats(concert) == (0, 120, 0)
    await assert_promises_hold(world)


async def test_a_concert_cancelled_amid_bookings_keeps_none(world: World) -> None:
    """Who was first is cancelled with it, who was later is told so, and nothing is left on sale."""
    concert = await world.admin.register(ticketTypes=[ticket_type(capacity=100)])
    async with a_crowd(world, 60) as people:
        calls = [person.book(concert) for person in people]
        calls.insert(20, world.admin.ask(CANCEL_CONCERT, input={"concertId": concert.id}))
        answers = await at_once(calls)
        assert answers.pop(20)["__typename"] == "CancelConcertSuccess"
        assert set(told(answers)) <= {"BookConcertSuccess", "CONCERT_CANCELLED"}
        for person, answer in zip(people, answers, strict=True):
            if answer["__typename"] == "BookConcertSuccess":
                await person.until_booking(answer["booking"]["id"], lambda now: now["status"] == "CANCELLED")
    assert await world.api.seats(concert) == (0, 0, 0)
    await assert_promises_hold(world)


async def test_replays_amid_cancellations_block_nobody(world: World) -> None:
    """A booking's key is asked again while the booking is cancelled: each answers, none is lost to a deadlock."""
    concert = await world.admin.register(ticketTypes=[ticket_type(capacity=100)])
    async with a_crowd(world, 40) as people:
        booked = await at_once(person.book(concert, key="k") for person in people)
        calls = []
        for person, answer in zip(people, booked, strict=True):
            replays = [person.book(concert, key="k") for _ in range(2)]
            calls += [replays[0], person.cancel(answer["booking"]["id"]), replays[1]]
        assert told(await at_once(calls)) == {"BookConcertSuccess": 80, "CancelBookingSuccess": 40}
    assert await world.api.seats(concert) == (100, 0, 0)
    await assert_promises_hold(world)


# ---------------------------------------------------------------- money
@pytest.mark.parametrize("has_keys", [False, True])
async def test_parallel_pays_of_one_booking_charge_once(new_world: NewWorld, has_keys: bool) -> None:
    """One charges; the others are told that a payment is under way, or that the booking is paid."""
    async with new_world(payment_timeout_ms=5_000) as world:
        concert = await world.admin.register()
        ann = await world.api.new_buyer()
        booking = await ann.booked(concert)
        await world.processor.control(latency_ms=[20, 60])
        answers = await at_once(ann.pay(booking["id"], key=f"k{n}" if has_keys else None) for n in range(20))
        heard = told(answers)
        assert heard["PayBookingSuccess"] == 1
        assert set(heard) <= {
            "PayBookingSuccess",
            "PaymentPending",
            "PAYMENT_IN_PROGRESS",
            "ALREADY_PAID",
        }
        under_way = [answer for answer in answers if answer.get("code") == "PAYMENT_IN_PROGRESS"]
        assert all(each["retryable"] and each["retryAfterMs"] > 0 for each in under_way)
        assert [entry["status"] for entry in await world.processor.ledger()] == ["succeeded"]
        assert await ann.seats(concert) == (9, 0, 1)
        assert (await ann.pay(booking["id"]))["code"] == "ALREADY_PAID"
        await assert_promises_hold(world)


# ---------------------------------------------------------------- pay || cancel || expire
# A thousand in all; more of them where transactions really overlap.
RACES = {"sqlite": 160, "postgresql": 400}
AT_ONCE = 40
# Where the payment stands when the others are let go.
MOMENTS = ("start", "create", "create done", "confirm", "confirm done", "answered")


@dataclass
class Race:
    """One booking that is paid while others cancel it or let it expire."""

    booking: Booking
    rivals: tuple[str, ...]
    moment: str
    go: asyncio.Event = field(default_factory=asyncio.Event)
    heard: dict[str, str] = field(default_factory=dict)

    async def run(self, shop: Shop) -> None:
        """All of them, until each has its answer."""
        if self.moment == "start":
            self.go.set()
        await asyncio.gather(self._pay(shop), *(self._rival(shop, name) for name in self.rivals))

    def check(self, booking: Booking, *, was_approved: bool) -> None:
        """Everybody heard what came of it."""
        pay, cancel = self.heard["pay"], self.heard.get("cancel")
        story = f"{self.rivals} at {self.moment}: {self.heard}, {booking}"
        if cancel is not None:
            ends = {"CANCELLED": BookingStatus.CANCELLED, "HOLD_EXPIRED": BookingStatus.EXPIRED}
            assert booking.status is ends[cancel], story
        assert (pay == "Paid") == was_approved, story
        if pay == "Paid":
            assert booking.status is (BookingStatus.CANCELLED if cancel else BookingStatus.APPROVED), story
        elif pay == "ALREADY_CANCELLED":
            assert booking.status is BookingStatus.CANCELLED, story
        else:
            # The hold had passed when the payer came; who ended the booking came after.
            assert pay == "HOLD_EXPIRED" and "expire" in self.rivals, story
            assert booking.status in {BookingStatus.EXPIRED, BookingStatus.CANCELLED}, story
        assert booking.is_final == (booking.status is not BookingStatus.APPROVED), story

    async def _pay(self, shop: Shop) -> None:
        try:
            answer = await shop.pay(self.booking)
            self.heard["pay"] = type(answer).__name__
            if isinstance(answer, Paid):
                assert answer.booking.status is BookingStatus.APPROVED
        except DomainError as refusal:
            self.heard["pay"] = refusal.code
        self.go.set()

    async def _rival(self, shop: Shop, name: str) -> None:
        await self.go.wait()
        if name == "expire":
            await shop.expire(self.booking.id)
            return
        try:
            self.heard["cancel"] = (await shop.cancel(self.booking)).status.value
        except DomainError as refusal:
            self.heard["cancel"] = refusal.code


async def test_one_of_pay_cancel_and_expire_wins(database: Database) -> None:
    """Whoever loses hears which won, the money follows, and the counters are exact after every batch of races."""
    dice, number = Random(20_261_122), RACES[database.writers.engine.dialect.name]
    processor = FakeProcessor()
    endings: Counter[tuple[str, BookingStatus]] = Counter()
    async with running_shop(database, processor) as shop:
        sale = await shop.open_sale(capacity=number)
        for first in range(0, number, AT_ONCE):
            races = [
                Race(
                    await shop.book(sale, f"buyer-{n}"),
                    dice.choice((("cancel",), ("expire",), ("cancel", "expire"), ("expire", "cancel"))),
                    dice.choice(MOMENTS),
                )
                for n in range(first, first + AT_ONCE)
            ]
            await run_together(shop, processor, races)
            endings.update(await ended(shop, races))
            sold = endings[("Paid", BookingStatus.APPROVED)]
            assert await shop.seats(sale.concert_id) == (number - sold, 0, sold)
            assert await shop.broken() == []
    assert sum(endings.values()) == number
    # Each of the three won, and each kind of loser was told.
    assert {
        ("Paid", BookingStatus.APPROVED),
        ("Paid", BookingStatus.CANCELLED),
        ("ALREADY_CANCELLED", BookingStatus.CANCELLED),
        ("HOLD_EXPIRED", BookingStatus.EXPIRED),
    } <= set(endings), endings


async def run_together(shop: Shop, processor: FakeProcessor, races: list[Race]) -> None:
    """All races of a batch, then the chores that they left."""
    of_booking: dict[BookingId, Race] = {race.booking.id: race for race in races}

    async def step(moment: str, booking_id: BookingId) -> None:
        race = of_booking[booking_id]
        if moment == race.moment:
            race.go.set()
        await asyncio.sleep(0)

    processor.step = step
    await asyncio.gather(*(race.run(shop) for race in races))
    await shop.settle_everything()


async def ended(shop: Shop, races: list[Race]) -> list[tuple[str, BookingStatus]]:
    """What each payer heard and how the booking ended, which agree."""
    booking_ids = [race.booking.id for race in races]
    bookings = await shop.database.reads.bookings(booking_ids)
    payments = await shop.payments_of(booking_ids)
    once_approved = await shop.once_approved()
    for race in races:
        booking = bookings[race.booking.id]
        race.check(booking, was_approved=booking.id in once_approved)
        assert_money_follows(booking, payments[booking.id], shop.processor)
    return [(race.heard["pay"], bookings[race.booking.id].status) for race in races]
