"""The runs of each task, one behind the other: only the first of a line runs."""

from collections import OrderedDict

import trio

from clarad.automation.runs.run import Run
from clarad.automation.tasks.task_run import TaskRun


class RunQueues:
    """A line for each task that has runs."""

    def __init__(self) -> None:
        # Each step is the same work, however long the line: a daemon's start may find 10,000 runs.
        self._lines: dict[str, OrderedDict[TaskRun, Run]] = {}
        self._run_ids: set[str] = set()
        self._is_moving = True
        self._changed = trio.Event()

    def __contains__(self, run_id: str) -> bool:
        """Whether a run goes on or waits."""
        return run_id in self._run_ids

    def length(self, task: str) -> int:
        """Return how many runs of a task go on or wait."""
        return len(self._lines.get(task, ()))

    def first(self, task: str) -> TaskRun | None:
        """Return the run of a task that goes on."""
        line = self._lines.get(task)
        return next(iter(line)) if line else None

    def join(self, job: TaskRun, run: Run) -> None:
        """Put a run behind the others of its task."""
        self._lines.setdefault(job.task.name, OrderedDict())[job] = run
        self._run_ids.add(job.run_id)

    def leave(self, job: TaskRun) -> None:
        """Take a run out that has ended; the next one has its turn."""
        line = self._lines[job.task.name]
        del line[job]
        self._run_ids.discard(job.run_id)
        if not line:
            del self._lines[job.task.name]
        elif self._is_moving:
            next(iter(line)).turn.set()
        job.ended.set()
        self.note_change()

    @property
    def running(self) -> int:
        """How many runs go on."""
        return sum(_runs(job) for line in self._lines.values() for job in line)

    def cancel(self, task: str, reason: str, *, only_waiting: bool = False) -> None:
        """Cancel the runs of a task."""
        for job, run in self._lines.get(task, {}).items():
            if not (only_waiting and job.turn.is_set()):
                run.cancel(reason)

    def cancel_before(self, job: TaskRun, reason: str) -> None:
        """Cancel the runs of a task that are before this one."""
        for other, run in self._lines[job.task.name].items():
            if other is job:
                return
            run.cancel(reason)

    def hold(self) -> None:
        """Give nobody a turn any more; those that wait are in the store."""
        self._is_moving = False

    def note_change(self) -> None:
        """Have `drained` look again."""
        self._changed.set()

    async def drained(self) -> None:
        """Wait until nothing runs; to be called after `hold`."""
        while self.running:
            self._changed = trio.Event()
            await self._changed.wait()


def _runs(job: TaskRun) -> bool:
    return job.turn.is_set() and not job.is_parked
