"""Who asks, as headers tell it, the same for a request and for a websocket's handshake."""

import re
import uuid
from dataclasses import dataclass

from starlette.requests import HTTPConnection

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


def request_id_of(connection: HTTPConnection) -> str:
    """The client's own id where it is safe to log and to send back, else a fresh one."""
    own = connection.headers.get("x-request-id", "")
    return own if _REQUEST_ID.fullmatch(own) else new_request_id()


def new_request_id() -> str:
    """A fresh id."""
    return uuid.uuid4().hex


def client_of(connection: HTTPConnection) -> str:
    """The client's address; behind a proxy the one that the server was told to trust."""
    return connection.client.host if connection.client else "unknown"


def token_of(connection: HTTPConnection) -> str | None:
    """The access token in the Authorization header. Raises: Unauthenticated where malformed or given twice."""
    headers = connection.headers.getlist("authorization")
    if len(headers) > 1:
        raise Unauthenticated("Send one Authorization header.")
    return bearer_token(headers[0] if headers else None)
