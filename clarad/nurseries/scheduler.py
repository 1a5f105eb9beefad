"""The scheduler: starts the tasks of scheduler.yaml, and accounts for every occurrence.

It sleeps at most a second before it reads the wall clock again, so it notices within a second that
the clock was set or that the machine was suspended. The occurrences of a task depend on its
schedule alone, and each has one row in the store, unique by task and nominal time: so none runs
twice, whatever happens to the clock or the daemon.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import trio

from clarad.automation.overview import task_row
from clarad.automation.tasks.agenda import MAX_LISTED, Decision
from clarad.automation.tasks.assignment import Assignment, UnknownTask
from clarad.automation.tasks.runner import Runner
from clarad.automation.tasks.schedule import Occurrence
from clarad.automation.tasks.task import Task
from clarad.automation.tasks.task_run import TaskRun
from clarad.store import Heartbeat, StoreError, TaskRuns, Tasks
from clarad.systemd import catalogue

log = logging.getLogger(__name__)

STEP: Final = 1.0
"""Seconds that the scheduler sleeps at most before it reads the wall clock again."""

MAX_QUEUED: Final = 100
"""Runs of one task that wait with `overlap: queue`; above that, occurrences are skipped."""

PAGE: Final = 200
"""Occurrences that are decided between two checkpoints."""

_STEP_BACK: Final = timedelta(seconds=1)


def wall_clock() -> datetime:
    """Return the time of the machine's clock."""
    return datetime.now(UTC)


