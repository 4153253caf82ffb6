"""GraphQL over HTTP on a real socket: what may be sent, what is answered, who asks."""

import asyncio
import json
from itertools import product

import pytest
import structlog

from tests.toy_clients import (
    HELLO,
    JSON,
    RESPONSE_JSON,
    codes,
    post,
    toy,
)
from tests.toy_schema import PATIENCE_S, Stage

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------- requests
UNREADABLE = [
    (b"", "not valid JSON"),
    (b"{", "not valid JSON"),
    (b'{"query": NaN}', "not valid JSON"),
    (b'{"query": "{ hello }"}\xff', "not valid JSON"),
    (b'{"query": "\\ud800"}', "not valid JSON"),
    (b"[" * 50_000 + b"]" * 50_000, "not valid JSON"),
    (b'{"query": "{ hello }", "variables": ' + b'{"a":' * 9_000 + b"1" + b"}" * 9_001, "not valid JSON"),
    (b"null", "must be a JSON object"),
    (b"3", "must be a JSON object"),
    (b'"{ hello }"', "must be a JSON object"),
    (b'[{"query": "{ hello }"}]', "batches are not supported"),
    (b"{}", "has no `query`"),
    (b'{"query": null}', "has no `query`"),
    (b'{"query": 3}', "`query` must be a string"),
    (b'{"query": "{ hello }", "variables": "{}"}', "`variables` must be an object"),
    (b'{"query": "{ hello }", "variables": []}', "`variables` must be an object"),
    (b'{"query": "{ hello }", "operationName": {}}', "`operationName` must be a string"),
    (b'{"query": "{ hello }", "extensions": 1}', "`extensions` must be an object"),
    (b'{"query": "{ hello }", "extensions": {"persistedQuery": 1}}', "`extensions.persistedQuery` must"),
]


async def test_an_unreadable_body_is_told_what_is_wrong() -> None:
    """400 with a code, never 500, whatever the bytes are and whatever the client accepts."""
    async with toy() as (client, _):
        for body, reason in UNREADABLE:
            for accept in (JSON, RESPONSE_JSON):
                headers = {"content-type": JSON, "accept": accept}
                response = await client.post("/graphql", content=body, headers=headers)
                assert (response.status_code, codes(response)) == (400, ["BAD_USER_INPUT"]), body[:80]
                assert reason in response.json()["errors"][0]["message"]
                assert "data" not in response.json()


async def test_null_counts_as_absent() -> None:
    """The optional members of a request may be null, and extensions may be empty."""
    async with toy() as (client, _):
        for text in ('{"variables": null, "operationName": null, "extensions": null}', '{"extensions": {}}'):
            response = await post(client, HELLO | json.loads(text))
            assert (response.status_code, response.json()) == (200, {"data": {"hello": "hello world"}})


async def test_what_a_foreign_page_can_send_unasked_runs_nothing() -> None:
    """415 for every content type but JSON in UTF-8: the others need no preflight."""
    stage = Stage()
    body = json.dumps({"query": 'mutation { write(what: "x") }'}).encode()
    refused: list[dict[str, str]] = [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data"},
        {"content-type": "application/graphql"},
        {"content-type": "application/json; charset=utf-16"},
        {"content-type": JSON, "content-encoding": "gzip"},
        {"content-type": JSON, "content-encoding": ""},
    ]
    async with toy(stage) as (client, _):
        for headers in refused:
            response = await client.post("/graphql", content=body, headers=headers)
            assert (response.status_code, codes(response)) == (415, ["BAD_USER_INPUT"]), headers
    assert stage.done == []


