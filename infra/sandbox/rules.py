"""What may happen to an intent: create, confirm, authenticate, cancel. Refunds are in `refunds`.

Every operation is synchronous and runs inside one `Books.writing()`, so it happens whole or not at all.

Not copied from Stripe: the smallest amount per currency, because that depends on the account's bank. One
minor unit is enough here.
"""

import secrets
import string
from dataclasses import dataclass, replace

from domain.base import CURRENCIES, PAYMENT_MAX_MINOR
from infra.sandbox.books import Books, Charge, Failure, Intent
from infra.sandbox.wire import (
    Json,
    Parameters,
    Refused,
    card_error_json,
    intent_json,
    invalid,
    missing,
)

APPROVING_METHODS = frozenset({"pm_card_visa", "pm_card_visa_debit", "pm_card_mastercard", "pm_card_amex"})
# Charged like any other card, and every refund fails (Stripe, "Testing", card 4000 0000 0000 5126).
REFUND_FAILING_METHOD = "pm_card_refundFail"
AUTHENTICATING_METHODS = frozenset(
    {"pm_card_authenticationRequired", "pm_card_threeDSecureRequired", "pm_card_threeDSecure2Required"}
)
# Method -> error code, decline code (Stripe, "Testing", "Declined payments").
DECLINING_METHODS = {
    "pm_card_chargeDeclined": ("card_declined", "generic_decline"),
    "pm_card_visa_chargeDeclined": ("card_declined", "generic_decline"),
    "pm_card_visa_chargeDeclinedInsufficientFunds": ("card_declined", "insufficient_funds"),
    "pm_card_visa_chargeDeclinedLostCard": ("card_declined", "lost_card"),
    "pm_card_visa_chargeDeclinedStolenCard": ("card_declined", "stolen_card"),
    "pm_card_visa_chargeDeclinedVelocityLimitExceeded": ("card_declined", "card_velocity_exceeded"),
    "pm_card_chargeDeclinedExpiredCard": ("expired_card", "expired_card"),
    "pm_card_chargeDeclinedIncorrectCvc": ("incorrect_cvc", "incorrect_cvc"),
    "pm_card_chargeDeclinedProcessingError": ("processing_error", "processing_error"),
}
# Amounts that Stripe takes in steps only (Stripe, "Supported currencies": special cases, three-decimal).
AMOUNT_STEPS = {"bhd": 10, "jod": 10, "kwd": 10, "omr": 10, "tnd": 10, "isk": 100, "ugx": 100}
CANCELLATION_REASONS = frozenset({"abandoned", "duplicate", "fraudulent", "requested_by_customer"})
# Stripe changelog, 2026-09-30.endive, "Removes the payment method types parameter".
NO_FIXED_METHOD_TYPES = "2026-09-30"
PAYABLE = frozenset({"requires_payment_method", "requires_confirmation", "requires_action"})

_ALPHABET = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class Call:
    """One request: `subject` is the id in its path, `base_url` where its sender reaches the sandbox."""

    books: Books
    parameters: Parameters
    subject: str
    base_url: str
    api_version: str
    key: str | None
    now: int


