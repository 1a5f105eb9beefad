"""Tasks for tests, tasks by chance, and how much is done about them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from pathlib import Path
from types import FrameType
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

from clarad.automation.tasks import schedule
from clarad.automation.tasks.cron import Cron
from clarad.automation.tasks.schedule import Occurrence
from clarad.automation.tasks.task import Task

INSTANT: Final = timedelta(microseconds=1)


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def every(interval: float, name: str = "task", **keys: Any) -> Task:
    return _task(name, type="interval", interval=interval, **keys)


def by_cron(cron: str, zone: str = "UTC", name: str = "task", **keys: Any) -> Task:
    return _task(name, type="cron", cron=Cron.parse(cron), timezone=ZoneInfo(zone), **keys)


def once(run_at: datetime | None = None, name: str = "task", **keys: Any) -> Task:
    return _task(name, type="one_shot", run_at=run_at, **keys)


def _task(name: str, **keys: Any) -> Task:
    usual: dict[str, Any] = {
        "command": "true",
        "working_dir": Path("/"),
        "timezone": ZoneInfo("UTC"),
    }
    return Task(**usual | keys, name=name)


def between(task: Task, after: datetime, until: datetime, anchor: datetime) -> list[Occurrence]:
    """Return the occurrences after a time, up to another."""
    return list(
        takewhile(
            lambda occurrence: occurrence.nominal_at <= until,
            schedule.occurrences(task, after=after, anchor=anchor),
        )
    )


class Rhythm(NamedTuple):
    """A schedule, and about how many seconds there are from one occurrence to the next."""

    keys: dict[str, Any]
    spacing: float


def _cron(text: str, spacing: float) -> st.SearchStrategy[Rhythm]:
    return st.sampled_from(
        ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Havana"]
    ).map(
        lambda zone: Rhythm(
            {"type": "cron", "cron": Cron.parse(text), "timezone": ZoneInfo(zone)}, spacing
        )
    )


def _interval(interval: float) -> Rhythm:
    return Rhythm({"type": "interval", "interval": interval}, interval)


rhythms: Final = st.one_of(
    st.sampled_from([0.25, 1, 7.3, 45, 90, 3600]).map(_interval),
    st.floats(0.1, 100_000).map(_interval),
    _cron("* * * * *", 60),
    _cron("*/20 * * * *", 1200),
    _cron("0 */2 * * *", 7200),
    _cron("15,45 1-3 * * *", 900),
    _cron("30 2 * * *", 86_400),
)
"""Schedules with endlessly many occurrences."""

starts: Final = st.sampled_from(
    [
        utc("2027-01-01"),
        utc("2027-03-27T20:00"),  # then clocks go forward in Berlin
        utc("2027-10-30T20:00"),  # and back
        utc("2027-03-14T03:00"),  # New York and Havana
        utc("2027-11-07T02:00"),
        utc("2027-04-03T12:00"),  # Lord Howe
    ]
)


@st.composite
def tasks(draw: st.DrawFn, rhythm: Rhythm, name: str = "task") -> Task:
    """Make a task that keeps its occurrences in order: it has less jitter than is between them."""
    jitter = draw(st.just(0) | st.floats(0, 0.9)) * min(rhythm.spacing, 7200)
    window = draw(st.none() | st.floats(0, 20).map(lambda share: share * rhythm.spacing))
    return _task(
        name,
        **rhythm.keys,
        jitter=jitter,
        catch_up=draw(st.sampled_from(["one", "none", "all"])),
        catch_up_window=window,
    )


@contextmanager
def at_most(calls: int) -> Iterator[None]:
    """Fail as soon as more functions than these are called within the block, in Python or C."""
    made = 0

    def note(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal made
        made += event in ("call", "c_call")
        if made > calls:
            sys.setprofile(before)
            raise AssertionError(f"this takes more than {calls} calls")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(before)
