"""The sandbox processor over a real socket: Stripe's rules, and every way to misbehave."""

import asyncio
import hmac
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from infra.sandbox import running_sandbox
from infra.sandbox.books import KEY_LIFETIME_S, Books, StoredAnswer
from infra.sandbox.server import serving

pytestmark = pytest.mark.anyio

Json = dict[str, "object"]


class Processor:
    """The sandbox as a client of its HTTP API sees it."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def post(self, path: str, *, key: str | None = None, **fields: str) -> httpx.Response:
        headers = {} if key is None else {"idempotency-key": key}
        return await self.http.post(f"/v1/{path}", data=fields, headers=headers)

    async def create(self, **fields: str) -> str:
        answer = await self.post("payment_intents", **{"amount": "4200", "currency": "eur"} | fields)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    async def confirm(self, intent_id: str, method: str, **fields: str) -> httpx.Response:
        return await self.post(f"payment_intents/{intent_id}/confirm", payment_method=method, **fields)

    async def paid(self) -> str:
        intent_id = await self.create()
        assert (await self.confirm(intent_id, "pm_card_visa")).status_code == 200
        return intent_id

    async def intent(self, intent_id: str) -> Json:
        answer = await self.http.get(f"/v1/payment_intents/{intent_id}", params={"expand[]": "latest_charge"})
        assert answer.status_code == 200
        intent: Json = answer.json()
        return intent

    async def control(self, **wishes: object) -> httpx.Response:
        return await self.http.post("/_control", json=wishes)

    async def ledger(self) -> list[Json]:
        entries: list[Json] = (await self.http.get("/_ledger")).json()
        return entries


@asynccontextmanager
async def running_processor(state_path: Path | None = None) -> AsyncIterator[Processor]:
    """A fresh sandbox and a client of it."""
    async with running_sandbox("127.0.0.1", 0, state_path=state_path) as url, client(url) as http:
        yield Processor(http)


def client(url: str) -> httpx.AsyncClient:
    """An HTTP client with an API key."""
    return httpx.AsyncClient(base_url=url, headers={"authorization": "Bearer sk_test_1"}, trust_env=False)


@pytest.fixture
async def processor(anyio_backend: str) -> AsyncIterator[Processor]:
    """A sandbox that forgets everything after the test."""
    async with running_processor() as processor:
        yield processor


@dataclass
class Inbox:
    """A webhook endpoint; answers with `statuses` in turn, then with 200."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    requests: "asyncio.Queue[tuple[bytes, str]]" = field(default_factory=asyncio.Queue)

    async def receive(self, request: Request) -> Response:
        self.requests.put_nowait((await request.body(), request.headers["stripe-signature"]))
        return Response(status_code=self.statuses.pop(0) if self.statuses else 200)

    async def next(self) -> Json:
        body, _ = await asyncio.wait_for(self.requests.get(), 10)
        event: Json = json.loads(body)
        return event


@pytest.fixture
async def inbox(anyio_backend: str) -> AsyncIterator[Inbox]:
    """A webhook endpoint on a socket of its own."""
    inbox = Inbox()
    app = Starlette(routes=[Route("/hook", inbox.receive, methods=["POST"])])
    async with serving(app, "127.0.0.1", 0) as url:
        inbox.url = f"{url}/hook"
        yield inbox


def error_of(answer: httpx.Response) -> tuple[int, str, str | None, str | None]:
    """Status, type, code and param of an error."""
    error = answer.json()["error"]
    return answer.status_code, error["type"], error.get("code"), error.get("param")


# ---------------------------------------------------------------- Stripe's rules


async def test_who_brings_no_api_key_is_refused(processor: Processor) -> None:
    """Without a key 401; Bearer and Basic both carry one."""
    url = processor.http.base_url
    async with httpx.AsyncClient(base_url=url, trust_env=False) as stranger:
        answers = [
            await stranger.get("/v1/refunds"),
            await stranger.get("/v1/refunds", headers={"authorization": "Bearer"}),
            await stranger.get("/v1/refunds", headers={"authorization": "Basic !"}),
            await stranger.get("/v1/refunds", auth=("sk_test_1", "")),
        ]
    assert [answer.status_code for answer in answers] == [401, 401, 401, 200]


