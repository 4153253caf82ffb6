"""GraphQL over HTTP on a real socket: how much, how long, and what happens at the end."""

import asyncio
import hashlib
import json
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from graphql import get_introspection_query

from domain.base import Overloaded
from infra.graphql_app.operations import Variables
from infra.telemetry import Metrics
from tests.toy_clients import (
    HELLO,
    JSON,
    RESPONSE_JSON,
    codes,
    post,
    toy,
)
from tests.toy_schema import PATIENCE_S, Stage, serving, toy_app, until

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------- limits
def nested(depth: int) -> str:
    """A query so many fields deep."""
    return "{ node " + "{ child " * (depth - 2) + "{ name }" + " }" * (depth - 1)


def aliased(count: int) -> str:
    """A query with so many aliases, most of them through fragments."""
    return (
        "{ "
        + " ".join(f"a{i}: node {{ ...F }}" for i in range(count // 3))
        + " }"
        + (" fragment F on Node { b: name ...G } fragment G on Node { c: name }")
    )


@pytest.mark.parametrize(
    ("query", "limit", "is_allowed"),
    [
        (nested(6), {"max_depth": 6}, True),
        (nested(7), {"max_depth": 6}, False),
        (
            "{ node { ...F } } fragment F on Node { child { ...G } } fragment G on Node { name }",
            {"max_depth": 3},
            True,
        ),
        (
            "{ node { ...F } } fragment F on Node { child { ...G } } fragment G on Node { name }",
            {"max_depth": 2},
            False,
        ),
        (aliased(12), {"max_aliases": 12}, True),
        (aliased(12), {"max_aliases": 11}, False),
        ("{ a: hello ... { b: hello } }", {"max_aliases": 1}, False),
        ("{ hello who }", {"max_tokens": 4}, True),
        ("{ hello who }", {"max_tokens": 3}, False),
        ("#\n" * 11 + "{ hello }", {"max_tokens": 10}, False),
    ],
)
async def test_a_document_is_bounded_in_depth_aliases_and_tokens(
    query: str, limit: dict[str, Any], is_allowed: bool
) -> None:
    """The limit is allowed and one more is not, fragments counted as often as they are spread."""
    async with toy(**limit) as (client, _):
        for _ in range(2):  # the second answer comes from the cache
            response = await post(client, {"query": query})
            if is_allowed:
                assert "errors" not in response.json()
            else:
                assert codes(response)[0] in ("GRAPHQL_VALIDATION_FAILED", "GRAPHQL_PARSE_FAILED")
                assert "data" not in response.json()


async def test_a_bomb_of_fragments_is_counted_in_no_time() -> None:
    """Fragments that double at every level would be walked 2^40 times by a naive count."""
    levels = 40
    fragments = [
        f"fragment F{i} on Node {{ x: child {{ ...F{i + 1} }} y: child {{ ...F{i + 1} }} }}"
        for i in range(levels)
    ]
    query = " ".join(["{ node { ...F0 } }", *fragments, f"fragment F{levels} on Node {{ name }}"])
    async with toy() as (client, _):
        response = await asyncio.wait_for(post(client, {"query": query}), 2)
        assert set(codes(response)) == {"GRAPHQL_VALIDATION_FAILED"}


async def test_fields_that_clash_are_not_compared_without_end() -> None:
    """A legal number of tokens can ask for 50,000 comparisons, a second of work: it is cut short."""
    query = "{" + "".join(f' hello(name: "{i}")' for i in range(330)) + "}"
    async with toy() as (client, _):
        response = await post(client, {"query": query})
        assert codes(response) == ["GRAPHQL_VALIDATION_FAILED"]
        assert response.json()["errors"][0]["message"] == "Validation aborted."


async def test_a_document_full_of_faults_is_told_of_some() -> None:
    """Twenty of them, and that there are more."""
    async with toy() as (client, _):
        response = await post(client, {"query": "{" + "".join(f" nosuch{i}" for i in range(900)) + "}"})
        assert codes(response) == ["GRAPHQL_VALIDATION_FAILED"] * 21
        assert response.json()["errors"][-1]["message"].startswith("Too many validation errors")


async def test_a_cycle_of_fragments_is_a_validation_error() -> None:
    """Also for the walk that counts."""
    async with toy() as (client, _):
        response = await post(client, {"query": "{ node { ...F } } fragment F on Node { child { ...F } }"})
        assert codes(response) == ["GRAPHQL_VALIDATION_FAILED"]


async def test_tools_may_read_the_schema() -> None:
    """The standard introspection query passes the limits on depth and aliases; an endless one doesn't."""
    async with toy(max_depth=3) as (client, _):
        response = await post(client, {"query": get_introspection_query()})
        assert response.json()["data"]["__schema"]["queryType"] == {"name": "Query", "kind": "OBJECT"}
        deep = "{ __schema { types { fields { type { fields { type { fields { type { fields { name } } } } } } } } } }"
        assert set(codes(await post(client, {"query": deep}))) == {"GRAPHQL_VALIDATION_FAILED"}


async def test_beyond_the_limit_in_flight_is_overloaded_at_once() -> None:
    """503 in both types with the time to wait, and room again as soon as one ends."""
    stage = Stage()
    async with toy(stage, max_in_flight=1) as (client, _):
        first = asyncio.create_task(post(client, {"query": "{ slow }"}))
        await asyncio.wait_for(stage.began.wait(), PATIENCE_S)
        for accept in (JSON, RESPONSE_JSON):
            response = await post(client, HELLO, accept)
            assert (response.status_code, codes(response)) == (503, ["OVERLOADED"])
            assert response.headers["retry-after"] == "1"
            assert response.json()["errors"][0]["extensions"]["retryAfterMs"] == 1000
        stage.may_finish.set()
        assert (await first).json() == {"data": {"slow": "query"}}
        assert (await post(client, HELLO)).json() == {"data": {"hello": "hello world"}}


async def test_a_rush_is_refused_before_it_is_begun() -> None:
    """Of twenty who come in one moment some are begun; the others hear OVERLOADED, and when to come back."""
    async with toy(max_not_begun=3) as (client, _):
        responses = await asyncio.gather(*(post(client, HELLO) for _ in range(20)))
        refused = [response for response in responses if response.status_code == 503]
        assert len(refused) >= 5
        for response in refused:
            assert codes(response) == ["OVERLOADED"]
            wait_ms = response.json()["errors"][0]["extensions"]["retryAfterMs"]
            assert (int(response.headers["retry-after"]) - 1) * 1_000 < wait_ms
            assert wait_ms <= int(response.headers["retry-after"]) * 1_000
            assert response.headers["x-request-id"]
        begun = [response.json() for response in responses if response not in refused]
        assert begun == [{"data": {"hello": "hello world"}}] * len(begun)
        assert (await post(client, HELLO)).json() == {"data": {"hello": "hello world"}}


async def test_who_is_told_no_holds_no_place_while_it_is_told() -> None:
    """It may have to wait for that, and others want the place."""
    held: list[str] = []

    def no_room(_: Variables, places: ExitStack) -> None:
        held.append("a place")
        places.callback(held.clear)
        raise Overloaded

    stage = Stage()
    app = toy_app(stage, rooms={"slow": no_room})
    async with serving(app) as up, httpx.AsyncClient(base_url=up.http, timeout=PATIENCE_S) as client:
        asked = asyncio.create_task(post(client, {"query": "mutation { slow }"}))
        # The toy's mutation answers a refusal as it answers everything.
        await asyncio.wait_for(stage.began.wait(), PATIENCE_S)
        assert held == []
        stage.may_finish.set()
        await asked


# ---------------------------------------------------------------- time and the end of things
async def test_a_query_that_takes_too_long_is_cancelled() -> None:
    """Its client is told to come back, and it holds nothing any more."""
    stage = Stage()
    async with toy(stage, request_timeout_s=0.05) as (client, _):
        response = await post(client, {"query": "{ slow }"})
        assert (response.status_code, codes(response)) == (503, ["OVERLOADED"])
    assert stage.done == ["query was cancelled"]


async def test_a_mutation_that_takes_too_long_goes_on() -> None:
    """Its client may ask again under the same key; the mutation ends by itself and keeps its place until then."""
    stage = Stage()
    async with toy(stage, request_timeout_s=0.2, max_in_flight=1) as (client, _):
        response = await post(client, {"query": "mutation { slow }"}, RESPONSE_JSON)
        assert (response.status_code, codes(response)) == (503, ["RETRYABLE"])
        assert stage.done == []
        assert codes(await post(client, HELLO)) == ["OVERLOADED"]
        stage.may_finish.set()
        await until(lambda: stage.done == ["mutation"])
        assert (await post(client, HELLO)).json() == {"data": {"hello": "hello world"}}


async def test_a_mutation_outlives_its_client() -> None:
    """The client is gone, the mutation is not."""
    stage = Stage()
    async with toy(stage) as (_, up):
        async with httpx.AsyncClient(base_url=up.http, timeout=0.2) as leaving:
            with pytest.raises(httpx.ReadTimeout):
                await post(leaving, {"query": "mutation { slow }"})
        stage.may_finish.set()
        await until(lambda: stage.done == ["mutation"])


async def test_a_stopping_server_waits_for_a_mutation() -> None:
    """Even one whose request the server has cancelled because its grace is over."""
    stage = Stage()
    async with toy(stage) as (client, up):
        asked = asyncio.create_task(post(client, {"query": "mutation { slow }"}))
        await asyncio.wait_for(stage.began.wait(), PATIENCE_S)
        stopping = asyncio.create_task(up.stop())
        assert (await asked).status_code == 500  # uvicorn's, after its grace of 1 s
        assert (stage.done, stopping.done()) == ([], False)
        stage.may_finish.set()
        await stopping
    assert stage.done == ["mutation"]


# ---------------------------------------------------------------- persisted queries
def persisted(query: str) -> dict[str, object]:
    """What Apollo's and urql's links send beside a query, or instead of it."""
    digest = hashlib.sha256(query.encode()).hexdigest()
    return {"extensions": {"persistedQuery": {"version": 1, "sha256Hash": digest}}}


async def test_a_query_is_known_by_its_hash_after_it_was_sent_once() -> None:
    """Not found, then registered, then found; by GET as well."""
    query = "query($n: String) { hello(name: $n) }"
    async with toy() as (client, _):
        unknown = await post(client, persisted(query))
        assert (unknown.status_code, codes(unknown)) == (200, ["PERSISTED_QUERY_NOT_FOUND"])
        assert unknown.json()["errors"][0]["message"] == "PersistedQueryNotFound"
        assert (await post(client, {"query": query, **persisted(query), "variables": {"n": "a"}})).json() == {
            "data": {"hello": "hello a"}
        }
        known = await post(client, {**persisted(query), "variables": {"n": "b"}})
        assert known.json() == {"data": {"hello": "hello b"}}
        params = {"extensions": json.dumps(persisted(query)["extensions"]), "variables": '{"n": "c"}'}
        assert (await client.get("/graphql", params=params)).json() == {"data": {"hello": "hello c"}}


async def test_a_wrong_hash_registers_nothing() -> None:
    """Or one client could put words into another's mouth."""
    async with toy() as (client, _):
        wrong = await post(client, {"query": "{ who }", **persisted("{ hello }")})
        assert codes(wrong) == ["BAD_USER_INPUT"]
        assert codes(await post(client, persisted("{ hello }"))) == ["PERSISTED_QUERY_NOT_FOUND"]


async def test_persisted_queries_take_only_so_much_room() -> None:
    """The ones used last stay."""
    queries = [f'{{ hello(name: "{i}") }}' for i in range(3)]
    async with toy(max_persisted_query_chars=2 * len(queries[0])) as (client, _):
        for query in queries[:2]:
            await post(client, {"query": query, **persisted(query)})
        await post(client, persisted(queries[0]))
        await post(client, {"query": queries[2], **persisted(queries[2])})
        first, second, third = [await post(client, persisted(query)) for query in queries]
        assert first.json() == {"data": {"hello": "hello 0"}}
        assert codes(second) == ["PERSISTED_QUERY_NOT_FOUND"]
        assert third.json() == {"data": {"hello": "hello 2"}}


async def test_operations_are_counted_by_type_and_code() -> None:
    """What never became an operation is counted too."""
    metrics = Metrics()
    async with (
        serving(toy_app(Stage(), metrics=metrics)) as up,
        httpx.AsyncClient(base_url=up.http) as client,
    ):
        await post(client, HELLO)
        await post(client, {"query": "{ missing }"})
        await post(client, {"query": "{"})
    for kind, code in (("query", "OK"), ("query", "NOT_FOUND"), ("none", "GRAPHQL_PARSE_FAILED")):
        labels = {"type": kind, "code": code}
        assert metrics.registry.get_sample_value("frontrow_graphql_operations_total", labels) == 1
