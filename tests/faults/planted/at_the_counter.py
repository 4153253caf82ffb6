"""Mistakes around keys and around the processor."""

import secrets
from dataclasses import dataclass, field
from typing import Any, cast

from domain.payment import Intent, OutcomeUnknown, RefundStatus
from domain.ports import PaymentGateway
from infra.breaker import Breaker
from tests.faults.buyers import Answer, Certainty, Door, RecordedBuyer
from tests.faults.history import Lines


# ---------------------------------------------------------------- new key on retry
class FreshKeyEachTry(RecordedBuyer):
    """A client that makes a key for every request it sends, not for every intention."""

    def key_of_try(self, key: str, number: int) -> str:
        """Another one each time."""
        return key if number == 0 else secrets.token_hex(8)


# ---------------------------------------------------------------- a stored answer on timeout
@dataclass
class RemembersAnswers:
    """A cache of answers in front of the use cases, outside their transactions; a time-out is kept as a failure."""

    inner: Door
    kept: dict[str, Answer] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def book(self, concert_id: str, wanted: Lines, *, key: str) -> Answer:
        """What the key was answered before."""
        if key in self.kept:
            return self.kept[key]
        answer = await self.inner.book(concert_id, wanted, key=key)
        is_lost = answer.certainty is Certainty.UNKNOWN
        self.kept[key] = Answer(Certainty.REFUSED, "FAILED") if is_lost else answer
        return answer


def stored_answer_on_timeout(door: Door) -> Door:
    """In front of the counter."""
    return cast(Door, RemembersAnswers(door))


# ---------------------------------------------------------------- refund without a key
class RefundsWithoutKey:
    """A gateway that asks for each refund as for a new one."""

    def __init__(self, inner: PaymentGateway) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def refund_intent(self, intent_id: str, *, key: str) -> RefundStatus:
        """Under a key that nobody remembers."""
        return await self._inner.refund_intent(intent_id, key=secrets.token_hex(8))


def refund_without_key(gateway: PaymentGateway) -> PaymentGateway:
    """In front of the processor."""
    return cast(PaymentGateway, RefundsWithoutKey(gateway))


# ---------------------------------------------------------------- breaker counting declines
@dataclass(eq=False)
class _Declined(OutcomeUnknown):
    """A decline, passed off as a failure of the processor."""

    intent: Intent


class CountsDeclines:
    """Confirms through a breaker that takes a declined card for a failing processor."""

    def __init__(self, inner: PaymentGateway, breaker: Breaker) -> None:
        self._inner = inner
        self._breaker = breaker

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def confirm_intent(self, intent_id: str, *, payment_method_id: str, key: str) -> Intent:
        """As the gateway does, until too many cards were declined."""

        async def confirm() -> Intent:
            intent = await self._inner.confirm_intent(intent_id, payment_method_id=payment_method_id, key=key)
            if intent.decline_code is not None:
                raise _Declined(intent)
            return intent

        try:
            return await self._breaker.call(confirm)
        except _Declined as declined:
            return declined.intent


def breaker_counting_declines(gateway: PaymentGateway) -> PaymentGateway:
    """In place of the breaker."""
    return cast(PaymentGateway, CountsDeclines(gateway, Breaker()))