async def test_a_confirmed_card_is_charged_once(processor: Processor) -> None:
    """The intent, its charge and the ledger say the same; a second confirm is refused and charges nothing."""
    created = await processor.post(
        "payment_intents", key="k-1", amount="4200", currency="EUR", **{"metadata[payment_id]": "p-1"}
    )
    intent_id = created.json()["id"]
    assert created.json()["status"] == "requires_payment_method"
    assert created.json()["client_secret"].startswith(f"{intent_id}_secret_")
    confirmed = await processor.confirm(intent_id, "pm_card_visa", **{"expand[0]": "latest_charge"})
    charge = confirmed.json()["latest_charge"]
    assert (confirmed.json()["status"], confirmed.json()["amount_received"]) == ("succeeded", 4200)
    assert (charge["status"], charge["amount"], charge["metadata"]) == (
        "succeeded",
        4200,
        {"payment_id": "p-1"},
    )
    again = await processor.confirm(intent_id, "pm_card_visa")
    assert error_of(again) == (400, "invalid_request_error", "payment_intent_unexpected_state", None)
    assert again.json()["error"]["payment_intent"]["status"] == "succeeded"
    assert await processor.ledger() == [
        {
            "payment_intent": intent_id,
            "amount": 4200,
            "currency": "eur",
            "status": "succeeded",
            "amount_refunded": 0,
            "idempotency_key": "k-1",
            "metadata": {"payment_id": "p-1"},
        }
    ]


@pytest.mark.parametrize(
    ("method", "code", "decline_code"),
    [
        ("pm_card_visa_chargeDeclined", "card_declined", "generic_decline"),
        ("pm_card_visa_chargeDeclinedInsufficientFunds", "card_declined", "insufficient_funds"),
        ("pm_card_chargeDeclinedExpiredCard", "expired_card", "expired_card"),
    ],
)
async def test_a_declined_card_leaves_the_intent_payable(
    processor: Processor, method: str, code: str, decline_code: str
) -> None:
    """402 with the intent inside, a failed charge on record, and another card succeeds on the same intent."""
    intent_id = await processor.create()
    declined = await processor.confirm(intent_id, method)
    error = declined.json()["error"]
    assert (declined.status_code, error["type"], error["code"], error["decline_code"]) == (
        402,
        "card_error",
        code,
        decline_code,
    )
    assert error["payment_intent"]["last_payment_error"]["decline_code"] == decline_code
    intent = await processor.intent(intent_id)
    charge = intent["latest_charge"]
    assert isinstance(charge, dict)
    assert (intent["status"], intent["payment_method"]) == ("requires_payment_method", None)
    assert (charge["status"], charge["paid"], charge["id"]) == ("failed", False, error["charge"])
    assert (await processor.confirm(intent_id, "pm_card_mastercard")).json()["status"] == "succeeded"
    paid = await processor.intent(intent_id)
    assert paid["last_payment_error"] is None
    assert isinstance(paid["latest_charge"], dict) and paid["latest_charge"]["id"] != charge["id"]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"amount": "0"}, "parameter_invalid_integer", "amount"),
        ({"amount": "-5"}, "parameter_invalid_integer", "amount"),
        ({"amount": "1.5"}, "parameter_invalid_integer", "amount"),
        ({"amount": ""}, "parameter_missing", "amount"),
        ({"amount": "100000000"}, "amount_too_large", "amount"),
        ({"amount": "101", "currency": "isk"}, "parameter_invalid_integer", "amount"),
        ({"amount": "101", "currency": "kwd"}, "parameter_invalid_integer", "amount"),
        ({"currency": "xxx"}, None, "currency"),
        ({"currency": ""}, "parameter_missing", "currency"),
        ({"allowed_payment_method_types[]": "ideal"}, None, "allowed_payment_method_types"),
        ({"coupon": "x"}, "parameter_unknown", "coupon"),
        ({"metadata[" + "n" * 41 + "]": "x"}, None, f"metadata[{'n' * 41}]"),
        ({"amount[0]": "1"}, None, "amount"),
    ],
)
async def test_a_bad_intent_is_refused_by_name(
    processor: Processor, fields: dict[str, str], code: str | None, param: str
) -> None:
    """400 names the parameter, nothing is created, and the key stays free for the corrected request."""
    wrong = {"amount": "4200", "currency": "eur"} | fields
    answer = await processor.post("payment_intents", key="k", **wrong)
    assert error_of(answer) == (400, "invalid_request_error", code, param)
    assert await processor.ledger() == []
    assert (await processor.post("payment_intents", key="k", amount="1", currency="eur")).status_code == 200


