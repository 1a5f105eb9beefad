"""One run of a task, from its nominal time to its end."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import trio

from clarad.automation.runs.run import Run
from clarad.automation.tasks.schedule import Occurrence
from clarad.automation.tasks.task import Task
from clarad.events import EventType
from clarad.store import Ending, Outcome

OUTPUT_TAIL: Final = 4096
"""Characters of the output that go with `scheduler:task_error`."""

Publish = Callable[..., None]


class TaskRun:
    """A run of a task; the `RunOwner` of its `Run`, which publishes its attempts as events."""

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
        slots: trio.Semaphore,
        publish: Publish,
        on_attempted: Callable[[], None],
    ) -> None:
        """`is_stored` if the store has its row; `on_attempted` is called after each attempt."""
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
        self._on_attempted = on_attempted

    # --- its slot --------------------------------------------------------------------------------

    def try_acquire(self) -> bool:
        """Acquire a slot at once, if it is this run's turn and one is free."""
        if not self.turn.is_set():
            return False
        try:
            self._slots.acquire_nowait()
        except trio.WouldBlock:
            return False
        return True

    async def acquire(self) -> None:
        """Wait for its turn in the task's queue, then for a slot. If cancelled, none is held."""
        await self.turn.wait()
        await self._slots.acquire()

    def release(self) -> None:
        """Release the slot."""
        self._slots.release()

    # --- its attempts ----------------------------------------------------------------------------

    def attempt_began(self, run: Run) -> None:
        """Publish `scheduler:task_run`."""
        self.is_parked = False
        self._publish_attempt(EventType.SCHEDULER_TASK_RUN, run, {})

    def attempt_ended(self, run: Run, ending: Ending, *, again: bool) -> None:
        """Publish `scheduler:task_error` if the attempt failed."""
        self.is_parked = again
        self._on_attempted()
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
        self._publish_attempt(EventType.SCHEDULER_TASK_ERROR, run, data)

    def _publish_attempt(self, event_type: EventType, run: Run, data: dict[str, Any]) -> None:
        about = {
            "task": self.task.name,
            "task_name": self.task.name,  # the name for hooks of an older Clara
            "task_type": self.task.type,
            "nominal_time": self.occurrence.nominal_at.isoformat(),
            "attempt": run.attempts,
            "run": run.id,
        }
        self._publish(event_type, caused_by=(*self.caused_by, run.id), data=about | data)
