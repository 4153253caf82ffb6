"""Signing in: the token in a header, password hashes, ids and secrets, and how often one may try."""

import asyncio
import hashlib
import re
import secrets
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

from domain.base import Overloaded, TooManyAttempts
from domain.user import Unauthenticated

T = TypeVar("T")

# OWASP Password Storage Cheat Sheet, Argon2id: 19 MiB, two passes, one lane; about 30 ms of one core.
MEMORY_MIN_KIB = 19_456
PASSES = 2
LANES = 1

TOKEN_BYTES = 32
# RFC 6750, section 2.1: b64token. Ours have 43 characters.
_BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/-]{1,512}=*) *", re.IGNORECASE | re.ASCII)


def bearer_token(header: str | None) -> str | None:
    """The token of an Authorization header; None without one. Raises: Unauthenticated if malformed."""
    if header is None:
        return None
    match = _BEARER.fullmatch(header)
    if match is None:
        raise Unauthenticated("The authorization must read: Bearer TOKEN.")
    return match[1]


class Argon2Passwords:
    """`Passwords` by argon2-cffi, on threads of its own.

    Two threads: each hash holds a core and `memory_kib`, and everything else must go on. Argon2 releases the GIL.
    """

    def __init__(self, *, memory_kib: int = MEMORY_MIN_KIB, threads: int = 2, max_waiting: int = 256) -> None:
        self._hasher = PasswordHasher(time_cost=PASSES, memory_cost=memory_kib, parallelism=LANES)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="password")
        self._places = threading.BoundedSemaphore(threads + max_waiting)
        # Compared with when nobody has the address, so that the answer takes as long.
        self._nobodys = self._hasher.hash(secrets.token_urlsafe())

    async def hash(self, password: str) -> str:
        """A hash to store, with its parameters and salt. Raises: Overloaded."""
        return await self._off_loop(lambda: self._hasher.hash(_bytes(password)))

    async def matches(self, password: str, *, stored: str | None) -> bool:
        """Whether it is the password; False after the same time where none is stored. Raises: Overloaded."""
        return await self._off_loop(lambda: self._verify(password, stored or self._nobodys))

    def close(self) -> None:
        """Ends the threads. Hashes that wait are not begun."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _verify(self, password: str, stored: str) -> bool:
        try:
            return self._hasher.verify(stored, _bytes(password))
        except VerifyMismatchError:
            return False

    async def _off_loop(self, work: Callable[[], T]) -> T:
        if not self._places.acquire(blocking=False):
            raise Overloaded()
        future = self._threads.submit(work)
        # Not when the caller is done: one who leaves can't stop a hash that is being made.
        future.add_done_callback(lambda _: self._places.release())
        return await asyncio.wrap_future(future)


def _bytes(password: str) -> bytes:
    # A lone surrogate is no UTF-8, and still must only be a wrong password.
    return password.encode("utf-8", "surrogatepass")


class SystemRandomness:
    """`Randomness` from the operating system."""

    def new_id(self) -> str:
        """A UUID of version 7 (RFC 9562, section 5.7): those of later milliseconds sort later."""
        unix_ms = time.time_ns() // 1_000_000
        bits = (unix_ms << 80) | secrets.randbits(80)
        bits = bits & ~(0xF << 76) | 0x7 << 76  # version
        bits = bits & ~(0x3 << 62) | 0x2 << 62  # variant
        return str(uuid.UUID(int=bits))

    def new_token(self) -> str:
        """256 random bits in URL-safe base64."""
        return secrets.token_urlsafe(TOKEN_BYTES)

    def token_hash(self, token: str) -> bytes:
        """SHA-256: a token is random enough that a slow hash would add nothing."""
        return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


class MemoryAttemptLimiter:
    """`AttemptLimiter` in this process: with n processes somebody has up to n times as many attempts.

    `limits`: for each action, so many attempts in a window of so many seconds that begins with the first.
    Keeps at most `max_windows`; beyond those the oldest is forgotten, which is generous rather than unfair.
    """

    def __init__(
        self,
        limits: Mapping[str, tuple[int, float]],
        *,
        max_windows: int = 100_000,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._max_windows = max_windows
        self._clock_s = clock_s
        self._windows: OrderedDict[bytes, _Window] = OrderedDict()

    async def admit(self, action: str, *, who: str) -> None:
        """Count one attempt. Raises: TooManyAttempts with the time until the window ends."""
        window = self._window(action, who)
        if window.left == 0:
            raise self._refusal(window)
        window.left -= 1

    @asynccontextmanager
    async def guess(self, action: str, *, who: str) -> AsyncIterator[None]:
        """A guess at a secret: counted where the block raises; where it ends well, counting starts anew.

        Concurrency: with as many guesses under way as are left, the next ones wait for how those end.
        Raises: TooManyAttempts with the time until the window ends.
        """
        while (window := self._window(action, who)).left == 0:
            if window.running == 0:
                raise self._refusal(window)
            await window.next_end()
        window.left -= 1
        window.running += 1
        try:
            yield
            self._windows.pop(_key(action, who), None)
        finally:
            window.end_one()

    def _window(self, action: str, who: str) -> "_Window":
        """The window that is open now."""
        attempts, per_s = self._limits[action]
        key = _key(action, who)
        now_s = self._clock_s()
        window = self._windows.get(key)
        if window is None or window.ends_at_s <= now_s:
            window = _Window(ends_at_s=now_s + per_s, left=attempts)
            self._windows[key] = window
            self._windows.move_to_end(key)
            if len(self._windows) > self._max_windows:
                self._windows.popitem(last=False)
        return window

    def _refusal(self, window: "_Window") -> TooManyAttempts:
        return TooManyAttempts(max(1, round((window.ends_at_s - self._clock_s()) * 1_000)))


@dataclass(slots=True)
class _Window:
    ends_at_s: float
    left: int
    running: int = 0
    # Made only where somebody waits: there may be very many windows.
    _ended: asyncio.Event | None = None

    async def next_end(self) -> None:
        """Wait until one of the guesses under way has ended."""
        self._ended = self._ended or asyncio.Event()
        await self._ended.wait()

    def end_one(self) -> None:
        """Those who wait look again."""
        self.running -= 1
        if self._ended is not None:
            self._ended.set()
            self._ended = None


def _key(action: str, who: str) -> bytes:
    # Hashed because a client chooses how long `who` is.
    return hashlib.blake2b(f"{action}\n{who}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
