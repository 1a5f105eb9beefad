"""The scheduler: runs what scheduler.yaml says, by the clock, and accounts for every occurrence.

It sleeps in steps and looks at the wall clock again after each: a clock that is set, or a machine
that slept, is found out within a step. Which occurrences there are depends on the schedule alone,
and each has one row in the store, unique by task and nominal time: so nothing that happens to the
clock or the daemon makes one run twice.

Of daemons that share a database each has some of the tasks. One at a time has a task, with all of
its runs: so what is said here of the runs before, and how long they wait, holds for all daemons.
(Rejected: every daemon tries to insert every occurrence, and the first one runs it. Then a run may
go on where the next is not decided on.)
"""

import difflib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import trio

from clarad.automation import schedule
from clarad.automation.agenda import INSTANT, MAX_LISTED, Agenda, Decision, Entry
from clarad.automation.job import Job
from clarad.automation.runner import Runner
from clarad.automation.schedule import Occurrence
from clarad.automation.states import digest, fair_share, new_state, turned_back
from clarad.automation.task import Task
from clarad.store import Look, StoredTaskRun, StoreError, TaskRuns, Tasks, TaskState
from clarad.systemd import catalogue

log = logging.getLogger(__name__)

STEP: Final = 1.0
"""Seconds that are slept at most before the wall clock is looked at again."""

MAX_QUEUED: Final = 100
"""Runs of one task that wait with `overlap: queue`; past that they are skipped."""

CHUNK: Final = 200
"""Occurrences that are decided on at one go, before others may do something."""

_STEP_BACK: Final = timedelta(seconds=1)


