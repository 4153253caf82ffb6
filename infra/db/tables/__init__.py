"""The tables, their limits and their indexes; every index names the query it serves.

A module's tables refer to nobody else's: no foreign key leaves its module, so bookings work with the
catalogue's tables locked or gone. The same definitions hold on SQLite and PostgreSQL; `migrations/` makes
them.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
)

from domain.base import PaymentStatus
from domain.booking import LIVE, PAYABLE, BookingStatus
from domain.concert import ConcertStatus
from domain.user import UserRole
from infra.db.tables.columns import UtcDateTime, among, ordered, status_in, where

__all__ = [
    "CAPTURED_NOT_REFUNDED",
    "REFUND_OPEN",
    "UtcDateTime",
    "among",
    "booking_events",
    "booking_items",
    "bookings",
    "buyers",
    "concerts",
    "idempotency_keys",
    "leases",
    "metadata",
    "outbox",
    "payment_intents",
    "payments",
    "promise_checks",
    "sale_stock",
    "sales",
    "sessions",
    "status_in",
    "ticket_types",
    "users",
    "webhook_events",
]

# A booking has at most one of these: money that came in and has not gone back.
CAPTURED_NOT_REFUNDED = frozenset(
    {PaymentStatus.CAPTURED, PaymentStatus.REFUND_PENDING, PaymentStatus.REFUND_FAILED}
)
REFUND_OPEN = frozenset({PaymentStatus.REFUND_PENDING, PaymentStatus.REFUND_FAILED})

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


# ---------------------------------------------------------------- user
users = Table(
    "users",
    metadata,
    Column("id", ordered, primary_key=True),
    Column("email", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("password_hash", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    UniqueConstraint("email"),
    CheckConstraint(status_in("role", UserRole), name="role"),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", ordered, primary_key=True),
    Column("user_id", ordered, ForeignKey("users.id"), nullable=False),
    Column("token_hash", LargeBinary, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    UniqueConstraint("token_hash"),
    # UserStore.add_session: forget the person's sessions that have ended.
    Index("ix_sessions_user_id_expires_at", "user_id", "expires_at"),
)

# ---------------------------------------------------------------- concert
concerts = Table(
    "concerts",
    metadata,
    Column("id", ordered, primary_key=True),
    Column("title", ordered, nullable=False),
    Column("performer", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("venue", Text, nullable=False),
    Column("time_zone", Text, nullable=False),
    Column("starts_at", UtcDateTime, nullable=False),
    Column("sales_open_at", UtcDateTime, nullable=False),
    Column("sales_close_at", UtcDateTime, nullable=False),
    Column("max_tickets_per_user", Integer, nullable=False),
    Column("status", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    # Title, performer and venue in folded case, one per line: SQLite folds ASCII only, Python all of Unicode.
    Column("search_text", Text, nullable=False),
    CheckConstraint(status_in("status", ConcertStatus), name="status"),
    CheckConstraint("max_tickets_per_user > 0", name="max_tickets_per_user"),
    # Reads.concert_page by start, both ways.
    Index("ix_concerts_starts_at_id", "starts_at", "id"),
    # Reads.concert_page by title.
    Index("ix_concerts_title_id", "title", "id"),
)

ticket_types = Table(
    "ticket_types",
    metadata,
    Column("id", ordered, primary_key=True),
    Column("concert_id", ordered, ForeignKey("concerts.id"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("price_minor", Integer, nullable=False),
    Column("currency", Text, nullable=False),
    Column("capacity", Integer, nullable=False),
    CheckConstraint("capacity >= 0", name="capacity"),
    # Reads.ticket_types_of, in the order registered.
    UniqueConstraint("concert_id", "position"),
)

# ---------------------------------------------------------------- booking: the sale
sales = Table(
    "sales",
    metadata,
    Column("concert_id", ordered, primary_key=True),
    Column("title", Text, nullable=False),
    Column("venue", Text, nullable=False),
    Column("starts_at", UtcDateTime, nullable=False),
    Column("sales_open_at", UtcDateTime, nullable=False),
    Column("sales_close_at", UtcDateTime, nullable=False),
    Column("max_tickets_per_user", Integer, nullable=False),
    Column("is_cancelled", Boolean, nullable=False),
    Column("version", Integer, nullable=False),
    # Since when nothing is sold because its stock is broken.
    Column("halted_at", UtcDateTime),
    CheckConstraint("version > 0", name="version"),
    CheckConstraint("max_tickets_per_user > 0", name="max_tickets_per_user"),
    # SaleStore.all_unsettled: the few that were called off.
    Index("ix_sales_cancelled", "concert_id", **where("is_cancelled")),
    # SaleStore.halted: none, usually.
    Index("ix_sales_halted", "concert_id", **where("halted_at IS NOT NULL")),
)

sale_stock = Table(
    "sale_stock",
    metadata,
    Column("ticket_type_id", ordered, primary_key=True),
    Column("concert_id", ordered, ForeignKey("sales.concert_id"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("price_minor", Integer, nullable=False),
    Column("currency", Text, nullable=False),
    Column("capacity", Integer, nullable=False),
    Column("held", Integer, nullable=False),
    Column("sold", Integer, nullable=False),
    CheckConstraint("held >= 0", name="held"),
    CheckConstraint("sold >= 0", name="sold"),
    CheckConstraint("held + sold <= capacity", name="capacity"),
    # SaleStore.lock and get, Reads.sales: a sale's lines in the order registered.
    UniqueConstraint("concert_id", "position"),
)

# ---------------------------------------------------------------- booking: bookings
_IS_LIVE = where(status_in("status", LIVE))

bookings = Table(
    "bookings",
    metadata,
    Column("id", ordered, primary_key=True),
    Column("user_id", ordered, nullable=False),
    Column("concert_id", ordered, nullable=False),
    Column("status", Text, nullable=False),
    Column("is_final", Boolean, nullable=False),
    Column("ticket_quantity", Integer, nullable=False),
    Column("total_minor", Integer, nullable=False),
    Column("currency", Text, nullable=False),
    # The per-person limit in force when its seats were taken, for `frontrow verify`.
    Column("max_tickets_per_user", Integer, nullable=False),
    Column("hold_until", UtcDateTime, nullable=False),
    Column("is_extended", Boolean, nullable=False),
    Column("is_graced", Boolean, nullable=False),
    Column("retry_pay_at", UtcDateTime),
    Column("payment_id", ordered),
    Column("payment_status", Text),
    Column("decline_code", Text),
    Column("version", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    CheckConstraint(status_in("status", BookingStatus), name="status"),
    CheckConstraint(status_in("payment_status", PaymentStatus), name="payment_status"),
    CheckConstraint("version > 0", name="version"),
    CheckConstraint("ticket_quantity > 0", name="ticket_quantity"),
    # BookingStore.due: holds that have passed, longest due first.
    Index("ix_bookings_hold_until", "hold_until", **where(status_in("status", PAYABLE))),
    # BookingStore.live_ticket_quantity (read from the index alone), live_of, SaleStore.unsettled and all_unsettled.
    Index("ix_bookings_concert_id_user_id", "concert_id", "user_id", "ticket_quantity", **_IS_LIVE),
    # SaleStore.unsettled and all_unsettled: refunds that are pending or failed.
    Index("ix_bookings_refund", "concert_id", **where(status_in("payment_status", REFUND_OPEN))),
    # Reads.my_page and my_changes: a buyer's bookings, read backwards for the newest.
    Index("ix_bookings_user_id_created_at_id", "user_id", "created_at", "id"),
    # Reads.my_page of some statuses.
    Index("ix_bookings_user_id_status_created_at_id", "user_id", "status", "created_at", "id"),
)

booking_items = Table(
    "booking_items",
    metadata,
    Column("booking_id", ordered, ForeignKey("bookings.id"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("ticket_type_id", ordered, nullable=False),
    Column("name", Text, nullable=False),
    Column("quantity", Integer, nullable=False),
    Column("unit_price_minor", Integer, nullable=False),
    # The booking's items in their order.
    PrimaryKeyConstraint("booking_id", "position"),
    CheckConstraint("quantity > 0", name="quantity"),
)

booking_events = Table(
    "booking_events",
    metadata,
    Column("booking_id", ordered, ForeignKey("bookings.id"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("was", Text),
    Column("status", Text, nullable=False),
    Column("payment_status", Text),
    # With the concert it gives all changes of one concert their total order.
    Column("concert_id", ordered, nullable=False),
    Column("stock_version", Integer, nullable=False),
    Column("occurred_at", UtcDateTime, nullable=False),
    # One booking's history, oldest first.
    PrimaryKeyConstraint("booking_id", "version"),
)

buyers = Table(
    "buyers",
    metadata,
    Column("user_id", ordered, primary_key=True),
    Column("my_page_version", Integer, nullable=False),
    CheckConstraint("my_page_version > 0", name="my_page_version"),
)

# ---------------------------------------------------------------- payment
payments = Table(
    "payments",
    metadata,
    Column("id", ordered, primary_key=True),
    Column("booking_id", ordered, nullable=False),
    Column("user_id", ordered, nullable=False),
    Column("amount_minor", Integer, nullable=False),
    Column("currency", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("payment_method_id", Text, nullable=False),
    Column("intent_id", Text, nullable=False),
    Column("decline_code", Text),
    Column("client_secret", Text),
    Column("redirect_url", Text),
    # Goes into the refund's idempotency key; rises after an answer that would only be repeated.
    Column("refund_number", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("captured_at", UtcDateTime),
    Column("refunded_at", UtcDateTime),
    CheckConstraint(status_in("status", PaymentStatus), name="status"),
    # PaymentStore.of_booking, oldest first.
    Index("ix_payments_booking_id_created_at_id", "booking_id", "created_at", "id"),
    # Nobody's money is taken twice; also `frontrow verify`, booking by booking.
    Index(
        "uq_payments_captured",
        "booking_id",
        unique=True,
        **where(status_in("status", CAPTURED_NOT_REFUNDED)),
    ),
    # PaymentStore.failed_refunds, oldest first.
    Index(
        "ix_payments_failed_refund",
        "created_at",
        **where(status_in("status", {PaymentStatus.REFUND_FAILED})),
    ),
)

payment_intents = Table(
    "payment_intents",
    metadata,
    Column("payment_id", ordered, primary_key=True),
    Column("booking_id", ordered, nullable=False),
    Column("intent_id", Text),
    Column("create_number", Integer, nullable=False),
    Column("charge_id", Text),
    Column("is_closed", Boolean, nullable=False),
    Column("creating_until", UtcDateTime),
    Column("creating_key", Text),
    # When the reconciler looks next; null when there is nothing more to see.
    Column("look_at", UtcDateTime),
    Column("asked", Integer, nullable=False),
    # PaymentStore.find_intent by the processor's id.
    UniqueConstraint("intent_id"),
    # PaymentStore.open_intent and with_open_intents; a booking has one at most.
    Index("uq_payment_intents_open", "booking_id", unique=True, **where("NOT is_closed")),
    # PaymentStore.claim_open_intents, longest due first.
    Index("ix_payment_intents_look_at", "look_at", **where("look_at IS NOT NULL")),
)

webhook_events = Table(
    "webhook_events",
    metadata,
    Column("event_id", Text, primary_key=True),
    Column("received_at", UtcDateTime, nullable=False),
    # PaymentStore.reap_webhooks, oldest first.
    Index("ix_webhook_events_received_at", "received_at"),
)

# ---------------------------------------------------------------- across modules
idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("user_id", ordered, nullable=False),
    Column("mutation", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("arguments_hash", Text, nullable=False),
    Column("reference", Text),
    Column("refusal", Text),
    Column("claimed_at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("user_id", "mutation", "key"),
    # IdempotencyStore.reap, oldest first.
    Index("ix_idempotency_keys_claimed_at", "claimed_at"),
)

outbox = Table(
    "outbox",
    metadata,
    # Not an order: a transaction that commits late keeps its small id.
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("kind", Text, nullable=False),
    Column("payload", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    # Not before this: written at first, then the end of a worker's lease, then the time of the next attempt.
    Column("due_at", UtcDateTime, nullable=False),
    Column("worker", Text),
    Column("attempts", Integer, nullable=False),
    Column("error", Text),
    # OutboxQueue.claim, longest due first or last.
    Index("ix_outbox_due_at_id", "due_at", "id"),
    # OutboxQueue.lag.
    Index("ix_outbox_created_at", "created_at"),
)

# ---------------------------------------------------------------- what is checked all the time
promise_checks = Table(
    "promise_checks",
    metadata,
    Column("promise", Text, primary_key=True),
    # What broke it when all was looked at last, or has been found since then.
    Column("broken", Integer, nullable=False),
    # When all was looked at last; null until the first time.
    Column("checked_at", UtcDateTime),
)

leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("worker", Text, nullable=False),
    Column("until", UtcDateTime, nullable=False),
)
