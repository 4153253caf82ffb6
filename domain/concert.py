"""The catalogue: concerts and their ticket types, as organisers register them.

Seats, the sales window and the limit in force are the booking module's (`domain/booking.py`, the sale); the
catalogue keeps its own copy of what it was told, for showing and searching.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from zoneinfo import ZoneInfo

from domain.base import (
    CURRENCIES,
    PAYMENT_MAX_MINOR,
    Checker,
    ConcertId,
    DomainError,
    Money,
    PageKey,
    TicketTypeId,
)

TITLE_MAX_LENGTH = 200
DESCRIPTION_MAX_LENGTH = 10_000
TICKET_TYPES_MAX = 20
CAPACITY_MAX = 10_000_000  # 20 types of it still fit GraphQL's Int


class ConcertStatus(Enum):
    """Whether the concert takes place."""

    SCHEDULED = "SCHEDULED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class TicketType:
    """One kind of ticket, with the capacity it was last given by its organiser."""

    id: TicketTypeId
    concert_id: ConcertId
    name: str
    price: Money
    capacity: int


@dataclass(frozen=True, slots=True)
class Concert:
    """One entry of the catalogue. Times are aware UTC; `time_zone` is the venue's IANA zone."""

    id: ConcertId
    title: str
    performer: str
    description: str
    venue: str
    time_zone: str
    starts_at: datetime
    sales_open_at: datetime
    sales_close_at: datetime
    max_tickets_per_user: int
    status: ConcertStatus
    created_at: datetime


class ConcertOrder(Enum):
    """How a page of concerts is sorted; equal keys are sorted by id."""

    STARTS_AT_ASC = "STARTS_AT_ASC"
    STARTS_AT_DESC = "STARTS_AT_DESC"
    TITLE_ASC = "TITLE_ASC"


@dataclass(frozen=True, slots=True)
class ConcertFilter:
    """Which concerts a page shows. `search` looks for its words in title, performer and venue."""

    search: str | None = None
    starts_after: datetime | None = None
    starts_before: datetime | None = None
    on_sale: bool | None = None


@dataclass(frozen=True, slots=True)
class NewTicketType:
    """A ticket type as it is asked for."""

    name: str
    price: Money
    capacity: int


@dataclass(frozen=True, slots=True)
class ConcertChange:
    """What an organiser wants changed; None leaves a fact as it is."""

    title: str | None = None
    performer: str | None = None
    description: str | None = None
    venue: str | None = None
    time_zone: str | None = None
    starts_at: datetime | None = None
    sales_open_at: datetime | None = None
    sales_close_at: datetime | None = None
    max_tickets_per_user: int | None = None

    def applied_to(self, concert: Concert) -> Concert:
        """The concert with the change made."""
        given = {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}
        return replace(concert, **given)


@dataclass(eq=False)
class ConcertState(DomainError):
    """The concert was cancelled or has started: it can't be changed any more."""

    concert_id: ConcertId
    code: str  # CONCERT_CANCELLED | CONCERT_STARTED

    @property
    def message(self) -> str:
        if self.code == "CONCERT_CANCELLED":
            return "The concert was cancelled and can't be changed any more."
        return "The concert has started and can't be changed any more."


def concert_page_key(concert: Concert, order: ConcertOrder) -> PageKey:
    """Where an entry stands in an order: its sort key as text, then its id."""
    if order is ConcertOrder.TITLE_ASC:
        return (concert.title, concert.id)
    return (concert.starts_at.isoformat(timespec="microseconds"), concert.id)


def check_concert(concert: Concert, now: datetime) -> Checker:
    """Note every wrong fact of the concert, at the input's field names."""
    check = Checker()
    for path, value in (("title", concert.title), ("performer", concert.performer), ("venue", concert.venue)):
        check.text(value, (path,), max_length=TITLE_MAX_LENGTH)
    check.text(concert.description, ("description",), max_length=DESCRIPTION_MAX_LENGTH, min_length=0)
    check.require(
        _is_zone(concert.time_zone), ("timeZone",), "must be an IANA time zone such as Europe/Berlin"
    )
    check.require(concert.starts_at > now, ("startsAt",), "must be in the future")
    check.require(
        concert.sales_open_at < concert.sales_close_at, ("salesCloseAt",), "must be later than salesOpenAt"
    )
    check.require(
        concert.sales_close_at <= concert.starts_at, ("salesCloseAt",), "must not be later than startsAt"
    )
    check.whole(concert.max_tickets_per_user, ("maxTicketsPerUser",), at_least=1, at_most=CAPACITY_MAX)
    return check


def check_ticket_types(types: tuple[NewTicketType, ...], check: Checker) -> None:
    """Note every wrong ticket type: 1 to 20 of them, names distinct, one currency, at least one minor unit each."""
    check.require(
        1 <= len(types) <= TICKET_TYPES_MAX,
        ("ticketTypes",),
        f"must have from 1 to {TICKET_TYPES_MAX} entries",
    )
    seen: set[str] = set()
    for position, wanted in enumerate(types[:TICKET_TYPES_MAX]):
        path = ("ticketTypes", str(position))
        check.text(wanted.name, (*path, "name"), max_length=TITLE_MAX_LENGTH)
        name = wanted.name.strip().casefold()
        check.require(name not in seen, (*path, "name"), "must differ from the other ticket types' names")
        seen.add(name)
        price = (*path, "price")
        check.whole(wanted.price.amount_minor, (*price, "amountMinor"), at_least=1, at_most=PAYMENT_MAX_MINOR)
        check.require(
            wanted.price.currency in CURRENCIES, (*price, "currency"), "must be an ISO 4217 code such as EUR"
        )
        check.require(
            wanted.price.currency == types[0].price.currency,
            (*price, "currency"),
            "must be the same for all ticket types",
        )
        check.whole(wanted.capacity, (*path, "capacity"), at_least=1, at_most=CAPACITY_MAX)


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        return False
    return True
