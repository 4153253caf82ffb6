"""Concerts, as clients see them: the catalogue's entries, and the live counts of their sales.

The count stands here and not with bookings, which own the sale, because `Concert.ticketCount` shows it and
bookings show concerts: one direction of imports.
"""

from datetime import datetime

import strawberry

from domain.base import ConcertId, Page, Unavailable
from domain.booking import Sale, StockLine
from domain.concert import Concert as ConcertNoun
from domain.concert import (
    ConcertChange,
    ConcertOrder,
    ConcertStatus,
    NewTicketType,
    concert_page_key,
)
from domain.concert import ConcertFilter as ConcertFilterNoun
from domain.concert import TicketType as TicketTypeNoun
from schema.common import (
    KEY_DESCRIPTION,
    FieldInfo,
    Kind,
    Money,
    MoneyInput,
    Node,
    describe_enum,
    encode_id,
    given,
)
from schema.paging import CursorScope, PageInfo

describe_enum(
    ConcertStatus,
    "Whether the concert takes place.",
    {
        "SCHEDULED": "It takes place, or has taken place.",
        "CANCELLED": "It was called off: nothing is on sale, and what was paid is refunded.",
    },
)
describe_enum(
    ConcertOrder,
    "How concerts are sorted. Equal ones are sorted by id, so that pages never overlap.",
    {
        "STARTS_AT_ASC": "The next one first.",
        "STARTS_AT_DESC": "The last one first.",
        "TITLE_ASC": "By title, from A.",
    },
)


# ---------------------------------------------------------------- the live count
@strawberry.type(description="The live count of one ticket type: capacity = available + held + sold.")
class TicketTypeCount:
    """One line of the stock."""

    ticket_type_id: strawberry.ID = strawberry.field(description="What `bookConcert` takes.")
    name: str = strawberry.field(description="E.g. `Stalls`.")
    price: Money = strawberry.field(description="Of one ticket.")
    capacity: int = strawberry.field(description="All seats. Of a cancelled concert: those held or sold.")
    available: int = strawberry.field(description="Seats that can be booked.")
    held: int = strawberry.field(description="Seats of bookings that are not paid yet.")
    sold: int = strawberry.field(description="Seats of approved bookings.")

    @classmethod
    def of(cls, noun: StockLine) -> "TicketTypeCount":
        """As everyone sees it."""
        return cls(
            ticket_type_id=encode_id(Kind.TICKET_TYPE, noun.ticket_type_id),
            name=noun.name,
            price=Money.of(noun.price),
            capacity=noun.capacity,
            available=noun.available,
            held=noun.held,
            sold=noun.sold,
        )


@strawberry.type(
    description=(
        "The live count of a concert, one consistent snapshot: capacity = available + held + sold, "
        "for each ticket type and in sum, in every answer and every pushed update."
    )
)
class TicketCount:
    """One state of a sale."""

    concert_id: strawberry.ID = strawberry.field(description="The concert's id.")
    status: ConcertStatus = strawberry.field(description="Whether the concert takes place.")
    sales_open_at: datetime = strawberry.field(description="From when tickets can be booked.")
    sales_close_at: datetime = strawberry.field(description="Until when tickets can be booked.")
    capacity: int = strawberry.field(description="All seats of all ticket types.")
    available: int = strawberry.field(
        description="Seats that can be booked; 0 once the concert is cancelled."
    )
    held: int = strawberry.field(description="Seats of bookings that are not paid yet.")
    sold: int = strawberry.field(description="Seats of approved bookings.")
    version: int = strawberry.field(description="Rises with every change of the sale; may jump.")
    ticket_types: list[TicketTypeCount] = strawberry.field(
        description="At most 20, in the order they were registered."
    )

    @classmethod
    def of(cls, noun: Sale) -> "TicketCount":
        """As everyone sees it."""
        return cls(
            concert_id=encode_id(Kind.CONCERT, noun.concert_id),
            status=ConcertStatus.CANCELLED if noun.is_cancelled else ConcertStatus.SCHEDULED,
            sales_open_at=noun.sales_open_at,
            sales_close_at=noun.sales_close_at,
            capacity=sum(line.capacity for line in noun.stock),
            available=sum(line.available for line in noun.stock),
            held=sum(line.held for line in noun.stock),
            sold=sum(line.sold for line in noun.stock),
            version=noun.version,
            ticket_types=[TicketTypeCount.of(line) for line in noun.stock],
        )


# ---------------------------------------------------------------- the catalogue
@strawberry.type(description="One kind of ticket of a concert.")
class TicketType(Node):
    """The catalogue's ticket type."""

    name: str = strawberry.field(description="E.g. `Stalls`.")
    price: Money = strawberry.field(description="Of one ticket.")
    capacity: int = strawberry.field(
        description="How many seats the organiser gave it. `ticketCount` has the live count."
    )

    @classmethod
    def of(cls, noun: TicketTypeNoun) -> "TicketType":
        """As everyone sees it."""
        return cls(
            id=encode_id(Kind.TICKET_TYPE, noun.id),
            name=noun.name,
            price=Money.of(noun.price),
            capacity=noun.capacity,
        )


