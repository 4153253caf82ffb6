"""Running commands as an operator does, in this process or in one of its own."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Timer

from click.testing import CliRunner, Result

from infra.cli import main
from tests.client import HASH_KIB

PATIENCE_S = 30.0
_ALWAYS: dict[str, str | None] = {
    # The tests' PostgreSQL forgets everything when its machine fails, and so do they.
    "FRONTROW_ALLOW_UNSAFE_DATABASE": "1",
    "FRONTROW_PASSWORD_MEMORY_KIB": str(HASH_KIB),
}


@dataclass(frozen=True)
class Shell:
    """Runs commands with nothing but these settings, on any database. In a process of its own it runs `program`."""

    settings: dict[str, str]
    program: tuple[str, ...] = ("-c", "from infra.cli import main; main()")

    def run(self, *arguments: str, given: str | None = None, **settings: str) -> Result:
        """One command in this process; `given` stands on its standard input."""
        result = CliRunner().invoke(main, arguments, input=given, env=self._environ(settings))
        # SystemExit is how a command ends; anything else would be a traceback.
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        assert "Traceback" not in result.output
        return result

    def refused(self, *arguments: str, given: str | None = None, **settings: str) -> list[str]:
        """The lines of an error that ended the command with 1."""
        result = self.run(*arguments, given=given, **settings)
        assert result.exit_code == 1, result.output
        assert result.stdout == ""
        return result.stderr.splitlines()

    @contextmanager
    def running(self, *arguments: str, **settings: str) -> Iterator["Running"]:
        """One command in a process of its own, killed in the end if it still runs."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("FRONTROW_")}
        environ |= {name: value for name, value in self._environ(settings).items() if value is not None}
        process = subprocess.Popen(
            [sys.executable, *self.program, *arguments],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield Running(process, [])
        finally:
            process.kill()
            process.communicate()

    def _environ(self, more: dict[str, str]) -> dict[str, str | None]:
        none: dict[str, str | None] = {name: None for name in os.environ if name.startswith("FRONTROW_")}
        given = {f"FRONTROW_{name.upper()}": value for name, value in (self.settings | more).items()}
        return none | _ALWAYS | given


@dataclass
class Running:
    """A process, and what it has said."""

    process: subprocess.Popen[str]
    said: list[str]

    def hears(self, pattern: str) -> re.Match[str]:
        """The first line, from here on, that matches."""
        assert self.process.stdout is not None
        with _alarm(self.process):
            for line in self.process.stdout:
                self.said.append(line)
                if match := re.search(pattern, line):
                    return match
        raise AssertionError(f"{pattern!r} was never said: {self.said}")

    def ends(self) -> int:
        """Told to stop: its exit code."""
        self.process.send_signal(signal.SIGTERM)
        rest, _ = self.process.communicate(timeout=PATIENCE_S)
        self.said += rest.splitlines(keepends=True)
        return self.process.returncode


@contextmanager
def _alarm(process: subprocess.Popen[str]) -> Iterator[None]:
    """Kill it when patience ends, so that reading from it ends too."""
    timer = Timer(PATIENCE_S, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
