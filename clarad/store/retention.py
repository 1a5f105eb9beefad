"""Deletes what was kept long enough, a little at a time.

Rows are looked at in the order in which they ended, each once in a sweep, whether it may go or not:
so what stays does not make the next look longer.
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
    or_,
    select,
    text,
    tuple_,
)
from sqlalchemy.orm import aliased

from clarad.store.engine import errors_in_one_line
from clarad.store.messages import kept_since
from clarad.store.models import HookRunRow, MessageRow, TaskRow, TaskRunRow
from clarad.store.writer import Writer

PAGE: Final = 200
"""Rows that are looked at in one transaction at most."""

BATCH_TIME: Final = 0.02
"""Seconds after which a transaction deletes no more: others wait for it. One row is always done."""

_SIZE: Final = text(
    "SELECT sum(pg_total_relation_size(oid)) FROM pg_class"
    " WHERE relkind = 'r' AND relname LIKE 'clarad\\_%' AND pg_table_is_visible(oid)"
)

_DELETING: Final = int.from_bytes(b"clarad-k")
"""The advisory lock of the daemon that deletes; the same for all programs in a database."""


class Place(NamedTuple):
    """A place in the order in which rows ended."""

    ended_at: datetime
    id: int


class Kind:
    """One table, and which of the rows in it that have ended may go."""

    def __init__(
        self, row: type[MessageRow | HookRunRow | TaskRunRow], *may_go: ColumnElement[bool]
    ) -> None:
        place = tuple_(row.ended_at, row.id)
        after = tuple_(bindparam("ended_at", type_=row.ended_at.type), bindparam("id"))
        has_ended = row.ended_at < bindparam("before")
        self.first = select(row.ended_at, row.id).where(has_ended).order_by(*place).limit(PAGE)
        self.following = self.first.where(place > after)
        table: Any = row.__table__
        # Once more that it has ended: a run that was down as missed may be run after all.
        self.delete = delete(table).where(row.id == bindparam("id"), has_ended, *may_go)

    def page(self, connection: Connection, before: datetime, after: Place | None) -> list[Place]:
        """Return the next rows that ended before a time, whether they may go or not."""
        statement = self.first if after is None else self.following
        given = {"before": before} | ({} if after is None else after._asdict())
        return [Place._make(row) for row in connection.execute(statement, given)]


# A node is owed its terminal frames for a day, and not longer, whether it comes back or not.
_NOT_OWED: Final = or_(
    MessageRow.delivered_at.is_not(None), MessageRow.ended_at < bindparam("owed_since")
)

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

MESSAGES: Final = Kind(MessageRow, _NOT_OWED)
HOOK_RUNS: Final = Kind(HookRunRow)
TASK_RUNS: Final = Kind(TaskRunRow, _HAS_NEWER, ~_IS_OPEN)


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
        owed_since = kept_since(self._writer.now())

        def delete(connection: Connection) -> Place | None:
            if not _has_lock(connection):
                return None
            began, place = time.monotonic(), None
            for place in kind.page(connection, before, after):
                given = {"id": place.id, "before": before, "owed_since": owed_since}
                connection.execute(kind.delete, given)
                if time.monotonic() - began > BATCH_TIME:
                    break
            return place

        with errors_in_one_line():
            return await self._writer.call(delete)

    async def extent(self) -> Extent:
        """Return how large the database is, and how far back it reaches."""

        def read(connection: Connection) -> Extent:
            runs = [_oldest(connection, row.due_at, row.id) for row in (HookRunRow, TaskRunRow)]
            return Extent(
                _size(connection),
                _oldest(connection, MessageRow.received_at, MessageRow.id),
                min((run for run in runs if run is not None), default=None),
            )

        with errors_in_one_line():
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
