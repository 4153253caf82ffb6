"""A shop whose every answer is foretold: what can happen in it happens to the real one and to the model.

Use cases run over a SQLite file of their own with a processor at the port; the shared checker judges each run.
"""

import asyncio
import shutil
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import update

from domain.base import BookingId, ConcertId, PaymentStatus
from domain.booking import HOLDING, CapacityTaken, SaleClosed
from domain.payment import IntentStatus, NotSent, RequestRefused
from domain.use_cases.booking import cancel_bookings, change_sale, close_sale, expire_due, with_capacity
from domain.use_cases.settlement import retry_failed_refunds
from infra.db.tables import bookings
from infra.db.unit import Database
from tests.db_world import a_sale, open_sale
from tests.fake_processor import OK, Failure, FakeProcessor, broke, lost
from tests.faults.buyers import OverUseCases, RecordedBuyer
from tests.faults.checker import Evidence, assert_healthy
from tests.faults.history import History, Kind, Operation, Outcome
from tests.faults.model import Line, SaleModel
from tests.faults.reading import ledger_of_fake, opening_of, read_final
from tests.faults.shop_model import Attempt, BookingModel, Chore, Fault, Intent, ShopModel
from tests.paying import Shop, customer, running_shop

T = TypeVar("T")

PEOPLE = ("ann", "bob", "cyd")
# Small, so that seats run out, and with limits that people reach: of "c" two others together can take all.
SALES = {"c": ((4,), 2), "d": ((2, 4), 3)}
MANY = 50
# So much has been done before a concert is cancelled, which ends nearly everything.
ENOUGH = 20
CREATE, CONFIRM = "create", "confirm"
FAILURES: dict[Fault, tuple[str, Failure]] = {
    Fault.CREATE_LOST: (CREATE, lost(happens=False)),
    Fault.CREATE_DONE_AND_LOST: (CREATE, lost(happens=True)),
    Fault.CREATE_BROKE: (CREATE, broke()),
    Fault.NOT_SENT: (CONFIRM, Failure(NotSent("open", retry_after_ms=1), happens=False)),
    Fault.LOST: (CONFIRM, lost(happens=False)),
    Fault.DONE_AND_LOST: (CONFIRM, lost(happens=True)),
}
CHORES = {
    Chore.LOST: lost(happens=True),
    Chore.REFUSED: Failure(RequestRefused("no", code=None, param=None), happens=False),
}


@dataclass(frozen=True)
class Asked:
    """An operation that can be asked again under its key, and the attempt that the key stands for."""

    operation: Operation
    method: str = ""
    attempt: Attempt | None = None


