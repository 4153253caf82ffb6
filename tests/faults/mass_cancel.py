"""How long a concert with ten thousand bookings takes to be called off: `python -m tests.faults.mass_cancel`.

Starts a PostgreSQL and a Valkey of its own, an API process, workers, and a processor that answers 429 as Stripe does;
kills workers in the middle, lets somebody buy tickets elsewhere all the time, and prints what came of it. Everything is
gone afterwards.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from sqlalchemy import func, select

from domain.booking import SaleClosed
from domain.events import IntentAbandoned, RefundRequested
from infra.db.migrations import migrate
from infra.db.tables import outbox
from infra.db.unit import Database
from schema.common import Kind, encode_id
from tests.client import CANCEL_CONCERT, PASSWORD, Api, ticket_type
from tests.faults.called_off import CalledOff, fill, wrong_in_the_end
from tests.faults.doorkeeper import guarded_sandbox_process
from tests.faults.reading import until_quiet
from tests.servers import running_postgres, running_valkey
from tests.shell import Running, Shell
from tests.story.world import WEBHOOK_SECRET, Processor

ADMIN = "admin@example.org"
# As far away as Stripe is, and as strict (Stripe, "Rate limits").
LATENCY_MS = [60, 180]
WEBHOOK_DELAY_MS = 500
LIMIT_PER_S = 100
BEFORE_S = 15.0
LOOK_EVERY_S = 1.0
SAY_EVERY_S = 30.0
KILL_AFTER_S = 20.0


@dataclass
class Buyer:
    """Somebody who buys tickets of another concert all the time. Times in seconds: booking, paying."""

    api: Api
    booked_s: list[float] = field(default_factory=list)
    paid_s: list[float] = field(default_factory=list)
    put_off: int = 0
    has_enough: bool = False

    async def buy(self) -> None:
        """Until they have enough."""
        concert = await self.api.register(
            ticketTypes=[ticket_type(capacity=100_000)], maxTicketsPerUser=10_000
        )
        while not self.has_enough:
            began_s = time.perf_counter()
            booking = await self.api.booked(concert)
            booked_s = time.perf_counter()
            while (paid := await self.api.pay(booking["id"]))["__typename"] != "PayBookingSuccess":
                assert paid["__typename"] in {"PaymentDeferred", "PaymentPending"}, paid
                self.put_off += 1
                await asyncio.sleep(1)
            self.booked_s.append(booked_s - began_s)
            self.paid_s.append(time.perf_counter() - booked_s)
            await asyncio.sleep(0.1)

    def told(self) -> str:
        """What it took since the last time, and forget it."""
        booking, paying = _percentiles(self.booked_s), _percentiles(self.paid_s)
        text = (
            f"{len(self.booked_s)} tickets; booking {booking}; paying {paying}, put off {self.put_off} times"
        )
        self.booked_s.clear()
        self.paid_s.clear()
        return text


def _percentiles(times_s: list[float]) -> str:
    ordered = sorted(times_s)
    p50, p99 = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
    return f"p50 {p50 * 1_000:.0f} ms, p99 {p99 * 1_000:.0f} ms"


@dataclass
class Stage:
    """Everything that runs."""

    database: Database
    shell: Shell
    admin: Api
    processor_url: str
    processor_file: Path
    called_off: CalledOff

    async def call_off(self) -> tuple[int, int]:
        """cancelConcert: bookings to cancel, refunds open."""
        wanted = {"concertId": encode_id(Kind.CONCERT, self.called_off.concert_id)}
        done = await self.admin.ask(CANCEL_CONCERT, input=wanted)
        return done["bookingsToCancel"], done["refundsOpen"]

    async def chores(self) -> int:
        """How much of the work that takes time is still to be done, while people buy elsewhere."""
        kinds = [kind.__name__ for kind in (SaleClosed, RefundRequested, IntentAbandoned)]
        async with self.database.readers.single() as statements:
            (row,) = await statements.rows(
                select(func.count()).select_from(outbox).where(outbox.c.kind.in_(kinds))
            )
        return int(row[0])

    @contextmanager
    def worker(self) -> Iterator[Running]:
        """A worker process."""
        with self.shell.running("worker") as worker:
            worker.hears("at work")
            yield worker


@asynccontextmanager
async def prepared(options: argparse.Namespace) -> AsyncIterator[Stage]:
    """The concert is sold and nothing works yet."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="frontrow-mass-")))
        postgres = stack.enter_context(running_postgres(is_durable=True))
        valkey = stack.enter_context(running_valkey())
        postgres.create_database("frontrow")
        await migrate(postgres.url("frontrow"))
        database = Database(postgres.url("frontrow"))
        stack.push_async_callback(database.close)
        began_s = time.monotonic()
        called_off = await fill(database, folder / "processor.db", size=options.bookings)
        kinds = ", ".join(f"{number} {name}" for name, number in called_off.counts.items())
        print(f"{options.bookings:,} bookings ({kinds}) after {time.monotonic() - began_s:.0f} s", flush=True)
        sandbox = guarded_sandbox_process(folder / "processor.db", limit_per_s=LIMIT_PER_S)
        processor_url = await asyncio.to_thread(stack.enter_context, sandbox)
        shell = Shell(
            {
                "database_url": database.writers.engine.url.render_as_string(hide_password=False),
                "redis_url": valkey.url,
                "demo": "0",
                "worker": "off",
                "log_level": "error",
                "payment_timeout_ms": "5000",
                "worker_calls_per_s": str(options.per_s / options.workers),
                "stripe_api_key": "sk_test_tests",
                "stripe_api_base": processor_url,
                "stripe_webhook_secret": WEBHOOK_SECRET,
            }
        )
        created = await asyncio.to_thread(
            shell.run, "create-admin", "--email", ADMIN, "--name", "Admin", given=PASSWORD
        )
        assert created.exit_code == 0, created.output
        served = stack.enter_context(shell.running("serve", "--port", "0"))
        url = (await asyncio.to_thread(served.hears, r"(http://127\.0\.0\.1:\d+)/graphql"))[1]
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=60))
        await Processor(processor_url, http).control(
            webhook_url=f"{url}/webhooks/stripe",
            webhook_secret=WEBHOOK_SECRET,
            webhook_delay_ms=WEBHOOK_DELAY_MS,
            latency_ms=LATENCY_MS,
        )
        admin = await _admin(Api(url, http))
        yield Stage(database, shell, admin, processor_url, folder / "processor.db", called_off)


