"""The tables, as SQLAlchemy models: what Alembic compares the migrations with.

Every table is called `clarad_*`: the database may be that of an older Clara, whose tables stay
as they are.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time; SQLite, which has no time zones, keeps it in UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Turn the time into UTC."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Give the time in UTC; SQLite's come without their zone, PostgreSQL's in the server's."""
        if value is None:
            return None
        aware: datetime = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        return aware.astimezone(UTC)


class Base(DeclarativeBase):
    """The metadata of all tables; constraint names are fixed, so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


_BIG_ID = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts only INTEGER up by itself


def _unfinished(name: str, *columns: str) -> Index:
    """Make an index by which what is unfinished is found, however much has ended."""
    return Index(
        name,
        *columns,
        sqlite_where=text("ended_at IS NULL"),
        postgresql_where=text("ended_at IS NULL"),
    )


def _ended(table: str) -> Index:
    """Make the index by which the oldest of what has ended are found."""
    return Index(
        f"ix_{table}_ended",
        "ended_at",
        "id",
        sqlite_where=text("ended_at IS NOT NULL"),
        postgresql_where=text("ended_at IS NOT NULL"),
    )


_UNDELIVERED = "ended_at IS NOT NULL AND delivered_at IS NULL"


class MessageRow(Base):
    """A message from its acceptance to its terminal frame."""

    __tablename__ = "clarad_messages"
    __table_args__ = (
        UniqueConstraint("platform", "channel_id", "request_id"),
        # Of one channel, and of all, as the next start reads them.
        _unfinished("ix_clarad_messages_unfinished", "platform", "channel_id", "id"),
        _unfinished("ix_clarad_messages_unfinished_id", "id"),
        _ended("clarad_messages"),
        Index(
            "ix_clarad_messages_undelivered",
            "node_id",
            sqlite_where=text(_UNDELIVERED),
            postgresql_where=text(_UNDELIVERED),
        ),
    )

    id: Mapped[int] = mapped_column(_BIG_ID, primary_key=True, autoincrement=True)
    platform: Mapped[str] = mapped_column(String(255))
    channel_id: Mapped[str] = mapped_column(String(255))
    request_id: Mapped[str] = mapped_column(String(255))
    node_id: Mapped[str] = mapped_column(String(255))
    user_id: Mapped[str] = mapped_column(String(255))
    session_id: Mapped[str] = mapped_column(String(64))
    frame: Mapped[str] = mapped_column(Text)
    """The frame as it came, JSON; but for its attachments, which have a table of their own."""
    received_at: Mapped[datetime] = mapped_column(UtcDateTime)
    begun_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """From here on it may have acted, and is not run a second time."""
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    outcome: Mapped[str | None] = mapped_column(String(32))
    reason: Mapped[str | None] = mapped_column(Text)
    terminal: Mapped[str | None] = mapped_column(Text)
    """The terminal frame, JSON."""
    seq: Mapped[int | None] = mapped_column(BigInteger)
    """The number of the terminal frame among all frames of its node, if that has them numbered."""
    delivered_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """When the terminal frame was delivered, or its node stopped wanting it."""
    owner: Mapped[int | None] = mapped_column(BigInteger)
    """The epoch of the daemon that works on it; none on SQLite, which only one daemon uses."""
    cancel_reason: Mapped[str | None] = mapped_column(Text)
    """Set if the message must be cancelled: a daemon that recovers it looks here."""


class AttachmentsRow(Base):
    """The attachments of one message; deleted with it, or before."""

    __tablename__ = "clarad_attachments"
    __table_args__ = (Index(None, "received_at", "message_id"),)

    message_id: Mapped[int] = mapped_column(
        ForeignKey("clarad_messages.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    received_at: Mapped[datetime] = mapped_column(UtcDateTime)
    """The message's, by which the oldest are found."""
    attachments: Mapped[str] = mapped_column(Text)
    """As they came, JSON."""


class NodeRow(Base):
    """A node's session that can be resumed."""

    __tablename__ = "clarad_nodes"

    platform: Mapped[str] = mapped_column(String(255), primary_key=True)
    node_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    session_id: Mapped[str] = mapped_column(String(64))
    after_seq: Mapped[int] = mapped_column(BigInteger)
    """The daemon that wrote this numbers all frames above it, and not above the next 2^32."""
    left_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """When the node was lost, if it is not connected."""
    owner: Mapped[int | None] = mapped_column(BigInteger)
    """The epoch of the daemon that the node registered with last, on PostgreSQL."""


