"""Signing up, in and out: who somebody is, for how long, and what others see of them."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import websockets

from tests.client import (
    BOOK,
    GET_COUNT,
    MY_PAGE,
    PASSWORD,
    PATIENCE_S,
    PROBLEM,
    WATCH_MINE,
    Api,
    Json,
    socket,
    until,
)
from tests.story.conftest import NewWorld
from tests.story.refusals import code_of, wrong_fields
from tests.story.unchanged import nothing_changes, rows
from tests.story.world import World

pytestmark = pytest.mark.anyio

SIGNED_IN = """__typename
  ... on SignInSuccess { accessToken session { id createdAt expiresAt user { ...U } } }"""
USER = "fragment U on User { id email name role createdAt }"
SIGN_UP = f"""mutation($input: SignUpInput!) {{ signUp(input: $input) {{ {SIGNED_IN}
  ... on InvalidInputProblem {{ fields {{ path message }} }} {PROBLEM} }} }} {USER}"""
LOG_IN = f"mutation($input: LogInInput!) {{ logIn(input: $input) {{ {SIGNED_IN} {PROBLEM} }} }} {USER}"
LOG_OUT = "mutation { logOut { __typename ... on LogOutSuccess { ok } } }"
VIEWER = f"{{ viewer {{ ...U }} }} {USER}"
NODE = f"query($id: ID!) {{ node(id: $id) {{ ...U }} }} {USER}"


async def sign_up(
    api: Api, email: str = "ann@example.org", *, password: str = PASSWORD, name: str = "Ann"
) -> Json:
    """signUp."""
    return dict(await api.ask(SIGN_UP, input={"email": email, "password": password, "name": name}))


async def log_in(api: Api, email: str = "ann@example.org", *, password: str = PASSWORD) -> Json:
    """logIn."""
    return dict(await api.ask(LOG_IN, input={"email": email, "password": password}))


def as_seen_by(api: Api, result: Json) -> Api:
    """The endpoint as the one who signed in."""
    return api.signed_in(result["accessToken"], result["session"]["user"]["id"])


async def test_somebody_signs_up_and_is_who_they_say(world: World) -> None:
    """The account is signed in at once, with a session of two weeks; the address is kept in lower case."""
    assert await world.api.ask(VIEWER) is None
    before = datetime.now(UTC) - timedelta(seconds=1)
    result = await sign_up(world.api, " Ann.Müller@Example.ORG ", name="  Ann Müller 🎸 ")
    assert result["__typename"] == "SignInSuccess"
    session, user = result["session"], result["session"]["user"]
    assert (user["email"], user["name"]) == ("ann.müller@example.org", "Ann Müller 🎸")
    assert user["role"] == "CUSTOMER"
    created_at = datetime.fromisoformat(session["createdAt"])
    assert before < datetime.fromisoformat(user["createdAt"]) <= created_at <= datetime.now(UTC)
    assert datetime.fromisoformat(session["expiresAt"]) - created_at == timedelta(days=14)
    ann = as_seen_by(world.api, result)
    assert await ann.ask(VIEWER) == user
    again = await log_in(world.api, "ANN.MÜLLER@example.org")
    assert again["session"]["user"] == user
    assert again["accessToken"] != result["accessToken"] and again["session"]["id"] != session["id"]
    # Both sessions live side by side.
    assert await as_seen_by(world.api, again).ask(VIEWER) == await ann.ask(VIEWER) == user


async def test_secrets_are_stored_as_hashes_only(world: World) -> None:
    """Neither the password nor the token stands in the database."""
    result = await sign_up(world.api)
    stored = repr(await rows(world))
    assert PASSWORD not in stored and result["accessToken"] not in stored
    assert "$argon2id$" in stored


async def test_an_address_is_its_owners_and_admins_to_see(world: World) -> None:
    """Others don't even see that the person is there."""
    ann = await world.api.new_buyer()
    bob = await world.api.new_buyer()
    own = await ann.ask(NODE, id=ann.user_id)
    assert own["email"].startswith("buyer-")
    assert (await world.admin.ask(NODE, id=ann.user_id))["email"] == own["email"]
    assert (await world.admin.ask(VIEWER))["role"] == "ADMIN"
    for stranger in (bob, world.api):
        assert await stranger.ask(NODE, id=ann.user_id) is None
    assert (await ann.ask(MY_PAGE))["user"] == {"id": ann.user_id, "email": own["email"]}