async def test_fixed_method_types_are_refused_by_newer_api_versions(processor: Processor) -> None:
    """`payment_method_types` went away with 2026-09-30; callers of older versions still may send it."""
    fields = {"amount": "1", "currency": "eur", "payment_method_types[0]": "card"}
    statuses = [
        (
            await processor.http.post("/v1/payment_intents", data=fields, headers={"stripe-version": version})
        ).status_code
        for version in ("2025-03-31.basil", "2026-10-28.endive")
    ]
    assert statuses == [200, 400]


async def test_unknown_things_are_refused(processor: Processor) -> None:
    """Unknown methods, intents, charges and URLs are each named, and the intent stays as it was."""
    intent_id = await processor.create()
    missing = "resource_missing"
    bad_method = await processor.confirm(intent_id, "pm_card_nonsense")
    assert error_of(bad_method) == (400, "invalid_request_error", missing, "payment_method")
    assert error_of(await processor.confirm("pi_none", "pm_card_visa"))[::2] == (404, missing)
    assert error_of(await processor.http.get("/v1/payment_intents/pi_none"))[::2] == (404, missing)
    assert error_of(await processor.post("refunds", charge="ch_none"))[::2] == (404, missing)
    assert error_of(await processor.http.get("/v1/customers"))[0] == 404
    assert error_of(await processor.http.delete(f"/v1/payment_intents/{intent_id}"))[0] == 404
    assert (await processor.intent(intent_id))["status"] == "requires_payment_method"


async def test_a_canceled_intent_never_takes_money(processor: Processor) -> None:
    """Cancelling is final; cancelling what succeeded, or again, is refused."""
    intent_id = await processor.create()
    canceled = await processor.post(f"payment_intents/{intent_id}/cancel", cancellation_reason="abandoned")
    assert (canceled.json()["status"], canceled.json()["cancellation_reason"]) == ("canceled", "abandoned")
    refused = [
        await processor.confirm(intent_id, "pm_card_visa"),
        await processor.post(f"payment_intents/{intent_id}/cancel"),
        await processor.post(f"payment_intents/{await processor.paid()}/cancel"),
    ]
    expected = (400, "invalid_request_error", "payment_intent_unexpected_state", None)
    assert [error_of(answer) for answer in refused] == [expected] * 3


async def test_refunds_never_exceed_the_charge(processor: Processor) -> None:
    """A part, then more than is left, then the rest, then nothing is left; the list is newest first."""
    intent_id = await processor.paid()
    part = await processor.post("refunds", payment_intent=intent_id, amount="1200")
    assert (part.json()["status"], part.json()["amount"]) == ("succeeded", 1200)
    too_much = await processor.post("refunds", payment_intent=intent_id, amount="3001")
    assert error_of(too_much) == (400, "invalid_request_error", "amount_too_large", "amount")
    rest = await processor.post("refunds", payment_intent=intent_id)
    assert rest.json()["amount"] == 3000
    nothing_left = await processor.post("refunds", charge=rest.json()["charge"])
    assert error_of(nothing_left)[2] == "charge_already_refunded"
    assert [entry["amount_refunded"] for entry in await processor.ledger()] == [4200]
    charge = (await processor.intent(intent_id))["latest_charge"]
    assert isinstance(charge, dict) and (charge["amount_refunded"], charge["refunded"]) == (4200, True)
    page = (await processor.http.get("/v1/refunds", params={"payment_intent": intent_id, "limit": 1})).json()
    assert ([refund["id"] for refund in page["data"]], page["has_more"]) == ([rest.json()["id"]], True)
    older = {"payment_intent": intent_id, "starting_after": rest.json()["id"]}
    assert (await processor.http.get("/v1/refunds", params=older)).json()["data"] == [part.json()]


async def test_what_was_not_charged_cannot_be_refunded(processor: Processor) -> None:
    """An unpaid intent has nothing to give back."""
    answer = await processor.post("refunds", payment_intent=await processor.create())
    assert answer.status_code == 400


