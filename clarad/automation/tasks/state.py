"""The states of tasks that outlast a start, and the shares of daemons. No clock and no I/O."""

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from clarad.automation.tasks import schedule
from clarad.automation.tasks.agenda import INSTANT
from clarad.automation.tasks.task import Task
from clarad.store import TaskState

_LONG_AGO: Final = datetime(1970, 1, 1, tzinfo=UTC)


def rewound(known: dict[str, TaskState], now: datetime) -> dict[str, TaskState]:
    """Return new states for the tasks whose watermarks are after `now`.

    A clock that was ahead must not silence a task until that time comes again.
    """
    until = now - INSTANT
    return {
        name: state._replace(accounted_until=until)
        for name, state in known.items()
        if state.accounted_until > until
    }


def new_state(task: Task, now: datetime, known: TaskState | None) -> TaskState:
    """Return the state of a task that is new or has a new schedule, which does not end a pause.

    A one-shot whose time is past counts as missed.
    """
    return TaskState(
        schedule.identity(task),
        schedule.anchor(task, now),
        _LONG_AGO if task.run_at is not None else now - INSTANT,
        None if known is None else known.paused_at,
    )


def digest(tasks: Iterable[Task]) -> str:
    """Return a digest of the tasks' names; daemons with the same digest divide their tasks."""
    names = sorted(task.name for task in tasks)
    return hashlib.sha256("\0".join(names).encode()).hexdigest() if names else ""


def fair_share(tasks: int, daemons: int) -> int:
    """Return how many tasks each daemon claims at most; together they claim all."""
    return -(-tasks // daemons)
