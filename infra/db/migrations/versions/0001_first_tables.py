"""First tables.

Frozen as it was released: what the tables are now stands in `infra/db/tables/`, and a test compares the two.
"""

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make all tables."""
    _user()
    _concert()
    _sales()
    _bookings()
    _booking_parts()
    _payments()
    _payment_parts()
    _shared()


def _ordered() -> sa.types.TypeEngine[str]:
    return sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def _moment() -> sa.types.TypeEngine[datetime]:
    return sa.DateTime(timezone=True).with_variant(sa.Text(), "sqlite")


def _index(
    name: str, table: str, columns: Sequence[str], *, is_unique: bool = False, where: str | None = None
) -> None:
    condition = None if where is None else sa.text(where)
    op.create_index(
        name, table, columns, unique=is_unique, sqlite_where=condition, postgresql_where=condition
    )


def _user() -> None:
    op.create_table(
        "users",
        sa.Column("id", _ordered(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.Column("created_at", _moment(), nullable=False),
        sa.CheckConstraint("role IN ('ADMIN', 'CUSTOMER')", name=op.f("ck_users_role")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("email", name=op.f("uq_users_email")),
    )
    op.create_table(
        "sessions",
        sa.Column("id", _ordered(), nullable=False),
        sa.Column("user_id", _ordered(), nullable=False),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", _moment(), nullable=False),
        sa.Column("expires_at", _moment(), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_sessions_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sessions")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_sessions_token_hash")),
    )
    _index("ix_sessions_user_id_expires_at", "sessions", ["user_id", "expires_at"])


def _concert() -> None:
    op.create_table(
        "concerts",
        sa.Column("id", _ordered(), nullable=False),
        sa.Column("title", _ordered(), nullable=False),
        sa.Column("performer", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("venue", sa.Text(), nullable=False),
        sa.Column("time_zone", sa.Text(), nullable=False),
        sa.Column("starts_at", _moment(), nullable=False),
        sa.Column("sales_open_at", _moment(), nullable=False),
        sa.Column("sales_close_at", _moment(), nullable=False),
        sa.Column("max_tickets_per_user", sa.Integer(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("created_at", _moment(), nullable=False),
        sa.Column("search_text", sa.Text(), nullable=False),
        sa.CheckConstraint("status IN ('CANCELLED', 'SCHEDULED')", name=op.f("ck_concerts_status")),
        sa.CheckConstraint("max_tickets_per_user > 0", name=op.f("ck_concerts_max_tickets_per_user")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_concerts")),
    )
    _index("ix_concerts_starts_at_id", "concerts", ["starts_at", "id"])
    _index("ix_concerts_title_id", "concerts", ["title", "id"])
    op.create_table(
        "ticket_types",
        sa.Column("id", _ordered(), nullable=False),
        sa.Column("concert_id", _ordered(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("price_minor", sa.Integer(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("capacity", sa.Integer(), nullable=False),
        sa.CheckConstraint("capacity >= 0", name=op.f("ck_ticket_types_capacity")),
        sa.ForeignKeyConstraint(["concert_id"], ["concerts.id"], name=op.f("fk_ticket_types_concert_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ticket_types")),
        sa.UniqueConstraint("concert_id", "position", name=op.f("uq_ticket_types_concert_id_position")),
    )


def _sales() -> None:
    op.create_table(
        "sales",
        sa.Column("concert_id", _ordered(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("venue", sa.Text(), nullable=False),
        sa.Column("starts_at", _moment(), nullable=False),
        sa.Column("sales_open_at", _moment(), nullable=False),
        sa.Column("sales_close_at", _moment(), nullable=False),
        sa.Column("max_tickets_per_user", sa.Integer(), nullable=False),
        sa.Column("is_cancelled", sa.Boolean(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.CheckConstraint("max_tickets_per_user > 0", name=op.f("ck_sales_max_tickets_per_user")),
        sa.CheckConstraint("version > 0", name=op.f("ck_sales_version")),
        sa.PrimaryKeyConstraint("concert_id", name=op.f("pk_sales")),
    )
    op.create_table(
        "sale_stock",
        sa.Column("ticket_type_id", _ordered(), nullable=False),
        sa.Column("concert_id", _ordered(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("price_minor", sa.Integer(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("capacity", sa.Integer(), nullable=False),
        sa.Column("held", sa.Integer(), nullable=False),
        sa.Column("sold", sa.Integer(), nullable=False),
        sa.CheckConstraint("held + sold <= capacity", name=op.f("ck_sale_stock_capacity")),
        sa.CheckConstraint("held >= 0", name=op.f("ck_sale_stock_held")),
        sa.CheckConstraint("sold >= 0", name=op.f("ck_sale_stock_sold")),
        sa.ForeignKeyConstraint(["concert_id"], ["sales.concert_id"], name=op.f("fk_sale_stock_concert_id")),
        sa.PrimaryKeyConstraint("ticket_type_id", name=op.f("pk_sale_stock")),
        sa.UniqueConstraint("concert_id", "position", name=op.f("uq_sale_stock_concert_id_position")),
    )


def _bookings() -> None:
    op.create_table(
        "bookings",
        sa.Column("id", _ordered(), nullable=False),
        sa.Column("user_id", _ordered(), nullable=False),
        sa.Column("concert_id", _ordered(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("is_final", sa.Boolean(), nullable=False),
        sa.Column("ticket_quantity", sa.Integer(), nullable=False),
        sa.Column("total_minor", sa.Integer(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("max_tickets_per_user", sa.Integer(), nullable=False),
        sa.Column("hold_until", _moment(), nullable=False),
        sa.Column("is_extended", sa.Boolean(), nullable=False),
        sa.Column("is_graced", sa.Boolean(), nullable=False),
        sa.Column("retry_pay_at", _moment()),
        sa.Column("payment_id", _ordered()),
        sa.Column("payment_status", sa.Text()),
        sa.Column("decline_code", sa.Text()),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", _moment(), nullable=False),
        sa.Column("updated_at", _moment(), nullable=False),
        sa.CheckConstraint(
            "payment_status IN ('CAPTURED', 'DECLINED', 'PROCESSING', 'REFUNDED', "
            "'REFUND_FAILED', 'REFUND_PENDING', 'REQUIRES_ACTION', 'UNKNOWN', 'VOIDED')",
            name=op.f("ck_bookings_payment_status"),
        ),
        sa.CheckConstraint(
            "status IN ('APPROVED', 'AWAITING_PAYMENT', 'CANCELLED', 'EXPIRED', "
            "'PAYMENT_DEFERRED', 'PAYMENT_PENDING')",
            name=op.f("ck_bookings_status"),
        ),
        sa.CheckConstraint("ticket_quantity > 0", name=op.f("ck_bookings_ticket_quantity")),
        sa.CheckConstraint("version > 0", name=op.f("ck_bookings_version")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bookings")),
    )
    _index(
        "ix_bookings_concert_id_user_id",
        "bookings",
        ["concert_id", "user_id", "ticket_quantity"],
        where="status IN ('APPROVED', 'AWAITING_PAYMENT', 'PAYMENT_DEFERRED', 'PAYMENT_PENDING')",
    )
    _index(
        "ix_bookings_hold_until",
        "bookings",
        ["hold_until"],
        where="status IN ('AWAITING_PAYMENT', 'PAYMENT_DEFERRED')",
    )
    _index(
        "ix_bookings_refund",
        "bookings",
        ["concert_id"],
        where="payment_status IN ('REFUND_FAILED', 'REFUND_PENDING')",
    )
    _index("ix_bookings_user_id_created_at_id", "bookings", ["user_id", "created_at", "id"])
    _index("ix_bookings_user_id_status_created_at_id", "bookings", ["user_id", "status", "created_at", "id"])


def _booking_parts() -> None:
    op.create_table(
        "booking_items",
        sa.Column("booking_id", _ordered(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("ticket_type_id", _ordered(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("quantity", sa.Integer(), nullable=False),
        sa.Column("unit_price_minor", sa.Integer(), nullable=False),
        sa.CheckConstraint("quantity > 0", name=op.f("ck_booking_items_quantity")),
        sa.ForeignKeyConstraint(["booking_id"], ["bookings.id"], name=op.f("fk_booking_items_booking_id")),
        sa.PrimaryKeyConstraint("booking_id", "position", name=op.f("pk_booking_items")),
    )
    op.create_table(
        "booking_events",
        sa.Column("booking_id", _ordered(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("was", sa.Text()),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("payment_status", sa.Text()),
        sa.Column("concert_id", _ordered(), nullable=False),
        sa.Column("stock_version", sa.Integer(), nullable=False),
        sa.Column("occurred_at", _moment(), nullable=False),
        sa.ForeignKeyConstraint(["booking_id"], ["bookings.id"], name=op.f("fk_booking_events_booking_id")),
        sa.PrimaryKeyConstraint("booking_id", "version", name=op.f("pk_booking_events")),
    )
    op.create_table(
        "buyers",
        sa.Column("user_id", _ordered(), nullable=False),
        sa.Column("my_page_version", sa.Integer(), nullable=False),
        sa.CheckConstraint("my_page_version > 0", name=op.f("ck_buyers_my_page_version")),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_buyers")),
    )


def _payments() -> None:
    op.create_table(
        "payments",
        sa.Column("id", _ordered(), nullable=False),
        sa.Column("booking_id", _ordered(), nullable=False),
        sa.Column("user_id", _ordered(), nullable=False),
        sa.Column("amount_minor", sa.Integer(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("payment_method_id", sa.Text(), nullable=False),
        sa.Column("intent_id", sa.Text(), nullable=False),
        sa.Column("decline_code", sa.Text()),
        sa.Column("client_secret", sa.Text()),
        sa.Column("redirect_url", sa.Text()),
        sa.Column("refund_number", sa.Integer(), nullable=False),
        sa.Column("created_at", _moment(), nullable=False),
        sa.Column("captured_at", _moment()),
        sa.Column("refunded_at", _moment()),
        sa.CheckConstraint(
            "status IN ('CAPTURED', 'DECLINED', 'PROCESSING', 'REFUNDED', 'REFUND_FAILED', "
            "'REFUND_PENDING', 'REQUIRES_ACTION', 'UNKNOWN', 'VOIDED')",
            name=op.f("ck_payments_status"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_payments")),
    )
    _index("ix_payments_booking_id_created_at_id", "payments", ["booking_id", "created_at", "id"])
    _index("ix_payments_failed_refund", "payments", ["created_at"], where="status IN ('REFUND_FAILED')")
    _index(
        "uq_payments_captured",
        "payments",
        ["booking_id"],
        is_unique=True,
        where="status IN ('CAPTURED', 'REFUND_FAILED', 'REFUND_PENDING')",
    )


def _payment_parts() -> None:
    op.create_table(
        "payment_intents",
        sa.Column("payment_id", _ordered(), nullable=False),
        sa.Column("booking_id", _ordered(), nullable=False),
        sa.Column("intent_id", sa.Text()),
        sa.Column("create_number", sa.Integer(), nullable=False),
        sa.Column("charge_id", sa.Text()),
        sa.Column("is_closed", sa.Boolean(), nullable=False),
        sa.Column("creating_until", _moment()),
        sa.Column("creating_key", sa.Text()),
        sa.Column("look_at", _moment()),
        sa.Column("asked", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("payment_id", name=op.f("pk_payment_intents")),
        sa.UniqueConstraint("intent_id", name=op.f("uq_payment_intents_intent_id")),
    )
    _index("ix_payment_intents_look_at", "payment_intents", ["look_at"], where="look_at IS NOT NULL")
    _index(
        "uq_payment_intents_open", "payment_intents", ["booking_id"], is_unique=True, where="NOT is_closed"
    )
    op.create_table(
        "webhook_events",
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("received_at", _moment(), nullable=False),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_webhook_events")),
    )


def _shared() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("user_id", _ordered(), nullable=False),
        sa.Column("mutation", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("arguments_hash", sa.Text(), nullable=False),
        sa.Column("reference", sa.Text()),
        sa.Column("refusal", sa.Text()),
        sa.Column("claimed_at", _moment(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "mutation", "key", name=op.f("pk_idempotency_keys")),
    )
    _index("ix_idempotency_keys_claimed_at", "idempotency_keys", ["claimed_at"])
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("created_at", _moment(), nullable=False),
        sa.Column("due_at", _moment(), nullable=False),
        sa.Column("worker", sa.Text()),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
    )
    _index("ix_outbox_created_at", "outbox", ["created_at"])
    _index("ix_outbox_due_at_id", "outbox", ["due_at", "id"])
