"""One operation as a client asks for it, the same over HTTP and over a websocket."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import orjson

from domain.base import BadUserInput

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class OperationRequest:
    """What to run. `query` is None where only the hash of a persisted query came."""

    query: str | None
    variables: dict[str, object] | None
    operation_name: str | None
    persisted_hash: str | None


def read_request(fields: object) -> OperationRequest:
    """The request in a decoded JSON value. Raises: BadUserInput naming the first wrong field."""
    if isinstance(fields, list):
        raise BadUserInput("Send one operation per request: batches are not supported.")
    if not isinstance(fields, dict):
        raise BadUserInput("The request must be a JSON object with `query`.")
    query = _optional(fields, "query", str)
    variables = _optional(fields, "variables", dict)
    operation_name = _optional(fields, "operationName", str)
    persisted_hash = _persisted_hash(_optional(fields, "extensions", dict) or {})
    if query is None and persisted_hash is None:
        raise BadUserInput("The request has no `query`.")
    return OperationRequest(query, variables, operation_name, persisted_hash)


def decode_json(text: bytes | str) -> object:
    """The value. Raises: BadUserInput where it is not JSON in UTF-8, has NaN, or nests too deeply."""
    try:
        value: object = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadUserInput(f"This is not valid JSON in UTF-8: {error.msg}.") from error
    return value


def query_hash(query: str) -> str:
    """SHA-256 of a query in hexadecimal, as automatic persisted queries name it."""
    # Only a request that was JSON reaches this, and JSON as we read it holds no lone surrogates.
    return hashlib.sha256(query.encode()).hexdigest()


_KINDS: dict[type, str] = {str: "a string", dict: "an object"}


def _optional(fields: Mapping[str, object], name: str, kind: type[T]) -> T | None:
    value = fields.get(name)
    if value is None or isinstance(value, kind):
        return value
    raise BadUserInput(f"`{name}` must be {_KINDS[kind]} or null.")


def _persisted_hash(extensions: Mapping[str, object]) -> str | None:
    persisted = extensions.get("persistedQuery")
    if persisted is None:
        return None
    if not isinstance(persisted, dict) or persisted.get("version") != 1:
        raise BadUserInput("`extensions.persistedQuery` must be an object with version 1.")
    sha256_hash = persisted.get("sha256Hash")
    if not isinstance(sha256_hash, str) or re.fullmatch("[0-9a-f]{64}", sha256_hash) is None:
        raise BadUserInput("`extensions.persistedQuery.sha256Hash` must have 64 hexadecimal digits.")
    return sha256_hash
