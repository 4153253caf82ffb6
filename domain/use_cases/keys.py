"""Idempotency keys: a keyed mutation happens once, and a repeat hears of the first one's outcome."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from hashlib import sha256
from typing import NoReturn, Protocol, TypeVar

from domain.base import Checker, DomainError, IdempotencyMismatch, UserId
from domain.ports import Deps, KeyScope, WriteUnit

T = TypeVar("T")


class Keyed(Protocol):
    """A command that may carry an idempotency key; a frozen dataclass of plain values."""

    @property
    def idempotency_key(self) -> str | None:
        """1 to 255 characters."""
        ...


def scope_of(user_id: UserId, mutation: str, command: Keyed) -> KeyScope | None:
    """What the command's key belongs to, None without a key. Raises: InvalidInput for a malformed key."""
    check = Checker()
    check.idempotency_key(command.idempotency_key)
    check.done()
    if command.idempotency_key is None:
        return None
    arguments = replace(command, idempotency_key=None)  # type: ignore[type-var]
    return KeyScope(
        user_id=user_id,
        mutation=mutation,
        key=command.idempotency_key,
        arguments_hash=sha256(repr(arguments).encode()).hexdigest(),
    )


async def refuse(
    deps: Deps, user_id: UserId, mutation: str, command: Keyed, refusal: DomainError
) -> NoReturn:
    """Nothing is done, and that is the outcome of the command's key: for what is refused before any use case.

    Raises: `refusal`, or what the key led to before.
    """
    scope = scope_of(user_id, mutation, command)
    if scope is None:
        raise refusal

    async def act() -> NoReturn:
        raise refusal

    async def replay(reference: str) -> NoReturn:
        raise AssertionError("what is refused again was refused before")

    async with deps.write("refuse") as unit:
        await once(unit, scope, act=act, reference=str, replay=replay)
    raise AssertionError("it was refused")


async def once(
    unit: WriteUnit,
    scope: KeyScope | None,
    *,
    act: Callable[[], Awaitable[T]],
    reference: Callable[[T], str],
    replay: Callable[[str], Awaitable[T]],
) -> T:
    """`act` is done and committed, or the key's earlier outcome is repeated.

    `act` raises before it writes, so that a refusal leaves nothing but its stored outcome. A retryable refusal
    rolls back and is stored nowhere.
    """
    if scope is None:
        result = await act()
        await unit.commit()
        return result
    stored = await unit.idempotency.claim(scope)
    if stored is not None:
        if stored.arguments_hash != scope.arguments_hash:
            raise IdempotencyMismatch
        if stored.refusal is not None:
            raise stored.refusal
        assert stored.reference is not None, "an outcome is a reference or a refusal"
        return await replay(stored.reference)
    try:
        result = await act()
    except DomainError as refusal:
        if not refusal.retryable:
            await unit.idempotency.finish(scope, refusal=refusal)
            await unit.commit()
        raise
    await unit.idempotency.finish(scope, reference=reference(result))
    await unit.commit()
    return result
