"""Starting processes: the API in one or several, a worker, the sandbox."""

import asyncio
import gc
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import click
import httpx
import uvicorn
from pydantic import SecretStr
from sqlalchemy import make_url
from starlette.applications import Starlette

from infra import demo
from infra.app import build_app, composed
from infra.db.durability import unsafe_settings
from infra.db.migrations import is_migrated, migrate
from infra.draining import Processes, drained_at_sigterm
from infra.failpoints import Failpoints
from infra.sandbox import running_sandbox
from infra.settings import Settings
from infra.socket_protocol import SocketProtocol
from infra.telemetry import configure_logging

BACKLOG = 2_048
# Longer than clients and load balancers keep an idle connection, so that none is closed under a new request.
KEEP_ALIVE_S = 75
# The garbage collector's thresholds (Python documentation, `gc.set_threshold`), instead of 700, 10 and 10. An operation
# leaves next to nothing to it, so it looks through those that wait, in vain: with 5,000 a sixth of the time went there.
COLLECT_AFTER = (100_000, 5, 20)
# A sandbox that `serve` starts answers within this, or something is wrong.
SANDBOX_START_S = 10


class CannotStart(Exception):
    """Something outside is not as it must be; the text says what to do."""


def serve(
    settings: Settings,
    *,
    host: str,
    port: int,
    workers: int,
    without: frozenset[str],
    failpoints: Failpoints | None = None,
) -> None:
    """Serve until told to stop. Raises: CannotStart."""
    with (
        _listen(host, port) as listener,
        _processor(
            _reachable(settings, _address(host, listener)),
            webhook_url=f"{_address(host, listener)}/webhooks/stripe",
        ) as complete,
    ):
        asyncio.run(_prepare(complete, without=without))
        config = uvicorn.Config(
            partial(
                _app_of_process,
                complete,
                without=without,
                failpoints=failpoints,
                owns_listener=workers == 1,
            ),
            factory=True,
            log_config=None,
            access_log=False,
            backlog=BACKLOG,
            # With uvloop 0.23 some of 100 busy keep-alive connections starve for seconds (DESIGN.md, "Traps").
            loop="asyncio",
            http="httptools",
            ws=SocketProtocol,
            # deflate costs memory per socket; messages are small
            ws_per_message_deflate=False,
            ws_max_size=complete.max_body_bytes,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=complete.shutdown_grace_s,
            workers=workers,
        )
        click.echo(
            f"Frontrow serves {_address(host, listener)}/graphql (open it in a browser for GraphiQL). Ctrl-C stops it.",
            err=True,
        )
        # uvicorn raises the signal anew once it has stopped: what was opened here is still to be closed then.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        if workers == 1:
            uvicorn.Server(config).run(sockets=[listener])
        else:
            Processes(config, sockets=[listener], drain_s=complete.shutdown_drain_s).run()


async def work(settings: Settings, *, failpoints: Failpoints | None = None) -> None:
    """Do a worker's work until told to stop. Raises: CannotStart."""
    await prepare_database(settings)
    await _check_durability(settings)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with composed(settings, failpoints=failpoints) as frontrow, frontrow.working():
        click.echo("Frontrow worker at work. Ctrl-C stops it.", err=True)
        await stop.wait()


