"""What may happen to money once it was taken: refunds over the API, refunds and disputes from outside."""

from dataclasses import replace

from infra.sandbox.books import Charge, Intent, Refund
from infra.sandbox.rules import REFUND_FAILING_METHOD, Call, Event, Reply, find_intent, new_id
from infra.sandbox.wire import Refused, charge_json, dispute_json, invalid, missing, refund_json

REFUND_REASONS = frozenset({"duplicate", "fraudulent", "requested_by_customer"})


def create_refund(call: Call) -> Reply:
    """Money on its way back, all that is left or a part; never more than was taken."""
    parameters = call.parameters
    parameters.only("amount", "charge", "metadata", "payment_intent", "reason")
    reason = parameters.text("reason")
    if reason is not None and reason not in REFUND_REASONS:
        raise invalid(f"Invalid reason: {reason}", param="reason")
    return _refund(
        call,
        _charge_to_refund(call),
        amount=parameters.whole("amount"),
        reason=reason,
        metadata=parameters.metadata(),
    )


def retrieve_refund(call: Call) -> Reply:
    """The refund as it is now."""
    call.parameters.only()
    refund = call.books.refund(call.subject)
    if refund is None:
        raise missing("refund", call.subject, param="id")
    return Reply(refund_json(refund))


def list_refunds(call: Call) -> Reply:
    """Refunds, newest first, 10 unless asked otherwise, 100 at most."""
    parameters = call.parameters
    parameters.only("charge", "limit", "payment_intent", "starting_after")
    limit = parameters.whole("limit")
    limit = 10 if limit is None else limit
    if not 1 <= limit <= 100:
        raise invalid("limit must be from 1 to 100.", param="limit", code="parameter_invalid_integer")
    intent_id = parameters.text("payment_intent")
    charge_id = parameters.text("charge")
    if charge_id is not None:
        charge = call.books.charge(charge_id)
        if charge is None:
            raise missing("charge", charge_id, param="charge")
        intent_id = charge.intent_id
    after = parameters.text("starting_after")
    refunds = call.books.refunds(intent_id, after=after, limit=limit + 1)
    shown = [refund_json(refund) for refund in refunds[:limit]]
    return Reply({"object": "list", "url": "/v1/refunds", "has_more": len(refunds) > limit, "data": shown})


def refund_at_processor(call: Call) -> Reply:
    """A refund that nobody asked for over the API, as from the processor's dashboard."""
    return _refund(call, _paid_charge(call, find_intent(call)), amount=call.parameters.whole("amount"))


def fail_refund_at_processor(call: Call) -> Reply:
    """The newest refund comes back from the cardholder's bank, days after it was called through."""
    charge = _paid_charge(call, find_intent(call))
    refunds = call.books.refunds(charge.intent_id, after=None, limit=1)
    if not refunds or refunds[0].status != "succeeded":
        raise Refused(f"Charge {charge.id} has no refund that could fail.")
    refund = replace(refunds[0], status="failed")
    call.books.save_refund(refund)
    call.books.save_charge(replace(charge, amount_refunded=charge.amount_refunded - refund.amount))
    return Reply(refund_json(refund), events=(Event("refund.failed", refund_json(refund)),))


def dispute_at_processor(call: Call) -> Reply:
    """The cardholder's bank takes the money back. Once per charge; asking again changes nothing."""
    charge = _paid_charge(call, find_intent(call))
    dispute = dispute_json(charge, dispute_id=new_id("dp"), now=call.now)
    if charge.is_disputed:
        return Reply(charge_json(charge))
    charge = replace(charge, is_disputed=True)
    call.books.save_charge(charge)
    return Reply(charge_json(charge), events=(Event("charge.dispute.created", dispute),))


def _refund(
    call: Call,
    charge: Charge,
    *,
    amount: int | None,
    reason: str | None = None,
    metadata: dict[str, str] | None = None,
) -> Reply:
    """Give back `amount` of the charge, or all that is left of it."""
    left = charge.amount - charge.amount_refunded
    if charge.is_disputed:
        raise Refused(
            f"Charge {charge.id} has been charged back; cannot issue a refund.", code="charge_disputed"
        )
    if left == 0:
        raise Refused(f"Charge {charge.id} has already been refunded.", code="charge_already_refunded")
    amount = left if amount is None else amount
    if amount < 1:
        raise invalid("Invalid positive integer", param="amount", code="parameter_invalid_integer")
    if amount > left:
        message = f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left})"
        raise Refused(message, code="amount_too_large", param="amount")
    is_failing = charge.payment_method_id == REFUND_FAILING_METHOD
    refund = Refund(
        id=new_id("re"),
        charge_id=charge.id,
        intent_id=charge.intent_id,
        amount=amount,
        currency=charge.currency,
        created_at=call.now,
        status="failed" if is_failing else "succeeded",
        reason=reason,
        metadata=metadata or {},
    )
    call.books.save_refund(refund)
    if is_failing:
        return Reply(refund_json(refund), events=(Event("refund.failed", refund_json(refund)),))
    charge = replace(charge, amount_refunded=charge.amount_refunded + amount)
    call.books.save_charge(charge)
    return Reply(refund_json(refund), events=(Event("charge.refunded", charge_json(charge)),))


def _charge_to_refund(call: Call) -> Charge:
    intent_id, charge_id = call.parameters.text("payment_intent"), call.parameters.text("charge")
    if charge_id is not None:
        charge = call.books.charge(charge_id)
        if charge is None:
            raise missing("charge", charge_id, param="charge")
        if not charge.is_paid:
            raise Refused("This charge failed and cannot be refunded.", code="charge_not_refundable")
        return charge
    if intent_id is None:
        raise invalid(
            "One of the following params should be provided: payment_intent, charge.",
            code="parameter_missing",
        )
    intent = call.books.intent(intent_id)
    if intent is None:
        raise missing("payment_intent", intent_id, param="payment_intent")
    return _paid_charge(call, intent)


def _paid_charge(call: Call, intent: Intent) -> Charge:
    charge = None
    if intent.status == "succeeded" and intent.latest_charge_id is not None:
        charge = call.books.charge(intent.latest_charge_id)
    if charge is None:
        raise Refused(f"This PaymentIntent ({intent.id}) does not have a successful charge to refund.")
    return charge
