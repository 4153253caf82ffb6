"""How long does a whole visit take: watch, book, pay, be told that it is approved, see it on my page?

Each visit is another buyer's, with a websocket of their own for `myBookingUpdates`; a few come at a time, each the next
as soon as the last has left. A visit counts once my page shows the booking as approved. The processor is the sandbox,
which answers at once and sends its webhooks. CPU is for a whole visit, until the worker has told every event.
"""

import argparse
import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.crowd import Crowd, crowd, quantile
from bench.programs import Program, progress
from bench.sellers import SWITCH
from bench.shop import WEBHOOK_SECRET, Frontrow, Shop, Ticket, open_shop, seed, until_told
from bench.table import Table, arguments, middle, publish
from bench.visits import STEPS, Visits, visiting
from infra.settings import Settings

TEMPLATE = "seeded"
PROGRAMS = ("API", "worker", "PostgreSQL", "Valkey")
COLUMNS = (
    "seller",
    "visits/s",
    *(f"{name}, ms CPU" for name in PROGRAMS),
    "watch, ms p50 / p99",
    "book",
    "pay",
    "told after that",
    "my page",
    "failed",
)


@dataclass(frozen=True)
class Round:
    """One turn. CPU in milliseconds per visit, by program."""

    per_s: float
    cpu_ms: dict[str, float]
    steps_ms: list[dict[str, float]]
    failed: Counter[str]


@dataclass
class Seller:
    """Frontrow in one setting, and the buyers it has seen."""

    house: Frontrow
    programs: dict[str, Program]
    buyers: int = 0

    def round(self, people: Crowd, ticket: Ticket, options: argparse.Namespace) -> Round:
        """One turn, over when the worker has told all of it. Workers of others are asleep."""
        with self.house.worker.awake():
            return self._round(people, ticket, options)

    def _round(self, people: Crowd, ticket: Ticket, options: argparse.Namespace) -> Round:
        cpu_s = {name: program.cpu_s() for name, program in self.programs.items()}
        visits = Visits(
            self.house.port, ticket, options.people, options.seconds, options.warm_up, self.buyers
        )
        seen = people.begin(visiting, visits).result()
        self.buyers += seen.came
        assert self.buyers <= options.buyers, "more --buyers"
        assert seen.right > 0, f"no visit went right: {seen.failed}"
        asyncio.run(until_told(self.house.database_url))
        cpu_ms = {
            name: 1_000 * (program.cpu_s() - cpu_s[name]) / seen.right
            for name, program in self.programs.items()
        }
        return Round(len(seen.steps_ms) / options.seconds, cpu_ms, seen.steps_ms, seen.failed)


def opened(shop: Shop, name: str, settings: Mapping[str, str]) -> Seller:
    """Frontrow with a processor of its own."""
    processor = shop.processor()
    url = shop.database(name, template=TEMPLATE)
    house = shop.frontrow(name, url, settings={"stripe_api_base": processor.url, **settings})
    processor.control(
        webhook_url=f"http://127.0.0.1:{house.port}/webhooks/stripe", webhook_secret=WEBHOOK_SECRET
    )
    valkey = Program("Valkey", house.valkey.pid)
    programs = (house.api, house.worker, shop.database_program, valkey)
    return Seller(house, dict(zip(PROGRAMS, programs, strict=True)))


def measured(options: argparse.Namespace) -> dict[str, list[Round]]:
    """Everybody's rounds, the first of which was thrown away."""
    with open_shop() as shop, crowd() as people:
        (ticket,) = asyncio.run(seed(shop.database(TEMPLATE), concerts=1, buyers=options.buyers))
        sellers = {"Frontrow": opened(shop, "Frontrow", {})}
        if SWITCH in Settings.model_fields:
            sellers["Frontrow, a commit per booking"] = opened(shop, "one by one", {SWITCH: "1"})
        rounds: dict[str, list[Round]] = {name: [] for name in sellers}
        for number in range(options.rounds + 1):
            for name, seller in sellers.items():
                took = seller.round(people, ticket, options)
                if number > 0:
                    rounds[name].append(took)
                progress(f"round {number} of {options.rounds}: {took.per_s:6.1f} visits/s  {name}")
    return rounds


def table_of(rounds: dict[str, list[Round]], people: int) -> Table:
    """Medians of the rounds; all their visits in one heap for the quantiles."""
    number = len(next(iter(rounds.values())))
    note = f"{people} people at a time, median of {number} rounds. Told: from the answer to pay to the push."
    return Table("story", COLUMNS, tuple(_row(name, them) for name, them in rounds.items()), (note,))


def _row(name: str, rounds: Sequence[Round]) -> tuple[str, ...]:
    steps = {step: sorted(visit[step] for each in rounds for visit in each.steps_ms) for step in STEPS}
    failed = sum((each.failed for each in rounds), Counter[str]())
    return (
        name,
        f"{middle([each.per_s for each in rounds]):.1f}",
        *(f"{middle([each.cpu_ms[program] for each in rounds]):.1f}" for program in PROGRAMS),
        *(f"{quantile(ms, 0.5):,.1f} / {quantile(ms, 0.99):,.1f}" for ms in steps.values()),
        ", ".join(f"{count} {what}" for what, count in failed.most_common()) or "0",
    )


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__, seconds=5.0, rounds=3)
    parser.add_argument(
        "--warm-up", type=float, default=0.5, help="before it, seconds (default: %(default)s)"
    )
    parser.add_argument("--people", type=int, default=20, help="at a time (default: %(default)s)")
    parser.add_argument("--buyers", type=int, default=20_000, help="signed in (default: %(default)s)")
    options = parser.parse_args()
    publish(table_of(measured(options), options.people), options)


if __name__ == "__main__":
    main()
