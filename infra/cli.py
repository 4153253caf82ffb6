"""`frontrow`: every command of the house. Each has `--help`; each reports all wrong settings at once."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import ParamSpec, TypeVar

import click

from domain.base import ConcertId, DomainError
from infra import commands, serving
from infra.settings import BadSettings, Command, Settings, load_settings
from infra.telemetry import configure_logging

P = ParamSpec("P")
T = TypeVar("T")
PORT = click.IntRange(0, 65_535)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="frontrow")
def main() -> None:
    """Frontrow sells concert tickets over one GraphQL endpoint. Settings come from FRONTROW_* variables."""


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65_535),
    help="Port; 0 takes a free one.",
)
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Processes; more than one needs PostgreSQL and Redis.",
)
@click.option(
    "--without",
    multiple=True,
    type=click.Choice(["concert"]),
    help="Leave a module out: its fields answer UNAVAILABLE, the rest goes on.",
)
def serve(host: str, port: int, workers: int, without: tuple[str, ...]) -> None:
    """Serve the API: /graphql, /healthz, /readyz, /metrics, /webhooks/stripe."""
    settings = _settings(Command.SERVE, workers=workers)
    _run(serving.serve, settings, host=host, port=port, workers=workers, without=frozenset(without))


@main.command()
def worker() -> None:
    """Relay events, expire holds, settle payments and keep the read model. Any number may run."""
    settings = _settings(Command.WORKER)
    _run_async(serving.work(settings))


@main.command()
def migrate() -> None:
    """Bring the database's tables up to date. SQLite does this by itself at every start."""
    settings = _settings(Command.MIGRATE)
    _run_async(commands.migrate_database(settings, say=click.echo))


@main.command("create-admin")
@click.option("--email", required=True, help="The address to log in with.")
@click.option("--name", required=True, help="The name people see.")
def create_admin(email: str, name: str) -> None:
    """Create somebody who may organise concerts. The password is read from standard input, one line."""
    settings = _settings(Command.CREATE_ADMIN)
    password = _password()
    _run_async(
        commands.create_admin_account(settings, email=email, name=name, password=password, say=click.echo)
    )


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=12111,
    show_default=True,
    type=click.IntRange(0, 65_535),
    help="Port; 0 takes a free one.",
)
@click.option(
    "--state",
    type=click.Path(dir_okay=False),
    help="File that keeps the ledger over restarts. Default: in memory.",
)
def sandbox(host: str, port: int, state: str | None) -> None:
    """Run a card processor for development: Stripe's API subset, /_control to misbehave, /_ledger to compare."""
    settings = _settings(Command.SANDBOX)
    _run_async(serving.serve_sandbox_alone(settings, host=host, port=port, state=state, say=click.echo))


@main.command()
def verify() -> None:
    """Check on the live database what must always be true. Prints every broken promise and exits 1 if there is one."""
    settings = _settings(Command.VERIFY)
    broken = _run_async(commands.verify(settings, say=click.echo))
    sys.exit(1 if broken else 0)


@main.command("resume-sales")
@click.argument("concert_id")
def resume_sales(concert_id: str) -> None:
    """Let a concert sell again whose broken stock was put right; CONCERT_ID as `frontrow verify` names it."""
    settings = _settings(Command.RESUME_SALES)
    faults = _run_async(commands.resume_concert_sales(settings, ConcertId(concert_id), say=click.echo))
    sys.exit(1 if faults else 0)


@main.command("rebuild-read-model")
def rebuild_read_model() -> None:
    """Build my page and the live counts anew from the database, while people read and book."""
    settings = _settings(Command.REBUILD_READ_MODEL)
    _run_async(commands.rebuild_read_model(settings, say=click.echo))


@main.command()
@click.option("--retry", is_flag=True, help="Ask the processor for them again.")
def refunds(retry: bool) -> None:
    """List the refunds that failed and need somebody's attention."""
    settings = _settings(Command.REFUNDS)
    _run_async(commands.failed_refunds(settings, is_retry=retry, say=click.echo))


@main.command()
def schema() -> None:
    """Print the GraphQL schema."""
    from schema.root import build_schema  # strawberry takes half a second that no other command needs

    click.echo(build_schema().as_str())


def _settings(command: Command, *, workers: int = 1) -> Settings:
    try:
        settings = load_settings(command=command, workers=workers)
    except BadSettings as error:
        raise click.ClickException(str(error)) from None
    configure_logging(settings)
    return settings


def _password() -> str:
    if sys.stdin.isatty():
        typed: str = click.prompt("Password", hide_input=True, confirmation_prompt=True)
        return typed
    return sys.stdin.readline().rstrip("\r\n")


def _run(start: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
    """What can go wrong for a person is one line, not a traceback."""
    try:
        start(*args, **kwargs)
    except (serving.CannotStart, DomainError) as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _run_async(work: Coroutine[object, object, T]) -> T:
    result: list[T] = []

    def start() -> None:
        result.append(asyncio.run(work))

    _run(start)
    return result[0]
