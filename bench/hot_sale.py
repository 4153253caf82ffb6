"""How many bookings a second does one hot concert sell, and what does one cost?

A hundred keep-alive connections, each booking the next ticket as soon as the last one is answered, always as another
buyer; after that, in the same turn, one connection alone. All sellers run on one PostgreSQL that keeps what it commits,
and take turns in short rounds; the median counts. CPU is that of the server's own process for each booking, that of
PostgreSQL and, where there is one, of the worker until it has told every event. The peers have no login, no
idempotency, no limit per person and no events; the bare route has no login.
"""

import argparse
import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

from bench.crowd import Crowd, Rush, Seen, crowd
from bench.plot import bars
from bench.programs import progress
from bench.sellers import BARE_NAME, EVERYBODY, FRONTROW_NAME, ONE_BY_ONE_NAME, Seller, opened
from bench.shop import Shop, ask, open_shop, seed, until_told
from bench.table import Table, aim, arguments, middle, publish, times

CONNECTIONS = 100
# Our aims.
FASTER, DEARER, P99_MS = 5, 2.2, 250
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
    "alone, ms p50",
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
    alone_ms: float
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
        programs = [seller.server, self.shop.database_program, *([seller.worker] if seller.worker else [])]
        cpu_s = [program.cpu_s() for program in programs]
        seen = self._rush(seller, self.options.connections, self.options.seconds, self.options.warm_up)
        spent_us = [
            1e6 * (program.cpu_s() - was) / seen.acknowledged
            for program, was in zip(programs, cpu_s, strict=True)
        ]
        alone = self._rush(seller, 1, self.options.seconds / 3, self.options.warm_up / 3)
        return Round(
            seen.per_s,
            spent_us[0],
            spent_us[1],
            sum(spent_us[2:]),
            seen.ms(0.5),
            seen.ms(0.99),
            seen.ms(1.0),
            alone.ms(0.5),
            seen.refused,
            1e6 * seen.crowd_cpu_s / seen.asked,
        )

    def _rush(self, seller: Seller, connections: int, seconds: float, warm_up_s: float) -> Seen:
        before = asyncio.run(ask(seller.database_url, COUNT))
        first = self.next_buyer.get(seller.name, 0)
        seen = self.crowd.rush(
            Rush(
                seller.port,
                seller.requests,
                "bookConcert",
                "BookConcertSuccess",
                connections=connections,
                seconds=seconds,
                warm_up_s=warm_up_s,
                first_buyer=first,
            )
        )
        self.next_buyer[seller.name] = first + seen.asked
        assert seller.worker is None or first + seen.asked <= self.options.buyers, "more --buyers"
        if seller.worker is not None:
            asyncio.run(until_told(seller.database_url))
        assert seen.acknowledged > 0, f"{seller.name} sold nothing: {seen.refused}"
        booked = asyncio.run(ask(seller.database_url, COUNT)) - before
        # What was not answered, or with an error, may have been booked all the same.
        told = f"{seller.name}: {seen.acknowledged} of {seen.asked} acknowledged, {booked} booked"
        assert seen.acknowledged <= booked <= seen.asked, told
        return seen


def measured(options: argparse.Namespace, *, concerts: int) -> dict[str, list[Round]]:
    """Every seller's rounds, those that were thrown away to warm up not among them."""
    with open_shop() as shop, crowd() as people:
        url = shop.database(TEMPLATE)
        tickets = asyncio.run(seed(url, concerts=concerts, buyers=options.buyers))
        sellers = opened(shop, options.only, tickets, template=TEMPLATE)
        turns = Turns(shop, people, options, {})
        rounds: dict[str, list[Round]] = {seller.name: [] for seller in sellers}
        for number in range(options.rounds + 1):
            # There and back again, so that nobody always comes after the same neighbour.
            for seller in sellers if number % 2 == 0 else reversed(sellers):
                took = turns.take(seller)
                if number > 0:
                    rounds[seller.name].append(took)
                progress(f"round {number} of {options.rounds}: {took.per_s:7.0f}/s  {seller.name}")
    return rounds


def table_of(name: str, rounds: dict[str, list[Round]]) -> Table:
    """Medians, and how many times as fast Frontrow is."""
    middles = {seller: _middle(them) for seller, them in rounds.items()}
    rows = [_row(seller, middles) for seller in rounds]
    crowd_us = middle([each.crowd_us for them in rounds.values() for each in them])
    number = len(next(iter(rounds.values())))
    note = (
        f"Median of {number} rounds, in turns. The crowd itself computed {crowd_us:.0f} us for each booking."
    )
    return Table(
        name,
        COLUMNS,
        tuple(rows),
        (note,),
        picture=bars(
            {seller: each.per_s for seller, each in middles.items()},
            unit="bookings/s",
            highlighted=FRONTROW_NAME,
        ),
        picture_shows="Bookings per second by seller",
    )


