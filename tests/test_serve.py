"""Commands that run until they are told to stop: serve, worker, sandbox."""

from typing import Any

import httpx
import pytest

from tests.client import Api, Concert
from tests.servers import running_valkey
from tests.shell import PATIENCE_S, Shell

LOG_IN = """mutation($input: LogInInput!) { logIn(input: $input) { __typename
  ... on SignInSuccess { session { user { role } } } } }"""


@pytest.fixture
def sqlite_shell(sqlite_database_url: str) -> Shell:
    """On an empty, migrated SQLite database."""
    return Shell({"database_url": sqlite_database_url})


def test_the_first_start_shows_the_admins_password_once(sqlite_shell: Shell) -> None:
    """On an empty database: demo concerts, and an admin who can log in; SIGTERM ends it well. Never shown again."""
    with sqlite_shell.running("serve", "--port", "0") as first:
        shown = first.hears(r"admin: (\S+), password: (\S+) ")
        url = first.hears(r"(http://127\.0\.0\.1:\d+)/graphql")[1]
        wanted = {"input": {"email": shown[1], "password": shown[2]}}
        answer = posted(url, {"query": LOG_IN, "variables": wanted})
        assert answer["logIn"]["session"]["user"]["role"] == "ADMIN"
        assert posted(url, {"query": "{ concerts { totalCount } }"})["concerts"]["totalCount"] == 3
        for path in ("healthz", "readyz", "metrics"):
            assert httpx.get(f"{url}/{path}").status_code == 200
        assert first.ends() == 0
    assert sum("password" in line for line in first.said) == 1
    assert not any("Traceback" in line for line in first.said), first.said
    with sqlite_shell.running("serve", "--port", "0", "--without", "concert") as second:
        url = second.hears(r"(http://127\.0\.0\.1:\d+)/graphql")[1]
        assert "errors" in posted(url, {"query": "{ concerts { totalCount } }"}, is_whole=True)
        assert second.ends() == 0
    assert not any("password" in line for line in second.said), second.said


def posted(url: str, body: dict[str, object], *, is_whole: bool = False) -> dict[str, Any]:
    """The data, or the whole answer; the server may still be on its way up."""
    transport = httpx.HTTPTransport(retries=5)
    with httpx.Client(transport=transport, timeout=PATIENCE_S) as http:
        answer: dict[str, Any] = http.post(f"{url}/graphql", json=body).json()
    return answer if is_whole else answer["data"]


def test_without_demo_nothing_is_put_there(sqlite_shell: Shell) -> None:
    """FRONTROW_DEMO=0 leaves an empty database empty."""
    with sqlite_shell.running("serve", "--port", "0", demo="0") as served:
        url = served.hears(r"(http://127\.0\.0\.1:\d+)/graphql")[1]
        assert posted(url, {"query": "{ concerts { totalCount } }"})["concerts"]["totalCount"] == 0
        assert served.ends() == 0
    assert not any("password" in line for line in served.said), served.said


@pytest.mark.anyio
async def test_a_bank_leads_back_to_where_it_serves(sqlite_shell: Shell) -> None:
    """On whatever port that is, where no setting says otherwise."""
    with sqlite_shell.running("serve", "--port", "0", payment_timeout_ms="20000") as served:
        url = served.hears(r"(http://127\.0\.0\.1:\d+)/graphql")[1]
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(retries=5), timeout=30) as http:
            buyer = await Api(url, http).new_buyer()
            query = "{ concerts(first: 1) { edges { node { id ticketTypes { id } } } } }"
            node = (await buyer.ask(query))["edges"][0]["node"]
            booked = await buyer.booked(Concert(node["id"], [node["ticketTypes"][0]["id"]]))
            asked = await buyer.pay(booked["id"], "pm_card_authenticationRequired")
            assert f"{url}?payment_intent=" in (await http.get(asked["redirectUrl"])).text


def test_the_sandbox_runs_alone() -> None:
    """On a port the system chose, which it says; SIGTERM ends it well."""
    with Shell({}).running("sandbox", "--port", "0") as sandbox:
        url = sandbox.hears(r"Sandbox processor at (http://127\.0\.0\.1:\d+)")[1]
        assert httpx.get(f"{url}/_ledger").json() == []
        assert sandbox.ends() == 0


def test_a_worker_works_until_it_is_told_to_stop(postgres_database_url: str) -> None:
    """It says when it is at work, and leaves with 0."""
    with running_valkey() as server:
        shell = Shell(
            {"database_url": postgres_database_url, "redis_url": server.url, "stripe_api_key": "sk_test_x"}
        )
        with shell.running("worker") as worker:
            worker.hears("at work")
            assert worker.ends() == 0
        assert not any("Traceback" in line for line in worker.said), worker.said