class RunColumns:
    """What the runs of hooks and of tasks have in common.

    A run waits until `begun_at` is set, and runs until `ended_at` is; one that waits for another
    attempt has `attempts` above 0.
    """

    id: Mapped[int] = mapped_column(_BIG_ID, primary_key=True, autoincrement=True)
    run_id: Mapped[str] = mapped_column(String(64), unique=True)
    caused_by: Mapped[str] = mapped_column(Text)
    """The runs that led to this one, the nearest last, separated by spaces."""
    due_at: Mapped[datetime] = mapped_column(UtcDateTime)
    attempts: Mapped[int] = mapped_column(Integer)
    begun_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """When the attempt under way, or the last one, began."""
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    outcome: Mapped[str | None] = mapped_column(String(32))
    reason: Mapped[str | None] = mapped_column(Text)
    exit_status: Mapped[int | None] = mapped_column(Integer)
    duration: Mapped[float | None] = mapped_column(Float)
    """Seconds that the last attempt took."""
    stdout: Mapped[str | None] = mapped_column(Text)
    stderr: Mapped[str | None] = mapped_column(Text)
    stdout_cut: Mapped[int | None] = mapped_column(BigInteger)
    """Bytes of standard output before those kept."""
    stderr_cut: Mapped[int | None] = mapped_column(BigInteger)
    owner: Mapped[int | None] = mapped_column(BigInteger)
    """The epoch of the daemon that works on it; none on SQLite, which only one daemon uses."""


class HookRunRow(RunColumns, Base):
    """One run of a hook, for one event."""

    __tablename__ = "clarad_hook_runs"
    __table_args__ = (
        _unfinished(f"ix_{__tablename__}_unfinished", "id"),
        _ended(__tablename__),
        Index(None, "hook", "id"),
    )

    hook: Mapped[str] = mapped_column(String(255))
    event_id: Mapped[str] = mapped_column(String(64))
    event_type: Mapped[str] = mapped_column(String(64))
    event: Mapped[str] = mapped_column(Text)
    """The whole event, JSON."""
    replay_of: Mapped[str | None] = mapped_column(String(64))


class TaskRunRow(RunColumns, Base):
    """One occurrence of a task, or one run that an operator asked for."""

    __tablename__ = "clarad_task_runs"
    __table_args__ = (
        UniqueConstraint("task", "nominal_at"),
        Index(None, "nominal_at", "id"),
        _unfinished(f"ix_{__tablename__}_unfinished", "id"),
        _ended(__tablename__),
    )

    task: Mapped[str] = mapped_column(String(255))
    nominal_at: Mapped[datetime] = mapped_column(UtcDateTime)
    origin: Mapped[str] = mapped_column(String(16))
    """`schedule` or `operator`."""


class TaskRow(Base):
    """What is remembered of a task between starts of the daemon."""

    __tablename__ = "clarad_tasks"

    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    schedule: Mapped[str] = mapped_column(Text)
    """The schedule as `clarad.automation.tasks.schedule.identity` says it: another one is a new
    start."""
    anchor_at: Mapped[datetime] = mapped_column(UtcDateTime)
    """An interval's phase is counted from here."""
    accounted_until: Mapped[datetime] = mapped_column(UtcDateTime)
    """All occurrences up to here have their rows."""
    paused_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    owner: Mapped[int | None] = mapped_column(BigInteger)
    """The epoch of the daemon that runs the task; one at a time, of those that share a database."""


class TokenRow(Base):
    """A token that an adapter shows instead of the secret."""

    __tablename__ = "clarad_tokens"
    __table_args__ = (UniqueConstraint("name"), UniqueConstraint("digest"))

    id: Mapped[int] = mapped_column(_BIG_ID, primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(String(255))
    digest: Mapped[str] = mapped_column(String(64))
    """SHA-256 of it, in hexadecimal."""
    platforms: Mapped[str] = mapped_column(Text)
    """The platforms that it is good for, separated by spaces; none are all."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class NodeOwnerRow(Base):
    """The owner of a node: a token, or without one the clients that use the secret."""

    __tablename__ = "clarad_node_owners"
    __table_args__ = (Index("ix_clarad_node_owners_token_id", "token_id", "registered_at"),)

    platform: Mapped[str] = mapped_column(String(255), primary_key=True)
    node_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    token_id: Mapped[int | None] = mapped_column(
        _BIG_ID, ForeignKey("clarad_tokens.id", ondelete="CASCADE")
    )
    registered_at: Mapped[datetime] = mapped_column(UtcDateTime)


class DaemonRow(Base):
    """One epoch of a daemon on a PostgreSQL database that several may share.

    It begins when the daemon joins the others, and ends when it loses its lease. Its number is
    never used twice. A daemon without its row, or with an heir in it, can write nothing.
    """

    __tablename__ = "clarad_daemons"

    id: Mapped[int] = mapped_column(_BIG_ID, primary_key=True, autoincrement=True)
    instance: Mapped[str] = mapped_column(String(64))
    """The installation."""
    holder: Mapped[str] = mapped_column(String(64))
    """The claimant of the state directory: of its epochs only the newest can be alive."""
    address: Mapped[str] = mapped_column(String(255))
    """Where its adapters connect, for people."""
    tasks: Mapped[str] = mapped_column(String(64))
    """Which tasks it knows: the same for two daemons that can run the same ones."""
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    """When the lease expires unless it is renewed, by the database's clock."""
    heir: Mapped[int | None] = mapped_column(BigInteger)
    """The successor, which has taken the unfinished work over; its rows keep their owner."""