class Scheduler:
    """Starts tasks. `now` is the wall clock; in a cluster, that of the database."""

    def __init__(
        self,
        tasks: Iterable[Task],
        *,
        runner: Runner,
        runs: TaskRuns,
        states: Tasks,
        now: Callable[[], datetime] = wall_clock,
    ) -> None:
        self._assignment = Assignment(tasks, runner=runner, runs=runs, states=states, now=now)
        self._runner = runner
        self._now = now
        self._is_firing = True
        self._rounds = 0
        self._wake = trio.Event()
        self._rebalance_due = trio.Event()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start tasks when they are due, until cancelled, which does not end their runs.

        Raises:
            StoreError: the states of the tasks cannot be read or written.
        """
        await self._assignment.set_up()
        task_status.started()
        async with trio.open_nursery() as nursery:
            if self._assignment.is_shared:
                nursery.start_soon(self._rebalance)
            await self._fire()

    @property
    def tasks(self) -> Sequence[Task]:
        """The tasks that are in force."""
        return self._assignment.tasks

    async def overview(self) -> list[dict[str, Any]]:
        """Return the rows of `clarad tasks list`."""
        agenda, rows = self._assignment.agenda, []
        for task, entry in [(task, agenda.find(task.name)) for task in self.tasks]:
            # A task of another daemon has no entry here.
            anchor, is_paused = (entry.anchor, entry.is_paused) if entry else (None, False)
            rows.append(task_row(task, now=self._now(), anchor=anchor, is_paused=is_paused))
            await trio.lowlevel.checkpoint()  # finding the next time can take milliseconds
        return rows

    def stop_firing(self) -> None:
        """Start nothing more; the next start of the daemon finds what comes due as missed."""
        self._is_firing = False
        self._runner.queues.stop()
        self._wake.set()

    async def progress(self) -> None:
        """Wait until the clock has been read, or a store that fails has been tried again.

        Returns at once after `stop_firing`.
        """
        before = self._rounds, self._runner.writes
        while self._is_firing and before == (self._rounds, self._runner.writes):
            await trio.sleep(STEP)

    def next_task(self) -> tuple[str, datetime] | None:
        """Return which task runs next, and when; disabled and paused ones do not count."""
        agenda = self._assignment.agenda
        due = [(e.due_at, e.task.name) for e in agenda if e.due_at and e.off is None]
        if not due:
            return None
        due_at, name = min(due)
        return name, due_at

    # --- requests of operators -------------------------------------------------------------------

    async def replace(self, tasks: Sequence[Task]) -> None:
        """Replace the tasks. Unchanged ones keep their places in time; no run is ended.

        Raises:
            StoreError: the tasks cannot be stored; nothing has changed.
        """
        await self._assignment.replace(tasks)
        self._rebalance_due.set()
        self._wake.set()

    def run_now(self, name: str, caused_by: Sequence[str] = ()) -> TaskRun:
        """Start a run of a task now, whatever its schedule says.

        Raises:
            UnknownTask: there is no such task here, or it runs already with `overlap: skip`.
        """
        task = self._assignment.find(name).task
        first = self._runner.queues.first(name)
        if first is not None and task.overlap == "skip":
            raise UnknownTask(f"{name!r} runs already (run {first.run_id}), with overlap: skip")
        return self._runner.start(
            task,
            Occurrence(self._now()),
            origin="operator",
            caused_by=caused_by,
            displaces=task.overlap == "cancel",
        )

    async def pause(self, name: str, *, on: bool) -> None:
        """Pause or resume a task; occurrences that come due while it is paused are skipped.

        Raises:
            UnknownTask: there is no such task.
            StoreError: it cannot be stored; nothing has changed.
        """
        await self._assignment.pause(name, on=on)

    # --- dividing the tasks among the daemons of a cluster ---------------------------------------

    @property
    def digest(self) -> str:
        """A digest of the tasks that this daemon knows."""
        return self._assignment.digest

    def note_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Rebalance the tasks if a heartbeat has found more or fewer daemons."""
        self._assignment.set_peer_count(heartbeat.alike)
        self._rebalance_due.set()

    def note_tasks_changed(self) -> None:
        """Read the states of the tasks again: another daemon may have changed one."""
        self._assignment.mark_stale()
        self._rebalance_due.set()

    async def inherit(self, epochs: Collection[int]) -> None:
        """Adopt the tasks, and the runs, of epochs that this daemon has taken over.

        Raises:
            StoreError: they cannot be read; nothing has changed here.
        """
        await self._assignment.inherit(epochs)
        self._wake.set()

    async def _rebalance(self) -> None:
        while self._is_firing:
            self._rebalance_due = trio.Event()
            try:
                await self._assignment.rebalance()
            except StoreError as error:
                about = catalogue.STORE_FAILED.about()
                log.warning("the tasks are not shared out: %s", error, extra=about)
            else:
                self._wake.set()
            await self._rebalance_due.wait()

    # --- the clock -------------------------------------------------------------------------------

    async def _fire(self) -> None:
        last = self._now()
        while self._is_firing:
            self._rounds += 1
            now = self._now()
            if now < last - _STEP_BACK:
                about = catalogue.CLOCK_SET_BACK.about()
                log.warning("the clock was set back by %s", last - now, extra=about)
                await self._assignment.rewind(now)
            last = now
            await self._assignment.save_rewind()
            decisions = self._assignment.agenda.decide(now, PAGE)
            if decisions:
                await self._act_on(decisions)
            else:
                await self._sleep(now)
        await trio.sleep_forever()

    async def _sleep(self, now: datetime) -> None:
        due_at = self._assignment.agenda.next_due_at
        pause = STEP if due_at is None else min(STEP, (due_at - now).total_seconds())
        self._wake = trio.Event()
        with trio.move_on_after(max(0, pause)):
            await self._wake.wait()

    async def _act_on(self, decisions: Iterable[Decision]) -> None:
        """Start the occurrences that run; return when all skipped ones have their rows."""
        async with trio.open_nursery() as nursery:
            for decision in decisions:
                skipped = decision.skipped or self._start(decision)
                if skipped is not None:
                    task, occurrence = decision.entry.task, decision.occurrence
                    nursery.start_soon(self._runner.skip, task, occurrence, skipped)

    def _start(self, decision: Decision) -> str | None:
        """Start a run of an occurrence, or return why it is skipped."""
        task = decision.entry.task
        first, length = self._runner.queues.first(task.name), self._runner.queues.length(task.name)
        makes_up = decision.is_late and task.catch_up == "all"
        if first is not None and task.overlap == "skip" and not makes_up:
            return f"overlap: run {first.run_id} goes on"
        if length > (MAX_LISTED if makes_up else MAX_QUEUED):
            return f"overlap: {length} runs go on or wait"
        displaces = task.overlap == "cancel" and not makes_up
        self._runner.start(task, decision.occurrence, displaces=displaces)
        return None
