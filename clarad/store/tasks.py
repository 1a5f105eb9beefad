"""What the store remembers of tasks between starts of the daemon."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from clarad.store.engine import StoreError, as_store_error, errors_in_one_line
from clarad.store.models import TaskRow
from clarad.store.writer import Writer


class TaskState(NamedTuple):
    """What is remembered of a task between starts; see `TaskRow`."""

    schedule: str
    anchor_at: datetime
    accounted_until: datetime
    paused_at: datetime | None = None


_PUT: Final = insert(TaskRow.__table__)  # type: ignore[arg-type]
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

    async def load(self) -> dict[str, TaskState]:
        """Return what is remembered of every task."""
        with errors_in_one_line():
            return await self._writer.call(read_task_states)

    async def save(self, states: dict[str, TaskState], *, forget: Sequence[str] = ()) -> None:
        """Write the states of these tasks, and forget others, in one transaction."""
        rows = [{"name": name, **state._asdict()} for name, state in states.items()]

        def write(connection: Connection) -> None:
            for names in _portions([*states, *forget]):
                connection.execute(delete(TaskRow).where(TaskRow.name.in_(names)))
            if rows:
                connection.execute(_PUT, rows)

        with errors_in_one_line():
            await self._writer.call(write)

    def account(
        self, task: str, until: datetime, then: Callable[[StoreError | None], None]
    ) -> None:
        """Have it noted that all occurrences of the task up to `until` have their rows."""

        def answer(error: Exception | None) -> None:
            then(None if error is None else as_store_error(error))

        self._writer.execute(_ACCOUNT, {"this_task": task, "accounted_until": until}, answer)

    async def pause(self, task: str, at: datetime | None) -> None:
        """Note that a task is paused since `at`, or that it goes on."""

        def write(connection: Connection) -> None:
            write_pause(connection, task, at)

        with errors_in_one_line():
            await self._writer.call(write)


def read_task_states(connection: Connection) -> dict[str, TaskState]:
    """Return what is remembered of every task."""
    columns = (TaskRow.schedule, TaskRow.anchor_at, TaskRow.accounted_until, TaskRow.paused_at)
    rows = connection.execute(select(TaskRow.name, *columns))
    return {row[0]: TaskState(*row[1:]) for row in rows}


def write_pause(connection: Connection, task: str, at: datetime | None) -> bool:
    """Note that a task is paused since `at`, or that it goes on; whether the task is known."""
    statement = update(TaskRow).where(TaskRow.name == task).values(paused_at=at)
    return connection.execute(statement).rowcount == 1


def _portions(names: Sequence[str], size: int = 500) -> list[Sequence[str]]:
    """Split, for the sake of SQLite's limit of parameters (sqlite.org/limits.html)."""
    return [names[n : n + size] for n in range(0, len(names), size)]