class ForetoldShop:
    """A shop over a copy of the `template` in `folder`, and its model: each step is done in both and compared.

    On an event loop of its own, so that what is not asynchronous can act on it.
    """

    def __init__(self, template: Path, folder: Path) -> None:
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.history = History()
        self.asked: list[Asked] = []
        self.webhooks: set[str] = set()
        self.heard = 0
        file = shutil.copy(template, folder / "shop.db")
        self.shop, self.database = self.run(self._open(f"sqlite+aiosqlite:///{file}"))
        self.processor = self.shop.processor
        self.model = ShopModel(
            {
                opening.concert_id: SaleModel(
                    {kind: Line(capacity) for kind, capacity in opening.capacities},
                    opening.max_tickets_per_user,
                )
                for opening in self.history.openings
            }
        )

    def run(self, steps: Coroutine[Any, Any, T]) -> T:
        """On the shop's own event loop."""
        return self.runner.run(steps)

    async def _open(self, url: str) -> tuple[Shop, Database]:
        database = Database(url)
        self.stack.push_async_callback(database.close)
        shop = await self.stack.enter_async_context(running_shop(database, FakeProcessor(), settle_after_s=0))
        for name, (capacities, limit) in SALES.items():
            await open_sale(database, a_sale(name, capacities, max_tickets_per_user=limit))
            self.history.openings.append(await opening_of(database, name))
        return shop, database

    def judge(self) -> None:
        """Everything comes to rest, and the run is judged as any other."""
        assert self.run(self.shop.broken()) == []
        self.run(self._come_to_rest())
        assert self.run(self.shop.broken()) == []
        # There is no relay here: what subscribers would be told waits for ever.
        final = replace(self.run(read_final(self.database)), waiting=0)
        assert_healthy(Evidence(self.history, final, ledger_of_fake(self.processor)))

    def close(self) -> None:
        """The database is closed."""
        self.run(self.stack.aclose())
        self.runner.close()

    async def _come_to_rest(self) -> None:
        for _ in range(2):
            await self.shop.settle_everything()
            for intent_id in list(self.processor.entries):
                self.heard += 1
                await self.shop.hear(f"evt-{self.heard}", intent_id)
            await retry_failed_refunds(self.shop.deps)
        await self.shop.settle_everything()

    # ------------------------------------------------------------ what people do
    def buyer(self, user_id: str) -> RecordedBuyer:
        """Somebody who asks once."""
        return RecordedBuyer(self.history, OverUseCases(self.shop.deps, customer(user_id)), user_id, tries=1)

    def begin(self) -> None:
        """Something to act on is there."""
        for user_id, concert_id in zip(PEOPLE, ("c", "c", "d"), strict=True):
            self.book(user_id, concert_id, (1, 0))

    def book(self, user_id: str, concert_id: str, quantities: tuple[int, int]) -> bool:
        """Seats of one type, or of two where there are two; whether they got them."""
        items = tuple((kind, n) for kind, n in zip(self._kinds(concert_id), quantities, strict=False) if n)
        expected = self.model.book(user_id, concert_id, items)
        done = self.run(self.buyer(user_id).book(concert_id, dict(items)))
        assert done.code == expected, done
        self.asked.append(Asked(done))
        if done.seen is not None:
            self.model.booked(done.seen.booking_id, user_id, concert_id, items)
        return done.seen is not None

    def open_booking(self, which: int) -> BookingModel:
        """One of those that have something ahead, or of all if none has."""
        known = list(self.model.bookings.values())
        open_ones = [booking for booking in known if not self.model.is_final(booking)]
        return (open_ones or known)[which % len(open_ones or known)]

    def ask_again(self, number: int) -> None:
        """Under the same key: the outcome of then, as it stands now."""
        asked = self.asked[number % len(self.asked)]
        before, expected = asked.operation, asked.operation.code
        buyer = self.buyer(before.user_id)
        if before.kind is Kind.BOOK and before.concert_id is not None:
            again = buyer.book(before.concert_id, dict(before.wanted), key=before.key)
        elif before.kind is Kind.CANCEL and before.booking_id is not None:
            again = buyer.cancel(before.booking_id, key=before.key)
        elif before.booking_id is not None:
            if asked.attempt is not None:
                if asked.attempt.status is PaymentStatus.VOIDED:
                    return  # it came to nothing: the key starts anew
                expected = self.model.answer(self.model.bookings[before.booking_id], asked.attempt)
            again = buyer.pay(before.booking_id, asked.method, key=before.key)
        done = self.run(again)
        assert done.code == expected, (before, done)

    # ------------------------------------------------------------ what happens to a booking
    def pay(self, booking: BookingModel, method: str = OK, fault: Fault = Fault.NONE) -> None:
        """Its owner pays, and this goes wrong."""
        if fault in FAILURES:
            operation, failure = FAILURES[fault]
            self.processor.order(operation, failure)
        expected = self.model.pay(booking, method, fault)
        done = self.run(self.buyer(booking.user_id).pay(booking.booking_id, method))
        self.processor.forget_orders()
        assert done.code == expected, done
        if done.code not in {"PaymentDeferred", "PAYMENT_IN_PROGRESS"}:
            is_attempt = done.outcome is Outcome.OK or done.code == "PAYMENT_DECLINED"
            self.asked.append(Asked(done, method, booking.attempts[-1] if is_attempt else None))

    def cancel(self, booking: BookingModel) -> None:
        """Its owner gives it back."""
        expected = self.model.cancel(booking)
        done = self.run(self.buyer(booking.user_id).cancel(booking.booking_id))
        assert done.code == expected, done
        self.asked.append(Asked(done))

    def book_again(self, booking: BookingModel) -> None:
        """Its owner takes another seat of the same type."""
        self.book(booking.user_id, booking.concert_id, (1, 0))

    def rivals_take_the_rest(self, booking: BookingModel) -> None:
        """Everybody else takes what they may of the same type."""
        for rival in PEOPLE:
            while rival != booking.user_id and self.book(rival, booking.concert_id, (1, 0)):
                pass

    def let_hold_pass(self, booking: BookingModel) -> None:
        """Its time to pay is over."""
        if not booking.has_passed and self.model.status(booking) in HOLDING:
            self.run(self._let_hold_pass(booking.booking_id))
            booking.has_passed = True

    def expire(self, _: BookingModel) -> None:
        """The sweeper comes by."""
        assert self.run(expire_due(self.shop.deps)) == len(self.model.expire())

    def reconcile(self, _: BookingModel, *, is_lost: bool = False) -> None:
        """Every open intent is looked at, in an order that is the database's."""
        if is_lost:
            self.processor.order("retrieve", *[lost(happens=False)] * MANY)
        seen = len(self.processor.calls)
        self.run(self.shop.reconcile())
        self.processor.forget_orders()
        for operation, intent_id in self.processor.calls[seen:]:
            if operation == "retrieve" and not is_lost:
                self.model.reconcile(self._booking_of(intent_id))

    def do_chores(self, _: BookingModel, chore: Chore = Chore.DONE) -> None:
        """Refunds and cancellations at the processor are tried once each, in the order of the outbox."""
        refunds = [(b, attempt) for b in self.model.bookings.values() for attempt in b.refunds_asked]
        abandoned = [b for b in self.model.bookings.values() if b.is_abandoned and b.live is None]
        if chore in CHORES:
            for operation in ("refund", "cancel"):
                self.processor.order(operation, *[CHORES[chore]] * MANY)
        seen = len(self.processor.calls)
        self.run(self.shop.do_chores())
        self.processor.forget_orders()
        for operation, intent_id in self.processor.calls[seen:]:
            if operation == "cancel":
                self.model.close_intent(self._booking_of(intent_id), chore)
        for booking in abandoned:
            self.model.close_intent(booking, chore)
        for booking, attempt in refunds:
            self.model.refund(booking, attempt, chore)

    def retry_refunds(self, _: BookingModel) -> None:
        """Somebody asks for the failed ones anew."""
        self.run(retry_failed_refunds(self.shop.deps))
        self.model.retry_refunds()

    def authenticate(self, booking: BookingModel, *, succeeds: bool = True) -> None:
        """The buyer is done with the bank's page."""
        for intent, intent_id in self._intents(booking):
            self.processor.authenticate(intent_id, succeeds=succeeds)
            intent.authenticate(succeeds=succeeds)

    def refund_by_hand(self, booking: BookingModel) -> None:
        """Somebody gives the money back at the processor."""
        for intent, intent_id in self._intents(booking):
            self.processor.refund_by_hand(intent_id)
            intent.is_refunded = intent.is_refunded or intent.status is IntentStatus.SUCCEEDED

    def fail_refund(self, booking: BookingModel) -> None:
        """The bank sends back what was refunded, and the processor tells of it."""
        for intent, intent_id in self._intents(booking):
            if not intent.is_refunded:
                continue
            self.processor.fail_refund(intent_id)
            intent.is_refunded = False
            self.heard += 1
            self._hear(booking, intent, intent_id, is_refund_failed=True)

    def dispute(self, booking: BookingModel) -> None:
        """The cardholder's bank takes the money back."""
        for intent, intent_id in self._intents(booking):
            self.processor.dispute(intent_id)
            intent.is_disputed = intent.is_disputed or intent.status is IntentStatus.SUCCEEDED

    def hear(self, booking: BookingModel, *, is_new: bool = True) -> None:
        """The processor tells of its intents, for the first time or once more."""
        for intent, intent_id in self._intents(booking):
            self.heard += is_new
            self._hear(booking, intent, intent_id)

    def _hear(
        self, booking: BookingModel, intent: Intent, intent_id: str, *, is_refund_failed: bool = False
    ) -> None:
        webhook_id = f"evt-{self.heard}-{intent_id}"
        if webhook_id not in self.webhooks:
            self.model.settle(booking, intent, is_refund_failed=is_refund_failed)
        self.webhooks.add(webhook_id)
        self.run(self.shop.hear(webhook_id, intent_id, is_refund_failed=is_refund_failed))

    # ------------------------------------------------------------ what the organiser does
    def organise(self, concert_id: str, capacity: int, limit: int) -> None:
        """Another capacity of the first type and another limit; late in a run the concert is cancelled instead."""
        sale = self.model.sales[concert_id]
        if sale.is_cancelled:
            self.run(cancel_bookings(self.shop.deps, SaleClosed(ConcertId(concert_id))))
            self.model.cancel_all(concert_id)
        elif len(self.asked) > ENOUGH:
            with self.history.operation(Kind.CLOSE, "boss", key=None, concert_id=concert_id) as recorded:
                self.run(self._close(concert_id))
                recorded.ok("CancelConcertSuccess")
            self.model.close_sale(concert_id)
        else:
            self._change_sale(concert_id, capacity, limit)

    def _change_sale(self, concert_id: str, capacity: int, limit: int) -> None:
        kind, sale = self._kinds(concert_id)[0], self.model.sales[concert_id]
        if (sale.lines[kind].capacity, sale.max_tickets_per_user) == (capacity, limit):
            return
        is_allowed = sale.lines[kind].held + sale.lines[kind].sold <= capacity
        wanted = ((kind, capacity),)
        with self.history.operation(
            Kind.CHANGE, "boss", key=None, concert_id=concert_id, wanted=wanted, limit=limit
        ) as recorded:
            try:
                self.run(self._change(concert_id, capacity, limit))
            except CapacityTaken:
                assert not is_allowed
                recorded.refused("CAPACITY_TAKEN")
                return
            assert is_allowed
            recorded.ok("UpdateConcertSuccess")
        sale.change_sale(wanted, limit)

    # ------------------------------------------------------------ what is always true
    def compare(self) -> None:
        """Stock, bookings and attempts are where the model says. Raises: AssertionError."""
        self.run(self._compare())

    async def _compare(self) -> None:
        ids = [BookingId(booking_id) for booking_id in self.model.bookings]
        found_bookings = await self.database.reads.bookings(ids)
        payments = await self.shop.payments_of(ids)
        for booking in self.model.bookings.values():
            found = found_bookings[BookingId(booking.booking_id)]
            attempts = [payment.status for payment in payments[found.id]]
            expected = [attempt.status for attempt in booking.attempts]
            assert (found.status, attempts) == (self.model.status(booking), expected), found
            assert found.payment_status is (expected[-1] if expected else None), found
            assert found.is_final == self.model.is_final(booking), found
        for concert_id, sale in self.model.sales.items():
            stock = (await self.shop.sale(ConcertId(concert_id))).stock
            assert {line.ticket_type_id: (line.capacity, line.held, line.sold) for line in stock} == {
                kind: (line.capacity, line.held, line.sold) for kind, line in sale.lines.items()
            }

    # ------------------------------------------------------------ looking things up
    def _kinds(self, concert_id: str) -> list[str]:
        return list(self.model.sales[concert_id].lines)

    def _intents(self, booking: BookingModel) -> list[tuple[Intent, str]]:
        """The booking's intents and their ids, oldest first."""
        entries = self.processor.of_booking(BookingId(booking.booking_id))
        return list(zip(booking.intents, (entry.intent.id for entry in entries), strict=True))

    def _booking_of(self, intent_id: str) -> BookingModel:
        return self.model.bookings[self.processor.entries[intent_id].booking_id]

    async def _let_hold_pass(self, booking_id: str) -> None:
        # A second ago: one that ended long ago would be a broken promise by itself.
        async with self.database.writers.transaction() as statements:
            passed = {"hold_until": await statements.now() - timedelta(seconds=1)}
            await statements.change(update(bookings).where(bookings.c.id == booking_id), passed)
            await statements.commit()

    async def _change(self, concert_id: str, capacity: int, limit: int) -> None:
        async with self.shop.deps.write("change") as unit:
            sale = await unit.sales.lock(ConcertId(concert_id))
            assert sale is not None
            stock = (with_capacity(sale.stock[0], capacity), *sale.stock[1:])
            await change_sale(unit, sale, replace(sale, stock=stock, max_tickets_per_user=limit))
            await unit.commit()

    async def _close(self, concert_id: str) -> None:
        async with self.shop.deps.write("close") as unit:
            sale = await unit.sales.lock(ConcertId(concert_id))
            assert sale is not None
            await close_sale(unit, sale)
            await unit.commit()
