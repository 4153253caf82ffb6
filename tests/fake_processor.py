"""A processor at the port: intents as Stripe keeps them, in memory, with failures to order and a page of its own.

`test_fake_processor.py` holds it to what the real gateway does against the sandbox.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TypeVar, cast

from domain.base import BookingId, Money, PaymentId
from domain.payment import (
    GatewayError,
    Intent,
    IntentStatus,
    OutcomeUnknown,
    RefundStatus,
    RequestRefused,
)

T = TypeVar("T")

OK, DECLINED, ACTION = "pm_card_visa", "pm_card_visa_chargeDeclined", "pm_card_authenticationRequired"
OPEN = {
    IntentStatus.REQUIRES_PAYMENT_METHOD,
    IntentStatus.REQUIRES_CONFIRMATION,
    IntentStatus.REQUIRES_ACTION,
}


@dataclass(slots=True)
class Entry:
    """One intent, and what its money did."""

    intent: Intent
    booking_id: BookingId
    amount: Money
    refunds: int = 0  # that were asked for over the API and did not come back

    @property
    def is_kept(self) -> bool:
        """Whether the money came and stayed."""
        is_back = self.intent.is_disputed or self.intent.refunded_minor >= self.amount.amount_minor
        return self.intent.status is IntentStatus.SUCCEEDED and not is_back


@dataclass(frozen=True, slots=True)
class Failure:
    """The answer to one call: an error instead, with or without the effect."""

    error: GatewayError
    happens: bool


def lost(*, happens: bool) -> Failure:
    """No answer came back."""
    return Failure(OutcomeUnknown("no answer", is_stored=False), happens)


def broke() -> Failure:
    """A 500, which the call's idempotency key repeats from then on."""
    return Failure(OutcomeUnknown("the processor answered 500", is_stored=True), happens=False)


async def _no_step(operation: str, booking_id: BookingId) -> None:
    await asyncio.sleep(0)


