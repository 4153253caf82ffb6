"""The door to the card processor."""

from typing import Protocol

from domain.base import BookingId, Money, PaymentId
from domain.payment import Intent, RefundStatus


class PaymentGateway(Protocol):
    """The card processor. No database transaction is open while one of these runs.

    Raises (all methods): NotSent, OutcomeUnknown, RequestRefused. A declined card is no error but an Intent that
    carries `decline_code`.
    """

    async def create_intent(
        self, booking_id: BookingId, *, payment_id: PaymentId, amount: Money, key: str
    ) -> Intent:
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
