"""One run of a task, from its nominal time to its end, and its turn among the task's runs."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import trio

from clarad.automation.runs.run import Run
from clarad.automation.tasks.schedule import Occurrence
from clarad.automation.tasks.task import Task
from clarad.events import EventType
from clarad.limits.concurrency import Slots
from clarad.store import Ending, Outcome

OUTPUT_TAIL: Final = 4096
"""Characters of the output that go with `scheduler:task_error`."""

Publish = Callable[..., None]


class TaskRun:
    """A run of a task; it waits for the runs before it, and tells of its attempts."""

    def __init__(
        self,
        run_id: str,
        task: Task,
        occurrence: Occurrence,
        *,
        origin: str = "schedule",
        caused_by: Sequence[str] = (),
        attempts: int = 0,
        is_stored: bool = False,
        slots: Slots[None],
        publish: Publish,
        when_tried: Callable[[], None],
    ) -> None:
        """`is_stored` if the store has it already; `when_tried` is called after each attempt."""
        self.run_id = run_id
        self.task = task
        self.occurrence = occurrence
        self.origin = origin
        self.caused_by = tuple(caused_by)
        self.attempts = attempts
        self.is_stored = is_stored
        self.turn = trio.Event()
        self.is_parked = False
        self.ending: Ending | None = None
        self.ended = trio.Event()
        self._slots = slots
        self._publish = publish
        self._when_tried = when_tried

    # --- its place among those that run at once: the `Places` of its run -------------------------

    def take_place(self) -> bool:
        """Take a place at once, if it is its turn and there is one."""
        return self.turn.is_set() and self._slots.acquire_nowait(None)

    async def enter(self) -> None:
        """Wait for its turn, then for a place."""
        await self.turn.wait()
        await self._slots.acquire(None)

    def leave(self) -> None:
        """Give the place back."""
        self._slots.release(None)

    # --- its attempts: the `Watcher` of its run --------------------------------------------------

    def attempt_begins(self, run: Run) -> None:
        """Say so."""
        self.is_parked = False
        self._tell(EventType.SCHEDULER_TASK_RUN, run, {})

    def attempt_ended(self, run: Run, ending: Ending, *, again: bool) -> None:
        """Say so if it failed."""
        self.is_parked = again
        self._when_tried()
        if ending.outcome is Outcome.RAN:
            return
        data = {
            "outcome": ending.outcome.value,
            "reason": ending.reason,
            "exit_status": ending.exit_status,
            "duration": ending.duration,
            "again": again,
            "output": (ending.stdout + ending.stderr)[-OUTPUT_TAIL:],
        }
        self._tell(EventType.SCHEDULER_TASK_ERROR, run, data)

    def _tell(self, event_type: EventType, run: Run, data: dict[str, Any]) -> None:
        about = {
            "task": self.task.name,
            "task_name": self.task.name,  # as hooks of an older Clara know it
            "task_type": self.task.type,
            "nominal_time": self.occurrence.nominal_at.isoformat(),
            "attempt": run.attempts,
            "run": run.id,
        }
        self._publish(event_type, caused_by=(*self.caused_by, run.id), data=about | data)
