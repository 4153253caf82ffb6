"""Use cases over a real database and a processor at the port, without an application around them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import cast

from sqlalchemy import select, update

from domain.base import BookingId, ConcertId, DomainError, PaymentStatus, SessionId, UserId
from domain.booking import Booking, BookingStatus, Quantity, Sale
from domain.events import Event, IntentAbandoned, RefundRequested
from domain.payment import GatewayError, Payment
from domain.ports import Deps, IntentRecord, LiveUpdates, PaymentGateway, ReadModel, Rules
from domain.reactions import react
from domain.use_cases.booking import BookConcert, CancelBooking, book_concert, cancel_booking, expire_due
from domain.use_cases.payment import PayAnswer, PayBooking, pay_booking
from domain.use_cases.settlement import claim_open_intents, hear_webhook, reconcile
from domain.user import Session, User, UserRole, Viewer
from infra.auth import Argon2Passwords, MemoryAttemptLimiter, SystemRandomness
from infra.db.invariants import broken
from infra.db.payments import payment_from
from infra.db.tables import booking_events, bookings, outbox, payment_intents, payments
from infra.db.unit import Database
from infra.group_commit import SharedCommits
from infra.sign_ins import RememberedSignIns
from tests.client import HASH_KIB
from tests.db_world import NOW, a_sale, open_sale
from tests.fake_processor import OK, FakeProcessor

PAST = datetime(2026, 1, 1, tzinfo=UTC)
CHORES: tuple[type[Event], ...] = (RefundRequested, IntentAbandoned)
_IS_CHORE = outbox.c.kind.in_([kind.__name__ for kind in CHORES])


def customer(name: str) -> Viewer:
    """Somebody signed in."""
    user = User(UserId(name), f"{name}@example.org", name, UserRole.CUSTOMER, NOW)
    return Viewer(user, Session(SessionId(name), user.id, NOW, NOW + timedelta(days=9_999)))


@dataclass(repr=False)
class Shop:
    """Booking and paying, with the worker's chores done on demand."""

    database: Database
    processor: FakeProcessor
    deps: Deps
    _opened: int = field(default=0)

    # ------------------------------------------------------------ what people do
    async def open_sale(self, *, capacity: int = 10, limit: int = 6) -> Sale:
        """A concert of its own that sells."""
        self._opened += 1
        name = f"c{self._opened:04}"
        return await open_sale(self.database, a_sale(name, (capacity,), max_tickets_per_user=limit))

    async def book(self, sale: Sale, who: str = "ada", tickets: int = 1) -> Booking:
        """Seats of the sale's only type."""
        wanted = (Quantity(sale.stock[0].ticket_type_id, tickets),)
        return await book_concert(self.deps, customer(who), BookConcert(sale.concert_id, wanted))

    async def pay(self, booking: Booking, method: str = OK, *, key: str | None = None) -> PayAnswer:
        """By its owner."""
        return await pay_booking(self.deps, customer(booking.user_id), PayBooking(booking.id, method, key))

    async def cancel(self, booking: Booking) -> Booking:
        """By its owner."""
        return await cancel_booking(self.deps, customer(booking.user_id), CancelBooking(booking.id))

    async def let_hold_pass(self, *booking_ids: BookingId) -> None:
        """Their time to pay is over."""
        async with self.database.writers.transaction() as statements:
            ours = update(bookings).where(bookings.c.id.in_(booking_ids))
            await statements.change(ours.values(hold_until=PAST))
            await statements.commit()

    async def expire(self, *booking_ids: BookingId) -> int:
        """Their hold has passed and the sweeper came by; how many expired."""
        await self.let_hold_pass(*booking_ids)
        return await expire_due(self.deps)

    async def hear(
        self, webhook_id: str, intent_id: str, *, is_of_intent: bool = False, is_refund_failed: bool = False
    ) -> bool:
        """A webhook of the processor."""
        intent = self.processor.entries[intent_id].intent
        return await hear_webhook(
            self.deps,
            webhook_id,
            payment_id=intent.payment_id,
            intent_id=intent_id,
            is_of_intent=is_of_intent,
            is_refund_failed=is_refund_failed,
        )

    # ------------------------------------------------------------ what the worker does
    async def reconcile(self) -> int:
        """Every open intent is looked at once; how many it were."""
        async with self.database.writers.transaction() as statements:
            waiting = payment_intents.c.look_at.is_not(None)
            await statements.change(update(payment_intents).where(waiting).values(look_at=PAST))
            await statements.commit()
        claimed = await claim_open_intents(self.deps, limit=10_000)
        for intent in claimed:
            try:
                await reconcile(self.deps, intent)
            except (GatewayError, DomainError):
                continue
        return len(claimed)

    async def do_chores(self) -> int:
        """Refunds and cancellations at the processor that were asked for, each tried once; how many failed."""
        async with self.database.writers.transaction() as statements:
            await statements.change(update(outbox).where(_IS_CHORE).values(due_at=PAST))
            await statements.commit()
        rows = await self.database.outbox.claim(worker="w", lease_s=30, limit=10_000, kinds=CHORES)
        done = []
        for row in rows:
            try:
                await react(self.deps, row.event)
            except (GatewayError, DomainError):
                continue
            done.append(row.id)
        await self.database.outbox.done(done)
        return len(rows) - len(done)

    async def settle_everything(self) -> None:
        """Chores and looks, until nothing is left to be said."""
        for _ in range(10):
            failed = await self.do_chores()
            await self.reconcile()
            if failed == 0 and await self.chores() == []:
                return
        raise AssertionError("it never comes to rest")

    # ------------------------------------------------------------ what is true
    async def booking(self, booking_id: BookingId) -> Booking:
        """As it is now."""
        return (await self.database.reads.bookings([booking_id]))[booking_id]

    async def payments(self, booking_id: BookingId) -> list[Payment]:
        """Its attempts, oldest first."""
        return (await self.payments_of([booking_id]))[booking_id]

    async def payments_of(self, booking_ids: Sequence[BookingId]) -> dict[BookingId, list[Payment]]:
        """The attempts of each, oldest first."""
        async with self.database.writers.transaction() as statements:
            ours = payments.c.booking_id.in_(booking_ids)
            rows = await statements.rows(
                select(payments).where(ours).order_by(payments.c.created_at, payments.c.id)
            )
        found: dict[BookingId, list[Payment]] = {booking_id: [] for booking_id in booking_ids}
        for row in rows:
            found[BookingId(row.booking_id)].append(payment_from(row))
        return found

    async def open_intent(self, booking_id: BookingId) -> IntentRecord | None:
        """The intent that may still be charged, as we know it."""
        async with self.database.write() as unit:
            return await unit.payments.open_intent(booking_id)

    async def sale(self, concert_id: ConcertId) -> Sale:
        """As it is now."""
        async with self.database.write() as unit:
            sale = await unit.sales.get(concert_id)
        assert sale is not None
        return sale

    async def seats(self, concert_id: ConcertId) -> tuple[int, int, int]:
        """available, held, sold."""
        (line,) = (await self.sale(concert_id)).stock
        return line.available, line.held, line.sold

    async def unsettled(self) -> tuple[int, int]:
        """Bookings of cancelled concerts that are still live, refunds that are not through."""
        async with self.database.write() as unit:
            return await unit.sales.all_unsettled()

    async def chores(self) -> list[str]:
        """The kinds of what is still to be done."""
        async with self.database.writers.transaction() as statements:
            rows = await statements.rows(select(outbox.c.kind).where(_IS_CHORE).order_by(outbox.c.id))
        return [row.kind for row in rows]

    async def once_approved(self) -> set[BookingId]:
        """The bookings whose history says that they were."""
        approved = booking_events.c.status == BookingStatus.APPROVED.value
        async with self.database.writers.transaction() as statements:
            rows = await statements.rows(select(booking_events.c.booking_id).where(approved).distinct())
        return {BookingId(row.booking_id) for row in rows}

    async def broken(self) -> list[str]:
        """Every broken promise."""
        return [text async for text in broken(self.database)]


