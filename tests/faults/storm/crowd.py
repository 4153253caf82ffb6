"""Who buys in the storm, and the organiser who keeps changing things."""

import asyncio
import random
import time
from collections import defaultdict
from dataclasses import dataclass, field

from infra.db.unit import Database
from tests.client import Api, ticket_type
from tests.faults.buyers import OverHttp, RecordedBuyer, RecordedOrganiser, raw
from tests.faults.history import History
from tests.faults.house import insist
from tests.faults.reading import opening_of
from tests.faults.storm.world import HOLD_S, World

SALES_AT_ONCE = 5
TYPES = 2
TICKETS_MAX = 3
LIMIT = 6
CAPACITY = (10, 80)
# What the organiser changes them to.
CAPACITIES, LIMITS = range(50, 121), range(4, 10)
ORGANISER_NAP_S = (1.0, 4.0)
# Between two things that one buyer does; the crowd is large enough without haste.
THINK_S = 0.15
METHODS = {"pm_card_visa": 80, "pm_card_visa_chargeDeclined": 12, "pm_card_authenticationRequired": 8}


@dataclass
class Market:
    """The concerts of one round that sell now, each with its ticket types."""

    history: History
    open: dict[str, list[str]] = field(default_factory=dict)
    # Capacities by ticket type and limits by concert, those that were refused too.
    _asked: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))

    async def add(self, admin: Api, database: Database, rng: random.Random) -> None:
        """One more concert sells."""
        types = [ticket_type(f"Type {n}", capacity=rng.randint(*CAPACITY)) for n in range(TYPES)]
        concert = await insist(lambda: admin.register(ticketTypes=types, maxTicketsPerUser=LIMIT))
        concert_id = raw(concert.id)
        self.history.openings.append(await insist(lambda: opening_of(database, concert_id)))
        self.open[concert_id] = [raw(type_id) for type_id in concert.types]
        self._asked[concert_id].add(LIMIT)
        for type_id, asked in zip(self.open[concert_id], types, strict=True):
            self._asked[type_id].add(asked["capacity"])

    def another(self, rng: random.Random, of: str, values: range) -> int | None:
        """A value that was never asked for: what changes nothing has no place in the order of changes."""
        fresh = [value for value in values if value not in self._asked[of]]
        if not fresh:
            return None
        value = rng.choice(fresh)
        self._asked[of].add(value)
        return value


@dataclass
class Account:
    """Somebody with a token that holds at every API process."""

    user_id: str
    apis: list[Api]


async def sign_up(world: World, count: int) -> list[Account]:
    """New buyers."""
    accounts = []
    for _ in range(count):
        buyer = await insist(world.apis[0].new_buyer)
        apis = [api.signed_in(buyer.token or "", buyer.user_id) for api in world.apis]
        accounts.append(Account(raw(buyer.user_id), apis))
    return accounts


async def shop(account: Account, market: Market, *, rng: random.Random, until_s: float) -> None:
    """Book, pay, cancel or let it expire, again and again until then."""
    apis = account.apis[:]
    rng.shuffle(apis)
    buyer = RecordedBuyer(market.history, OverHttp(apis), account.user_id)
    while time.monotonic() < until_s:
        await _buy_once(buyer, market, rng)
        await asyncio.sleep(rng.uniform(0, 2 * THINK_S))


async def _buy_once(buyer: RecordedBuyer, market: Market, rng: random.Random) -> None:
    concert_id = rng.choice(list(market.open))
    types = rng.sample(market.open[concert_id], rng.randint(1, TYPES))
    booked = await buyer.book(concert_id, {type_id: rng.randint(1, TICKETS_MAX) for type_id in types})
    if booked.seen is None:
        return
    booking_id, choice = booked.seen.booking_id, rng.random()
    if choice < 0.1:
        return  # left alone: it expires
    if choice < 0.2:
        await buyer.cancel(booking_id)
        return
    if choice < 0.25:
        await asyncio.sleep(HOLD_S - 0.3)  # pays in the last moment, or a moment too late
    (method,) = rng.choices(list(METHODS), list(METHODS.values()))
    paid = await buyer.pay(booking_id, method)
    if paid.code in {"PAYMENT_DECLINED", "PaymentDeferred", "PaymentActionRequired"}:
        await asyncio.sleep(rng.uniform(0, 1.0))
        paid = await buyer.pay(booking_id, "pm_card_visa")
    if rng.random() < 0.5:
        await buyer.cancel(booking_id)


async def organise(
    admins: list[Api], market: Market, database: Database, *, rng: random.Random, until_s: float
) -> None:
    """Change capacities and limits, call a concert off now and then, and have as many on sale as before."""
    organiser = RecordedOrganiser(market.history, OverHttp(admins), "organiser")
    while time.monotonic() < until_s:
        await asyncio.sleep(rng.uniform(*ORGANISER_NAP_S))
        concert_id = rng.choice(list(market.open))
        choice = rng.random()
        if choice < 0.25:
            del market.open[concert_id]
            await market.add(admins[0], database, rng)
            if choice < 0.15:
                await organiser.close(concert_id)
        elif choice < 0.9:
            type_id = rng.choice(market.open[concert_id])
            capacity = market.another(rng, type_id, CAPACITIES)
            if capacity is not None:
                await organiser.change(concert_id, {type_id: capacity})
        elif (limit := market.another(rng, concert_id, LIMITS)) is not None:
            await organiser.change(concert_id, limit=limit)
