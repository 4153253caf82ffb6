"""How does Frontrow stand a siege: a hundred who post bookings to /graphql for a minute, told in siege's own words?

Everybody posts the next booking as soon as the last is answered, as `siege -c100 -t60S` does; here each is another
buyer's, under a key of its own, on a connection that is kept. Where siege is installed it runs too, as it comes: it
opens a connection for every booking and knows one header for all, so there everybody is one buyer without a limit.
"""

import argparse
import asyncio
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.crowd import Rush, crowd
from bench.programs import progress
from bench.questions import BOOK, booking
from bench.shop import Shop, Ticket, ask, open_shop, seed, token_of
from bench.table import Table, arguments, publish

CONNECTIONS = 100
COUNT = "SELECT count(*) FROM bookings"
MANY = 1_000_000
RC = "verbose = false\ncolor = off\njson_output = true\nlogging = false\nshow-logfile = false\nparser = false\n"
COLUMNS = (
    "who",
    "transactions/s",
    "availability",
    "response time",
    "longest",
    "shortest",
    "transactions",
    "failed",
    "elapsed",
)


@dataclass(frozen=True)
class Siege:
    """siege's report."""

    who: str
    transactions: int
    failed: int
    elapsed_s: float
    response_s: float
    longest_s: float
    shortest_s: float

    def cells(self) -> tuple[str, ...]:
        """As it is printed."""
        return (
            self.who,
            f"{self.transactions / self.elapsed_s:,.1f}",
            f"{100 * self.transactions / (self.transactions + self.failed):.2f} %",
            f"{self.response_s:.3f} s",
            f"{self.longest_s:.2f} s",
            f"{self.shortest_s:.3f} s",
            f"{self.transactions:,}",
            f"{self.failed:,}",
            f"{self.elapsed_s:.1f} s",
        )


def by_us(port: int, ticket: Ticket, options: argparse.Namespace) -> Siege:
    """Distinct buyers. Raises: AssertionError where not enough are signed in."""
    with crowd() as people:
        seen = people.rush(
            Rush(
                port,
                (booking(ticket),),
                "bookConcert",
                "BookConcertSuccess",
                connections=options.connections,
                seconds=options.seconds,
                warm_up_s=0.0,
            )
        )
    assert seen.asked <= options.buyers, "more --buyers"
    response_s = sum(seen.done_ms) / max(1, seen.done) / 1_000
    failed = sum(seen.refused.values())
    if failed:
        progress(f"refused: {dict(seen.refused)}")
    longest_s, shortest_s = seen.ms(1.0) / 1_000, seen.ms(0.0) / 1_000
    return Siege("the bench's crowd", seen.done, failed, seen.seconds, response_s, longest_s, shortest_s)


def by_siege(port: int, ticket: Ticket, folder: Path, options: argparse.Namespace) -> Siege:
    """One buyer. What siege does not see, because it looks at the status alone, is found in the database."""
    items = [{"ticketTypeId": ticket.ticket_type_gid, "quantity": 1}]
    wanted = {"input": {"concertId": ticket.concert_gid, "items": items}}
    body, rc = folder / "booking.json", folder / "siegerc"
    body.write_text(json.dumps({"query": BOOK, "variables": wanted}))
    rc.write_text(RC)
    command = [
        *("siege", "-R", str(rc), f"-c{options.connections}", f"-t{options.seconds:.0f}S"),
        *("-T", "application/json", "-H", f"Authorization: Bearer {token_of('0' * 12)}"),
        f"http://127.0.0.1:{port}/graphql POST <{body}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout[done.stdout.index("{") :])
    return Siege(
        "siege, one buyer",
        int(said["transactions"]),
        int(said["failed_transactions"]),
        said["elapsed_time"],
        said["response_time"],
        said["longest_transaction"],
        said["shortest_transaction"],
    )


def measured(options: argparse.Namespace) -> list[Siege]:
    """Ours, and siege's where it is installed, each on a database of its own."""
    with open_shop() as shop:
        port, ticket, _ = served(shop, "siege by us", buyers=options.buyers)
        found = [by_us(port, ticket, options)]
        if shutil.which("siege") is None:
            progress("siege: left out, it is not installed")
            return found
        port, ticket, url = served(shop, "siege by siege", buyers=1)
        siege = by_siege(port, ticket, shop.folder, options)
        booked = asyncio.run(ask(url, COUNT))
        # Those that were answered after siege had gone are booked, too.
        assert siege.transactions <= booked <= siege.transactions + options.connections, f"{booked} booked"
        return [*found, siege]


def served(shop: Shop, name: str, *, buyers: int) -> tuple[int, Ticket, str]:
    """Frontrow on a database of its own: its port, what it sells, and the database."""
    url = shop.database(name)
    (ticket,) = asyncio.run(seed(url, concerts=1, buyers=buyers, tickets_per_buyer=MANY))
    house = shop.frontrow(name, url, settings={"bookings_per_min": str(MANY)})
    return house.port, ticket, url


def table_of(sieges: list[Siege]) -> Table:
    """siege's report, a line for each."""
    return Table("siege", COLUMNS, tuple(each.cells() for each in sieges), (f"{CONNECTIONS} at once.",))


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__, seconds=60.0)
    parser.add_argument("--connections", type=int, default=CONNECTIONS, help="(default: %(default)s)")
    parser.add_argument("--buyers", type=int, default=300_000, help="signed in (default: %(default)s)")
    options = parser.parse_args()
    publish(table_of(measured(options)), options)


if __name__ == "__main__":
    main()
