"""Every door to the outside as a Protocol, and `Deps`, the frozen bag of them that each use case is given."""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from domain.base import (
    BookingId,
    ConcertId,
    DomainError,
    Money,
    Page,
    PageQuery,
    PaymentId,
    SessionId,
    TicketTypeId,
    UserId,
)
from domain.booking import Booking, BookingChanged, BookingStatus, Sale, SaleChanged
from domain.concert import Concert, ConcertFilter, ConcertOrder, TicketType
from domain.events import Event
from domain.my_page import MyBooking, MyPageView
from domain.payment import Intent, Payment, RefundStatus
from domain.user import Session, User, Viewer


class PaymentGateway(Protocol):
    """The card processor. No database transaction is open while one of these runs.

    Raises (all methods): NotSent, OutcomeUnknown, RequestRefused. A declined card is no error but an Intent that
    carries `decline_code`.
    """

    async def create_intent(
        self, booking_id: BookingId, *, payment_id: PaymentId, amount: Money, key: str
    ) -> Intent:
        """An unconfirmed intent for `amount`, found later by `metadata.payment_id`. Moves no money."""
        ...

    async def confirm_intent(self, intent_id: str, *, payment_method_id: str, key: str) -> Intent:
        """Ask for the money. Concurrency: never sent twice under one key; an unknown outcome is settled by reading."""
        ...

    async def retrieve_intent(self, intent_id: str) -> Intent:
        """What the processor says now, refunds and disputes included."""
        ...

    async def cancel_intent(self, intent_id: str) -> Intent:
        """Final: CANCELED means never charged, SUCCEEDED means it was charged before. May repeat."""
        ...

    async def refund_intent(self, intent_id: str, *, key: str) -> RefundStatus:
        """Give the whole amount back. One already refunded answers SUCCEEDED; at most one refund moves money."""
        ...


@dataclass(frozen=True, slots=True)
class Message:
    """One announcement. The newest `version` of a `key` replaces older ones that a listener has not read yet."""

    key: str
    version: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Resync:
    """Announcements may have been lost: read a fresh snapshot."""


class Listener(Protocol):
    """One subscriber's view of one channel: at most one waiting Message per key, and at most one waiting Resync."""

    def __aiter__(self) -> AsyncIterator[Message | Resync]:
        """Wait for what comes next. A Resync comes before any Message that waits."""
        ...


class EventStream(Protocol):
    """Announcements to everyone who listens on a channel, in every process."""

    async def publish(self, channel: str, message: Message) -> None:
        """Announce to whoever listens now. Raises: ConnectionError where the bus is down; the caller tries again."""
        ...

    def listen(self, channel: str) -> AbstractAsyncContextManager[Listener]:
        """Registered with the bus on entry (acknowledged), so that a snapshot read afterwards leaves no hole.

        Entering never fails because the bus is down: the listener is then given a Resync once it is back.
        """
        ...


class LiveUpdates(Protocol):
    """What subscribers hear: whole states, on one channel per concert and one per buyer."""

    async def announce(self, event: BookingChanged | SaleChanged) -> None:
        """Tell the buyer, and everyone who watches the concert. Raises: ConnectionError where the bus is down."""
        ...

    def listen_sale(self, concert_id: ConcertId) -> AbstractAsyncContextManager[AsyncIterator[Sale | Resync]]:
        """Registered on entry; then the newest state not seen yet, or Resync after a lost connection."""
        ...

    def listen_buyer(self, user_id: UserId) -> AbstractAsyncContextManager[AsyncIterator[MyBooking | Resync]]:
        """Registered on entry; then the newest state of each booking not seen yet, or Resync."""
        ...


# ---------------------------------------------------------------- the database, for writing
@dataclass(frozen=True, slots=True)
class KeyScope:
    """What an idempotency key belongs to, and a hash of the arguments it came with."""

    user_id: UserId
    mutation: str
    key: str
    arguments_hash: str


@dataclass(frozen=True, slots=True)
class StoredOutcome:
    """What a key's first request led to: the id of what it made or changed, or the refusal it was given."""

    arguments_hash: str
    reference: str | None
    refusal: DomainError | None