@dataclass(frozen=True, slots=True)
class Event:
    """Something to tell the webhook: Stripe's event type, and the object it happened to."""

    kind: str
    subject: Json


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, and what to tell the webhook."""

    body: Json
    status: int = 200
    events: tuple[Event, ...] = ()


def create_intent(call: Call) -> Reply:
    """A new intent that no method is attached to. Moves no money."""
    parameters = call.parameters
    allowed, fixed = "allowed_payment_method_types", "payment_method_types"
    parameters.only("amount", "currency", "description", "expand", "metadata", allowed, fixed)
    if parameters.many(fixed) and call.api_version >= NO_FIXED_METHOD_TYPES:
        message = f"{fixed} is no longer supported. Use {allowed} instead."
        raise invalid(message, param=fixed, code="payment_method_types_no_longer_supported")
    currency = parameters.required("currency").lower()
    if currency.upper() not in CURRENCIES:
        raise invalid(f"Invalid currency: {currency}.", param="currency")
    if any(kind != "card" for kind in parameters.many(fixed) + parameters.many(allowed)):
        raise invalid("This sandbox takes cards only.", param=allowed)
    identity = new_id("pi")
    intent = Intent(
        id=identity,
        client_secret=f"{identity}_secret_{_random(25)}",
        amount=_amount(parameters, currency),
        currency=currency,
        created_at=call.now,
        status="requires_payment_method",
        idempotency_key=call.key,
        description=parameters.text("description"),
        metadata=parameters.metadata(),
    )
    call.books.save_intent(intent)
    return _shown(call, intent)


def retrieve_intent(call: Call) -> Reply:
    """The intent as it is now."""
    call.parameters.only("client_secret", "expand")
    return _shown(call, find_intent(call))


def confirm_intent(call: Call) -> Reply:
    """Take the money, decline, or ask the cardholder to authenticate; which one, the test method decides."""
    parameters = call.parameters
    parameters.only("expand", "payment_method", "return_url")
    method_id = parameters.text("payment_method")
    return_url = parameters.text("return_url")
    if return_url is not None and not return_url.startswith(("http://", "https://")):
        raise invalid("Not a valid URL", param="return_url", code="url_invalid")
    intent = find_intent(call)
    if intent.status not in PAYABLE:
        raise _unexpected(
            intent, "You cannot confirm this PaymentIntent because it has a status of {status}."
        )
    method_id = method_id or intent.payment_method_id
    if method_id is None:
        raise invalid(
            "You cannot confirm without a payment method.", param="payment_method", code="parameter_missing"
        )
    if method_id in DECLINING_METHODS:
        return _decline(call, intent, method_id=method_id)
    if method_id in AUTHENTICATING_METHODS:
        return _ask_to_authenticate(call, intent, method_id=method_id, return_url=return_url)
    if method_id in APPROVING_METHODS or method_id == REFUND_FAILING_METHOD:
        return _charge(call, intent, method_id=method_id)
    raise missing("PaymentMethod", method_id, param="payment_method", status=400)


def cancel_intent(call: Call) -> Reply:
    """The intent never takes money again. Refused once it succeeded or was canceled before."""
    call.parameters.only("cancellation_reason", "expand")
    reason = call.parameters.text("cancellation_reason")
    if reason is not None and reason not in CANCELLATION_REASONS:
        raise invalid(f"Invalid cancellation_reason: {reason}", param="cancellation_reason")
    intent = find_intent(call)
    if intent.status not in PAYABLE:
        raise _unexpected(intent, "You cannot cancel this PaymentIntent because it has a status of {status}.")
    intent = replace(intent, status="canceled", canceled_at=call.now, cancellation_reason=reason)
    call.books.save_intent(intent)
    return _shown(call, intent, event="payment_intent.canceled")


def authenticate(call: Call, *, is_successful: bool) -> Reply:
    """What the cardholder did on the bank's page. Changes nothing unless the intent waits for it."""
    intent = find_intent(call)
    if intent.status != "requires_action" or intent.payment_method_id is None:
        return _shown(call, intent)
    if is_successful:
        return _charge(call, intent, method_id=intent.payment_method_id)
    # Stripe asks the card nothing after a failed authentication, so there is no charge to point at.
    failure = Failure(
        code="payment_intent_authentication_failure",
        decline_code=None,
        message="The provided PaymentMethod has failed authentication.",
        payment_method_id=intent.payment_method_id,
        charge_id=None,
    )
    return _fail(call, intent, failure)


def _charge(call: Call, intent: Intent, *, method_id: str) -> Reply:
    charge = _new_charge(call, intent, method_id=method_id)
    intent = replace(
        intent,
        status="succeeded",
        payment_method_id=method_id,
        latest_charge_id=charge.id,
        redirect_url=None,
        failure=None,
    )
    call.books.save_charge(charge)
    call.books.save_intent(intent)
    return _shown(call, intent, event="payment_intent.succeeded")