async def test_json_in_utf_8_is_read() -> None:
    """UTF-8 is assumed and may be named."""
    body = json.dumps({"query": '{ hello(name: "서울") }'}, ensure_ascii=False).encode()
    async with toy() as (client, _):
        for content_type in (JSON, f"{JSON}; charset=utf-8", 'Application/JSON; Charset="UTF-8"'):
            response = await client.post("/graphql", content=body, headers={"content-type": content_type})
            assert response.json() == {"data": {"hello": "hello 서울"}}


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_an_oversized_body_is_refused_before_it_has_come(is_chunked: bool) -> None:
    """413 as soon as the limit is passed; the rest of the body is never asked for."""
    async with toy(max_body_bytes=1_000) as (_, up):
        host, port = up.authority.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        length = "transfer-encoding: chunked" if is_chunked else "content-length: 1001"
        writer.write(
            f"POST /graphql HTTP/1.1\r\nhost: x\r\ncontent-type: {JSON}\r\n{length}\r\n\r\n".encode()
        )
        if is_chunked:
            writer.write(b"3e9\r\n" + b" " * 1_001 + b"\r\n")  # and no last chunk
        answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"larger than 1000 bytes" in answer
        writer.close()
        await writer.wait_closed()


async def test_a_body_of_just_the_limit_is_read() -> None:
    """The limit itself is allowed, one byte more is not."""
    body = json.dumps(HELLO).encode()
    async with toy(max_body_bytes=len(body)) as (client, _):
        headers = {"content-type": JSON}
        assert (await client.post("/graphql", content=body, headers=headers)).status_code == 200
        assert (await client.post("/graphql", content=body + b" ", headers=headers)).status_code == 413


async def test_a_body_that_never_ends_is_given_up() -> None:
    """408 after the time for a body, and the connection is closed."""
    async with toy(body_timeout_s=0.05) as (_, up):
        host, port = up.authority.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"POST /graphql HTTP/1.1\r\nhost: x\r\ncontent-type: {JSON}\r\ncontent-length: 9\r\n\r\n{{".encode()
        )
        answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
        assert answer.startswith(b"HTTP/1.1 408 ")
        writer.close()
        await writer.wait_closed()


async def test_other_methods_are_named_the_right_ones() -> None:
    """405 with Allow."""
    async with toy() as (client, _):
        for method in ("PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"):
            response = await client.request(method, "/graphql")
            assert (response.status_code, response.headers["allow"]) == (405, "GET, POST")


# ---------------------------------------------------------------- GET
async def test_get_runs_a_query_with_variables() -> None:
    """Parameters carry what a body would."""
    async with toy() as (client, _):
        params = {
            "query": "query A($n: String!) { hello(name: $n) } query B { who }",
            "operationName": "A",
            "variables": '{"n": "you"}',
        }
        response = await client.get("/graphql", params=params)
        assert (response.status_code, response.json()) == (200, {"data": {"hello": "hello you"}})


async def test_a_malformed_get_is_told_what_is_wrong() -> None:
    """As by POST."""
    malformed: list[dict[str, str]] = [
        {},
        {"query": ""},
        HELLO | {"variables": "3"},
        HELLO | {"variables": "{"},
        HELLO | {"extensions": "[]"},
    ]
    async with toy() as (client, _):
        for params in malformed:
            response = await client.get("/graphql", params=params)
            assert (response.status_code, codes(response)) == (400, ["BAD_USER_INPUT"]), params


async def test_get_never_runs_a_mutation() -> None:
    """405 naming POST, also where the document has a query beside; nothing is written."""
    stage = Stage()
    alone = {"query": 'mutation { write(what: "x") }'}
    beside = {"query": 'query Q { hello } mutation M { write(what: "x") }', "operationName": "M"}
    async with toy(stage) as (client, _):
        for params, accept in product((alone, beside), (JSON, RESPONSE_JSON)):
            response = await client.get("/graphql", params=params, headers={"accept": accept})
            assert (response.status_code, response.headers["allow"]) == (405, "POST")
            assert codes(response) == ["BAD_USER_INPUT"]
    assert stage.done == []


async def test_a_subscription_by_http_is_pointed_to_the_websocket() -> None:
    """Clear refusal instead of an internal error."""
    async with toy() as (client, _):
        by_post = await post(client, {"query": "subscription { ticks }"})
        by_get = await client.get("/graphql", params={"query": "subscription { ticks }"})
        for response in (by_post, by_get):
            assert (response.status_code, codes(response)) == (400, ["BAD_USER_INPUT"])
            assert "websocket" in response.json()["errors"][0]["message"]