class IdempotencyStore(Protocol):
    """Keys and their outcomes, kept in the transaction of their effect."""

    async def claim(self, scope: KeyScope) -> StoredOutcome | None:
        """None: the key is this transaction's. Else what it led to before.

        Concurrency: waits for a parallel claim of the same key to commit or roll back.
        """
        ...

    async def find(self, scope: KeyScope) -> StoredOutcome | None:
        """What the key led to before, without claiming it."""
        ...

    async def finish(
        self, scope: KeyScope, *, reference: str | None = None, refusal: DomainError | None = None
    ) -> None:
        """Keep the outcome of a claimed key."""
        ...

    async def reap(self, *, before: datetime, limit: int) -> int:
        """Forget up to `limit` keys claimed before then; how many it were."""
        ...


class UserStore(Protocol):
    """Accounts and sessions."""

    async def add(self, user: User, *, password_hash: str) -> None:
        """Raises: EmailTaken, also under parallel callers."""
        ...

    async def credentials(self, email: str) -> tuple[User, str] | None:
        """The account with this normal e-mail address and its password hash."""
        ...

    async def add_session(self, session: Session, *, token_hash: bytes) -> None:
        """Log somebody in."""
        ...

    async def end_session(self, session_id: SessionId) -> None:
        """Log somebody out. May repeat."""
        ...


class ConcertStore(Protocol):
    """The catalogue's rows."""

    async def add(self, concert: Concert, types: Sequence[TicketType]) -> None:
        """Add an entry with its ticket types in the order given."""
        ...

    async def lock(self, concert_id: ConcertId) -> Concert | None:
        """The entry, locked until the transaction ends."""
        ...

    async def save(self, concert: Concert, capacities: Mapping[TicketTypeId, int]) -> None:
        """Write a locked entry and the new capacities of its ticket types."""
        ...


class SaleStore(Protocol):
    """Sales and their stock."""

    async def add(self, sale: Sale) -> None:
        """Open a sale."""
        ...

    async def lock(self, concert_id: ConcertId) -> Sale | None:
        """Lock the sale row first, then read it and its stock: nobody else moves them until the transaction ends."""
        ...

    async def get(self, concert_id: ConcertId) -> Sale | None:
        """Read without a lock, in one consistent snapshot."""
        ...

    async def save(self, old: Sale, new: Sale) -> None:
        """Write what differs, where the rows still are as in `old`. Raises: AssertionError otherwise."""
        ...

    async def unsettled(self, concert_id: ConcertId) -> tuple[int, int]:
        """How many bookings of it are live, and how many refunds of it are pending or failed."""
        ...


class BookingStore(Protocol):
    """Bookings, their items and their history."""

    async def add(self, booking: Booking) -> None:
        """Insert a booking with its items."""
        ...

    async def lock(self, booking_ids: Sequence[BookingId]) -> list[Booking]:
        """The bookings that exist, by id, locked until the transaction ends."""
        ...

    async def save(self, old: Booking, new: Booking) -> None:
        """Compare-and-set on status and version. Raises: AssertionError where the row is not as in `old`."""
        ...

    async def add_event(self, booking: Booking, *, was: BookingStatus | None, stock_version: int) -> None:
        """One row of the booking's history."""
        ...

    async def live_ticket_quantity(self, user_id: UserId, concert_id: ConcertId) -> int:
        """The tickets of all live bookings of one person for one concert. Read it under the sale's lock."""
        ...

    async def raise_my_page_version(self, user_id: UserId) -> int:
        """The buyer's next version, without gaps. Locks the buyer's row: the last lock to be taken."""
        ...

    async def due(self, now: datetime, *, limit: int) -> list[tuple[ConcertId, BookingId]]:
        """Bookings whose hold has passed, longest due first, without locking."""
        ...

    async def live_of(self, concert_id: ConcertId, *, limit: int) -> list[BookingId]:
        """Some live bookings of a concert, by id, without locking."""
        ...


@dataclass(frozen=True, slots=True)
class IntentRecord:
    """What we know of a booking's intent at the processor.

    `payment_id` is what its metadata carries: the id of the first attempt on it. `intent_id` is None until the
    processor's id is committed. `create_number` goes into the create's idempotency key and rises after an answer
    that the processor would only repeat. `charge_id` is the newest charge whose verdict is settled here.
    `creating_until`: somebody is creating it, under the idempotency
    key `creating_key` if any; nobody else starts before then.
    """

    payment_id: PaymentId
    booking_id: BookingId
    intent_id: str | None
    create_number: int
    charge_id: str | None
    is_closed: bool
    creating_until: datetime | None
    creating_key: str | None


