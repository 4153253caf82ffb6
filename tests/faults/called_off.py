"""A concert with bookings in every state, here and at the processor, to be called off; and what must come of them."""

import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

from sqlalchemy import Table, select

from domain.base import ConcertId
from infra.auth import SystemRandomness
from infra.db.tables import (
    booking_events,
    booking_items,
    bookings,
    buyers,
    payment_intents,
    payments,
)
from infra.db.unit import Database
from infra.sandbox.books import Books, Charge, Intent
from infra.sandbox.rules import REFUND_FAILING_METHOD
from tests.db_world import a_concert, a_sale, open_sale, run_sql, types_of

PRICE_MINOR = 3_500
BOOKINGS_PER_BUYER = 2
CARD = "pm_card_visa"
_WAITING, _DEFERRED, _PENDING, _APPROVED = (
    "AWAITING_PAYMENT",
    "PAYMENT_DEFERRED",
    "PAYMENT_PENDING",
    "APPROVED",
)


@dataclass(frozen=True, slots=True)
class Kind:
    """How a booking stands, how its intent does at the processor, and what both come to once it is called off.

    `history` holds the status and the payment's status of each version.
    """

    name: str
    history: tuple[tuple[str, str | None], ...]
    intent: str | None
    payment_in_the_end: str | None
    refunds: int
    method: str = CARD

    @property
    def intent_in_the_end(self) -> str | None:
        """Nothing is left that could still be charged."""
        return self.intent if self.intent in (None, "succeeded") else "canceled"


_BOOKED = (_WAITING, None)
_SENT = (_PENDING, "PROCESSING")
_PAID = (_BOOKED, _SENT, (_APPROVED, "CAPTURED"))
_LOST = (_BOOKED, _SENT, (_PENDING, "UNKNOWN"))
PAID = Kind("paid", _PAID, "succeeded", "REFUNDED", 1)
UNREFUNDABLE = Kind("paid, refund fails", _PAID, "succeeded", "REFUND_FAILED", 1, REFUND_FAILING_METHOD)
HELD = Kind("held", (_BOOKED,), None, None, 0)
DEFERRED = Kind("deferred", (_BOOKED, (_DEFERRED, None)), "requires_payment_method", None, 0)
ACTION = Kind(
    "to authenticate", (_BOOKED, _SENT, (_WAITING, "REQUIRES_ACTION")), "requires_action", "VOIDED", 0
)
LOST = Kind("lost", _LOST, "requires_payment_method", "VOIDED", 0)
LOST_AND_CHARGED = Kind("lost, charged", _LOST, "succeeded", "REFUNDED", 1)
# Of every hundred bookings one has a card that takes no refund, the others come in these shares.
_SHARES = (PAID,) * 14 + (HELD,) * 2 + (DEFERRED, ACTION, LOST, LOST_AND_CHARGED)
KINDS = tuple(UNREFUNDABLE if n == 50 else _SHARES[n % len(_SHARES)] for n in range(100))


@dataclass(frozen=True, slots=True)
class CalledOff:
    """The concert before it is called off, and the kind of each of its bookings."""

    concert_id: ConcertId
    kinds: dict[str, Kind]

    @property
    def counts(self) -> Counter[str]:
        """How many bookings of each kind."""
        return Counter(kind.name for kind in self.kinds.values())


