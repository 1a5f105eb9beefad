import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from itertools import islice, pairwise
from typing import Final
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clarad.automation.tasks import schedule
from clarad.automation.tasks.schedule import Occurrence
from clarad.automation.tasks.task import Task
from tests.schedules import (
    INSTANT,
    at_most,
    between,
    by_cron,
    every,
    once,
    rhythms,
    seconds,
    starts,
    tasks,
    utc,
)

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

NEW_YEAR: Final = utc("2027-01-01")

moments = st.datetimes(datetime(1970, 1, 2), datetime(2090, 1, 1), timezones=st.just(UTC))
intervals = st.integers(1, 10**8) | st.floats(0.001, 1e8)


def times(task: Task, after: datetime, count: int, anchor: datetime = NEW_YEAR) -> list[datetime]:
    found = schedule.occurrences(task, after=after, anchor=anchor)
    return [occurrence.nominal_at for occurrence in islice(found, count)]


# --- intervals -----------------------------------------------------------------------------------


def test_the_first_occurrence_of_an_interval_is_at_its_anchor() -> None:
    long_ago = utc("1970-01-01")
    assert times(every(90), long_ago, 3) == [
        utc("2027-01-01T00:00:00"),
        utc("2027-01-01T00:01:30"),
        utc("2027-01-01T00:03:00"),
    ]


def test_an_occurrence_comes_after_the_time_that_is_asked_for() -> None:
    assert times(every(60), NEW_YEAR, 1) == [utc("2027-01-01T00:01")]
    assert times(every(60), NEW_YEAR - INSTANT, 1) == [NEW_YEAR]


def test_the_anchor_of_a_new_interval_is_now_or_a_delay_later() -> None:
    assert schedule.anchor(every(3600), NEW_YEAR) == NEW_YEAR
    assert schedule.anchor(every(3600, delay=0), NEW_YEAR) == NEW_YEAR
    assert schedule.anchor(every(3600, delay=600), NEW_YEAR) == utc("2027-01-01T00:10")


def test_the_clocks_of_a_zone_do_not_move_an_interval() -> None:
    hourly = every(3600, timezone=ZoneInfo("Europe/Berlin"))
    found = times(hourly, utc("2027-03-27T00:00"), 48)
    assert {later - one for one, later in pairwise(found)} == {timedelta(hours=1)}


def test_after_ten_million_tenths_of_a_second_nothing_has_drifted() -> None:
    after = NEW_YEAR + timedelta(seconds=1_000_000) - INSTANT
    assert times(every(0.1), after, 1) == [NEW_YEAR + timedelta(seconds=1_000_000)]


@given(intervals, moments, st.timedeltas(timedelta(days=-3000), timedelta(days=3000)))
def test_an_interval_is_due_at_whole_numbers_of_intervals_after_its_anchor(
    interval: float, anchor: datetime, distance: timedelta
) -> None:
    after = anchor + distance
    step = timedelta(seconds=interval)
    found = times(every(interval), after, 5, anchor)
    numbers = [(at - anchor) / step for at in found]
    first = round(numbers[0])
    assert found == [anchor + (first + n) * step for n in range(5)]
    assert first >= 0
    assert first == 0 or found[0] - step <= after


# --- one-shots -----------------------------------------------------------------------------------


def test_a_one_shot_occurs_once() -> None:
    task = once(utc("2027-06-01T09:00"))
    assert times(task, NEW_YEAR, 9) == [utc("2027-06-01T09:00")]
    assert times(task, utc("2027-06-01T09:00"), 9) == []


def test_a_one_shot_with_a_delay_occurs_once_after_each_start() -> None:
    task = once(delay=60)
    for start in (NEW_YEAR, utc("2027-02-01")):
        anchor = schedule.anchor(task, start)
        assert times(task, start - INSTANT, 9, anchor) == [start + timedelta(minutes=1)]


def test_a_one_shot_with_nothing_else_occurs_at_the_start() -> None:
    anchor = schedule.anchor(once(), NEW_YEAR)
    assert times(once(), NEW_YEAR - INSTANT, 9, anchor) == [NEW_YEAR]


# --- cron ----------------------------------------------------------------------------------------


def test_cron_goes_by_the_clocks_of_the_tasks_zone() -> None:
    task = by_cron("0 3 * * *", "Asia/Tokyo")
    assert times(task, NEW_YEAR, 2) == [utc("2027-01-01T18:00"), utc("2027-01-02T18:00")]


