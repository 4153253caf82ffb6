"""An application whose clock is an hour off decides as the database's clock says.

Only the age of a webhook's signature is judged by the application's own clock: it is written by the processor's, and
no database was there. On a clock that is five minutes ahead webhooks are refused, and asking the processor takes
their place.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import httpx
import pytest
import websockets

from infra.db.tables import idempotency_keys, payment_intents
from infra.db.unit import Database
from tests.client import PASSWORD, REGISTER, Api, Json, concert_input, socket, until
from tests.databases import PostgresDatabases
from tests.db_world import run_sql
from tests.shell import Shell
from tests.story.world import WEBHOOK_SECRET, Processor, raw

pytestmark = pytest.mark.anyio

HOUR = timedelta(hours=1)
HALF_AN_HOUR = timedelta(minutes=30)
HOLD = timedelta(minutes=10)
ADMIN = "admin@example.org"
# Kept 72 h: half an hour less, and half an hour more.
YOUNG, OLD = "young", "old"
LEAVE_KEY = f"""INSERT INTO idempotency_keys (user_id, mutation, key, arguments_hash, claimed_at)
  VALUES ('nobody', 'bookConcert', '{YOUNG}', 'h', clock_timestamp() - interval '71.5 h'),
         ('nobody', 'bookConcert', '{OLD}', 'h', clock_timestamp() - interval '72.5 h')"""


@dataclass
class Place:
    """Where a `serve` with a wrong clock and a worker inside runs, and its processor, whose clock is right."""

    url: str
    database_url: str
    processor_url: str


@dataclass
class House:
    """The same, with what is needed to ask."""

    api: Api
    admin: Api
    database: Database
    processor: Processor

    async def now(self) -> datetime:
        """The database's clock."""
        return await self.database.reads.now()

    async def on_sale(self) -> set[str]:
        """The concerts that the catalogue shows as being on sale."""
        query = "{ concerts(first: 100, filter: {onSale: true}) { edges { node { id } } } }"
        return {edge["node"]["id"] for edge in (await self.api.ask(query))["edges"]}


@pytest.fixture(scope="module", params=[HOUR, -HOUR], ids=["ahead", "behind"])
def shift(request: pytest.FixtureRequest) -> timedelta:
    """How wrong the clock is."""
    by: timedelta = request.param
    return by


@pytest.fixture(scope="module")
def place(shift: timedelta, postgres_databases: PostgresDatabases) -> Iterator[Place]:
    """Started once for all tests, with two keys in the database that somebody used three days ago."""
    with ExitStack() as stack:
        database_url = stack.enter_context(postgres_databases.fresh())
        sandbox = stack.enter_context(Shell({}).running("sandbox", "--port", "0"))
        processor_url = sandbox.hears(r"at (http://127\.0\.0\.1:\d+)")[1]
        settings = {
            "database_url": database_url,
            "demo": "0",
            "log_level": "error",
            "hold_s": f"{HOLD.total_seconds():.0f}",
            "session_lifetime_s": f"{HALF_AN_HOUR.total_seconds():.0f}",
            "payment_timeout_ms": "20000",
            "payment_settle_after_s": f"{HALF_AN_HOUR.total_seconds():.0f}",
            "stripe_api_key": "sk_test_tests",
            "stripe_api_base": processor_url,
            "stripe_webhook_secret": WEBHOOK_SECRET,
        }
        shell = Shell(settings, ("-m", "tests.faults.shifted_clock", f"{shift.total_seconds()}"))
        assert shell.run("create-admin", "--email", ADMIN, "--name", "A", given=PASSWORD).exit_code == 0
        asyncio.run(_leave_keys(database_url))
        served = stack.enter_context(shell.running("serve", "--port", "0"))
        yield Place(served.hears(r"(http://127\.0\.0\.1:\d+)/graphql")[1], database_url, processor_url)


async def _leave_keys(database_url: str) -> None:
    database = Database(database_url)
    await run_sql(database, LEAVE_KEY)
    await database.close()


