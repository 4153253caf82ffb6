"""The HTTP surface: API keys, modes, one answer per Idempotency-Key, and the pages below `/_`.

Source: Stripe API reference, "Authentication" and "Idempotent requests".
"""

import asyncio
import base64
import binascii
import html
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from infra.sandbox import refunds, rules
from infra.sandbox.books import Books, StoredAnswer
from infra.sandbox.control import Control, Mode
from infra.sandbox.rules import Call, Reply
from infra.sandbox.webhooks import LATE_S, Webhooks
from infra.sandbox.wire import Json, Parameters, Refused, encode, invalid

MAX_BODY_BYTES = 65_536
MAX_KEY_LENGTH = 255
# How long a hung request is kept before its connection is closed; every client gives up earlier.
HANG_S = 60.0
# The ASGI extension through which `infra.sandbox.server` lets a response close its connection.
DROP = "frontrow.drop"

Operation = Callable[[Call], Reply]


def build_sandbox(*, state_path: Path | None = None) -> Starlette:
    """The processor as an ASGI application, its memory in `state_path` or nowhere.

    Concurrency: one process. Closing connections without an answer needs the server of `running_sandbox`.
    """
    api = [
        Route("/payment_intents", _api(rules.create_intent), methods=["POST"]),
        Route("/payment_intents/{id}", _api(rules.retrieve_intent), methods=["GET"]),
        Route("/payment_intents/{id}/confirm", _api(rules.confirm_intent), methods=["POST"]),
        Route("/payment_intents/{id}/cancel", _api(rules.cancel_intent), methods=["POST"]),
        Route("/refunds", _api(refunds.create_refund), methods=["POST"]),
        Route("/refunds", _api(refunds.list_refunds), methods=["GET"]),
        Route("/refunds/{id}", _api(refunds.retrieve_refund), methods=["GET"]),
        Route("/{rest:path}", _api(_no_such_url), methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
    ]
    pages = [
        Route("/_control", _control, methods=["GET", "POST"]),
        Route("/_ledger", _ledger, methods=["GET"]),
        Route("/_3ds/{id}", _authentication_page, methods=["GET", "POST"]),
        Route("/_refund/{id}", _outside(refunds.refund_at_processor), methods=["POST"]),
        Route("/_fail_refund/{id}", _outside(refunds.fail_refund_at_processor), methods=["POST"]),
        Route("/_dispute/{id}", _outside(refunds.dispute_at_processor), methods=["POST"]),
    ]
    return Starlette(
        routes=[Mount("/v1", routes=api), *pages],
        lifespan=_lifespan(state_path),
        max_body_size=MAX_BODY_BYTES,
    )


class Sandbox:
    """What one running sandbox holds."""

    def __init__(self, books: Books, webhooks: Webhooks) -> None:
        self.books = books
        self.webhooks = webhooks
        self.control = Control()
        self.keys_in_flight: set[str] = set()
        # Set when the server stops, so that nothing goes on hanging.
        self.closing = asyncio.Event()

    def announce(self, reply: Reply, control: Control, *, key: str | None = None) -> None:
        """Send the reply's events to the webhook; late ones while confirms hang."""
        after_s = LATE_S if control.mode is Mode.CHARGE_THEN_HANG else control.webhook_delay_ms / 1_000
        for event in reply.events:
            self.webhooks.send(event, control, key=key, after_s=after_s)


class NoAnswer(Response):
    """Closes the connection without a byte, at once or when nobody can be waiting any more."""

    def __init__(self, closing: asyncio.Event, *, after_s: float = 0.0) -> None:
        super().__init__()
        self._closing = closing
        self._after_s = after_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hang for `after_s`, less if the client goes or the server stops, then close."""
        gone = asyncio.create_task(_until_gone(receive))
        closing = asyncio.create_task(self._closing.wait())
        try:
            if self._after_s:
                await asyncio.wait(
                    {gone, closing}, timeout=self._after_s, return_when=asyncio.FIRST_COMPLETED
                )
            scope["extensions"][DROP]["abort"]()
            # Returning before the server has noticed would make it answer 500.
            await gone
        finally:
            gone.cancel()
            closing.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _lifespan(state_path: Path | None) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        books = Books(state_path)
        webhooks = Webhooks()
        app.state.sandbox = Sandbox(books, webhooks)
        try:
            yield
        finally:
            await webhooks.aclose()
            books.close()

    return lifespan


def _sandbox(request: Request) -> Sandbox:
    sandbox = request.app.state.sandbox
    assert isinstance(sandbox, Sandbox)
    return sandbox


def _api(run: Operation) -> Callable[[Request], Awaitable[Response]]:
    """An API endpoint around `run`. The mode that holds is the one at the request's arrival."""

    async def endpoint(request: Request) -> Response:
        sandbox = _sandbox(request)
        control = sandbox.control
        if control.mode is Mode.DOWN:
            return NoAnswer(sandbox.closing)
        is_post = request.method == "POST"
        try:
            _require_api_key(request)
            encoded = await request.body() if is_post else request.url.query.encode()
            if is_post and control.mode is Mode.HANG:
                return NoAnswer(sandbox.closing, after_s=HANG_S)
            call = _call(request, sandbox, Parameters.parse(encoded))
            answer = await (_write if is_post else _read)(request, sandbox, control, run, call)
        except Refused as refusal:
            answer = _json(refusal.body(), status=refusal.status)
        except ClientDisconnect:
            # Killed in the middle of its request: nothing was asked, and nobody hears an answer.
            return NoAnswer(sandbox.closing)
        if control.mode is Mode.CHARGE_THEN_HANG and run is rules.confirm_intent:
            return NoAnswer(sandbox.closing, after_s=HANG_S)
        return answer

    return endpoint


async def _read(request: Request, sandbox: Sandbox, control: Control, run: Operation, call: Call) -> Response:
    if await _stops_while_pausing(sandbox, control):
        return NoAnswer(sandbox.closing)
    return _json(encode(run(call).body))


async def _write(
    request: Request, sandbox: Sandbox, control: Control, run: Operation, call: Call
) -> Response:
    key = call.key
    if key is None:
        if await _stops_while_pausing(sandbox, control):
            return NoAnswer(sandbox.closing)
        return _execute(sandbox, control, run, call, fingerprint="")
    if len(key) > MAX_KEY_LENGTH:
        raise invalid(f"Idempotency keys have at most {MAX_KEY_LENGTH} characters.")
    if key in sandbox.keys_in_flight:
        message = f"There is currently another in-progress request using this Idempotent Key: {key}"
        raise Refused(message, status=409, kind="idempotency_error", code="idempotency_key_in_use")
    sandbox.keys_in_flight.add(key)
    try:
        if await _stops_while_pausing(sandbox, control):
            return NoAnswer(sandbox.closing)
        fingerprint = _fingerprint(request, call.parameters)
        stored = sandbox.books.answer(key, now=call.now)
        if stored is None:
            return _execute(sandbox, control, run, call, fingerprint=fingerprint)
    finally:
        sandbox.keys_in_flight.discard(key)
    if stored.fingerprint != fingerprint:
        message = (
            "Keys for idempotent requests can only be used with the same endpoint and parameters they were "
            f"first used with. Use a key other than '{key}' if you meant to execute a different request."
        )
        raise Refused(message, kind="idempotency_error")
    return _json(stored.body, status=stored.status, headers={"idempotent-replayed": "true"})


def _execute(sandbox: Sandbox, control: Control, run: Operation, call: Call, *, fingerprint: str) -> Response:
    """Run once and keep the answer under the key, in one transaction; 500s are kept too, as Stripe does."""
    try:
        with sandbox.books.writing() as books:
            if random.random() < control.fail_rate:
                reply = Reply(
                    {"error": {"message": "An unknown error occurred", "type": "api_error"}}, status=500
                )
            else:
                reply = run(call)
            body = encode(reply.body)
            if call.key is not None:
                books.keep_answer(call.key, StoredAnswer(fingerprint, reply.status, body), now=call.now)
    except Refused as refusal:
        if call.key is not None and refusal.is_stored:
            with sandbox.books.writing() as books:
                books.keep_answer(
                    call.key, StoredAnswer(fingerprint, refusal.status, refusal.body()), now=call.now
                )
        raise
    sandbox.announce(reply, control, key=call.key)
    return _json(body, status=reply.status)


async def _stops_while_pausing(sandbox: Sandbox, control: Control) -> bool:
    """Wait as long as `latency_ms` asks; true when the server stops meanwhile."""
    shortest_ms, longest_ms = control.latency_ms
    if longest_ms:
        with suppress(TimeoutError):
            await asyncio.wait_for(sandbox.closing.wait(), random.uniform(shortest_ms, longest_ms) / 1_000)
    return sandbox.closing.is_set()


def _require_api_key(request: Request) -> None:
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    key = credentials.strip() if scheme.lower() == "bearer" else ""
    if scheme.lower() == "basic":
        # The key is the user name and the password stays empty.
        with suppress(binascii.Error, UnicodeDecodeError):
            key = base64.b64decode(credentials, validate=True).decode().partition(":")[0]
    if not key:
        message = (
            "You did not provide an API key. Provide it in the Authorization header, as Bearer or Basic."
        )
        raise Refused(message, status=401, is_stored=False)


def _call(request: Request, sandbox: Sandbox, parameters: Parameters) -> Call:
    return Call(
        books=sandbox.books,
        parameters=parameters,
        subject=request.path_params.get("id", ""),
        base_url=str(request.base_url).rstrip("/"),
        api_version=request.headers.get("stripe-version", ""),
        key=request.headers.get("idempotency-key") or None,
        now=int(time.time()),
    )


def _fingerprint(request: Request, parameters: Parameters) -> str:
    return sha256(encode([request.url.path, [list(pair) for pair in parameters.pairs]])).hexdigest()


def _json(body: bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    identity = {"request-id": f"req_{secrets.token_hex(7)}"}
    return Response(body, status, headers=identity | (headers or {}), media_type="application/json")


def _no_such_url(call: Call) -> Reply:
    raise Refused(
        "Unrecognized request URL: this sandbox speaks a part of the API only.", status=404, is_stored=False
    )


def _outside(run: Operation) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint below `/_` around `run`: no key, no mode, always answers."""

    async def endpoint(request: Request) -> Response:
        sandbox = _sandbox(request)
        try:
            with sandbox.books.writing():
                reply = run(_call(request, sandbox, Parameters.parse(request.url.query.encode())))
        except Refused as refusal:
            return _json(refusal.body(), status=refusal.status)
        sandbox.announce(reply, sandbox.control)
        return _json(encode(reply.body))

    return endpoint


async def _control(request: Request) -> Response:
    sandbox = _sandbox(request)
    if request.method == "POST":
        try:
            sandbox.control = sandbox.control.changed(await request.body())
        except Refused as refusal:
            return _json(refusal.body(), status=refusal.status)
    return _json(encode(sandbox.control.json()))


async def _ledger(request: Request) -> Response:
    entries: list[Json] = [
        {
            "payment_intent": intent.id,
            "amount": intent.amount,
            "currency": intent.currency,
            "status": intent.status,
            "amount_refunded": amount_refunded,
            "idempotency_key": intent.idempotency_key,
            "metadata": intent.metadata,
        }
        for intent, amount_refunded in _sandbox(request).books.ledger()
    ]
    return _json(encode(entries))


async def _authentication_page(request: Request) -> Response:
    """What a bank's page would do: opening it authenticates, with `?outcome=fail` it refuses."""
    sandbox = _sandbox(request)
    call = _call(request, sandbox, Parameters([]))
    # A client that only looks whether the page is there has not authenticated anything.
    if request.method != "HEAD":
        try:
            with sandbox.books.writing():
                reply = rules.authenticate(call, is_successful=request.query_params.get("outcome") != "fail")
        except Refused:
            return HTMLResponse(_page("There is no such payment."), 404)
        sandbox.announce(reply, sandbox.control)
    intent = sandbox.books.intent(call.subject)
    if intent is None:
        return HTMLResponse(_page("There is no such payment."), 404)
    texts = {
        "succeeded": "Thank you, the payment is authenticated.",
        "canceled": "This payment was cancelled.",
    }
    link = ""
    if intent.return_url is not None:
        facts = {
            "payment_intent": intent.id,
            "payment_intent_client_secret": intent.client_secret,
            "redirect_status": "succeeded" if intent.status == "succeeded" else "failed",
        }
        link = f"{intent.return_url}{'&' if '?' in intent.return_url else '?'}{urlencode(facts)}"
    return HTMLResponse(_page(texts.get(intent.status, "The payment was not authenticated."), link=link))


def _page(text: str, *, link: str = "") -> str:
    back = f'<p><a href="{html.escape(link)}">Back to the shop</a></p>' if link else ""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Test bank</title>'
        f"<h1>Test bank</h1><p>{html.escape(text)}</p>{back}</html>"
    )
