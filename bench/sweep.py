"""Does a hot concert go on selling while tens of thousands of its unpaid holds expire at once?

People hold `--holds` seats; then a hundred connections book, first with nothing to sweep and then from the moment at
which all those holds have passed, for `--seconds` each, in one run against one API process and one worker.
"""

import argparse
import asyncio
from dataclasses import dataclass

from bench.crowd import Crowd, Rush, Seen, crowd
from bench.programs import progress
from bench.questions import booking
from bench.shop import Frontrow, Ticket, ask, connect, open_shop, seed, until_told, viewer_of
from bench.table import Table, aim, arguments, publish, times
from domain.booking import Quantity
from domain.ports import Deps
from domain.use_cases.booking import BookConcert, book_concert
from infra.app import composed
from infra.settings import Settings

AT_ONCE = 200
# Selling is not stalled while it keeps this part of its rate.
LEFT = 0.5
PASS = "UPDATE bookings SET hold_until = clock_timestamp() - interval '1 s' WHERE status = 'AWAITING_PAYMENT'"
EXPIRED = "SELECT count(*) FROM bookings WHERE status = 'EXPIRED'"
COLUMNS = ("meanwhile", "bookings/s", "against nothing", "ms p50", "p99", "longest", "holds expired/s")


@dataclass(frozen=True)
class Spell:
    """One rush, and how many holds expired in it."""

    meanwhile: str
    seen: Seen
    expired: int

    def row(self, first: "Spell") -> tuple[str, ...]:
        """As it is printed."""
        seen = self.seen
        return (
            self.meanwhile,
            f"{seen.per_s:,.0f}",
            times(seen.per_s, first.seen.per_s),
            *(f"{seen.ms(part):,.1f}" for part in (0.5, 0.99)),
            f"{seen.ms(1.0):,.0f}",
            f"{self.expired / (seen.seconds):,.0f}",
        )


async def hold(database_url: str, ticket: Ticket, holds: int) -> None:
    """So many seats are held, each by somebody else."""
    async with composed(Settings(database_url=database_url, demo=False)) as frontrow:
        for start in range(0, holds, AT_ONCE):
            numbers = range(start, min(start + AT_ONCE, holds))
            await asyncio.gather(*(_hold_one(frontrow.deps, ticket, number) for number in numbers))
            if start % 10_000 == 0:
                progress(f"{start:,} of {holds:,} seats are held")


async def _hold_one(deps: Deps, ticket: Ticket, number: int) -> None:
    wanted = BookConcert(ticket.concert_id, (Quantity(ticket.ticket_type_id, 1),))
    await book_concert(deps, viewer_of(number), wanted)


async def let_pass(database_url: str) -> None:
    """Every hold has passed."""
    connection = await connect(database_url)
    try:
        await connection.execute("VACUUM ANALYZE")
        await connection.execute(PASS)
    finally:
        await connection.close()


def measured(options: argparse.Namespace) -> list[Spell]:
    """Without a sweep and with one."""
    with open_shop() as shop, crowd() as people:
        url = shop.database("sweep")
        (ticket,) = asyncio.run(seed(url, concerts=1, buyers=options.holds + options.buyers))
        house = shop.frontrow("Frontrow", url)
        asyncio.run(hold(url, ticket, options.holds))
        asyncio.run(until_told(url))
        first = _spell("nothing", people, house, ticket, options, first_buyer=options.holds)
        asyncio.run(let_pass(url))
        next_buyer = options.holds + first.seen.asked
        second = _spell("holds expire", people, house, ticket, options, first_buyer=next_buyer)
    assert next_buyer + second.seen.asked <= options.holds + options.buyers, "more --buyers"
    return [first, second]


def _spell(
    meanwhile: str,
    people: Crowd,
    house: Frontrow,
    ticket: Ticket,
    options: argparse.Namespace,
    *,
    first_buyer: int,
) -> Spell:
    before = asyncio.run(ask(house.database_url, EXPIRED))
    seen = people.rush(
        Rush(
            house.port,
            (booking(ticket),),
            "bookConcert",
            "BookConcertSuccess",
            connections=options.connections,
            seconds=options.seconds,
            warm_up_s=0.0,
            first_buyer=first_buyer,
        )
    )
    expired = asyncio.run(ask(house.database_url, EXPIRED)) - before
    progress(f"{meanwhile}: {seen.per_s:.0f} bookings/s, {expired:,} holds expired")
    return Spell(meanwhile, seen, expired)


def table_of(spells: list[Spell], options: argparse.Namespace) -> Table:
    """Both, and whether selling went on."""
    first, second = spells
    assert first.expired == 0 and second.expired > 0, "the sweep fell into the wrong rush"
    found = times(second.seen.per_s, first.seen.per_s)
    is_met = second.seen.per_s >= LEFT * first.seen.per_s
    what = f"at least {LEFT:.0%} of the bookings while {options.holds:,} holds expire"
    return Table(
        "sweep",
        COLUMNS,
        tuple(spell.row(first) for spell in spells),
        (
            f"{options.connections} connections; {second.expired:,} of {options.holds:,} holds expired meanwhile.",
        ),
        (aim(what, found=found, is_met=is_met),),
    )


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__, seconds=15.0)
    parser.add_argument("--holds", type=int, default=50_000, help="that expire (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument(
        "--buyers", type=int, default=40_000, help="signed in, who book (default: %(default)s)"
    )
    options = parser.parse_args()
    publish(table_of(measured(options), options), options)


if __name__ == "__main__":
    main()
