"""Forget webhooks once nobody sends them again, and find the sales that were called off.

Frozen as it was released, like every migration.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make two indexes."""
    op.create_index("ix_webhook_events_received_at", "webhook_events", ["received_at"])
    is_cancelled = sa.text("is_cancelled")
    op.create_index(
        "ix_sales_cancelled",
        "sales",
        ["concert_id"],
        sqlite_where=is_cancelled,
        postgresql_where=is_cancelled,
    )
