"""Executes the runs of tasks: each is stored first, and waits for its turn in its task's queue."""

import logging
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import count
from typing import Final

import trio

from clarad.automation.runs import command, environment
from clarad.automation.runs.run import PAGE, AttemptResult, Run, retry_until_stored
from clarad.automation.runs.subject import Subject
from clarad.automation.tasks import schedule
from clarad.automation.tasks.run_queue import RunQueues
from clarad.automation.tasks.schedule import Occurrence
from clarad.automation.tasks.task import Task
from clarad.automation.tasks.task_run import Publish, TaskRun
from clarad.automation.tasks.watermark import Watermarks
from clarad.process import shell
from clarad.store import MISSED, Ending, Outcome, StoredTaskRun, StoreError, TaskRuns, Tasks
from clarad.systemd import catalogue

log = logging.getLogger(__name__)

MAX_RUNNING: Final = 256
"""Runs of tasks that execute at once; others wait."""

_INTERRUPTED: Final = Ending(Outcome.INTERRUPTED, "the daemon was stopped while it ran")
_REMOVED: Final = Ending(Outcome.SKIPPED, "the task was removed")
_DISPLACED: Final = "overlap: the next run is due"


class TaskRunner:
    """Executes the runs that the scheduler starts, and those that an earlier daemon has left."""

    def __init__(
        self, runs: TaskRuns, states: Tasks, publish: Publish, given_up: trio.Event
    ) -> None:
        """`given_up` is set when the daemon stops waiting for a store that fails."""
        self.queues = RunQueues()
        self.writes = 0
        self._runs = runs
        self._states = states
        self._publish = publish
        self._given_up = given_up
        self._watermarks = Watermarks()
        self._slots = trio.Semaphore(MAX_RUNNING)
        boot = secrets.token_hex(4)
        self._run_ids = (f"task-{boot}-{n}" for n in count(1))
        self._nursery: trio.Nursery | None = None
        self._is_serving = False
        self._not_started: deque[TaskRun] = deque()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Execute runs until cancelled.

        Cancelling ends the runs that execute as `cancelled`; those that wait are in the store, for
        the next start. If the supervisor starts this again, it takes up the runs that waited, and
        those that were started meanwhile.
        """
        async with trio.open_nursery() as self._nursery:
            # Not serving yet: runs that are started meanwhile go to the end of the same queue.
            while self._not_started:
                for _ in range(min(PAGE, len(self._not_started))):
                    self._start(self._not_started.popleft())
                await trio.lowlevel.checkpoint()
            self._is_serving = True
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._is_serving = False

    def start(
        self,
        task: Task,
        occurrence: Occurrence,
        *,
        origin: str = "schedule",
        caused_by: Sequence[str] = (),
        displaces: bool = False,
    ) -> TaskRun:
        """Start a run at the end of its task's queue, and return it.

        With `displaces` the runs ahead of it are cancelled, once the insertion of its row has shown
        that its occurrence had none.
        """
        task_run = self._make_run(task, occurrence, origin=origin, caused_by=caused_by)
        self._enqueue(task_run, displaces=displaces)
        return task_run

    async def skip(self, task: Task, occurrence: Occurrence, reason: str) -> None:
        """Store that an occurrence is skipped, and why; returns when the store has it."""
        task_run = self._make_run(task, occurrence)
        if await self._insert(task_run, ending=Ending(Outcome.SKIPPED, reason)):
            at = occurrence.nominal_at.isoformat()
            entry = catalogue.TASK_MISSED if reason.startswith(MISSED) else catalogue.TASK_SKIPPED
            about = entry.about(task=task.name, run=task_run.run_id, nominal_time=at, reason=reason)
            level = logging.WARNING if reason.startswith(MISSED) else logging.INFO
            log.log(level, "task %s of %s skipped: %s", task.name, at, reason, extra=about)

    def is_idle(self, task: str) -> bool:
        """Return whether a task has no run, and no row on its way to the store."""
        return not self.queues.length(task) and task not in self._watermarks

    async def recover(
        self, unfinished: Iterable[StoredTaskRun], find: Callable[[str], Task | None]
    ) -> None:
        """Take up the runs that another start, or another daemon, has left.

        `find` returns a task by its name. Runs that waited are executed. Those that had begun may
        have acted: they are retried if their tasks have retries left, and otherwise end as
        `interrupted`. There may be thousands, so there is a checkpoint after each page.
        """
        for n, stored in enumerate(unfinished, 1):
            if n % PAGE == 0:
                await trio.lowlevel.checkpoint()
            task = find(stored.task)
            if stored.run_id in self.queues:
                continue  # the scheduler was restarted, and this was not
            if stored.begun and stored.attempts > (0 if task is None else task.retries):
                self._end(stored, _INTERRUPTED)
            elif task is None:
                self._end(stored, _REMOVED)
            else:
                self._enqueue(
                    self._make_run(
                        task,
                        Occurrence(stored.nominal_at),
                        run_id=stored.run_id,
                        caused_by=stored.caused_by.split(),
                        attempts=stored.attempts,
                    )
                )

    def _make_run(
        self,
        task: Task,
        occurrence: Occurrence,
        *,
        run_id: str | None = None,
        origin: str = "schedule",
        caused_by: Sequence[str] = (),
        attempts: int = 0,
    ) -> TaskRun:
        return TaskRun(
            run_id or next(self._run_ids),
            task,
            occurrence,
            origin=origin,
            caused_by=caused_by,
            attempts=attempts,
            is_stored=run_id is not None,
            slots=self._slots,
            publish=self._publish,
            on_attempted=self.queues.note_change,
        )

    def _enqueue(self, task_run: TaskRun, *, displaces: bool = False) -> None:
        """Start a run, or leave that to `run` if it is not serving."""
        if self._is_serving:
            self._start(task_run, displaces=displaces)
        else:
            self._not_started.append(task_run)

    def _start(self, task_run: TaskRun, *, displaces: bool = False) -> None:
        if self.queues.first(task_run.task.name) is None:
            task_run.turn.set()
        begun = not task_run.is_stored and task_run.try_acquire()
        run = Run(
            task_run.run_id,
            Subject("task", task_run.task.name),
            store=self._runs,
            owner=task_run,
            given_up=self._given_up,
            attempt=partial(_attempt, task_run),
            timeout=task_run.task.timeout,
            retries=task_run.task.retries,
            attempts=task_run.attempts,
            begun=begun,
            has_slot=begun,
        )
        self.queues.append(task_run, run)
        assert self._nursery is not None
        self._nursery.start_soon(self._run_one, task_run, run, begun, displaces)

    async def _run_one(self, task_run: TaskRun, run: Run, begun: bool, displaces: bool) -> None:
        is_stored, has_slot = task_run.is_stored, begun
        try:
            is_stored = is_stored or await self._insert(task_run, begun=begun)
            if is_stored:
                if displaces:
                    self.queues.cancel_before(task_run, _DISPLACED)
                has_slot = False  # from here on `run` releases it
                await run.carry_out()
                task_run.ending = run.ending
        except trio.Cancelled:
            if run.ending is None:
                self._not_started.append(self._restart(task_run, run, is_stored=is_stored))
            raise
        finally:
            if has_slot:
                task_run.release()
            self.queues.remove(task_run)

    def _restart(self, task_run: TaskRun, run: Run, *, is_stored: bool) -> TaskRun:
        """Return a new run for what a cancelled one has left."""
        return self._make_run(
            task_run.task,
            task_run.occurrence,
            run_id=run.id if is_stored else None,
            origin=task_run.origin,
            caused_by=task_run.caused_by,
            attempts=run.attempts,
        )

    async def _insert(
        self, task_run: TaskRun, *, begun: bool = False, ending: Ending | None = None
    ) -> bool:
        """Insert the run's row; `False` if its occurrence has one, or `given_up` is set."""
        added = False
        name, nominal_at = task_run.task.name, task_run.occurrence.nominal_at

        async def add() -> None:
            nonlocal added
            self.writes += 1
            added = await self._runs.add(
                run_id=task_run.run_id,
                task=name,
                nominal_at=nominal_at,
                due_at=schedule.due_at(task_run.task, nominal_at),
                origin=task_run.origin,
                caused_by=task_run.caused_by,
                begun=begun,
                ending=ending,
            )

        is_scheduled = task_run.origin == "schedule"
        if is_scheduled:
            self._watermarks.open(name, nominal_at)
        if await retry_until_stored(Subject("task", name), add, self._given_up) and is_scheduled:
            until = self._watermarks.close(name, nominal_at)
            if until is not None:
                self._states.account(name, until, _note_failure)
        return added

    def _end(self, stored: StoredTaskRun, ending: Ending) -> None:
        subject = Subject("task", stored.task)
        about = subject.entry(ending).about(**subject.fields(stored.run_id), reason=ending.reason)
        text = "%s %s: %s (run %s)"
        log.warning(text, subject, ending.outcome, ending.reason, stored.run_id, extra=about)
        end = partial(self._runs.end, stored.run_id, ending)
        assert self._nursery is not None
        self._nursery.start_soon(retry_until_stored, subject, end, self._given_up)


async def _attempt(task_run: TaskRun, run: Run, output: shell.Output) -> AttemptResult:
    variables = {
        "CLARA_TASK": task_run.task.name,
        "CLARA_NOMINAL_TIME": task_run.occurrence.nominal_at.isoformat(),
    }
    of_run = environment.of_run(run.id, run.attempts, task_run.caused_by)
    return await command.attempt(
        task_run.task.command,
        env=variables | of_run | task_run.task.env,
        cwd=task_run.task.working_dir,
        output=output,
    )


def _note_failure(error: StoreError | None) -> None:
    # Nothing is lost: the next start decides on these occurrences again, and finds their rows.
    if error is not None:
        about = catalogue.STORE_FAILED.about()
        log.warning("how far the tasks have come is not stored: %s", error, extra=about)
