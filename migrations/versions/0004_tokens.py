"""Tokens of adapters, and whose each node is."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "clarad_tokens",
        sa.Column("id", _BIG_ID, autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("platforms", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_clarad_tokens"),
        sa.UniqueConstraint("name", name="uq_clarad_tokens_name"),
        sa.UniqueConstraint("digest", name="uq_clarad_tokens_digest"),
    )
    op.create_table(
        "clarad_node_owners",
        sa.Column("platform", sa.String(length=255), nullable=False),
        sa.Column("node_id", sa.String(length=255), nullable=False),
        sa.Column("token_id", _BIG_ID, nullable=True),
        sa.Column("registered_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["token_id"],
            ["clarad_tokens.id"],
            name="fk_clarad_node_owners_token_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("platform", "node_id", name="pk_clarad_node_owners"),
    )
    op.create_index(
        "ix_clarad_node_owners_token_id", "clarad_node_owners", ["token_id", "registered_at"]
    )


def downgrade() -> None:
    """Take back."""
    op.drop_table("clarad_node_owners")
    op.drop_table("clarad_tokens")
