"""Programs that a measurement starts: what they cost, read from /proc, and their end."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

START_LIMIT_S = 60.0
STOP_LIMIT_S = 15.0
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Program:
    """One that runs, with everything it has started."""

    name: str
    pid: int

    def cpu_s(self) -> float:
        """What it and everyone below it have computed so far, those that have ended included."""
        return _cpu_s(self.pid)

    def memory_bytes(self) -> int:
        """What it alone holds in memory now, without what it shares with others."""
        lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()
        sizes = {line.split(":")[0]: line.split(":")[1] for line in lines[1:]}
        return int(sizes["Pss"].split()[0]) * 1024

    @contextmanager
    def awake(self) -> Iterator[None]:
        """At work until the block ends, then asleep: even a worker with nothing to do computes a little."""
        os.kill(self.pid, signal.SIGCONT)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGSTOP)


@contextmanager
def running(
    name: str,
    command: Sequence[str],
    *,
    environ: Mapping[str, str],
    folder: Path,
    port: int | None = None,
    ready_path: str | None = None,
) -> Iterator[Program]:
    """A program, once it listens on `port` or answers 200 there; told to stop in the end.

    What it says is in a file of `folder`.

    Raises: RuntimeError with the end of that file where it does not start.
    """
    log = _log(folder, name)
    with _started(command, environ, log) as started:
        deadline_s = time.monotonic() + START_LIMIT_S
        while port is not None and not _is_ready(port, ready_path):
            if started.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"{name} does not start: {_end_of(log)}")
            time.sleep(0.02)
        yield Program(name, started.pid)
        if started.poll() is not None:
            raise RuntimeError(f"{name} ended by itself: {_end_of(log)}")


def done(name: str, command: Sequence[str], *, environ: Mapping[str, str], folder: Path) -> None:
    """A program that ended well. What it says is in a file of `folder`. Raises: RuntimeError with the end of that."""
    log = _log(folder, name)
    with _started(command, environ, log) as started:
        if started.wait() != 0:
            raise RuntimeError(f"{name} failed: {_end_of(log)}")


def progress(text: str) -> None:
    """A line for who waits, on standard error."""
    print(text, file=sys.stderr, flush=True)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _started(
    command: Sequence[str], environ: Mapping[str, str], log: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """A program that may have ended meanwhile; told to stop if not."""
    with log.open("ab") as output:
        started = subprocess.Popen(
            command,
            cwd=ROOT,
            env=_clean(os.environ) | dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for the measurement, which then stops it.
        )
    try:
        yield started
    finally:
        started.send_signal(signal.SIGTERM)
        started.send_signal(signal.SIGCONT)  # it may be asleep
        try:
            started.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def _log(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(' ', '-')}.log"


def _end_of(log: Path) -> str:
    """Where a program says why it failed."""
    return log.read_text(errors="replace")[-2000:]


def _is_ready(port: int, path: str | None) -> bool:
    with suppress(OSError), closing(HTTPConnection("127.0.0.1", port, timeout=5.0)) as connection:
        connection.connect()
        if path is None:
            return True
        connection.request("GET", path)
        return connection.getresponse().status == 200
    return False


def _clean(environ: Mapping[str, str]) -> dict[str, str]:
    """Without anybody's settings for Frontrow."""
    return {name: value for name, value in environ.items() if not name.startswith("FRONTROW_")}


def _cpu_s(pid: int) -> float:
    """The scheduler's own count in nanoseconds for who lives, clock ticks for who has ended."""
    total_s = 0.0
    with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile, and its parent counts it
        for task in Path(f"/proc/{pid}/task").iterdir():
            total_s += int((task / "schedstat").read_text().split()[0]) / 1e9
            for child in (task / "children").read_text().split():
                total_s += _cpu_s(int(child))
        # proc(5): after the name, which may hold anything, `cutime` and `cstime` are the 14th and 15th.
        ended = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[13:15]
        total_s += sum(map(int, ended)) / os.sysconf("SC_CLK_TCK")
    return total_s