@dataclass(repr=False)
class FakeProcessor:
    """`domain.ports.PaymentGateway`. `step` is awaited before and after each effect."""

    entries: dict[str, Entry] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    step: Callable[[str, BookingId], Awaitable[None]] = _no_step
    _orders: defaultdict[str, deque[Failure]] = field(default_factory=lambda: defaultdict(deque))
    _stored: dict[str, object] = field(default_factory=dict)
    _numbers: "count[int]" = field(default_factory=lambda: count(1))

    # ------------------------------------------------------------ what tests do
    refunds_slowly = False  # A new refund is accepted and not through yet.

    def order(self, operation: str, *failures: Failure) -> None:
        """The next calls of this operation fail so."""
        self._orders[operation].extend(failures)

    def forget_orders(self) -> None:
        """What was ordered and not asked for happens no more."""
        self._orders.clear()

    def of_booking(self, booking_id: BookingId) -> list[Entry]:
        """The booking's intents, oldest first."""
        return [entry for entry in self.entries.values() if entry.booking_id == booking_id]

    def keys(self, operation: str) -> list[str]:
        """The keys, or ids, that calls of this operation came with."""
        return [key for name, key in self.calls if name == operation]

    def authenticate(self, intent_id: str, *, succeeds: bool) -> None:
        """The buyer is done with the bank's page; nothing happens where the intent does not wait for that."""
        entry = self.entries[intent_id]
        if entry.intent.status is not IntentStatus.REQUIRES_ACTION:
            return
        entry.intent = self._charged(entry.intent) if succeeds else self._failed(entry.intent, is_new=False)

    def refund_by_hand(self, intent_id: str, *, amount_minor: int | None = None) -> None:
        """Somebody refunds at the processor."""
        entry = self.entries[intent_id]
        if entry.intent.status is IntentStatus.SUCCEEDED:
            entry.intent = replace(entry.intent, refunded_minor=amount_minor or entry.amount.amount_minor)

    def fail_refund(self, intent_id: str) -> None:
        """The refund comes back from the bank after it was called through."""
        entry = self.entries[intent_id]
        entry.intent = replace(entry.intent, refunded_minor=0)
        entry.refunds = 0

    def dispute(self, intent_id: str) -> None:
        """The cardholder's bank takes the money back."""
        entry = self.entries[intent_id]
        if entry.intent.status is IntentStatus.SUCCEEDED:
            entry.intent = replace(entry.intent, is_disputed=True)

    # ------------------------------------------------------------ the port
    async def create_intent(
        self, booking_id: BookingId, *, payment_id: PaymentId, amount: Money, key: str
    ) -> Intent:
        """An unconfirmed intent, the same one under the same key."""

        def effect() -> Intent:
            number = next(self._numbers)
            intent = Intent(
                id=f"pi_{number}",
                status=IntentStatus.REQUIRES_PAYMENT_METHOD,
                payment_id=payment_id,
                client_secret=f"pi_{number}_secret",
            )
            self.entries[intent.id] = Entry(intent, booking_id, amount)
            return intent

        return await self._call("create", booking_id, key, effect)

    async def confirm_intent(self, intent_id: str, *, payment_method_id: str, key: str) -> Intent:
        """Charged, declined or waiting for the buyer, as the method says. One that is final answers as it is."""
        entry = self.entries[intent_id]

        def effect() -> Intent:
            entry.intent = self._confirmed(entry.intent, payment_method_id)
            return entry.intent

        return await self._call("confirm", entry.booking_id, key, effect)

    async def retrieve_intent(self, intent_id: str) -> Intent:
        """What it is now."""
        entry = self.entries[intent_id]
        return await self._call("retrieve", entry.booking_id, None, lambda: entry.intent, shown=intent_id)

    async def cancel_intent(self, intent_id: str) -> Intent:
        """Cancelled where it was open."""
        entry = self.entries[intent_id]

        def effect() -> Intent:
            if entry.intent.status in OPEN:
                entry.intent = replace(
                    entry.intent, status=IntentStatus.CANCELED, decline_code=None, redirect_url=None
                )
            return entry.intent

        return await self._call("cancel", entry.booking_id, None, effect, shown=intent_id)

    async def refund_intent(self, intent_id: str, *, key: str) -> RefundStatus:
        """All of it goes back, once."""
        entry = self.entries[intent_id]

        def effect() -> RefundStatus:
            if entry.intent.status is not IntentStatus.SUCCEEDED:
                raise RequestRefused("no charge", code=None, param=None)
            if entry.intent.is_disputed:
                raise RequestRefused("disputed", code="charge_disputed", param=None)
            if entry.intent.refunded_minor < entry.amount.amount_minor:
                entry.refunds += 1
                entry.intent = replace(entry.intent, refunded_minor=entry.amount.amount_minor)
                if self.refunds_slowly:
                    return RefundStatus.PENDING
            return RefundStatus.SUCCEEDED

        return await self._call("refund", entry.booking_id, key, effect)

    # ------------------------------------------------------------ how it answers
    async def _call(
        self,
        operation: str,
        booking_id: BookingId,
        key: str | None,
        effect: Callable[[], T],
        *,
        shown: str = "",
    ) -> T:
        self.calls.append((operation, key or shown))
        await self.step(operation, booking_id)
        answer = self._answer(operation, key, effect)
        await self.step(f"{operation} done", booking_id)
        if isinstance(answer, GatewayError):
            raise answer
        return answer

    def _answer(self, operation: str, key: str | None, effect: Callable[[], T]) -> T | GatewayError:
        failure = self._orders[operation].popleft() if self._orders[operation] else None
        if failure is None:
            return self._once(key, effect)
        if failure.happens:
            self._once(key, effect)
        elif isinstance(failure.error, OutcomeUnknown) and failure.error.is_stored and key is not None:
            self._stored.setdefault(key, failure.error)
        return failure.error

    def _once(self, key: str | None, effect: Callable[[], T]) -> T | GatewayError:
        """Stripe's idempotency: the first answer under a key, errors included, is repeated."""
        if key is not None and key in self._stored:
            return cast(T | GatewayError, self._stored[key])
        try:
            answer: T | GatewayError = effect()
        except GatewayError as error:
            answer = error
        if key is not None:
            self._stored[key] = answer
        return answer

    def _confirmed(self, intent: Intent, method: str) -> Intent:
        if intent.status not in OPEN:
            return intent
        intent = replace(intent, payment_method_id=method, redirect_url=None, decline_code=None)
        if method == OK:
            return self._charged(intent)
        if method == DECLINED:
            return self._failed(intent, is_new=True)
        if method == ACTION:
            url = f"https://bank.example/{intent.id}"
            return replace(intent, status=IntentStatus.REQUIRES_ACTION, redirect_url=url)
        raise RequestRefused("no such method", code="resource_missing", param="payment_method")

    def _charged(self, intent: Intent) -> Intent:
        charge_id = f"ch_{next(self._numbers)}"
        return replace(intent, status=IntentStatus.SUCCEEDED, charge_id=charge_id, redirect_url=None)

    def _failed(self, intent: Intent, *, is_new: bool) -> Intent:
        """Declined; a failed authentication makes no charge."""
        return replace(
            intent,
            status=IntentStatus.REQUIRES_PAYMENT_METHOD,
            charge_id=f"ch_{next(self._numbers)}" if is_new else intent.charge_id,
            decline_code="generic_decline" if is_new else "payment_intent_authentication_failure",
            redirect_url=None,
        )
