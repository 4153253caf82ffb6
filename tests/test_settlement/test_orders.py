"""Any order of anything: people, the processor and the worker take turns as Hypothesis likes."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from domain.base import DomainError
from domain.booking import PAYABLE, Booking, BookingStatus, Sale, SaleClosed
from domain.payment import GatewayError, NotSent, RequestRefused
from domain.use_cases.booking import cancel_bookings
from domain.use_cases.settlement import retry_failed_refunds
from infra.db.unit import Database
from tests.db_world import a_sale, open_sale
from tests.fake_processor import ACTION, DECLINED, OK, Failure, FakeProcessor, broke, lost
from tests.paying import Shop, assert_money_follows, running_shop

pytestmark = pytest.mark.anyio


@pytest.fixture
async def shop(database: Database) -> AsyncIterator[Shop]:
    """One for all examples; whatever is unknown at the first look is cancelled."""
    async with running_shop(database, FakeProcessor(), settle_after_s=0) as shop:
        yield shop


ACTS = (
    "pay", "pay lost charged", "pay lost", "pay declined", "pay action", "pay not sent", "create broke",
    "authenticate", "fail authentication", "cancel", "expire", "rival books", "rival leaves",
    "hear", "hear again", "reconcile", "reconcile lost", "chores", "chores lost", "chores refused",
    "refund by hand", "refund comes back", "dispute", "retry refunds", "cancel concert",
)  # fmt: skip


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@example(acts=["pay", "cancel", "chores", "refund comes back"])
@given(acts=st.lists(st.sampled_from(ACTS), max_size=12))
async def test_no_order_of_events_breaks_a_promise(shop: Shop, acts: list[str]) -> None:
    """After each step every promise holds; in the end the money is where the booking says, and went back once."""
    story = await Story.begun(shop)
    for act in acts:
        await story.do(act)
        assert await shop.broken() == []
    await story.end()


@dataclass
class Story:
    """One booking of one seat, a rival, and whatever happens to them."""

    shop: Shop
    sale: Sale
    booking: Booking
    rival: Booking | None = None
    heard: int = 0

    @classmethod
    async def begun(cls, shop: Shop) -> "Story":
        name = shop.deps.randomness.new_id()
        sale = await open_sale(shop.database, a_sale(name, (1,)))
        return cls(shop, sale, await shop.book(sale, f"ada-{name}"))

    async def do(self, act: str) -> None:
        """One step; a refusal is as good as an answer."""
        processor = self.shop.processor
        try:
            match act.split():
                case ["pay", *how]:
                    await self._pay(" ".join(how))
                case ["create", "broke"]:
                    processor.order("create", broke())
                    await self._pay("")
                case ["cancel", "concert"]:
                    await self._cancel_concert()
                case ["cancel"]:
                    await self.shop.cancel(self.booking)
                case ["expire"]:
                    await self.shop.expire(self.booking.id)
                case ["rival", "books"]:
                    self.rival = await self.shop.book(self.sale, f"eve-{self.sale.concert_id}")
                case ["rival", "leaves"] if self.rival is not None:
                    await self.shop.cancel(self.rival)
                case ["reconcile", *how]:
                    processor.order("retrieve", *(lost(happens=False) for _ in how))
                    await self.shop.reconcile()
                case ["chores", *how]:
                    await self._chores(how)
                case ["retry", "refunds"]:
                    await retry_failed_refunds(self.shop.deps)
                case _:
                    await self._at_the_processor(act)
        except (DomainError, GatewayError):
            pass
        processor.forget_orders()

    async def _pay(self, how: str) -> None:
        confirms = {
            "lost charged": lost(happens=True),
            "lost": lost(happens=False),
            "not sent": Failure(NotSent("open", retry_after_ms=1), happens=False),
        }
        if how in confirms:
            self.shop.processor.order("confirm", confirms[how])
        await self.shop.pay(self.booking, {"declined": DECLINED, "action": ACTION}.get(how, OK))

    async def _chores(self, how: list[str]) -> None:
        failures = {
            "lost": lost(happens=True),
            "refused": Failure(RequestRefused("no", code=None, param=None), happens=False),
        }
        for operation in ("refund", "cancel"):
            self.shop.processor.order(operation, *(failures[name] for name in how))
        await self.shop.do_chores()

    async def _cancel_concert(self) -> None:
        async with self.shop.deps.write("look") as unit:
            sale = await unit.sales.lock(self.sale.concert_id)
            assert sale is not None
            if not sale.is_cancelled:
                await unit.sales.save(sale, sale.closed())
            await unit.commit()
        await cancel_bookings(self.shop.deps, SaleClosed(self.sale.concert_id))

    async def _at_the_processor(self, act: str) -> None:
        processor = self.shop.processor
        for entry in processor.of_booking(self.booking.id):
            intent_id = entry.intent.id
            match act:
                case "authenticate" | "fail authentication":
                    processor.authenticate(intent_id, succeeds=act == "authenticate")
                case "refund by hand":
                    processor.refund_by_hand(intent_id)
                case "dispute":
                    processor.dispute(intent_id)
                case "refund comes back" if entry.intent.refunded_minor:
                    processor.fail_refund(intent_id)
                    await self._hear(intent_id, is_refund_failed=True)
                case "hear":
                    await self._hear(intent_id)
                case "hear again":
                    await self.shop.hear(f"evt-{intent_id}-{self.booking.id}-{self.heard}", intent_id)

    async def _hear(self, intent_id: str, *, is_refund_failed: bool = False) -> None:
        """A webhook that was not heard before."""
        self.heard += 1
        webhook_id = f"evt-{intent_id}-{self.booking.id}-{self.heard}"
        await self.shop.hear(webhook_id, intent_id, is_refund_failed=is_refund_failed)

    async def end(self) -> None:
        """Everything is told and settled."""
        await self.shop.settle_everything()
        for entry in self.shop.processor.of_booking(self.booking.id):
            await self._hear(entry.intent.id)
        await retry_failed_refunds(self.shop.deps)
        await self.shop.settle_everything()
        await self._assert_right()
        # Whoever has not paid by now never will: nothing is left open at the processor.
        await self.shop.expire(self.booking.id)
        await self.shop.settle_everything()
        await self._assert_right()
        assert (await self.shop.booking(self.booking.id)).status not in PAYABLE
        record = await self.shop.open_intent(self.booking.id)
        assert record is None or record.intent_id is None

    async def _assert_right(self) -> None:
        assert await self.shop.broken() == []
        booking = await self.shop.booking(self.booking.id)
        assert_money_follows(booking, await self.shop.payments(booking.id), self.shop.processor)
        assert booking.status is not BookingStatus.PAYMENT_PENDING
        is_over = booking.status in {BookingStatus.CANCELLED, BookingStatus.EXPIRED}
        assert booking.is_final == is_over