async def test_a_failing_refund_moves_no_money(processor: Processor) -> None:
    """The card whose refunds fail answers `failed`, and the ledger stays."""
    intent_id = await processor.create()
    await processor.confirm(intent_id, "pm_card_refundFail")
    refund = await processor.post("refunds", payment_intent=intent_id)
    assert (refund.status_code, refund.json()["status"]) == (200, "failed")
    assert [entry["amount_refunded"] for entry in await processor.ledger()] == [0]


# ---------------------------------------------------------------- 3-D Secure


async def test_opening_the_bank_page_completes_the_payment(processor: Processor) -> None:
    """Until somebody opens the page nothing is charged; confirming again resumes the same one."""
    intent_id = await processor.create()
    back = "https://shop.example/paid?from=bank"
    first = await processor.confirm(intent_id, "pm_card_authenticationRequired", return_url=back)
    resumed = await processor.confirm(intent_id, "pm_card_authenticationRequired", return_url=back)
    action = first.json()["next_action"]["redirect_to_url"]
    assert first.json()["status"] == resumed.json()["status"] == "requires_action"
    assert resumed.json()["next_action"]["redirect_to_url"] == action
    assert action["return_url"] == back
    assert (await processor.http.head(action["url"])).status_code == 200
    assert (await processor.intent(intent_id))["status"] == "requires_action"
    page = await processor.http.get(action["url"])
    assert page.status_code == 200
    assert f"{back}&amp;payment_intent={intent_id}&amp;" in page.text
    intent = await processor.intent(intent_id)
    assert (intent["status"], intent["next_action"]) == ("succeeded", None)
    charge = intent["latest_charge"]
    assert "authenticated" in (await processor.http.get(action["url"])).text
    assert (await processor.intent(intent_id))["latest_charge"] == charge


@pytest.mark.parametrize("verb", ["GET", "POST"])
async def test_a_failed_authentication_declines(processor: Processor, verb: str) -> None:
    """`outcome=fail` leaves the intent payable by another card, with no charge at all."""
    intent_id = await processor.create()
    await processor.confirm(intent_id, "pm_card_threeDSecure2Required", return_url="https://shop.example")
    page = await processor.http.request(verb, f"/_3ds/{intent_id}", params={"outcome": "fail"})
    assert (page.status_code, "not authenticated" in page.text) == (200, True)
    intent = await processor.intent(intent_id)
    error = intent["last_payment_error"]
    assert isinstance(error, dict)
    assert (intent["status"], error["code"]) == (
        "requires_payment_method",
        "payment_intent_authentication_failure",
    )
    assert intent["latest_charge"] is None
    await processor.http.get(f"/_3ds/{intent_id}")
    assert (await processor.intent(intent_id))["status"] == "requires_payment_method"
    assert (await processor.confirm(intent_id, "pm_card_visa")).json()["status"] == "succeeded"


async def test_the_bank_page_of_no_payment_is_404(processor: Processor) -> None:
    """There is nothing to authenticate behind an unknown id."""
    assert (await processor.http.get("/_3ds/pi_none")).status_code == 404


# ---------------------------------------------------------------- idempotency keys


async def test_the_same_key_repeats_the_stored_answer(processor: Processor) -> None:
    """Same parameters: same status and body, byte for byte, a decline too; nothing happens twice."""
    first = await processor.post("payment_intents", key="k", amount="1", currency="eur")
    second = await processor.post("payment_intents", key="k", amount="1", currency="eur")
    assert (second.content, second.headers["idempotent-replayed"]) == (first.content, "true")
    path = f"payment_intents/{first.json()['id']}/confirm"
    declines = [
        await processor.post(path, key="c", payment_method="pm_card_visa_chargeDeclined") for _ in range(2)
    ]
    assert [answer.status_code for answer in declines] == [402, 402]
    assert declines[0].content == declines[1].content
    assert len(await processor.ledger()) == 1


async def test_the_same_key_for_something_else_is_refused(processor: Processor) -> None:
    """Other parameters or another endpoint are an idempotency_error and change nothing."""
    first = await processor.post("payment_intents", key="k", amount="1", currency="eur")
    others = [
        await processor.post("payment_intents", key="k", amount="2", currency="eur"),
        await processor.post(f"payment_intents/{first.json()['id']}/cancel", key="k"),
    ]
    assert [error_of(answer)[:2] for answer in others] == [(400, "idempotency_error")] * 2
    assert [(entry["amount"], entry["status"]) for entry in await processor.ledger()] == [
        (1, "requires_payment_method")
    ]


