"""The command line: every command by its name, its output and its exit code, as operators rely on them."""

import logging
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
import structlog
from redis import Redis

from domain.base import PaymentStatus
from domain.booking import BookingStatus
from infra.db.unit import Database
from tests.client import PASSWORD
from tests.databases import PostgresDatabases
from tests.db_world import a_booking, a_payment, a_sale, hold, open_sale, put_booking, run_sql
from tests.servers import running_valkey
from tests.shell import Shell

COMMANDS = (
    "serve",
    "worker",
    "migrate",
    "create-admin",
    "sandbox",
    "verify",
    "resume-sales",
    "rebuild-read-model",
    "refunds",
    "schema",
)
SCHEMA = Path(__file__).parents[1] / "schema" / "schema.graphql"


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Commands set up logging for their process, which here is pytest's."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


@pytest.fixture
def shell(database_url: str) -> Shell:
    """On an empty, migrated database of each kind."""
    return Shell({"database_url": database_url})


@pytest.fixture
def sqlite_shell(sqlite_database_url: str) -> Shell:
    """On an empty, migrated SQLite database."""
    return Shell({"database_url": sqlite_database_url})


def put(database_url: str, *, is_corrupt: bool = False, refund: PaymentStatus | None = None) -> None:
    """A sale with one booking of two tickets; one that lies about its stock; or one whose refund failed."""

    async def write() -> None:
        database = Database(database_url)
        sale = await open_sale(database, a_sale())
        async with database.write() as unit:
            await hold(unit, sale, a_booking(sale, tickets=2, hold_until=sale.starts_at))
            await unit.commit()
        if is_corrupt:
            await run_sql(database, "UPDATE sale_stock SET held = 5")
        if refund is not None:
            gone = a_booking(sale, "gone", status=BookingStatus.CANCELLED, payment_status=refund)
            payment = replace(a_payment(gone), status=refund)
            await put_booking(database, replace(gone, payment_id=payment.id))
            async with database.write() as unit:
                await unit.payments.add(payment)
                await unit.commit()
        await database.close()

    anyio.run(write)


def change(database_url: str, sql: str) -> None:
    """What nobody hears of."""

    async def write() -> None:
        database = Database(database_url)
        await run_sql(database, sql)
        await database.close()

    anyio.run(write)


