"""Stripe's shapes: form parameters in, JSON objects and errors out.

Source: Stripe API reference, "The PaymentIntent object", "The Charge object", "The Refund object", "Errors".
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Self
from urllib.parse import parse_qsl

from infra.sandbox.books import Charge, Intent, Refund

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]

MAX_PARAMETERS = 200
# Stripe API reference, "Metadata": 50 keys, names of 40 characters, values of 500.
MAX_METADATA_KEYS = 50
MAX_METADATA_NAME_LENGTH = 40
MAX_METADATA_VALUE_LENGTH = 500

_PARAMETER = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])?)")


class Refused(Exception):
    """A 4xx answer. `is_stored` says whether an idempotency key repeats it.

    Source: Stripe API reference, "Idempotent requests": nothing is saved where parameters fail validation.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        intent: Json = None,
        is_stored: bool = True,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.is_stored = is_stored
        self._facts = {
            "code": code,
            "message": message,
            "param": param,
            "payment_intent": intent,
            "type": kind,
        }

    def body(self) -> bytes:
        """The error as Stripe writes it: what is null is left out."""
        return encode({"error": {name: value for name, value in self._facts.items() if value is not None}})


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> Refused:
    """A parameter that fails validation, so no key remembers it."""
    return Refused(message, param=param, code=code, is_stored=False)


def missing(kind: str, subject: str, *, param: str, status: int = 404) -> Refused:
    """Nothing has this id."""
    return Refused(f"No such {kind}: '{subject}'", status=status, code="resource_missing", param=param)


def encode(value: Json) -> bytes:
    """Compact JSON."""
    return json.dumps(value, separators=(",", ":")).encode()


class Parameters:
    """One request's form parameters. An empty value counts as absent, as with Stripe."""

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self.pairs = tuple(sorted(pairs))
        self._values: dict[str, list[tuple[str, str]]] = {}
        for name, value in pairs:
            match = _PARAMETER.fullmatch(name)
            if match is None:
                raise invalid(f"Invalid parameter name: {name}", param=name)
            self._values.setdefault(match[1], []).append((match[2][1:-1], value))

    @classmethod
    def parse(cls, encoded: bytes) -> Self:
        """Read a form or a query. Raises: Refused for what is no UTF-8 form, or has too many parameters."""
        try:
            text = encoded.decode("ascii")
            pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS)
        except ValueError as error:
            raise invalid("Invalid request: the parameters are not a URL-encoded UTF-8 form.") from error
        return cls(pairs)

    def only(self, *known: str) -> None:
        """Raises: Refused for any parameter that is not known here; Stripe ignores none either."""
        for name in self._values:
            if name not in known:
                raise invalid(f"Received unknown parameter: {name}", param=name, code="parameter_unknown")

    def text(self, name: str) -> str | None:
        """The value of a plain parameter."""
        values = self._values.get(name, [])
        if any(inner for inner, _ in values):
            raise invalid(f"Invalid string: {name}", param=name)
        return (values[-1][1] or None) if values else None

    def required(self, name: str) -> str:
        """The value of a plain parameter that must be there."""
        value = self.text(name)
        if value is None:
            raise invalid(f"Missing required param: {name}.", param=name, code="parameter_missing")
        return value

    def whole(self, name: str) -> int | None:
        """The value of a plain parameter that must be an integer."""
        value = self.text(name)
        if value is None:
            return None
        if re.fullmatch(r"[+-]?[0-9]{1,18}", value) is None:
            raise invalid(f"Invalid integer: {value}", param=name, code="parameter_invalid_integer")
        return int(value)

    def many(self, name: str) -> list[str]:
        """The values of a list parameter, `name[]` or `name[0]`."""
        values = self._values.get(name, [])
        if any(re.fullmatch("[0-9]*", inner) is None for inner, _ in values):
            raise invalid("Invalid array", param=name)
        return [value for _, value in values]

    def metadata(self) -> dict[str, str]:
        """`metadata[name]=value`, within Stripe's limits."""
        entries = {inner: value for inner, value in self._values.get("metadata", []) if value}
        if len(entries) > MAX_METADATA_KEYS:
            raise invalid(f"Metadata can have at most {MAX_METADATA_KEYS} keys.", param="metadata")
        for name, value in entries.items():
            if not 1 <= len(name) <= MAX_METADATA_NAME_LENGTH or len(value) > MAX_METADATA_VALUE_LENGTH:
                limits = f"{MAX_METADATA_NAME_LENGTH} and {MAX_METADATA_VALUE_LENGTH}"
                message = f"Metadata names and values have at most {limits} characters."
                raise invalid(message, param=f"metadata[{name}]")
        return entries


