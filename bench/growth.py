"""Does anything get slower as the tables grow: booking, `concerts`, `concert`, `myPage`?

First with 10^3 to 10^6 bookings of 10,000 concerts and everything that bookings leave behind, one twentieth of them of
the concert that is sold; then with 100 to 10,000 concerts and no bookings. Each size has a database and processes of
its own; they take turns. CPU is that of the API process and PostgreSQL together for each request.
"""

import argparse
import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.request import Request, urlopen

from bench.crowd import Crowd, Rush, crowd
from bench.plot import lines
from bench.programs import progress
from bench.questions import CONCERT, CONCERTS, MY_PAGE, TOKEN, booking
from bench.shelves import READERS, Fill, filled, of_bookings, of_concerts
from bench.shop import Frontrow, Shop, Ticket, open_shop, until_told
from bench.table import Table, aim, arguments, middle, publish, times
from bench.wire import post

BOOKINGS = (1_000, 10_000, 100_000, 1_000_000)
CONCERTS_OF = (100, 1_000, 10_000)
CONNECTIONS = 20
PAGE = 20
# Our aim: rates within a tenth.
FLAT = 0.9
BOOK = "book"


@dataclass(frozen=True)
class Asking:
    """What is asked, the type of the right answer, and by how many buyers in turn; None: always another."""

    request: bytes
    field: str
    wanted: str
    buyers: int | None = READERS


@dataclass
class Shelf:
    """One size, what is asked of it, and the rounds of each."""

    size: int
    house: Frontrow
    askings: dict[str, Asking]
    next_buyer: int = READERS

    def round(self, name: str, people: Crowd, shop: Shop, options: argparse.Namespace) -> "Round":
        """One turn, over when the worker has told all of it. Workers of other sizes are asleep."""
        with self.house.worker.awake():
            return self._round(name, people, shop, options)

    def _round(self, name: str, people: Crowd, shop: Shop, options: argparse.Namespace) -> "Round":
        asking = self.askings[name]
        programs = (self.house.api, shop.database_program)
        cpu_s = sum(program.cpu_s() for program in programs)
        seen = people.rush(
            Rush(
                self.house.port,
                (asking.request,),
                asking.field,
                asking.wanted,
                connections=CONNECTIONS,
                seconds=options.seconds,
                warm_up_s=options.warm_up,
                first_buyer=self.next_buyer if asking.buyers is None else 0,
                buyers=asking.buyers,
            )
        )
        cpu_s = sum(program.cpu_s() for program in programs) - cpu_s
        assert not seen.refused, f"{name} with {self.size}: {seen.refused}"
        if asking.buyers is None:
            self.next_buyer += seen.asked
            assert self.next_buyer <= options.buyers, "more --buyers"
            asyncio.run(until_told(self.house.database_url))
        return Round(seen.per_s, 1e6 * cpu_s / seen.asked)


@dataclass(frozen=True)
class Round:
    """One turn. CPU in microseconds per request."""

    per_s: float
    us: float


# By what is asked, then by size.
Rounds = dict[str, dict[int, list[Round]]]


def askings_of(ticket: Ticket, port: int) -> dict[str, Asking]:
    """Everything that is asked."""

    def query(text: str, **variables: object) -> bytes:
        return post({"query": text, "variables": variables}, token=TOKEN)

    return {
        BOOK: Asking(booking(ticket), "bookConcert", "BookConcertSuccess", None),
        "first page of concerts": Asking(query(CONCERTS, first=PAGE), "concerts", "ConcertConnection"),
        "page in the middle": Asking(
            query(CONCERTS, first=PAGE, after=_middle(port)), "concerts", "ConcertConnection"
        ),
        "concert": Asking(query(CONCERT, id=ticket.concert_gid), "concert", "Concert"),
        "my page": Asking(query(MY_PAGE), "myPage", "MyPage"),
    }


