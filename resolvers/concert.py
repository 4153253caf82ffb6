"""The catalogue: shown to everyone, organised by admins."""

from typing import Annotated

import strawberry

from domain.base import BadUserInput, Checker, ConcertId, InvalidInput
from domain.concert import TITLE_MAX_LENGTH, ConcertOrder
from domain.concert import ConcertFilter as ConcertFilterNoun
from domain.use_cases import concert as use_cases
from resolvers.context import Info
from resolvers.guards import admin
from resolvers.ids import ids_of, input_id, query_id, ticket_type_ids
from resolvers.outcomes import answers_refusals
from schema.common import Kind, given
from schema.concert import (
    CancelConcertInput,
    Concert,
    ConcertConnection,
    ConcertFilter,
    RegisterConcertInput,
    UpdateConcertInput,
    concert_scope,
)
from schema.paging import PAGE_DEFAULT, PAGE_MAX, page_query
from schema.results import (
    CancelConcertResult,
    CancelConcertSuccess,
    RegisterConcertResult,
    RegisterConcertSuccess,
    UpdateConcertResult,
    UpdateConcertSuccess,
)

_FIRST = (
    f"How many from the list's start, or after `after`: from 1 to {PAGE_MAX}, {PAGE_DEFAULT} if neither "
    "`first` nor `last` is given."
)
_LAST = f"How many from the list's end, or before `before`: from 1 to {PAGE_MAX}. Not together with `first`."


async def concert(
    info: Info, id: Annotated[strawberry.ID, strawberry.argument(description="A concert's id.")]
) -> Concert | None:
    """One entry, None where there is none."""
    raw = query_id(id, Kind.CONCERT)
    noun = None if raw is None else await info.context.loaders.concert(ConcertId(raw))
    return None if noun is None else Concert.of(noun)


async def concerts(
    info: Info,
    first: Annotated[int | None, strawberry.argument(description=_FIRST)] = strawberry.UNSET,
    after: Annotated[
        str | None, strawberry.argument(description="Only those after this cursor.")
    ] = strawberry.UNSET,
    last: Annotated[int | None, strawberry.argument(description=_LAST)] = strawberry.UNSET,
    before: Annotated[
        str | None, strawberry.argument(description="Only those before this cursor.")
    ] = strawberry.UNSET,
    filter: Annotated[
        ConcertFilter | None, strawberry.argument(description="Which ones; absent or null: all.")
    ] = strawberry.UNSET,
    order_by: Annotated[
        ConcertOrder, strawberry.argument(description="In which order.")
    ] = ConcertOrder.STARTS_AT_ASC,
) -> ConcertConnection:
    """A page of the catalogue. Raises: BadUserInput for arguments that make no sense."""
    wanted = given(filter)
    where = ConcertFilterNoun() if wanted is None else wanted.noun()
    _check_search(where.search)
    query = page_query(
        concert_scope(where, order_by),
        first=given(first),
        after=given(after),
        last=given(last),
        before=given(before),
    )
    page = await info.context.deps.reads.concert_page(query, where=where, order=order_by)
    return ConcertConnection.of(page, where=where, order=order_by)


def _check_search(search: str | None) -> None:
    check = Checker()
    check.text(search or "", ("filter", "search"), max_length=TITLE_MAX_LENGTH, min_length=0)
    try:
        check.done()
    except InvalidInput as error:
        raise BadUserInput(error.message) from error


@answers_refusals
async def register_concert(info: Info, input: RegisterConcertInput) -> RegisterConcertResult:
    """A concert in the catalogue that sells within its window."""
    viewer = admin(info)
    command = use_cases.RegisterConcert(
        title=input.title,
        performer=input.performer,
        description=input.description,
        venue=input.venue,
        time_zone=input.time_zone,
        starts_at=input.starts_at,
        sales_open_at=input.sales_open_at,
        sales_close_at=input.sales_close_at,
        max_tickets_per_user=input.max_tickets_per_user,
        ticket_types=tuple(wanted.noun() for wanted in input.ticket_types),
        idempotency_key=given(input.idempotency_key),
    )
    noun = await use_cases.register_concert(info.context.deps, viewer, command)
    return RegisterConcertSuccess(concert=Concert.of(noun))


@answers_refusals
async def update_concert(info: Info, input: UpdateConcertInput) -> UpdateConcertResult:
    """What the organiser wants changed is."""
    viewer = admin(info)
    lines = given(input.capacities) or []
    async with ids_of(info, viewer, "updateConcert", input):
        concert_id = ConcertId(input_id(input.concert_id, Kind.CONCERT, "concertId"))
        texts = [line.ticket_type_id for line in lines]
        ticket_types = await ticket_type_ids(info, concert_id, texts, below="capacities")
    command = use_cases.UpdateConcert(
        concert_id=concert_id,
        change=input.change(),
        capacities=tuple(zip(ticket_types, (line.capacity for line in lines), strict=True)),
        idempotency_key=given(input.idempotency_key),
    )
    noun = await use_cases.update_concert(info.context.deps, viewer, command)
    return UpdateConcertSuccess(concert=Concert.of(noun))


@answers_refusals
async def cancel_concert(info: Info, input: CancelConcertInput) -> CancelConcertResult:
    """The concert is called off."""
    viewer = admin(info)
    async with ids_of(info, viewer, "cancelConcert", input):
        concert_id = ConcertId(input_id(input.concert_id, Kind.CONCERT, "concertId"))
    command = use_cases.CancelConcert(concert_id=concert_id, idempotency_key=given(input.idempotency_key))
    done = await use_cases.cancel_concert(info.context.deps, viewer, command)
    return CancelConcertSuccess(
        concert=Concert.of(done.concert),
        bookings_to_cancel=done.bookings_to_cancel,
        refunds_open=done.refunds_open,
    )