async def test_a_browser_is_shown_graphiql() -> None:
    """A page for who names text/html and asks nothing; the same browser with a query gets the answer."""
    accept = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
    async with toy() as (client, _):
        page = await client.get("/graphql", headers=accept)
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "GraphiQL" in page.text
        answer = await client.get("/graphql", params=HELLO, headers=accept)
        assert answer.json() == {"data": {"hello": "hello world"}}


# ---------------------------------------------------------------- media types and statuses
ACCEPTS: list[tuple[str | None, str]] = [
    (None, JSON),
    ("", JSON),
    ("*/*", JSON),
    ("application/*", JSON),
    (JSON, JSON),
    (f"{JSON}; charset=utf-8", JSON),
    (RESPONSE_JSON, RESPONSE_JSON),
    (f"{RESPONSE_JSON}; charset=utf-8, {JSON}; charset=utf-8", RESPONSE_JSON),
    (f"{RESPONSE_JSON}, {JSON};q=0.9", RESPONSE_JSON),
    (f"{RESPONSE_JSON};q=0.5, {JSON};q=0.9", JSON),
    (f"{RESPONSE_JSON};q=0, */*", JSON),
    (f"{RESPONSE_JSON}, application/graphql+json, {JSON}, text/event-stream", RESPONSE_JSON),
    ("text/html;q=0.9, */*;q=0.1", JSON),
    ("text/html", ""),
    ("application/xml", ""),
    (f"{JSON};q=0", ""),
    (f"{JSON};q=many", ""),
    (f"{JSON};charset=latin-1", ""),
]


async def test_the_answer_is_of_a_type_the_client_accepts() -> None:
    """graphql-response+json for who asks for it, JSON for everyone else; 406 before anything is written."""
    stage = Stage()
    async with toy(stage) as (client, _):
        for accept, media_type in ACCEPTS:
            request = client.build_request(
                "POST", "/graphql", json={"query": 'mutation { write(what: "x") }'}
            )
            del request.headers["accept"]
            if accept is not None:
                request.headers["accept"] = accept
            response = await client.send(request)
            assert response.headers["content-type"] == f"{media_type or JSON}; charset=utf-8", accept
            if media_type:
                assert (response.status_code, response.json()) == (200, {"data": {"write": "x"}})
            else:
                assert (response.status_code, codes(response)) == (406, ["BAD_USER_INPUT"])
    assert len(stage.done) == sum(bool(media_type) for _, media_type in ACCEPTS)


REFUSALS: list[tuple[str, dict[str, object], str]] = [
    ("{", {}, "GRAPHQL_PARSE_FAILED"),
    ("{ nosuch }", {}, "GRAPHQL_VALIDATION_FAILED"),
    ('{ hello(times: "x") }', {}, "GRAPHQL_VALIDATION_FAILED"),
    ("query A { hello } query B { who }", {}, "BAD_USER_INPUT"),
    ("query A { hello }", {"operationName": "B"}, "BAD_USER_INPUT"),
    ("query A { hello }", {"operationName": ""}, "BAD_USER_INPUT"),
    ("fragment F on Query { hello } query A { ...F }", {"operationName": "F"}, "BAD_USER_INPUT"),
    ("query($t: Int!) { hello(times: $t) }", {}, "BAD_USER_INPUT"),
    ("query($t: Int!) { hello(times: $t) }", {"variables": {"t": "x"}}, "BAD_USER_INPUT"),
    ("query($t: Int!) { hello(times: $t) }", {"variables": {"t": 2**40}}, "BAD_USER_INPUT"),
    ("query($c: Colour!) { hello(colour: $c) }", {"variables": {"c": "GREEN"}}, "BAD_USER_INPUT"),
]


async def test_what_makes_no_sense_is_a_refusal_without_data() -> None:
    """200 as application/json, 400 as graphql-response+json, and never a `data` entry."""
    async with toy() as (client, _):
        for query, fields, code in REFUSALS:
            for accept, status in ((JSON, 200), (RESPONSE_JSON, 400)):
                response = await post(client, {"query": query, **fields}, accept)
                assert (response.status_code, codes(response)) == (status, [code]), query
                assert "data" not in response.json()