# ---------------------------------------------------------------- refused
async def test_a_wrong_sign_up_is_refused_at_the_field(world: World) -> None:
    """Address, password and name, all wrong ones at once and each of them once; no account is made."""
    good = {"email": "ann@example.org", "password": PASSWORD, "name": "Ann"}
    emails = (
        "",
        "ann",
        "@example.org",
        "ann@",
        "ann@example",
        "a b@example.org",
        "ann@ex@ample.org",
        "ann@.org",
    )
    cases: list[tuple[Json, set[str]]] = [
        *(
            ({"email": email}, {"email"})
            for email in (*emails, "a" * 65 + "@x.org", "a@" + "x" * 250 + ".org")
        ),
        *(({"email": email}, {"email"}) for email in ("a\x00@x.org", "a\n@x.org")),
        *(
            ({"password": word}, {"password"})
            for word in ("", "1234567", "x" * 129, "correct\x00horse", "a\tb\nc\rdef")
        ),
        *(({"name": name}, {"name"}) for name in ("", "  ", "n" * 101, "n\x00")),
        ({"email": "", "password": "", "name": ""}, {"email", "password", "name"}),
    ]
    async with nothing_changes(world):
        for wrong, paths in cases:
            result = await world.api.ask(SIGN_UP, input=good | wrong)
            assert sorted(wrong_fields(result)) == sorted([path] for path in paths), wrong
        for no_text in (None, 5, ["x"]):
            assert await code_of(world.api, SIGN_UP, input=good | {"name": no_text}) == "BAD_USER_INPUT"
    for number, word in enumerate(("12345678", "x" * 128, "φράση με κενά", "🎸🎸🎸🎸🎸🎸🎸🎸", "  spaces  ")):
        email = f"ann{number}@example.org"
        assert (await sign_up(world.api, email, password=word))["__typename"] == "SignInSuccess", word
        assert (await log_in(world.api, email, password=word))["__typename"] == "SignInSuccess", word
        assert (await log_in(world.api, email, password=word + "x"))["code"] == "WRONG_CREDENTIALS"


async def test_an_address_has_one_account(world: World) -> None:
    """Taken also in other case and for admins, and by one alone of many who want it at once."""
    await sign_up(world.api)
    admins = (await world.admin.ask(VIEWER))["email"]
    async with nothing_changes(world):
        for email in ("ann@example.org", "ANN@example.org", " ann@EXAMPLE.org ", admins):
            taken = await sign_up(world.api, email, password="another password", name="Not Ann")
            assert (taken["__typename"], taken["code"]) == ("EmailTakenProblem", "EMAIL_TAKEN")
            assert taken["retryable"] is False
    spellings = ("bob@example.org", "Bob@example.org", "BOB@EXAMPLE.ORG", "bob@Example.org")
    answers = await asyncio.gather(*(sign_up(world.api, email) for email in spellings * 3))
    assert sorted(answer["__typename"] for answer in answers) == ["EmailTakenProblem"] * 11 + [
        "SignInSuccess"
    ]
    (winner,) = (answer for answer in answers if answer["__typename"] == "SignInSuccess")
    assert (await as_seen_by(world.api, winner).ask(VIEWER))["email"] == "bob@example.org"


async def test_wrong_credentials_tell_nothing_and_run_out(world: World) -> None:
    """Word for word alike for known and unknown addresses; after ten wrong ones even the right one must wait."""
    await sign_up(world.api)
    await sign_up(world.api, "bob@example.org")
    async with nothing_changes(world):
        for email in ("ann@example.org", "nobody@example.org"):
            answers = [await log_in(world.api, email, password=f"guess {n:09}") for n in range(10)]
            assert all(answer == answers[0] for answer in answers)
            wrong = answers[0]
            assert (wrong["__typename"], wrong["code"]) == ("WrongCredentialsProblem", "WRONG_CREDENTIALS")
            assert (wrong["retryable"], wrong["retryAfterMs"]) == (False, None)
            # The address in another case is the same address.
            refused = await log_in(world.api, email.upper())
            assert (refused["__typename"], refused["code"]) == ("TooManyAttemptsProblem", "TOO_MANY_ATTEMPTS")
            assert refused["retryable"] is True and 0 < refused["retryAfterMs"] <= 900_000
    # Nobody else is held up, and whoever gets it right starts anew.
    for _ in range(2):
        for n in range(9):
            assert (await log_in(world.api, "bob@example.org", password=f"{n}"))[
                "code"
            ] == "WRONG_CREDENTIALS"
        assert (await log_in(world.api, "bob@example.org"))["__typename"] == "SignInSuccess"


async def test_nonsense_is_only_a_wrong_password(world: World) -> None:
    """NUL, emptiness and length make no other answer; a sign-up has no half surrogate to offer."""
    await sign_up(world.api)
    async with nothing_changes(world):
        for email, password in (
            ("", ""),
            ("\x00", PASSWORD),
            ("ann@example.org", "\x00"),
            ("a" * 9_000, "b" * 9_000),
        ):
            assert (await log_in(world.api, email, password=password))["code"] == "WRONG_CREDENTIALS"
        # Only the first 128 characters would be hashed; more of them are not the same password.
        long = "x" * 128
        assert (await log_in(world.api, "ann@example.org", password=long + "y"))[
            "code"
        ] == "WRONG_CREDENTIALS"


async def test_many_right_log_ins_at_once_are_no_attack(world: World) -> None:
    """Ten wrong ones are too many; right ones never are."""
    await sign_up(world.api)
    answers = await asyncio.gather(*(log_in(world.api) for _ in range(20)))
    assert {answer["__typename"] for answer in answers} == {"SignInSuccess"}


