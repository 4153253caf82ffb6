"""Every door to the outside as a Protocol, and `Deps`, the frozen bag of them that each use case is given."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from domain.ports.live import EventStream, Listener, LiveUpdates, Message, Resync
from domain.ports.means import AttemptLimiter, GroupCommit, Passwords, Randomness, SignIns
from domain.ports.processor import PaymentGateway
from domain.ports.reading import ReadModel, Reads
from domain.ports.writing import (
    BookingStore,
    ConcertStore,
    IdempotencyStore,
    IntentRecord,
    KeptOutcome,
    KeyScope,
    OpenIntent,
    Outbox,
    PaymentStore,
    SaleStore,
    StoredOutcome,
    UserStore,
    WriteUnit,
)

__all__ = [
    "AttemptLimiter",
    "BookingStore",
    "ConcertStore",
    "Deps",
    "Doors",
    "EventStream",
    "GroupCommit",
    "IdempotencyStore",
    "IntentRecord",
    "KeptOutcome",
    "KeyScope",
    "Listener",
    "LiveUpdates",
    "Message",
    "OpenIntent",
    "Outbox",
    "Passwords",
    "PaymentGateway",
    "PaymentStore",
    "Randomness",
    "ReadModel",
    "Reads",
    "Resync",
    "Rules",
    "SaleStore",
    "SignIns",
    "StoredOutcome",
    "UserStore",
    "WriteUnit",
]


@dataclass(frozen=True, slots=True)
class Rules:
    """The numbers that use cases decide by. Units stand in the names."""

    hold_s: int
    session_s: int
    payment_timeout_ms: int
    settle_after_s: float


class Doors(Protocol):
    """How to open a transaction."""

    def __call__(self, name: str, /, *, module: str = "booking") -> AbstractAsyncContextManager[WriteUnit]:
        """A transaction that may write; whose it is decides in which queue it waits, what it is called how it is
        found in the metrics and by failpoints.

        Only "concert" waits for the catalogue's tables, so that they keep nobody from selling.
        """
        ...


@dataclass(frozen=True, slots=True)
class Deps:
    """Everything a use case may reach, built once in the composition root.

    Who begins something shares commits `together`, and is turned away where too many wait. `settling` is for what was
    begun before and turns nobody away: money may have moved.
    """

    write: Doors
    together: GroupCommit
    settling: GroupCommit
    reads: Reads
    read_model: ReadModel
    live: LiveUpdates
    gateway: PaymentGateway
    sign_ins: SignIns
    passwords: Passwords
    randomness: Randomness
    limiter: AttemptLimiter
    rules: Rules
