"""Deletes old rows, a few in each transaction.

A sweep visits rows in the order of a time, as a rule that of their end. It visits each row once,
whether it may be deleted or not: rows that stay do not make the next page slower.
"""

import os
import time
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    bindparam,
    case,
    delete,
    exists,
    func,
    select,
    text,
    tuple_,
)
from sqlalchemy.orm import aliased

from clarad.store.message_rows import IS_OWED, owed_since
from clarad.store.models import AttachmentsRow, HookRunRow, MessageRow, TaskRow, TaskRunRow
from clarad.store.vacuum import shrink
from clarad.store.writer import Writer

PAGE: Final = 200
"""Rows that one transaction visits at most."""

BATCH_TIME: Final = 0.02
"""Seconds after which a transaction deletes no more rows, as other jobs wait for it. It always
deletes one."""

_SIZE: Final = text(
    "SELECT sum(pg_total_relation_size(oid)) FROM pg_class"
    " WHERE relkind = 'r' AND relname LIKE 'clarad\\_%' AND pg_table_is_visible(oid)"
)

_BEFORE: Final = bindparam("before", type_=MessageRow.ended_at.type)

_DELETING: Final = int.from_bytes(b"clarad-k")
"""The advisory lock of the daemon that deletes; the same for all programs in a database."""


class Place(NamedTuple):
    """A place in the order of a sweep: by a time, then by the rows' numbers."""

    at: datetime
    number: int


class Kind:
    """One table, the time by which a sweep visits its rows, and which of them it may delete."""

    def __init__(self, at: Any, number: Any, *may_go: ColumnElement[bool]) -> None:
        """A row may be deleted if all of `may_go` holds, and its `at` is old enough."""
        is_old, place = at < _BEFORE, tuple_(at, number)
        after = tuple_(bindparam("at", type_=at.type), bindparam("number"))
        self.first = select(at, number).where(is_old).order_by(*place).limit(PAGE)
        self.following = self.first.where(place > after)
        # Once more that it is old: a run that was down as missed may be run after all.
        self.delete = delete(at.table).where(number == bindparam("number"), is_old, *may_go)

    def page(self, connection: Connection, before: datetime, after: Place | None) -> list[Place]:
        """Return the next rows that are old enough, whether they may be deleted or not."""
        statement = self.first if after is None else self.following
        given = {"before": before} | ({} if after is None else after._asdict())
        return [Place._make(row) for row in connection.execute(statement, given)]


# A task's newest run stays, and the newest that the clock has started: an occurrence that has its
# row is not run again, also if the task is taken out of the file and comes back. So does one whose
# task is not accounted for up to there, since its occurrence may still be looked at.
# (Rejected: EXISTS a newer one. PostgreSQL collects all that are newer, for each row.)
_IS_BY_CLOCK: Final = TaskRunRow.origin == "schedule"
_other = aliased(TaskRunRow)
_NEWEST: Final = select(func.max(_other.nominal_at)).where(_other.task == TaskRunRow.task)
_NEWEST_BY_CLOCK: Final = _NEWEST.where(_other.origin == "schedule")
_HAS_NEWER: Final = case(
    (_IS_BY_CLOCK, TaskRunRow.nominal_at < _NEWEST_BY_CLOCK.scalar_subquery()),
    else_=TaskRunRow.nominal_at < _NEWEST.scalar_subquery(),
)
_IS_OPEN: Final = _IS_BY_CLOCK & exists().where(
    TaskRow.name == TaskRunRow.task, TaskRow.accounted_until < TaskRunRow.nominal_at
)

# They have no time of an end, which would be one more thing to write at the end of each message.
_HAS_ENDED: Final = exists().where(
    MessageRow.id == AttachmentsRow.message_id, MessageRow.ended_at < _BEFORE
)

MESSAGES: Final = Kind(MessageRow.ended_at, MessageRow.id, ~IS_OWED)
ATTACHMENTS: Final = Kind(AttachmentsRow.received_at, AttachmentsRow.message_id, _HAS_ENDED)
HOOK_RUNS: Final = Kind(HookRunRow.ended_at, HookRunRow.id)
TASK_RUNS: Final = Kind(TaskRunRow.ended_at, TaskRunRow.id, _HAS_NEWER, ~_IS_OPEN)


class Extent(NamedTuple):
    """What there is: `size` in bytes, and since when; `None` where there is nothing."""

    size: int
    messages_since: datetime | None
    runs_since: datetime | None


class Retention:
    """What may be deleted from the tables of messages and runs.

    If the database fails, what is awaited raises `StoreError`.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def now(self) -> datetime:
        """Return the time by which is kept: the database's, if several daemons share it."""
        return self._writer.now()

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for the database."""
        return self._writer.is_idle

    async def delete(self, kind: Kind, before: datetime, after: Place | None) -> Place | None:
        """Delete some of what ended before a time, and may go, in one short transaction.

        Returns the place to go on after. `None` if there was nothing left, or another daemon
        deletes just now.
        """
        owed = owed_since(self._writer.now())

        def delete(connection: Connection) -> Place | None:
            if not _has_lock(connection):
                return None
            began, place = time.monotonic(), None
            for place in kind.page(connection, before, after):
                given = {"number": place.number, "before": before, **owed}
                connection.execute(kind.delete, given)
                if time.monotonic() - began > BATCH_TIME:
                    break
            return place

        return await self._writer.call(delete)

    async def shrink(self) -> bool:
        """Give some of what is free back to the disk; whether there is more."""
        return await self._writer.call(shrink)

    async def extent(self) -> Extent:
        """Return how large the database is, and how far back it reaches."""

        def read(connection: Connection) -> Extent:
            runs = [_oldest(connection, row.due_at, row.id) for row in (HookRunRow, TaskRunRow)]
            return Extent(
                _size(connection),
                _oldest(connection, MessageRow.received_at, MessageRow.id),
                min((run for run in runs if run is not None), default=None),
            )

        return await self._writer.call(read)


def _has_lock(connection: Connection) -> bool:
    """Whether no other daemon deletes until the end of this transaction. Nobody waits."""
    if connection.dialect.name != "postgresql":
        return True
    return bool(connection.execute(select(func.pg_try_advisory_xact_lock(_DELETING))).scalar_one())


def _oldest(connection: Connection, column: Any, order: Any) -> datetime | None:
    return connection.execute(select(column).order_by(order).limit(1)).scalar()


def _size(connection: Connection) -> int:
    """Return the bytes that our tables have on the disk, with their indexes and SQLite's log."""
    if connection.dialect.name == "postgresql":
        return int(connection.execute(_SIZE).scalar_one() or 0)
    path = str(connection.engine.url.database)
    return sum(os.stat(file).st_size for file in (path, f"{path}-wal") if os.path.exists(file))
