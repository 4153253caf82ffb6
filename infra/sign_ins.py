"""Who holds which token, remembered for a moment: one person's requests come in bursts."""

import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import replace

from domain.base import SessionId
from domain.user import Viewer

# A session that ends in another process is still good here for so long.
REMEMBERED_S = 2.0
# About a kilobyte each.
REMEMBERED_MAX = 20_000


class RememberedSignIns:
    """The port `SignIns` over a read. Only who is signed in is remembered, not who is unknown.

    Concurrency: one event loop. What was being read while a session ended is not remembered.
    """

    def __init__(
        self,
        read: Callable[[bytes], Awaitable[Viewer | None]],
        *,
        remembered_s: float = REMEMBERED_S,
        remembered_max: int = REMEMBERED_MAX,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._remembered_s = remembered_s
        self._remembered_max = remembered_max
        self._clock_s = clock_s
        self._known: OrderedDict[bytes, tuple[float, Viewer]] = OrderedDict()
        self._tokens: dict[SessionId, bytes] = {}
        self._ended_count = 0

    async def viewer(self, token_hash: bytes) -> Viewer | None:
        """As the port says."""
        now_s = self._clock_s()
        read_at_s, known = self._known.get(token_hash, (-math.inf, None))
        if known is not None and now_s - read_at_s < self._remembered_s:
            left_s = known.session_left_s - (now_s - read_at_s)
            return replace(known, session_left_s=left_s) if left_s > 0 else None
        ended_count = self._ended_count
        found = await self._read(token_hash)
        if found is not None and ended_count == self._ended_count:
            self._known[token_hash] = (now_s, found)
            self._known.move_to_end(token_hash)
            self._tokens[found.session.id] = token_hash
            self._drop_old(now_s)
        return found

    def forget(self, session_id: SessionId) -> None:
        """As the port says."""
        self._ended_count += 1
        token_hash = self._tokens.pop(session_id, None)
        if token_hash is not None:
            self._known.pop(token_hash, None)

    def _drop_old(self, now_s: float) -> None:
        # In the order in which they were read, nearly.
        while self._known:
            token_hash, (read_at_s, viewer) = next(iter(self._known.items()))
            if len(self._known) <= self._remembered_max and now_s - read_at_s < self._remembered_s:
                return
            del self._known[token_hash]
            self._tokens.pop(viewer.session.id, None)