@pytest.fixture
async def house(place: Place) -> AsyncIterator[House]:
    """To be used by one test after the other."""
    database = Database(place.database_url)
    async with httpx.AsyncClient(timeout=30, transport=httpx.AsyncHTTPTransport(retries=5)) as http:
        api, processor = Api(place.url, http), Processor(place.processor_url, http)
        await processor.control(
            mode="ok", webhook_url=f"{place.url}/webhooks/stripe", webhook_secret=WEBHOOK_SECRET
        )
        log_in = "mutation($i: LogInInput!) { logIn(input: $i) { ... on SignInSuccess { accessToken } } }"
        signed_in = await api.ask(log_in, i={"email": ADMIN, "password": PASSWORD})
        yield House(api, api.signed_in(signed_in["accessToken"]), database, processor)
    await database.close()


async def test_the_clock_is_really_wrong(house: House, shift: timedelta) -> None:
    """As the Date of its answers says."""
    answer = await house.api.http.get(f"{house.api.url}/healthz")
    off = parsedate_to_datetime(answer.headers["date"]) - datetime.now(UTC)
    assert abs(off - shift) < HALF_AN_HOUR


# ---------------------------------------------------------------- concerts and their sales
@pytest.mark.parametrize(
    ("opens", "closes", "told"),
    [
        (HALF_AN_HOUR, HOUR, "SALES_NOT_OPEN"),
        (-HALF_AN_HOUR, HALF_AN_HOUR, "BookConcertSuccess"),
        (-HOUR, -HALF_AN_HOUR, "SALES_CLOSED"),
    ],
)
async def test_a_sale_opens_and_closes_by_the_database(
    house: House, opens: timedelta, closes: timedelta, told: str
) -> None:
    """Half an hour before its time it is not open, half an hour after it it is closed; the catalogue agrees."""
    now = await house.now()
    concert = await house.admin.register(salesOpenAt=iso(now + opens), salesCloseAt=iso(now + closes))
    answer = await (await house.api.new_buyer()).book(concert)
    assert (answer.get("code") or answer["__typename"]) == told
    assert (concert.id in await house.on_sale()) == (told == "BookConcertSuccess")


async def test_a_concert_starts_by_the_database(house: House) -> None:
    """Half an hour from now it can be registered and cancelled, half an hour ago it can't."""
    now = await house.now()
    window = {"salesOpenAt": iso(now - HOUR), "salesCloseAt": iso(now - HALF_AN_HOUR)}
    late = concert_input(**window, startsAt=iso(now - HALF_AN_HOUR))
    refused = await house.admin.ask(REGISTER, input=late)
    assert [field["path"] for field in refused["fields"]] == [["startsAt"]]

    starts_at = iso(now + HALF_AN_HOUR)
    concert = await house.admin.register(salesCloseAt=starts_at, startsAt=starts_at)
    ann = await house.api.new_buyer()
    first, second = await ann.booked(concert), await ann.booked(concert)
    assert (await ann.cancel(first["id"]))["__typename"] == "CancelBookingSuccess"
    sql = "UPDATE sales SET starts_at = clock_timestamp() - interval '30 min' WHERE concert_id = :id"
    await run_sql(house.database, sql, id=raw(concert.id))
    assert (await ann.cancel(second["id"]))["code"] == "CANCELLATION_CLOSED"


# ---------------------------------------------------------------- holds
async def test_a_hold_begins_and_ends_by_the_database(house: House) -> None:
    """It lasts ten minutes from the booking; one that passed a second ago is expired, one that did not is paid."""
    concert = await house.admin.register()
    ann = await house.api.new_buyer()
    before = await house.now()
    kept, passed = await ann.booked(concert), await ann.booked(concert)
    after = await house.now()
    created_at = datetime.fromisoformat(kept["createdAt"])
    assert before <= created_at <= after
    assert datetime.fromisoformat(kept["payBy"]) == created_at + HOLD
    over = "UPDATE bookings SET hold_until = clock_timestamp() - interval '1 s' WHERE id = :id"
    await run_sql(house.database, over, id=raw(passed["id"]))
    await ann.until_booking(passed["id"], lambda now: now["status"] == "EXPIRED")
    assert (await ann.booking(kept["id"]))["status"] == "AWAITING_PAYMENT"
    assert await ann.seats(concert) == (9, 1, 0)
    assert (await ann.pay(kept["id"]))["__typename"] == "PayBookingSuccess"
    assert (await ann.pay(passed["id"]))["code"] == "HOLD_EXPIRED"