async def fill(database: Database, processor_file: Path, *, size: int) -> CalledOff:
    """So many live bookings of one concert stand in the database, and their payments in the processor's memory."""
    randomness = SystemRandomness()
    concert = a_concert(randomness.new_id(), max_tickets_per_user=BOOKINGS_PER_BUYER)
    sale = a_sale(concert.id, (size + 1,), max_tickets_per_user=BOOKINGS_PER_BUYER)
    async with database.write() as unit:
        await unit.concerts.add(concert, types_of(concert, size + 1))
        await unit.commit()
    await open_sale(database, sale)
    ticket_type_id = sale.stock[0].ticket_type_id
    called_off = CalledOff(concert.id, {randomness.new_id(): KINDS[n % len(KINDS)] for n in range(size)})
    rows = _Rows(called_off, ticket_type_id, [randomness.new_id() for _ in range(size)])
    async with database.writers.transaction() as statements:
        for table, made in rows.tables():
            await statements.change(table.insert(), made)
        await statements.commit()
    sold = sum(kind.history[-1][0] == _APPROVED for kind in called_off.kinds.values())
    await run_sql(
        database,
        "UPDATE sale_stock SET held = :held, sold = :sold WHERE concert_id = :concert_id",
        held=size - sold,
        sold=sold,
        concert_id=concert.id,
    )
    await run_sql(
        database,
        "UPDATE sales SET version = :version WHERE concert_id = :concert_id",
        version=rows.stock_version,
        concert_id=concert.id,
    )
    _fill_processor(processor_file, rows)
    return called_off


