"""Attempts, their intents at the processor, refunds, and the webhooks heard."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, case, delete, null, select, text, update

from domain.base import BookingId, Money, PaymentId, PaymentStatus, UserId
from domain.payment import Payment
from domain.ports import IntentRecord, OpenIntent
from infra.db import writes
from infra.db.statements import Statements
from infra.db.tables import among, payment_intents, payments, webhook_events

# An intent was touched: whoever touched it gets so long before the reconciler looks at it.
SETTLE_DELAY_S = 1.0


class SqlPaymentStore:
    """`domain.ports.PaymentStore` in one transaction."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements

    # ------------------------------------------------------------ attempts
    async def add(self, payment: Payment) -> None:
        """Insert an attempt as it is sent."""
        row = {
            "id": payment.id,
            "booking_id": payment.booking_id,
            "user_id": payment.user_id,
            "amount_minor": payment.amount.amount_minor,
            "currency": payment.amount.currency,
            "refund_number": 0,
            "created_at": payment.created_at,
            **_changing(payment),
        }
        await self._statements.later(_ADD, [row])

    async def of_booking(self, booking_id: BookingId) -> list[Payment]:
        """All attempts of a booking, oldest first. Read it under the booking's lock."""
        rows = await self._statements.rows(
            select(payments)
            .where(payments.c.booking_id == booking_id)
            .order_by(payments.c.created_at, payments.c.id)
        )
        return [payment_from(row) for row in rows]

    async def of_bookings(self, booking_ids: Sequence[BookingId]) -> dict[BookingId, list[Payment]]:
        """All attempts of those bookings that have any, oldest first. Read it under the bookings' locks."""
        found: dict[BookingId, list[Payment]] = {}
        if not booking_ids:
            return found
        rows = await self._statements.rows(
            select(payments)
            .where(self._statements.one_of(payments.c.booking_id, booking_ids))
            .order_by(payments.c.booking_id, payments.c.created_at, payments.c.id)
        )
        for row in rows:
            found.setdefault(BookingId(row.booking_id), []).append(payment_from(row))
        return found

    async def save(self, *changes: tuple[Payment, Payment]) -> None:
        """Compare-and-set on the status. Raises: AssertionError where a row is not as in the old one."""
        rows = [
            {"was_key": old.id, "was_status": old.status.value} | _changing(new)
            for old, new in writes.net(changes)
        ]
        await self._statements.later(_SAVE, rows)

    async def get(self, payment_id: PaymentId) -> Payment | None:
        """One attempt."""
        row = await self._statements.row(select(payments).where(payments.c.id == payment_id))
        return None if row is None else payment_from(row)

    async def save_actions(self, actions: Mapping[PaymentId, tuple[str, str | None]]) -> None:
        """Keep what the buyers need to authenticate: the client secret and the page of each attempt."""
        rows = [
            {"was_key": payment_id, "client_secret": client_secret, "redirect_url": redirect_url}
            for payment_id, (client_secret, redirect_url) in actions.items()
        ]
        await self._statements.later(_SAVE_ACTION, rows)

    async def action(self, payment_id: PaymentId) -> tuple[str, str | None]:
        """The client secret and the page on which the buyer authenticates."""
        (row,) = await self._statements.rows(
            select(payments.c.client_secret, payments.c.redirect_url).where(payments.c.id == payment_id)
        )
        return row.client_secret or "", row.redirect_url

    # ------------------------------------------------------------ intents
    async def open_intent(self, booking_id: BookingId) -> IntentRecord | None:
        """The booking's one live intent. Read it under the booking's lock."""
        return await self._intent(payment_intents.c.booking_id == booking_id, _IS_OPEN)

    async def intent(self, payment_id: PaymentId) -> IntentRecord | None:
        """The intent whose metadata carries this id. Read it under the booking's lock."""
        return await self._intent(payment_intents.c.payment_id == payment_id)

    async def intents(self, payment_ids: Collection[PaymentId]) -> dict[PaymentId, IntentRecord]:
        """Those intents that exist, by the id in their metadata. Read them under the bookings' locks."""
        if not payment_ids:
            return {}
        named = self._statements.one_of(payment_intents.c.payment_id, payment_ids)
        rows = await self._statements.rows(select(payment_intents).where(named))
        return {PaymentId(row.payment_id): _intent_from(row) for row in rows}

    async def with_open_intents(self, booking_ids: Sequence[BookingId]) -> set[BookingId]:
        """Those that have a live intent."""
        rows = await self._statements.rows(
            select(payment_intents.c.booking_id).where(
                self._statements.one_of(payment_intents.c.booking_id, booking_ids), _IS_OPEN
            )
        )
        return {BookingId(row.booking_id) for row in rows}

    async def put_intents(self, *records: IntentRecord) -> None:
        """Insert or overwrite each, no two of one intent. Look at it again soon, while it is not closed."""
        await self._statements.later(_PUT, [_put_row(each) for each in records])

    async def find_intent(
        self, *, payment_id: PaymentId | None, intent_id: str | None
    ) -> IntentRecord | None:
        """The intent with this metadata, or this id."""
        found = None
        if payment_id is not None:
            found = await self._intent(payment_intents.c.payment_id == payment_id)
        if found is None and intent_id is not None:
            found = await self._intent(payment_intents.c.intent_id == intent_id)
        return found

    async def claim_open_intents(self, *, lease_s: float, limit: int) -> list[OpenIntent]:
        """Intents due for a look, leased to the caller. Concurrency: two callers never get the same one."""
        due = (
            select(payment_intents.c.payment_id)
            .where(payment_intents.c.look_at <= self._statements.clock())
            .order_by(payment_intents.c.look_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
            .cte("due")
        )
        rows = await self._statements.rows(
            update(payment_intents)
            .where(payment_intents.c.payment_id.in_(select(due.c.payment_id)))
            .values(look_at=self._statements.clock(plus_s=lease_s))
            .returning(payment_intents)
        )
        return [
            OpenIntent(
                payment_id=PaymentId(row.payment_id),
                booking_id=BookingId(row.booking_id),
                intent_id=row.intent_id,
                asked=row.asked,
            )
            for row in rows
        ]

    async def look_again(self, claimed: OpenIntent, *, after_s: float) -> None:
        """Put the next look then, and count that one was in vain. A closed one stays closed.

        What was written of the intent since it was claimed wants a look sooner, and wins.
        """
        await self._statements.change(
            update(payment_intents)
            .where(
                payment_intents.c.payment_id == claimed.payment_id,
                payment_intents.c.asked == claimed.asked,
                payment_intents.c.look_at.is_not(None),
            )
            .values(look_at=self._statements.clock(plus_s=after_s), asked=payment_intents.c.asked + 1)
        )

    # ------------------------------------------------------------ refunds and webhooks
    async def next_refund_number(self, payment_id: PaymentId) -> int:
        """The number for the next refund request's key; rises after an answer that would only be repeated."""
        (row,) = await self._statements.rows(
            select(payments.c.refund_number).where(payments.c.id == payment_id)
        )
        return int(row.refund_number)

    async def raise_refund_number(self, payment_id: PaymentId) -> None:
        """The processor stored an error under the last refund key: use a new one."""
        raised = update(payments).values(refund_number=payments.c.refund_number + 1)
        changed = await self._statements.change(raised.where(payments.c.id == payment_id))
        assert changed == 1, "the attempt exists"

    async def failed_refunds(self, *, limit: int) -> list[Payment]:
        """Attempts whose refund failed, oldest first."""
        rows = await self._statements.rows(
            select(payments)
            .where(among(payments.c.status, {PaymentStatus.REFUND_FAILED}))
            .order_by(payments.c.created_at)
            .limit(limit)
        )
        return [payment_from(row) for row in rows]

    async def add_webhooks(self, event_ids: Collection[str]) -> set[str]:
        """Those events whose first time this is. Concurrency: waits for parallel ones to commit, in one order."""
        if not event_ids:
            return set()
        added = await self._statements.returned(
            _ADD_WEBHOOKS, [{"event_id": event_id} for event_id in sorted(event_ids)]
        )
        return {row.event_id for row in added}

    async def reap_webhooks(self, *, before: datetime, limit: int) -> int:
        """Forget up to `limit` events heard before then; how many it were."""
        old = (
            select(webhook_events.c.event_id)
            .where(webhook_events.c.received_at < before)
            .order_by(webhook_events.c.received_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
            .cte("old")
        )
        reaped = await self._statements.rows(
            delete(webhook_events)
            .where(webhook_events.c.event_id.in_(select(old.c.event_id)))
            .returning(webhook_events.c.event_id)
        )
        return len(reaped)

    async def _intent(self, *where: ColumnElement[bool]) -> IntentRecord | None:
        row = await self._statements.row(select(payment_intents).where(*where))
        return None if row is None else _intent_from(row)


_CHANGING = ("status", "payment_method_id", "intent_id", "decline_code", "captured_at", "refunded_at")
_ADD = writes.insert(
    payments,
    *("id", "booking_id", "user_id", "amount_minor", "currency", "refund_number", "created_at"),
    *_CHANGING,
)
_SAVE = writes.update(payments, *_CHANGING, key=payments.c.id, was_status=payments.c.status)
_SAVE_ACTION = writes.update(payments, "client_secret", "redirect_url", key=payments.c.id)
_PUT = writes.insert(
    payment_intents,
    *("payment_id", "booking_id", "intent_id", "create_number", "charge_id", "is_closed"),
    *("creating_until", "creating_key", "asked"),
    # Without the processor's id nothing can be asked, and no money can have moved.
    computed=lambda given: {
        "look_at": case(
            (given["intent_id"].is_(None) | given["is_closed"], null()),
            else_=given.clock(plus_s=SETTLE_DELAY_S),
        )
    },
    conflict=lambda insert, _: insert.on_conflict_do_update(
        index_elements=["payment_id"],
        set_={c.name: insert.excluded[c.name] for c in payment_intents.c if c.name != "booking_id"},
    ),
)
_ADD_WEBHOOKS = writes.insert(
    webhook_events,
    "event_id",
    computed=lambda given: {"received_at": given.clock()},
    conflict=lambda insert, _: insert.on_conflict_do_nothing(index_elements=["event_id"]),
    returning=[webhook_events.c.event_id],
)
# In these words on both databases, or the partial index is not used.
_IS_OPEN: ColumnElement[bool] = text("NOT is_closed")  # type: ignore[assignment]


def payment_from(row: Row[*tuple[Any, ...]]) -> Payment:
    """The attempt in a row of `payments`."""
    return Payment(
        id=PaymentId(row.id),
        booking_id=BookingId(row.booking_id),
        user_id=UserId(row.user_id),
        amount=Money(row.amount_minor, row.currency),
        status=PaymentStatus(row.status),
        payment_method_id=row.payment_method_id,
        intent_id=row.intent_id,
        decline_code=row.decline_code,
        created_at=row.created_at,
        captured_at=row.captured_at,
        refunded_at=row.refunded_at,
    )


def _intent_from(row: Row[*tuple[Any, ...]]) -> IntentRecord:
    return IntentRecord(
        payment_id=PaymentId(row.payment_id),
        booking_id=BookingId(row.booking_id),
        intent_id=row.intent_id,
        create_number=row.create_number,
        charge_id=row.charge_id,
        is_closed=row.is_closed,
        creating_until=row.creating_until,
        creating_key=row.creating_key,
    )


def _put_row(record: IntentRecord) -> dict[str, object]:
    """All columns but when it is looked at, which the database's clock says."""
    return {
        "payment_id": record.payment_id,
        "booking_id": record.booking_id,
        "intent_id": record.intent_id,
        "create_number": record.create_number,
        "charge_id": record.charge_id,
        "is_closed": record.is_closed,
        "creating_until": record.creating_until,
        "creating_key": record.creating_key,
        "asked": 0,
    }


def _changing(payment: Payment) -> dict[str, object]:
    """The columns that a change may write."""
    return {
        "status": payment.status.value,
        "payment_method_id": payment.payment_method_id,
        "intent_id": payment.intent_id,
        "decline_code": payment.decline_code,
        "captured_at": payment.captured_at,
        "refunded_at": payment.refunded_at,
    }
