"""The card processor's webhooks: believed only when they are signed, and read for what they are about.

Source: Stripe, "Verify webhook signatures manually"; API reference, "The Event object" and "The Refund object".
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import stripe

from domain.base import PaymentId

SIGNATURE_TOLERANCE_S = 300
# A refund's states in which no money went back.
FAILED = ("failed", "canceled")


class BadWebhook(Exception):
    """A webhook request that must not be believed; nothing may follow from it."""


class BadSignature(BadWebhook):
    """Nobody who knows a secret signed this body, or it was signed too long ago."""


class BadPayload(BadWebhook):
    """Signed, and still no event."""


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """What happened at the processor. Ids are None for what is not about a payment, or not about ours."""

    id: str
    type: str
    intent_id: str | None
    payment_id: PaymentId | None
    # It tells of the intent itself, not of a charge, a refund or a dispute.
    is_of_intent: bool = False
    is_refund_failed: bool = False


def verify_webhook(body: bytes, header: str, secrets: Sequence[str]) -> WebhookEvent:
    """The event in a webhook request, signed with any of `secrets` at most 300 s ago.

    Several secrets make their rotation possible. Raises: BadSignature, BadPayload.
    """
    if not any(_is_signed(body, header, secret) for secret in secrets):
        raise BadSignature("no secret of ours signed this body within the last 300 s")
    event = _mapping(_parsed(body))
    identity, kind = _text(event.get("id")), _text(event.get("type"))
    if identity is None or kind is None:
        raise BadPayload("an event has an id and a type")
    subject = _mapping(_mapping(event.get("data")).get("object"))
    # A charge, a refund and a dispute point at their intent; only the intent is one itself.
    is_of_intent = subject.get("object") == "payment_intent"
    intent = subject.get("id") if is_of_intent else subject.get("payment_intent")
    payment_id = _text(_mapping(subject.get("metadata")).get("payment_id"))
    return WebhookEvent(
        id=identity,
        type=kind,
        intent_id=_text(intent) or _text(_mapping(intent).get("id")),
        payment_id=None if payment_id is None else PaymentId(payment_id),
        is_of_intent=is_of_intent,
        is_refund_failed=subject.get("object") == "refund" and subject.get("status") in FAILED,
    )


def _is_signed(body: bytes, header: str, secret: str) -> bool:
    try:
        stripe.WebhookSignature.verify_header(body, header, secret, SIGNATURE_TOLERANCE_S)
    except (stripe.SignatureVerificationError, TypeError, ValueError):
        # TypeError: a signature that is not ASCII; ValueError: a body that is not UTF-8.
        return False
    return True


def _parsed(body: bytes) -> object:
    try:
        parsed: object = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadPayload("the body is not JSON") from error
    return parsed


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
