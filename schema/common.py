"""What all modules of the schema share: global ids, times, money, and what a field may ask of its context."""

import base64
import re
from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Protocol, TypeVar

import strawberry
from strawberry.exceptions import StrawberryInputCoercionError
from strawberry.types.enum import StrawberryEnumDefinition

from domain.base import (
    BadUserInput,
    BookingId,
    ConcertId,
    PageQuery,
    PaymentId,
    TicketTypeId,
    UserId,
)
from domain.base import Money as MoneyNoun
from domain.booking import Booking, BookingStatus, Sale
from domain.concert import Concert, ConcertFilter, TicketType
from domain.my_page import MyPageView
from domain.payment import Payment
from domain.user import Viewer

T = TypeVar("T")
E = TypeVar("E", bound=type[Enum])


# ---------------------------------------------------------------- what a field may ask
class Loaders(Protocol):
    """Reads by id that are gathered into batches; None where there is no such thing."""

    def concert(self, concert_id: ConcertId, /) -> Awaitable[Concert | None]:
        """The catalogue's entry."""
        ...

    def ticket_type(self, ticket_type_id: TicketTypeId, /) -> Awaitable[TicketType | None]:
        """The catalogue's ticket type."""
        ...

    def ticket_types_of(self, concert_id: ConcertId, /) -> Awaitable[Sequence[TicketType]]:
        """A concert's ticket types in the order registered."""
        ...

    def sale(self, concert_id: ConcertId, /) -> Awaitable[Sale | None]:
        """The live count."""
        ...

    def booking(self, booking_id: BookingId, /) -> Awaitable[Booking | None]:
        """A booking, whoever's it is."""
        ...

    def payment(self, payment_id: PaymentId, /) -> Awaitable[Payment | None]:
        """An attempt, whoever's it is."""
        ...


class RequestContext(Protocol):
    """What a field of a type may ask of the operation it is part of."""

    @property
    def viewer(self) -> Viewer | None:
        """Who asks, None where nobody is signed in."""
        ...

    @property
    def loaders(self) -> Loaders:
        """This operation's loaders."""
        ...

    async def concert_total(self, where: ConcertFilter, /) -> int:
        """How many catalogue entries the filter leaves."""
        ...

    async def my_page(
        self, user_id: UserId, query: PageQuery, /, *, statuses: frozenset[BookingStatus] | None
    ) -> MyPageView:
        """The buyer's page, own writes included."""
        ...


KEY_DESCRIPTION = (
    "From 1 to 255 characters of your choice, one per request. Sent again with the same "
    "arguments, it changes nothing and repeats the answer. Kept for 72 hours."
)

FieldInfo = strawberry.Info[RequestContext, None]


def given(value: T | None) -> T | None:
    """An argument as the domain knows it: None where the client left it out."""
    return None if value is strawberry.UNSET else value


# ---------------------------------------------------------------- global ids
class Kind(Enum):
    """What a global id names: the type's name in the schema."""

    USER = "User"
    SESSION = "Session"
    CONCERT = "Concert"
    TICKET_TYPE = "TicketType"
    BOOKING = "Booking"
    PAYMENT = "Payment"
    MY_BOOKING = "MyBooking"


_ID_MAX_LENGTH = 100
# What stands behind the kind: a canonical lower-case UUID.
RAW_ID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def encode_id(kind: Kind, raw: str) -> strawberry.ID:
    """The opaque global id of one thing (Relay, "Global Object Identification")."""
    return strawberry.ID(base64.b64encode(f"{kind.value}:{raw}".encode()).decode())


def decode_id(text: str) -> tuple[Kind, str]:
    """What an id names; one text per thing. Raises: BadUserInput for anything `encode_id` never makes."""
    try:
        if len(text) > _ID_MAX_LENGTH:
            raise ValueError("longer than any id")
        name, _, raw = base64.b64decode(text, validate=True).decode("ascii").partition(":")
        kind = Kind(name)
    except ValueError as error:
        raise BadUserInput("This is not an id.") from error
    # Base64 lets unused bits vary; an id must not have two spellings.
    if RAW_ID.fullmatch(raw) is None or encode_id(kind, raw) != text:
        raise BadUserInput("This is not an id.")
    return kind, raw


@strawberry.interface(description="Something with a global id, which `node` finds again.")
class Node:
    """Relay's object identification."""

    id: strawberry.ID = strawberry.field(
        description="Opaque and unique among all things of all types. At most 100 characters."
    )


# ---------------------------------------------------------------- scalars and values
# RFC 3339, section 5.6: a date alone and a time without an offset are no date-time.
_RFC_3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})",
    re.IGNORECASE | re.ASCII,
)


def parse_time(value: object) -> datetime:
    """An RFC 3339 time as aware UTC, cut to microseconds. Raises: StrawberryInputCoercionError otherwise."""
    if not isinstance(value, str) or _RFC_3339.fullmatch(value) is None:
        raise StrawberryInputCoercionError(
            "A DateTime is RFC 3339 text with an offset, e.g. 2027-05-01T20:00:00+02:00."
        )
    try:
        # OverflowError: an offset can move a legal text out of the years 1 to 9999.
        return datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise StrawberryInputCoercionError(
            "A DateTime is a time that exists, in the years 1 to 9999."
        ) from error


def format_time(value: datetime) -> str:
    """RFC 3339 in UTC, ending in Z, with microseconds where there are any."""
    assert value.tzinfo is not None, "a naive time reached the schema"
    return value.astimezone(UTC).isoformat().removesuffix("+00:00") + "Z"


DATE_TIME = strawberry.scalar(
    name="DateTime",
    description=(
        "A moment, as RFC 3339 text with an offset, e.g. `2027-05-01T20:00:00+02:00`. Answered in "
        "UTC, ending in `Z`. A date alone or a time without an offset is refused. Precise to the "
        "microsecond, years 1 to 9999."
    ),
    specified_by_url="https://www.rfc-editor.org/rfc/rfc3339",
    parse_value=parse_time,
    serialize=format_time,
)


@strawberry.type(description="An amount of money.")
class Money:
    """Units: the currency's minor unit."""

    amount_minor: int = strawberry.field(
        description="In the currency's minor unit: cents for EUR, won for KRW."
    )
    currency: str = strawberry.field(description="ISO 4217 code, e.g. `EUR`.")

    @classmethod
    def of(cls, noun: MoneyNoun) -> "Money":
        """As the client sees it."""
        return cls(amount_minor=noun.amount_minor, currency=noun.currency)


@strawberry.input(description="An amount of money.")
class MoneyInput:
    """Units: the currency's minor unit."""

    amount_minor: int = strawberry.field(
        description="In the currency's minor unit: cents for EUR, won for KRW. From 1 to 99999999."
    )
    currency: str = strawberry.field(description="ISO 4217 code in capitals, e.g. `EUR`.")

    def noun(self) -> MoneyNoun:
        """As the domain knows it."""
        return MoneyNoun(self.amount_minor, self.currency)


def describe_enum(enum: E, description: str, values: dict[str, str]) -> E:
    """Make a domain enum part of the schema, every value of it described."""
    exposed = strawberry.enum(enum, description=description)
    definition: StrawberryEnumDefinition = exposed.__strawberry_definition__  # type: ignore[attr-defined]
    for value in definition.values:
        value.description = values[value.name]
    return exposed
