"""Idempotency keys: a keyed mutation happens once, and a repeat hears of the first one's outcome."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import NoReturn, Protocol, TypeVar

from domain.base import Checker, DomainError, IdempotencyMismatch, UserId
from domain.ports import Deps, KeptOutcome, KeyScope, StoredOutcome, WriteUnit

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
        earlier = _earlier(stored, scope)
        if isinstance(earlier, DomainError):
            raise earlier
        return await replay(earlier)
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


async def once_each(
    unit: WriteUnit,
    scopes: Sequence[KeyScope | None],
    *,
    act: Callable[[Sequence[int]], Awaitable[Sequence[T | DomainError]]],
    reference: Callable[[T], str],
    replay: Callable[[Sequence[str]], Awaitable[Mapping[str, T]]],
) -> Sequence[T | DomainError] | None:
    """What `once` does for one request, for several in one commit, each with an outcome of its own.

    No two have the same key. `act` does those at the positions it is given, in their order, and raises nothing that
    is one request's own. Returns None, with nothing committed, where a parallel transaction was faster under one of
    the keys: begin anew, and its outcome is found.
    """
    stored = await unit.idempotency.find_each(scopes)
    new = [position for position, known in enumerate(stored) if known is None]
    done = dict(zip(new, await act(new), strict=True))
    outcomes = [
        _outcome(scope, done[position], reference)
        for position in new
        if (scope := scopes[position]) is not None and not _is_retryable(done[position])
    ]
    if not await unit.idempotency.keep(outcomes):
        return None
    earlier = {
        position: _earlier(known, scope)
        for position, (known, scope) in enumerate(zip(stored, scopes, strict=True))
        if known is not None and scope is not None
    }
    again = await replay([each for each in earlier.values() if isinstance(each, str)])
    if outcomes or not all(isinstance(each, DomainError) for each in done.values()):
        await unit.commit()
    replayed = {p: again[each] if isinstance(each, str) else each for p, each in earlier.items()}
    answers = done | replayed
    return [answers[position] for position in range(len(scopes))]


def _earlier(stored: StoredOutcome, scope: KeyScope) -> str | DomainError:
    """What the key led to before: a reference or the refusal. For other arguments it led to nothing."""
    if stored.arguments_hash != scope.arguments_hash:
        return IdempotencyMismatch()
    if stored.refusal is not None:
        return stored.refusal
    assert stored.reference is not None, "an outcome is a reference or a refusal"
    return stored.reference


def _is_retryable(outcome: object) -> bool:
    return isinstance(outcome, DomainError) and outcome.retryable


def _outcome(scope: KeyScope, outcome: T | DomainError, reference: Callable[[T], str]) -> KeptOutcome:
    if isinstance(outcome, DomainError):
        return KeptOutcome(scope, reference=None, refusal=outcome)
    return KeptOutcome(scope, reference=reference(outcome), refusal=None)
