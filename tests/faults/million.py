"""How long `frontrow verify` takes on a million bookings: `python -m tests.faults.million`.

Starts a PostgreSQL and a Valkey of its own (or makes a SQLite file), fills them, rebuilds the read model, runs the
command as a process and prints the seconds of each promise and of all. Everything is gone afterwards.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiosqlite
import asyncpg

from infra.db.migrations import migrate
from tests.servers import running_postgres, running_valkey

CONCERTS = 10_000
BUYERS = 300_000
# So many share the first concert, the other bookings are spread evenly.
HOT_SHARE = 20
PER_BATCH = 20_000
PRICES_MINOR = (3_500, 8_900)
# Bought 80, cancelled and refunded 10, expired 20, waiting 4, deferred 3 and being paid 3, of every 120.
KINDS = [
    *("paid",) * 80,
    *("cancelled",) * 10,
    *("expired",) * 20,
    *("waiting",) * 4,
    *("deferred",) * 3,
    *("pending",) * 3,
]
HOLDS = {"waiting", "deferred", "pending"}

Row = tuple[object, ...]
Rows = dict[str, list[Row]]

COLUMNS = {
    "sales": "concert_id title venue starts_at sales_open_at sales_close_at max_tickets_per_user is_cancelled version",
    "sale_stock": "ticket_type_id concert_id position name price_minor currency capacity held sold",
    "bookings": (
        "id user_id concert_id status is_final ticket_quantity total_minor currency max_tickets_per_user hold_until "
        "is_extended is_graced retry_pay_at payment_id payment_status decline_code version created_at updated_at"
    ),
    "booking_items": "booking_id position ticket_type_id name quantity unit_price_minor",
    "booking_events": "booking_id version was status payment_status concert_id stock_version occurred_at",
    "buyers": "user_id my_page_version",
    "payments": (
        "id booking_id user_id amount_minor currency status payment_method_id intent_id decline_code client_secret "
        "redirect_url refund_number created_at captured_at refunded_at"
    ),
    "payment_intents": (
        "payment_id booking_id intent_id create_number charge_id is_closed creating_until creating_key look_at asked"
    ),
    "idempotency_keys": "user_id mutation key arguments_hash reference refusal claimed_at",
}
# What a booking of each kind has been through: was, status, its payment's status.
_A, _D, _P, _OK = "AWAITING_PAYMENT", "PAYMENT_DEFERRED", "PAYMENT_PENDING", "APPROVED"
STORIES: dict[str, tuple[tuple[str | None, str, str | None], ...]] = {
    "waiting": ((None, _A, None),),
    "deferred": ((None, _A, None), (_A, _D, None)),
    "pending": ((None, _A, None), (_A, _P, "PROCESSING"), (_P, _P, "UNKNOWN")),
    "paid": ((None, _A, None), (_A, _P, "PROCESSING"), (_P, _OK, "CAPTURED")),
    "expired": ((None, _A, None), (_A, "EXPIRED", None)),
    "cancelled": (
        (None, _A, None),
        (_A, _P, "PROCESSING"),
        (_P, _OK, "CAPTURED"),
        (_OK, "CANCELLED", "REFUND_PENDING"),
        ("CANCELLED", "CANCELLED", "REFUNDED"),
    ),
}


@dataclass
class Books:
    """Everything that bookings leave behind, and the stock that they leave."""

    now: datetime
    held: defaultdict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(int))
    sold: defaultdict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(int))
    versions: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    stock_versions: defaultdict[int, int] = field(default_factory=lambda: defaultdict(lambda: 1))

    def booking(self, n: int, rows: Rows) -> None:
        """The rows of the n-th booking."""
        concert = 0 if n % HOT_SHARE == 0 else 1 + n * 7_919 % (CONCERTS - 1)
        kind = KINDS[n * 31 % len(KINDS)]
        story = STORIES[kind]
        booking_id, user_id, payment_id = _id("b", n), _id("u", n * 48_271 % BUYERS), _id("p", n)
        lines = [(0, 1 + n % 2)] + ([(1, 1)] if n % 4 == 0 else [])
        total_minor = sum(quantity * PRICES_MINOR[line] for line, quantity in lines)
        tickets = sum(quantity for _, quantity in lines)
        for line, quantity in lines:
            name = f"Type {line}"
            rows["booking_items"].append(
                (booking_id, line, _id(f"t{line}", concert), name, quantity, PRICES_MINOR[line])
            )
            if kind in HOLDS:
                self.held[concert, line] += quantity
            elif kind == "paid":
                self.sold[concert, line] += quantity
        made_at = self.now - timedelta(seconds=86_400 + n % 86_400)
        for version, (was, status, paid) in enumerate(story, start=1):
            self.stock_versions[concert] += 1
            at = made_at + timedelta(seconds=version)
            rows["booking_events"].append(
                (booking_id, version, was, status, paid, _id("c", concert), self.stock_versions[concert], at)
            )
        _, status, paid = story[-1]
        version = len(story)
        self.versions[user_id] += version
        is_over = kind in {"expired", "cancelled"}
        hold_until = self.now + timedelta(days=1) if kind in HOLDS else made_at + timedelta(seconds=600)
        standing = (None if paid is None else payment_id, paid, None)
        retry_pay_at = hold_until if kind == "deferred" else None
        facts = (booking_id, user_id, _id("c", concert), status, is_over, tickets, total_minor, "EUR", 40)
        hold = (hold_until, kind == "deferred", False, retry_pay_at)
        times = (made_at + timedelta(seconds=1), made_at + timedelta(seconds=version))
        rows["bookings"].append((*facts, *hold, *standing, version, *times))
        if paid is not None:
            self._payment(payment_id, booking_id, user_id, total_minor, paid, made_at, rows)
        if n % 3 == 0:
            claimed_at = self.now - timedelta(hours=n % 70)
            rows["idempotency_keys"].append(
                (user_id, "bookConcert", f"key-{n}", "0" * 64, booking_id, None, claimed_at)
            )

    def _payment(
        self,
        payment_id: str,
        booking_id: str,
        user_id: str,
        total_minor: int,
        paid: str,
        at: datetime,
        rows: Rows,
    ) -> None:
        captured_at = None if paid == "UNKNOWN" else at + timedelta(seconds=3)
        refunded_at = at + timedelta(seconds=5) if paid == "REFUNDED" else None
        intent_id, is_open = f"pi_{payment_id}", paid == "UNKNOWN"
        facts = (payment_id, booking_id, user_id, total_minor, "EUR", paid, "pm_card_visa", intent_id)
        times = (at + timedelta(seconds=2), captured_at, refunded_at)
        rows["payments"].append((*facts, None, None, None, 0, *times))
        look_at = self.now + timedelta(hours=1) if is_open else None
        rows["payment_intents"].append(
            (payment_id, booking_id, intent_id, 0, f"ch_{payment_id}", not is_open, None, None, look_at, 0)
        )

    def sales(self, rows: Rows) -> None:
        """The sales, once all bookings are there."""
        for concert in range(CONCERTS):
            concert_id, version = _id("c", concert), self.stock_versions[concert]
            window = (self.now - timedelta(days=9), self.now + timedelta(days=9))
            rows["sales"].append(
                (concert_id, f"Concert {concert}", "Paradiso", window[1], *window, 40, False, version)
            )
            for line, price_minor in enumerate(PRICES_MINOR):
                held, sold = self.held[concert, line], self.sold[concert, line]
                stock = (price_minor, "EUR", held + sold + 100, held, sold)
                rows["sale_stock"].append(
                    (_id(f"t{line}", concert), concert_id, line, f"Type {line}", *stock)
                )

    def buyers(self, rows: Rows) -> None:
        """The buyers, once all bookings are there."""
        rows["buyers"].extend(self.versions.items())


def _id(kind: str, n: int) -> str:
    """As the ids of real life: as long, and later ones sort later."""
    return f"{n:08x}-0000-7000-8000-{ord(kind[0]):02x}{kind[1:]:0>2}{n:08x}"


def batches(bookings: int) -> Iterator[Rows]:
    """All rows, some bookings' worth at a time; referenced tables first."""
    books = Books(datetime.now(UTC).replace(microsecond=0))
    for start in range(0, bookings, PER_BATCH):
        rows: Rows = {name: [] for name in COLUMNS}
        for n in range(start, min(start + PER_BATCH, bookings)):
            books.booking(n, rows)
        yield rows
    last: Rows = {name: [] for name in COLUMNS}
    books.sales(last)
    books.buyers(last)
    yield last


