"""When a task is due: its occurrences, from its schedule alone. No clock and no I/O.

An occurrence's nominal time is its name: whatever restarts and clock steps there are, a task has
one row for each. Nothing here accumulates, so nothing drifts.
"""

import zlib
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import NamedTuple

from clarad.automation.tasks.task import Task

_LOOK_BACK = [timedelta(hours=1), timedelta(days=1), timedelta(days=32), timedelta(days=366 * 8)]


class Occurrence(NamedTuple):
    """One time at which a task is due; `mark` is that of `clarad.automation.tasks.cron.Fire`."""

    nominal_at: datetime
    mark: str = ""


def identity(task: Task) -> str:
    """Return the schedule in words, equal for tasks that are due at the same times."""
    match task.type:
        case "cron":
            assert task.cron is not None
            return f"{task.cron.text} in {task.timezone}"
        case "interval":
            first = f", the first after {task.delay:.15g} s" if task.delay else ""
            return f"every {task.interval:.15g} s{first}"
        case "one_shot" if task.run_at is not None:
            return f"once at {task.run_at.isoformat()}"
        case _:
            return f"{task.delay or 0:.15g} s after each start"


def is_from_start(task: Task) -> bool:
    """Return whether the task runs once after each start of the daemon."""
    return task.type == "one_shot" and task.run_at is None


def anchor(task: Task, now: datetime) -> datetime:
    """Return the time from which the occurrences of a task are counted that is new at `now`."""
    return now + timedelta(seconds=task.delay or 0)


def occurrences(task: Task, *, after: datetime, anchor: datetime) -> Iterator[Occurrence]:
    """Yield the occurrences after a time, in order; for most schedules without end.

    `anchor` is the first occurrence of an interval, and the only one of a one-shot with a delay.
    """
    # An aware time has no successor after the year 9999.
    with suppress(OverflowError):
        match task.type:
            case "cron":
                assert task.cron is not None
                for fire in task.cron.fires(after, task.timezone):
                    yield Occurrence(fire.at, fire.mark)
            case "interval":
                assert task.interval is not None
                step = timedelta(seconds=task.interval)
                for n in count(max(0, (after - anchor) // step + 1)):
                    yield Occurrence(anchor + n * step)
            case "one_shot":
                at = task.run_at or anchor
                if at > after:
                    yield Occurrence(at)


def latest(task: Task, *, until: datetime, anchor: datetime) -> Occurrence | None:
    """Return the last occurrence up to `until`, `None` if there is none within eight years."""
    if task.type == "interval":
        assert task.interval is not None
        step = timedelta(seconds=task.interval)
        return Occurrence(anchor + (until - anchor) // step * step) if until >= anchor else None
    for span in _LOOK_BACK:
        found = None
        for occurrence in occurrences(task, after=until - span, anchor=anchor):
            if occurrence.nominal_at > until:
                break
            found = occurrence
        if found is not None:
            return found
    return None


def due_at(task: Task, nominal_at: datetime) -> datetime:
    """Return when an occurrence starts: its nominal time and its share of the jitter.

    The share is the same however often it is asked for, also after a restart.
    """
    if not task.jitter:
        return nominal_at
    share = zlib.crc32(f"{task.name} {nominal_at.astimezone(UTC).isoformat()}".encode()) / 2**32
    try:
        return nominal_at + timedelta(seconds=task.jitter * share)
    except OverflowError:  # an aware time has no successor after the year 9999
        return nominal_at
