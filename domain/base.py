"""What every module of the domain is built from: ids, money, time, errors.

Imports the standard library only, as the whole domain does.
"""

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, NewType, TypeVar

UserId = NewType("UserId", str)
SessionId = NewType("SessionId", str)
ConcertId = NewType("ConcertId", str)
TicketTypeId = NewType("TicketTypeId", str)
BookingId = NewType("BookingId", str)
PaymentId = NewType("PaymentId", str)

# GraphQL's Int is 32 bits wide (specification, section 3.5.1), and so is every number a client sees.
INT_MAX = 2**31 - 1
# The most a card payment may be: eight digits in the minor unit (Stripe, "Minimum and maximum charge amounts").
PAYMENT_MAX_MINOR = 99_999_999

# ISO 4217, the active currencies that a price can be in (funds, metals and test codes left out).
CURRENCIES = frozenset(
    """
    AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF
    CHF CLP CNY COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD
    HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD
    LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK
    PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS
    TMT TND TOP TRY TTD TWD TZS UAH UGX USD UYU UZS VED VES VND VUV WST XAF XCD XCG XOF XPF YER ZAR ZMW ZWG
    """.split()  # noqa: SIM905 - five lines instead of thirty
)

# Postgres refuses NUL in text and cannot encode a lone surrogate; no name or title needs either.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Money:
    """An amount in the currency's minor unit (cents; won) and its ISO 4217 code."""

    amount_minor: int
    currency: str


class PaymentStatus(Enum):
    """Where a payment attempt stands. It stands here because a booking shows its latest attempt's."""

    PROCESSING = "PROCESSING"  # sent, not answered yet
    REQUIRES_ACTION = "REQUIRES_ACTION"  # the buyer must authenticate, e.g. 3-D Secure
    CAPTURED = "CAPTURED"
    DECLINED = "DECLINED"
    UNKNOWN = "UNKNOWN"  # sent, and the answer got lost
    VOIDED = "VOIDED"  # certainly never charged
    REFUND_PENDING = "REFUND_PENDING"
    REFUNDED = "REFUNDED"
    REFUND_FAILED = "REFUND_FAILED"


T = TypeVar("T")
# The sort key of one row and its id: where a page begins or ends.
PageKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class PageQuery:
    """Which rows of an ordered list: the first `limit` after `after`, or the last `limit` before `before`."""

    limit: int
    after: PageKey | None = None
    before: PageKey | None = None
    is_from_end: bool = False


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Consecutive rows of an ordered list, in the list's order."""

    rows: tuple[T, ...]
    has_next: bool
    has_previous: bool


@dataclass(frozen=True, slots=True)
class FieldError:
    """One wrong field of an input. Shape: `path` runs below `input`, list positions as strings."""

    path: tuple[str, ...]
    message: str


class DomainError(Exception):
    """An expected refusal. Subclasses are frozen facts: a stable `code`, a `message` for a person.

    A `retryable` error was stored nowhere; any other is the kept outcome of its idempotency key, and is rebuilt
    from its fields when the key is used again.
    """

    code: str
    retryable: bool = False
    retry_after_ms: int | None = None

    @property
    def message(self) -> str:
        """What happened and what to do, for a person."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.message


@dataclass(eq=False)
class InvalidInput(DomainError):
    """The input breaks a rule that types cannot say; `fields` names every wrong place."""

    fields: tuple[FieldError, ...]
    code = "INVALID_INPUT"

    @property
    def message(self) -> str:
        return "; ".join(f"{'.'.join(f.path) or 'input'}: {f.message}" for f in self.fields)


@dataclass(eq=False)
class NotFound(DomainError):
    """There is no such thing, or it is not the viewer's to see: the two look the same."""

    kind: str
    code = "NOT_FOUND"

    @property
    def message(self) -> str:
        return f"There is no {self.kind} with this id."


@dataclass(eq=False)
class BadUserInput(DomainError):
    """A query's argument makes no sense: an id or cursor that can't be decoded, a page of -1 rows."""

    reason: str
    code = "BAD_USER_INPUT"

    @property
    def message(self) -> str:
        return self.reason


@dataclass(eq=False)
class IdempotencyMismatch(DomainError):
    """The key was used before with other arguments."""

    code = "IDEMPOTENCY_MISMATCH"

    @property
    def message(self) -> str:
        return "This idempotency key was used before with other arguments. Use a new key for a new request."


@dataclass(eq=False)
class InProgress(DomainError):
    """The first request under this key is still running."""

    retry_after_ms: int | None = 500
    code = "IN_PROGRESS"
    retryable = True

    @property
    def message(self) -> str:
        return "The first request with this key is still running. Send the same again shortly."


@dataclass(eq=False)
class TooManyAttempts(DomainError):
    """The caller asked too often; nothing was done."""

    retry_after_ms: int | None
    code = "TOO_MANY_ATTEMPTS"
    retryable = True

    @property
    def message(self) -> str:
        return "Too many attempts. Wait a little and try again."


@dataclass(eq=False)
class Overloaded(DomainError):
    """More work is waiting than can be done in time; nothing was done."""

    retry_after_ms: int | None = 1_000
    code = "OVERLOADED"
    retryable = True

    @property
    def message(self) -> str:
        return "There is more to do than we can do right now. Send the same again shortly."


@dataclass(eq=False)
class Unavailable(DomainError):
    """A module that this answer needs is down."""

    module: str
    retry_after_ms: int | None = 5_000
    code = "UNAVAILABLE"
    retryable = True

    @property
    def message(self) -> str:
        return f"The {self.module} module is not available right now."


@dataclass(eq=False)
class DatabaseAway(DomainError):
    """The database went away; what was asked is whole or absent, and asking again under the same key is safe."""

    retry_after_ms: int | None = 1_000
    code = "RETRYABLE"
    retryable = True

    @property
    def message(self) -> str:
        return "The database did not answer. Send the same again shortly."


@dataclass(slots=True)
class Checker:
    """Collects the wrong fields of one input, each with its first fault, so that a person hears of them all."""

    errors: list[FieldError] = field(default_factory=list)

    def require(self, condition: bool, path: tuple[str, ...], message: str) -> None:
        """Note `message` at `path` unless `condition` holds or something is wrong there already."""
        if not condition and all(error.path != path for error in self.errors):
            self.errors.append(FieldError(path, message))

    def text(self, value: str, path: tuple[str, ...], *, max_length: int, min_length: int = 1) -> None:
        """Require a storable text whose length without outer blanks is within the bounds."""
        length = len(value.strip())
        self.require(_UNSTORABLE.search(value) is None, path, "must not contain NUL or half a surrogate pair")
        self.require(
            length >= min_length,
            path,
            "must not be empty" if min_length == 1 else f"must have at least {min_length} characters",
        )
        self.require(length <= max_length, path, f"must have at most {max_length} characters")

    def whole(self, value: int, path: tuple[str, ...], *, at_least: int, at_most: int) -> None:
        """Require an integer within the bounds, both included."""
        self.require(at_least <= value <= at_most, path, f"must be from {at_least} to {at_most}")

    def idempotency_key(self, value: str | None) -> None:
        """Require one to 255 storable characters where a key is given."""
        if value is None:
            return
        good = 1 <= len(value) <= 255 and _UNSTORABLE.search(value) is None
        self.require(good, ("idempotencyKey",), "must have from 1 to 255 characters")

    def done(self) -> None:
        """Raises: InvalidInput where anything was noted."""
        if self.errors:
            raise InvalidInput(tuple(self.errors))
