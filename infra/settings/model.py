"""The settings: names, kinds, defaults and limits. The text below a setting is its line in the README.

The field `hold_s` is the variable `FRONTROW_HOLD_S`. What bears a unit carries it at the end of its name.
"""

from enum import StrEnum
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

PREFIX = "FRONTROW_"
STRIPE_API_HOST = "api.stripe.com"


class Environment(StrEnum):
    """How strict the start is."""

    DEVELOPMENT = "development"
    PRODUCTION = "production"


class WorkerPlace(StrEnum):
    """Where relay, expiry and reconciler run: inside `serve`, or in `frontrow worker`."""

    INLINE = "inline"
    OFF = "off"


class LogLevel(StrEnum):
    """The least severe message that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


# ---------------------------------------------------------------- kinds of values


def _database_url(text: str) -> str:
    right_form = "write postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE or sqlite+aiosqlite:///./frontrow.db"
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError(f"is no database URL: {right_form}") from None
    match url.drivername:
        case "postgresql+asyncpg" if "sslmode" in url.query:
            raise ValueError("asyncpg knows no sslmode: write ?ssl=require")
        case "postgresql+asyncpg":
            return text
        case "sqlite+aiosqlite" if url.database in (None, "", ":memory:"):
            raise ValueError("SQLite needs a file, a second connection would see another database in memory")
        case "sqlite+aiosqlite":
            return text
        case name if name.startswith("postgres"):
            raise ValueError(
                "the driver must be asyncpg: write postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE"
            )
        case name if name.startswith("sqlite"):
            raise ValueError("the driver must be aiosqlite: write sqlite+aiosqlite:///./frontrow.db")
        case _:
            raise ValueError(f"only PostgreSQL and SQLite are supported: {right_form}")


def _redis_url(text: str) -> str:
    if not text.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("write redis://HOST:PORT/0, or rediss:// for TLS; this holds for Valkey too")
    return text


def _cluster_url(text: str) -> str:
    try:
        url = urlsplit(text)
        is_right = url.scheme in ("redis", "rediss") and bool(url.hostname) and url.path in ("", "/", "/0")
        # Reading `port` is what checks it.
        is_right = is_right and url.port != 0
    except ValueError:
        is_right = False
    if not is_right:
        raise ValueError(
            "write redis://HOST:PORT of any node, or rediss:// for TLS; a cluster has database 0 only"
        )
    return text


def _http_url(text: str) -> str:
    try:
        url = urlsplit(text)
        is_right = url.scheme in ("http", "https") and bool(url.hostname) and not (url.query or url.fragment)
        # Reading `port` is what checks it.
        is_right = is_right and url.port != 0
    except ValueError:
        is_right = False
    if not is_right:
        raise ValueError("write http://HOST:PORT or https://HOST, without a query")
    return text.rstrip("/")


def _origin(text: str) -> str:
    origin = _http_url(text)
    if urlsplit(origin).path:
        raise ValueError("an origin has no path: write https://HOST, more of them separated by commas")
    return origin


def _comma_separated(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


DatabaseUrl = Annotated[str, AfterValidator(_database_url)]
RedisUrl = Annotated[str, AfterValidator(_redis_url)]
ClusterUrl = Annotated[str, AfterValidator(_cluster_url)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
Origins = Annotated[
    tuple[Annotated[str, AfterValidator(_origin)], ...], NoDecode, BeforeValidator(_comma_separated)
]


# ---------------------------------------------------------------- the settings


class _Group(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments only: the environment is read in one place, `load_settings`."""
        return (init_settings,)


