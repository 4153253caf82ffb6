"""Ends sockets whose session has ended: one look at all sessions of the process, again and again."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

import structlog

from domain.base import SessionId
from infra.graphql_app.limits import Limits

SessionsAlive = Callable[[Collection[SessionId]], Awaitable[set[SessionId]]]

_log = structlog.get_logger("frontrow.graphql")


class Endable(Protocol):
    """What is open under a session."""

    def end_forbidden(self) -> None:
        """Its session has ended. May repeat."""
        ...


class SessionWatch:
    """Knows what is open under which session. A database that can't be asked ends nothing."""

    def __init__(self, sessions_alive: SessionsAlive, limits: Limits) -> None:
        self._sessions_alive = sessions_alive
        self._limits = limits
        self._open: dict[SessionId, set[Endable]] = {}
        self._is_blind = False

    def add(self, session_id: SessionId, opened: Endable) -> None:
        """Watch it until it is removed."""
        self._open.setdefault(session_id, set()).add(opened)

    def remove(self, session_id: SessionId, opened: Endable) -> None:
        """It is closed."""
        self._open[session_id].discard(opened)
        if not self._open[session_id]:
            del self._open[session_id]

    async def watch(self) -> None:
        """Look once per interval, until cancelled."""
        while True:
            await asyncio.sleep(self._limits.session_check_s)
            if self._open:
                await self._look()

    async def _look(self) -> None:
        asked = set(self._open)
        try:
            async with asyncio.timeout(self._limits.session_check_timeout_s):
                alive = await self._sessions_alive(asked)
        except Exception as error:  # the edge: the next look may see more
            if not self._is_blind:
                _log.warning("can't see whether sessions are alive; their sockets stay open", exc_info=error)
            self._is_blind = True
            return
        self._is_blind = False
        for session_id in asked - alive:
            for opened in tuple(self._open.get(session_id, ())):
                opened.end_forbidden()