def intent_json(intent: Intent, *, latest_charge: Charge | None = None) -> Json:
    """The PaymentIntent; `latest_charge` is put in whole where the request asked to expand it."""
    is_paid = intent.status == "succeeded"
    return {
        "id": intent.id,
        "object": "payment_intent",
        "amount": intent.amount,
        "amount_capturable": 0,
        "amount_details": {"tip": {}},
        "amount_received": intent.amount if is_paid else 0,
        "application": None,
        "application_fee_amount": None,
        "automatic_payment_methods": None,
        "canceled_at": intent.canceled_at,
        "cancellation_reason": intent.cancellation_reason,
        "capture_method": "automatic",
        "client_secret": intent.client_secret,
        "confirmation_method": "automatic",
        "created": intent.created_at,
        "currency": intent.currency,
        "customer": None,
        "description": intent.description,
        "last_payment_error": _failure_json(intent),
        "latest_charge": intent.latest_charge_id if latest_charge is None else charge_json(latest_charge),
        "livemode": False,
        "metadata": intent.metadata,
        "next_action": _next_action_json(intent),
        "on_behalf_of": None,
        "payment_method": intent.payment_method_id,
        "payment_method_options": {},
        "payment_method_types": ["card"],
        "processing": None,
        "receipt_email": None,
        "review": None,
        "setup_future_usage": None,
        "shipping": None,
        "statement_descriptor": None,
        "statement_descriptor_suffix": None,
        "status": intent.status,
        "transfer_data": None,
        "transfer_group": None,
    }


def charge_json(charge: Charge) -> Json:
    """The Charge."""
    return {
        "id": charge.id,
        "object": "charge",
        "amount": charge.amount,
        "amount_captured": charge.amount if charge.is_paid else 0,
        "amount_refunded": charge.amount_refunded,
        "application": None,
        "balance_transaction": None,
        "billing_details": {},
        "captured": charge.is_paid,
        "created": charge.created_at,
        "currency": charge.currency,
        "customer": None,
        "description": None,
        "disputed": charge.is_disputed,
        "failure_code": charge.failure_code,
        "failure_message": charge.failure_message,
        "livemode": False,
        "metadata": charge.metadata,
        "paid": charge.is_paid,
        "payment_intent": charge.intent_id,
        "payment_method": charge.payment_method_id,
        "payment_method_details": {"type": "card", "card": {}},
        "receipt_url": None,
        "refunded": charge.amount_refunded == charge.amount,
        "status": "succeeded" if charge.is_paid else "failed",
    }


def refund_json(refund: Refund) -> Json:
    """The Refund."""
    return {
        "id": refund.id,
        "object": "refund",
        "amount": refund.amount,
        "balance_transaction": None,
        "charge": refund.charge_id,
        "created": refund.created_at,
        "currency": refund.currency,
        "failure_reason": None if refund.status == "succeeded" else "expired_or_canceled_card",
        "metadata": refund.metadata,
        "payment_intent": refund.intent_id,
        "reason": refund.reason,
        "receipt_number": None,
        "status": refund.status,
    }


def dispute_json(charge: Charge, *, dispute_id: str, now: int) -> Json:
    """The Dispute that a cardholder's bank opens; it takes the whole charge back at once."""
    return {
        "id": dispute_id,
        "object": "dispute",
        "amount": charge.amount,
        "charge": charge.id,
        "created": now,
        "currency": charge.currency,
        "is_charge_refundable": False,
        "livemode": False,
        "metadata": {},
        "payment_intent": charge.intent_id,
        "reason": "fraudulent",
        "status": "needs_response",
    }


def card_error_json(intent: Intent) -> Json:
    """The 402 of a declined confirm: the reason, and the intent as it stands now."""
    failure = _failure_json(intent)
    assert isinstance(failure, Mapping), "a card error without a failure"
    return {"error": {**failure, "payment_intent": intent_json(intent)}}


def _failure_json(intent: Intent) -> Json:
    failure = intent.failure
    if failure is None:
        return None
    facts: dict[str, Json] = {
        "charge": failure.charge_id,
        "code": failure.code,
        "decline_code": failure.decline_code,
        "message": failure.message,
        "payment_method": {"id": failure.payment_method_id, "object": "payment_method", "type": "card"},
        "type": "card_error" if failure.charge_id else "invalid_request_error",
    }
    return {name: value for name, value in facts.items() if value is not None}


def _next_action_json(intent: Intent) -> Json:
    if intent.status != "requires_action":
        return None
    # Without a return_url Stripe leaves the authentication to its browser library.
    if intent.return_url is None:
        return {"type": "use_stripe_sdk", "use_stripe_sdk": {"type": "three_d_secure_redirect"}}
    return {
        "type": "redirect_to_url",
        "redirect_to_url": {"url": intent.redirect_url, "return_url": intent.return_url},
    }
