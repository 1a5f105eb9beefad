"""Daemons that share a database, and whose each row is."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_OWNED = (
    "clarad_messages",
    "clarad_nodes",
    "clarad_hook_runs",
    "clarad_task_runs",
    "clarad_tasks",
)


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "clarad_daemons",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("instance", sa.String(length=64), nullable=False),
        sa.Column("holder", sa.String(length=64), nullable=False),
        sa.Column("address", sa.String(length=255), nullable=False),
        sa.Column("tasks", sa.String(length=64), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("heir", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_clarad_daemons"),
    )
    for table in _OWNED:
        op.add_column(table, sa.Column("owner", sa.BigInteger(), nullable=True))
    op.add_column("clarad_messages", sa.Column("cancel_reason", sa.Text(), nullable=True))
    # What is unfinished in one channel is looked for as well.
    _index_unfinished("platform", "channel_id", "id")


def downgrade() -> None:
    """Take back."""
    _index_unfinished("id")
    op.drop_column("clarad_messages", "cancel_reason")
    for table in reversed(_OWNED):
        op.drop_column(table, "owner")
    op.drop_table("clarad_daemons")


def _index_unfinished(*columns: str) -> None:
    name, unfinished = "ix_clarad_messages_unfinished", sa.text("ended_at IS NULL")
    op.drop_index(name, table_name="clarad_messages")
    op.create_index(
        name,
        "clarad_messages",
        list(columns),
        sqlite_where=unfinished,
        postgresql_where=unfinished,
    )
