"""The table of tasks' runs: exactly one row for each task and nominal time."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, select

from clarad.store.epoch import owned
from clarad.store.models import TaskRunRow
from clarad.store.runs import MISSED, Ending, Outcome, Runs, new_row
from clarad.store.writer import Writer


class StoredTaskRun(NamedTuple):
    """A run that an earlier daemon wrote down and did not end."""

    run_id: str
    task: str
    nominal_at: datetime
    caused_by: str
    attempts: int
    begun: bool


class TaskRuns(Runs):
    """The table `clarad_task_runs`."""

    def __init__(self, writer: Writer) -> None:
        super().__init__(writer, TaskRunRow)
        table: Any = TaskRunRow.__table__
        new, occurrence = writer.insert_into(table), ("task", "nominal_at")
        self._insert = new.on_conflict_do_nothing(index_elements=occurrence)
        was_missed = (TaskRunRow.outcome == Outcome.SKIPPED.value) & (TaskRunRow.reason == MISSED)
        columns = {column.name: new.excluded[column.name] for column in table.columns}
        del columns["id"]
        self._insert_or_run = new.on_conflict_do_update(
            index_elements=occurrence, set_=columns, where=was_missed
        )

    async def add(
        self,
        *,
        run_id: str,
        task: str,
        nominal_at: datetime,
        due_at: datetime,
        origin: str,
        caused_by: Sequence[str] = (),
        begun: bool = False,
        ending: Ending | None = None,
    ) -> bool:
        """Insert a new run; return `False` if the occurrence has its row already.

        `begun` if its first attempt starts at once, `ending` if it does not start at all. A run may
        replace a row that says `missed`, as it does when the clock had run ahead.
        """
        owner = self._writer.owner
        common = new_row(run_id, caused_by, due_at, begun=begun, ending=ending, owner=owner)
        values = common | {
            "task": task,
            "nominal_at": nominal_at,
            "origin": origin,
        }
        statement = self._insert_or_run if ending is None else self._insert
        job = self._writer.insert(statement, values)
        await job.wait()
        return bool(job.result)

    async def unfinished(self, of: Collection[int] | None = None) -> list[StoredTaskRun]:
        """Return the unfinished runs, oldest first: this daemon's, or those of the epochs `of`."""
        statement = (
            select(
                TaskRunRow.run_id,
                TaskRunRow.task,
                TaskRunRow.nominal_at,
                TaskRunRow.caused_by,
                TaskRunRow.attempts,
                TaskRunRow.begun_at,
            )
            .where(TaskRunRow.ended_at.is_(None))
            .where(owned(TaskRunRow.owner, self._writer.epoch, of))
            .order_by(TaskRunRow.id)
        )

        def read(connection: Connection) -> list[StoredTaskRun]:
            return [
                StoredTaskRun(*row[:5], begun=row.begun_at is not None)
                for row in connection.execute(statement)
            ]

        return await self._writer.call(read)
