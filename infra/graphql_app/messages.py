"""Messages of graphql-transport-ws as they are sent. A payload may be encoded once and sent under many ids."""

from collections.abc import Mapping, Sequence

import orjson

from infra.graphql_app.errors import FormattedError

ACK = b'{"type":"connection_ack"}'
PONG = b'{"type":"pong"}'
NEXT_END = b"}"


def encoded(payload: Mapping[str, object]) -> bytes:
    """A payload as it stands between the two."""
    return orjson.dumps(payload)


def next_start(operation_id: str) -> bytes:
    """What stands before the payload; `NEXT_END` stands behind it."""
    return b'{"type":"next","id":%b,"payload":' % orjson.dumps(operation_id)


def error(operation_id: str, errors: Sequence[FormattedError]) -> bytes:
    """The operation came to nothing more."""
    return b'{"type":"error","id":%b,"payload":%b}' % (orjson.dumps(operation_id), orjson.dumps(errors))


def complete(operation_id: str) -> bytes:
    """The operation is over."""
    return b'{"type":"complete","id":%b}' % orjson.dumps(operation_id)
