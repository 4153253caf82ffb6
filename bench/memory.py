"""Does a process that sells for minutes on end keep growing?

Visits as in `python -m bench.story`, one after the other for `--minutes`, while the memory of the API process, the
worker and Valkey is read every second (Pss). What counts is the second half: by then what is kept once is there.
"""

import argparse
import asyncio
import time
from dataclasses import dataclass

from bench.crowd import crowd
from bench.plot import lines
from bench.programs import progress
from bench.shop import open_shop, seed
from bench.story import TEMPLATE, opened
from bench.table import Table, arguments, publish
from bench.visits import Visits, visiting

PROGRAMS = ("API", "worker", "Valkey")
SAMPLE_EVERY_S = 1.0
MIB = 1024**2
COLUMNS = (
    "process",
    "MiB after a tenth",
    "half-way",
    "at the end",
    "second half, KiB a minute",
    "bytes for each visit",
)


@dataclass(frozen=True)
class Grown:
    """Samples of one process: seconds since the start and bytes, and how many visits there were in all."""

    samples: list[tuple[float, int]]
    visits: int

    def cells(self) -> tuple[str, ...]:
        """As it is printed."""
        tenth, half, end = (self._around(part) for part in (0.1, 0.5, 1.0))
        half_minutes = self.samples[-1][0] / 2 / 60
        return (
            *(f"{value / MIB:.1f}" for value in (tenth, half, end)),
            f"{(end - half) / 1024 / half_minutes:+,.0f}",
            f"{(end - half) / (self.visits / 2):+,.0f}",
        )

    def _around(self, part: float) -> float:
        """The mean of a few samples that end there: garbage comes and goes."""
        at = max(1, round(part * len(self.samples)))
        few = self.samples[max(0, at - 5) : at]
        return sum(value for _, value in few) / len(few)


def measured(options: argparse.Namespace) -> dict[str, Grown]:
    """Each process's samples."""
    seconds = 60 * options.minutes
    with open_shop() as shop, crowd() as people:
        (ticket,) = asyncio.run(seed(shop.database(TEMPLATE), concerts=1, buyers=options.buyers))
        seller = opened(shop, "Frontrow", {})
        samples: dict[str, list[tuple[float, int]]] = {name: [] for name in PROGRAMS}
        began_s = time.monotonic()
        visits = Visits(seller.house.port, ticket, options.people, seconds, 0.0, 0)
        visited = people.begin(visiting, visits)
        while (now_s := time.monotonic() - began_s) < seconds:
            for name in PROGRAMS:
                samples[name].append((now_s, seller.programs[name].memory_bytes()))
            time.sleep(SAMPLE_EVERY_S)
        seen = visited.result()
    assert seen.came <= options.buyers, "more --buyers"
    progress(f"{seen.right:,} visits, {sum(seen.failed.values())} failed: {dict(seen.failed)}")
    return {name: Grown(each, seen.right) for name, each in samples.items()}


def table_of(grown: dict[str, Grown], minutes: float) -> Table:
    """A line for each process, and all of the time as a picture."""
    rows = tuple((name, *each.cells()) for name, each in grown.items())
    visits = next(iter(grown.values())).visits
    note = f"{visits:,} visits in {minutes:g} minutes. Valkey holds every booking of the read model, so it must grow."
    series = {name: [(at_s / 60, size / MIB) for at_s, size in each.samples] for name, each in grown.items()}
    picture = lines(series, title="Memory, MiB", x_name="minutes")
    return Table("memory", COLUMNS, rows, (note,), picture=picture, picture_shows="Memory over time")


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="(default: %(default)s)")
    parser.add_argument("--people", type=int, default=10, help="at a time (default: %(default)s)")
    parser.add_argument("--buyers", type=int, default=200_000, help="signed in (default: %(default)s)")
    options = parser.parse_args()
    publish(table_of(measured(options), options.minutes), options)


if __name__ == "__main__":
    main()