def test_an_occurrence_of_cron_says_what_is_odd_about_it() -> None:
    task = by_cron("30 2 * * *", "Europe/Berlin")
    spring = schedule.occurrences(task, after=utc("2027-03-27T12:00"), anchor=NEW_YEAR)
    autumn = schedule.occurrences(task, after=utc("2027-10-30T12:00"), anchor=NEW_YEAR)
    assert list(islice(spring, 2)) == [
        Occurrence(utc("2027-03-28T01:00"), "gap"),
        Occurrence(utc("2027-03-29T00:30"), ""),
    ]
    assert list(islice(autumn, 2)) == [
        Occurrence(utc("2027-10-31T00:30"), "overlap"),
        Occurrence(utc("2027-11-01T01:30"), ""),
    ]


# --- whatever the schedule is --------------------------------------------------------------------

any_task = rhythms.flatmap(tasks)
fractions = st.floats(0, 1, exclude_max=True)


@relaxed
@given(any_task, starts, st.timedeltas(timedelta(days=-3), timedelta(days=3)))
def test_each_occurrence_is_later_than_the_one_before(
    task: Task, anchor: datetime, distance: timedelta
) -> None:
    found = times(task, anchor + distance, 30, anchor)
    assert len(found) == 30
    assert all(one < later for one, later in pairwise([anchor + distance, *found]))


@relaxed
@given(any_task, starts, st.timedeltas(timedelta(days=-3), timedelta(days=3)), fractions)
def test_from_wherever_one_begins_the_rest_is_the_same(
    task: Task, anchor: datetime, distance: timedelta, fraction: float
) -> None:
    whole = list(islice(schedule.occurrences(task, after=anchor + distance, anchor=anchor), 8))
    for n, (one, later) in enumerate(pairwise(whole), 1):
        somewhere = one.nominal_at + fraction * (later.nominal_at - one.nominal_at)
        for after in (one.nominal_at, min(somewhere, later.nominal_at - INSTANT)):
            rest = schedule.occurrences(task, after=after, anchor=anchor)
            assert list(islice(rest, 8 - n)) == whole[n:]


@given(any_task, starts, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)))
def test_the_zone_in_which_one_asks_does_not_matter(
    task: Task, anchor: datetime, offset: timedelta
) -> None:
    elsewhere = anchor.astimezone(timezone(offset))
    assert times(task, elsewhere, 5, anchor) == times(task, anchor, 5, anchor)


# --- the last one --------------------------------------------------------------------------------


@relaxed
@given(
    rhythms.filter(lambda rhythm: rhythm.spacing >= 1).flatmap(tasks),
    starts,
    st.integers(1, 200),
    fractions,
)
def test_the_latest_occurrence_is_the_last_of_all_up_to_then(
    task: Task, anchor: datetime, number: int, fraction: float
) -> None:
    found = times(task, anchor - INSTANT, number + 1, anchor)
    last, following = found[-2:]
    until = last + fraction * (following - last)
    latest = schedule.latest(task, until=min(until, following - INSTANT), anchor=anchor)
    assert latest is not None
    assert latest.nominal_at == last
    assert latest == between(task, last - INSTANT, last, anchor)[-1]


def test_before_the_first_occurrence_there_is_no_latest() -> None:
    assert schedule.latest(every(60), until=NEW_YEAR - INSTANT, anchor=NEW_YEAR) is None
    task = once(utc("2027-06-01"))
    assert schedule.latest(task, until=utc("2027-05-31"), anchor=NEW_YEAR) is None


def test_the_latest_of_a_day_that_comes_every_eight_years_is_found() -> None:
    task = by_cron("0 0 29 2 *")
    latest = schedule.latest(task, until=utc("2104-02-28"), anchor=NEW_YEAR)
    assert latest == Occurrence(utc("2096-02-29"))


@pytest.mark.parametrize("interval", [0.001, 1, 1e8])
def test_the_latest_of_very_many_occurrences_is_found_without_going_through_them(
    interval: float,
) -> None:
    until = NEW_YEAR + timedelta(days=1200)
    with at_most(20_000):
        latest = schedule.latest(every(interval), until=until, anchor=NEW_YEAR)
    step = timedelta(seconds=interval)
    assert latest == Occurrence(NEW_YEAR + (until - NEW_YEAR) // step * step)


# --- jitter --------------------------------------------------------------------------------------


def test_without_jitter_an_occurrence_is_due_at_its_nominal_time() -> None:
    assert schedule.due_at(every(60), NEW_YEAR) == NEW_YEAR


@given(st.floats(0, 1e6), moments, st.text(st.characters(exclude_categories=["Cs"])))
def test_jitter_puts_an_occurrence_off_by_no_more_than_that(
    jitter: float, nominal_at: datetime, name: str
) -> None:
    due_at = schedule.due_at(every(60, name, jitter=jitter), nominal_at)
    assert nominal_at <= due_at <= nominal_at + timedelta(seconds=jitter)


@given(moments, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)))
def test_the_jitter_of_an_occurrence_is_the_same_whenever_and_wherever_one_asks(
    nominal_at: datetime, offset: timedelta
) -> None:
    due_at = schedule.due_at(every(60, jitter=50), nominal_at)
    assert schedule.due_at(every(60, jitter=50), nominal_at) == due_at
    assert schedule.due_at(every(60, jitter=50), nominal_at.astimezone(timezone(offset))) == due_at