def _middle(rounds: Sequence[Round]) -> Round:
    """The medians; of longest the longest, of refusals all."""

    def mid(name: str) -> float:
        return middle([getattr(each, name) for each in rounds])

    return Round(
        per_s=mid("per_s"),
        server_us=mid("server_us"),
        database_us=mid("database_us"),
        worker_us=mid("worker_us"),
        p50_ms=mid("p50_ms"),
        p99_ms=mid("p99_ms"),
        longest_ms=max(each.longest_ms for each in rounds),
        alone_ms=mid("alone_ms"),
        refused=sum((each.refused for each in rounds), Counter[str]()),
        crowd_us=mid("crowd_us"),
    )


def aims_of(rounds: dict[str, list[Round]]) -> tuple[str, ...]:
    """Which aims of ours for one hot concert are met, those that can be told."""
    middles = {seller: _middle(them) for seller, them in rounds.items()}
    ours = middles.get(FRONTROW_NAME)
    if ours is None:
        return ()
    aims = [
        aim(
            f"at least {FASTER} times as many bookings as {name}",
            found=f"{ours.per_s / middles[name].per_s:.2f}x",
            is_met=ours.per_s >= FASTER * middles[name].per_s,
        )
        for name in ("strawberry, row lock", "graphql-yoga, row lock")
        if name in middles
    ]
    if bare := middles.get(BARE_NAME):
        what = f"at most {DEARER} times the CPU of a bare route that calls the same use case"
        is_met = ours.server_us <= DEARER * bare.server_us
        aims.append(aim(what, found=f"{ours.server_us / bare.server_us:.2f}x", is_met=is_met))
    what, found = f"p99 at most {P99_MS} ms", f"{ours.p99_ms:,.0f} ms"
    aims.append(aim(what, found=found, is_met=ours.p99_ms <= P99_MS))
    if one_by_one := middles.get(ONE_BY_ONE_NAME):
        found = f"{ours.alone_ms:.1f} ms against {one_by_one.alone_ms:.1f} ms"
        # A tenth is what two rounds of the same server differ by.
        is_met = ours.alone_ms <= 1.1 * one_by_one.alone_ms
        aims.append(
            aim("one booking alone no slower than with a commit for each", found=found, is_met=is_met)
        )
    return tuple(aims)


def _row(seller: str, middles: dict[str, Round]) -> tuple[str, ...]:
    mid, ours, bare = middles[seller], middles.get(FRONTROW_NAME), middles.get(BARE_NAME)
    return (
        seller,
        times(ours.per_s, mid.per_s) if ours else "-",
        f"{mid.per_s:,.0f}",
        f"{mid.server_us:,.0f}",
        times(mid.server_us, bare.server_us) if bare else "-",
        f"{mid.database_us:,.0f}",
        f"{mid.worker_us:,.0f}" if mid.worker_us else "-",
        f"{mid.p50_ms:,.1f}",
        f"{mid.p99_ms:,.1f}",
        f"{mid.longest_ms:,.0f}",
        f"{mid.alone_ms:,.1f}",
        ", ".join(f"{count} {code}" for code, count in mid.refused.most_common()) or "0",
    )


def options_of(text: str | None, *, sellers: Sequence[str]) -> argparse.ArgumentParser:
    """What this measurement and the one over many concerts may be told. `sellers` take part unless others are named."""
    parser = arguments(text, seconds=2.0, rounds=3)
    parser.add_argument(
        "--warm-up", type=float, default=0.5, help="before it, seconds (default: %(default)s)"
    )
    parser.add_argument("--connections", type=int, default=CONNECTIONS, help="(default: %(default)s)")
    parser.add_argument("--buyers", type=int, default=100_000, help="signed in at each of ours")
    parser.add_argument(
        "--only", nargs="+", default=tuple(sellers), choices=tuple(EVERYBODY), help="who takes part"
    )
    return parser


def main() -> None:
    """Print the table."""
    options = options_of(__doc__, sellers=tuple(EVERYBODY)).parse_args()
    rounds = measured(options, concerts=1)
    publish(replace(table_of("hot-sale", rounds), aims=aims_of(rounds)), options)


if __name__ == "__main__":
    main()
