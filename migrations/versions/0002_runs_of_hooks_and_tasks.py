"""Runs of hooks and tasks."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "clarad_hook_runs",
        sa.Column("hook", sa.String(length=255), nullable=False),
        sa.Column("event_id", sa.String(length=64), nullable=False),
        sa.Column("event_type", sa.String(length=64), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("replay_of", sa.String(length=64), nullable=True),
        *_run_columns(),
        sa.PrimaryKeyConstraint("id", name="pk_clarad_hook_runs"),
        sa.UniqueConstraint("run_id", name="uq_clarad_hook_runs_run_id"),
    )
    op.create_index("ix_clarad_hook_runs_hook_id", "clarad_hook_runs", ["hook", "id"])
    _create_unfinished_index("clarad_hook_runs")
    op.create_table(
        "clarad_task_runs",
        sa.Column("task", sa.String(length=255), nullable=False),
        sa.Column("nominal_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("origin", sa.String(length=16), nullable=False),
        *_run_columns(),
        sa.PrimaryKeyConstraint("id", name="pk_clarad_task_runs"),
        sa.UniqueConstraint("task", "nominal_at", name="uq_clarad_task_runs_task_nominal_at"),
        sa.UniqueConstraint("run_id", name="uq_clarad_task_runs_run_id"),
    )
    _create_unfinished_index("clarad_task_runs")
    op.create_table(
        "clarad_tasks",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("schedule", sa.Text(), nullable=False),
        sa.Column("anchor_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("accounted_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("name", name="pk_clarad_tasks"),
    )


def _run_columns() -> list[sa.Column[object]]:
    return [
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("caused_by", sa.Text(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("begun_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.String(length=32), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("exit_status", sa.Integer(), nullable=True),
        sa.Column("duration", sa.Float(), nullable=True),
        sa.Column("stdout", sa.Text(), nullable=True),
        sa.Column("stderr", sa.Text(), nullable=True),
        sa.Column("stdout_cut", sa.BigInteger(), nullable=True),
        sa.Column("stderr_cut", sa.BigInteger(), nullable=True),
    ]


def _create_unfinished_index(table: str) -> None:
    op.create_index(
        f"ix_{table}_unfinished",
        table,
        ["id"],
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    )


def downgrade() -> None:
    """Take back."""
    op.drop_table("clarad_tasks")
    op.drop_table("clarad_task_runs")
    op.drop_table("clarad_hook_runs")
