"""Logs and metrics: `configure_logging` once per process, one `Metrics` per application."""

import logging
import sys
from collections.abc import Sequence
from functools import cache

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


class Metrics:
    """Every metric of one process, on its own registry: `metrics.breaker_transitions.labels(to="open").inc()`.

    Label values come from closed sets only (codes, states), never from what a client sent.
    """

    def __init__(self) -> None:
        """All metrics at zero, with the process's own memory, CPU and garbage collection beside them."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        new = _New(self.registry)
        self._count_requests(new)
        self._count_connections(new)
        self._count_promises(new)
        # Finding one by its labels takes longer than counting.
        self._http_request = cache(self.http_requests.labels)
        self._operation = cache(self.graphql_operations.labels)
        self._transaction = cache(self.transactions.labels)

    def _count_requests(self, new: "_New") -> None:
        self.http_requests = new.histogram(
            "http_request_seconds", "HTTP requests and how long they took.", "method", "status"
        )
        self.graphql_operations = new.counter(
            "graphql_operations",
            "GraphQL operations by type and code, OK or the first error.",
            "type",
            "code",
        )
        self.transactions = new.histogram(
            "transaction_seconds",
            "Transactions that may write, by name, and how long they were open.",
            "name",
        )
        self.bookings_per_commit = new.histogram(
            "bookings_per_commit",
            "Bookings that were made, settled or cancelled in one commit.",
            buckets=SHARING_BUCKETS,
        )
        self.waiting = new.gauge(
            "waiting",
            "Requests that wait for a database connection or for their turn to commit, by queue.",
            "queue",
        )
        self.breaker_state = Enum(
            "frontrow_breaker_state",
            "The circuit breaker around the processor.",
            states=["closed", "half-open", "open"],
            registry=self.registry,
        )
        self.breaker_transitions = new.counter(
            "breaker_transitions", "Changes of the breaker by new state.", "to"
        )

    def _count_connections(self, new: "_New") -> None:
        self.subscribers = new.gauge("subscribers", "Open subscriptions.")
        self.open_sockets = new.gauge("open_sockets", "Open websockets.")
        self.event_stream_connected = new.gauge(
            "event_stream_connected", "1 while pub/sub is connected, 0 while it is not."
        )
        self.read_model_fallbacks = new.counter(
            "read_model_fallbacks", "Reads that went to the database instead, by reason.", "reason"
        )

    def _count_promises(self, new: "_New") -> None:
        self.outbox_lag_s = new.gauge("outbox_lag_seconds", "Age of the oldest outbox row.")
        self.outbox_depth = new.gauge("outbox_depth", "Outbox rows that wait.")
        self.relay_failures = new.counter(
            "relay_failures", "Reactions that failed and back off, by event.", "event"
        )
        self.refunds_failed = new.gauge("refunds_failed", "Refunds that are REFUND_FAILED and need a person.")
        self.refunds_open = new.gauge("refunds_open", "Refunds that are pending or failed.")
        self.bookings_to_cancel = new.gauge(
            "bookings_to_cancel", "Bookings of cancelled concerts that are still to be cancelled."
        )
        self.broken_promises = new.gauge(
            "broken_promises", "What breaks each promise, as it was last found.", "promise"
        )
        self.promises_age_s = new.gauge(
            "promises_age_seconds", "Time since every promise had last been checked; +Inf: never yet."
        )
        self.sales_halted = new.gauge(
            "sales_halted", "Concerts that sell nothing because their stock is broken."
        )

    def saw_http_request(self, method: str, status: int, *, duration_s: float) -> None:
        """Counts one HTTP request. Any method may be sent, so an unusual one is counted as OTHER."""
        known = method if method in HTTP_METHODS else "OTHER"
        self._http_request(known, str(status)).observe(duration_s)

    def saw_operation(self, kind: str, code: str) -> None:
        """Counts one GraphQL operation that has ended; of the kind "none" where nothing was run."""
        self._operation(kind, code).inc()

    def saw_transaction(self, name: str, duration_s: float) -> None:
        """Counts one transaction that was open for so long."""
        self._transaction(name).observe(duration_s)

    def exposition(self) -> bytes:
        """What `/metrics` answers, in Prometheus' text format (`prometheus_client.CONTENT_TYPE_LATEST`)."""
        return generate_latest(self.registry)


class _New:
    """Makes metrics of Frontrow's on one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"frontrow_{name}", text, labels, registry=self._registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"frontrow_{name}", text, labels, registry=self._registry)

    def histogram(
        self, name: str, text: str, *labels: str, buckets: Sequence[float] = DURATION_BUCKETS_S
    ) -> Histogram:
        return Histogram(f"frontrow_{name}", text, labels, buckets=buckets, registry=self._registry)
