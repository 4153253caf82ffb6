"""Who asks, as headers tell it, the same for a request and for a websocket's handshake."""

import re
import secrets
from dataclasses import dataclass

from starlette.types import Scope

from domain.base import Overloaded
from domain.user import Unauthenticated, Viewer
from infra.auth import bearer_token

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, from where, and under which id the logs know it. With a refusal nobody asked who it is."""

    viewer: Viewer | None
    request_id: str
    client: str
    refusal: Overloaded | None = None


class Headers:
    """Those of a request or a handshake, read once: Starlette's own looks through all of them for each name."""

    def __init__(self, scope: Scope) -> None:
        self._values: dict[bytes, list[str]] = {}
        for name, value in scope["headers"]:
            self._values.setdefault(name, []).append(value.decode("latin-1"))

    def first(self, name: bytes) -> str:
        """The value, the first of several; empty without one."""
        return self._values[name][0] if name in self._values else ""

    def all(self, name: bytes) -> list[str]:
        """Every value."""
        return self._values.get(name, [])


def request_id_of(headers: Headers) -> str:
    """The client's own id where it is safe to log and to send back, else a fresh one."""
    own = headers.first(b"x-request-id")
    return own if _REQUEST_ID.fullmatch(own) else new_request_id()


def new_request_id() -> str:
    """A fresh id."""
    return secrets.token_hex(16)


def client_of(scope: Scope) -> str:
    """The client's address; behind a proxy the one that the server was told to trust."""
    client = scope.get("client")
    return client[0] if client else "unknown"


def token_of(headers: Headers) -> str | None:
    """The access token in the Authorization header. Raises: Unauthenticated where malformed or given twice."""
    given = headers.all(b"authorization")
    if len(given) > 1:
        raise Unauthenticated("Send one Authorization header.")
    return bearer_token(given[0] if given else None)
