"""Reading the environment, and refusing to start on what is wrong in it."""

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource

from infra.settings.model import PREFIX, Settings, WorkerPlace, variable

# Stripe's own webhook secrets have 38 characters; under 16 a guess is within reach.
WEBHOOK_SECRET_MIN_CHARS = 16


class Command(StrEnum):
    """What is being started; some refusals concern only some commands."""

    SERVE = "serve"
    WORKER = "worker"
    MIGRATE = "migrate"
    CREATE_ADMIN = "create-admin"
    SANDBOX = "sandbox"
    VERIFY = "verify"
    RESUME_SALES = "resume-sales"
    REBUILD_READ_MODEL = "rebuild-read-model"
    REFUNDS = "refunds"
    SCHEMA = "schema"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A setting that is wrong, by its variable, and what would be right. Never holds the value."""

    name: str
    reason: str


class BadSettings(Exception):
    """The environment does not allow a start. The text lists every reason and quotes no value."""

    def __init__(self, refusals: tuple[Refusal, ...]) -> None:
        self.refusals = refusals
        count = "1 setting is" if len(refusals) == 1 else f"{len(refusals)} settings are"
        super().__init__(
            "\n".join([f"{count} wrong:", *(f"  {each.name}: {each.reason}" for each in refusals)])
        )


def load_settings(
    environ: Mapping[str, str] | None = None, *, command: Command, workers: int = 1
) -> Settings:
    """The settings that `environ` asks for (the process's own by default), fit for `command`.

    `workers`: processes that `serve` starts. An empty variable counts as absent.
    Raises: BadSettings, which names everything that is wrong at once.
    """
    given = {
        name: value.strip()
        for name, value in (os.environ if environ is None else environ).items()
        if name.startswith(PREFIX) and value.strip() and not _is_service_link(name, value)
    }
    settings, malformed = _read(given)
    named = {refusal.name for refusal in malformed}
    # A rule about a value that is malformed would judge the default in its place.
    broken = [rule for rule in _broken_rules(settings, command, workers=workers) if rule.name not in named]
    refusals = (*_unknown(given), *malformed, *broken)
    if refusals:
        raise BadSettings(refusals)
    return settings


class _Environ(EnvSettingsSource):
    """pydantic-settings' own reading of the environment, over a mapping instead of `os.environ`."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(Settings)
        self.env_vars = {name.lower(): value for name, value in environ.items()}


def _read(given: Mapping[str, str]) -> tuple[Settings, tuple[Refusal, ...]]:
    """The settings with what is malformed left at its default, and what is malformed."""
    fields = _Environ(given)()
    try:
        return Settings(**fields), ()
    except ValidationError as error:
        # A factory that waits for a malformed field is no fault of its own.
        faults = [fault for fault in error.errors() if fault["type"] != "default_factory_not_called"]
    refusals = {str(fault["loc"][0]): _reason(str(fault["loc"][0]), fault["msg"]) for fault in faults}
    sound = {name: value for name, value in fields.items() if name not in refusals}
    return Settings(**sound), tuple(Refusal(variable(name), reason) for name, reason in refusals.items())


def _reason(field_name: str, message: str) -> str:
    """pydantic's text without its own words for us; it never quotes the value, which may be a secret."""
    own = message.removeprefix("Value error, ")
    if own != message:
        return own
    return f"{message.replace('Input should', 'must')}. {Settings.model_fields[field_name].description}"


def _broken_rules(settings: Settings, command: Command, *, workers: int) -> Iterator[Refusal]:
    """What is well formed but not fit to run, DESIGN "Two ways to run"."""
    takes_payments = command in (Command.SERVE, Command.WORKER, Command.REFUNDS)
    if command in (Command.SERVE, Command.WORKER):
        yield from _broken_process_rules(settings, command, workers=workers)
        if settings.redis_cluster_url is not None and settings.redis_url is None:
            yield Refusal(
                "FRONTROW_REDIS_CLUSTER_URL",
                "carries pub/sub only: name a Redis or Valkey for the read model in FRONTROW_REDIS_URL too",
            )
    if takes_payments and settings.stripe_api_base and settings.is_sandboxed:
        yield Refusal(
            "FRONTROW_STRIPE_API_BASE", "does nothing without FRONTROW_STRIPE_API_KEY: set both or none"
        )
    if takes_payments and len(settings.webhook_secrets) > 2:
        yield Refusal("FRONTROW_STRIPE_WEBHOOK_SECRET", "holds at most two secrets")
    if takes_payments and settings.is_production:
        yield from _broken_production_rules(settings)


def _broken_process_rules(settings: Settings, command: Command, *, workers: int) -> Iterator[Refusal]:
    if command is Command.WORKER:
        why = "`frontrow worker` is a process of its own"
    elif settings.worker is WorkerPlace.OFF:
        why = "FRONTROW_WORKER=off needs `frontrow worker`, a process of its own"
    elif workers > 1:
        why = f"--workers {workers} are several processes"
    else:
        return
    if settings.is_sqlite:
        yield Refusal("FRONTROW_DATABASE_URL", f"{why}, and SQLite serves one: name a PostgreSQL database")
    if settings.redis_url is None:
        yield Refusal(
            "FRONTROW_REDIS_URL", f"{why}, and pub/sub in memory reaches one: name a Redis or Valkey"
        )


def _broken_production_rules(settings: Settings) -> Iterator[Refusal]:
    if settings.demo:
        yield Refusal("FRONTROW_DEMO", "demo concerts are not for production: set 0 or leave it out")
    if settings.allow_unsafe_database:
        yield Refusal("FRONTROW_ALLOW_UNSAFE_DATABASE", "loses what was sold and paid: set 0 or leave it out")
    least_kib = Settings.model_fields["password_memory_kib"].default
    if settings.password_memory_kib < least_kib:
        yield Refusal("FRONTROW_PASSWORD_MEMORY_KIB", f"makes passwords cheap to guess: at least {least_kib}")
    if settings.stripe_api_key is None:
        yield Refusal(
            "FRONTROW_STRIPE_API_KEY", "is missing, and production refuses the sandbox: set a live key"
        )
    elif settings.is_stripe_itself and not re.match(
        r"(sk|rk)_live_\w{8}", settings.stripe_api_key.get_secret_value()
    ):
        yield Refusal(
            "FRONTROW_STRIPE_API_KEY", "is no live key: production wants sk_live_... or rk_live_..."
        )
    if not settings.webhook_secrets:
        yield Refusal("FRONTROW_STRIPE_WEBHOOK_SECRET", "is missing, and production verifies every webhook")
    elif min(map(len, settings.webhook_secrets)) < WEBHOOK_SECRET_MIN_CHARS:
        yield Refusal(
            "FRONTROW_STRIPE_WEBHOOK_SECRET", f"is weak: at least {WEBHOOK_SECRET_MIN_CHARS} characters each"
        )


def _unknown(given: Mapping[str, str]) -> Iterator[Refusal]:
    known = [variable(name) for name in Settings.model_fields]
    for name in sorted(given):
        if name in known or name.startswith(f"{PREFIX}TEST_"):
            continue
        close = difflib.get_close_matches(name, known, n=1)
        yield Refusal(name, f"is no setting; did you mean {close[0]}?" if close else "is no setting")


def _is_service_link(name: str, value: str) -> bool:
    """True for what Kubernetes puts into the environment for a Service whose name begins with "frontrow"."""
    if re.search(r"_SERVICE_(HOST|PORT|PORT_\w+)$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$", name):
        return True
    # FRONTROW_SANDBOX_PORT is a setting too; only the value tells which of the two is meant.
    return name.endswith("_PORT") and value.startswith(("tcp://", "udp://", "sctp://"))