@strawberry.type(description="A concert, as its organiser registered it.")
class Concert(Node):
    """The catalogue's entry."""

    concert_id: strawberry.Private[ConcertId]
    title: str = strawberry.field(description="At most 200 characters.")
    performer: str = strawberry.field(description="Who plays. At most 200 characters.")
    description: str = strawberry.field(description="Plain text, at most 10000 characters, may be empty.")
    venue: str = strawberry.field(description="Where it takes place. At most 200 characters.")
    time_zone: str = strawberry.field(
        description="The venue's IANA zone, e.g. `Europe/Berlin`, for showing times."
    )
    starts_at: datetime = strawberry.field(
        description="When it starts. Bookings can be cancelled until then."
    )
    sales_open_at: datetime = strawberry.field(description="From when tickets can be booked.")
    sales_close_at: datetime = strawberry.field(description="Until when tickets can be booked.")
    max_tickets_per_user: int = strawberry.field(
        description="How many tickets one person may have of it, all live bookings together."
    )
    status: ConcertStatus = strawberry.field(description="Whether it takes place.")

    @strawberry.field(description="At most 20, in the order they were registered.")
    async def ticket_types(self, info: FieldInfo) -> list[TicketType]:
        """Batched."""
        return [TicketType.of(noun) for noun in await info.context.loaders.ticket_types_of(self.concert_id)]

    @strawberry.field(description="The live count. Null only beside an error.")
    async def ticket_count(self, info: FieldInfo) -> TicketCount | None:
        """Batched. Raises: Unavailable where the sale can't be seen."""
        sale = await info.context.loaders.sale(self.concert_id)
        if sale is None:
            raise Unavailable("booking")
        return TicketCount.of(sale)

    @classmethod
    def of(cls, noun: ConcertNoun) -> "Concert":
        """As everyone sees it."""
        return cls(
            id=encode_id(Kind.CONCERT, noun.id),
            concert_id=noun.id,
            title=noun.title,
            performer=noun.performer,
            description=noun.description,
            venue=noun.venue,
            time_zone=noun.time_zone,
            starts_at=noun.starts_at,
            sales_open_at=noun.sales_open_at,
            sales_close_at=noun.sales_close_at,
            max_tickets_per_user=noun.max_tickets_per_user,
            status=noun.status,
        )


@strawberry.type(description="One concert of a page.")
class ConcertEdge:
    """A row and where it stands."""

    cursor: str = strawberry.field(description="For `after` and `before`, with the same order and filter.")
    node: Concert = strawberry.field(description="The concert.")


@strawberry.type(
    description=(
        "A page of concerts. No concert comes twice or is skipped while you page, unless its own "
        "sort key changes."
    )
)
class ConcertConnection:
    """A keyset page."""

    where: strawberry.Private[ConcertFilterNoun]
    edges: list[ConcertEdge] = strawberry.field(description="At most 100, in the order asked for.")
    page_info: PageInfo = strawberry.field(description="Where this page stands.")

    @strawberry.field(
        description="How many concerts the filter leaves, all pages together. Counted when asked for."
    )
    async def total_count(self, info: FieldInfo) -> int:
        """One statement more."""
        return await info.context.concert_total(self.where)

    @classmethod
    def of(
        cls, page: Page[ConcertNoun], *, where: ConcertFilterNoun, order: ConcertOrder
    ) -> "ConcertConnection":
        """The page with its cursors."""
        scope = concert_scope(where, order)
        cursors = [scope.encode(concert_page_key(noun, order)) for noun in page.rows]
        return cls(
            where=where,
            edges=[
                ConcertEdge(cursor=cursor, node=Concert.of(noun))
                for cursor, noun in zip(cursors, page.rows, strict=True)
            ],
            page_info=PageInfo.of(page, cursors),
        )


def concert_scope(where: ConcertFilterNoun, order: ConcertOrder) -> CursorScope:
    """What a cursor of this list belongs to."""
    facts = (where.search, where.starts_after, where.starts_before, where.on_sale)
    return CursorScope.of("concerts", order.value, *facts, is_by_time=order is not ConcertOrder.TITLE_ASC)


# ---------------------------------------------------------------- inputs
@strawberry.input(description="Which concerts to list. What is absent or null leaves all of them.")
class ConcertFilter:
    """All conditions hold together."""

    search: str | None = strawberry.field(
        default=strawberry.UNSET,
        description=(
            "Words that all stand in title, performer or venue, upper and lower case alike. At most 200 "
            "characters."
        ),
    )
    starts_after: datetime | None = strawberry.field(
        default=strawberry.UNSET, description="Only concerts that start later than this."
    )
    starts_before: datetime | None = strawberry.field(
        default=strawberry.UNSET, description="Only concerts that start earlier than this."
    )
    on_sale: bool | None = strawberry.field(
        default=strawberry.UNSET,
        description="True: only those not cancelled whose sales window is open now. False: only the others.",
    )

    def noun(self) -> ConcertFilterNoun:
        """As the domain knows it."""
        return ConcertFilterNoun(
            search=given(self.search),
            starts_after=given(self.starts_after),
            starts_before=given(self.starts_before),
            on_sale=given(self.on_sale),
        )


