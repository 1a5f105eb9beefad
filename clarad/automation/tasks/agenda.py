"""All tasks by their next due time; decides whether a due occurrence runs, or is skipped.

No clock and no I/O: the caller passes the time in, and stores the decisions.
"""

import heapq
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import count
from typing import Final, NamedTuple

from clarad.automation.tasks import schedule
from clarad.automation.tasks.schedule import Occurrence
from clarad.automation.tasks.task import Task

GRACE: Final = timedelta(seconds=60)
"""How late an occurrence may be decided and still be in time, if the daemon was running."""

MAX_LISTED: Final = 10_000
"""Occurrences missed in a row that get a row each; one row stands for all later ones."""

MISSED: Final = "missed"
DISABLED: Final = "disabled"
PAUSED: Final = "paused"

INSTANT: Final = timedelta(microseconds=1)


class Entry:
    """A task with its place in time: all its occurrences up to `cursor` have been decided."""

    def __init__(
        self, task: Task, *, anchor: datetime, cursor: datetime, is_paused: bool = False
    ) -> None:
        self.task = task
        self.anchor = anchor
        self.is_paused = is_paused
        self.skipped_in_a_row = 0
        self.place: int | None = None  # in the agenda
        self.missed: Occurrence | None = None
        self.upcoming: Occurrence | None = None
        self.due_at: datetime | None = None
        self.seek(cursor)

    def replace(self, task: Task) -> None:
        """Replace the task by one with the same schedule."""
        self.task = task
        if self.upcoming is not None:
            self.due_at = schedule.due_at(task, self.upcoming.nominal_at)

    def seek(self, cursor: datetime) -> None:
        """Go on with the occurrences after `cursor`; `missed` is dropped."""
        self.missed = None
        self._occurrences = schedule.occurrences(self.task, after=cursor, anchor=self.anchor)
        self.due_at = None
        self.advance()

    def rewind(self, now: datetime) -> None:
        """Decide the occurrences from `now` on again, and before that the undecided ones."""
        undecided = self.missed or self.upcoming
        first = now if undecided is None else min(now, undecided.nominal_at)
        self.seek(first - INSTANT)

    def advance(self) -> None:
        """Go on to the next occurrence; jitter never makes it due before its predecessor."""
        before, self.due_at = self.due_at, None
        self.upcoming = next(self._occurrences, None)
        if self.upcoming is not None:
            due_at = schedule.due_at(self.task, self.upcoming.nominal_at)
            self.due_at = due_at if before is None else max(before, due_at)

    @property
    def off(self) -> str | None:
        """Why all occurrences of the task are skipped, or `None`."""
        if not self.task.enabled:
            return DISABLED
        return PAUSED if self.is_paused else None


class Decision(NamedTuple):
    """An occurrence runs, or is skipped for a reason; `is_late` if it runs to catch up."""

    entry: Entry
    occurrence: Occurrence
    skipped: str | None = None
    is_late: bool = False