async def test_the_same_key_at_the_same_time_is_a_conflict(processor: Processor) -> None:
    """While the first request runs the second is 409; afterwards it repeats the first."""
    await processor.control(latency_ms=[300, 300])
    answers = await asyncio.gather(
        *(processor.post("payment_intents", key="k", amount="1", currency="eur") for _ in range(2))
    )
    assert sorted(answer.status_code for answer in answers) == [200, 409]
    (conflict,) = (answer for answer in answers if answer.status_code == 409)
    assert error_of(conflict)[2] == "idempotency_key_in_use"
    assert (await processor.post("payment_intents", key="k", amount="1", currency="eur")).status_code == 200
    assert len(await processor.ledger()) == 1


async def test_a_stored_500_is_repeated_after_recovery(processor: Processor) -> None:
    """A key that was answered 500 is answered 500 again; another key goes through."""
    await processor.control(fail_rate=1)
    assert (await processor.post("payment_intents", key="k", amount="1", currency="eur")).status_code == 500
    await processor.control(fail_rate=0)
    assert (await processor.post("payment_intents", key="k", amount="1", currency="eur")).status_code == 500
    assert await processor.ledger() == []
    assert (await processor.post("payment_intents", key="l", amount="1", currency="eur")).status_code == 200


def test_a_key_is_forgotten_after_a_day() -> None:
    """Up to a day the answer is repeated, then the key is free."""
    books = Books(None)
    answer = StoredAnswer("f", 200, b"{}")
    books.keep_answer("k", answer, now=0)
    assert books.answer("k", now=KEY_LIFETIME_S - 1) == answer
    assert books.answer("k", now=KEY_LIFETIME_S) is None
    books.keep_answer("k", answer, now=KEY_LIFETIME_S)
    books.close()


# ---------------------------------------------------------------- misbehaviour


async def test_down_closes_the_connection_without_a_byte(processor: Processor) -> None:
    """Every API request meets a closed connection, not an answer; pages below `/_` go on."""
    intent_id = await processor.create()
    await processor.control(mode="down")
    url = processor.http.base_url
    for head in (f"GET /v1/payment_intents/{intent_id}", "POST /v1/refunds", "GET /v1/nothing"):
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(f"{head} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n".encode())
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        await writer.wait_closed()
    with pytest.raises(httpx.RemoteProtocolError):
        await processor.confirm(intent_id, "pm_card_visa")
    assert [entry["status"] for entry in await processor.ledger()] == ["requires_payment_method"]
    await processor.control(mode="ok")
    assert (await processor.confirm(intent_id, "pm_card_visa")).status_code == 200


async def test_hang_keeps_posts_waiting_and_charges_nothing(processor: Processor) -> None:
    """A POST gets no answer, a GET does, and the same key is free afterwards."""
    intent_id = await processor.create()
    await processor.control(mode="hang")
    with pytest.raises(httpx.ReadTimeout):
        async with asyncio.timeout(5):
            await processor.http.post(
                f"/v1/payment_intents/{intent_id}/confirm",
                data={"payment_method": "pm_card_visa"},
                headers={"idempotency-key": "c"},
                timeout=0.2,
            )
    assert (await processor.intent(intent_id))["status"] == "requires_payment_method"
    await processor.control(mode="ok")
    path = f"payment_intents/{intent_id}/confirm"
    assert (await processor.post(path, key="c", payment_method="pm_card_visa")).status_code == 200


async def test_charge_then_hang_charges_and_never_answers(processor: Processor) -> None:
    """Only confirm hangs, after it charged; asking again under its key later repeats that one charge."""
    await processor.control(mode="charge_then_hang")
    intent_id = await processor.create()
    confirm = f"/v1/payment_intents/{intent_id}/confirm"
    with pytest.raises(httpx.ReadTimeout):
        await processor.http.post(
            confirm, data={"payment_method": "pm_card_visa"}, headers={"idempotency-key": "c"}, timeout=0.2
        )
    charged = await processor.intent(intent_id)
    assert charged["status"] == "succeeded"
    await processor.control(mode="ok")
    again = await processor.post(confirm.removeprefix("/v1/"), key="c", payment_method="pm_card_visa")
    assert isinstance(charged["latest_charge"], dict)
    assert (again.status_code, again.json()["latest_charge"]) == (200, charged["latest_charge"]["id"])


