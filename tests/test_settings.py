"""Settings: read from the environment once, refused all at once, by name, without showing a value."""

import re
from collections.abc import Iterator

import pytest
from annotated_types import Ge, Gt, Le
from pydantic import SecretStr

from infra.settings import BadSettings, Command, Settings, load_settings, settings_table
from infra.settings.model import GROUPS, variable

POSTGRES = "postgresql+asyncpg://frontrow:pw@db/frontrow"
REDIS = "redis://cache:6379/0"
LIVE = {
    "FRONTROW_ENV": "production",
    "FRONTROW_DATABASE_URL": POSTGRES,
    "FRONTROW_REDIS_URL": REDIS,
    "FRONTROW_STRIPE_API_KEY": "sk_live_0123456789",
    "FRONTROW_STRIPE_WEBHOOK_SECRET": "whsec_0123456789",
}


def refused(environ: dict[str, str], *, command: Command = Command.SERVE, workers: int = 1) -> set[str]:
    """The variables that are named as wrong, each once."""
    with pytest.raises(BadSettings) as caught:
        load_settings(environ, command=command, workers=workers)
    names = [refusal.name for refusal in caught.value.refusals]
    assert len(names) == len(set(names))
    return set(names)


def text_of(environ: dict[str, str]) -> str:
    """What a person reads who starts `serve` with these variables."""
    with pytest.raises(BadSettings) as caught:
        load_settings(environ, command=Command.SERVE)
    return str(caught.value)


def test_an_empty_environment_serves_the_embedded_default() -> None:
    """Nothing set means SQLite, memory, the sandbox and demo concerts, with the documented numbers."""
    settings = load_settings({"PATH": "/bin"}, command=Command.SERVE)
    assert settings.is_sqlite
    assert settings.is_sandboxed
    assert settings.demo
    assert settings.redis_url is None
    assert (settings.hold_s, settings.payment_timeout_ms, settings.session_lifetime_s) == (
        600,
        610,
        1_209_600,
    )
    assert settings == Settings()


def test_an_empty_variable_counts_as_absent() -> None:
    """Compose files pass variables that are not set on as empty ones."""
    settings = load_settings({"FRONTROW_REDIS_URL": "", "FRONTROW_HOLD_S": " "}, command=Command.SERVE)
    assert settings == Settings()


def test_values_are_read_in_their_kind() -> None:
    """Numbers, switches and lists arrive as text, a secret possibly with a line end."""
    settings = load_settings(
        {
            "FRONTROW_HOLD_S": "2",
            "FRONTROW_DEMO": "0",
            "FRONTROW_ALLOWED_ORIGINS": "https://a.example, https://b.example:8443/",
            "FRONTROW_STRIPE_API_KEY": "sk_test_1\n",
            "FRONTROW_STRIPE_API_BASE": "http://127.0.0.1:12111/",
            "FRONTROW_STRIPE_WEBHOOK_SECRET": "whsec_new, whsec_old",
        },
        command=Command.SERVE,
    )
    assert settings.hold_s == 2
    assert not settings.demo
    assert settings.allowed_origins == ("https://a.example", "https://b.example:8443")
    assert settings.stripe_api_key is not None
    assert settings.stripe_api_key.get_secret_value() == "sk_test_1"
    assert settings.stripe_api_base == "http://127.0.0.1:12111"
    assert settings.webhook_secrets == ("whsec_new", "whsec_old")
    assert not settings.is_stripe_itself


def test_everything_wrong_is_reported_at_once() -> None:
    """One start tells all: malformed, unknown, and not fit to run together."""
    environ = {
        "FRONTROW_ENV": "production",
        "FRONTROW_DATABASE_URL": "postgres://u:hunter2@db/frontrow",
        "FRONTROW_HOLD_S": "soon",
        "FRONTROW_BREAKER_FAIL_RATE": "nan",
        "FRONTROW_HODL_S": "600",
        "FRONTROW_DEMO": "1",
    }
    assert refused(environ, workers=2) == {
        "FRONTROW_DATABASE_URL",
        "FRONTROW_HOLD_S",
        "FRONTROW_BREAKER_FAIL_RATE",
        "FRONTROW_HODL_S",
        "FRONTROW_DEMO",
        "FRONTROW_REDIS_URL",
        "FRONTROW_STRIPE_API_KEY",
        "FRONTROW_STRIPE_WEBHOOK_SECRET",
    }
    assert text_of(environ).startswith("7 settings are wrong:\n")


def test_no_value_is_shown() -> None:
    """Neither the report nor the settings themselves print a password or a key."""
    secret = "hunter2hunter2"
    report = text_of(
        {
            "FRONTROW_DATABASE_URL": f"postgres://u:{secret}@db/frontrow",
            "FRONTROW_REDIS_URL": f"http://:{secret}@cache",
            "FRONTROW_STRIPE_API_BASE": f"ftp://{secret}",
            "FRONTROW_HOLD_S": secret,
            "FRONTROW_WORKER": secret,
        }
    )
    shown = repr(
        Settings(
            database_url=f"postgresql+asyncpg://u:{secret}@db/frontrow",
            redis_url=f"redis://:{secret}@cache",
            redis_cluster_url=f"redis://:{secret}@node",
            stripe_api_key=SecretStr(secret),
            stripe_webhook_secret=SecretStr(secret),
        )
    )
    assert report.startswith("5 settings are wrong:")
    assert secret not in report + shown