class RunSettings(_Group):
    """How it runs"""

    env: Environment = Environment.DEVELOPMENT
    """`production` refuses what is unsafe to sell with."""
    worker: WorkerPlace = WorkerPlace.INLINE
    """Relay, expiry and reconciler inside `serve`, or `off`: in `frontrow worker`."""
    demo: bool = Field(default_factory=lambda fields: fields["env"] is Environment.DEVELOPMENT)
    """Demo concerts and an admin on an empty database. 1 in development, 0 in production."""
    public_url: HttpUrl = "http://127.0.0.1:8000"
    """Where people reach Frontrow from outside; unset it is where `serve` listens."""
    allowed_origins: Origins = ()
    """Origins of web pages that may call, separated by commas. Empty: any in development, else its own."""
    log_level: LogLevel = LogLevel.INFO
    """The least severe message that is logged."""
    shutdown_grace_s: int = Field(default=10, ge=1, le=300)
    """What open requests are given at the end, seconds."""
    shutdown_drain_s: float = Field(
        default_factory=lambda fields: 5.0 if fields["env"] is Environment.PRODUCTION else 0.5, ge=0, le=300
    )
    """Before that: not ready and still answering, while load balancers notice. 5 s in production, else 0.5."""
    verify_slice_rows: int = Field(default=5_000, ge=1, le=1_000_000)
    """Bookings whose promises the worker checks at once, as `frontrow verify` does."""
    verify_pause_s: float = Field(default=1, ge=0.01, le=3_600)
    """Pause between two such checks, seconds. With both defaults a million bookings take ten minutes."""


class StorageSettings(_Group):
    """Database and Redis"""

    database_url: DatabaseUrl = Field(default="sqlite+aiosqlite:///./frontrow.db", repr=False)
    """SQLite file or `postgresql+asyncpg://...`."""
    allow_unsafe_database: bool = False
    """Start on a PostgreSQL that may lose what it answered: fsync, full_page_writes or synchronous_commit off."""
    db_pool_size: int = Field(default=10, ge=1, le=500)
    """Connections of each process for writing, and as many for reading."""
    db_pool_wait_s: float = Field(default=25, ge=0.1, le=60)
    """Wait for a free connection at most, seconds."""
    db_pool_queue_max: int = Field(default=700, ge=1, le=100_000)
    """Requests that wait for one, or for a concert's commit, at most in each queue; one more is `OVERLOADED`."""
    booking_batch_max: int = Field(default=100, ge=1, le=1_000)
    """Bookings of one concert, or approvals, or cancellations, that share a commit at most. 1: none."""
    redis_url: RedisUrl | None = Field(default=None, repr=False)
    """Redis or Valkey: `redis://...`. Empty: in memory, one process."""
    redis_cluster_url: ClusterUrl | None = Field(default=None, repr=False)
    """Any node of a Redis or Valkey Cluster, for sharded pub/sub. Empty: pub/sub on `FRONTROW_REDIS_URL`."""
    redis_heartbeat_s: float = Field(default=2, ge=0.1, le=60)
    """How often a pub/sub connection is tested, seconds."""


class SellingSettings(_Group):
    """Selling"""

    hold_s: int = Field(default=600, ge=1, le=86_400)
    """How long seats are held for a payment, seconds."""
    session_lifetime_s: int = Field(default=1_209_600, ge=1, le=31_536_000)
    """How long a log-in lasts, seconds (14 days)."""


class PaymentSettings(_Group):
    """Payment"""

    stripe_api_key: SecretStr | None = None
    """Secret. Empty: the sandbox, started by `serve`; refused in production."""
    stripe_api_base: HttpUrl | None = None
    """Empty: Stripe's own. Needs a key."""
    stripe_webhook_secret: SecretStr | None = None
    """Secret. Two separated by a comma while one replaces the other."""
    sandbox_port: int = Field(default=0, ge=0, le=65_535)
    """Port of the sandbox that `serve` starts. 0: a free one."""
    payment_timeout_ms: int = Field(default=610, ge=10, le=60_000)
    """Limit of one create or confirm call to the processor, milliseconds."""
    payment_settle_after_s: float = Field(default=30, ge=0.1, le=3_600)
    """An attempt whose outcome is unknown and that is still unconfirmed is cancelled after this, seconds."""
    payment_max_in_flight: int = Field(default=100, ge=1, le=10_000)
    """Payments under way at the processor at once, per process, and as many questions how one stands."""
    worker_calls_max_in_flight: int = Field(default=10, ge=1, le=1_000)
    """Refunds, cancelled intents and looks at open payments at once, per worker; people who pay don't count."""
    worker_calls_per_s: float = Field(default=20, ge=0.1, le=10_000)
    """The same per second and worker. Stripe allows an account 25 refunds a second, and 100 calls in all."""
    breaker_fail_max: int = Field(default=5, ge=1, le=1_000)
    """Failures in a row that open the circuit breaker."""
    breaker_window: int = Field(default=20, ge=1, le=10_000)
    """Last calls over which the share of failures counts."""
    breaker_fail_rate: float = Field(default=0.5, gt=0, le=1)
    """Share of failures in the window that opens it, 0 to 1."""
    breaker_reset_s: float = Field(default=5, ge=0.05, le=600)
    """Open for so long before one trial, seconds."""

    @property
    def webhook_secrets(self) -> tuple[str, ...]:
        """The secrets that a webhook may be signed with; none, one or two."""
        given = self.stripe_webhook_secret.get_secret_value() if self.stripe_webhook_secret else ""
        return tuple(part.strip() for part in given.split(",") if part.strip())

    @property
    def is_sandboxed(self) -> bool:
        """True when `serve` has to start a processor of its own."""
        return self.stripe_api_key is None

    @property
    def is_stripe_itself(self) -> bool:
        """True when calls go to Stripe, false when they go to the sandbox or to anything else."""
        base_host = urlsplit(self.stripe_api_base or f"https://{STRIPE_API_HOST}").hostname
        return not self.is_sandboxed and base_host == STRIPE_API_HOST


