"""The door to the database, for writing: one transaction and the stores in it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from domain.base import BookingId, ConcertId, DomainError, PaymentId, SessionId, TicketTypeId, UserId
from domain.booking import Booking, Sale
from domain.concert import Concert, TicketType
from domain.events import Event
from domain.payment import Payment
from domain.user import Session, User


@dataclass(frozen=True, slots=True)
class KeyScope:
    """What an idempotency key belongs to, and a hash of the arguments it came with."""

    user_id: UserId
    mutation: str
    key: str
    arguments_hash: str

    @property
    def identity(self) -> tuple[str, str, str]:
        """What must not happen twice, whatever the arguments."""
        return self.user_id, self.mutation, self.key


@dataclass(frozen=True, slots=True)
class KeptOutcome:
    """What a key led to, to be kept: the id of what was made or changed, or the refusal."""

    scope: KeyScope
    reference: str | None
    refusal: DomainError | None


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

    async def find_each(self, scopes: Sequence[KeyScope | None]) -> list[StoredOutcome | None]:
        """What each of these keys of one mutation led to before, if it was used; None for None."""
        ...

    async def keep(self, outcomes: Sequence[KeptOutcome]) -> bool:
        """Keep the outcomes of keys that were not used before; False where a parallel transaction had one first.

        Concurrency: waits for parallel transactions that keep one of the keys. Roll back after False.
        """
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
        """Write it, and its lines that moved, where they still are as in `old`. Raises: AssertionError otherwise."""
        ...

    async def unsettled(self, concert_id: ConcertId) -> tuple[int, int]:
        """How many bookings of it are live, and how many refunds of it are pending or failed."""
        ...

    async def faults(self, concert_id: ConcertId) -> Sequence[str]:
        """What is wrong with its stock, in words, usually nothing. Read it under the sale's lock."""
        ...

    async def halted(self) -> Mapping[ConcertId, datetime]:
        """Since when the sales of which concerts are halted."""
        ...

    async def all_unsettled(self) -> tuple[int, int]:
        """How many bookings of cancelled concerts are live, and how many refunds of any are pending or failed."""
        ...


class BookingStore(Protocol):
    """Bookings, their items and their history."""

    async def add(self, bookings: Sequence[Booking]) -> None:
        """Insert bookings of one concert with their items."""
        ...

    async def lock(self, booking_ids: Sequence[BookingId]) -> list[Booking]:
        """The bookings that exist, by id, locked until the transaction ends."""
        ...

    async def get(self, booking_ids: Sequence[BookingId]) -> list[Booking]:
        """Those that exist, read without a lock: for whoever may hold the sale's already, and decides nothing on it."""
        ...

    async def was_approved(self, booking_id: BookingId) -> bool:
        """Whether it ever was APPROVED."""
        ...

    async def save(self, changes: Sequence[tuple[Booking, Booking]]) -> None:
        """Compare-and-set on status and version. Raises: AssertionError where a row is not as in the old one."""
        ...

    async def add_events(self, changes: Sequence[tuple[Booking | None, Booking, int]]) -> None:
        """One row of the booking's history for each: before, after, and the sale's version then."""
        ...

    async def live_ticket_quantities(
        self, user_ids: Collection[UserId], concert_id: ConcertId
    ) -> Mapping[UserId, int]:
        """The tickets of all live bookings for one concert of those who have any. Read it under the sale's lock."""
        ...

    async def raise_my_page_versions(self, user_ids: Sequence[UserId]) -> list[int]:
        """The next version for each, without gaps; who is named twice has two.

        Locks the buyers' rows by id: the last locks to be taken.
        """
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

    async def of_bookings(self, booking_ids: Sequence[BookingId]) -> Mapping[BookingId, list[Payment]]:
        """All attempts of those bookings that have any, oldest first. Read it under the bookings' locks."""
        ...

    async def save(self, *changes: tuple[Payment, Payment]) -> None:
        """Compare-and-set on the status. Raises: AssertionError where a row is not as in the old one."""
        ...

    async def get(self, payment_id: PaymentId) -> Payment | None:
        """One attempt."""
        ...

    async def save_actions(self, actions: Mapping[PaymentId, tuple[str, str | None]]) -> None:
        """Keep what the buyers need to authenticate: the client secret and the page of each attempt."""
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

    async def intents(self, payment_ids: Collection[PaymentId]) -> Mapping[PaymentId, IntentRecord]:
        """Those intents that exist, by the id in their metadata. Read them under the bookings' locks."""
        ...

    async def with_open_intents(self, booking_ids: Sequence[BookingId]) -> set[BookingId]:
        """Those that have a live intent."""
        ...

    async def put_intents(self, *records: IntentRecord) -> None:
        """Insert or overwrite each, no two of one intent. Look at it again soon, while it is not closed."""
        ...

    async def find_intent(
        self, *, payment_id: PaymentId | None, intent_id: str | None
    ) -> IntentRecord | None:
        """The intent with this metadata, or this id. Without a lock."""
        ...

    async def claim_open_intents(self, *, lease_s: float, limit: int) -> list[OpenIntent]:
        """Intents due for a look, leased to the caller. Concurrency: two callers never get the same one."""
        ...

    async def look_again(self, claimed: OpenIntent, *, after_s: float) -> None:
        """Put the next look then. What was written of the intent since it was claimed wants one sooner, and wins."""
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

    async def add_webhooks(self, event_ids: Collection[str]) -> set[str]:
        """Those events whose first time this is. Stored together with their effects."""
        ...

    async def reap_webhooks(self, *, before: datetime, limit: int) -> int:
        """Forget up to `limit` events heard before then; how many it were."""
        ...


class Outbox(Protocol):
    """Events that must be told, committed with what they tell of."""

    async def add(self, *events: Event) -> None:
        """Tell them after the commit, at least once."""
        ...


class WriteUnit(Protocol):
    """One transaction that may write. Rolled back unless committed; only the database is awaited inside.

    What is written may be sent with what comes next: what is wrong with it is raised there, or by the commit.
    """

    @property
    def users(self) -> UserStore:
        """Accounts and sessions."""
        ...

    @property
    def concerts(self) -> ConcertStore:
        """The catalogue's rows."""
        ...

    @property
    def sales(self) -> SaleStore:
        """Sales and their stock."""
        ...

    @property
    def bookings(self) -> BookingStore:
        """Bookings, their items and their history."""
        ...

    @property
    def payments(self) -> PaymentStore:
        """Attempts, intents and refunds."""
        ...

    @property
    def idempotency(self) -> IdempotencyStore:
        """Keys and their outcomes."""
        ...

    @property
    def outbox(self) -> Outbox:
        """Events to be told after the commit."""
        ...

    async def now(self) -> datetime:
        """The database's clock, at this moment or when the last sale was locked, never the transaction's start."""
        ...

    async def commit(self) -> None:
        """All of it is durable when this returns. Raises: DatabaseAway where that is not certain."""
        ...