async def test_a_share_of_posts_fails_and_charges_nothing(processor: Processor) -> None:
    """With fail_rate 1 every POST is 500 while GETs answer; with 0.5 some go through."""
    intent_id = await processor.create()
    await processor.control(fail_rate=1)
    assert (await processor.confirm(intent_id, "pm_card_visa")).status_code == 500
    assert (await processor.intent(intent_id))["status"] == "requires_payment_method"
    await processor.control(fail_rate=0.5)
    answers = [await processor.post("payment_intents", amount="1", currency="eur") for _ in range(60)]
    # All alike would be a chance of two in 2 ** 60.
    assert {answer.status_code for answer in answers} == {200, 500}


async def test_latency_delays_every_api_request(processor: Processor) -> None:
    """No API answer comes before the minimum; pages below `/_` don't wait."""
    await processor.control(latency_ms=[600, 700])
    began = time.monotonic()
    await processor.create()
    assert time.monotonic() - began >= 0.6
    began = time.monotonic()
    await processor.ledger()
    assert time.monotonic() - began < 0.6


async def test_the_control_state_is_answered_whole(processor: Processor) -> None:
    """Each control is optional, the rest stays, and GET shows what POST answered."""
    await processor.control(mode="hang", latency_ms=[1, 2])
    answer = await processor.control(
        fail_rate=0.25, webhook_url="http://127.0.0.1:1/x", webhook_secret="whsec_1"
    )
    expected = {
        "mode": "hang",
        "latency_ms": [1, 2],
        "fail_rate": 0.25,
        "webhook_url": "http://127.0.0.1:1/x",
        "webhook_secret": "whsec_1",
    }
    assert answer.json() == expected
    assert (await processor.http.get("/_control")).json() == expected


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"mode": "sideways"}',
        b'{"mode": ["ok"]}',
        b'{"latency_ms": [2, 1]}',
        b'{"latency_ms": [1]}',
        b'{"latency_ms": [true, 2]}',
        b'{"latency_ms": [0, 60001]}',
        b'{"latency_ms": 5}',
        b'{"fail_rate": 1.1}',
        b'{"fail_rate": NaN}',
        b'{"fail_rate": true}',
        b'{"webhook_url": "ftp://x"}',
        b'{"webhook_url": "http://"}',
        b'{"webhook_url": 5}',
        b'{"webhook_secret": ""}',
        b'{"speed": 1}',
        b'{"mode": "hang", "fail_rate": 2}',
    ],
)
async def test_a_bad_control_changes_nothing(processor: Processor, body: bytes) -> None:
    """400 with a reason, and the state is the one before, the good half of the request included."""
    before = (await processor.http.get("/_control")).json()
    answer = await processor.http.post("/_control", content=body)
    assert (answer.status_code, bool(answer.json()["error"]["message"])) == (400, True)
    assert (await processor.http.get("/_control")).json() == before


async def test_stopping_waits_for_no_hung_request() -> None:
    """A request that hangs ends with a closed connection as soon as the sandbox stops."""
    async with running_processor() as processor:
        await processor.control(mode="hang")
        hung = asyncio.create_task(processor.http.post("/v1/refunds", timeout=30))
        # The ledger is answered on another connection, after the server has read the hung request.
        await processor.ledger()
        began = time.monotonic()
    assert time.monotonic() - began < 3
    with pytest.raises(httpx.HTTPError):
        await hung


async def test_a_taken_port_is_an_error_at_once(processor: Processor) -> None:
    """The caller hears of it; nothing is half started."""
    with pytest.raises(OSError, match="in use"):
        async with running_sandbox("127.0.0.1", processor.http.base_url.port or 0):
            pass


async def test_a_broken_state_file_is_an_error_at_once(tmp_path: Path) -> None:
    """Without its memory the sandbox does not start, and the process is not ended."""
    with pytest.raises(RuntimeError, match="could not start"):
        async with running_sandbox("127.0.0.1", 0, state_path=tmp_path / "missing" / "state.db"):
            pass


