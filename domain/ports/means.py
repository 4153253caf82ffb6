"""Small doors: passwords, randomness, and how often one may try."""

from contextlib import AbstractAsyncContextManager
from typing import Protocol


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
