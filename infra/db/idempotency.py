"""Idempotency keys and their outcomes."""

from datetime import datetime

from sqlalchemy import ColumnElement, delete, select, tuple_, update

from domain.base import DomainError, InProgress
from domain.ports import KeyScope, StoredOutcome
from infra.codec import decode_refusal, encode_refusal
from infra.db.engine import Statements
from infra.db.errors import LockTimeout
from infra.db.tables import idempotency_keys

# How long an outcome is kept (contract, "retry").
KEPT_S = 72 * 3_600


class SqlIdempotencyStore:
    """`domain.ports.IdempotencyStore` in one transaction."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements

    async def claim(self, scope: KeyScope) -> StoredOutcome | None:
        """None: the key is this transaction's. Else what it led to before; a key past its time is forgotten.

        Concurrency: waits for a parallel claim of the same key to commit or roll back, hence a claim without
        an outcome is never seen. Raises: InProgress where that takes too long.
        """
        insert = self._statements.insert(idempotency_keys).values(claimed_at=self._statements.clock())
        fresh = ("arguments_hash", "reference", "refusal", "claimed_at")
        row = {
            "user_id": scope.user_id,
            "mutation": scope.mutation,
            "key": scope.key,
            "arguments_hash": scope.arguments_hash,
            "reference": None,
            "refusal": None,
        }
        statement = insert.on_conflict_do_update(
            index_elements=["user_id", "mutation", "key"],
            set_={name: insert.excluded[name] for name in fresh},
            where=idempotency_keys.c.claimed_at <= self._statements.clock(plus_s=-KEPT_S),
        )
        try:
            claimed = await self._statements.change(statement, row)
        except LockTimeout as error:
            raise InProgress from error
        return None if claimed else await self._stored(scope)

    async def find(self, scope: KeyScope) -> StoredOutcome | None:
        """What the key led to before, without claiming it."""
        kept_from = self._statements.clock(plus_s=-KEPT_S)
        return await self._stored(scope, idempotency_keys.c.claimed_at > kept_from)

    async def finish(
        self, scope: KeyScope, *, reference: str | None = None, refusal: DomainError | None = None
    ) -> None:
        """Keep the outcome of a claimed key."""
        outcome = {
            "reference": reference,
            "refusal": None if refusal is None else encode_refusal(refusal),
        }
        changed = await self._statements.change(update(idempotency_keys).where(*_is(scope)), outcome)
        assert changed == 1, "the key was claimed before"

    async def reap(self, *, before: datetime, limit: int) -> int:
        """Forget up to `limit` keys claimed before then; how many it were."""
        key = tuple_(idempotency_keys.c.user_id, idempotency_keys.c.mutation, idempotency_keys.c.key)
        old = (
            select(idempotency_keys.c.user_id, idempotency_keys.c.mutation, idempotency_keys.c.key)
            .where(idempotency_keys.c.claimed_at < before)
            .order_by(idempotency_keys.c.claimed_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
            .cte("old")
        )
        reaped = await self._statements.rows(
            delete(idempotency_keys)
            .where(key.in_(select(old.c.user_id, old.c.mutation, old.c.key)))
            .returning(idempotency_keys.c.key)
        )
        return len(reaped)

    async def _stored(self, scope: KeyScope, *where: ColumnElement[bool]) -> StoredOutcome | None:
        row = await self._statements.row(select(idempotency_keys).where(*_is(scope), *where))
        if row is None:
            return None
        return StoredOutcome(
            arguments_hash=row.arguments_hash,
            reference=row.reference,
            refusal=None if row.refusal is None else decode_refusal(row.refusal),
        )


def _is(scope: KeyScope) -> tuple[ColumnElement[bool], ...]:
    return (
        idempotency_keys.c.user_id == scope.user_id,
        idempotency_keys.c.mutation == scope.mutation,
        idempotency_keys.c.key == scope.key,
    )
