"""Attachments of messages, in a table of their own."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_MESSAGES = sa.table(
    "clarad_messages",
    sa.column("id", sa.BigInteger),
    sa.column("received_at"),
    sa.column("frame", sa.Text),
)
_ATTACHMENTS = sa.table(
    "clarad_attachments",
    sa.column("message_id", sa.BigInteger),
    sa.column("received_at"),
    sa.column("attachments", sa.Text),
)


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "clarad_attachments",
        sa.Column(
            "message_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attachments", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["message_id"],
            ["clarad_messages.id"],
            name="fk_clarad_attachments_message_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("message_id", name="pk_clarad_attachments"),
    )
    op.create_index(
        "ix_clarad_attachments_received_at_message_id",
        "clarad_attachments",
        ["received_at", "message_id"],
    )
    connection = op.get_bind()
    message = _MESSAGES.c
    # With a space or without, there is something in the list.
    has_some = sa.or_(*(message.frame.like(f'%"attachments":{gap}[{{%') for gap in ("", " ")))
    # One at a time: each can be large.
    for number in connection.scalars(sa.select(message.id).where(has_some)).all():
        this = sa.select(message.received_at, message.frame).where(message.id == number)
        received_at, text = connection.execute(this).one()
        try:
            frame = json.loads(text)
            attachments = frame.pop("attachments", None)
            rest, kept = json.dumps(frame), json.dumps(attachments)
        except (ValueError, RecursionError):
            continue  # what cannot be parsed, as it is nested too deeply, stays as it is
        if attachments:
            row = {"message_id": number, "received_at": received_at, "attachments": kept}
            connection.execute(_ATTACHMENTS.insert(), row)
            _set_frame(connection, number, rest)


def downgrade() -> None:
    """Take back: what is left of attachments goes into the messages again."""
    connection = op.get_bind()
    kept, message = _ATTACHMENTS.c, _MESSAGES.c
    both = sa.select(message.frame, kept.attachments).join_from(
        _MESSAGES, _ATTACHMENTS, message.id == kept.message_id
    )
    for number in connection.scalars(sa.select(kept.message_id)).all():
        text, attachments = connection.execute(both.where(message.id == number)).one()
        # Joined as text, because a frame can be nested too deeply to be parsed. It is never empty.
        rest = text.rstrip().removesuffix("}")
        _set_frame(connection, number, f'{rest}, "attachments": {attachments}}}')
    op.drop_table("clarad_attachments")


def _set_frame(connection: sa.Connection, number: int, frame: str) -> None:
    this = _MESSAGES.update().where(_MESSAGES.c.id == number)
    connection.execute(this.values(frame=frame))