@strawberry.input(description="One kind of ticket to sell.")
class TicketTypeInput:
    """A line of `registerConcert`."""

    name: str = strawberry.field(description="From 1 to 200 characters, different from the concert's others.")
    price: MoneyInput = strawberry.field(
        description=(
            "Of one ticket, at least one minor unit. All ticket types of a concert share one currency."
        )
    )
    capacity: int = strawberry.field(description="How many seats there are, from 1 to 10000000.")

    def noun(self) -> NewTicketType:
        """As the domain knows it."""
        return NewTicketType(self.name, self.price.noun(), self.capacity)


@strawberry.input(description="A concert to sell tickets of.")
class RegisterConcertInput:
    """What `registerConcert` takes."""

    title: str = strawberry.field(description="From 1 to 200 characters.")
    performer: str = strawberry.field(description="From 1 to 200 characters.")
    description: str = strawberry.field(default="", description="At most 10000 characters.")
    venue: str = strawberry.field(description="From 1 to 200 characters.")
    time_zone: str = strawberry.field(
        default="UTC", description="The venue's IANA zone, e.g. `Europe/Berlin`."
    )
    starts_at: datetime = strawberry.field(description="In the future.")
    sales_open_at: datetime = strawberry.field(description="Earlier than `salesCloseAt`; may have passed.")
    sales_close_at: datetime = strawberry.field(description="Not later than `startsAt`.")
    max_tickets_per_user: int = strawberry.field(
        default=6, description="How many tickets one person may have, all live bookings together. At least 1."
    )
    ticket_types: list[TicketTypeInput] = strawberry.field(description="From 1 to 20, shown in this order.")
    idempotency_key: str | None = strawberry.field(default=strawberry.UNSET, description=KEY_DESCRIPTION)


@strawberry.input(description="A ticket type's new capacity.")
class TicketTypeCapacityInput:
    """A line of `updateConcert`."""

    ticket_type_id: strawberry.ID = strawberry.field(description="A ticket type of this concert.")
    capacity: int = strawberry.field(description="Not less than the seats held or sold.")


@strawberry.input(description="What to change of a concert. What is absent or null stays as it is.")
class UpdateConcertInput:
    """What `updateConcert` takes."""

    concert_id: strawberry.ID = strawberry.field(
        description="A concert that is not cancelled and has not started."
    )
    title: str | None = strawberry.field(default=strawberry.UNSET, description="From 1 to 200 characters.")
    performer: str | None = strawberry.field(
        default=strawberry.UNSET, description="From 1 to 200 characters."
    )
    description: str | None = strawberry.field(
        default=strawberry.UNSET, description="At most 10000 characters."
    )
    venue: str | None = strawberry.field(default=strawberry.UNSET, description="From 1 to 200 characters.")
    time_zone: str | None = strawberry.field(default=strawberry.UNSET, description="The venue's IANA zone.")
    starts_at: datetime | None = strawberry.field(default=strawberry.UNSET, description="In the future.")
    sales_open_at: datetime | None = strawberry.field(
        default=strawberry.UNSET, description="Earlier than `salesCloseAt`."
    )
    sales_close_at: datetime | None = strawberry.field(
        default=strawberry.UNSET, description="Not later than `startsAt`."
    )
    max_tickets_per_user: int | None = strawberry.field(
        default=strawberry.UNSET,
        description="At least 1. Tickets that people have already stay theirs.",
    )
    capacities: list[TicketTypeCapacityInput] | None = strawberry.field(
        default=strawberry.UNSET, description="At most one per ticket type."
    )
    idempotency_key: str | None = strawberry.field(default=strawberry.UNSET, description=KEY_DESCRIPTION)

    def change(self) -> ConcertChange:
        """As the domain knows it, capacities aside."""
        return ConcertChange(
            title=given(self.title),
            performer=given(self.performer),
            description=given(self.description),
            venue=given(self.venue),
            time_zone=given(self.time_zone),
            starts_at=given(self.starts_at),
            sales_open_at=given(self.sales_open_at),
            sales_close_at=given(self.sales_close_at),
            max_tickets_per_user=given(self.max_tickets_per_user),
        )


@strawberry.input(description="Which concert to call off.")
class CancelConcertInput:
    """What `cancelConcert` takes."""

    concert_id: strawberry.ID = strawberry.field(description="The concert.")
    idempotency_key: str | None = strawberry.field(default=strawberry.UNSET, description=KEY_DESCRIPTION)
