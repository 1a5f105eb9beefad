"""Reports the daemon's state, and the line that `systemctl status` shows, to systemd.

It reports only changes, and at most one each `PAUSE`. A report that systemd had no room for is sent
again.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from math import inf
from typing import Final, NamedTuple

import trio

from clarad.events import Event, EventType
from clarad.protocol.control import Refused
from clarad.systemd import notify
from clarad.systemd.extension import EXTENSION
from clarad.systemd.notify import Notifier

PAUSE: Final = 1.0
"""Seconds between two reports."""


class Counts(NamedTuple):
    """The numbers in the status line; `running` and `queued` are messages, `runs` are of tasks."""

    adapters: int
    sessions: int
    running: int
    queued: int
    runs: int
    next_task: tuple[str, datetime] | None = None
    others: int = 0
    """Other daemons on the database."""
    failing: str = ""
    """What is wrong with the database, if it fails."""


class Status:
    """Reports to systemd. A subscriber of the bus, for the events that change the counts."""

    types: Final = frozenset(EventType) - {
        EventType.TOOL_START,
        EventType.TOOL_END,
        EventType.TOOL_ERROR,
    }

    def __init__(self, notifier: Notifier, count: Callable[[], Counts]) -> None:
        self._notifier = notifier
        self._count = count
        self._changed = trio.Event()
        self._state = self._said_state = ""
        self._said_text = ""
        self._refused = ""
        self._reloads = 0
        self._stops_until: float | None = None

    def offer(self, event: Event) -> None:
        """Note that an event may have changed the counts."""
        self.changed()

    def changed(self) -> None:
        """Report soon, if the status line has changed."""
        self._changed.set()

    def ready(self) -> None:
        """Report that the daemon is ready."""
        self._enter(notify.READY)

    def stopping(self, budget: float) -> None:
        """Report that the daemon stops, and ask for up to `budget` seconds, a few at a time."""
        if self._stops_until is None:
            self._stops_until = trio.current_time() + budget
            self._enter(notify.STOPPING)

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Read the configuration within the block; if it is refused, the status says why."""
        self._reloads += 1
        if self._stops_until is None:
            self._enter(notify.reloading())
        try:
            yield
            self._refused = ""
        except Refused as refused:
            self._refused = "; ".join(refused.problems)
            raise
        finally:
            self._reloads -= 1
            if self._stops_until is None and not self._reloads:
                self.ready()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Report changes until cancelled."""
        task_status.started()
        while True:
            self._changed = trio.Event()
            if self._tell():
                with trio.move_on_after(self._until_next_look()):
                    await self._changed.wait()
            # After the change, not before: changes that come together are one report.
            await trio.sleep(PAUSE)

    def _enter(self, state: str) -> None:
        self._state = state
        self._tell()
        self.changed()

    def _tell(self) -> bool:
        """Send what has changed; return `False` if it must be sent again."""
        if not self._state:
            return True
        assignments = [self._state] if self._state != self._said_state else []
        if (text := self.text()) != self._said_text:
            assignments.append(notify.status(text))
        if self._stops_until is not None and (left := self._left(self._stops_until)) > 0:
            assignments.append(notify.extend_timeout(min(EXTENSION, left)))
        if not self._notifier.send(*assignments):
            return False
        self._said_state, self._said_text = self._state, text
        return True

    def _until_next_look(self) -> float:
        if self._stops_until is not None:
            return 0 if self._left(self._stops_until) > 0 else inf
        next_task = self._count().next_task
        return inf if next_task is None else _seconds_until(next_task[1])

    def _left(self, until: float) -> float:
        return until - trio.current_time()

    def text(self) -> str:
        """Return the status line."""
        counts = self._count()
        if self._stops_until is not None:
            return _stopping(counts)
        if self._reloads:
            return "reading the configuration again"
        text = _serving(counts)
        return f"{text}; not reloaded: {self._refused}" if self._refused else text


def _serving(counts: Counts) -> str:
    text = (
        f"{_number(counts.adapters, 'adapter')}, {_number(counts.sessions, 'session')}, "
        f"{_number(counts.running, 'message')} running, {counts.queued} queued"
    )
    if counts.failing:
        text = f"{counts.failing}; {text}"
    if counts.others:
        text += f"; {_number(counts.others, 'other daemon')} on the database"
    if counts.next_task is None:
        return text
    name, due_at = counts.next_task
    return f"{text}; next task: {name} at {due_at.astimezone():%a %Y-%m-%d %H:%M:%S %Z}"


def _stopping(counts: Counts) -> str:
    left = {
        "message": counts.running,
        "task": counts.runs,
        "session": counts.sessions,
        "adapter": counts.adapters,
    }
    if not any(left.values()):
        return "stopping: the last hooks and the last writes"
    return "stopping: " + ", ".join(_number(n, what) for what, n in left.items() if n) + " left"


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _seconds_until(due_at: datetime) -> float:
    return max(0, (due_at - datetime.now(UTC)).total_seconds())
