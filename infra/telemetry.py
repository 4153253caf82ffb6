"""Logs and metrics: `configure_logging` once per process, one `Metrics` per application."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Enum,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from structlog.typing import Processor

from infra.settings import Settings

# From a cached read to a payment that takes its whole limit of 610 ms and beyond.
DURATION_BUCKETS_S = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
SHARING_BUCKETS = (1, 2, 5, 10, 20, 50, 100)
HTTP_METHODS = frozenset({"GET", "POST", "OPTIONS", "HEAD"})


def configure_logging(settings: Settings) -> None:
    """Everything logged, by structlog or by the standard library, goes to standard error in one form.

    JSON in production, one readable line in development. What is bound with
    `structlog.contextvars.bound_contextvars(request_id=...)` stands on every line. May repeat. Start uvicorn
    with `log_config=None`, or it puts its own handlers back.
    """
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[
            *before,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(settings)],
        )
    )
    logging.basicConfig(handlers=[handler], level=settings.log_level.upper(), force=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    # One line for every call and every statement is theirs, at INFO; some of it quotes what was sent.
    for name in (
        "httpx",
        "httpcore",
        "stripe",
        "sqlalchemy.engine",
        "aiosqlite",
        "alembic",
        "uvicorn.access",
        "uvicorn.error",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)


def _renderers(settings: Settings) -> list[Processor]:
    # Tracebacks as plain text: the richer forms print local variables, passwords and tokens among them.
    if settings.is_production:
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    return [
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    ]


@dataclass(frozen=True, slots=True)
class Metrics:
    """Every metric of one process, on its own registry: `metrics.breaker_transitions.labels(to="open").inc()`.

    Label values come from closed sets only (codes, states), never from what a client sent.
    """

    registry: CollectorRegistry
    http_requests: Histogram
    graphql_operations: Counter
    transactions: Histogram
    bookings_per_commit: Histogram
    waiting: Gauge
    breaker_state: Enum
    breaker_transitions: Counter
    outbox_lag_s: Gauge
    outbox_depth: Gauge
    relay_failures: Counter
    refunds_failed: Gauge
    refunds_open: Gauge
    bookings_to_cancel: Gauge
    broken_promises: Gauge
    promises_age_s: Gauge
    sales_halted: Gauge
    subscribers: Gauge
    open_sockets: Gauge
    event_stream_connected: Gauge
    read_model_fallbacks: Counter

    @classmethod
    def build(cls) -> Self:
        """All metrics at zero, with the process's own memory, CPU and garbage collection beside them."""
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"frontrow_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"frontrow_{name}", text, labels, registry=registry)

        def histogram(
            name: str, text: str, *labels: str, buckets: Sequence[float] = DURATION_BUCKETS_S
        ) -> Histogram:
            return Histogram(f"frontrow_{name}", text, labels, buckets=buckets, registry=registry)

        return cls(
            registry=registry,
            http_requests=histogram("http_request_seconds", "HTTP requests by time.", "method", "status"),
            graphql_operations=counter(
                "graphql_operations",
                "GraphQL operations by type and code, OK or the first error.",
                *("type", "code"),
            ),
            transactions=histogram(
                "transaction_seconds", "Transactions that may write, by name, open for so long.", "name"
            ),
            bookings_per_commit=histogram(
                "bookings_per_commit", "Bookings that shared a commit.", buckets=SHARING_BUCKETS
            ),
            waiting=gauge("waiting", "Requests that wait for a connection or a commit, by queue.", "queue"),
            breaker_state=Enum(
                "frontrow_breaker_state",
                "The circuit breaker around the processor.",
                states=["closed", "half-open", "open"],
                registry=registry,
            ),
            breaker_transitions=counter("breaker_transitions", "Breaker's changes by new state.", "to"),
            outbox_lag_s=gauge("outbox_lag_seconds", "Age of the oldest outbox row."),
            outbox_depth=gauge("outbox_depth", "Outbox rows that wait."),
            relay_failures=counter(
                "relay_failures", "Reactions that failed and back off, by event.", "event"
            ),
            refunds_failed=gauge("refunds_failed", "Refunds that are REFUND_FAILED and need a person."),
            refunds_open=gauge("refunds_open", "Refunds that are pending or failed."),
            bookings_to_cancel=gauge("bookings_to_cancel", "Live bookings of cancelled concerts."),
            broken_promises=gauge("broken_promises", "What breaks each promise, as last found.", "promise"),
            promises_age_s=gauge("promises_age_seconds", "Since all promises were checked; +Inf: never."),
            sales_halted=gauge("sales_halted", "Concerts that sell nothing because their stock is broken."),
            subscribers=gauge("subscribers", "Open subscriptions."),
            open_sockets=gauge("open_sockets", "Open websockets."),
            event_stream_connected=gauge(
                "event_stream_connected", "1 while pub/sub is connected, 0 while it is not."
            ),
            read_model_fallbacks=counter(
                "read_model_fallbacks", "Reads that went to the database instead, by reason.", "reason"
            ),
        )

    def saw_http_request(self, method: str, status: int, *, duration_s: float) -> None:
        """Counts one HTTP request. Any method may be sent, so an unusual one is counted as OTHER."""
        known = method if method in HTTP_METHODS else "OTHER"
        self.http_requests.labels(method=known, status=str(status)).observe(duration_s)

    def saw_transaction(self, name: str, duration_s: float) -> None:
        """Counts one transaction that was open for so long."""
        self.transactions.labels(name=name).observe(duration_s)

    def exposition(self) -> bytes:
        """What `/metrics` answers, in Prometheus' text format (`prometheus_client.CONTENT_TYPE_LATEST`)."""
        return generate_latest(self.registry)
