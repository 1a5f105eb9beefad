"""What nodes have missed, and sessions that they resume."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_UNDELIVERED = "ended_at IS NOT NULL AND delivered_at IS NULL"


def upgrade() -> None:
    """Apply."""
    op.add_column("clarad_messages", sa.Column("seq", sa.BigInteger(), nullable=True))
    op.add_column(
        "clarad_messages", sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True)
    )
    # What has ended before was sent, as far as it could be.
    op.execute("UPDATE clarad_messages SET delivered_at = ended_at WHERE ended_at IS NOT NULL")
    op.create_index(
        "ix_clarad_messages_undelivered",
        "clarad_messages",
        ["node_id"],
        sqlite_where=sa.text(_UNDELIVERED),
        postgresql_where=sa.text(_UNDELIVERED),
    )
    op.create_table(
        "clarad_nodes",
        sa.Column("platform", sa.String(length=255), nullable=False),
        sa.Column("node_id", sa.String(length=255), nullable=False),
        sa.Column("session_id", sa.String(length=64), nullable=False),
        sa.Column("after_seq", sa.BigInteger(), nullable=False),
        sa.Column("left_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("platform", "node_id", name="pk_clarad_nodes"),
    )


def downgrade() -> None:
    """Take back."""
    op.drop_table("clarad_nodes")
    op.drop_index("ix_clarad_messages_undelivered", "clarad_messages")
    op.drop_column("clarad_messages", "delivered_at")
    op.drop_column("clarad_messages", "seq")
