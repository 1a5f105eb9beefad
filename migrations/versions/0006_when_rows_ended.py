"""Indexes by which the oldest of what has ended are found."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_TABLES = ("clarad_messages", "clarad_hook_runs", "clarad_task_runs")


def upgrade() -> None:
    """Apply."""
    for table in _TABLES:
        op.create_index(
            f"ix_{table}_ended",
            table,
            ["ended_at", "id"],
            sqlite_where=sa.text("ended_at IS NOT NULL"),
            postgresql_where=sa.text("ended_at IS NOT NULL"),
        )


def downgrade() -> None:
    """Take back."""
    for table in _TABLES:
        op.drop_index(f"ix_{table}_ended", table_name=table)