def _decline(call: Call, intent: Intent, *, method_id: str) -> Reply:
    code, decline_code = DECLINING_METHODS[method_id]
    message = f"Your card was declined ({decline_code})."
    charge = replace(
        _new_charge(call, intent, method_id=method_id),
        is_paid=False,
        failure_code=code,
        failure_message=message,
    )
    call.books.save_charge(charge)
    failure = Failure(
        code=code,
        decline_code=decline_code,
        message=message,
        payment_method_id=method_id,
        charge_id=charge.id,
    )
    return _fail(call, replace(intent, latest_charge_id=charge.id), failure)


def _fail(call: Call, intent: Intent, failure: Failure) -> Reply:
    # The intent can be confirmed again with another method; the failed one is not attached any more.
    intent = replace(
        intent, status="requires_payment_method", payment_method_id=None, redirect_url=None, failure=failure
    )
    call.books.save_intent(intent)
    event = Event("payment_intent.payment_failed", intent_json(intent))
    return Reply(card_error_json(intent), status=402, events=(event,))


def _ask_to_authenticate(call: Call, intent: Intent, *, method_id: str, return_url: str | None) -> Reply:
    is_waiting = intent.status == "requires_action" and intent.payment_method_id == method_id
    intent = replace(
        intent,
        status="requires_action",
        payment_method_id=method_id,
        redirect_url=intent.redirect_url or f"{call.base_url}/_3ds/{intent.id}",
        return_url=return_url or intent.return_url,
        failure=None,
    )
    call.books.save_intent(intent)
    return _shown(call, intent, event=None if is_waiting else "payment_intent.requires_action")


def _shown(call: Call, intent: Intent, *, event: str | None = None) -> Reply:
    """The intent as the request wants to see it; an event carries it unexpanded, as Stripe's do."""
    expand = call.parameters.many("expand")
    for name in expand:
        if name != "latest_charge":
            raise invalid(f"This property cannot be expanded ({name}).", param="expand")
    latest_charge = None
    if expand and intent.latest_charge_id is not None:
        latest_charge = call.books.charge(intent.latest_charge_id)
    events = () if event is None else (Event(event, intent_json(intent)),)
    return Reply(intent_json(intent, latest_charge=latest_charge), events=events)


def _amount(parameters: Parameters, currency: str) -> int:
    parameters.required("amount")
    amount = parameters.whole("amount") or 0
    if amount < 1:
        raise invalid(
            "This value must be greater than or equal to 1.", param="amount", code="parameter_invalid_integer"
        )
    if amount > PAYMENT_MAX_MINOR:
        raise invalid(
            f"Amount must be no more than {PAYMENT_MAX_MINOR}.", param="amount", code="amount_too_large"
        )
    step = AMOUNT_STEPS.get(currency, 1)
    if amount % step:
        raise invalid(
            f"Amounts in {currency} must be divisible by {step}.",
            param="amount",
            code="parameter_invalid_integer",
        )
    return amount


def find_intent(call: Call) -> Intent:
    """The intent that the path names. Raises: Refused where there is none."""
    intent = call.books.intent(call.subject)
    if intent is None:
        raise missing("payment_intent", call.subject, param="intent")
    return intent


def _unexpected(intent: Intent, message: str) -> Refused:
    return Refused(
        message.format(status=intent.status),
        code="payment_intent_unexpected_state",
        intent=intent_json(intent),
    )


def _new_charge(call: Call, intent: Intent, *, method_id: str) -> Charge:
    return Charge(
        id=new_id("ch"),
        intent_id=intent.id,
        amount=intent.amount,
        currency=intent.currency,
        created_at=call.now,
        payment_method_id=method_id,
        is_paid=True,
        metadata=intent.metadata,
    )


def new_id(prefix: str) -> str:
    """An id as Stripe makes them: `prefix`, and 24 letters and digits."""
    return f"{prefix}_{_random(24)}"


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))