@asynccontextmanager
async def running_shop(
    database: Database,
    processor: FakeProcessor,
    *,
    gateway: PaymentGateway | None = None,
    settle_after_s: float = 30.0,
    booking_batch_max: int = 100,
) -> AsyncIterator[Shop]:
    """A shop over the database; what no use case of it reaches is left out."""
    passwords = Argon2Passwords(memory_kib=HASH_KIB, max_waiting=1)
    deps = Deps(
        together=SharedCommits(batch_max=booking_batch_max, waiting_max=700),
        settling=SharedCommits(batch_max=booking_batch_max, waiting_max=None),
        write=database.write,
        reads=database.reads,
        read_model=cast(ReadModel, None),
        live=cast(LiveUpdates, None),
        gateway=processor if gateway is None else gateway,
        sign_ins=RememberedSignIns(database.reads.viewer),
        passwords=passwords,
        randomness=SystemRandomness(),
        limiter=MemoryAttemptLimiter({"book": (10**6, 60), "pay": (10**6, 60)}),
        rules=Rules(hold_s=600, session_s=600, payment_timeout_ms=610, settle_after_s=settle_after_s),
    )
    try:
        yield Shop(database, processor, deps)
    finally:
        passwords.close()


def assert_money_follows(booking: Booking, attempts: list[Payment], processor: FakeProcessor) -> None:
    """Once everything is settled: APPROVED keeps one charge, anything else keeps none, and none goes back twice."""
    entries = processor.of_booking(booking.id)
    kept = [entry for entry in entries if entry.is_kept]
    assert len(kept) == (1 if booking.status is BookingStatus.APPROVED else 0), (booking, entries)
    assert all(entry.refunds <= 1 for entry in entries)
    captured = [payment for payment in attempts if payment.status is PaymentStatus.CAPTURED]
    assert len(captured) == len(kept), (booking, attempts)
