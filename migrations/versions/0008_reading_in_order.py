"""Indexes by which unfinished messages, and the newest runs of tasks, are read in order."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_index(
        "ix_clarad_messages_unfinished_id",
        "clarad_messages",
        ["id"],
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_index("ix_clarad_task_runs_nominal_at_id", "clarad_task_runs", ["nominal_at", "id"])


def downgrade() -> None:
    """Take back."""
    op.drop_index("ix_clarad_task_runs_nominal_at_id", table_name="clarad_task_runs")
    op.drop_index("ix_clarad_messages_unfinished_id", table_name="clarad_messages")
