"""What is left of selling when the payment processor is slow, and when it hangs?

A hundred buyers book and pay, each the next booking as soon as the last is paid or refused; beside them some only
book. The processor answers at once, then after 400 to 620 ms, where the time-out of 610 ms cuts some off, then not at
all, then at once again, for `--seconds` each, in one run against one API process.
"""

import argparse
import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise

import orjson

from bench.crowd import crowd, outcome, quantile
from bench.plot import lines
from bench.programs import progress
from bench.questions import booking, paying
from bench.shop import WEBHOOK_SECRET, Frontrow, Processor, Shop, Ticket, open_shop, seed, token_of
from bench.table import Table, aim, arguments, publish, times
from bench.wire import Talk, numbered, post

HANGS = "hangs"
# Our aim.
LEFT = 0.8
WEATHERS: dict[str, dict[str, object]] = {
    "at once": {"mode": "ok", "latency_ms": [0, 0]},
    "after 400-620 ms": {"mode": "ok", "latency_ms": [400, 620]},
    HANGS: {"mode": "hang", "latency_ms": [0, 0]},
    "at once again": {"mode": "ok", "latency_ms": [0, 0]},
}
STATES = {"closed": "#ffffff", "half-open": "#fdf3d8", "open": "#fbe4e0"}
SAMPLE_EVERY_S = 0.2
BOOKED, PAID = "BookConcertSuccess", "PayBookingSuccess"
COLUMNS = (
    "the processor answers",
    "bookings/s of who pays too",
    "against the first",
    "bookings/s of who only books",
    "against the first",
    "book, ms p50 / p99",
    "pay, ms p50 / p99",
    "paid/s",
    "other answers to pay",
    "breaker open",
)


@dataclass(frozen=True)
class Crowds:
    """Those who book and pay, and those who only book; buyers are counted from `first_buyer`."""

    port: int
    ticket: Ticket
    payers: int
    bookers: int
    seconds: float
    first_buyer: int


@dataclass(frozen=True)
class Answer:
    """One answer, when it came (seconds since the epoch) and how long it took."""

    at_s: float
    what: str
    took_ms: float
    is_payers: bool
    is_payment: bool


@dataclass
class Seen:
    """All answers, and which buyer is next."""

    next_buyer: int
    answers: list[Answer] = field(default_factory=list)


# ---------------------------------------------------------------- in the crowd's process
async def crowding(crowds: Crowds) -> Seen:
    """Everybody at once, for so long."""
    seen = Seen(crowds.first_buyer)
    ends_s = time.time() + crowds.seconds

    async def ask(talk: Talk, request: bytes, field_name: str, *, is_payers: bool) -> tuple[str, bytes]:
        began_s = time.perf_counter()
        try:
            status, body = await talk.ask(request)
            what = outcome(status, body, field_name)
        except ConnectionError:
            what, body = "connection lost", b""
        took_ms = 1_000 * (time.perf_counter() - began_s)
        seen.answers.append(Answer(time.time(), what, took_ms, is_payers, field_name == "payBooking"))
        return what, body

    async def person(*, is_payers: bool) -> None:
        talk = Talk(crowds.port)
        while time.time() < ends_s:
            number = seen.next_buyer
            seen.next_buyer += 1
            request = numbered(booking(crowds.ticket), number)
            what, body = await ask(talk, request, "bookConcert", is_payers=is_payers)
            if what == BOOKED and is_payers:
                booking_id = orjson.loads(body)["data"]["bookConcert"]["booking"]["id"]
                request = post(paying(booking_id), token=token_of(f"{number:012d}"))
                await ask(talk, request, "payBooking", is_payers=True)
        talk.close()

    payers = (person(is_payers=True) for _ in range(crowds.payers))
    await asyncio.gather(*payers, *(person(is_payers=False) for _ in range(crowds.bookers)))
    return seen


# ---------------------------------------------------------------- the measurement
@dataclass(frozen=True)
class Sample:
    """What the breaker is at one time."""

    at_s: float
    state: str


@dataclass(frozen=True)
class Spell:
    """One weather and what it was like."""

    weather: str
    began_s: float
    ends_s: float
    answers: list[Answer]
    samples: list[Sample]

    def rate(self, what: str, *, is_payers: bool) -> float:
        """That answer per second, of those who pay or of those who only book."""
        found = sum(each.what == what and each.is_payers == is_payers for each in self.answers)
        return found / (self.ends_s - self.began_s)

    def ms(self, *, is_payment: bool) -> str:
        """The quantiles."""
        took = sorted(each.took_ms for each in self.answers if each.is_payment == is_payment)
        return f"{quantile(took, 0.5):,.0f} / {quantile(took, 0.99):,.0f}"

    def others(self) -> str:
        """Answers to pay other than that it is paid."""
        found = Counter(each.what for each in self.answers if each.is_payment and each.what != PAID)
        return ", ".join(f"{count:,} {what}" for what, count in found.most_common()) or "0"

    def open_share(self) -> float:
        """How much of the time the breaker let nobody through."""
        return sum(each.state == "open" for each in self.samples) / max(1, len(self.samples))


