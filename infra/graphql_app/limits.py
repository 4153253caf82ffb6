"""Every limit of the endpoint in one place."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What one process takes on. `allowed_origins` empty: web pages of any origin may open a socket."""

    # A document of this size takes up to 100 ms to parse and validate, one that clients really send about 5 ms.
    max_tokens: int = 2_000
    max_depth: int = 12
    max_aliases: int = 30
    # Whether fields of one name fit together, compared pair by pair: within the limit of tokens it would go on for
    # a second. An operation with every field of the contract in it takes some hundred comparisons.
    max_field_comparisons: int = 10_000
    max_validation_errors: int = 20
    # An AST takes up to 280 bytes per character (measured: 1 MB for a legal document of 3.8 KB), and what it selects
    # 100 more: about 60 MB.
    max_cached_document_chars: int = 150_000
    max_persisted_query_chars: int = 1_000_000

    max_body_bytes: int = 102_400
    body_timeout_s: float = 10.0
    max_in_flight: int = 4_000
    # Requests that have come and wait for their turn to be begun.
    max_not_begun: int = 1_000
    request_timeout_s: float = 30.0

    max_sockets: int = 20_000
    max_subscriptions_per_socket: int = 100
    # Of one shared subscription; states that come faster are merged.
    shared_updates_per_s: float = 20.0
    init_timeout_s: float = 10.0
    # A client that takes nothing for so long is given up; until then one message waits for it.
    send_timeout_s: float = 10.0
    session_check_s: float = 1.0
    session_check_timeout_s: float = 5.0
    allowed_origins: tuple[str, ...] = ()
