"""Small doors: passwords, randomness, how often one may try, who is signed in, and who shares a commit."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

from domain.base import SessionId
from domain.user import Viewer

Q = TypeVar("Q")
R = TypeVar("R")


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

    def guess(self, action: str, *, who: str) -> AbstractAsyncContextManager[None]:
        """A guess at a secret: counted where the block raises; where it ends well, counting starts anew.

        Concurrency: with as many guesses under way as are left, the next ones wait for how those end.
        Raises: TooManyAttempts with the time to wait.
        """
        ...


class SignIns(Protocol):
    """Who holds which token."""

    async def viewer(self, token_hash: bytes) -> Viewer | None:
        """Who holds this token; None where it is unknown or ended.

        May be some seconds old, but never tells of a session that was forgotten here.
        """
        ...

    def forget(self, session_id: SessionId) -> None:
        """The session has ended."""
        ...


class GroupCommit(Protocol):
    """Requests for the same lock share a transaction instead of waiting for each other."""

    async def __call__(
        self, lane: str, request: Q, commit: Callable[[Sequence[Q]], Awaitable[Sequence[R | Exception]]], /
    ) -> R:
        """The request's own outcome, once it is committed.

        `commit` takes requests of one lane, in the order they came, and has an outcome for each. It runs once at a
        time per lane and process; who comes meanwhile waits for the next. Nobody waits where nothing is in flight.
        Where it raises, nothing is committed, and each of them is done alone; but not after DatabaseAway or
        Overloaded, which are for all.
        Concurrency: who is cancelled while waiting takes its request along; once in flight it is carried out.
        Raises: the outcome that is an error; Overloaded at once where too many wait, if their number has a limit.
        """
        ...