class Agenda:
    """All tasks of this daemon, by their next due time."""

    def __init__(self, up_since: datetime) -> None:
        """Occurrences that were due before `up_since` came due while no daemon ran."""
        self._up_since = up_since
        self._entries: dict[str, Entry] = {}
        self._heap: list[tuple[datetime, int, Entry]] = []
        self._order = count()

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, name: str) -> Entry | None:
        """Return the entry of a task."""
        return self._entries.get(name)

    def put(self, entry: Entry) -> None:
        """Add a task, or note that its next occurrence has changed."""
        self._entries[entry.task.name] = entry
        self._push(entry)

    def rewind(self, now: datetime) -> None:
        """The clock was set back to `now`: the daemon runs from then on."""
        self._up_since = min(self._up_since, now)

    def remove(self, name: str) -> None:
        """Remove a task."""
        del self._entries[name]

    @property
    def next_due_at(self) -> datetime | None:
        """When `decide` has something to do again."""
        while self._heap and self._is_stale(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def decide(self, now: datetime, limit: int) -> list[Decision]:
        """Decide the occurrences due by `now`, about `limit` at most; call until there are none."""
        decisions: list[Decision] = []
        looked_at = 0
        while looked_at < limit and (due_at := self.next_due_at) is not None and due_at <= now:
            entry = heapq.heappop(self._heap)[2]
            while looked_at < limit and entry.due_at is not None and entry.due_at <= now:
                decisions += self._decide(entry, now)
                looked_at += 1
            if entry.due_at is None or entry.due_at > now:
                decisions += _catch_up(entry, now)
            self._push(entry)
        return decisions

    def _push(self, entry: Entry) -> None:
        entry.place = None
        if entry.due_at is not None:
            entry.place = next(self._order)
            heapq.heappush(self._heap, (entry.due_at, entry.place, entry))
        if len(self._heap) > 2 * len(self._entries) + 100:
            self._heap = [item for item in self._heap if not self._is_stale(item)]
            heapq.heapify(self._heap)

    def _is_stale(self, item: tuple[datetime, int, Entry]) -> bool:
        _, place, entry = item
        return entry.place != place or self._entries.get(entry.task.name) is not entry

    def _decide(self, entry: Entry, now: datetime) -> Iterator[Decision]:
        """Decide the entry's next occurrence, which is due, and go on to the one after it."""
        occurrence, due_at = entry.upcoming, entry.due_at
        assert occurrence is not None
        assert due_at is not None
        if entry.skipped_in_a_row >= MAX_LISTED:
            yield from self._skip_unlisted(entry, occurrence, now)
            return
        entry.advance()
        in_time = due_at >= self._up_since and now - due_at <= GRACE
        if entry.off is not None:
            yield from _skip_missed(entry)
            yield _skip(entry, occurrence, entry.off)
        elif in_time:
            yield from _skip_missed(entry)
            yield Decision(entry, occurrence)
        elif _is_lost(entry.task, occurrence, now):
            yield from _skip_missed(entry)
            yield _skip(entry, occurrence, MISSED)
        elif entry.task.catch_up == "all":
            yield Decision(entry, occurrence, is_late=True)
        else:  # catch_up: one. Perhaps a later one was missed, too: `_catch_up` runs the last
            yield from _skip_missed(entry)
            entry.missed = occurrence

    def _skip_unlisted(
        self, entry: Entry, occurrence: Occurrence, now: datetime
    ) -> Iterator[Decision]:
        """Skip all but the last of the missed occurrences with a single row."""
        yield from _skip_missed(entry)
        entry.skipped_in_a_row = 0
        task = entry.task
        until = max(self._up_since, now - GRACE) - timedelta(seconds=task.jitter)
        if task.catch_up == "all" and task.catch_up_window is not None and entry.off is None:
            until = min(until, now - timedelta(seconds=task.catch_up_window))
        last = schedule.latest(task, until=until - INSTANT, anchor=entry.anchor)
        if last is not None and last.nominal_at > occurrence.nominal_at:
            entry.seek(last.nominal_at)
            if entry.due_at is None or entry.due_at > now:  # `last` may run to catch up
                entry.seek(last.nominal_at - INSTANT)
            following = (entry.upcoming or last).nominal_at
            why = f"{entry.off or MISSED}, as was every occurrence from here to {following}"
            yield Decision(entry, occurrence, why)


def _skip_missed(entry: Entry) -> Iterator[Decision]:
    """Skip the occurrence that was going to catch up: a later one takes its place."""
    if entry.missed is not None:
        yield _skip(entry, entry.missed, MISSED)
        entry.missed = None


def _catch_up(entry: Entry, now: datetime) -> Iterator[Decision]:
    """Run the last missed occurrence, now that all due ones are decided, if it still may run."""
    if entry.missed is not None and _is_lost(entry.task, entry.missed, now):
        yield from _skip_missed(entry)
    if entry.missed is not None:
        yield Decision(entry, entry.missed, is_late=True)
        entry.missed = None
    entry.skipped_in_a_row = 0


def _is_lost(task: Task, occurrence: Occurrence, now: datetime) -> bool:
    window = task.catch_up_window
    if window is not None and (now - occurrence.nominal_at).total_seconds() > window:
        return True
    return task.catch_up == "none"


def _skip(entry: Entry, occurrence: Occurrence, reason: str) -> Decision:
    entry.skipped_in_a_row += 1
    return Decision(entry, occurrence, reason)