@dataclass(frozen=True, slots=True)
class OpenIntent:
    """An intent that the reconciler should look at. `asked` counts how often it looked in vain."""

    payment_id: PaymentId
    booking_id: BookingId
    intent_id: str
    asked: int


class PaymentStore(Protocol):
    """Attempts, intents and refunds. Rows are guarded by the lock of their booking."""

    async def add(self, payment: Payment) -> None:
        """Insert an attempt as it is sent."""
        ...

    async def of_booking(self, booking_id: BookingId) -> list[Payment]:
        """All attempts of a booking, oldest first. Read it under the booking's lock."""
        ...

    async def save(self, old: Payment, new: Payment) -> None:
        """Compare-and-set on the status. Raises: AssertionError where the row is not as in `old`."""
        ...

    async def get(self, payment_id: PaymentId) -> Payment | None:
        """One attempt."""
        ...

    async def save_action(
        self, payment_id: PaymentId, *, client_secret: str, redirect_url: str | None
    ) -> None:
        """Keep what the buyer needs to authenticate."""
        ...

    async def action(self, payment_id: PaymentId) -> tuple[str, str | None]:
        """The client secret and the page on which the buyer authenticates."""
        ...

    async def open_intent(self, booking_id: BookingId) -> IntentRecord | None:
        """The booking's one live intent. Read it under the booking's lock."""
        ...

    async def intent(self, payment_id: PaymentId) -> IntentRecord | None:
        """The intent whose metadata carries this id. Read it under the booking's lock."""
        ...

    async def with_open_intents(self, booking_ids: Sequence[BookingId]) -> set[BookingId]:
        """Those that have a live intent."""
        ...

    async def put_intent(self, record: IntentRecord) -> None:
        """Insert or overwrite. Look at it again soon, while it is not closed."""
        ...

    async def find_booking(self, *, payment_id: PaymentId | None, intent_id: str | None) -> BookingId | None:
        """The booking that an intent's metadata, or its id, belongs to."""
        ...

    async def claim_open_intents(self, *, lease_s: float, limit: int) -> list[OpenIntent]:
        """Intents due for a look, leased to the caller. Concurrency: two callers never get the same one."""
        ...

    async def look_again(self, payment_id: PaymentId, *, after_s: float) -> None:
        """Put the next look at this intent then."""
        ...

    async def next_refund_number(self, payment_id: PaymentId) -> int:
        """The number for the next refund request's key; rises after an answer that would only be repeated."""
        ...

    async def raise_refund_number(self, payment_id: PaymentId) -> None:
        """The processor stored an error under the last refund key: use a new one."""
        ...

    async def failed_refunds(self, *, limit: int) -> list[Payment]:
        """Attempts whose refund failed, oldest first."""
        ...

    async def add_webhook(self, event_id: str) -> bool:
        """Whether this is the event's first time. Stored together with its effect."""
        ...


class Outbox(Protocol):
    """Events that must be told, committed with what they tell of."""

    async def add(self, event: Event) -> None:
        """Tell it after the commit, at least once."""
        ...


class WriteUnit(Protocol):
    """One transaction that may write. Rolled back unless committed; only the database is awaited inside."""

    users: UserStore
    concerts: ConcertStore
    sales: SaleStore
    bookings: BookingStore
    payments: PaymentStore
    idempotency: IdempotencyStore
    outbox: Outbox

    async def now(self) -> datetime:
        """The database's clock at this moment, not the transaction's start."""
        ...

    async def commit(self) -> None:
        """All of it is durable when this returns. Raises: DatabaseAway where that is not certain."""
        ...