async def test_a_resolvers_failure_leaves_the_neighbours_intact() -> None:
    """200 in both types: the operation ran; what failed is null beside its error."""
    async with toy() as (client, _):
        for accept in (JSON, RESPONSE_JSON):
            response = await post(client, {"query": "{ hello missing refusedInput }"}, accept)
            assert response.status_code == 200
            assert response.json()["data"] == {"hello": "hello world", "missing": None, "refusedInput": None}
            missing, refused_input = response.json()["errors"]
            assert codes(response) == ["NOT_FOUND", "BAD_USER_INPUT"]
            assert (missing["message"], missing["path"]) == ("There is no concert with this id.", ["missing"])
            assert missing["locations"] == [{"line": 1, "column": 9}]
            assert refused_input["path"] == ["refusedInput"]


async def test_an_unexpected_failure_is_masked_and_logged_once() -> None:
    """The client gets an id, the log gets the exception under that id."""
    async with toy() as (client, _):
        with structlog.testing.capture_logs() as logs:
            response = await post(client, {"query": "{ broken }"}, **{"x-request-id": "my-id.1"})
        assert response.json() == {
            "data": {"broken": None},
            "errors": [
                {
                    "message": "Internal error",
                    "path": ["broken"],
                    "locations": [{"line": 1, "column": 3}],
                    "extensions": {"code": "INTERNAL", "requestId": "my-id.1"},
                }
            ],
        }
        (line,) = logs
        assert (line["request_id"], line["path"]) == ("my-id.1", ["broken"])
        assert isinstance(line["exc_info"], RuntimeError)
        too_big = await post(client, {"query": "{ tooBig }"})
        assert codes(too_big) == ["INTERNAL"]


async def test_a_request_id_that_is_not_safe_is_replaced() -> None:
    """It stands in logs and headers, so only plain ones are taken over."""
    async with toy() as (client, _):
        for given in ("", "a b", "x" * 65, "ä", "<script>"):
            response = await client.post("/graphql", json=HELLO, headers=[(b"x-request-id", given.encode())])
            assert len(response.headers["x-request-id"]) == 32
        own = await post(client, HELLO, **{"x-request-id": "x" * 64})
        assert own.headers["x-request-id"] == "x" * 64


# ---------------------------------------------------------------- who asks
async def test_a_bad_token_refuses_the_whole_request() -> None:
    """UNAUTHENTICATED for public fields too, and for what would not even parse; nothing is written."""
    stage = Stage()
    stage.sign_in("ann")
    stage.ended.add(stage.sign_in("ended").session.id)
    bad = ("", "Bearer", "Basic YTpi", "Bearer a b", "Bearer unknown", "Bearer ended", "ann", "Bearerann")
    async with toy(stage) as (client, _):
        for authorization, query in product(bad, ("{ hello }", 'mutation { write(what: "x") }', "{")):
            for accept, status in ((JSON, 200), (RESPONSE_JSON, 401)):
                response = await post(client, {"query": query}, accept, authorization=authorization)
                assert (response.status_code, codes(response)) == (status, ["UNAUTHENTICATED"]), authorization
                assert "data" not in response.json()
                assert response.headers.get("www-authenticate") == (None if status == 200 else "Bearer")
    assert stage.done == []


async def test_the_token_says_who_asks() -> None:
    """With a token its holder, without one nobody; the scheme's case doesn't matter."""
    stage = Stage()
    stage.sign_in("ann")
    async with toy(stage) as (client, _):
        for headers, name in (
            ({}, None),
            ({"authorization": "Bearer ann"}, "ann"),
            ({"authorization": "bearer ann"}, "ann"),
        ):
            response = await post(client, {"query": "{ who }"}, **headers)
            assert response.json() == {"data": {"who": name}}
        twice = await client.post("/graphql", json=HELLO, headers=[("authorization", "Bearer ann")] * 2)
        assert codes(twice) == ["UNAUTHENTICATED"]


async def test_a_token_that_cannot_be_looked_up_leaks_nothing() -> None:
    """The database's words stay in the log."""
    stage = Stage(is_database_away=True)
    async with toy(stage) as (client, _):
        response = await post(client, HELLO, RESPONSE_JSON, authorization="Bearer ann")
        assert (response.status_code, codes(response)) == (500, ["INTERNAL"])
        assert "hunter2" not in response.text
        assert (await post(client, HELLO)).json() == {"data": {"hello": "hello world"}}
