"""What the sandbox remembers: intents, their charges and refunds, and the answer of every idempotency key.

One SQLite database, in memory or in a file. With a file, everything that was answered survives a kill.
"""

import dataclasses
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

# Stripe removes keys once they are at least a day old (API reference, "Idempotent requests").
KEY_LIFETIME_S = 86_400

_TABLES = """
CREATE TABLE IF NOT EXISTS intent (seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS charge (seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS refund (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, intent_id TEXT NOT NULL, body TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS answer (
    key TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, status INTEGER NOT NULL, body BLOB NOT NULL,
    created_at INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS answer_by_age ON answer (created_at);  -- forgetting what is a day old
"""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a confirm took no money. `charge_id` is None where the card was never asked."""

    code: str
    decline_code: str | None
    message: str
    payment_method_id: str
    charge_id: str | None


@dataclass(frozen=True, slots=True)
class Intent:
    """A PaymentIntent. Units: `amount` as Stripe counts it, `currency` in lower case, Unix seconds."""

    id: str
    client_secret: str
    amount: int
    currency: str
    created_at: int
    status: str
    idempotency_key: str | None
    description: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    payment_method_id: str | None = None
    latest_charge_id: str | None = None
    redirect_url: str | None = None
    return_url: str | None = None
    failure: Failure | None = None
    canceled_at: int | None = None
    cancellation_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Charge:
    """One attempt to take the money, a failed one included."""

    id: str
    intent_id: str
    amount: int
    currency: str
    created_at: int
    payment_method_id: str
    is_paid: bool
    metadata: dict[str, str] = field(default_factory=dict)
    failure_code: str | None = None
    failure_message: str | None = None
    amount_refunded: int = 0
    is_disputed: bool = False


@dataclass(frozen=True, slots=True)
class Refund:
    """Money on its way back. Status: `succeeded` or `failed`."""

    id: str
    charge_id: str
    intent_id: str
    amount: int
    currency: str
    created_at: int
    status: str
    reason: str | None
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """What the first request under an idempotency key was answered."""

    fingerprint: str
    status: int
    body: bytes


class Books:
    """The sandbox's memory. Concurrency: synchronous; whoever writes does it inside one `writing()`."""

    def __init__(self, state_path: Path | None) -> None:
        self._db = sqlite3.connect(state_path or ":memory:", isolation_level=None)
        # NORMAL survives a killed process, which is what is promised; only a power cut loses rows.
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.executescript(_TABLES)

    def close(self) -> None:
        """Nothing can be read or written any more."""
        self._db.close()

    @contextmanager
    def writing(self) -> Iterator[Self]:
        """Everything written inside is kept, or after an error nothing is."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def save_intent(self, intent: Intent) -> None:
        """Add the intent, or replace the one with its id."""
        self._db.execute(
            "INSERT INTO intent (id, body) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET body = excluded.body",
            (intent.id, json.dumps(dataclasses.asdict(intent))),
        )

    def save_charge(self, charge: Charge) -> None:
        """Add the charge, or replace the one with its id."""
        self._db.execute(
            "INSERT INTO charge (id, body) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET body = excluded.body",
            (charge.id, json.dumps(dataclasses.asdict(charge))),
        )

    def save_refund(self, refund: Refund) -> None:
        """Add the refund, or replace the one with its id."""
        self._db.execute(
            "INSERT INTO refund (id, intent_id, body) VALUES (?, ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET body = excluded.body",
            (refund.id, refund.intent_id, json.dumps(dataclasses.asdict(refund))),
        )

    def intent(self, intent_id: str) -> Intent | None:
        """The intent with this id."""
        row = self._db.execute("SELECT body FROM intent WHERE id = ?", (intent_id,)).fetchone()
        return None if row is None else _intent(row[0])

    def charge(self, charge_id: str) -> Charge | None:
        """The charge with this id."""
        row = self._db.execute("SELECT body FROM charge WHERE id = ?", (charge_id,)).fetchone()
        return None if row is None else Charge(**json.loads(row[0]))

    def refund(self, refund_id: str) -> Refund | None:
        """The refund with this id."""
        row = self._db.execute("SELECT body FROM refund WHERE id = ?", (refund_id,)).fetchone()
        return None if row is None else Refund(**json.loads(row[0]))

    def refunds(self, intent_id: str | None, *, after: str | None, limit: int) -> list[Refund]:
        """Refunds of one intent or all: newest first, `limit` at most, older than the refund `after`."""
        rows = self._db.execute(
            """
            SELECT body FROM refund WHERE (:intent IS NULL OR intent_id = :intent)
            AND (:after IS NULL OR seq < (SELECT seq FROM refund WHERE id = :after))
            ORDER BY seq DESC LIMIT :limit
            """,
            {"intent": intent_id, "after": after, "limit": limit},
        )
        return [Refund(**json.loads(body)) for (body,) in rows]

    def ledger(self) -> list[tuple[Intent, int]]:
        """Every intent, oldest first, with the amount refunded on it."""
        rows = self._db.execute(
            """
            SELECT intent.body, coalesce(json_extract(charge.body, '$.amount_refunded'), 0) FROM intent
            LEFT JOIN charge ON charge.id = json_extract(intent.body, '$.latest_charge_id')
            ORDER BY intent.seq
            """
        )
        return [(_intent(body), refunded) for body, refunded in rows]

    def answer(self, key: str, *, now: int) -> StoredAnswer | None:
        """What this key was answered, unless that is more than a day ago."""
        row = self._db.execute(
            "SELECT fingerprint, status, body FROM answer WHERE key = ? AND created_at > ?",
            (key, now - KEY_LIFETIME_S),
        ).fetchone()
        return None if row is None else StoredAnswer(*row)

    def keep_answer(self, key: str, answer: StoredAnswer, *, now: int) -> None:
        """Remember what this key was answered, and forget what is more than a day old."""
        self._db.execute("DELETE FROM answer WHERE created_at <= ?", (now - KEY_LIFETIME_S,))
        self._db.execute(
            "INSERT INTO answer (key, fingerprint, status, body, created_at) VALUES (?, ?, ?, ?, ?)",
            (key, answer.fingerprint, answer.status, answer.body, now),
        )


def _intent(body: str) -> Intent:
    fields = json.loads(body)
    failure = fields.pop("failure")
    return Intent(**fields, failure=None if failure is None else Failure(**failure))
