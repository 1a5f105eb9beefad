"""What the store remembers of tasks between starts of the daemon."""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    bindparam,
    delete,
    insert,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import aliased

from clarad.store.engine import StoreError
from clarad.store.epoch import owned
from clarad.store.models import DaemonRow, TaskRow
from clarad.store.notify import TasksChanged, notify
from clarad.store.writer import Writer


class TaskState(NamedTuple):
    """What is remembered of a task between starts; see `TaskRow`."""

    schedule: str
    anchor_at: datetime
    accounted_until: datetime
    paused_at: datetime | None = None


_PUT: Final = insert(TaskRow.__table__)  # type: ignore[arg-type]
# Only PostgreSQL is shared.
_ENROLL: Final = postgresql.insert(TaskRow.__table__).on_conflict_do_nothing()  # type: ignore[arg-type]
_ACCOUNT: Final = (
    update(TaskRow.__table__)  # type: ignore[arg-type]
    .where(TaskRow.name == bindparam("this_task"))
    .where(TaskRow.accounted_until < bindparam("accounted_until"))
    .values(accounted_until=bindparam("accounted_until"))
)


class Tasks:
    """The table `clarad_tasks`."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    @property
    def are_shared(self) -> bool:
        """Whether other daemons may have some of them."""
        return self._writer.epoch is not None

    async def load(self) -> dict[str, TaskState]:
        """Return the states of the tasks that belong to this daemon."""
        is_mine = TaskRow.owner == self._writer.owner if self.are_shared else true()

        def load(connection: Connection) -> dict[str, TaskState]:
            return read_task_states(connection, is_mine)

        return await self._writer.call(load)

    async def claim(self, names: Sequence[str], most: int, fresh: Mapping[str, TaskState]) -> bool:
        """Claim at most `most` of these tasks that no daemon owns; return whether there were any.

        What is not known yet of those in `fresh` is written down first.
        """
        new = [{"name": name, **state._asdict()} for name, state in fresh.items()]

        def claim(connection: Connection) -> bool:
            if new:
                connection.execute(_ENROLL, new)
            if most <= 0:
                return False
            free = select(TaskRow.name).where(TaskRow.owner.is_(None), TaskRow.name.in_(names))
            free = free.order_by(TaskRow.name).limit(most).with_for_update(skip_locked=True)
            mine = update(TaskRow).where(TaskRow.name.in_(free)).values(owner=self._writer.owner)
            return connection.execute(mine).rowcount > 0

        return await self._writer.call(claim)

    async def inherit(self, epochs: Collection[int] | None = None) -> None:
        """Own the tasks of these epochs, or of all that this daemon has taken over."""
        epoch = self._writer.epoch
        if epoch is None:
            return
        theirs = owned(TaskRow.owner, epoch, epochs)
        mine = update(TaskRow).where(theirs).values(owner=self._writer.owner)

        def inherit(connection: Connection) -> None:
            connection.execute(mine)

        await self._writer.call(inherit)

    async def leave(self, known: Sequence[str]) -> None:
        """Release the tasks of dead daemons of other installations that are not in `known`."""
        if self._writer.epoch is None:
            return
        mine, theirs = aliased(DaemonRow), aliased(DaemonRow)
        strange = select(theirs.id).where(
            theirs.heir == self._writer.owner,
            mine.id == self._writer.owner,
            theirs.instance != mine.instance,
        )
        unknown = TaskRow.owner.in_(strange) & TaskRow.name.not_in(known)
        left = update(TaskRow).where(unknown).values(owner=None)

        def leave(connection: Connection) -> None:
            connection.execute(left, execution_options={"synchronize_session": False})
            notify(connection, TasksChanged())

        await self._writer.call(leave)

    async def release(self, names: Sequence[str]) -> None:
        """Release these tasks to other daemons."""

        def release(connection: Connection) -> None:
            is_mine = (TaskRow.owner == self._writer.owner) & TaskRow.name.in_(names)
            connection.execute(update(TaskRow).where(is_mine).values(owner=None))
            notify(connection, TasksChanged())

        await self._writer.call(release)

    async def save(self, states: dict[str, TaskState], *, forget: Sequence[str] = ()) -> None:
        """Write the states of these tasks, and forget others, in one transaction."""
        owner = self._writer.owner
        rows = [{"name": name, "owner": owner, **state._asdict()} for name, state in states.items()]

        def write(connection: Connection) -> None:
            for names in _portions([*states, *forget]):
                connection.execute(delete(TaskRow).where(TaskRow.name.in_(names)))
            if rows:
                connection.execute(_PUT, rows)

        await self._writer.call(write)

    def account(
        self, task: str, until: datetime, then: Callable[[StoreError | None], None]
    ) -> None:
        """Move the task's watermark: all occurrences up to `until` have their rows."""

        self._writer.execute(_ACCOUNT, {"this_task": task, "accounted_until": until}, then)

    async def pause(self, task: str, at: datetime | None) -> None:
        """Note that a task is paused since `at`, or that it goes on."""

        def write(connection: Connection) -> None:
            write_pause(connection, task, at)
            if self.are_shared:
                notify(connection, TasksChanged())

        await self._writer.call(write)


def read_task_states(
    connection: Connection, which: ColumnElement[bool] | None = None
) -> dict[str, TaskState]:
    """Return what is remembered of every task, or of some."""
    columns = (TaskRow.schedule, TaskRow.anchor_at, TaskRow.accounted_until, TaskRow.paused_at)
    rows = connection.execute(
        select(TaskRow.name, *columns).where(true() if which is None else which)
    )
    return {row[0]: TaskState(*row[1:]) for row in rows}


def write_pause(connection: Connection, task: str, at: datetime | None) -> bool:
    """Note that a task is paused since `at`, or that it goes on; whether the task is known."""
    statement = update(TaskRow).where(TaskRow.name == task).values(paused_at=at)
    return connection.execute(statement).rowcount == 1


def _portions(names: Sequence[str], size: int = 500) -> list[Sequence[str]]:
    """Split, for the sake of SQLite's limit of parameters (sqlite.org/limits.html)."""
    return [names[n : n + size] for n in range(0, len(names), size)]
