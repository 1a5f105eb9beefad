"""The tasks that this daemon owns, with their places in time: all, or a share of a cluster's.

In a cluster each task, with all its runs, belongs to one daemon at a time, so that one place
decides whether its runs overlap. (Rejected: every daemon tries to insert every occurrence, and the
first one runs it. Then a daemon would decide on an occurrence without knowing of the run before.)
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
from clarad.automation.tasks.state import digest, fair_share, new_state, rewound
from clarad.automation.tasks.task import Task
from clarad.store import StoredTaskRun, StoreError, TaskRuns, Tasks, TaskState
from clarad.systemd import catalogue

log = logging.getLogger(__name__)

AT_ONE_GO: Final = 200
"""Tasks that are rewound between two checkpoints."""


class UnknownTask(Exception):  # noqa: N818 - it is an answer, not a fault
    """The request of an operator cannot be served; the text says why."""


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
        """The agenda is empty before `set_up`."""
        self.tasks = list(tasks)
        """The tasks that are in force, whichever daemon owns them."""
        self._runner = runner
        self._runs = runs
        self._states = states
        self._now = now
        self._started_at = now()
        self.agenda = Agenda(self._started_at)
        # Held while the states of the tasks are read, changed and written.
        self._changing = trio.Lock()
        self._daemons = 1
        self._to_enroll = self._is_stale = False
        self._unsaved_rewind: datetime | None = None

    async def set_up(self) -> None:
        """Load the states of the tasks, and go on where the last start has left them.

        Raises:
            StoreError: the states of the tasks cannot be read or written.
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
        """Load the states of this daemon's tasks, and store those that have to change."""
        known = await self._states.load()
        known |= (changed := rewound(known, now))
        for task in self.tasks:
            state = known.get(task.name)
            if state is None and self.is_shared:
                continue  # another daemon owns it
            if state is None or state.schedule != schedule.identity(task):
                known[task.name] = changed[task.name] = new_state(task, now, state)
        names = {task.name for task in self.tasks}
        gone = [name for name in known if name not in names]
        saved = {name: state for name, state in changed.items() if name in names}
        await self._states.save(saved, forget=gone if is_start else ())
        if gone and not is_start:  # taken over from a daemon that had other tasks configured
            await self._states.release(gone)
        return known

    async def _recover(self, unfinished: Iterable[StoredTaskRun]) -> None:
        await self._runner.recover(unfinished, {task.name: task for task in self.tasks}.get)

    def _entry(self, task: Task, state: TaskState, before: Entry | None) -> Entry:
        """Return an entry for a task; `before` is its entry before the scheduler was restarted."""
        anchor, cursor = state.anchor_at, state.accounted_until
        if schedule.is_from_start(task):
            # Its delay counts from the daemon's start, or from the reload that added the task.
            cursor = self._started_at - INSTANT
            anchor = before.anchor if before else schedule.anchor(task, self._started_at)
        return Entry(task, anchor=anchor, cursor=cursor, is_paused=state.paused_at is not None)

    # --- changes ---------------------------------------------------------------------------------

    async def replace(self, tasks: Sequence[Task]) -> None:
        """Replace the tasks. Unchanged ones keep their places in time; no run is ended.

        Raises:
            StoreError: the tasks cannot be stored; nothing has changed.
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
            self._runner.queues.cancel(name, "the task was removed", only_waiting=True)
        self._to_enroll = True

    def _is_scheduled_as(self, task: Task) -> bool:
        entry = self.agenda.find(task.name)
        return entry is not None and schedule.identity(entry.task) == schedule.identity(task)

    def find(self, name: str) -> Entry:
        """Return the entry of a task; raises `UnknownTask` if it is not this daemon's."""
        if self._has_other_owner(name):
            raise UnknownTask(f"another daemon has the task {name!r} now; ask that one")
        entry = self.agenda.find(name)
        if entry is None:
            close = difflib.get_close_matches(name, [e.task.name for e in self.agenda], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UnknownTask(f"there is no task {name!r}{hint}")
        return entry

    async def pause(self, name: str, *, on: bool) -> None:
        """Pause or resume a task, whichever daemon owns it.

        Raises:
            UnknownTask: there is no such task.
            StoreError: it cannot be stored; nothing has changed.
        """
        async with self._changing:
            entry = None if self._has_other_owner(name) else self.find(name)
            await self._states.pause(name, self._now() if on else None)
            if entry is not None:
                entry.is_paused = on

    async def rewind(self, now: datetime) -> None:
        """Decide the occurrences from `now` on again; none that has a row runs again."""
        async with self._changing:
            self.agenda.rewind(now)
            for n, entry in enumerate(list(self.agenda)):
                entry.rewind(now)
                self.agenda.put(entry)
                if n % AT_ONE_GO == 0:
                    await trio.lowlevel.checkpoint()
        self._unsaved_rewind = (
            now if self._unsaved_rewind is None else min(now, self._unsaved_rewind)
        )

    async def save_rewind(self) -> None:
        """Store that the clock was set back; if the store fails, the next call tries again.

        Without it the next start would not decide the occurrences from then on.
        """
        if self._unsaved_rewind is None:
            return
        async with self._changing:
            try:
                back = rewound(await self._states.load(), self._unsaved_rewind)
                await self._states.save(back)
            except StoreError as error:
                about = catalogue.STORE_FAILED.about()
                log.error("that the clock was set back is not stored: %s", error, extra=about)
            else:
                self._unsaved_rewind = None

    # --- dividing the tasks among the daemons of a cluster ---------------------------------------

    @property
    def is_shared(self) -> bool:
        """Whether other daemons may own some of the tasks."""
        return self._states.are_shared

    @property
    def digest(self) -> str:
        """A digest of the tasks that this daemon knows."""
        return digest(self.tasks)

    def set_peer_count(self, others: int) -> None:
        """Set how many other daemons know the same tasks."""
        self._daemons = 1 + others

    def mark_stale(self) -> None:
        """Have `rebalance` load the states again: another daemon may have changed one."""
        self._is_stale = True

    async def rebalance(self) -> None:
        """Claim tasks without an owner, up to a fair share; release idle tasks above it.

        Raises:
            StoreError: call it again.
        """
        async with self._changing:
            try:
                await self._rebalance()
            except StoreError:
                self._is_stale = True
                raise

    async def _rebalance(self) -> None:
        claimed = await self._claim(self._now(), enroll=self._to_enroll)
        self._to_enroll = False
        if claimed or self._is_stale:
            self._adopt(await self._known(self._now()))
            self._is_stale = False
        surplus = len(self.agenda) - fair_share(len(self.tasks), self._daemons)
        names = [e.task.name for e in self.agenda if not schedule.is_from_start(e.task)]
        idle = [name for name in names if self._runner.is_idle(name)]
        if given := idle[: max(0, surplus)]:
            for name in given:  # before the release: none of them may start meanwhile
                self.agenda.remove(name)
            await self._states.release(given)

    async def inherit(self, epochs: Collection[int]) -> None:
        """Adopt the tasks, and the runs, of epochs that this daemon has taken over.

        Raises:
            StoreError: they cannot be read; nothing has changed here.
        """
        async with self._changing:
            await self._states.inherit(epochs)
            known = await self._known(self._now())
            # The runs first: whether an occurrence of a task runs depends on them.
            await self._recover(await self._runs.unfinished(epochs))
            self._adopt(known)

    def _has_other_owner(self, name: str) -> bool:
        is_known = any(task.name == name for task in self.tasks)
        return self.is_shared and is_known and self.agenda.find(name) is None

    async def _claim(self, now: datetime, *, enroll: bool) -> bool:
        if not self.is_shared:
            return False
        fresh = {task.name: new_state(task, now, None) for task in self.tasks if enroll}
        most = fair_share(len(self.tasks), self._daemons) - len(self.agenda)
        return await self._states.claim([task.name for task in self.tasks], most, fresh)

    def _adopt(self, known: Mapping[str, TaskState]) -> None:
        """Put tasks that are now this daemon's on the agenda, from their watermarks on."""
        for task in self.tasks:
            state, entry = known.get(task.name), self.agenda.find(task.name)
            if state is None:
                continue
            if entry is None:
                entry = self._entry(task, state, None)
                if schedule.is_from_start(task):
                    entry.seek(self._now())  # the start is past
                self.agenda.put(entry)
            entry.is_paused = state.paused_at is not None