def limits() -> Iterator[tuple[str, float, float]]:
    """Each limit of each setting: the variable, the last value inside, the first one outside."""
    for name, field in Settings.model_fields.items():
        step = 1 if field.annotation is int else 0.001
        for bound in field.metadata:
            if isinstance(bound, Ge):
                yield variable(name), float(str(bound.ge)), float(str(bound.ge)) - step
            if isinstance(bound, Gt):
                yield variable(name), float(str(bound.gt)) + step, float(str(bound.gt))
            if isinstance(bound, Le):
                yield variable(name), float(str(bound.le)), float(str(bound.le)) + step


@pytest.mark.parametrize(("name", "inside", "outside"), list(limits()))
def test_a_number_is_taken_at_its_limit_and_refused_past_it(name: str, inside: float, outside: float) -> None:
    """Every number has a limit on both sides."""
    load_settings({name: f"{inside:.10g}"}, command=Command.SERVE)
    assert refused({name: f"{outside:.10g}"}) == {name}


def test_every_number_has_both_limits() -> None:
    """A setting without a limit would let a typing error through."""
    numbers = [name for name, field in Settings.model_fields.items() if field.annotation in (int, float)]
    assert sorted(name for name, _, _ in limits()) == sorted(2 * [variable(name) for name in numbers])


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("postgres://u@h/d", "postgresql+asyncpg://"),
        ("postgresql://u@h/d", "postgresql+asyncpg://"),
        ("postgresql+psycopg://u@h/d", "postgresql+asyncpg://"),
        ("postgresql+asyncpg://u@h/d?sslmode=require", "ssl=require"),
        ("sqlite:///frontrow.db", "sqlite+aiosqlite:///"),
        ("sqlite+aiosqlite://", "needs a file"),
        ("sqlite+aiosqlite:///:memory:", "needs a file"),
        ("mysql+aiomysql://u@h/d", "only PostgreSQL and SQLite"),
        ("frontrow.db", "is no database URL"),
    ],
)
def test_a_wrong_database_url_is_answered_with_the_right_form(url: str, advice: str) -> None:
    """Most URLs that people paste name another driver."""
    report = text_of({"FRONTROW_DATABASE_URL": url})
    assert report.startswith("1 setting is wrong:\n  FRONTROW_DATABASE_URL: ")
    assert advice in report


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FRONTROW_ENV", "prod"),
        ("FRONTROW_WORKER", "on"),
        ("FRONTROW_DEMO", "maybe"),
        ("FRONTROW_REDIS_URL", "tcp://cache:6379"),
        ("FRONTROW_REDIS_CLUSTER_URL", "unix:///run/valkey.sock"),
        ("FRONTROW_REDIS_CLUSTER_URL", "redis://node:6379/1"),
        ("FRONTROW_REDIS_CLUSTER_URL", "redis://node:no"),
        ("FRONTROW_PUBLIC_URL", "frontrow.example"),
        ("FRONTROW_PUBLIC_URL", "http://host:99999"),
        ("FRONTROW_ALLOWED_ORIGINS", "https://a.example,https://b.example/app"),
        ("FRONTROW_ALLOWED_ORIGINS", "*"),
        ("FRONTROW_STRIPE_WEBHOOK_SECRET", "whsec_one,whsec_two,whsec_three"),
        ("FRONTROW_STRIPE_API_BASE", "http://127.0.0.1:12111"),
    ],
)
def test_a_wrong_value_is_refused_by_name(name: str, value: str) -> None:
    """The API base alone does nothing: without a key the sandbox would be started beside it."""
    assert refused({name: value}) == {name}


def test_a_misspelled_setting_is_refused_with_the_right_name() -> None:
    """A typing error must not leave a default in force."""
    assert "did you mean FRONTROW_REDIS_URL?" in text_of({"FRONTROW_REDIS_ULR": REDIS})


def test_the_tests_own_variables_are_not_settings() -> None:
    """FRONTROW_TEST_ variables choose the servers that the tests use."""
    assert load_settings({"FRONTROW_TEST_DATABASE_URL": POSTGRES}, command=Command.SERVE) == Settings()


def test_what_kubernetes_injects_is_not_taken_for_settings() -> None:
    """Services named frontrow and frontrow-sandbox put these into every container of their namespace."""
    environ = {
        "FRONTROW_SERVICE_HOST": "10.0.0.1",
        "FRONTROW_SERVICE_PORT": "80",
        "FRONTROW_SERVICE_PORT_HTTP": "80",
        "FRONTROW_PORT": "tcp://10.0.0.1:80",
        "FRONTROW_PORT_80_TCP": "tcp://10.0.0.1:80",
        "FRONTROW_PORT_80_TCP_ADDR": "10.0.0.1",
        "FRONTROW_SANDBOX_PORT": "tcp://10.0.0.2:80",
    }
    assert load_settings(environ, command=Command.SERVE) == Settings()
    assert refused({"FRONTROW_PORT": "9000"}) == {"FRONTROW_PORT"}


