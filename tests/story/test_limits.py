"""The limits that settings name, in the running application: at each of them, and past it."""

import asyncio
from typing import Any

import pytest

from tests.client import PASSWORD, Json, until
from tests.story.conftest import NewWorld
from tests.story.crowd import at_once, told
from tests.story.unchanged import nothing_changes

pytestmark = pytest.mark.anyio

SIGN_UP = """mutation($input: SignUpInput!) { signUp(input: $input) { __typename
  ... on Problem { code message retryable retryAfterMs } } }"""


def is_too_early(answer: Json) -> bool:
    """Told to come back within the minute, under the same key."""
    is_named = (answer["__typename"], answer["code"]) == ("TooManyAttemptsProblem", "TOO_MANY_ATTEMPTS")
    return is_named and answer["retryable"] and 0 < answer["retryAfterMs"] <= 60_000


# ---------------------------------------------------------------- how often one person may try
async def test_a_person_books_only_so_often(new_world: NewWorld) -> None:
    """Past the limit nothing is done or stored; others go on, and the same key works where she may try again."""
    async with new_world(bookings_per_min=3) as world:
        concert = await world.admin.register()
        ann, eve = await world.api.new_buyer(), await world.api.new_buyer()
        answers = await at_once(ann.book(concert) for _ in range(3))
        assert told(answers) == {"BookConcertSuccess": 3}
        async with nothing_changes(world):
            assert is_too_early(await ann.book(concert, key="k"))
        await eve.booked(concert)
        assert await ann.seats(concert) == (6, 4, 0)
    # Attempts are counted by each process: the next one has never heard of her.
    async with new_world(bookings_per_min=3) as world:
        ann = world.api.signed_in(ann.token or "")
        assert (await ann.book(concert, key="k"))["__typename"] == "BookConcertSuccess"


async def test_a_person_pays_only_so_often(new_world: NewWorld) -> None:
    """Past the limit nothing is stored, and the processor is not asked."""
    async with new_world(payments_per_min=2) as world:
        ann = await world.api.new_buyer()
        booking = await ann.booked(await world.admin.register())
        for _ in range(2):
            declined = await ann.pay(booking["id"], "pm_card_visa_chargeDeclined")
            assert declined["code"] == "PAYMENT_DECLINED"
        async with nothing_changes(world):
            assert is_too_early(await ann.pay(booking["id"], key="k"))
        assert await world.processor.captured() == []


async def test_an_address_signs_up_only_so_often(new_world: NewWorld) -> None:
    """Past the limit there is no account, and no password is hashed for one."""
    async with new_world(sign_ups_per_min=2) as world:
        for _ in range(2):
            await world.api.new_buyer()
        async with nothing_changes(world):
            wanted = {"email": "late@example.org", "password": PASSWORD, "name": "Late"}
            assert is_too_early(dict(await world.api.ask(SIGN_UP, input=wanted)))


# ---------------------------------------------------------------- how much may wait
async def test_who_would_wait_too_long_is_told_at_once(new_world: NewWorld) -> None:
    """The only connection for writing is taken: OVERLOADED, nothing stored, and the same key works later."""
    async with new_world(db_pool_size=1, db_pool_wait_s=0.2) as world:
        concert = await world.admin.register()
        ann = await world.api.new_buyer()
        await world.outbox_is_empty()
        async with world.frontrow.database.write():
            refused = await ann.book(concert, key="k")
        assert (refused["__typename"], refused["code"]) == ("OverloadedProblem", "OVERLOADED")
        assert refused["retryable"] and refused["retryAfterMs"] > 0
        assert await ann.seats(concert) == (10, 0, 0)
        booked = await until(
            lambda: ann.book(concert, key="k"), lambda now: now["__typename"] == "BookConcertSuccess"
        )
        assert (await ann.book(concert, key="k"))["booking"]["id"] == booked["booking"]["id"]
        assert await ann.seats(concert) == (9, 1, 0)


async def test_the_processor_is_asked_only_so_much_at_once(new_world: NewWorld) -> None:
    """Past the limit people pay a little later: nothing was sent, and the seats stay held."""
    async with new_world(payment_max_in_flight=1, payment_timeout_ms=10_000) as world:
        concert = await world.admin.register()
        ann, eve = await world.api.new_buyer(), await world.api.new_buyer()
        hers, theirs = await ann.booked(concert), await eve.booked(concert)
        await world.processor.control(latency_ms=[500, 500])
        first = asyncio.create_task(ann.pay(hers["id"]))
        await ann.until_booking(hers["id"], lambda now: now["status"] == "PAYMENT_PENDING")
        deferred = await eve.pay(theirs["id"], key="k")
        assert (deferred["__typename"], deferred["booking"]["status"]) == (
            "PaymentDeferred",
            "PAYMENT_DEFERRED",
        )
        assert len(await world.processor.ledger()) == 1
        await world.processor.control(latency_ms=[0, 0])
        assert (await first)["__typename"] == "PayBookingSuccess"
        assert (await eve.pay(theirs["id"], key="k"))["__typename"] == "PayBookingSuccess"


# ---------------------------------------------------------------- how large a request may be
def of_aliases(n: int) -> str:
    """A document with so many aliases."""
    return "{ " + " ".join(f"a{i}: __typename" for i in range(n)) + " }"


def deep_concert(n: int) -> str:
    """A page of concerts down to the currency of a price, or not quite so far."""
    leaves = {5: "ticketTypes { name }", 6: "ticketTypes { price { currency } }"}
    return f"{{ concerts {{ edges {{ node {{ {leaves[n]} }} }} }} }}"


def of_tokens(n: int) -> str:
    """Two braces and a field for each other token."""
    return "{ " + "__typename " * (n - 2) + "}"


@pytest.mark.parametrize(
    ("settings", "document"),
    [
        ({"max_query_aliases": 5}, of_aliases),
        ({"max_query_depth": 5}, deep_concert),
        ({"max_query_tokens": 60}, of_tokens),
    ],
    ids=["aliases", "depth", "tokens"],
)
async def test_a_document_may_be_so_large(
    new_world: NewWorld, settings: dict[str, Any], document: Any
) -> None:
    """At the limit it is answered, one past it it is not run."""
    (limit,) = settings.values()
    async with new_world(**settings) as world:
        assert "errors" not in (await world.api.post(document(limit))).json()
        refused = (await world.api.post(document(limit + 1))).json()
        assert refused.get("data") is None and len(refused["errors"]) == 1
        assert refused["errors"][0]["extensions"]["code"] in {
            "GRAPHQL_VALIDATION_FAILED",
            "GRAPHQL_PARSE_FAILED",
        }
