"""Every door to the outside as a Protocol, and `Deps`, the frozen bag of them that each use case is given."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from domain.base import BookingId, Money, PaymentId
from domain.payment import Intent, RefundStatus


class PaymentGateway(Protocol):
    """The card processor. No database transaction is open while one of these runs.

    Raises (all methods): NotSent, OutcomeUnknown, RequestRefused. A declined card is no error but an Intent that
    carries `decline_code`.
    """

    async def create_intent(self, booking_id: BookingId, *, payment_id: PaymentId, amount: Money, key: str) -> Intent:
        """An unconfirmed intent for `amount`, found later by `metadata.payment_id`. Moves no money."""
        ...

    async def confirm_intent(self, intent_id: str, *, payment_method_id: str, key: str) -> Intent:
        """Ask for the money. Concurrency: never sent twice under one key; an unknown outcome is settled by reading."""
        ...

    async def retrieve_intent(self, intent_id: str) -> Intent:
        """What the processor says now, refunds and disputes included."""
        ...

    async def cancel_intent(self, intent_id: str) -> Intent:
        """Final: CANCELED means never charged, SUCCEEDED means it was charged before. May repeat."""
        ...

    async def refund_intent(self, intent_id: str, *, key: str) -> RefundStatus:
        """Give the whole amount back. One already refunded answers SUCCEEDED; at most one refund moves money."""
        ...


@dataclass(frozen=True, slots=True)
class Message:
    """One announcement. The newest `version` of a `key` replaces older ones that a listener has not read yet."""

    key: str
    version: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Resync:
    """Announcements may have been lost: read a fresh snapshot."""


class Listener(Protocol):
    """One subscriber's view of one channel: at most one waiting Message per key, and at most one waiting Resync."""

    def __aiter__(self) -> AsyncIterator[Message | Resync]:
        """Wait for what comes next. A Resync comes before any Message that waits."""
        ...


class EventStream(Protocol):
    """Announcements to everyone who listens on a channel, in every process."""

    async def publish(self, channel: str, message: Message) -> None:
        """Announce to whoever listens now. Raises: ConnectionError where the bus is down; the caller tries again."""
        ...

    def listen(self, channel: str) -> AbstractAsyncContextManager[Listener]:
        """Registered with the bus on entry (acknowledged), so that a snapshot read afterwards leaves no hole.

        Entering never fails because the bus is down: the listener is then given a Resync once it is back.
        """
        ...
