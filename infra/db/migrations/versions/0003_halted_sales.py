"""Check the promises all the time, and stop the sales of a concert whose stock is broken.

Frozen as it was released, like every migration.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make a column, its index and two tables."""
    moment = sa.DateTime(timezone=True).with_variant(sa.Text(), "sqlite")
    op.add_column("sales", sa.Column("halted_at", moment))
    is_halted = sa.text("halted_at IS NOT NULL")
    op.create_index(
        "ix_sales_halted", "sales", ["concert_id"], sqlite_where=is_halted, postgresql_where=is_halted
    )
    op.create_table(
        "promise_checks",
        sa.Column("promise", sa.Text(), nullable=False),
        sa.Column("broken", sa.Integer(), nullable=False),
        sa.Column("checked_at", moment),
        sa.PrimaryKeyConstraint("promise", name=op.f("pk_promise_checks")),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("until", moment, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )
