"""Paying a booking."""

from domain.base import BookingId
from domain.use_cases import payment as use_cases
from resolvers.context import Info
from resolvers.guards import signed_in
from resolvers.ids import ids_of, input_id
from resolvers.outcomes import answers_refusals
from schema.booking import Booking
from schema.common import Kind, given
from schema.payment import PayBookingInput
from schema.results import (
    PayBookingResult,
    PayBookingSuccess,
    PaymentActionRequired,
    PaymentDeferred,
    PaymentPending,
)


@answers_refusals
async def pay_booking(info: Info, input: PayBookingInput) -> PayBookingResult:
    """Paid, or where the payment stands."""
    viewer = signed_in(info)
    async with ids_of(info, viewer, "payBooking", input):
        booking_id = BookingId(input_id(input.booking_id, Kind.BOOKING, "bookingId"))
    command = use_cases.PayBooking(
        booking_id=booking_id,
        payment_method_id=input.payment_method_id,
        idempotency_key=given(input.idempotency_key),
    )
    answer = await use_cases.pay_booking(info.context.deps, viewer, command)
    booking = Booking.of(answer.booking)
    match answer:
        case use_cases.Paid():
            return PayBookingSuccess(booking=booking)
        case use_cases.Deferred():
            return PaymentDeferred(booking=booking, retry_after_ms=answer.retry_after_ms)
        case use_cases.Pending():
            return PaymentPending(booking=booking)
        case use_cases.ActionNeeded():
            return PaymentActionRequired(
                booking=booking, client_secret=answer.client_secret, redirect_url=answer.redirect_url
            )