# ---------------------------------------------------------------- the database, for reading
class Reads(Protocol):
    """Reads of the write side, each on a connection of its own and in one consistent snapshot.

    Batch reads answer for the ids that exist. Raises: Unavailable where the catalogue's tables can't be read.
    """

    async def now(self) -> datetime:
        """The database's clock."""
        ...

    async def viewer(self, token_hash: bytes) -> Viewer | None:
        """Who holds this token; None where it is unknown or ended."""
        ...

    async def live_sessions(self, session_ids: Collection[SessionId]) -> set[SessionId]:
        """Those that have not ended."""
        ...

    async def users(self, ids: Collection[UserId]) -> Mapping[UserId, User]:
        """People by id."""
        ...

    async def concerts(self, ids: Collection[ConcertId]) -> Mapping[ConcertId, Concert]:
        """Catalogue entries by id."""
        ...

    async def concert_page(
        self, query: PageQuery, *, where: ConcertFilter, order: ConcertOrder
    ) -> Page[Concert]:
        """A page of the catalogue; the key of a row is `concert_page_key`."""
        ...

    async def concert_total(self, where: ConcertFilter) -> int:
        """How many entries the filter leaves."""
        ...

    async def ticket_types(self, ids: Collection[TicketTypeId]) -> Mapping[TicketTypeId, TicketType]:
        """Ticket types by id."""
        ...

    async def ticket_types_of(self, ids: Collection[ConcertId]) -> Mapping[ConcertId, Sequence[TicketType]]:
        """Ticket types by concert, in the order registered."""
        ...

    async def sales(self, ids: Collection[ConcertId]) -> Mapping[ConcertId, Sale]:
        """Sales with their stock by concert."""
        ...

    async def bookings(self, ids: Collection[BookingId]) -> Mapping[BookingId, Booking]:
        """Bookings with their items by id."""
        ...

    async def payments(self, ids: Collection[PaymentId]) -> Mapping[PaymentId, Payment]:
        """Attempts by id."""
        ...

    async def my_bookings(self, ids: Collection[BookingId]) -> Mapping[BookingId, MyBooking]:
        """Rows of my page by booking."""
        ...

    async def my_page_version(self, user_id: UserId) -> int:
        """The buyer's version; 0 before the first booking."""
        ...

    async def my_page(
        self, user_id: UserId, query: PageQuery, *, statuses: frozenset[BookingStatus] | None
    ) -> MyPageView:
        """The buyer's page, newest first; the key of a row is `my_page_key`."""
        ...

    async def my_changes(self, user_id: UserId, *, since: datetime | None, limit: int) -> Sequence[MyBooking]:
        """The buyer's bookings changed at or after `since`, or all that are not final; oldest change first."""
        ...


# ---------------------------------------------------------------- the read model
class ReadModel(Protocol):
    """My page and the live counts, in Redis or in memory. Thrown away and rebuilt at will.

    Raises: ConnectionError where the store can't be reached. None means not complete: read the database.
    """

    async def project(self, events: Sequence[BookingChanged | SaleChanged]) -> None:
        """Set what the events say. Idempotent; the newest version wins in any order."""
        ...

    async def sales(self, ids: Collection[ConcertId]) -> Mapping[ConcertId, Sale] | None:
        """Live counts by concert, in one round trip."""
        ...

    async def my_page(
        self, user_id: UserId, query: PageQuery, *, statuses: frozenset[BookingStatus] | None
    ) -> MyPageView | None:
        """The buyer's page, in one round trip."""
        ...


# ---------------------------------------------------------------- the rest
class Passwords(Protocol):
    """Slow hashes. Concurrency: bounded and off the event loop. Raises: Overloaded where too many wait."""

    async def hash(self, password: str) -> str:
        """A hash to store."""
        ...

    async def matches(self, password: str, *, stored: str | None) -> bool:
        """Whether it is the password. With None it takes as long and answers False, so no address is given away."""
        ...


class Randomness(Protocol):
    """Ids and secrets."""

    def new_id(self) -> str:
        """A fresh id; later ones sort later, nearly."""
        ...

    def new_token(self) -> str:
        """A fresh access token, 256 bits."""
        ...

    def token_hash(self, token: str) -> bytes:
        """What is stored of a token."""
        ...


class AttemptLimiter(Protocol):
    """How often somebody may try something."""

    async def admit(self, action: str, *, who: str) -> None:
        """Count one attempt. Raises: TooManyAttempts with the time to wait."""
        ...

    async def forget(self, action: str, *, who: str) -> None:
        """Start counting anew, e.g. after a log-in that worked."""
        ...


@dataclass(frozen=True, slots=True)
class Rules:
    """The numbers that use cases decide by. Units stand in the names."""

    hold_s: int
    session_s: int
    payment_timeout_ms: int
    settle_after_s: float


class Doors(Protocol):
    """How to open a transaction."""

    def __call__(self) -> AbstractAsyncContextManager[WriteUnit]:
        """A transaction that may write."""
        ...


@dataclass(frozen=True, slots=True)
class Deps:
    """Everything a use case may reach, built once in the composition root."""

    write: Doors
    reads: Reads
    read_model: ReadModel
    live: LiveUpdates
    gateway: PaymentGateway
    passwords: Passwords
    randomness: Randomness
    limiter: AttemptLimiter
    rules: Rules
