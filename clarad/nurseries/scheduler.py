"""The scheduler: runs what scheduler.yaml says, by the clock, and accounts for every occurrence.

It sleeps in steps and looks at the wall clock again after each: a clock that is set, or a machine
that slept, is found out within a step. Which occurrences there are depends on the schedule alone,
and each has one row in the store, unique by task and nominal time: so nothing that happens to the
clock or the daemon makes one run twice.
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
"""Seconds that are slept at most before the wall clock is looked at again."""

MAX_QUEUED: Final = 100
"""Runs of one task that wait with `overlap: queue`; past that they are skipped."""

CHUNK: Final = 200
"""Occurrences that are decided on at one go, before others may do something."""

_STEP_BACK: Final = timedelta(seconds=1)


def wall_clock() -> datetime:
    """Return the time, as the machine's clock has it."""
    return datetime.now(UTC)


class Scheduler:
    """Runs tasks. `now` is the wall clock, or the database's for daemons that share one."""

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
        self._to_share = trio.Event()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start tasks when they are due, until cancelled; those that run, run on.

        Raises:
            StoreError: what is remembered of the tasks cannot be read or written.
        """
        await self._assignment.set_up()
        task_status.started()
        async with trio.open_nursery() as nursery:
            if self._assignment.is_shared:
                nursery.start_soon(self._share)
            await self._fire()

    @property
    def tasks(self) -> Sequence[Task]:
        """The tasks that are in force."""
        return self._assignment.tasks

    async def overview(self) -> list[dict[str, Any]]:
        """Return what a list shows of the tasks that are in force."""
        agenda, rows = self._assignment.agenda, []
        for task, entry in [(task, agenda.find(task.name)) for task in self.tasks]:
            # There is no entry if another daemon has the task.
            anchor, is_paused = (entry.anchor, entry.is_paused) if entry else (None, False)
            rows.append(task_row(task, now=self._now(), anchor=anchor, is_paused=is_paused))
            await trio.lowlevel.checkpoint()  # looking for the next time can take milliseconds
        return rows

    def stop_firing(self) -> None:
        """Start nothing more; what comes due is missed, and the next start accounts for it."""
        self._is_firing = False
        self._runner.lines.hold()
        self._wake.set()

    async def progress(self) -> None:
        """Wait until the clock has been looked at, or a store that fails has been tried again.

        Returns at once after `stop_firing`.
        """
        before = self._rounds, self._runner.tries
        while self._is_firing and before == (self._rounds, self._runner.tries):
            await trio.sleep(STEP)

    def next_task(self) -> tuple[str, datetime] | None:
        """Return which task is to run next, and when; disabled and paused ones are not to."""
        agenda = self._assignment.agenda
        due = [(e.due_at, e.task.name) for e in agenda if e.due_at and e.off is None]
        if not due:
            return None
        due_at, name = min(due)
        return name, due_at

    # --- what an operator asks for ---------------------------------------------------------------

    async def replace(self, tasks: Sequence[Task]) -> None:
        """Take other tasks. Those that did not change go on as they are; what runs, runs on.

        Raises:
            StoreError: the tasks cannot be written down; nothing has changed.
        """
        await self._assignment.replace(tasks)
        self._to_share.set()
        self._wake.set()

    def run_now(self, name: str, caused_by: Sequence[str] = ()) -> TaskRun:
        """Run a task now, whatever its schedule says.

        Raises:
            UnknownTask: there is no such task here, or it runs already and is not to overlap.
        """
        task = self._assignment.find(name).task
        first = self._runner.lines.first(name)
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
        """Pause a task, or let it go on; what comes due meanwhile is skipped.

        Raises:
            UnknownTask: there is no such task.
            StoreError: it cannot be written down; nothing has changed.
        """
        await self._assignment.pause(name, on=on)

    # --- what daemons share ----------------------------------------------------------------------

    @property
    def digest(self) -> str:
        """Which tasks this daemon knows; the same for daemons that know the same."""
        return self._assignment.digest

    def looked(self, look: Heartbeat) -> None:
        """Take note of how many daemons there are, and share the tasks out accordingly."""
        self._assignment.share_with(look.alike)
        self._to_share.set()

    def look_again(self) -> None:
        """Another daemon may have changed something: read what is remembered of our tasks."""
        self._assignment.doubt()
        self._to_share.set()

    async def inherit(self, lives: Collection[int]) -> None:
        """Go on with the tasks that these lives of daemons had, and with their runs.

        Raises:
            StoreError: they cannot be read; nothing has changed here.
        """
        await self._assignment.inherit(lives)
        self._wake.set()

    async def _share(self) -> None:
        while self._is_firing:
            self._to_share = trio.Event()
            try:
                await self._assignment.share_out()
            except StoreError as error:
                about = catalogue.STORE_FAILED.about()
                log.warning("the tasks are not shared out: %s", error, extra=about)
            else:
                self._wake.set()
            await self._to_share.wait()

    # --- the clock -------------------------------------------------------------------------------

    async def _fire(self) -> None:
        last = self._now()
        while self._is_firing:
            self._rounds += 1
            now = self._now()
            if now < last - _STEP_BACK:
                about = catalogue.CLOCK_SET_BACK.about()
                log.warning("the clock was set back by %s", last - now, extra=about)
                await self._assignment.turn_back(now)
            last = now
            await self._assignment.save_turn()
            decisions = self._assignment.agenda.take(now, CHUNK)
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
        """Start what is to run; return when all that is skipped has its row."""
        async with trio.open_nursery() as nursery:
            for decision in decisions:
                skipped = decision.skipped or self._start(decision)
                if skipped is not None:
                    task, occurrence = decision.entry.task, decision.occurrence
                    nursery.start_soon(self._runner.skip, task, occurrence, skipped)

    def _start(self, decision: Decision) -> str | None:
        """Have an occurrence run, after the runs before it; or return why not."""
        task = decision.entry.task
        first, length = self._runner.lines.first(task.name), self._runner.lines.length(task.name)
        makes_up = decision.is_late and task.catch_up == "all"
        if first is not None and task.overlap == "skip" and not makes_up:
            return f"overlap: run {first.run_id} goes on"
        if length > (MAX_LISTED if makes_up else MAX_QUEUED):
            return f"overlap: {length} runs go on or wait"
        displaces = task.overlap == "cancel" and not makes_up
        self._runner.start(task, decision.occurrence, displaces=displaces)
        return None
