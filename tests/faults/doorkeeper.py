"""Stands before the processor: counts who is inside and how many came within a second, and refuses beyond a limit.

`python -m tests.faults.doorkeeper FILE LIMIT` is a sandbox with such a doorkeeper, until its standard input ends.
"""

import asyncio
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from infra.sandbox.api import build_sandbox
from infra.sandbox.server import serving

TOO_MANY = {"error": {"message": "Too many requests", "type": "invalid_request_error", "code": "rate_limit"}}


@dataclass
class Tally:
    """Calls of one kind."""

    calls: int = 0
    most_inside: int = 0
    most_in_a_second: int = 0
    _inside: int = 0
    _recent_s: deque[float] = field(default_factory=deque)

    def comes(self) -> None:
        """One more is inside."""
        now_s = time.monotonic()
        self._recent_s.append(now_s)
        while self._recent_s[0] <= now_s - 1:
            self._recent_s.popleft()
        self.calls += 1
        self._inside += 1
        self.most_inside = max(self.most_inside, self._inside)
        self.most_in_a_second = max(self.most_in_a_second, len(self._recent_s))

    def goes(self) -> None:
        """One less."""
        self._inside -= 1

    def said(self) -> str:
        """For people."""
        return f"{self.calls}, at most {self.most_inside} at once and {self.most_in_a_second} within a second"


@dataclass
class Doorkeeper:
    """`chores` are refunds and cancelled intents, which only workers ask for; `calls` are all.

    Beyond `limit_per_s` calls within a second the answer is 429, as from Stripe.
    """

    app: ASGIApp
    limit_per_s: int | None = None
    calls: Tally = field(default_factory=Tally)
    chores: Tally = field(default_factory=Tally)
    refused: int = 0
    _allowed_s: deque[float] = field(default_factory=deque)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a call in, or not; `GET /_tally` tells what came of it."""
        if scope["type"] == "http" and scope["path"] == "/_tally":
            await JSONResponse(self._said())(scope, receive, send)
            return
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        tallies = [self.calls]
        if scope["method"] == "POST" and scope["path"].endswith(("/refunds", "/cancel")):
            tallies.append(self.chores)
        for tally in tallies:
            tally.comes()
        try:
            if self._is_too_many():
                self.refused += 1
                await JSONResponse(TOO_MANY, 429)(scope, receive, send)
            else:
                await self.app(scope, receive, send)
        finally:
            for tally in tallies:
                tally.goes()

    def _said(self) -> list[str]:
        return [
            f"refunds and cancelled intents: {self.chores.said()}",
            f"all calls: {self.calls.said()}",
            f"answered 429: {self.refused}",
        ]

    def _is_too_many(self) -> bool:
        if self.limit_per_s is None:
            return False
        now_s = time.monotonic()
        while self._allowed_s and self._allowed_s[0] <= now_s - 1:
            self._allowed_s.popleft()
        if len(self._allowed_s) >= self.limit_per_s:
            return True
        self._allowed_s.append(now_s)
        return False


@asynccontextmanager
async def guarded_sandbox(
    state_path: Path, *, limit_per_s: int | None = None
) -> AsyncIterator[tuple[str, Doorkeeper]]:
    """The sandbox with that memory at the URL, and who stands before it."""
    app = build_sandbox(state_path=state_path)
    doorkeeper = Doorkeeper(app, limit_per_s)
    async with serving(doorkeeper, "127.0.0.1", 0) as url:
        try:
            yield url, doorkeeper
        finally:
            app.state.sandbox.closing.set()


@contextmanager
def guarded_sandbox_process(state_path: Path, *, limit_per_s: int) -> Iterator[str]:
    """The same in a process of its own, at this URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.doorkeeper", str(state_path), str(limit_per_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.communicate(timeout=30)


async def _main(state_path: str, limit_per_s: str) -> None:
    async with guarded_sandbox(Path(state_path), limit_per_s=int(limit_per_s)) as (url, _):
        print(url, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
