"""What Alembic runs: the migrations on the connection that `migrate` opened, in its transaction."""

from alembic import context
from alembic.runtime.migration import MigrationInfo

from infra.db.tables import metadata


def tell(ctx: object, step: MigrationInfo, heads: object, run_args: object) -> None:
    """One line for each migration that was made."""
    context.config.attributes["progress"](f"Made migration {step.up_revision_id}.")


context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, on_version_apply=tell
)
with context.begin_transaction():
    context.run_migrations()