async def test_what_was_answered_survives_a_kill(tmp_path: Path) -> None:
    """After SIGKILL and a new start the ledger and the keys are the same."""
    state = tmp_path / "sandbox.db"
    code = (
        "import asyncio, pathlib, sys\n"
        "from infra.sandbox import running_sandbox\n"
        "async def main():\n"
        "    async with running_sandbox('127.0.0.1', 0, state_path=pathlib.Path(sys.argv[1])) as url:\n"
        "        print(url, flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(state), stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[1]
    )
    assert process.stdout is not None
    url = (await asyncio.wait_for(process.stdout.readline(), 30)).decode().strip()
    async with client(url) as http:
        processor = Processor(http)
        created = await processor.post("payment_intents", key="k", amount="7", currency="eur")
        await processor.confirm(created.json()["id"], "pm_card_visa")
        ledger = await processor.ledger()
        process.send_signal(signal.SIGKILL)
        await process.wait()
    async with running_processor(state) as processor:
        assert await processor.ledger() == ledger
        assert ledger[0]["status"] == "succeeded"
        replayed = await processor.post("payment_intents", key="k", amount="7", currency="eur")
        assert replayed.content == created.content


# ---------------------------------------------------------------- webhooks


async def test_every_change_is_announced_and_signed(processor: Processor, inbox: Inbox) -> None:
    """Each event carries the whole object, metadata included, under a signature made as Stripe makes it."""
    await processor.control(webhook_url=inbox.url, webhook_secret="whsec_abc")
    intent_id = await processor.create(**{"metadata[payment_id]": "p-1"})
    await processor.confirm(intent_id, "pm_card_visa_chargeDeclined")
    body, header = await asyncio.wait_for(inbox.requests.get(), 10)
    timestamp, signature = (part.partition("=")[2] for part in header.split(","))
    expected = hmac.new(b"whsec_abc", f"{timestamp}.".encode() + body, sha256).hexdigest()
    assert (signature, abs(int(timestamp) - time.time()) < 60) == (expected, True)
    event = json.loads(body)
    subject = event["data"]["object"]
    assert (event["object"], event["type"]) == ("event", "payment_intent.payment_failed")
    assert (subject["id"], subject["metadata"]) == (intent_id, {"payment_id": "p-1"})

    await processor.confirm(intent_id, "pm_card_authenticationRequired", return_url="https://shop.example")
    kinds = [(await inbox.next())["type"]]
    await processor.http.get(f"/_3ds/{intent_id}")
    kinds.append((await inbox.next())["type"])
    await processor.post("refunds", payment_intent=intent_id, amount="1")
    kinds.append((await inbox.next())["type"])
    await processor.http.post(f"/_refund/{intent_id}", params={"amount": 1})
    kinds.append((await inbox.next())["type"])
    await processor.http.post(f"/_dispute/{intent_id}")
    kinds.append((await inbox.next())["type"])
    await processor.post(f"payment_intents/{await processor.create()}/cancel")
    kinds.append((await inbox.next())["type"])
    assert kinds == [
        "payment_intent.requires_action",
        "payment_intent.succeeded",
        "charge.refunded",
        "charge.refunded",
        "charge.dispute.created",
        "payment_intent.canceled",
    ]
    assert [entry["amount_refunded"] for entry in await processor.ledger()] == [2, 0]


async def test_an_event_is_sent_again_until_it_is_taken(processor: Processor, inbox: Inbox) -> None:
    """After two refusals the same event comes a third time, and then no more."""
    inbox.statuses = [500, 302]
    await processor.control(webhook_url=inbox.url)
    await processor.paid()
    ids = [(await inbox.next())["id"] for _ in range(3)]
    assert len(set(ids)) == 1
    assert inbox.requests.empty()


async def test_a_dispute_takes_the_charge_back_once(processor: Processor) -> None:
    """The charge is disputed, can't be refunded any more, and an unpaid intent can't be disputed."""
    intent_id = await processor.paid()
    assert (await processor.http.post(f"/_dispute/{intent_id}")).json()["disputed"] is True
    assert error_of(await processor.post("refunds", payment_intent=intent_id))[2] == "charge_disputed"
    assert (await processor.http.post(f"/_dispute/{await processor.create()}")).status_code == 400