SEVERAL = {"FRONTROW_DATABASE_URL", "FRONTROW_REDIS_URL"}


@pytest.mark.parametrize(
    ("command", "workers", "worker_place"),
    [(Command.SERVE, 2, "inline"), (Command.SERVE, 1, "off"), (Command.WORKER, 1, "inline")],
)
def test_several_processes_need_a_shared_database_and_pub_sub(
    command: Command, workers: int, worker_place: str
) -> None:
    """SQLite and pub/sub in memory serve one process: each way to want more is refused for both."""
    place = {"FRONTROW_WORKER": worker_place}
    postgres, redis = {"FRONTROW_DATABASE_URL": POSTGRES}, {"FRONTROW_REDIS_URL": REDIS}
    assert refused(place, command=command, workers=workers) == SEVERAL
    assert refused(place | postgres, command=command, workers=workers) == {"FRONTROW_REDIS_URL"}
    assert refused(place | redis, command=command, workers=workers) == {"FRONTROW_DATABASE_URL"}
    load_settings(place | postgres | redis, command=command, workers=workers)


@pytest.mark.parametrize("command", [Command.SERVE, Command.WORKER])
def test_a_cluster_alone_is_refused(command: Command) -> None:
    """It carries announcements, and the read model needs a Redis of its own."""
    environ = {"FRONTROW_DATABASE_URL": POSTGRES, "FRONTROW_REDIS_CLUSTER_URL": "redis://node:6379"}
    assert "FRONTROW_REDIS_CLUSTER_URL" in refused(environ, command=command)
    assert "FRONTROW_REDIS_CLUSTER_URL: carries pub/sub only: name a Redis or Valkey" in text_of(environ)
    settings = load_settings(environ | {"FRONTROW_REDIS_URL": REDIS}, command=command)
    assert (settings.redis_url, settings.redis_cluster_url) == (REDIS, "redis://node:6379")


@pytest.mark.parametrize("command", [Command.MIGRATE, Command.CREATE_ADMIN, Command.VERIFY, Command.SCHEMA])
def test_commands_that_take_no_payment_need_no_payment_secrets(command: Command) -> None:
    """A migration runs in production with the database's URL alone."""
    environ = {"FRONTROW_ENV": "production", "FRONTROW_DATABASE_URL": POSTGRES, "FRONTROW_WORKER": "off"}
    assert load_settings(environ, command=command).is_production


@pytest.mark.parametrize("command", [Command.SERVE, Command.WORKER, Command.REFUNDS])
def test_production_starts_with_live_secrets(command: Command) -> None:
    """The complete set passes, and demo concerts are off by themselves."""
    settings = load_settings(LIVE, command=command)
    assert settings.is_stripe_itself
    assert not settings.demo


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FRONTROW_STRIPE_API_KEY", ""),
        ("FRONTROW_STRIPE_API_KEY", "sk_test_0123456789"),
        ("FRONTROW_STRIPE_API_KEY", "sk_live_"),
        ("FRONTROW_STRIPE_WEBHOOK_SECRET", ""),
        ("FRONTROW_STRIPE_WEBHOOK_SECRET", "whsec_012345678"),
        ("FRONTROW_STRIPE_WEBHOOK_SECRET", "whsec_0123456789,short"),
        ("FRONTROW_DEMO", "1"),
        ("FRONTROW_ALLOW_UNSAFE_DATABASE", "1"),
        ("FRONTROW_PASSWORD_MEMORY_KIB", "19455"),
    ],
)
def test_production_refuses_what_is_unsafe_to_sell_with(name: str, value: str) -> None:
    """The sandbox, test keys, weak or missing secrets and demo concerts, each by itself."""
    assert refused(LIVE | {name: value}) == {name}
    development = LIVE | {name: value, "FRONTROW_ENV": "development"}
    load_settings(development, command=Command.SERVE)


def test_production_against_another_processor_takes_its_key() -> None:
    """A rehearsal of production runs against `frontrow sandbox` elsewhere, with a test key."""
    rehearsal = {
        "FRONTROW_STRIPE_API_KEY": "sk_test_x",
        "FRONTROW_STRIPE_API_BASE": "http://127.0.0.1:12111",
    }
    assert not load_settings(LIVE | rehearsal, command=Command.SERVE).is_stripe_itself
    rehearsal["FRONTROW_STRIPE_API_BASE"] = "https://api.stripe.com"
    assert refused(LIVE | rehearsal) == {"FRONTROW_STRIPE_API_KEY"}


def test_the_table_lists_every_setting_once_and_says_what_it_means() -> None:
    """The README's table is made from the settings, so none is left out and none is without a text."""
    assert sorted(name for group in GROUPS for name in group.model_fields) == sorted(Settings.model_fields)
    assert re.findall(r"^\| `(FRONTROW_\w+)`", settings_table(), re.MULTILINE) == [
        variable(name) for name in Settings.model_fields
    ]
    assert "None" not in settings_table()
