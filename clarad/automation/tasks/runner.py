"""Who carries runs out, as the scheduler knows them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from clarad.automation.tasks.run_queue import RunQueues
from clarad.automation.tasks.schedule import Occurrence
from clarad.automation.tasks.task import Task
from clarad.automation.tasks.task_run import TaskRun
from clarad.store import StoredTaskRun


class Runner(Protocol):
    """Who carries runs out; `clarad.nurseries.task_runs.TaskRunner`."""

    lines: RunQueues

    @property
    def tries(self) -> int:
        """How often the store has been asked to take what was decided."""

    def start(
        self,
        task: Task,
        occurrence: Occurrence,
        *,
        origin: str = "schedule",
        caused_by: Sequence[str] = (),
        displaces: bool = False,
    ) -> TaskRun:
        """Have a task run, behind the runs of it that go on or wait, or in place of them."""

    def is_idle(self, task: str) -> bool:
        """Whether nothing of a task goes on, waits, or is on its way to the store."""

    async def skip(self, task: Task, occurrence: Occurrence, reason: str) -> None:
        """Write down that an occurrence does not run, and why."""

    async def recover(
        self, unfinished: Iterable[StoredTaskRun], find: Callable[[str], Task | None]
    ) -> None:
        """Go on with what an earlier run of the daemon left."""