# ---------------------------------------------------------------- sessions
async def test_a_session_ends_by_the_database(house: House) -> None:
    """One of half an hour is good for requests and for a socket; once it is over, both end."""
    ann = await house.api.new_buyer()
    async with socket(house.api.url, token=ann.token) as ws:
        await ws.send('{"type":"ping"}')
        assert '"pong"' in str(await ws.recv())
        assert (await ann.ask("{ viewer { id } }"))["id"] == ann.user_id
        over = "UPDATE sessions SET expires_at = clock_timestamp() - interval '1 s' WHERE user_id = :id"
        await run_sql(house.database, over, id=raw(ann.user_id))
        # Who is signed in is remembered for two seconds.
        await until(lambda: ann.post("{ viewer { id } }"), lambda answer: "UNAUTHENTICATED" in answer.text)
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await asyncio.wait_for(ws.recv(), 10)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 4403


# ---------------------------------------------------------------- idempotency keys
async def test_a_key_is_kept_by_the_database(house: House) -> None:
    """After 71.5 hours it repeats its booking, after 72.5 hours it makes another."""
    concert = await house.admin.register()
    ann = await house.api.new_buyer()
    first = (await ann.book(concert, key="k"))["booking"]["id"]
    for age, is_kept in ((timedelta(hours=71.5), True), (timedelta(hours=72.5), False)):
        sql = "UPDATE idempotency_keys SET claimed_at = clock_timestamp() - make_interval(secs => :age_s)"
        await run_sql(
            house.database, f"{sql} WHERE user_id = :id", age_s=age.total_seconds(), id=raw(ann.user_id)
        )
        assert ((await ann.book(concert, key="k"))["booking"]["id"] == first) == is_kept


async def test_a_key_is_reaped_by_the_database(house: House) -> None:
    """The worker has forgotten the one that is older than 72 hours, and not the other."""

    async def left() -> set[str]:
        ours = idempotency_keys.select().where(idempotency_keys.c.user_id == "nobody")
        async with house.database.readers.single() as statements:
            return {row.key for row in await statements.rows(ours)}

    await until(left, lambda keys: OLD not in keys)
    assert await left() == {YOUNG}


# ---------------------------------------------------------------- payments
async def test_an_unknown_outcome_is_waited_for_by_the_database(house: House) -> None:
    """The processor is asked again and again; only half an hour after it was sent the attempt is given up."""
    ann = await house.api.new_buyer()
    booking = await ann.booked(await house.admin.register())
    declined = await ann.pay(booking["id"], "pm_card_visa_chargeDeclined")
    assert declined["code"] == "PAYMENT_DECLINED"
    await house.processor.control(fail_rate=1.0)
    pending = await ann.pay(booking["id"])
    assert (pending["__typename"], pending["booking"]["payment"]["status"]) == ("PaymentPending", "UNKNOWN")
    await house.processor.control(fail_rate=0)
    await until(lambda: times_asked(house, booking), lambda times: times >= 2)
    assert (await ann.booking(booking["id"]))["payment"]["status"] == "UNKNOWN"
    for change in (
        "payments SET created_at = created_at - interval '30 min'",
        "payment_intents SET look_at = now()",
    ):
        await run_sql(house.database, f"UPDATE {change} WHERE booking_id = :id", id=raw(booking["id"]))
    back = await ann.until_booking(booking["id"], lambda now: now["status"] == "AWAITING_PAYMENT")
    assert back["payment"]["status"] == "VOIDED"


async def test_asking_takes_the_place_of_webhooks(house: House, shift: timedelta) -> None:
    """On a clock that is ahead they look old and are refused; the buyer's authentication counts all the same."""
    ann = await house.api.new_buyer()
    booking = await ann.booked(await house.admin.register())
    asked = await ann.pay(booking["id"], "pm_card_authenticationRequired")
    assert asked["__typename"] == "PaymentActionRequired"
    await house.processor.http.get(asked["redirectUrl"])
    await ann.until_booking(booking["id"], lambda now: now["status"] == "APPROVED")
    metrics = (await house.api.http.get(f"{house.api.url}/metrics")).text
    was_refused = 'frontrow_http_request_seconds_count{method="POST",status="400"}' in metrics
    assert was_refused == (shift > timedelta(0))


async def times_asked(house: House, booking: Json) -> int:
    """How often the processor was asked about the booking's intent in vain."""
    ours = payment_intents.select().where(payment_intents.c.booking_id == raw(booking["id"]))
    async with house.database.readers.single() as statements:
        (row,) = await statements.rows(ours)
    return int(row.asked)


def iso(moment: datetime) -> str:
    """A DateTime to send."""
    return moment.isoformat()