async def fill_postgres(url: str, bookings: int) -> None:
    """A migrated database with all of it, its statistics up to date."""
    await migrate(url)
    connection = await asyncpg.connect(url.replace("postgresql+asyncpg://", "postgresql://", 1))
    try:
        for rows in batches(bookings):
            for name, columns in COLUMNS.items():
                await connection.copy_records_to_table(name, records=rows[name], columns=columns.split())
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()


async def fill_sqlite(url: str, bookings: int) -> None:
    """A migrated file with all of it."""
    await migrate(url)
    async with aiosqlite.connect(url.removeprefix("sqlite+aiosqlite:///")) as connection:
        await connection.execute("PRAGMA synchronous = OFF")
        for rows in batches(bookings):
            for name, columns in COLUMNS.items():
                names = columns.split()
                marks = ", ".join("?" * len(names))
                sql = f"INSERT INTO {name} ({', '.join(names)}) VALUES ({marks})"
                await connection.executemany(sql, [_as_text(row) for row in rows[name]])
            await connection.commit()


def _as_text(row: Row) -> list[object]:
    return [
        value.isoformat(timespec="microseconds") if isinstance(value, datetime) else value for value in row
    ]


@contextmanager
def filled(bookings: int, *, on_sqlite: bool, shared_buffers: str) -> Iterator[dict[str, str]]:
    """The settings of a database with so many bookings and, unless it is SQLite, of an empty Valkey."""
    with ExitStack() as stack:
        if on_sqlite:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="frontrow-million-")))
            url = f"sqlite+aiosqlite:///{folder / 'million.db'}"
            asyncio.run(fill_sqlite(url, bookings))
            yield {"FRONTROW_DATABASE_URL": url}
            return
        url = stack.enter_context(running_postgres(shared_buffers=shared_buffers)).url("postgres")
        asyncio.run(fill_postgres(url, bookings))
        redis_url = stack.enter_context(running_valkey()).url
        yield {"FRONTROW_DATABASE_URL": url, "FRONTROW_REDIS_URL": redis_url}


