from datetime import UTC, datetime
from itertools import islice, pairwise
from typing import Final
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clarad.automation.tasks.preview import Fire, preview
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

BERLIN: Final = "Europe/Berlin"
NEW_YEAR: Final = utc("2027-01-01")


def fires(
    *tasks: Task, start: str, end: str, anchors: dict[str, datetime] | None = None
) -> list[Fire]:
    return list(preview(tasks, start=utc(start), end=utc(end), anchors=anchors or {}))


def read(fire: Fire) -> str:
    """Return what somebody sees of a fire."""
    return f"{fire.at:%H:%M} UTC {fire.local:%H:%M %Z} {fire.task} {' '.join(fire.marks)}".rstrip()


# --- days on which clocks are changed ------------------------------------------------------------


def test_a_fire_in_the_gap_is_marked_and_shown_after_it() -> None:
    task = by_cron("30 2 * * *", BERLIN)
    assert [read(fire) for fire in fires(task, start="2027-03-27", end="2027-03-30")] == [
        "01:30 UTC 02:30 CET task",
        "01:00 UTC 03:00 CEST task gap",
        "00:30 UTC 02:30 CEST task",
    ]


def test_a_fire_that_skips_the_gap_is_not_there() -> None:
    task = by_cron("*/30 1-3 * * *", BERLIN)
    assert [read(fire) for fire in fires(task, start="2027-03-28", end="2027-03-29")] == [
        "00:00 UTC 01:00 CET task",
        "00:30 UTC 01:30 CET task",
        "01:00 UTC 03:00 CEST task",
        "01:30 UTC 03:30 CEST task",
        "23:00 UTC 01:00 CEST task",
        "23:30 UTC 01:30 CEST task",
    ]


def test_a_fire_in_the_hour_that_comes_twice_is_marked() -> None:
    task = by_cron("30 2 * * *", BERLIN)
    assert [read(fire) for fire in fires(task, start="2027-10-30", end="2027-11-02")] == [
        "00:30 UTC 02:30 CEST task",
        "00:30 UTC 02:30 CEST task overlap",
        "01:30 UTC 02:30 CET task",
    ]


def test_fires_in_both_halves_of_the_hour_that_comes_twice_are_marked() -> None:
    task = by_cron("*/30 2,3 * * *", BERLIN)
    assert [read(fire) for fire in fires(task, start="2027-10-31", end="2027-11-01")] == [
        "00:00 UTC 02:00 CEST task overlap",
        "00:30 UTC 02:30 CEST task overlap",
        "01:00 UTC 02:00 CET task overlap",
        "01:30 UTC 02:30 CET task overlap",
        "02:00 UTC 03:00 CET task",
        "02:30 UTC 03:30 CET task",
    ]


def test_the_local_time_of_an_interval_that_comes_twice_is_marked_too() -> None:
    task = every(1800, timezone=ZoneInfo(BERLIN))
    found = fires(task, start="2027-10-30T23:30", end="2027-10-31T02:30")
    assert [read(fire) for fire in found] == [
        "23:30 UTC 01:30 CEST task",
        "00:00 UTC 02:00 CEST task overlap",
        "00:30 UTC 02:30 CEST task overlap",
        "01:00 UTC 02:00 CET task overlap",
        "01:30 UTC 02:30 CET task overlap",
        "02:00 UTC 03:00 CET task",
    ]


def test_a_fire_can_have_two_marks() -> None:
    early, late = by_cron("30 2 * * *", BERLIN, "early"), by_cron("0 3 * * *", BERLIN, "late")
    found = fires(early, late, start="2027-03-28", end="2027-03-29")
    assert [read(fire) for fire in found] == [
        "01:00 UTC 03:00 CEST early gap collision",
        "01:00 UTC 03:00 CEST late collision",
    ]


# --- collisions ----------------------------------------------------------------------------------


def test_tasks_that_are_due_at_the_same_time_collide() -> None:
    crowd = [every(interval, f"each {interval}") for interval in (600, 1200, 1500)]
    found = fires(*crowd, start="2027-01-01", end="2027-01-01T00:40")
    assert [read(fire) for fire in found] == [
        "00:00 UTC 00:00 UTC each 1200 collision",
        "00:00 UTC 00:00 UTC each 1500 collision",
        "00:00 UTC 00:00 UTC each 600 collision",
        "00:10 UTC 00:10 UTC each 600",
        "00:20 UTC 00:20 UTC each 1200 collision",
        "00:20 UTC 00:20 UTC each 600 collision",
        "00:25 UTC 00:25 UTC each 1500",
        "00:30 UTC 00:30 UTC each 600",
    ]


def test_the_same_time_on_clocks_of_different_zones_is_no_collision() -> None:
    here, there = by_cron("0 3 * * *", BERLIN, "here"), by_cron("0 3 * * *", "Asia/Tokyo", "there")
    assert [fire.marks for fire in fires(here, there, start="2027-01-01", end="2027-01-03")] == [
        ()
    ] * 4


def test_tasks_in_different_zones_collide_when_they_are_due_at_the_same_moment() -> None:
    here, there = by_cron("0 3 * * *", BERLIN, "here"), by_cron("0 11 * * *", "Asia/Tokyo", "there")
    found = fires(here, there, start="2027-01-01", end="2027-01-02")
    assert [read(fire) for fire in found] == [
        "02:00 UTC 03:00 CET here collision",
        "02:00 UTC 11:00 JST there collision",
    ]


