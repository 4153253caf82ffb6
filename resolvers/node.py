"""`node`: anything with a global id, as far as the viewer may see it."""

from typing import Annotated

import strawberry

from domain.base import BookingId, ConcertId, PaymentId, TicketTypeId, UserId
from resolvers.context import Info
from resolvers.guards import owns
from schema.booking import Booking
from schema.common import Kind, Node, decode_id
from schema.concert import Concert, TicketType
from schema.my_page import MyBooking
from schema.payment import Payment
from schema.user import User


async def node(
    info: Info, id: Annotated[strawberry.ID, strawberry.argument(description="Any `id` of a `Node`.")]
) -> Node | None:
    """What the id names, None where that is absent or not the viewer's to see. Raises: BadUserInput."""
    kind, raw = decode_id(id)
    if kind in (Kind.CONCERT, Kind.TICKET_TYPE):
        return await _public(info, kind, raw)
    return await _personal(info, kind, raw)


async def _public(info: Info, kind: Kind, raw: str) -> Node | None:
    loaders = info.context.loaders
    if kind is Kind.CONCERT:
        concert = await loaders.concert(ConcertId(raw))
        return None if concert is None else Concert.of(concert)
    ticket_type = await loaders.ticket_type(TicketTypeId(raw))
    return None if ticket_type is None else TicketType.of(ticket_type)


async def _personal(info: Info, kind: Kind, raw: str) -> Node | None:
    viewer, loaders = info.context.viewer, info.context.loaders
    if viewer is None:
        return None
    match kind:
        case Kind.USER:
            user = await loaders.user(UserId(raw)) if owns(viewer, UserId(raw)) else None
            return None if user is None else User.of(user, seen_by=viewer)
        case Kind.BOOKING:
            booking = await loaders.booking(BookingId(raw))
            return Booking.of(booking) if booking and owns(viewer, booking.user_id) else None
        case Kind.PAYMENT:
            payment = await loaders.payment(PaymentId(raw))
            return Payment.of(payment) if payment and owns(viewer, payment.user_id) else None
        case Kind.MY_BOOKING:
            row = await loaders.my_booking(BookingId(raw))
            return MyBooking.of(row) if row and owns(viewer, row.booking.user_id) else None
        case _:
            return None
