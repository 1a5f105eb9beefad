"""The tasks that this daemon has, with their places in time: all, or its share of them.

Of daemons that share a database each has some of the tasks. One at a time has a task, with all of
its runs: so what is said of the runs before, and how long they wait, holds for all daemons.
(Rejected: every daemon tries to insert every occurrence, and the first one runs it. Then a run may
go on where the next is not decided on.)
"""

import difflib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final

import trio

from clarad.automation.tasks import schedule
from clarad.automation.tasks.agenda import INSTANT, Agenda, Entry
from clarad.automation.tasks.runner import Runner
from clarad.automation.tasks.state import digest, fair_share, new_state, turned_back
from clarad.automation.tasks.task import Task
from clarad.store import StoredTaskRun, StoreError, TaskRuns, Tasks, TaskState
from clarad.systemd import catalogue

log = logging.getLogger(__name__)

AT_ONE_GO: Final = 200
"""Tasks that are given a place in time at one go, before others may do something."""


class UnknownTask(Exception):  # noqa: N818 - it is an answer, not a fault
    """What an operator asked for cannot be done; the text says why."""


class Assignment:
    """Keeps the agenda in step with the tasks that are in force, and with the store."""

    def __init__(
        self,
        tasks: Iterable[Task],
        *,
        runner: Runner,
        runs: TaskRuns,
        states: Tasks,
        now: Callable[[], datetime],
    ) -> None:
        """Nothing is on the agenda before `set_up`."""
        self.tasks = list(tasks)
        """Those that are in force, whoever has them."""
        self._runner = runner
        self._runs = runs
        self._states = states
        self._now = now
        self._started_at = now()
        self.agenda = Agenda(self._started_at)
        # What is remembered of the tasks is read, changed and written, with others in between.
        self._changing = trio.Lock()
        self._daemons = 1
        self._to_enroll = self._is_unsure = False
        self._unsaved_turn: datetime | None = None

    async def set_up(self) -> None:
        """Take the tasks up where the last run of the daemon left them.

        Raises:
            StoreError: what is remembered of the tasks cannot be read or written.
        """
        async with self._changing:
            now = self._now()
            await self._states.leave([task.name for task in self.tasks])
            await self._states.inherit()
            await self._claim(now, enroll=True)
            known = await self._known(now, is_start=True)
            before, self.agenda = self.agenda, Agenda(min(self._started_at, now))
            for task in self.tasks:
                if (state := known.get(task.name)) is not None:
                    self.agenda.put(self._entry(task, state, before.find(task.name)))
            await self._recover(await self._runs.unfinished())

    async def _known(self, now: datetime, *, is_start: bool = False) -> dict[str, TaskState]:
        """Return what is remembered of the tasks that are ours, as it is to be from here on."""
        known = await self._states.load()
        known |= (changed := turned_back(known, now))
        for task in self.tasks:
            state = known.get(task.name)
            if state is None and self.is_shared:
                continue  # another daemon has it
            if state is None or state.schedule != schedule.identity(task):
                known[task.name] = changed[task.name] = new_state(task, now, state)
        names = {task.name for task in self.tasks}
        gone = [name for name in known if name not in names]
        saved = {name: state for name, state in changed.items() if name in names}
        await self._states.save(saved, forget=gone if is_start else ())
        if gone and not is_start:  # inherited: some other daemon may know it
            await self._states.release(gone)
        return known

    async def _recover(self, unfinished: Iterable[StoredTaskRun]) -> None:
        await self._runner.recover(unfinished, {task.name: task for task in self.tasks}.get)

    def _entry(self, task: Task, state: TaskState, before: Entry | None) -> Entry:
        """Take up a task; `before` is its entry if the scheduler failed, and is started again."""
        anchor, cursor = state.anchor_at, state.accounted_until
        if schedule.is_from_start(task):
            # With a delay it counts from the daemon's start, or from the reload that brought it.
            cursor = self._started_at - INSTANT
            anchor = before.anchor if before else schedule.anchor(task, self._started_at)
        return Entry(task, anchor=anchor, cursor=cursor, is_paused=state.paused_at is not None)

    # --- what changes ----------------------------------------------------------------------------

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
        if self.is_shared:
            mine = [task for task in tasks if self.agenda.find(task.name) is not None]
        fresh = {
            task.name: new_state(task, now, known.get(task.name))
            for task in mine
            if not self._is_scheduled_as(task)
        }
        names = {task.name for task in tasks}
        gone = [entry.task.name for entry in self.agenda if entry.task.name not in names]
        await self._states.save(fresh, forget=gone)
        self.tasks = list(tasks)
        for task in mine:
            entry = self.agenda.find(task.name)
            if task.name in fresh or entry is None:
                entry = Entry(
                    task,
                    anchor=fresh[task.name].anchor_at,
                    cursor=fresh[task.name].accounted_until,
                    is_paused=fresh[task.name].paused_at is not None,
                )
            else:
                entry.replace(task)
            self.agenda.put(entry)
        for name in gone:
            self.agenda.remove(name)
            self._runner.lines.cancel(name, "the task was removed", only_waiting=True)
        self._to_enroll = True

    def _is_scheduled_as(self, task: Task) -> bool:
        entry = self.agenda.find(task.name)
        return entry is not None and schedule.identity(entry.task) == schedule.identity(task)

    def find(self, name: str) -> Entry:
        """Return the entry of a task; raises `UnknownTask` if it is not this daemon's."""
        if self._is_elsewhere(name):
            raise UnknownTask(f"another daemon has the task {name!r} now; ask that one")
        entry = self.agenda.find(name)
        if entry is None:
            close = difflib.get_close_matches(name, [e.task.name for e in self.agenda], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UnknownTask(f"there is no task {name!r}{hint}")
        return entry

    async def pause(self, name: str, *, on: bool) -> None:
        """Pause a task, whoever has it, or let it go on.

        Raises:
            UnknownTask: there is no such task.
            StoreError: it cannot be written down; nothing has changed.
        """
        async with self._changing:
            entry = None if self._is_elsewhere(name) else self.find(name)
            await self._states.pause(name, self._now() if on else None)
            if entry is not None:
                entry.is_paused = on

    async def turn_back(self, now: datetime) -> None:
        """Look at the occurrences from `now` on again; what has its row is not repeated."""
        async with self._changing:
            self.agenda.turn_back(now)
            for n, entry in enumerate(list(self.agenda)):
                entry.turn_back(now)
                self.agenda.put(entry)
                if n % AT_ONE_GO == 0:
                    await trio.lowlevel.checkpoint()
        self._unsaved_turn = now if self._unsaved_turn is None else min(now, self._unsaved_turn)

    async def save_turn(self) -> None:
        """Write down that the clock was set back, unless the store knows it; call it again if not.

        Otherwise the next start would take the occurrences from then on for accounted for.
        """
        if self._unsaved_turn is None:
            return
        async with self._changing:
            try:
                back = turned_back(await self._states.load(), self._unsaved_turn)
                await self._states.save(back)
            except StoreError as error:
                about = catalogue.STORE_FAILED.about()
                log.error("that the clock was set back is not stored: %s", error, extra=about)
            else:
                self._unsaved_turn = None

    # --- what daemons share ----------------------------------------------------------------------

    @property
    def is_shared(self) -> bool:
        """Whether other daemons may have some of the tasks."""
        return self._states.are_shared

    @property
    def digest(self) -> str:
        """Which tasks this daemon knows; the same for daemons that know the same."""
        return digest(self.tasks)

    def share_with(self, others: int) -> None:
        """Take note of how many other daemons know the same tasks."""
        self._daemons = 1 + others

    def doubt(self) -> None:
        """Another daemon may have changed something: `share_out` is to read what is remembered."""
        self._is_unsure = True

    async def share_out(self) -> None:
        """Take tasks that nobody has, up to a fair share; give up what is too much and idle.

        Raises:
            StoreError: it is to be tried again.
        """
        async with self._changing:
            try:
                await self._share_out()
            except StoreError:
                self._is_unsure = True
                raise

    async def _share_out(self) -> None:
        claimed = await self._claim(self._now(), enroll=self._to_enroll)
        self._to_enroll = False
        if claimed or self._is_unsure:
            self._take_up(await self._known(self._now()))
            self._is_unsure = False
        surplus = len(self.agenda) - fair_share(len(self.tasks), self._daemons)
        names = [e.task.name for e in self.agenda if not schedule.is_from_start(e.task)]
        idle = [name for name in names if self._runner.is_idle(name)]
        if given := idle[: max(0, surplus)]:
            for name in given:  # first: none of them may begin meanwhile
                self.agenda.remove(name)
            await self._states.release(given)

    async def inherit(self, lives: Collection[int]) -> None:
        """Go on with the tasks that these lives of daemons had, and with their runs.

        Raises:
            StoreError: they cannot be read; nothing has changed here.
        """
        async with self._changing:
            await self._states.inherit(lives)
            known = await self._known(self._now())
            # Its runs before a task: what becomes of an occurrence depends on them.
            await self._recover(await self._runs.unfinished(lives))
            self._take_up(known)

    def _is_elsewhere(self, name: str) -> bool:
        is_known = any(task.name == name for task in self.tasks)
        return self.is_shared and is_known and self.agenda.find(name) is None

    async def _claim(self, now: datetime, *, enroll: bool) -> bool:
        if not self.is_shared:
            return False
        fresh = {task.name: new_state(task, now, None) for task in self.tasks if enroll}
        most = fair_share(len(self.tasks), self._daemons) - len(self.agenda)
        return await self._states.claim([task.name for task in self.tasks], most, fresh)

    def _take_up(self, known: Mapping[str, TaskState]) -> None:
        """Run tasks that have become ours, from where they are accounted for."""
        for task in self.tasks:
            state, entry = known.get(task.name), self.agenda.find(task.name)
            if state is None:
                continue
            if entry is None:
                entry = self._entry(task, state, None)
                if schedule.is_from_start(task):
                    entry.go_on_after(self._now())  # the start is past
                self.agenda.put(entry)
            entry.is_paused = state.paused_at is not None