def measured(options: argparse.Namespace) -> list[Spell]:
    """One after the other, with one crowd that stays."""
    with open_shop() as shop, crowd() as people:
        house, processor, ticket = opened(shop, options.buyers)
        crowds = Crowds(
            house.port,
            ticket,
            options.people,
            options.others,
            options.seconds * len(WEATHERS) + options.warm_up,
            0,
        )
        crowding_until = people.begin(crowding, crowds)
        time.sleep(options.warm_up)
        marks: list[tuple[str, float]] = []
        samples: list[Sample] = []
        for weather, control in WEATHERS.items():
            processor.control(**control)
            marks.append((weather, time.time()))
            progress(f"the processor answers: {weather}")
            while time.time() < marks[-1][1] + options.seconds:
                samples.append(Sample(time.time(), state_of(house)))
                time.sleep(SAMPLE_EVERY_S)
        ends_s = time.time()
        seen = crowding_until.result()
        assert seen.next_buyer <= options.buyers, "more --buyers"
    ends = [at_s for _, at_s in marks[1:]] + [ends_s]
    return [
        Spell(
            weather,
            began_s,
            end_s,
            [each for each in seen.answers if began_s <= each.at_s < end_s],
            [each for each in samples if began_s <= each.at_s < end_s],
        )
        for (weather, began_s), end_s in zip(marks, ends, strict=True)
    ]


def opened(shop: Shop, buyers: int) -> tuple[Frontrow, Processor, Ticket]:
    """Frontrow and its processor, which tells it what became of payments."""
    processor, url = shop.processor(), shop.database("slow_payment")
    (ticket,) = asyncio.run(seed(url, concerts=1, buyers=buyers))
    house = shop.frontrow("Frontrow", url, settings={"stripe_api_base": processor.url})
    webhook_url = f"http://127.0.0.1:{house.port}/webhooks/stripe"
    processor.control(webhook_url=webhook_url, webhook_secret=WEBHOOK_SECRET)
    return house, processor, ticket


def state_of(house: Frontrow) -> str:
    """The breaker's, as /metrics shows it."""
    name = "frontrow_breaker_state"
    metrics = house.metrics()
    return next(state for state in STATES if metrics[f'{name}{{{name}="{state}"}}'] == 1.0)


def table_of(spells: Sequence[Spell]) -> Table:
    """One line for each weather, and how it went as a picture."""
    first = spells[0]
    rows = []
    for spell in spells:
        payers, bookers = (spell.rate(BOOKED, is_payers=is_payers) for is_payers in (True, False))
        rows.append(
            (
                spell.weather,
                f"{payers:.1f}",
                times(payers, first.rate(BOOKED, is_payers=True)),
                f"{bookers:.1f}",
                times(bookers, first.rate(BOOKED, is_payers=False)),
                spell.ms(is_payment=False),
                spell.ms(is_payment=True),
                f"{spell.rate(PAID, is_payers=True):.1f}",
                spell.others(),
                f"{100 * spell.open_share():.0f} %",
            )
        )
    note = "One run; each spell compared with the first. The ground of the picture is red while the breaker is open."
    hanging = next((spell for spell in spells if spell.weather == HANGS), None)
    aims = []
    if hanging is not None:
        now, normal = (
            sum(each.rate(BOOKED, is_payers=is_payers) for is_payers in (True, False))
            for each in (hanging, first)
        )
        what = f"with the processor hanging at least {LEFT:.0%} of the bookings"
        aims.append(aim(what, found=times(now, normal), is_met=now >= LEFT * normal))
    return Table(
        "slow-payment",
        COLUMNS,
        tuple(rows),
        (note,),
        tuple(aims),
        picture=picture(spells),
        picture_shows="Answers per second over time",
    )


def picture(spells: Sequence[Spell]) -> str:
    """Answers per second over time, the breaker's state behind them."""
    zero_s = spells[0].began_s
    samples = [each for spell in spells for each in spell.samples]
    bands = []
    for state, same in groupby(pairwise(samples), key=lambda pair: pair[0].state):
        pairs = list(same)
        if state != "closed":
            bands.append((pairs[0][0].at_s - zero_s, pairs[-1][1].at_s - zero_s, STATES[state]))
    marks = [(spell.began_s - zero_s, spell.weather) for spell in spells]
    answers = [each for spell in spells for each in spell.answers]
    kinds = {"booked": BOOKED, "paid": PAID, "deferred": "PaymentDeferred", "pending": "PaymentPending"}
    seconds = int(spells[-1].ends_s - zero_s)
    series = {}
    for name, what in kinds.items():
        counts = Counter(int(each.at_s - zero_s) for each in answers if each.what == what)
        series[name] = [(second + 0.5, float(counts[second])) for second in range(seconds)]
    title = "Answers per second, by how the processor answers"
    return lines(series, title=title, x_name="seconds", bands=bands, marks=marks)


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__, seconds=12.0)
    parser.add_argument(
        "--warm-up", type=float, default=3.0, help="before it, seconds (default: %(default)s)"
    )
    parser.add_argument("--people", type=int, default=100, help="who book and pay (default: %(default)s)")
    parser.add_argument("--others", type=int, default=20, help="who only book (default: %(default)s)")
    parser.add_argument("--buyers", type=int, default=100_000, help="signed in (default: %(default)s)")
    options = parser.parse_args()
    publish(table_of(measured(options)), options)


if __name__ == "__main__":
    main()