class UnknownTask(Exception):  # noqa: N818 - it is an answer, not a fault
    """What an operator asked for cannot be done; the text says why."""


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
        self._tasks = list(tasks)
        self._runner = runner
        self._runs = runs
        self._states = states
        self._now = now
        self._started_at = now()
        self._agenda = Agenda(self._started_at)
        self._is_firing = True
        self._rounds = 0
        self._wake = trio.Event()
        # What is remembered of the tasks is read, changed and written, with others in between.
        self._changing = trio.Lock()
        self._daemons = 1
        self._to_share = trio.Event()
        self._to_enroll = self._is_unsure = False

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start tasks when they are due, until cancelled; those that run, run on.

        Raises:
            StoreError: what is remembered of the tasks cannot be read or written.
        """
        async with self._changing:
            await self._set_up()
        task_status.started()
        async with trio.open_nursery() as nursery:
            if self._states.are_shared:
                nursery.start_soon(self._share)
            await self._fire()

    @property
    def tasks(self) -> Sequence[Task]:
        """The tasks that are in force."""
        return self._tasks

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
        due = [(e.due_at, e.task.name) for e in self._agenda if e.due_at and e.off is None]
        if not due:
            return None
        due_at, name = min(due)
        return name, due_at

    # --- what is configured ----------------------------------------------------------------------

    async def _set_up(self) -> None:
        """Take the tasks up where the last run of the daemon left them."""
        now = self._now()
        await self._states.leave([task.name for task in self._tasks])
        await self._states.inherit()
        await self._claim(now, enroll=True)
        known = await self._known(now, is_start=True)
        before, self._agenda = self._agenda, Agenda(min(self._started_at, now))
        for task in self._tasks:
            if (state := known.get(task.name)) is not None:
                self._agenda.put(self._entry(task, state, before.find(task.name)))
        self._recover(await self._runs.unfinished())

    async def _known(self, now: datetime, *, is_start: bool = False) -> dict[str, TaskState]:
        """Return what is remembered of the tasks that are ours, as it is to be from here on."""
        known = await self._states.load()
        known |= (changed := turned_back(known, now))
        for task in self._tasks:
            state = known.get(task.name)
            if state is None and self._states.are_shared:
                continue  # another daemon has it
            if state is None or state.schedule != schedule.identity(task):
                known[task.name] = changed[task.name] = new_state(task, now, state)
        names = {task.name for task in self._tasks}
        gone = [name for name in known if name not in names]
        saved = {name: state for name, state in changed.items() if name in names}
        await self._states.save(saved, forget=gone if is_start else ())
        if gone and not is_start:  # inherited: some other daemon may know it
            await self._states.release(gone)
        return known

    def _recover(self, unfinished: Iterable[StoredTaskRun]) -> None:
        self._runner.recover(unfinished, {task.name: task for task in self._tasks}.get)

    def _entry(self, task: Task, state: TaskState, before: Entry | None) -> Entry:
        """Take up a task; `before` is its entry if the scheduler failed, and is started again."""
        anchor, cursor = state.anchor_at, state.accounted_until
        if schedule.is_from_start(task):
            # With a delay it counts from the daemon's start, or from the reload that brought it.
            cursor = self._started_at - INSTANT
            anchor = before.anchor if before else schedule.anchor(task, self._started_at)
        return Entry(task, anchor=anchor, cursor=cursor, is_paused=state.paused_at is not None)

    async def replace(self, tasks: Sequence[Task]) -> None:
        """Take other tasks. Those that did not change go on as they are; what runs, runs on.

        Raises:
            StoreError: the tasks cannot be written down; nothing has changed.
        """
        async with self._changing:
            await self._replace(tasks)

    async def _replace(self, tasks: Sequence[Task]) -> None:
        now = self._now()
        known = await self._states.load()
        mine = tasks
        if self._states.are_shared:
            mine = [task for task in tasks if self._agenda.find(task.name) is not None]
        fresh = {
            task.name: new_state(task, now, known.get(task.name))
            for task in mine
            if not self._is_scheduled_as(task)
        }
        names = {task.name for task in tasks}
        gone = [entry.task.name for entry in self._agenda if entry.task.name not in names]
        await self._states.save(fresh, forget=gone)
        self._tasks = list(tasks)
        for task in mine:
            entry = self._agenda.find(task.name)
            if task.name in fresh or entry is None:
                entry = Entry(
                    task,
                    anchor=fresh[task.name].anchor_at,
                    cursor=fresh[task.name].accounted_until,
                    is_paused=fresh[task.name].paused_at is not None,
                )
            else:
                entry.replace(task)
            self._agenda.put(entry)
        for name in gone:
            self._agenda.remove(name)
            self._runner.lines.cancel(name, "the task was removed", only_waiting=True)
        self._to_enroll = True
        self._to_share.set()
        self._wake.set()

    def _is_scheduled_as(self, task: Task) -> bool:
        entry = self._agenda.find(task.name)
        return entry is not None and schedule.identity(entry.task) == schedule.identity(task)

    # --- what an operator asks for ---------------------------------------------------------------

    def run_now(self, name: str, caused_by: Sequence[str] = ()) -> Job:
        """Run a task now, whatever its schedule says.

        Raises:
            UnknownTask: there is no such task here, or it runs already and is not to overlap.
        """
        if self._is_elsewhere(name):
            raise UnknownTask(f"another daemon has the task {name!r} now; ask that one")
        entry = self._find(name)
        first = self._runner.lines.first(name)
        if first is not None and entry.task.overlap == "skip":
            raise UnknownTask(f"{name!r} runs already (run {first.run_id}), with overlap: skip")
        occurrence = Occurrence(self._now())
        return self._runner.start(
            entry.task,
            occurrence,
            origin="operator",
            caused_by=caused_by,
            displaces=entry.task.overlap == "cancel",
        )

    async def pause(self, name: str, *, on: bool) -> None:
        """Pause a task, or let it go on; what comes due meanwhile is skipped.

        Raises:
            UnknownTask: there is no such task.
            StoreError: it cannot be written down; nothing has changed.
        """
        async with self._changing:
            entry = None if self._is_elsewhere(name) else self._find(name)
            await self._states.pause(name, self._now() if on else None)
            if entry is not None:
                entry.is_paused = on

    def _find(self, name: str) -> Entry:
        entry = self._agenda.find(name)
        if entry is None:
            close = difflib.get_close_matches(name, [e.task.name for e in self._agenda], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UnknownTask(f"there is no task {name!r}{hint}")
        return entry

    # --- what daemons share ----------------------------------------------------------------------

    @property
    def digest(self) -> str:
        """Which tasks this daemon knows; the same for daemons that know the same."""
        return digest(self._tasks)

    def looked(self, look: Look) -> None:
        """Take note of how many daemons there are, and share the tasks out accordingly."""
        self._daemons = 1 + look.alike
        self._to_share.set()

    def look_again(self) -> None:
        """Another daemon may have changed something: read what is remembered of our tasks."""
        self._is_unsure = True
        self._to_share.set()

    async def inherit(self, lives: Collection[int]) -> None:
        """Go on with the tasks that these lives of daemons had, and with their runs.

        Raises:
            StoreError: they cannot be read; nothing has changed here.
        """
        async with self._changing:
            await self._states.inherit(lives)
            known = await self._known(self._now())
            # Its runs before a task: what becomes of an occurrence depends on them.
            self._recover(await self._runs.unfinished(lives))
            self._take_up(known)

    def _is_elsewhere(self, name: str) -> bool:
        is_known = any(task.name == name for task in self._tasks)
        return self._states.are_shared and is_known and self._agenda.find(name) is None

    async def _share(self) -> None:
        while self._is_firing:
            self._to_share = trio.Event()
            try:
                async with self._changing:
                    await self._share_out()
            except StoreError as error:
                self._is_unsure = True
                about = catalogue.STORE_FAILED.about()
                log.warning("the tasks are not shared out: %s", error, extra=about)
            await self._to_share.wait()

    async def _share_out(self) -> None:
        """Take tasks that nobody has, up to a fair share; give up what is too much and idle."""
        claimed = await self._claim(self._now(), enroll=self._to_enroll)
        self._to_enroll = False
        if claimed or self._is_unsure:
            self._take_up(await self._known(self._now()))
            self._is_unsure = False
        surplus = len(self._agenda) - fair_share(len(self._tasks), self._daemons)
        names = [e.task.name for e in self._agenda if not schedule.is_from_start(e.task)]
        idle = [name for name in names if self._runner.is_idle(name)]
        if given := idle[: max(0, surplus)]:
            for name in given:  # first: none of them may begin meanwhile
                self._agenda.remove(name)
            await self._states.release(given)

    async def _claim(self, now: datetime, *, enroll: bool) -> bool:
        if not self._states.are_shared:
            return False
        fresh = {task.name: new_state(task, now, None) for task in self._tasks if enroll}
        most = fair_share(len(self._tasks), self._daemons) - len(self._agenda)
        return await self._states.claim([task.name for task in self._tasks], most, fresh)

    def _take_up(self, known: Mapping[str, TaskState]) -> None:
        """Run tasks that have become ours, from where they are accounted for."""
        for task in self._tasks:
            state, entry = known.get(task.name), self._agenda.find(task.name)
            if state is None:
                continue
            if entry is None:
                entry = self._entry(task, state, None)
                if schedule.is_from_start(task):
                    entry.go_on_after(self._now())  # the start is past
                self._agenda.put(entry)
            entry.is_paused = state.paused_at is not None
        self._wake.set()

    # --- the clock -------------------------------------------------------------------------------

    async def _fire(self) -> None:
        last = self._now()
        while self._is_firing:
            self._rounds += 1
            now = self._now()
            if now < last - _STEP_BACK:
                about = catalogue.CLOCK_SET_BACK.about()
                log.warning("the clock was set back by %s", last - now, extra=about)
                async with self._changing:
                    await self._turn_back(now)
            last = now
            decisions = self._agenda.take(now, CHUNK)
            if decisions:
                await self._act_on(decisions)
            else:
                await self._sleep(now)
        await trio.sleep_forever()

    async def _sleep(self, now: datetime) -> None:
        due_at = self._agenda.next_due_at
        pause = STEP if due_at is None else min(STEP, (due_at - now).total_seconds())
        self._wake = trio.Event()
        with trio.move_on_after(max(0, pause)):
            await self._wake.wait()

    async def _turn_back(self, now: datetime) -> None:
        """Look at the occurrences from `now` on again; what has its row is not repeated."""
        self._agenda.turn_back(now)
        for n, entry in enumerate(list(self._agenda)):
            entry.turn_back(now)
            self._agenda.put(entry)
            if n % CHUNK == 0:
                await trio.lowlevel.checkpoint()
        try:
            await self._states.save(turned_back(await self._states.load(), now))
        except StoreError as error:
            about = catalogue.STORE_FAILED.about()
            log.error("that the clock was set back is not stored: %s", error, extra=about)

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
