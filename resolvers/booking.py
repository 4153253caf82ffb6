"""Holding seats and giving them back; the live count and a booking's live state."""

from collections.abc import AsyncGenerator
from typing import Annotated

import strawberry

from domain.base import BookingId, ConcertId
from domain.booking import Quantity, Sale
from domain.use_cases import booking as use_cases
from domain.use_cases.my_page import watch_booking, watch_sale
from resolvers.context import Info
from resolvers.guards import owns, signed_in
from resolvers.ids import ids_of, input_id, query_id, stream_id, ticket_type_ids
from resolvers.outcomes import answers_refusals
from resolvers.streams import opened
from schema.booking import BookConcertInput, Booking, CancelBookingInput
from schema.common import Kind, given
from schema.concert import TicketCount
from schema.my_page import BookingUpdate
from schema.results import BookConcertResult, BookConcertSuccess, CancelBookingResult, CancelBookingSuccess

ConcertIdArgument = Annotated[strawberry.ID, strawberry.argument(description="A concert's id.")]


async def booking(
    info: Info, id: Annotated[strawberry.ID, strawberry.argument(description="A booking's id.")]
) -> Booking | None:
    """A booking the viewer may see, None for any other."""
    raw = query_id(id, Kind.BOOKING)
    noun = None if raw is None else await info.context.loaders.booking(BookingId(raw))
    if noun is None or not owns(info.context.viewer, noun.user_id):
        return None
    return Booking.of(noun)


async def ticket_count(info: Info, concert_id: ConcertIdArgument) -> TicketCount | None:
    """The sale's own view, None where there is none."""
    raw = query_id(concert_id, Kind.CONCERT)
    sale = None if raw is None else await info.context.loaders.sale(ConcertId(raw))
    return None if sale is None else TicketCount.of(sale)


@answers_refusals
async def book_concert(info: Info, input: BookConcertInput) -> BookConcertResult:
    """The seats are held."""
    viewer = signed_in(info)
    async with ids_of(info, viewer, "bookConcert", input):
        concert_id = ConcertId(input_id(input.concert_id, Kind.CONCERT, "concertId"))
        texts = [item.ticket_type_id for item in input.items]
        ticket_types = await ticket_type_ids(info, concert_id, texts, below="items")
    command = use_cases.BookConcert(
        concert_id=concert_id,
        quantities=tuple(
            Quantity(ticket_type_id, item.quantity)
            for ticket_type_id, item in zip(ticket_types, input.items, strict=True)
        ),
        idempotency_key=given(input.idempotency_key),
    )
    noun = await use_cases.book_concert(info.context.deps, viewer, command)
    return BookConcertSuccess(booking=Booking.of(noun))


@answers_refusals
async def cancel_booking(info: Info, input: CancelBookingInput) -> CancelBookingResult:
    """The booking is given up."""
    viewer = signed_in(info)
    async with ids_of(info, viewer, "cancelBooking", input):
        booking_id = BookingId(input_id(input.booking_id, Kind.BOOKING, "bookingId"))
    command = use_cases.CancelBooking(
        booking_id=booking_id,
        reason=given(input.reason),
        idempotency_key=given(input.idempotency_key),
    )
    noun = await use_cases.cancel_booking(info.context.deps, viewer, command)
    return CancelBookingSuccess(booking=Booking.of(noun))


# ---------------------------------------------------------------- subscriptions
async def watch_ticket_count(info: Info, concert_id: ConcertIdArgument) -> AsyncGenerator[TicketCount, None]:
    """The count now, then every newer one. Raises: NotFound."""
    raw = ConcertId(stream_id(concert_id, Kind.CONCERT))

    def show(sale: Sale) -> TicketCount:
        info.context.version = sale.version
        return TicketCount.of(sale)

    return await opened(watch_sale(info.context.deps, raw), show)


async def watch_booking_status(
    info: Info,
    booking_id: Annotated[
        strawberry.ID, strawberry.argument(description="A booking of yours; admins may watch any.")
    ],
) -> AsyncGenerator[BookingUpdate, None]:
    """The booking now, then every newer state until it is final. Raises: Unauthenticated, NotFound."""
    viewer = signed_in(info)
    raw = BookingId(stream_id(booking_id, Kind.BOOKING))
    return await opened(watch_booking(info.context.deps, viewer, raw), BookingUpdate.of)