async def test_sign_ups_of_one_address_run_out(new_world: NewWorld) -> None:
    """TOO_MANY_ATTEMPTS, retryable, and no account."""
    async with new_world(sign_ups_per_min=2) as world:
        await sign_up(world.api, "a@example.org")
        await sign_up(world.api, "b@example.org")
        async with nothing_changes(world):
            refused = await sign_up(world.api, "c@example.org")
            assert (refused["__typename"], refused["code"]) == ("TooManyAttemptsProblem", "TOO_MANY_ATTEMPTS")
            assert refused["retryable"] is True and 0 < refused["retryAfterMs"] <= 60_000


# ---------------------------------------------------------------- the end of a session
async def test_a_token_ends_with_its_session(world: World) -> None:
    """After logOut it is refused everywhere, public fields too; other sessions of the person go on."""
    concert = await world.admin.register()
    first = as_seen_by(world.api, await sign_up(world.api))
    second = as_seen_by(world.api, await log_in(world.api))
    assert await first.ask(LOG_OUT) == {"__typename": "LogOutSuccess", "ok": True}
    async with nothing_changes(world):
        await is_refused_everywhere(first, concert.id)
    assert (await second.ask(VIEWER))["email"] == "ann@example.org"
    assert (await second.booked(concert))["status"] == "AWAITING_PAYMENT"


async def test_nobody_logs_out_too(world: World) -> None:
    """Fine, as often as one likes."""
    for _ in range(2):
        assert await world.api.ask(LOG_OUT) == {"__typename": "LogOutSuccess", "ok": True}


async def test_a_malformed_or_unknown_token_is_unauthenticated(world: World) -> None:
    """Never taken for nobody's."""
    concert = await world.admin.register()
    await is_refused_everywhere(world.api.signed_in("x" * 43), concert.id)
    for header in (
        "Bearer",
        "Basic YTpi",
        "Token x",
        f"Bearer {world.admin.token} x",
        "",
        "Bearer é",
    ):
        answer = await world.api.http.post(
            f"{world.api.url}/graphql",
            json={"query": VIEWER},
            headers=[(b"Authorization", header.encode())],
        )
        assert answer.json()["errors"][0]["extensions"]["code"] == "UNAUTHENTICATED", header


async def test_a_session_runs_out(new_world: NewWorld) -> None:
    """Over HTTP the token is refused, an open socket closes with 4403, and a new log-in works."""
    async with new_world(session_lifetime_s=3) as world:
        concert = await world.admin.register()
        ann = as_seen_by(world.api, await sign_up(world.api))
        async with ann.watching(WATCH_MINE) as stream:
            with pytest.raises(websockets.ConnectionClosed) as closed:
                async with asyncio.timeout(PATIENCE_S):
                    await stream.ws.recv()
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 4403

        async def ask() -> Any:
            return (await ann.post(VIEWER)).json().get("errors")

        await until(ask, lambda errors: errors is not None)
        await is_refused_everywhere(ann, concert.id)
        again = as_seen_by(world.api, await log_in(world.api))
        assert (await again.ask(VIEWER))["email"] == "ann@example.org"


async def is_refused_everywhere(ended: Api, concert_id: str) -> None:
    """UNAUTHENTICATED for queries, mutations and what everybody may see; 4403 on a socket."""
    wanted = {"concertId": concert_id, "items": []}
    asked: list[tuple[str, Json]] = [
        (VIEWER, {}),
        (GET_COUNT, {"id": concert_id}),
        ("{ concerts { totalCount } }", {}),
        (LOG_OUT, {}),
        (LOG_IN, {"input": {"email": "ann@example.org", "password": PASSWORD}}),
        (BOOK, {"input": wanted}),
        (MY_PAGE, {}),
    ]
    for query, variables in asked:
        assert await code_of(ended, query, **variables) == "UNAUTHENTICATED", query
    headers = {"Authorization": f"Bearer {ended.token}", "Accept": "application/graphql-response+json"}
    answer = await ended.http.post(f"{ended.url}/graphql", json={"query": VIEWER}, headers=headers)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    with pytest.raises(websockets.ConnectionClosed) as closed:
        async with socket(ended.url, token=ended.token):
            pass
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 4403


async def test_a_session_of_one_socket_is_not_anothers(world: World) -> None:
    """Logging out closes the sockets of this session only."""
    first = as_seen_by(world.api, await sign_up(world.api))
    second = as_seen_by(world.api, await log_in(world.api))
    async with first.watching(WATCH_MINE) as closing, second.watching(WATCH_MINE) as staying:
        await first.ask(LOG_OUT)
        with pytest.raises(websockets.ConnectionClosed):
            await closing.message()
        assert closing.ws.close_code == 4403
        await staying.ws.send(json.dumps({"type": "ping"}))
        assert (await staying.message())["type"] == "pong"
