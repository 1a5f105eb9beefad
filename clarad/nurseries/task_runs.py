"""The runs of tasks: each is in the store first, and waits for the runs of its task before it."""

import logging
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import count
from typing import Final

import trio

from clarad.automation.runs import command, environment
from clarad.automation.runs.run import PAGE, Run, Tried, retry_until_stored
from clarad.automation.runs.subject import Subject
from clarad.automation.tasks import schedule
from clarad.automation.tasks.run_queue import RunQueues
from clarad.automation.tasks.schedule import Occurrence
from clarad.automation.tasks.task import Task
from clarad.automation.tasks.task_run import Publish, TaskRun
from clarad.automation.tasks.watermark import Watermarks
from clarad.limits.concurrency import Slots
from clarad.process import shell
from clarad.store import MISSED, Ending, Outcome, StoredTaskRun, StoreError, TaskRuns, Tasks
from clarad.systemd import catalogue

log = logging.getLogger(__name__)

MAX_RUNNING: Final = 256
"""Tasks that run at once; more of them wait."""

_INTERRUPTED: Final = Ending(Outcome.INTERRUPTED, "the daemon was stopped while it ran")
_REMOVED: Final = Ending(Outcome.SKIPPED, "the task was removed")
_DISPLACED: Final = "overlap: the next run is due"