def timed(command: str, settings: dict[str, str]) -> int:
    """Run a command as a process; each line that it says is printed with the seconds since the one before."""
    began_s = said_s = time.monotonic()
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FRONTROW_")}
    process = subprocess.Popen(
        [sys.executable, "-uc", "from infra.cli import main; main()", command],
        env=environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    before = "start"
    for line in _every_line(process.stdout, is_quiet=command == "rebuild-read-model"):
        print(f"  {time.monotonic() - said_s:7.2f} s  {before}", flush=True)
        before, said_s = line.strip(), time.monotonic()
    _, status, used = os.wait4(process.pid, 0)
    code = process.returncode = os.waitstatus_to_exitcode(status)
    print(f"  {time.monotonic() - said_s:7.2f} s  {before}")
    print(
        f"{command}: {time.monotonic() - began_s:.1f} s, {used.ru_utime + used.ru_stime:.1f} s of them CPU, "
        f"at most {used.ru_maxrss / 1_024:.0f} MB, exit code {code}",
        flush=True,
    )
    return code


def _every_line(lines: Iterable[str], *, is_quiet: bool) -> Iterator[str]:
    for line in lines:
        if not is_quiet or not line[0].isdigit():
            yield line


def main() -> None:
    """Fill, rebuild, verify."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bookings", type=int, default=1_000_000)
    # PostgreSQL's manual begins with a quarter of the memory ("Resource Consumption", shared_buffers).
    parser.add_argument("--shared-buffers", default="1GB", help="PostgreSQL's own default is 128MB")
    parser.add_argument("--sqlite", action="store_true", help="SQLite instead of PostgreSQL and Valkey")
    options = parser.parse_args()
    began_s = time.monotonic()
    with filled(
        options.bookings, on_sqlite=options.sqlite, shared_buffers=options.shared_buffers
    ) as settings:
        print(f"{options.bookings:,} bookings after {time.monotonic() - began_s:.0f} s", flush=True)
        if not options.sqlite:
            timed("rebuild-read-model", settings)
        code = timed("verify", settings)
    sys.exit(code)


if __name__ == "__main__":
    main()