def test_the_jitter_of_an_occurrence_is_the_same_after_a_restart() -> None:
    code = """
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo
from clarad.automation.tasks import schedule
from clarad.automation.tasks.task import Task

task = Task(
    name="task", command="true", working_dir=Path("/"), timezone=ZoneInfo("UTC"), jitter=50
)
print(schedule.due_at(task, datetime(2027, 1, 1, tzinfo=UTC)))
"""
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert again.stdout == f"{schedule.due_at(every(60, jitter=50), NEW_YEAR)}\n"


def test_with_jitter_not_everything_starts_at_once() -> None:
    due = [schedule.due_at(every(60, f"task {n}", jitter=100), NEW_YEAR) for n in range(1000)]
    for quarter in range(4):
        begin = NEW_YEAR + seconds(25 * quarter)
        assert 150 < sum(begin <= at < begin + seconds(25) for at in due) < 350


# --- what a schedule is known by -----------------------------------------------------------------

FIVE: Final = [5.0, 5.5]

schedules = st.one_of(
    st.builds(
        by_cron,
        st.sampled_from(["0 3 * * *", "0 4 * * *", "@hourly"]),
        st.sampled_from(["UTC", "Europe/Berlin"]),
    ),
    st.builds(every, st.sampled_from(FIVE), delay=st.sampled_from([None, 0.0, *FIVE])),
    st.builds(once, st.sampled_from([NEW_YEAR, NEW_YEAR + INSTANT, NEW_YEAR + seconds(5)])),
    st.builds(once, delay=st.sampled_from([0.0, *FIVE])),
)


def what_counts(task: Task) -> object:
    """Return all on which it depends when a task is due."""
    zone = task.timezone.key if task.type == "cron" else None
    return task.type, task.cron, zone, task.interval, task.delay or 0, task.run_at


@given(schedules, schedules)
def test_two_schedules_are_taken_for_the_same_if_they_are(one: Task, other: Task) -> None:
    is_same = schedule.identity(one) == schedule.identity(other)
    assert is_same == (what_counts(one) == what_counts(other))


def test_what_else_is_said_of_a_task_does_not_change_its_schedule() -> None:
    other = every(
        60,
        "another name",
        command="false",
        timeout=1,
        enabled=False,
        description="words",
        timezone=ZoneInfo("Europe/Berlin"),
        jitter=5,
        overlap="queue",
        catch_up="all",
        catch_up_window=5,
        retries=1,
        env={"A": "B"},
    )
    assert schedule.identity(other) == schedule.identity(every(60))


# --- the ends of time ----------------------------------------------------------------------------

FIRST: Final = datetime.min.replace(tzinfo=UTC)
LAST: Final = datetime.max.replace(tzinfo=UTC)

edges = st.sampled_from([FIRST, LAST]).flatmap(
    lambda edge: st.timedeltas(timedelta(0), timedelta(days=800)).map(
        lambda distance: edge + distance if edge == FIRST else edge - distance
    )
)


@relaxed
@given(any_task, edges, edges | st.just(NEW_YEAR))
def test_occurrences_come_to_an_end_where_time_does(
    task: Task, after: datetime, anchor: datetime
) -> None:
    found = times(task, after, 5, anchor)
    assert all(one < later for one, later in pairwise([after, *found]))


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo", "UTC"])
def test_cron_has_run_since_the_beginning_of_time(zone: str) -> None:
    assert len(times(by_cron("0 3 * * *", zone), FIRST + timedelta(days=1), 3)) == 3


def test_an_interval_occurs_until_the_last_moment() -> None:
    found = times(every(60), LAST - timedelta(minutes=5), 99, LAST - timedelta(minutes=4))
    assert len(found) == 5
    assert found[-1] == LAST


def test_what_is_due_at_the_end_of_time_can_have_jitter() -> None:
    never = utc("9999-12-31T23:59:59")
    due_at = schedule.due_at(once(never, jitter=3600), never)
    assert never <= due_at <= LAST


@pytest.mark.parametrize("task", [every(0.001), by_cron("30 2 * * *", "Europe/Berlin")])
def test_an_occurrence_centuries_ahead_is_found_without_going_through_those_before(
    task: Task,
) -> None:
    with at_most(1000):
        assert len(times(task, NEW_YEAR + timedelta(days=365 * 5000), 3)) == 3