def _middle(port: int) -> str | None:
    """A cursor half-way through the catalogue."""
    cursors: list[str | None] = [None]
    while True:
        variables = {"first": 100, "after": cursors[-1]}
        body = json.dumps({"query": CONCERTS, "variables": variables}).encode()
        request = Request(f"http://127.0.0.1:{port}/graphql", body, {"content-type": "application/json"})
        with urlopen(request) as answer:
            page = json.load(answer)["data"]["concerts"]["pageInfo"]
        if not page["hasNextPage"]:
            return cursors[len(cursors) // 2]
        cursors.append(page["endCursor"])


def measured(options: argparse.Namespace, fills: Mapping[int, Fill]) -> Rounds:
    """Everything asked of every size, in turns."""
    with open_shop() as shop, crowd() as people:
        shelves = []
        for size, fill in fills.items():
            progress(f"filling {size:,}")
            url = shop.database(f"size {size}")
            ticket = asyncio.run(filled(url, fill, buyers=options.buyers))
            house = shop.frontrow(f"size {size}", url, is_filled=True)
            asyncio.run(until_told(url))
            shelves.append(Shelf(size, house, askings_of(ticket, house.port)))
        rounds: Rounds = {name: {size: [] for size in fills} for name in shelves[0].askings}
        for name in rounds:
            for number in range(options.rounds + 1):
                for shelf in shelves:
                    took = shelf.round(name, people, shop, options)
                    if number > 0:
                        rounds[name][shelf.size].append(took)
                    progress(f"{name}, {shelf.size:,}: {took.per_s:,.0f}/s")
        fallbacks = [shelf.house.metrics() for shelf in shelves]
        for shelf, metrics in zip(shelves, fallbacks, strict=True):
            away = sum(value for name, value in metrics.items() if "read_model_fallbacks_total" in name)
            progress(f"{shelf.size:,}: {away:.0f} reads went to the database instead of the read model")
    return rounds


def table_of(name: str, what: str, rounds: Rounds) -> Table:
    """A line for each question, a pair of columns for each size."""
    sizes = list(next(iter(rounds.values())))
    compared = f"at {sizes[-1]:,} against {sizes[0]:,}"
    columns = [
        "",
        f"rate {compared}",
        f"CPU {compared}",
        *(f"/s at {size:,}" for size in sizes),
        *(f"CPU, us at {size:,}" for size in sizes),
    ]
    rows, series, aims = [], {}, []
    for asked, by_size in rounds.items():
        rates = [middle([each.per_s for each in by_size[size]]) for size in sizes]
        us = [middle([each.us for each in by_size[size]]) for size in sizes]
        cells = [*(f"{rate:,.0f}" for rate in rates), *(f"{each:,.0f}" for each in us)]
        rows.append((asked, times(rates[-1], rates[0]), times(us[-1], us[0]), *cells))
        is_flat = rates[-1] >= FLAT * rates[0]
        aims.append(
            aim(f"{asked}: no slower than {FLAT:.0%}", found=times(rates[-1], rates[0]), is_met=is_flat)
        )
        series[asked] = list(zip(map(float, sizes), us, strict=True))
    number = len(by_size[sizes[0]])
    note = (
        f"{CONNECTIONS} connections, median of {number} rounds. CPU is that of API and PostgreSQL together."
    )
    picture = lines(series, title=f"CPU for each request by number of {what}, us", x_name=what, is_log=True)
    shown = f"CPU for each request by number of {what}"
    return Table(
        name, tuple(columns), tuple(rows), (note,), tuple(aims), picture=picture, picture_shows=shown
    )


def main() -> None:
    """Print both tables."""
    parser = arguments(__doc__, seconds=1.0, rounds=3)
    parser.add_argument(
        "--warm-up", type=float, default=0.3, help="before it, seconds (default: %(default)s)"
    )
    parser.add_argument("--buyers", type=int, default=20_000, help="signed in (default: %(default)s)")
    parser.add_argument("--bookings", type=int, nargs="+", default=BOOKINGS, help="(default: %(default)s)")
    parser.add_argument("--concerts", type=int, nargs="+", default=CONCERTS_OF, help="(default: %(default)s)")
    options = parser.parse_args()
    by_bookings = {size: of_bookings(size) for size in options.bookings}
    publish(table_of("growth-of-bookings", "bookings", measured(options, by_bookings)), options)
    by_concerts = {size: of_concerts(size) for size in options.concerts}
    publish(table_of("growth-of-concerts", "concerts", measured(options, by_concerts)), options)


if __name__ == "__main__":
    main()