async def serve_sandbox_alone(
    settings: Settings, *, host: str, port: int, state: str | None, say: Callable[[str], None]
) -> None:
    """Run only the sandbox, until told to stop. Raises: CannotStart."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    path = None if state is None else Path(state)
    try:
        async with running_sandbox(host, port, state_path=path) as url:
            say(
                f"Sandbox processor at {url}: set FRONTROW_STRIPE_API_BASE={url} and any FRONTROW_STRIPE_API_KEY."
            )
            await stop.wait()
    except OSError as error:
        raise _cannot_listen(host, port, error) from error


async def prepare_database(settings: Settings) -> None:
    """The tables are as this version needs them. SQLite is migrated; PostgreSQL must have been.

    Raises: CannotStart.
    """
    if settings.is_sqlite:
        folder = Path(make_url(settings.database_url).database or "").parent
        if not folder.is_dir():
            raise CannotStart(f"FRONTROW_DATABASE_URL: there is no folder {folder}")
        await migrate(settings.database_url)
    elif not await is_migrated(settings.database_url):
        raise CannotStart("The database's tables are missing or of another version. Run: frontrow migrate")


async def _check_durability(settings: Settings) -> None:
    """The database keeps what it answers, or nobody minds. Raises: CannotStart.

    Only who takes bookings and money is kept from starting: a server that is not safe can be looked at.
    """
    if settings.is_sqlite or settings.allow_unsafe_database:
        return
    if off := await unsafe_settings(settings.database_url):
        found = " and ".join(f"{name} = off" for name in off)
        raise CannotStart(
            f"PostgreSQL runs with {found}: what was booked and paid can be gone when its machine fails. "
            "Switch it on, or set FRONTROW_ALLOW_UNSAFE_DATABASE=1 where that does no harm."
        )


async def _prepare(settings: Settings, *, without: frozenset[str]) -> None:
    await prepare_database(settings)
    await _check_durability(settings)
    if settings.demo and "concert" not in without:
        async with composed(settings) as frontrow:
            await demo.fill_empty(frontrow.deps, say=partial(click.echo, err=True))


def _app_of_process(
    settings: Settings, *, without: frozenset[str], failpoints: Failpoints | None, owns_listener: bool
) -> Starlette:
    configure_logging(settings)
    app = build_app(settings, without=without, failpoints=failpoints)
    lifespan = app.router.lifespan_context

    @asynccontextmanager
    async def drained_lifespan(app: Starlette) -> AsyncIterator[None]:
        async with lifespan(app):
            _spare_garbage_collector()
            with drained_at_sigterm(app, for_s=settings.shutdown_drain_s, owns_listener=owns_listener):
                yield

    app.router.lifespan_context = drained_lifespan
    return app


def _spare_garbage_collector() -> None:
    """What was made at the start stays as long as the process, so it is not looked through again and again.

    With 700 requests waiting, each full collection stopped everything for 0.3 s, every two seconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise CannotStart(
            f"{host}:{port} can't be listened on: {os.strerror(error.errno or 0)}. Try --port."
        ) from error
    # Accepted sockets inherit it. asyncio sets it only on sockets that it made itself, and without it the second
    # part of an answer waits some 40 ms for an acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.set_inheritable(True)
    return listener


def _cannot_listen(host: str, port: int, error: OSError) -> CannotStart:
    return CannotStart(f"{host}:{port} can't be listened on: {os.strerror(error.errno or 0)}. Try --port.")


def _address(host: str, listener: socket.socket) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"


def _reachable(settings: Settings, address: str) -> Settings:
    """Who says nothing else is reached where this process listens: a bank's page must lead back to it."""
    if "public_url" in settings.model_fields_set:
        return settings
    return settings.model_copy(update={"public_url": address})


@contextmanager
def _processor(settings: Settings, *, webhook_url: str) -> Iterator[Settings]:
    """The settings with a processor in them: Stripe's, or a sandbox that runs beside the API until the end."""
    if not settings.is_sandboxed:
        yield settings
        return
    secret = secrets.token_hex(16)
    with _sandbox_thread(settings) as url:
        httpx.post(
            f"{url}/_control", json={"webhook_url": webhook_url, "webhook_secret": secret}
        ).raise_for_status()
        click.echo(
            f"Sandbox processor at {url} (POST /_control to make it misbehave, GET /_ledger).", err=True
        )
        yield settings.model_copy(
            update={
                "stripe_api_key": SecretStr("sk_test_sandbox"),
                "stripe_api_base": url,
                "stripe_webhook_secret": SecretStr(secret),
            }
        )


@contextmanager
def _sandbox_thread(settings: Settings) -> Iterator[str]:
    """A sandbox on an event loop of its own, so that the API's processes see it over HTTP like any other."""
    url: list[str] = []
    started, loop, stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    async def run() -> None:
        async with running_sandbox(
            "127.0.0.1", settings.sandbox_port, state_path=_sandbox_state(settings)
        ) as base:
            url.append(base)
            started.set()
            await stop.wait()

    def main() -> None:
        try:
            loop.run_until_complete(run())
        finally:
            started.set()
            loop.close()

    thread = threading.Thread(target=main, name="sandbox", daemon=True)
    thread.start()
    started.wait(SANDBOX_START_S)
    if not url:
        raise CannotStart(
            f"The sandbox can't listen on port {settings.sandbox_port}: set FRONTROW_SANDBOX_PORT."
        )
    try:
        yield url[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def _sandbox_state(settings: Settings) -> Path | None:
    """Beside the SQLite file: a refund of tomorrow needs the charge of today."""
    if not settings.is_sqlite:
        return Path("frontrow-sandbox.db")
    database = Path(make_url(settings.database_url).database or "frontrow.db")
    return database.with_name(f"{database.stem}-sandbox.db")
