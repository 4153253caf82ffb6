"""Idempotency keys and their outcomes."""

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, bindparam, delete, select, tuple_, update

from domain.base import DomainError, InProgress
from domain.ports import KeptOutcome, KeyScope, StoredOutcome
from infra.codec import decode_refusal, encode_refusal
from infra.db import writes
from infra.db.errors import LockTimeout
from infra.db.statements import Statements, one_of_sent
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
        try:
            claimed = await self._statements.returned(_CLAIM, [_row(scope, _outcome(None, None))])
        except LockTimeout as error:
            raise InProgress from error
        return None if claimed else await self._look_up(scope)

    async def find(self, scope: KeyScope) -> StoredOutcome | None:
        """What the key led to before, without claiming it."""
        kept_from = self._statements.clock(plus_s=-KEPT_S)
        return await self._look_up(scope, idempotency_keys.c.claimed_at > kept_from)

    async def find_each(self, scopes: Sequence[KeyScope | None]) -> list[StoredOutcome | None]:
        """What each of these keys of one mutation led to before, if it was used; None for None."""
        keyed = [scope for scope in scopes if scope is not None]
        if not keyed:
            return [None] * len(scopes)
        rows = await self._statements.rows(
            _find_each(self._statements.is_postgres),
            {
                "of_mutation": keyed[0].mutation,
                "users": [scope.user_id for scope in keyed],
                "keys": [scope.key for scope in keyed],
            },
        )
        found = {(row.user_id, row.mutation, row.key): _stored(row) for row in rows}
        return [None if scope is None else found.get(scope.identity) for scope in scopes]

    async def keep(self, outcomes: Sequence[KeptOutcome]) -> bool:
        """Keep the outcomes of keys that were not used before; False where a parallel transaction had one first.

        Concurrency: waits for parallel transactions that keep one of the keys, and takes them in one order.
        Raises: InProgress where that takes too long.
        """
        if not outcomes:
            return True
        rows = [
            _row(outcome.scope, _outcome(outcome.reference, outcome.refusal))
            for outcome in sorted(outcomes, key=lambda outcome: outcome.scope.identity)
        ]
        try:
            kept = await self._statements.returned(_CLAIM, rows)
        except LockTimeout as error:
            raise InProgress from error
        return len(kept) == len(rows)

    async def finish(
        self, scope: KeyScope, *, reference: str | None = None, refusal: DomainError | None = None
    ) -> None:
        """Keep the outcome of a claimed key."""
        outcome = _outcome(reference, refusal)
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

    async def _look_up(self, scope: KeyScope, *where: ColumnElement[bool]) -> StoredOutcome | None:
        row = await self._statements.row(select(idempotency_keys).where(*_is(scope), *where))
        return None if row is None else _stored(row)


@cache
def _find_each(is_postgres: bool) -> Select[*tuple[Any, ...]]:
    """What these users' keys of one mutation led to, a key that another of them chose included."""
    return select(idempotency_keys).where(
        one_of_sent(idempotency_keys.c.user_id, "users", is_postgres=is_postgres),
        one_of_sent(idempotency_keys.c.key, "keys", is_postgres=is_postgres),
        idempotency_keys.c.mutation == bindparam("of_mutation"),
        idempotency_keys.c.claimed_at > writes.clock(is_postgres=is_postgres, plus_s=-KEPT_S),
    )


# Those that are there stay as they are, unless their time is over.
_CLAIM = writes.insert(
    idempotency_keys,
    *("user_id", "mutation", "key", "arguments_hash", "reference", "refusal"),
    computed=lambda given: {"claimed_at": given.clock()},
    conflict=lambda insert, given: insert.on_conflict_do_update(
        index_elements=["user_id", "mutation", "key"],
        set_={
            name: insert.excluded[name] for name in ("arguments_hash", "reference", "refusal", "claimed_at")
        },
        where=idempotency_keys.c.claimed_at <= given.clock(plus_s=-KEPT_S),
    ),
    returning=[idempotency_keys.c.key],
)


def _row(scope: KeyScope, outcome: dict[str, str | None]) -> dict[str, str | None]:
    """What is inserted for a key, all but the time, which is the database's."""
    key = {"user_id": scope.user_id, "mutation": scope.mutation, "key": scope.key}
    return {**key, "arguments_hash": scope.arguments_hash, **outcome}


def _outcome(reference: str | None, refusal: DomainError | None) -> dict[str, str | None]:
    """The columns that say what a key led to; both are empty while that is open."""
    return {"reference": reference, "refusal": None if refusal is None else encode_refusal(refusal)}


def _stored(row: Row[*tuple[Any, ...]]) -> StoredOutcome:
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
