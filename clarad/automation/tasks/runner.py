"""The task runner as the scheduler sees it: nurseries do not import each other."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from clarad.automation.tasks.run_queue import RunQueues
from clarad.automation.tasks.schedule import Occurrence
from clarad.automation.tasks.task import Task
from clarad.automation.tasks.task_run import TaskRun
from clarad.store import StoredTaskRun


class Runner(Protocol):
    """Executes runs; `clarad.nurseries.task_runs.TaskRunner`."""

    queues: RunQueues

    @property
    def writes(self) -> int:
        """How often a row has been handed to the store, repetitions included."""

    def start(
        self,
        task: Task,
        occurrence: Occurrence,
        *,
        origin: str = "schedule",
        caused_by: Sequence[str] = (),
        displaces: bool = False,
    ) -> TaskRun:
        """Start a run at the end of its task's queue, or in place of the runs ahead of it."""

    def is_idle(self, task: str) -> bool:
        """Return whether a task has no run, and no row on its way to the store."""

    async def skip(self, task: Task, occurrence: Occurrence, reason: str) -> None:
        """Store that an occurrence is skipped, and why."""

    async def recover(
        self, unfinished: Iterable[StoredTaskRun], find: Callable[[str], Task | None]
    ) -> None:
        """Take up the runs that another start, or another daemon, has left."""
