"""Idempotency keys, every way to misbehave, and webhooks."""

import asyncio
import hmac
import json
import signal
import sys
import time
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from infra.sandbox import running_sandbox
from infra.sandbox.books import KEY_LIFETIME_S, Books, StoredAnswer
from tests.test_sandbox.conftest import Inbox, Processor, client, error_of, running_processor

pytestmark = pytest.mark.anyio

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


async def test_a_client_that_dies_in_the_middle_of_its_request_asked_nothing(
    processor: Processor, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is done, nothing is logged, and the next one is answered."""
    url = processor.http.base_url
    _, writer = await asyncio.open_connection(url.host, url.port)
    head = "POST /v1/payment_intents HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk_test_1\r\n"
    writer.write(f"{head}content-length: 23\r\n\r\namount=1&".encode())
    await writer.drain()
    writer.transport.abort()
    assert (await processor.post("payment_intents", amount="1", currency="eur")).status_code == 200
    assert len(await processor.ledger()) == 1
    assert caplog.records == []


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
        fail_rate=0.25,
        webhook_url="http://127.0.0.1:1/x",
        webhook_secret="whsec_1",
        webhook_delay_ms=60_000,
    )
    expected = {
        "mode": "hang",
        "latency_ms": [1, 2],
        "fail_rate": 0.25,
        "webhook_url": "http://127.0.0.1:1/x",
        "webhook_secret": "whsec_1",
        "webhook_delay_ms": 60_000,
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
        b'{"webhook_delay_ms": 60001}',
        b'{"webhook_delay_ms": 0.5}',
        b'{"webhook_delay_ms": true}',
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


async def test_an_event_comes_when_it_is_told_to(processor: Processor, inbox: Inbox) -> None:
    """Later than the answer by the delay that was asked for."""
    await processor.control(webhook_url=inbox.url, webhook_delay_ms=200)
    await processor.paid()
    answered_s = time.monotonic()
    assert (await inbox.next())["type"] == "payment_intent.succeeded"
    assert time.monotonic() - answered_s > 0.15


async def test_a_refund_comes_back_from_the_bank(processor: Processor, inbox: Inbox) -> None:
    """It failed after it had succeeded: the charge may be refunded anew, and what was not refunded cannot fail."""
    intent_id = await processor.paid()
    assert (await processor.http.post(f"/_fail_refund/{intent_id}")).status_code == 400
    await processor.post("refunds", payment_intent=intent_id)
    await processor.control(webhook_url=inbox.url)
    assert (await processor.http.post(f"/_fail_refund/{intent_id}")).json()["status"] == "failed"
    body, _ = await asyncio.wait_for(inbox.requests.get(), 10)
    event = json.loads(body)
    assert (event["type"], event["data"]["object"]["payment_intent"]) == ("refund.failed", intent_id)
    assert [entry["amount_refunded"] for entry in await processor.ledger()] == [0]
    assert (await processor.http.post(f"/_fail_refund/{intent_id}")).status_code == 400
    assert (await processor.post("refunds", payment_intent=intent_id)).json()["status"] == "succeeded"
    statuses = [refund["status"] for refund in (await processor.http.get("/v1/refunds")).json()["data"]]
    assert statuses == ["succeeded", "failed"]


async def test_a_dispute_takes_the_charge_back_once(processor: Processor) -> None:
    """The charge is disputed, can't be refunded any more, and an unpaid intent can't be disputed."""
    intent_id = await processor.paid()
    assert (await processor.http.post(f"/_dispute/{intent_id}")).json()["disputed"] is True
    assert error_of(await processor.post("refunds", payment_intent=intent_id))[2] == "charge_disputed"
    assert (await processor.http.post(f"/_dispute/{await processor.create()}")).status_code == 400
