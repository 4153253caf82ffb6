"""Frontrow processes that start in a moment and can be told to die at a named point.

Importing everything takes a process two seconds, starting from there a fifth of one. So one process imports, and forks
into `frontrow serve` and `frontrow worker`, over and over; what runs in a child is what the commands run.
"""

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from infra import serving
from infra.failpoints import Action, Failpoints
from infra.settings import Settings
from infra.telemetry import configure_logging
from tests.servers import wait_until

Json = dict[str, Any]

PATIENCE_S = 30.0
NAP_S = 0.005


# ---------------------------------------------------------------- seen from a test
@dataclass
class Child:
    """One Frontrow process. `reached` are the points that it came to since they were armed, in order."""

    number: int
    pid: int
    server: "ForkServer"
    reached: list[str] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)
    has_seen_all: threading.Event = field(default_factory=threading.Event)
    exit_status: int | None = None

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self.exit_status is None

    def arm(self, point: str, action: Action, *, after: int = 0) -> None:
        """What happens at the point, once, after it was passed `after` times; it has not been reached since."""
        while point in self.reached:
            self.reached.remove(point)
        self.server.tell(self.number, {"arm": point, "action": action.value, "after": after})

    def disarm(self) -> None:
        """Nothing happens at any point any more."""
        self.server.tell(self.number, {"disarm": True})

    def resume(self) -> None:
        """What stands still at a point goes on."""
        self.server.tell(self.number, {"resume": True})

    async def points(self) -> dict[str, int]:
        """How often each point was passed so far."""
        self.seen.clear()
        self.has_seen_all.clear()
        self.server.tell(self.number, {"seen": True})
        await self._until(self.has_seen_all.is_set)
        return dict(self.seen)

    async def reaches(self, point: str) -> None:
        """The armed point was come to. Raises: TimeoutError."""
        await self._until(lambda: point in self.reached)

    async def ends(self) -> int:
        """Its exit status as `os.waitpid` gives it, once it has ended. Raises: TimeoutError."""
        await self._until(lambda: not self.is_alive)
        assert self.exit_status is not None
        return self.exit_status

    def kill(self) -> None:
        """kill -9. May repeat."""
        self.signal(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        if self.is_alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def _until(self, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"process {self.number}: still not so after {PATIENCE_S} s")
            await asyncio.sleep(NAP_S)


class ForkServer:
    """Starts children. Concurrency: one test at a time; usable from any event loop."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self._children: dict[int, Child] = {}
        self._started = threading.Condition()
        self._next = 0
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def kill_all(self) -> None:
        """No child runs any more. Raises: TimeoutError."""
        for child in list(self._children.values()):
            child.kill()
        wait_until(lambda: not any(child.is_alive for child in self._children.values()), limit_s=PATIENCE_S)

    def close(self) -> None:
        """All children are killed, and nothing of it is left."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)
        self._listener.join(PATIENCE_S)
        self._process.stdout.close()

    def serve(self, settings: Json, *, port: int, log: Path, armed: dict[str, Action] | None = None) -> Child:
        """`frontrow serve` with these settings, its worker inside unless they say otherwise."""
        return self._start({"role": "serve", "settings": settings, "port": port, "log": str(log)}, armed)

    def work(self, settings: Json, *, log: Path, armed: dict[str, Action] | None = None) -> Child:
        """`frontrow worker`."""
        return self._start({"role": "worker", "settings": settings, "log": str(log)}, armed)

    def tell(self, number: int, order: Json) -> None:
        """Say something to a child; one that has died does not hear it."""
        self._send(order | {"to": number})

    def _start(self, order: Json, armed: dict[str, Action] | None) -> Child:
        number = self._next
        self._next += 1
        points = {point: action.value for point, action in (armed or {}).items()}
        with self._started:
            self._send(order | {"fork": number, "armed": points})
            is_there = self._started.wait_for(lambda: number in self._children, timeout=PATIENCE_S)
        assert is_there, "the fork server does not answer"
        return self._children[number]

    def _send(self, order: Json) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            with self._started:
                if "pid" in said:
                    self._children[said["number"]] = Child(said["number"], said["pid"], self)
                    self._started.notify_all()
                    continue
            child = self._children[said["number"]]
            if "reached" in said:
                child.reached.append(said["reached"])
            elif "seen" in said:
                child.seen |= said["seen"]
            elif "seen_all" in said:
                child.has_seen_all.set()
            elif "exit" in said:
                child.exit_status = said["exit"]


@contextmanager
def running_fork_server() -> Iterator[ForkServer]:
    """One for many tests; it and all its children end with the block, or with this process."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FRONTROW_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.fork_server"],
        cwd=Path(__file__).parents[2],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    server = ForkServer(process)
    try:
        yield server
    finally:
        server.close()


# ---------------------------------------------------------------- seen from inside
def main() -> None:
    """Fork for every order, pass orders on to children, tell of their ends; over when standard input is."""
    controls: dict[int, BinaryIO] = {}
    numbers: dict[int, int] = {}
    pending = b""
    while True:
        readable, _, _ = select.select([0], [], [], 0.02)
        _tell_ends(numbers, controls)
        if not readable:
            continue
        chunk = os.read(0, 65_536)
        if not chunk:
            break
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            order = json.loads(line)
            if "fork" in order:
                _fork(order, numbers, controls)
            elif order["to"] in controls:
                with suppress(BrokenPipeError):
                    controls[order["to"]].write(line + b"\n")
    for pid in numbers:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _fork(order: Json, numbers: dict[int, int], controls: dict[int, BinaryIO]) -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        for other in controls.values():
            os.close(other.fileno())
        _child(order, reading)
    os.close(reading)
    numbers[pid] = order["fork"]
    controls[order["fork"]] = os.fdopen(writing, "wb", buffering=0)
    _say({"number": order["fork"], "pid": pid})


def _tell_ends(numbers: dict[int, int], controls: dict[int, BinaryIO]) -> None:
    while numbers:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        number = numbers.pop(pid)
        controls.pop(number).close()
        _say({"number": number, "exit": status})


def _child(order: Json, reading: int) -> None:
    """Never returns."""
    status = 70
    try:
        # What it prints goes into its log, and does not mingle with what it reports.
        reports = os.dup(1)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        number = order["fork"]
        failpoints = Failpoints(lambda point: _say({"number": number, "reached": point}, to=reports))
        for point, action in order["armed"].items():
            failpoints.arm(point, Action(action))
        threading.Thread(target=_obey, args=(number, reading, reports, failpoints), daemon=True).start()
        settings = Settings(**({"allow_unsafe_database": True} | order["settings"]))
        configure_logging(settings)
        if order["role"] == "worker":
            asyncio.run(serving.work(settings, failpoints=failpoints))
        else:
            serving.serve(
                settings,
                host="127.0.0.1",
                port=order["port"],
                workers=1,
                without=frozenset(),
                failpoints=failpoints,
            )
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException as error:
        os.write(2, f"child ended: {error!r}\n".encode())
    finally:
        os._exit(status)


def _obey(number: int, reading: int, reports: int, failpoints: Failpoints) -> None:
    with os.fdopen(reading, "rb") as orders:
        for line in orders:
            order = json.loads(line)
            if "arm" in order:
                failpoints.arm(order["arm"], Action(order["action"]), after=order["after"])
            elif "disarm" in order:
                failpoints.disarm()
            elif "resume" in order:
                failpoints.resume()
            elif "seen" in order:
                for point, times in dict(failpoints.seen).items():
                    _say({"number": number, "seen": {point: times}}, to=reports)
                _say({"number": number, "seen_all": True}, to=reports)


def _say(fact: Json, *, to: int = 1) -> None:
    # One write, so that what several processes say to one pipe does not mingle (POSIX, write, PIPE_BUF).
    line = json.dumps(fact).encode() + b"\n"
    os.write(to, line)


if __name__ == "__main__":
    main()