# ---------------------------------------------------------------- help and schema
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    """--help says what it does and needs no settings, not even right ones."""
    result = Shell({"env": "wrong"}).run(command, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: main {command}") and len(result.stdout.splitlines()) > 4


def test_the_list_of_commands_is_complete() -> None:
    """`frontrow --help` names every command, each with a sentence."""
    listed = Shell({}).run("--help").stdout.split("Commands:")[1]
    found = dict(re.findall(r"^  ([a-z-]+) +(\S.*)$", listed, re.MULTILINE))
    assert sorted(found) == sorted(COMMANDS)


def test_the_schema_is_printed_as_it_is_committed() -> None:
    """`frontrow schema` is what schema/schema.graphql is made by."""
    result = Shell({}).run("schema")
    assert (result.exit_code, result.stdout) == (0, SCHEMA.read_text())


# ---------------------------------------------------------------- settings
def test_all_wrong_settings_are_told_at_once() -> None:
    """By name, without a value and without a traceback; nothing is started."""
    lines = Shell({}).refused(
        "serve",
        hold_s="soon",
        payment_timeout_ms="0",
        worker="maybe",
        database_url="mysql://user:hunter2@host/db",
        colour="red",
    )
    text = "\n".join(lines)
    for name in ("HOLD_S", "PAYMENT_TIMEOUT_MS", "WORKER", "DATABASE_URL", "COLOUR"):
        assert f"FRONTROW_{name}" in text
    assert lines[0].endswith("5 settings are wrong:") and len(lines) == 6
    assert "hunter2" not in text


def test_production_refuses_what_is_unsafe_to_sell_with(sqlite_shell: Shell) -> None:
    """No sandbox, no missing secret, no demo; no second process without PostgreSQL and Redis."""
    text = "\n".join(sqlite_shell.refused("serve", env="production", demo="1"))
    for name in ("STRIPE_API_KEY", "STRIPE_WEBHOOK_SECRET", "DEMO"):
        assert f"FRONTROW_{name}" in text
    for arguments, settings in (
        (["serve", "--workers", "2"], {}),
        (["serve"], {"worker": "off"}),
        (["worker"], {}),
    ):
        text = "\n".join(sqlite_shell.refused(*arguments, **settings))
        assert "FRONTROW_DATABASE_URL" in text and "FRONTROW_REDIS_URL" in text


def test_an_unknown_module_or_option_is_a_usage_error(sqlite_shell: Shell) -> None:
    """Exit code 2, as of every command line."""
    for arguments in (["serve", "--without", "booking"], ["serve", "--port", "70000"], ["sell"]):
        assert sqlite_shell.run(*arguments).exit_code == 2


# ---------------------------------------------------------------- the database
def test_an_unmigrated_database_is_refused_with_the_command_to_run(
    postgres_databases: PostgresDatabases,
) -> None:
    """On PostgreSQL by every command that needs tables; `frontrow migrate` makes them, and may repeat."""
    with postgres_databases.empty() as url:
        shell = Shell({"database_url": url})
        for arguments in (
            ["serve", "--port", "0"],
            ["verify"],
            ["refunds"],
            ["create-admin", "--email", "a@example.org", "--name", "A"],
        ):
            (line,) = shell.refused(*arguments, given=f"{PASSWORD}\n", stripe_api_key="sk_test_x")
            assert line.startswith("Error: ") and line.endswith("Run: frontrow migrate")
        for _ in range(2):
            done = shell.run("migrate")
            assert done.exit_code == 0 and done.stdout.endswith("The database is up to date.\n")
        assert shell.run("verify").exit_code == 0


def test_sqlite_migrates_itself(tmp_path: Path) -> None:
    """A file that is not there is made; a folder that is not there is one line of error."""
    assert Shell({"database_url": f"sqlite+aiosqlite:///{tmp_path}/new.db"}).run("verify").exit_code == 0
    (line,) = Shell({"database_url": f"sqlite+aiosqlite:///{tmp_path}/no/new.db"}).refused("verify")
    assert "FRONTROW_DATABASE_URL" in line


def test_a_database_that_does_not_answer_is_one_line() -> None:
    """Nothing listens there: no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    url = f"postgresql+asyncpg://frontrow@127.0.0.1:{port}/frontrow"
    for command in ("verify", "migrate"):
        (line,) = Shell({"database_url": url}).refused(command)
        assert line.startswith("Error: ")


# ---------------------------------------------------------------- create-admin
def test_an_admin_is_created_once(shell: Shell) -> None:
    """The password comes on standard input; a taken address is one line and exit code 1."""
    arguments = ("create-admin", "--email", "Eve@Example.org", "--name", "Eve")
    done = shell.run(*arguments, given=f"{PASSWORD}\n")
    assert (done.exit_code, done.stdout) == (0, "eve@example.org may organise concerts now.\n")
    (line,) = shell.refused(*arguments, given=f"{PASSWORD}\n")
    assert "already an account" in line


def test_an_admin_needs_a_sound_address_name_and_password(shell: Shell) -> None:
    """All that is wrong in one line; then nobody was created."""
    for email, name, password, named in (
        ("eve", " ", "short\n", ("email", "name", "password")),
        ("eve@example.org", "Eve", "", ("password",)),
        ("eve@example.org", "Eve", "\n", ("password",)),
    ):
        (line,) = shell.refused("create-admin", "--email", email, "--name", name, given=password)
        assert all(f"{field}:" in line for field in named), line
    good = shell.run("create-admin", "--email", "eve@example.org", "--name", "Eve", given=PASSWORD)
    assert good.exit_code == 0


# ---------------------------------------------------------------- verify, refunds, rebuild-read-model
def test_verify_finds_what_is_broken(shell: Shell) -> None:
    """0 and every promise holds; with a planted lie 1, and which one it is."""
    put(shell.settings["database_url"])
    sound = shell.run("verify")
    assert sound.exit_code == 0 and sound.stdout.endswith("Every promise holds.\n")
    assert len(sound.stdout.splitlines()) > 3, "it shows what it checks"


def test_verify_names_a_planted_lie(shell: Shell) -> None:
    """Held seats that nobody holds."""
    put(shell.settings["database_url"], is_corrupt=True)
    broken = shell.run("verify")
    assert broken.exit_code == 1
    (line,) = (line for line in broken.stdout.splitlines() if line.startswith("BROKEN"))
    assert "held 5" in line and "hold 2" in line


def test_failed_refunds_are_listed_and_asked_for_again(shell: Shell) -> None:
    """Listed with what an operator needs to find them; with --retry they are on their way again."""
    key = {"stripe_api_key": "sk_test_x"}
    assert shell.run("refunds", **key).stdout == "No refund has failed.\n"
    put(shell.settings["database_url"], refund=PaymentStatus.REFUND_FAILED)
    listed = shell.run("refunds", **key)
    assert listed.exit_code == 0
    assert "pi_p" in listed.stdout and "gone" in listed.stdout and "3500 EUR" in listed.stdout
    assert "frontrow refunds --retry" in listed.stdout
    assert "1 refunds are asked for again" in shell.run("refunds", "--retry", **key).stdout
    assert shell.run("refunds", **key).stdout == "No refund has failed.\n"


def test_the_read_model_is_rebuilt(postgres_database_url: str) -> None:
    """Never filled, flushed or wrong: afterwards it equals the database, and `verify` says so."""
    put(postgres_database_url)
    with running_valkey() as server, Redis.from_url(server.url) as redis:
        shell = Shell({"database_url": postgres_database_url, "redis_url": server.url})
        rebuilt = shell.run("rebuild-read-model")
        assert rebuilt.exit_code == 0, rebuilt.output
        assert rebuilt.stdout.endswith("The read model is rebuilt.\n")
        assert shell.run("verify").exit_code == 0

        change(postgres_database_url, "UPDATE sales SET title = 'Day Trains', version = version + 1")
        broken = shell.run("verify")
        assert broken.exit_code == 1 and "BROKEN read model: " in broken.stdout
        assert shell.run("rebuild-read-model").exit_code == 0
        assert shell.run("verify").exit_code == 0

        redis.flushall()
        assert shell.run("rebuild-read-model").exit_code == 0
        assert shell.run("verify").exit_code == 0
        server.stop()
        assert shell.refused("rebuild-read-model")[-1].startswith("Error: Redis does not answer")


def test_a_read_model_in_memory_needs_no_rebuilding(sqlite_shell: Shell) -> None:
    """One line says why."""
    (line,) = sqlite_shell.refused("rebuild-read-model")
    assert "FRONTROW_REDIS_URL" in line


def test_a_taken_port_is_one_line(sqlite_shell: Shell) -> None:
    """Which address it is, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        (line,) = sqlite_shell.refused("serve", "--port", port)
        assert f"127.0.0.1:{port}" in line and "--port" in line
        (line,) = sqlite_shell.refused("sandbox", "--port", port)
        assert f"127.0.0.1:{port}" in line