async def _admin(api: Api) -> Api:
    query = "mutation($i: LogInInput!) { logIn(input: $i) { ... on SignInSuccess { accessToken } } }"
    while True:
        with suppress(httpx.TransportError):
            answer = await api.ask(query, i={"email": ADMIN, "password": PASSWORD})
            return api.signed_in(answer["accessToken"])
        await asyncio.sleep(0.1)


async def called_off(stage: Stage, options: argparse.Namespace) -> None:
    """From the command to the last refund, with workers that are killed on the way."""
    async with AsyncExitStack() as stack:
        workers = [
            await asyncio.to_thread(stack.enter_context, stage.worker()) for _ in range(options.workers)
        ]
        buyer = Buyer(stage.admin)
        buying = asyncio.create_task(buyer.buy())
        await asyncio.sleep(BEFORE_S)
        print(f"before: {buyer.told()}", flush=True)
        began_s = time.monotonic()
        left = await stage.call_off()
        print(
            f"cancelConcert answered {left} after {(time.monotonic() - began_s) * 1_000:.0f} ms", flush=True
        )
        said_s, kills, cancelled_s = began_s, 0, 0.0
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            chores, left = await stage.chores(), await stage.call_off()
            now_s = time.monotonic() - began_s
            if left[0] == 0 and not cancelled_s:
                cancelled_s = now_s
                print(f"  {now_s:5.0f} s: every booking is cancelled, refunds open {left[1]}", flush=True)
            if chores == 0 and left[0] == 0:
                break
            if kills < options.kills and now_s > KILL_AFTER_S * (kills + 1):
                workers[0].process.kill()
                workers[:1] = [await asyncio.to_thread(stack.enter_context, stage.worker())]
                kills += 1
                print(f"  {now_s:5.0f} s: killed a worker and started another", flush=True)
            if time.monotonic() - said_s > SAY_EVERY_S:
                said_s = time.monotonic()
                print(
                    f"  {now_s:5.0f} s: to cancel {left[0]}, refunds open {left[1]}, chores {chores}",
                    flush=True,
                )
        await _say_results(stage, options, took_s=time.monotonic() - began_s, left=left)
        print(f"meanwhile: {buyer.told()}", flush=True)
        buyer.has_enough = True
        await buying
        await until_quiet(stage.database, patience_s=60.0)


async def _say_results(
    stage: Stage, options: argparse.Namespace, *, took_s: float, left: tuple[int, int]
) -> None:
    print(f"done after {took_s:.0f} s, left {left}; {options.bookings / took_s:.1f} bookings a second")
    for line in (await stage.admin.http.get(f"{stage.processor_url}/_tally")).json():
        print(f"at the processor, {line}", flush=True)


async def run(options: argparse.Namespace) -> int:
    """How much is wrong in the end."""
    async with prepared(options) as stage:
        await called_off(stage, options)
        wrong = await wrong_in_the_end(stage.called_off, stage.database, stage.processor_file)
        for line in wrong:
            print(f"WRONG {line}")
        print(f"bookings that did not end as they must: {len(wrong)}", flush=True)
        verified = await asyncio.to_thread(stage.shell.run, "verify")
        for line in verified.output.splitlines():
            if not line.startswith("Checking"):
                print(line, flush=True)
        return len(wrong) + verified.exit_code


def main() -> None:
    """Fill, call off, look."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bookings", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--per-s", type=float, default=20.0, help="calls a second of all workers together")
    parser.add_argument("--kills", type=int, default=3)
    sys.exit(min(1, asyncio.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
