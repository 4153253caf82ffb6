"""`python -m tests.faults.storm --minutes 30 [--seed N]`: run it, print its table, exit 1 if a promise broke."""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.storm.report import table
from tests.faults.storm.rounds import run


def main() -> None:
    """Everything is on loopback, and ends with the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.storm", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="under load and faults (default: 30)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--buyers", type=int, default=40, help="people who buy at once (default: 40)")
    parser.add_argument(
        "--round-s", type=float, default=120.0, help="seconds between two judgements (default: 120)"
    )
    parser.add_argument("--keep", type=Path, help="folder for logs and, after a violation, the evidence")
    asked = parser.parse_args()
    folder = asked.keep or Path(tempfile.mkdtemp(prefix="frontrow-storm-"))
    folder.mkdir(parents=True, exist_ok=True)

    def tell(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    tell(f"seed {asked.seed}, logs in {folder}")
    storm = asyncio.run(
        run(
            seed=asked.seed,
            load_s=asked.minutes * 60,
            round_s=asked.round_s,
            buyers=asked.buyers,
            folder=folder,
            tell=tell,
        )
    )
    print(table(storm))
    for violation in storm.violations:
        print(violation)
    sys.exit(1 if storm.violations else 0)


if __name__ == "__main__":
    main()