class _Rows:
    """What the bookings left behind on their way to where they stand."""

    def __init__(self, called_off: CalledOff, ticket_type_id: str, ids: list[str]) -> None:
        self._called_off = called_off
        self._ticket_type_id = ticket_type_id
        self._now = datetime.now(UTC)
        self.stock_version = 1
        self.bookings = [
            (booking_id, kind, f"pay-{ids[n]}", ids[n // BOOKINGS_PER_BUYER])
            for n, (booking_id, kind) in enumerate(called_off.kinds.items())
        ]

    def tables(self) -> Iterator[tuple[Table, list[dict[str, object]]]]:
        """Rows by table, referenced tables first."""
        yield bookings, [self._booking(*each) for each in self.bookings]
        yield booking_items, [self._item(booking_id) for booking_id, *_ in self.bookings]
        yield booking_events, list(self._events())
        versions: Counter[str] = Counter()
        for _, kind, _, user_id in self.bookings:
            versions[user_id] += len(kind.history)
        yield buyers, [{"user_id": user_id, "my_page_version": n} for user_id, n in versions.items()]
        yield payments, [self._payment(*each) for each in self.bookings if each[1].history[-1][1]]
        yield payment_intents, [self._intent(*each) for each in self.bookings if each[1].intent]

    def _booking(self, booking_id: str, kind: Kind, payment_id: str, user_id: str) -> dict[str, object]:
        status, paid = kind.history[-1]
        return {
            "id": booking_id,
            "user_id": user_id,
            "concert_id": self._called_off.concert_id,
            "status": status,
            "is_final": False,
            "ticket_quantity": 1,
            "total_minor": PRICE_MINOR,
            "currency": "EUR",
            "max_tickets_per_user": BOOKINGS_PER_BUYER,
            "hold_until": self._now + timedelta(days=1),
            "is_extended": kind is DEFERRED,
            "is_graced": kind is ACTION,
            "retry_pay_at": self._now if kind is DEFERRED else None,
            "payment_id": payment_id if paid else None,
            "payment_status": paid,
            "decline_code": None,
            "version": len(kind.history),
            "created_at": self._now,
            "updated_at": self._now,
        }

    def _item(self, booking_id: str) -> dict[str, object]:
        return {
            "booking_id": booking_id,
            "position": 0,
            "ticket_type_id": self._ticket_type_id,
            "name": "Type 0",
            "quantity": 1,
            "unit_price_minor": PRICE_MINOR,
        }

    def _events(self) -> Iterator[dict[str, object]]:
        for booking_id, kind, _, _ in self.bookings:
            was = None
            for version, (status, paid) in enumerate(kind.history, start=1):
                # Seats move when they are taken, and when they are sold.
                self.stock_version += was is None or status == _APPROVED
                yield {
                    "booking_id": booking_id,
                    "version": version,
                    "was": was,
                    "status": status,
                    "payment_status": paid,
                    "concert_id": self._called_off.concert_id,
                    "stock_version": self.stock_version,
                    "occurred_at": self._now,
                }
                was = status

    def _payment(self, booking_id: str, kind: Kind, payment_id: str, user_id: str) -> dict[str, object]:
        status = kind.history[-1][1]
        return {
            "id": payment_id,
            "booking_id": booking_id,
            "user_id": user_id,
            "amount_minor": PRICE_MINOR,
            "currency": "EUR",
            "status": status,
            "payment_method_id": kind.method,
            "intent_id": f"pi_{payment_id}",
            "refund_number": 0,
            "created_at": self._now,
            "captured_at": self._now if status == "CAPTURED" else None,
        }

    def _intent(self, booking_id: str, kind: Kind, payment_id: str, _: str) -> dict[str, object]:
        is_closed = kind.history[-1][0] == _APPROVED
        return {
            "payment_id": payment_id,
            "booking_id": booking_id,
            "intent_id": f"pi_{payment_id}",
            "create_number": 0,
            "charge_id": f"ch_{payment_id}" if is_closed else None,
            "is_closed": is_closed,
            # Nobody looks at it before the concert is called off.
            "look_at": None if is_closed else self._now + timedelta(hours=1),
            "asked": 0,
        }


def _fill_processor(file: Path, rows: _Rows) -> None:
    books = Books(file)
    now = int(datetime.now(UTC).timestamp())
    with books.writing():
        for booking_id, kind, payment_id, _ in rows.bookings:
            if kind.intent is None:
                continue
            metadata = {"payment_id": payment_id, "booking_id": booking_id}
            is_paid = kind.intent == "succeeded"
            books.save_intent(
                Intent(
                    id=f"pi_{payment_id}",
                    client_secret=f"pi_{payment_id}_secret",
                    amount=PRICE_MINOR,
                    currency="eur",
                    created_at=now,
                    status=kind.intent,
                    idempotency_key=None,
                    metadata=metadata,
                    payment_method_id=None if kind.intent == "requires_payment_method" else kind.method,
                    latest_charge_id=f"ch_{payment_id}" if is_paid else None,
                )
            )
            if is_paid:
                books.save_charge(
                    Charge(
                        id=f"ch_{payment_id}",
                        intent_id=f"pi_{payment_id}",
                        amount=PRICE_MINOR,
                        currency="eur",
                        created_at=now,
                        payment_method_id=kind.method,
                        is_paid=True,
                        metadata=metadata,
                    )
                )
    books.close()


async def wrong_in_the_end(
    called_off: CalledOff, database: Database, processor_file: Path, *, refund_tries: int = 1
) -> list[str]:
    """What did not end as it must, ten at most: status, money here, intent and refunds at the processor.

    Where refunds fail there are as many as were asked for.
    """
    intents, refunds = _at_the_processor(processor_file)
    async with database.readers.transaction() as statements:
        found = await statements.rows(
            select(bookings.c.id, bookings.c.status, bookings.c.is_final, bookings.c.payment_status).where(
                bookings.c.concert_id == called_off.concert_id
            )
        )
    standing = {row.id: (row.status, row.is_final, row.payment_status) for row in found}

    def wrong() -> Iterator[str]:
        if standing.keys() != called_off.kinds.keys():
            yield "there are other bookings than before"
        for booking_id, kind in called_off.kinds.items():
            tries = refund_tries if kind is UNREFUNDABLE else kind.refunds
            right = ("CANCELLED", True, kind.payment_in_the_end, kind.intent_in_the_end, tries)
            is_so = (*standing[booking_id], intents.get(booking_id), refunds[booking_id])
            if is_so != right:
                yield f"{kind.name} {booking_id}: {is_so}, not {right}"

    return list(islice(wrong(), 10))


def _at_the_processor(file: Path) -> tuple[dict[str, str], Counter[str]]:
    """The status of each booking's intent, and how many refunds it has, failed ones included."""
    connection = sqlite3.connect(file)
    try:
        booking_of = "json_extract(intent.body, '$.metadata.booking_id')"
        statuses = connection.execute(f"SELECT {booking_of}, json_extract(body, '$.status') FROM intent")
        counted = connection.execute(
            f"SELECT {booking_of}, count(*) FROM refund JOIN intent ON intent.id = intent_id GROUP BY 1"
        )
        return dict(statuses.fetchall()), Counter(dict(counted.fetchall()))
    finally:
        connection.close()