class TaskRunner:
    """Carries out what the scheduler starts, and goes on with what an earlier daemon left."""

    def __init__(
        self, runs: TaskRuns, states: Tasks, publish: Publish, given_up: trio.Event
    ) -> None:
        """`given_up` is set when the daemon waits no longer for a store that fails."""
        self.lines = RunQueues()
        self.tries = 0
        self._runs = runs
        self._states = states
        self._publish = publish
        self._given_up = given_up
        self._accounts = Watermarks()
        self._slots = Slots[None](MAX_RUNNING, lambda *_: True)
        boot = secrets.token_hex(4)
        self._run_ids = (f"task-{boot}-{n}" for n in count(1))
        self._nursery: trio.Nursery | None = None
        self._is_serving = False
        self._left: deque[TaskRun] = deque()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry runs out until cancelled; those under way then end as `cancelled`.

        Those that wait are in the store, and the daemon's next start runs them. Started again after
        a failure, this goes on with what waited, and with what has come meanwhile.
        """
        async with trio.open_nursery() as self._nursery:
            # What comes meanwhile is put behind what is left.
            while self._left:
                for _ in range(min(PAGE, len(self._left))):
                    self._go_on(self._left.popleft())
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
        """Have a task run, behind the runs of it that go on or wait.

        With `displaces` these are cancelled, once it is clear that the occurrence has no row yet.
        """
        job = self._job(task, occurrence, origin=origin, caused_by=caused_by)
        self._join(job, displaces=displaces)
        return job

    async def skip(self, task: Task, occurrence: Occurrence, reason: str) -> None:
        """Write down that an occurrence does not run, and why."""
        job = self._job(task, occurrence)
        if await self._put(job, ending=Ending(Outcome.SKIPPED, reason)):
            at = occurrence.nominal_at.isoformat()
            entry = catalogue.TASK_MISSED if reason.startswith(MISSED) else catalogue.TASK_SKIPPED
            about = entry.about(task=task.name, run=job.run_id, nominal_time=at, reason=reason)
            level = logging.WARNING if reason.startswith(MISSED) else logging.INFO
            log.log(level, "task %s of %s skipped: %s", task.name, at, reason, extra=about)

    def is_idle(self, task: str) -> bool:
        """Whether nothing of a task goes on, waits, or is on its way to the store."""
        return not self.lines.length(task) and task not in self._accounts

    async def recover(
        self, unfinished: Iterable[StoredTaskRun], find: Callable[[str], Task | None]
    ) -> None:
        """Go on with what an earlier run of the daemon left; `find` a task by its name.

        What waited is run. What ran may have acted: it is tried again if its task has retries left,
        and otherwise it is `interrupted`. There may be thousands, so others have their turn in
        between.
        """
        for n, stored in enumerate(unfinished, 1):
            if n % PAGE == 0:
                await trio.lowlevel.checkpoint()
            task = find(stored.task)
            if stored.run_id in self.lines:
                continue  # the scheduler was started again, and we were not
            if stored.begun and stored.attempts > (0 if task is None else task.retries):
                self._close(stored, _INTERRUPTED)
            elif task is None:
                self._close(stored, _REMOVED)
            else:
                self._join(
                    self._job(
                        task,
                        Occurrence(stored.nominal_at),
                        run_id=stored.run_id,
                        caused_by=stored.caused_by.split(),
                        attempts=stored.attempts,
                    )
                )

    def _job(
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
            when_tried=self.lines.note_change,
        )

    def _join(self, job: TaskRun, *, displaces: bool = False) -> None:
        """Put a run behind those of its task that were before it."""
        if self._is_serving:
            self._go_on(job, displaces=displaces)
        else:
            self._left.append(job)

    def _go_on(self, job: TaskRun, *, displaces: bool = False) -> None:
        if self.lines.first(job.task.name) is None:
            job.turn.set()
        begun = not job.is_stored and job.take_place()
        run = Run(
            job.run_id,
            Subject("task", job.task.name),
            store=self._runs,
            places=job,
            watcher=job,
            given_up=self._given_up,
            attempt=partial(_attempt, job),
            timeout=job.task.timeout,
            retries=job.task.retries,
            attempts=job.attempts,
            begun=begun,
            placed=begun,
        )
        self.lines.join(job, run)
        assert self._nursery is not None
        self._nursery.start_soon(self._live, job, run, begun, displaces)

    async def _live(self, job: TaskRun, run: Run, begun: bool, displaces: bool) -> None:
        is_stored, is_placed = job.is_stored, begun
        try:
            is_stored = is_stored or await self._put(job, begun=begun)
            if is_stored:
                if displaces:
                    self.lines.cancel_before(job, _DISPLACED)
                is_placed = False  # the run gives its place back
                await run.carry_out()
                job.ending = run.ending
        except trio.Cancelled:
            if run.ending is None:
                self._left.append(self._again(job, run, is_stored=is_stored))
            raise
        finally:
            if is_placed:
                job.leave()
            self.lines.leave(job)

    def _again(self, job: TaskRun, run: Run, *, is_stored: bool) -> TaskRun:
        """Return a job for what is left of another one."""
        return self._job(
            job.task,
            job.occurrence,
            run_id=run.id if is_stored else None,
            origin=job.origin,
            caused_by=job.caused_by,
            attempts=run.attempts,
        )

    async def _put(
        self, job: TaskRun, *, begun: bool = False, ending: Ending | None = None
    ) -> bool:
        """Write the run's row; `False` if its occurrence has one, or the daemon has to stop."""
        added = False
        name, nominal_at = job.task.name, job.occurrence.nominal_at

        async def add() -> None:
            nonlocal added
            self.tries += 1
            added = await self._runs.add(
                run_id=job.run_id,
                task=name,
                nominal_at=nominal_at,
                due_at=schedule.due_at(job.task, nominal_at),
                origin=job.origin,
                caused_by=job.caused_by,
                begun=begun,
                ending=ending,
            )

        is_scheduled = job.origin == "schedule"
        if is_scheduled:
            self._accounts.open(name, nominal_at)
        if await retry_until_stored(Subject("task", name), add, self._given_up) and is_scheduled:
            until = self._accounts.close(name, nominal_at)
            if until is not None:
                self._states.account(name, until, _note_failure)
        return added

    def _close(self, stored: StoredTaskRun, ending: Ending) -> None:
        what = Subject("task", stored.task)
        about = what.entry(ending).about(**what.fields(stored.run_id), reason=ending.reason)
        text = "%s %s: %s (run %s)"
        log.warning(text, what, ending.outcome, ending.reason, stored.run_id, extra=about)
        end = partial(self._runs.end, stored.run_id, ending)
        assert self._nursery is not None
        self._nursery.start_soon(retry_until_stored, what, end, self._given_up)


async def _attempt(job: TaskRun, run: Run, output: shell.Output) -> Tried:
    variables = {
        "CLARA_TASK": job.task.name,
        "CLARA_NOMINAL_TIME": job.occurrence.nominal_at.isoformat(),
    }
    of_run = environment.of_run(run.id, run.attempts, job.caused_by)
    return await command.attempt(
        job.task.command,
        env=variables | of_run | job.task.env,
        cwd=job.task.working_dir,
        output=output,
    )


def _note_failure(error: StoreError | None) -> None:
    # The rows are there: the next start finds that this occurrence has one, and goes on from it.
    if error is not None:
        about = catalogue.STORE_FAILED.about()
        log.warning("how far the tasks have come is not stored: %s", error, extra=about)
