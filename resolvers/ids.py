"""Global ids in arguments. What is wrong with an id is told differently by a query and by a mutation.

One that can't be decoded is BAD_USER_INPUT in a query or subscription, InvalidInputProblem with its path in
a mutation. One of another type names nothing: null in a query, NOT_FOUND in a subscription, NotFoundProblem in a
mutation.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from domain.base import BadUserInput, ConcertId, FieldError, InvalidInput, NotFound, TicketTypeId
from domain.use_cases.keys import Keyed, refuse
from domain.user import Viewer
from resolvers.context import Info
from schema.common import Kind, decode_id, given

_NAMES = {
    Kind.CONCERT: "concert",
    Kind.TICKET_TYPE: "ticket type",
    Kind.BOOKING: "booking",
}


def query_id(text: str, kind: Kind) -> str | None:
    """The raw id, None where it names something of another type. Raises: BadUserInput."""
    found, raw = decode_id(text)
    return raw if found is kind else None


def stream_id(text: str, kind: Kind) -> str:
    """The raw id. Raises: BadUserInput, or NotFound where it names something of another type."""
    raw = query_id(text, kind)
    if raw is None:
        raise NotFound(_NAMES[kind])
    return raw


@asynccontextmanager
async def ids_of(info: Info, viewer: Viewer, mutation: str, input: Keyed) -> AsyncIterator[None]:
    """Inside, ids are read from a mutation's input; a wrong one is refused as any input is, for good under its key.

    Raises: InvalidInput, NotFound, IdempotencyMismatch.
    """
    try:
        yield
    except (InvalidInput, NotFound) as refusal:
        asked = replace(input, idempotency_key=given(input.idempotency_key))  # type: ignore[type-var]
        await refuse(info.context.deps, viewer.user.id, mutation, asked, refusal)


def input_id(text: str, kind: Kind, path: str) -> str:
    """The raw id at `path` of an input. Raises: InvalidInput, NotFound."""
    return _input_ids([text], kind, [(path,)])[0]


async def ticket_type_ids(
    info: Info, concert_id: ConcertId, texts: Sequence[str], *, below: str
) -> list[TicketTypeId]:
    """The raw ids in the list `below` of an input about this concert.

    Raises: NotFound where one names something of another type or there is no such concert; else InvalidInput
    with every path whose id can't be decoded.
    """
    paths = [(below, str(position), "ticketTypeId") for position in range(len(texts))]
    try:
        return [TicketTypeId(raw) for raw in _input_ids(texts, Kind.TICKET_TYPE, paths)]
    except InvalidInput:
        # "Found" is checked before "input" (the contract's order).
        if await info.context.loaders.sale(concert_id) is None:
            raise NotFound(_NAMES[Kind.CONCERT]) from None
        raise


def _input_ids(texts: Sequence[str], kind: Kind, paths: Sequence[tuple[str, ...]]) -> list[str]:
    raws: list[str] = []
    errors: list[FieldError] = []
    for text, path in zip(texts, paths, strict=True):
        try:
            raws.append(stream_id(text, kind))
        except BadUserInput:
            errors.append(FieldError(path, "must be an id that this API gave out"))
    if errors:
        raise InvalidInput(tuple(errors))
    return raws
