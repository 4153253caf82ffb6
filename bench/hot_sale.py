"""How many bookings a second does one hot concert sell, and what does one cost?

A hundred keep-alive connections, each booking the next ticket as soon as the last one is answered, always as another
buyer. All sellers run on one PostgreSQL that keeps what it commits, and take turns in short rounds; the median counts.
CPU is that of the server's own process for each booking, that of PostgreSQL and, where there is one, of the worker
until it has told every event. The peers have no login, no idempotency, no limit per person and no events.
"""

import argparse
import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from bench.crowd import Crowd, Rush, crowd
from bench.plot import bars
from bench.programs import progress
from bench.sellers import BARE_NAME, EVERYBODY, FRONTROW_NAME, Seller, opened
from bench.shop import Shop, ask, open_shop, seed, until_told
from bench.table import Table, arguments, middle, publish, times

CONNECTIONS = 100
TEMPLATE = "seeded"
COUNT = "SELECT count(*) FROM bookings"
COLUMNS = (
    "seller",
    "Frontrow is",
    "bookings/s",
    "CPU of server, us",
    "against the bare route",
    "PostgreSQL, us",
    "worker, us",
    "ms p50",
    "p99",
    "longest",
    "refused",
)


@dataclass(frozen=True)
class Round:
    """One seller's turn. CPU in microseconds per booking."""

    per_s: float
    server_us: float
    database_us: float
    worker_us: float
    p50_ms: float
    p99_ms: float
    longest_ms: float
    refused: Counter[str]
    crowd_us: float


@dataclass
class Turns:
    """Whose turn it is, and which buyers are next."""

    shop: Shop
    crowd: Crowd
    options: argparse.Namespace
    next_buyer: dict[str, int]

    def take(self, seller: Seller) -> Round:
        """One round, over when the worker has told all of it. Workers of others are asleep.

        Raises: AssertionError where a booking is missing.
        """
        with seller.worker.awake() if seller.worker else nullcontext():
            return self._take(seller)

    def _take(self, seller: Seller) -> Round:
        before = asyncio.run(ask(seller.database_url, COUNT))
        programs = [seller.server, self.shop.database_program, *([seller.worker] if seller.worker else [])]
        cpu_s = [program.cpu_s() for program in programs]
        first = self.next_buyer.get(seller.name, 0)
        seen = self.crowd.rush(
            Rush(
                seller.port,
                seller.requests,
                "bookConcert",
                "BookConcertSuccess",
                connections=self.options.connections,
                seconds=self.options.seconds,
                warm_up_s=self.options.warm_up,
                first_buyer=first,
            )
        )
        self.next_buyer[seller.name] = first + seen.asked
        assert self.next_buyer[seller.name] <= self.options.buyers or seller.worker is None, "more --buyers"
        if seller.worker is not None:
            asyncio.run(until_told(seller.database_url))
        booked = asyncio.run(ask(seller.database_url, COUNT)) - before
        assert booked == seen.acknowledged, f"{seller.name}: {seen.acknowledged} answered, {booked} booked"
        assert booked > 0, f"{seller.name} sold nothing: {seen.refused}"
        spent = [1e6 * (program.cpu_s() - was) / booked for program, was in zip(programs, cpu_s, strict=True)]
        return Round(
            seen.per_s,
            spent[0],
            spent[1],
            sum(spent[2:]),
            seen.ms(0.5),
            seen.ms(0.99),
            seen.ms(1.0),
            seen.refused,
            1e6 * seen.crowd_cpu_s / seen.asked,
        )


def measured(options: argparse.Namespace, *, concerts: int) -> dict[str, list[Round]]:
    """Every seller's rounds, those that were thrown away to warm up not among them."""
    with open_shop() as shop, crowd() as people:
        url = shop.database(TEMPLATE)
        tickets = asyncio.run(seed(url, concerts=concerts, buyers=options.buyers))
        sellers = opened(shop, options.only or tuple(EVERYBODY), tickets, template=TEMPLATE)
        turns = Turns(shop, people, options, {})
        rounds: dict[str, list[Round]] = {seller.name: [] for seller in sellers}
        for number in range(options.rounds + 1):
            for seller in sellers:
                took = turns.take(seller)
                if number > 0:
                    rounds[seller.name].append(took)
                progress(f"round {number} of {options.rounds}: {took.per_s:7.0f}/s  {seller.name}")
    return rounds


def table_of(name: str, rounds: dict[str, list[Round]]) -> Table:
    """Medians, and how many times as fast Frontrow is."""
    rate = {seller: middle([each.per_s for each in them]) for seller, them in rounds.items()}
    bare_us = middle([each.server_us for each in rounds.get(BARE_NAME, [])])
    rows = [
        _row(seller, them, ours=rate.get(FRONTROW_NAME, 0.0), bare_us=bare_us)
        for seller, them in rounds.items()
    ]
    crowd_us = middle([each.crowd_us for them in rounds.values() for each in them])
    number = len(next(iter(rounds.values())))
    return Table(
        name,
        COLUMNS,
        tuple(rows),
        (
            f"Median of {number} rounds, in turns. The crowd itself computed {crowd_us:.0f} us for each booking.",
        ),
        picture=bars(rate, unit="bookings/s", highlighted=FRONTROW_NAME),
        picture_shows="Bookings per second by seller",
    )


def _row(seller: str, rounds: Sequence[Round], *, ours: float, bare_us: float) -> tuple[str, ...]:
    def mid(name: str) -> float:
        return middle([getattr(each, name) for each in rounds])

    refused = sum((each.refused for each in rounds), Counter[str]())
    return (
        seller,
        times(ours, mid("per_s")),
        f"{mid('per_s'):,.0f}",
        f"{mid('server_us'):,.0f}",
        times(mid("server_us"), bare_us),
        f"{mid('database_us'):,.0f}",
        f"{mid('worker_us'):,.0f}" if mid("worker_us") else "-",
        f"{mid('p50_ms'):,.1f}",
        f"{mid('p99_ms'):,.1f}",
        f"{max(each.longest_ms for each in rounds):,.0f}",
        ", ".join(f"{count} {code}" for code, count in refused.most_common()) or "0",
    )


def options_of(text: str | None) -> argparse.ArgumentParser:
    """What this measurement and the one over many concerts may be told."""
    parser = arguments(text, seconds=3.0, rounds=3)
    parser.add_argument(
        "--warm-up", type=float, default=0.5, help="before it, seconds (default: %(default)s)"
    )
    parser.add_argument("--connections", type=int, default=CONNECTIONS, help="(default: %(default)s)")
    parser.add_argument("--buyers", type=int, default=100_000, help="signed in at each of ours")
    parser.add_argument(
        "--only", action="append", choices=tuple(EVERYBODY), help="may be given several times"
    )
    return parser


def main() -> None:
    """Print the table."""
    options = options_of(__doc__).parse_args()
    publish(table_of("hot-sale", measured(options, concerts=1)), options)


if __name__ == "__main__":
    main()