class LimitSettings(_Group):
    """Limits"""

    max_body_bytes: int = Field(default=102_400, ge=1_024, le=10_485_760)
    """Body of a request, message of a socket, bytes."""
    max_in_flight: int = Field(default=4_000, ge=1, le=1_000_000)
    """Requests at once, per process. More than all queues hold, so that none of them can take every place."""
    max_not_begun: int = Field(default=1_000, ge=1, le=1_000_000)
    """Requests that have come and are not begun yet, per process; one more is `OVERLOADED`."""
    max_query_depth: int = Field(default=12, ge=3, le=100)
    """Nesting of a GraphQL operation."""
    max_query_tokens: int = Field(default=2_000, ge=50, le=100_000)
    """Tokens of a GraphQL document."""
    max_query_aliases: int = Field(default=30, ge=1, le=1_000)
    """Aliases in a GraphQL document."""
    max_sockets: int = Field(default=20_000, ge=1, le=1_000_000)
    """Open websockets per process."""
    max_subscriptions_per_socket: int = Field(default=100, ge=1, le=10_000)
    """Subscriptions on one websocket."""
    ticket_count_updates_per_s: float = Field(default=20, ge=0.1, le=1_000)
    """Counts told in a second for each distinct document (operation, variables) that is watched; more are merged."""
    socket_init_timeout_s: float = Field(default=10, ge=0.1, le=300)
    """Wait for `connection_init` on a new websocket, seconds."""
    password_memory_kib: int = Field(default=19_456, ge=64, le=1_048_576)
    """Memory that each Argon2id hash of a password takes, KiB; production refuses less than the default (OWASP)."""
    max_waiting_passwords: int = Field(default=1_000, ge=1, le=100_000)
    """Log-ins and sign-ups that wait for a password hash, per process; a hash takes about 30 ms of a core."""
    log_in_failures_max: int = Field(default=10, ge=1, le=1_000_000)
    """Failed log-ins per e-mail address and window, in each process."""
    log_in_window_s: int = Field(default=900, ge=1, le=86_400)
    """That window, seconds (15 minutes)."""
    sign_ups_per_min: int = Field(default=3_000, ge=1, le=10_000_000)
    """Sign-ups per client address and minute, in each process."""
    bookings_per_min: int = Field(default=6_000, ge=1, le=10_000_000)
    """bookConcert calls per user and minute, in each process."""
    payments_per_min: int = Field(default=6_000, ge=1, le=10_000_000)
    """payBooking calls per user and minute, in each process."""


# Bases are read from the right, so this is the order of the table reversed.
class Settings(LimitSettings, PaymentSettings, SellingSettings, StorageSettings, RunSettings):
    """All settings, valid and frozen: from the environment by `load_settings`, from arguments in tests."""

    @property
    def is_production(self) -> bool:
        """True when real money may be taken."""
        return self.env is Environment.PRODUCTION

    @property
    def is_sqlite(self) -> bool:
        """True on the embedded database, which one process owns."""
        return self.database_url.startswith("sqlite")


GROUPS: tuple[type[BaseSettings], ...] = (
    RunSettings,
    StorageSettings,
    SellingSettings,
    PaymentSettings,
    LimitSettings,
)


def variable(field_name: str) -> str:
    """The name of the environment variable that sets a field."""
    return f"{PREFIX}{field_name.upper()}"
