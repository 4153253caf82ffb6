"""What a client sees of an error: a message and `extensions` with a code from the contract, never more.

One place for both transports. What is nobody's expected refusal is masked as INTERNAL and logged once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from graphql import ArgumentNode, GraphQLError, GraphQLSyntaxError, Node, ValueNode, VariableDefinitionNode
from strawberry.exceptions import StrawberryInputCoercionError

from domain.base import DomainError

BAD_USER_INPUT = "BAD_USER_INPUT"
PARSE_FAILED = "GRAPHQL_PARSE_FAILED"
VALIDATION_FAILED = "GRAPHQL_VALIDATION_FAILED"
INTERNAL = "INTERNAL"

# The contract's names, in "errors", for what a mutation's union calls otherwise.
_PUBLIC_CODES = {"INVALID_INPUT": BAD_USER_INPUT, "TOO_MANY_ATTEMPTS": "RATE_LIMITED"}

_log = structlog.get_logger("frontrow.graphql")

FormattedError = dict[str, object]


@dataclass(eq=False)
class PersistedQueryNotFound(DomainError):
    """The hash is not known here: send it again together with the query."""

    code = "PERSISTED_QUERY_NOT_FOUND"

    @property
    def message(self) -> str:
        return "PersistedQueryNotFound"  # what Apollo's and urql's links look for


@dataclass(eq=False)
class RateLimited(DomainError):
    """The socket runs as many operations as it may."""

    limit: int
    retry_after_ms: int | None = 1_000
    code = "RATE_LIMITED"

    @property
    def message(self) -> str:
        return f"This socket runs {self.limit} operations already. Complete one first."


@dataclass(eq=False)
class StillRunning(DomainError):
    """A mutation outlasted its request; it goes on to its end."""

    retry_after_ms: int | None = 1_000
    code = "RETRYABLE"

    @property
    def message(self) -> str:
        return "This takes longer than it should. Send the same again with the same idempotency key."


def format_errors(errors: Sequence[Exception], *, request_id: str) -> list[FormattedError]:
    """The errors as a client sees them. Logs each unexpected cause once, with the request's id."""
    logged: set[int] = set()
    formatted = []
    for error in errors:
        formatted.append(format_error(error, request_id=request_id))
        cause = _cause(error)
        # A loader's failure is the same exception in every field that asked for it.
        if code_of(formatted[-1]) == INTERNAL and id(cause) not in logged:
            logged.add(id(cause))
            path = error.path if isinstance(error, GraphQLError) else None
            _log.error("unexpected error", exc_info=cause, path=path, request_id=request_id)
    return formatted


def format_error(error: Exception, *, request_id: str) -> FormattedError:
    """The error as a client sees it, in the form of the GraphQL specification, section 7.1.2."""
    message, code, retry_after_ms = _verdict(error)
    extensions: dict[str, object] = {"code": code, "requestId": request_id}
    if retry_after_ms is not None:
        extensions["retryAfterMs"] = retry_after_ms
    formatted: FormattedError = {"message": message, "extensions": extensions}
    if isinstance(error, GraphQLError):
        if error.locations:
            formatted["locations"] = [{"line": at.line, "column": at.column} for at in error.locations]
        if error.path:
            formatted["path"] = error.path
    return formatted


def code_of(formatted: FormattedError) -> str:
    """The code of a formatted error."""
    extensions = formatted["extensions"]
    assert isinstance(extensions, dict)
    return str(extensions["code"])


def retry_after_ms_of(formatted: FormattedError) -> int:
    """When to come back, units of milliseconds; a second where the error doesn't say."""
    extensions = formatted["extensions"]
    assert isinstance(extensions, dict)
    return int(extensions.get("retryAfterMs", 1_000))


def _verdict(error: Exception) -> tuple[str, str, int | None]:
    """Message, code and the time to wait."""
    cause = _cause(error)
    if isinstance(cause, DomainError):
        return cause.message, _PUBLIC_CODES.get(cause.code, cause.code), cause.retry_after_ms
    if isinstance(error, GraphQLError):
        if isinstance(error, GraphQLSyntaxError):
            return error.message, PARSE_FAILED, None
        if error.extensions and isinstance(code := error.extensions.get("code"), str):
            return error.message, code, None
        if isinstance(cause, StrawberryInputCoercionError) or _points_at_input(error.nodes):
            return error.message, BAD_USER_INPUT, None
    return "Internal error", INTERNAL, None


def _cause(error: Exception) -> Exception:
    """What was raised first, below the layers of GraphQLError that locate it."""
    while isinstance(error, GraphQLError) and error.original_error is not None:
        error = error.original_error
    return error


def _points_at_input(nodes: Sequence[Node] | None) -> bool:
    # graphql-core raises a plain GraphQLError for a variable or argument of the wrong type, as it does for a
    # result that doesn't fit the schema. The nodes tell them apart: what the client wrote, or the field.
    return (
        nodes is not None
        and len(nodes) > 0
        and isinstance(nodes[0], VariableDefinitionNode | ArgumentNode | ValueNode)
    )
