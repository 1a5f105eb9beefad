"""Lists when tasks will be due in a period, and marks the odd times. No clock and no I/O."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from heapq import merge
from itertools import groupby, takewhile
from operator import attrgetter
from typing import Final, NamedTuple

from clarad.automation.tasks import schedule
from clarad.automation.tasks.task import Task

_INSTANT: Final = timedelta(microseconds=1)


class Fire(NamedTuple):
    """One time at which a task is due.

    `marks` are `gap` (its local time does not exist, it runs right after the gap), `overlap` (its
    local time comes twice) and `collision` (another task is due at the same time).
    """

    at: datetime
    local: datetime
    task: str
    marks: tuple[str, ...]


def preview(
    tasks: Iterable[Task],
    *,
    start: datetime,
    end: datetime,
    anchors: Mapping[str, datetime],
) -> Iterator[Fire]:
    """Yield the fires from `start` to before `end`, in order; both within the years 2 to 9998.

    `anchors` has the phases of intervals; the default is `start`. Tasks that count from each start
    of the daemon are left out, since that time is unknown.
    """
    each = (_of_task(task, start, end, anchors) for task in tasks)
    # Not by `local`: a time that comes twice never equals one in another zone (PEP 495).
    fires = merge(*each, key=attrgetter("at", "task"))
    for _, group in groupby(fires, key=lambda fire: fire.at):
        together = list(group)
        for fire in together:
            collides = ("collision",) if len(together) > 1 else ()
            yield fire._replace(marks=fire.marks + collides)


def _of_task(
    task: Task, start: datetime, end: datetime, anchors: Mapping[str, datetime]
) -> Iterator[Fire]:
    if task.type == "one_shot" and task.run_at is None:
        return
    anchor = anchors.get(task.name) or schedule.anchor(task, start)
    occurrences = schedule.occurrences(task, after=start - _INSTANT, anchor=anchor)
    for at, mark in takewhile(lambda occurrence: occurrence.nominal_at < end, occurrences):
        local = at.astimezone(task.timezone)
        mark = mark or ("overlap" if _comes_twice(local) else "")
        yield Fire(at, local, task.name, (mark,) if mark else ())


def _comes_twice(local: datetime) -> bool:
    """Return whether the clocks are put back, and show this time twice."""
    first, second = local.replace(fold=0).utcoffset(), local.replace(fold=1).utcoffset()
    assert first is not None
    assert second is not None
    return first > second  # PEP 495
