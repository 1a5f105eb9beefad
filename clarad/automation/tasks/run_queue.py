"""The runs of each task in a queue, of which only the first executes."""

from collections import OrderedDict

import trio

from clarad.automation.runs.run import Run
from clarad.automation.tasks.task_run import TaskRun


class RunQueues:
    """A queue for each task that has runs."""

    def __init__(self) -> None:
        # OrderedDict: a daemon's start may find 10,000 runs of a task, and each step is O(1).
        self._queues: dict[str, OrderedDict[TaskRun, Run]] = {}
        self._run_ids: set[str] = set()
        self._is_open = True
        self._changed = trio.Event()

    def __contains__(self, run_id: str) -> bool:
        """Return whether a run executes or waits."""
        return run_id in self._run_ids

    def length(self, task: str) -> int:
        """Return how many runs of a task execute or wait."""
        return len(self._queues.get(task, ()))

    def first(self, task: str) -> TaskRun | None:
        """Return the run of a task that executes, or is next to."""
        queue = self._queues.get(task)
        return next(iter(queue)) if queue else None

    def append(self, task_run: TaskRun, run: Run) -> None:
        """Put a run at the end of its task's queue."""
        self._queues.setdefault(task_run.task.name, OrderedDict())[task_run] = run
        self._run_ids.add(task_run.run_id)

    def remove(self, task_run: TaskRun) -> None:
        """Remove a run that has ended, and give the next one its turn."""
        queue = self._queues[task_run.task.name]
        del queue[task_run]
        self._run_ids.discard(task_run.run_id)
        if not queue:
            del self._queues[task_run.task.name]
        elif self._is_open:
            next(iter(queue)).turn.set()
        task_run.ended.set()
        self.note_change()

    @property
    def running(self) -> int:
        """How many runs have their turn and do not wait for a retry."""
        return sum(_is_running(task_run) for queue in self._queues.values() for task_run in queue)

    def cancel(self, task: str, reason: str, *, only_waiting: bool = False) -> None:
        """Cancel the runs of a task."""
        for task_run, run in self._queues.get(task, {}).items():
            if not (only_waiting and task_run.turn.is_set()):
                run.cancel(reason)

    def cancel_before(self, task_run: TaskRun, reason: str) -> None:
        """Cancel the runs that are ahead of this one in its queue."""
        for other, run in self._queues[task_run.task.name].items():
            if other is task_run:
                return
            run.cancel(reason)

    def stop(self) -> None:
        """Give out no more turns; the runs that wait are in the store."""
        self._is_open = False

    def note_change(self) -> None:
        """Wake `drained`: a run may have ended, or may wait for a retry."""
        self._changed.set()

    async def drained(self) -> None:
        """Wait until no run executes; call `stop` first."""
        while self.running:
            self._changed = trio.Event()
            await self._changed.wait()


def _is_running(task_run: TaskRun) -> bool:
    return task_run.turn.is_set() and not task_run.is_parked