def test_tasks_collide_in_the_hour_that_comes_twice_whatever_their_zones() -> None:
    zones = {BERLIN: "30 2 * * *", "Europe/Rome": "30 2 * * *", "UTC": "30 0 * * *"}
    crowd = [by_cron(cron, zone, zone) for zone, cron in zones.items()]
    found = fires(*crowd, start="2027-10-31", end="2027-11-01")
    assert [(fire.task, fire.marks) for fire in found] == [
        ("Europe/Berlin", ("overlap", "collision")),
        ("Europe/Rome", ("overlap", "collision")),
        ("UTC", ("collision",)),
    ]


# --- the period ----------------------------------------------------------------------------------


def test_a_period_has_its_beginning_and_not_its_end() -> None:
    found = fires(by_cron("@hourly"), start="2027-01-01T05:00", end="2027-01-01T07:00")
    assert [read(fire) for fire in found] == [
        "05:00 UTC 05:00 UTC task",
        "06:00 UTC 06:00 UTC task",
    ]


def test_two_periods_one_after_the_other_are_one_period() -> None:
    crowd = [by_cron("*/20 * * * *", BERLIN, "cron"), every(1000, "interval")]
    anchors = {"interval": utc("2027-10-30")}
    first = fires(*crowd, start="2027-10-30", end="2027-10-31", anchors=anchors)
    second = fires(*crowd, start="2027-10-31", end="2027-11-01", anchors=anchors)
    assert first + second == fires(*crowd, start="2027-10-30", end="2027-11-01", anchors=anchors)


def test_in_a_period_in_which_nothing_is_due_there_is_nothing() -> None:
    assert fires(by_cron("0 3 * * *"), start="2027-01-01T04:00", end="2027-01-01T05:00") == []
    assert fires(start="2027-01-01", end="2028-01-01") == []


def test_the_first_fires_of_a_long_period_are_there_at_once() -> None:
    crowd = [every(1, "restless"), by_cron("0 3 * * *", BERLIN, "nightly")]
    with at_most(2000):
        found = preview(crowd, start=NEW_YEAR, end=utc("2127-01-01"), anchors={})
        assert len(list(islice(found, 10))) == 10


# --- intervals and one-shots ---------------------------------------------------------------------


def test_an_interval_keeps_its_phase() -> None:
    found = fires(
        every(3600),
        start="2027-01-01",
        end="2027-01-01T03:00",
        anchors={"task": utc("2026-12-24T18:17")},
    )
    assert [read(fire) for fire in found] == [
        "00:17 UTC 00:17 UTC task",
        "01:17 UTC 01:17 UTC task",
        "02:17 UTC 02:17 UTC task",
    ]


def test_an_interval_does_not_begin_before_its_first_occurrence() -> None:
    found = fires(
        every(3600),
        start="2027-01-01",
        end="2027-01-01T03:00",
        anchors={"task": utc("2027-01-01T01:30")},
    )
    assert [read(fire) for fire in found] == [
        "01:30 UTC 01:30 UTC task",
        "02:30 UTC 02:30 UTC task",
    ]


def test_an_interval_that_has_no_phase_yet_is_counted_from_the_start() -> None:
    at_once = fires(every(3600), start="2027-01-01", end="2027-01-01T02:00")
    later = fires(every(3600, delay=600), start="2027-01-01", end="2027-01-01T02:00")
    assert [f"{fire.at:%H:%M}" for fire in at_once] == ["00:00", "01:00"]
    assert [f"{fire.at:%H:%M}" for fire in later] == ["00:10", "01:10"]


def test_a_one_shot_is_shown_in_its_zone() -> None:
    task = once(utc("2027-06-01T07:00"), timezone=ZoneInfo(BERLIN))
    found = fires(task, start="2027-06-01", end="2027-06-02")
    assert [read(fire) for fire in found] == ["07:00 UTC 09:00 CEST task"]
    assert fires(task, start="2027-06-02", end="2027-06-03") == []


def test_what_is_counted_from_a_start_of_the_daemon_is_left_out() -> None:
    assert fires(once(delay=60), once(name="at once"), start="2027-01-01", end="2028-01-01") == []


def test_jitter_changes_nothing() -> None:
    found = fires(every(3600, jitter=600), start="2027-01-01", end="2027-01-01T02:00")
    assert [f"{fire.at:%H:%M:%S}" for fire in found] == ["00:00:00", "01:00:00"]


# --- whatever the tasks are ----------------------------------------------------------------------

crowds = st.lists(rhythms.filter(lambda rhythm: rhythm.spacing > 30).flatmap(tasks), max_size=4)


@pytest.mark.parametrize("zone", ["UTC", BERLIN])
@relaxed
@given(crowds, starts, st.floats(0, 20_000), st.floats(-100_000, 100_000))
def test_it_shows_exactly_what_will_be_due_in_order_with_what_is_odd(
    zone: str, crowd: list[Task], start: datetime, length: float, distance: float
) -> None:
    named = [
        msgspec.structs.replace(task, name=f"task {n}", timezone=ZoneInfo(zone))
        for n, task in enumerate(crowd)
    ]
    end, anchor = start + seconds(length), start + seconds(distance)
    anchors = {task.name: anchor for task in named}
    found = list(preview(named, start=start, end=end, anchors=anchors))
    assert all(one.at <= later.at for one, later in pairwise(found))
    for task in named:
        due = between(task, start - INSTANT, end - INSTANT, anchor)
        mine = [fire for fire in found if fire.task == task.name]
        assert [fire.at for fire in mine] == [occurrence.nominal_at for occurrence in due]
        assert [fire.local.astimezone(UTC) for fire in mine] == [fire.at for fire in mine]
        assert all(fire.local.tzinfo == ZoneInfo(zone) for fire in mine)
    times = [fire.at for fire in found]
    for fire in found:
        assert ("collision" in fire.marks) == (times.count(fire.at) > 1)
