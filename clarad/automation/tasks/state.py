"""What is remembered of tasks between starts, and how tasks are shared out. No clock and no I/O."""

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from clarad.automation.tasks import schedule
from clarad.automation.tasks.agenda import INSTANT
from clarad.automation.tasks.task import Task
from clarad.store import TaskState

_LONG_AGO: Final = datetime(1970, 1, 1, tzinfo=UTC)


def turned_back(known: dict[str, TaskState], now: datetime) -> dict[str, TaskState]:
    """Return new states for the tasks that are accounted for beyond `now`.

    A clock that was ahead must not silence a task until that time has come again, and what comes
    due until then while nobody is there is to be found.
    """
    until = now - INSTANT
    return {
        name: state._replace(accounted_until=until)
        for name, state in known.items()
        if state.accounted_until > until
    }


def new_state(task: Task, now: datetime, known: TaskState | None) -> TaskState:
    """Return the state of a task that is new, or whose schedule is; a pause outlasts that.

    What was to run at a time that is past is made up for, as if it had been missed.
    """
    return TaskState(
        schedule.identity(task),
        schedule.anchor(task, now),
        _LONG_AGO if task.run_at is not None else now - INSTANT,
        None if known is None else known.paused_at,
    )


def digest(tasks: Iterable[Task]) -> str:
    """Return the same for two daemons that know tasks of the same names, and so can share them."""
    names = sorted(task.name for task in tasks)
    return hashlib.sha256("\0".join(names).encode()).hexdigest() if names else ""


def fair_share(tasks: int, daemons: int) -> int:
    """Return how many of the tasks each daemon takes at most; together they take all."""
    return -(-tasks // daemons)
