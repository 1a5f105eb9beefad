"""Held against everything that can tell what cron does.

`cron_vectors.json` has what others did, recorded: Debian's cron 3.0pl1-162 itself, run through
changes of the clock under libfaketime; what its `crontab -n` takes; and `systemd-analyze calendar`
(252), where a calendar event and an expression mean the same, which they do not within a gap (it
has no run) nor for `weekly` (it has Monday).
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from functools import cache
from importlib.resources import files
from itertools import islice, pairwise, product, takewhile
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter
from cronsim import CronSim
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clarad.automation.tasks.cron import MAX_LENGTH, Cron, CronError, Fire

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

VECTORS: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "cron_vectors.json").read_text()
)

MINUTE: Final = timedelta(minutes=1)
HOUR: Final = timedelta(hours=1)

CHANGES: Final = [
    (zone, datetime.fromisoformat(moment + "Z"))
    for zone, moment in [
        ("America/New_York", "2025-03-09 07:00"),
        ("America/New_York", "2025-11-02 06:00"),
        ("Europe/Berlin", "2025-03-30 01:00"),
        ("Europe/Berlin", "2025-10-26 01:00"),
        ("Europe/Dublin", "2025-03-30 01:00"),  # its winter is the one with daylight saving
        ("Europe/Dublin", "2025-10-26 01:00"),
        ("Australia/Lord_Howe", "2025-04-05 15:00"),  # half an hour
        ("Australia/Lord_Howe", "2025-10-04 15:30"),
        ("Pacific/Chatham", "2025-04-05 14:00"),  # 03:45
        ("Pacific/Chatham", "2025-09-27 14:00"),
        ("Asia/Beirut", "2025-03-29 22:00"),  # at midnight
        ("Asia/Beirut", "2025-10-25 21:00"),
        ("Africa/Cairo", "2025-04-24 22:00"),
        ("Africa/Cairo", "2025-10-30 21:00"),
        ("America/Havana", "2025-03-09 05:00"),
        ("America/Havana", "2025-11-02 05:00"),
        ("America/Sao_Paulo", "2018-11-04 03:00"),
        ("America/Sao_Paulo", "2019-02-17 02:00"),
        ("America/St_Johns", "2006-04-02 03:31"),  # a minute past midnight
        ("America/St_Johns", "2006-10-29 02:31"),
        ("Africa/Casablanca", "2025-02-23 02:00"),
        ("Africa/Casablanca", "2025-04-06 02:00"),
        ("Asia/Kathmandu", "1985-12-31 18:30"),  # a quarter of an hour
        ("Asia/Pyongyang", "2015-08-14 15:00"),
        ("Asia/Pyongyang", "2018-05-04 15:00"),
        ("America/Caracas", "2007-12-09 07:00"),
        ("Antarctica/Troll", "2025-03-30 01:00"),  # two hours
        ("Antarctica/Troll", "2025-10-26 01:00"),
    ]
]
NEW_CLOCKS: Final = [
    (zone, datetime.fromisoformat(moment + "Z"))
    for zone, moment in [
        ("Antarctica/Casey", "2018-03-10 17:00"),  # three hours back: cron's last small change
        ("Antarctica/Casey", "2020-10-03 16:01"),  # three hours forward: its first large one
        ("America/Danmarkshavn", "1996-01-01 03:00"),
        ("Pacific/Apia", "2011-12-30 10:00"),  # a day that never was
        ("Pacific/Kwajalein", "1993-08-21 12:00"),
        ("Pacific/Kwajalein", "1969-09-30 13:00"),  # a day that came twice, but for an hour
    ]
]


def read(fire: Fire, zone: str) -> str:
    """Return what a clock in the zone shows, and the mark."""
    return f"{fire.at.astimezone(ZoneInfo(zone)):%d %b %H:%M %z} {fire.mark}".rstrip()


def runs(text: str, zone: str, after: str, count: int = 3) -> list[str]:
    """Return the runs after a time on the clock in the zone."""
    start = datetime.fromisoformat(after).replace(tzinfo=ZoneInfo(zone))
    fires = Cron.parse(text).fires(start, ZoneInfo(zone))
    return [read(fire, zone) for fire in islice(fires, count)]


def until(end: datetime, text: str, after: datetime, zone: str) -> list[Fire]:
    """Return the runs after a moment, up to another."""
    return list(
        takewhile(lambda fire: fire.at <= end, Cron.parse(text).fires(after, ZoneInfo(zone)))
    )


# --- expressions by chance -----------------------------------------------------------------------


@dataclass(frozen=True)
class Expression:
    """An expression, and what is meant by it."""

    text: str
    values: tuple[frozenset[int], ...]
    starred: tuple[bool, ...]

    @property
    def is_wildcard(self) -> bool:
        return self.starred[0] or self.starred[1]

    @property
    def needs_both_days(self) -> bool:
        return self.starred[2] or self.starred[4]

    def matches(self, local: datetime) -> bool:
        minutes, hours, days, months, weekdays = self.values
        in_month = local.day in days
        in_week = local.isoweekday() in weekdays or local.isoweekday() % 7 in weekdays
        return (
            local.minute in minutes
            and local.hour in hours
            and local.month in months
            and ((in_month and in_week) if self.needs_both_days else (in_month or in_week))
        )


@st.composite
def items(draw: st.DrawFn, low: int, high: int, latest: int) -> tuple[str, range]:
    first = draw(st.integers(low, latest))
    last = draw(st.integers(first, latest))
    step = draw(st.integers(1, high + 2))
    return draw(
        st.sampled_from(
            [
                ("*", range(low, high + 1)),
                (f"*/{step}", range(low, high + 1, step)),
                (f"{first}", range(first, first + 1)),
                (f"{first:02}", range(first, first + 1)),
                (f"{first}-{last}", range(first, last + 1)),
                (f"{first}-{last}/{step}", range(first, last + 1, step)),
            ]
        )
    )


Field = tuple[str, frozenset[int], bool]


def fields(low: int, high: int, latest: int | None = None) -> st.SearchStrategy[Field]:
    """Make fields with values from `low` to `high`, and numbers up to `latest`."""
    return st.lists(items(low, high, latest or high), min_size=1, max_size=3).map(
        lambda parts: (
            ",".join(text for text, _ in parts),
            frozenset(value for _, values in parts for value in values),
            parts[0][0].startswith("*"),
        )
    )


def star(low: int, high: int) -> st.SearchStrategy[Field]:
    return st.just(("*", frozenset(range(low, high + 1)), True))


def expression(*parts: Field) -> Expression:
    texts, values, starred = zip(*parts, strict=True)
    return Expression(" ".join(texts), values, starred)


def comes_at_all(candidate: Expression) -> bool:
    """Say whether a leap year has one of its dates; in time it falls on each day of the week."""
    _, _, days, months, _ = candidate.values
    dates = (datetime(2024, 1, 1) + timedelta(days=n) for n in range(366))
    return not candidate.needs_both_days or any(
        date.day in days and date.month in months for date in dates
    )


expressions = st.builds(
    expression, fields(0, 59), fields(0, 23), fields(1, 31), fields(1, 12), fields(0, 7)
).filter(comes_at_all)
nightly = st.builds(
    expression,
    fields(0, 59),
    fields(0, 23, latest=4),
    st.one_of(star(1, 31), fields(1, 31)),
    star(1, 12),
    st.one_of(star(0, 7), fields(0, 7)),
).filter(comes_at_all)
"""They run in the night, when clocks are changed."""


# --- what was said to go wrong -------------------------------------------------------------------


def test_a_fixed_job_runs_once_in_the_repeated_hour() -> None:
    assert runs("30 1 * * *", "America/New_York", "2027-11-06 12:00") == [
        "07 Nov 01:30 -0400 overlap",
        "08 Nov 01:30 -0500",
        "09 Nov 01:30 -0500",
    ]


def test_a_fixed_job_runs_once_in_a_repeated_half_hour() -> None:
    assert runs("45 1 * * *", "Australia/Lord_Howe", "2027-04-03 12:00") == [
        "04 Apr 01:45 +1100 overlap",
        "05 Apr 01:45 +1030",
        "06 Apr 01:45 +1030",
    ]


def test_a_wildcard_job_runs_in_both_halves_of_the_repeated_hour() -> None:
    assert runs("*/30 1 * * *", "America/New_York", "2027-11-06 12:00", 5) == [
        "07 Nov 01:00 -0400 overlap",
        "07 Nov 01:30 -0400 overlap",
        "07 Nov 01:00 -0500 overlap",
        "07 Nov 01:30 -0500 overlap",
        "08 Nov 01:00 -0500",
    ]


def test_a_wildcard_job_skips_the_gap() -> None:
    assert runs("0 */2 * * *", "Europe/Berlin", "2027-03-27 22:30") == [
        "28 Mar 00:00 +0100",
        "28 Mar 04:00 +0200",
        "28 Mar 06:00 +0200",
    ]


def test_a_job_each_minute_goes_on_right_after_the_gap() -> None:
    assert runs("* * * * *", "Europe/Berlin", "2027-03-28 01:58") == [
        "28 Mar 01:59 +0100",
        "28 Mar 03:00 +0200",
        "28 Mar 03:01 +0200",
    ]


def test_a_fixed_job_in_the_gap_runs_once_right_after_it() -> None:
    assert runs("30 2 * * *", "Europe/Berlin", "2027-03-27 12:00") == [
        "28 Mar 03:00 +0200 gap",
        "29 Mar 02:30 +0200",
        "30 Mar 02:30 +0200",
    ]


def test_a_fixed_job_with_several_times_in_the_gap_runs_once_right_after_it() -> None:
    assert runs("0,20,40 2 * * *", "Europe/Berlin", "2027-03-27 12:00", 2) == [
        "28 Mar 03:00 +0200 gap",
        "29 Mar 02:00 +0200",
    ]


def test_a_time_in_the_gap_and_the_one_right_after_it_are_one_run() -> None:
    assert runs("0 2,3 * * *", "Europe/Berlin", "2027-03-27 12:00", 2) == [
        "28 Mar 03:00 +0200 gap",
        "29 Mar 02:00 +0200",
    ]


def test_a_list_of_all_hours_is_a_fixed_job() -> None:
    assert runs("30 0-23 * * *", "America/New_York", "2027-11-07 00:00") == [
        "07 Nov 00:30 -0400",
        "07 Nov 01:30 -0400 overlap",
        "07 Nov 02:30 -0500",
    ]


def test_hourly_runs_in_both_halves_of_the_repeated_hour() -> None:
    assert runs("@hourly", "America/New_York", "2027-11-07 00:30") == [
        "07 Nov 01:00 -0400 overlap",
        "07 Nov 01:00 -0500 overlap",
        "07 Nov 02:00 -0500",
    ]


def test_daily_runs_at_one_on_a_day_that_begins_at_one() -> None:
    assert runs("@daily", "Asia/Beirut", "2025-03-29 12:00", 2) == [
        "30 Mar 01:00 +0300 gap",
        "31 Mar 00:00 +0300",
    ]


def test_the_day_of_a_time_in_a_gap_is_the_day_that_begins_after_it() -> None:
    assert runs("0 0 30 * *", "Asia/Beirut", "2025-03-29 12:00", 1) == ["30 Mar 01:00 +0300 gap"]
    assert runs("0 0 29 * *", "Asia/Beirut", "2025-03-29 12:00", 1) == ["29 Apr 00:00 +0300"]


def test_midnight_comes_once_where_the_hour_before_it_comes_twice() -> None:
    assert runs("0 0,23 * * *", "Asia/Beirut", "2025-10-25 12:00") == [
        "25 Oct 23:00 +0300 overlap",
        "26 Oct 00:00 +0200",
        "26 Oct 23:00 +0200",
    ]


def test_winter_time_as_daylight_saving_is_no_different() -> None:
    assert runs("30 1 * * *", "Europe/Dublin", "2025-03-29 12:00", 1) == ["30 Mar 02:00 +0100 gap"]
    assert runs("30 1 * * *", "Europe/Dublin", "2025-10-25 12:00", 2) == [
        "26 Oct 01:30 +0100 overlap",
        "27 Oct 01:30 +0000",
    ]


def test_nothing_is_made_up_for_a_day_that_never_was() -> None:
    assert runs("0 12 * * *", "Pacific/Apia", "2011-12-29 00:00", 2) == [
        "29 Dec 12:00 -1000",
        "31 Dec 12:00 +1400",
    ]


def test_a_fixed_job_runs_on_both_of_two_days_of_the_same_date() -> None:
    assert runs("0 12 * * *", "Pacific/Kwajalein", "1969-09-29 13:00") == [
        "30 Sep 12:00 +1100 overlap",
        "30 Sep 12:00 -1200 overlap",
        "01 Oct 12:00 -1200",
    ]


def test_the_second_half_of_an_overlap_is_seen_from_within_the_first() -> None:
    zone = ZoneInfo("America/New_York")
    after = datetime(2027, 11, 7, 1, 45, tzinfo=zone)
    fires = islice(Cron.parse("*/30 1 * * *").fires(after, zone), 2)
    assert [read(fire, zone.key) for fire in fires] == [
        "07 Nov 01:00 -0500 overlap",
        "07 Nov 01:30 -0500 overlap",
    ]


def test_a_fixed_job_is_over_in_the_second_half_of_an_overlap() -> None:
    zone = ZoneInfo("America/New_York")
    after = datetime(2027, 11, 7, 1, 15, fold=1, tzinfo=zone)
    first = next(Cron.parse("30 1 * * *").fires(after, zone))
    assert read(first, zone.key) == "08 Nov 01:30 -0500"


# --- which days ----------------------------------------------------------------------------------


def days(text: str, count: int) -> list[str]:
    """Return the days on which something runs, from Thursday, the 1st of January 2026, on."""
    fires = Cron.parse(text).fires(datetime(2025, 12, 31, 23, 59, tzinfo=UTC), ZoneInfo("UTC"))
    return [f"{fire.at:%a %d %b}" for fire in islice(fires, count)]


def test_day_of_month_or_day_of_week_is_enough() -> None:
    assert days("0 0 13 * fri", 4) == ["Fri 02 Jan", "Fri 09 Jan", "Tue 13 Jan", "Fri 16 Jan"]


def test_with_a_star_at_the_start_of_day_of_month_both_must_match() -> None:
    assert days("0 0 * * fri", 3) == ["Fri 02 Jan", "Fri 09 Jan", "Fri 16 Jan"]
    assert days("0 0 */2 * fri", 3) == ["Fri 09 Jan", "Fri 23 Jan", "Fri 13 Feb"]
    assert days("0 0 *,13 * fri", 2) == ["Fri 02 Jan", "Fri 09 Jan"]


def test_with_a_star_at_the_start_of_day_of_week_both_must_match() -> None:
    assert days("0 0 13 * *", 3) == ["Tue 13 Jan", "Fri 13 Feb", "Fri 13 Mar"]
    assert days("0 0 13 * */5", 3) == ["Fri 13 Feb", "Fri 13 Mar", "Sun 13 Sep"]


def test_a_star_that_is_not_at_the_start_changes_nothing() -> None:
    assert days("0 0 13,*/31 * fri", 4) == ["Thu 01 Jan", "Fri 02 Jan", "Fri 09 Jan", "Tue 13 Jan"]
    assert days("0 0 1,*/10 * 0-6", 2) == ["Thu 01 Jan", "Fri 02 Jan"]


def test_0_and_7_are_sunday() -> None:
    assert days("0 0 * * 0", 3) == days("0 0 * * 7", 3) == days("0 0 * * SUN", 3)
    assert days("0 0 * * 5-7", 3) == ["Fri 02 Jan", "Sat 03 Jan", "Sun 04 Jan"]
    assert days("0 0 * * */7", 1) == ["Sun 04 Jan"]


def test_names_can_be_in_ranges_and_lists() -> None:
    assert days("0 0 * jan-MAR,dec Mon,wed-FRI/2", 4) == [
        "Fri 02 Jan",
        "Mon 05 Jan",
        "Wed 07 Jan",
        "Fri 09 Jan",
    ]


def test_a_range_from_a_number_to_itself_is_that_number() -> None:
    assert days("0 0 5-5 * *", 2) == ["Mon 05 Jan", "Thu 05 Feb"]
    assert days("0 0 * * 5-5", 2) == ["Fri 02 Jan", "Fri 09 Jan"]
    assert days("0 0 1 7-7/3 *", 1) == ["Wed 01 Jul"]


def test_months_that_are_too_short_are_left_out() -> None:
    assert days("0 0 31 * *", 4) == ["Sat 31 Jan", "Tue 31 Mar", "Sun 31 May", "Fri 31 Jul"]


def test_a_day_of_month_that_never_comes_leaves_the_days_of_the_week() -> None:
    assert days("0 0 31 2 mon", 2) == ["Mon 02 Feb", "Mon 09 Feb"]


def test_the_29th_of_february_comes_in_leap_years() -> None:
    fires = Cron.parse("0 0 29 2 *").fires(datetime(2093, 1, 1, tzinfo=UTC), ZoneInfo("UTC"))
    assert [fire.at.year for fire in islice(fires, 3)] == [2096, 2104, 2108]


def test_a_step_wider_than_its_range_leaves_the_first() -> None:
    assert runs("*/90 12 * * *", "UTC", "2026-01-01 00:00", 2) == [
        "01 Jan 12:00 +0000",
        "02 Jan 12:00 +0000",
    ]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("@yearly", "01 Jan 00:00 +0000"),
        ("@annually", "01 Jan 00:00 +0000"),
        ("@monthly", "01 Jun 00:00 +0000"),
        ("@weekly", "24 May 00:00 +0000"),
        ("@daily", "22 May 00:00 +0000"),
        ("@midnight", "22 May 00:00 +0000"),
        ("@hourly", "21 May 10:00 +0000"),
        # the examples of crontab(5)
        ("5 0 * * *", "22 May 00:05 +0000"),
        ("15 14 1 * *", "01 Jun 14:15 +0000"),
        ("0 22 * * 1-5", "21 May 22:00 +0000"),
        ("23 0-23/2 * * *", "21 May 10:23 +0000"),
        ("5 4 * * sun", "24 May 04:05 +0000"),
        # blanks are where people leave them
        ("  5\t0   * * *\n", "22 May 00:05 +0000"),
    ],
)
def test_the_first_run_after_a_thursday_in_may(text: str, first: str) -> None:
    assert runs(text, "UTC", "2026-05-21 09:30", 1) == [first]


# --- what others did -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record", VECTORS["cron"], ids=lambda record: f"{record['zone']} {record['start']}"
)
def test_runs_what_debians_cron_has_run(record: dict[str, Any]) -> None:
    start = datetime.fromisoformat(record["start"])
    end = start + timedelta(minutes=record["minutes"])
    # Where cron ran a job for several minutes of a gap the record has the moment several times.
    assert {
        text: [f"{fire.at:%Y-%m-%d %H:%M}" for fire in until(end, text, start, record["zone"])]
        for text in record["runs"]
    } == {text: sorted(set(ran)) for text, ran in record["runs"].items()}


@pytest.mark.parametrize("text", VECTORS["crontab"]["taken"])
def test_takes_what_crontab_takes(text: str) -> None:
    assert Cron.parse(text).text == text


@pytest.mark.parametrize("text", VECTORS["crontab"]["refused"])
def test_refuses_what_crontab_refuses(text: str) -> None:
    with pytest.raises(CronError):
        Cron.parse(text)


@pytest.mark.parametrize("text", VECTORS["crontab"]["misread"])
def test_refuses_what_crontab_takes_and_cron_makes_nonsense_of(text: str) -> None:
    with pytest.raises(CronError):
        Cron.parse(text)


@pytest.mark.parametrize("record", VECTORS["systemd"], ids=lambda record: record["calendar"])
def test_agrees_with_systemd(record: dict[str, Any]) -> None:
    after = datetime.fromisoformat(record["base"])
    fires = Cron.parse(record["cron"]).fires(after, ZoneInfo(record["zone"]))
    found = [f"{fire.at:%Y-%m-%d %H:%M}" for fire in islice(fires, len(record["elapses"]))]
    assert found == record["elapses"]


# --- held against a walk through cron's main loop ------------------------------------------------


@cache
def clock(zone: str, start: datetime, minutes: int) -> list[tuple[datetime, datetime]]:
    """Return each minute, and the naive time that a clock in the zone shows then."""
    moments = [start + n * MINUTE for n in range(minutes)]
    return [(at, at.astimezone(ZoneInfo(zone)).replace(tzinfo=None, fold=0)) for at in moments]


def walk(job: Expression, zone: str, change: datetime) -> Iterator[Fire]:
    """Yield the runs around a change, as main() in cron.c comes by them.

    It wakes each minute. `shown` is its virtualTime: all jobs up to there have been run.
    """
    minutes = clock(zone, change - 30 * HOUR, 60 * 60)
    often = Counter(local for _, local in minutes)
    shown = minutes[0][1] - MINUTE
    for at, local in minutes:
        ahead = local - shown
        missed = [shown + n * MINUTE for n in range(1, ahead // MINUTE)]
        mark: Any = "overlap" if often[local] > 1 else ""
        if ahead == MINUTE or not -3 * HOUR < ahead <= 3 * HOUR:
            shown = local
            is_due = job.matches(local)
        elif ahead <= timedelta(0):
            is_due = job.is_wildcard and job.matches(local)
        else:
            shown = local
            is_due = job.matches(local)
            if not job.is_wildcard and any(map(job.matches, missed)):
                is_due, mark = True, "gap"
        if is_due:
            yield Fire(at, mark)


moments_near = st.timedeltas(-6 * HOUR, 6 * HOUR)


@relaxed
@given(nightly, st.sampled_from(CHANGES + NEW_CLOCKS), moments_near)
def test_runs_as_crons_main_loop_does(
    job: Expression, change: tuple[str, datetime], distance: timedelta
) -> None:
    zone, moment = change
    after, end = moment + distance, moment + 24 * HOUR
    expected = [fire for fire in walk(job, zone, moment) if after < fire.at <= end]
    assert until(end, job.text, after, zone) == expected


@pytest.mark.parametrize(("zone", "change"), CHANGES + NEW_CLOCKS)
def test_each_of_the_changes_is_one(zone: str, change: datetime) -> None:
    before, after = ((change - n * MINUTE).astimezone(ZoneInfo(zone)) for n in (1, 0))
    assert before.utcoffset() != after.utcoffset()


# --- held against other libraries ----------------------------------------------------------------
# They are given lists of numbers: what one makes of `5-5` and the other of `5-5/2` is not what cron
# does, and croniter is confused by a star that is not at the start.


@relaxed
@given(expressions, st.datetimes(datetime(1970, 1, 1), datetime(2090, 1, 1)))
def test_without_changes_of_the_clock_it_is_what_croniter_finds(
    job: Expression, start: datetime
) -> None:
    lists = " ".join(",".join(map(str, sorted(values))) for values in job.values)
    theirs = croniter(lists, start, datetime, day_or=not job.needs_both_days)
    ours = Cron.parse(job.text).fires(start.replace(tzinfo=UTC), ZoneInfo("UTC"))
    for fire in islice(ours, 5):
        assert fire == Fire(next(theirs).replace(tzinfo=UTC), "")


@relaxed
@given(nightly, st.sampled_from(CHANGES[:6]), st.timedeltas(-6 * HOUR, -3 * HOUR))
def test_across_a_change_of_the_clock_it_is_what_cronsim_finds(
    job: Expression, change: tuple[str, datetime], distance: timedelta
) -> None:
    # Not from within an overlap, where cronsim starts fixed jobs anew, and only for changes by an
    # hour and not at midnight: with others it misses runs. `*/99` is a star and the first value.
    lists = " ".join(
        ("*/99," if is_starred else "") + ",".join(map(str, sorted(values)))
        for values, is_starred in zip(job.values, job.starred, strict=True)
    )
    zone, moment = change
    theirs = CronSim(lists, (moment + distance).astimezone(ZoneInfo(zone)))
    for fire in until(moment + 24 * HOUR, job.text, moment + distance, zone):
        assert fire.at == next(theirs).astimezone(UTC)


# --- properties ----------------------------------------------------------------------------------

zones = st.timezone_keys(allow_prefix=False)
moments = st.datetimes(datetime(1970, 1, 2), datetime(2090, 1, 1), timezones=st.just(UTC))


@relaxed
@given(expressions, zones, moments)
def test_each_run_is_later_than_the_one_before(job: Expression, zone: str, after: datetime) -> None:
    times = [fire.at for fire in islice(Cron.parse(job.text).fires(after, ZoneInfo(zone)), 20)]
    assert times == sorted(set(times))
    assert after < times[0]


@relaxed
@given(expressions, zones, moments)
def test_each_run_is_at_a_time_that_matches_or_after_a_gap(
    job: Expression, zone: str, after: datetime
) -> None:
    for fire in islice(Cron.parse(job.text).fires(after, ZoneInfo(zone)), 20):
        local = fire.at.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
        assert fire.mark == "gap" or job.matches(local)


@relaxed
@given(nightly, st.sampled_from(CHANGES + NEW_CLOCKS), moments_near)
def test_from_each_run_on_the_rest_is_the_same(
    job: Expression, change: tuple[str, datetime], distance: timedelta
) -> None:
    zone, moment = change
    cron = Cron.parse(job.text)
    all_of_them = list(islice(cron.fires(moment + distance, ZoneInfo(zone)), 8))
    for n, fire in enumerate(all_of_them):
        rest = islice(cron.fires(fire.at, ZoneInfo(zone)), len(all_of_them) - n - 1)
        assert list(rest) == all_of_them[n + 1 :]


@relaxed
@given(nightly, st.sampled_from(CHANGES), moments_near, st.integers(-23, 23))
def test_the_zone_in_which_one_asks_does_not_matter(
    job: Expression, change: tuple[str, datetime], distance: timedelta, hours: int
) -> None:
    zone, moment = change
    after = moment + distance
    elsewhere = after.astimezone(timezone(hours * HOUR))
    first, second = (
        list(islice(Cron.parse(job.text).fires(asked, ZoneInfo(zone)), 5))
        for asked in (after, elsewhere)
    )
    assert first == second


@pytest.mark.parametrize(("zone", "change"), CHANGES)
def test_a_fixed_job_runs_exactly_once_a_day_whatever_its_time(zone: str, change: datetime) -> None:
    noon = change.astimezone(ZoneInfo(zone)).replace(hour=12, minute=1)
    start, end = noon - timedelta(days=2), noon + timedelta(days=1)  # on the clock, so whole days
    for hour, minute in product(range(24), range(0, 60, 5)):
        fires = until(end, f"{minute} {hour} * * *", start, zone)
        assert len(fires) == 3


def test_a_year_of_runs_can_be_asked_for() -> None:
    start, end = datetime(2026, 12, 31, 23, tzinfo=UTC), datetime(2027, 12, 31, 23, tzinfo=UTC)
    fires = until(end, "*/20 * * * *", start, "Europe/Berlin")
    assert len(fires) == 365 * 24 * 3
    assert {later.at - fire.at for fire, later in pairwise(fires)} == {20 * MINUTE}


# --- zones and the ends of time ------------------------------------------------------------------


def test_a_zone_can_come_from_a_file() -> None:
    with files("tzdata.zoneinfo.America").joinpath("New_York").open("rb") as file:
        zone = ZoneInfo.from_file(file)
    after = datetime(2027, 11, 7, tzinfo=UTC)
    first = next(Cron.parse("30 1 * * *").fires(after, zone))
    assert first == Fire(datetime(2027, 11, 7, 5, 30, tzinfo=UTC), "overlap")


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Pago_Pago"])
def test_runs_end_before_time_does(zone: str) -> None:
    cron = Cron.parse("59 23 31 12 *")
    fires = list(cron.fires(datetime(9990, 6, 1, tzinfo=UTC), ZoneInfo(zone)))
    assert len(fires) == 9
    assert list(cron.fires(datetime.max.replace(tzinfo=UTC), ZoneInfo(zone))) == []


def test_the_last_overlap_of_all_has_a_second_half() -> None:
    assert runs("*/30 1 1 11 *", "America/New_York", "9998-10-31 12:00", 9) == [
        "01 Nov 01:00 -0400 overlap",
        "01 Nov 01:30 -0400 overlap",
        "01 Nov 01:00 -0500 overlap",
        "01 Nov 01:30 -0500 overlap",
    ]


# --- what is refused -----------------------------------------------------------------------------


def complaint(text: str) -> str:
    """Return what is said against an expression: nothing if it is taken."""
    try:
        Cron.parse(text)
    except CronError as error:
        return str(error)
    return ""


FIVE: Final = "write five fields (minute, hour, day of month, month, day of week), not"
NICKNAMES: Final = "@yearly, @annually, @monthly, @weekly, @daily, @midnight, @hourly"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f"{FIVE} 0; cron knows no seconds and no years"),
        ("0 5 * *", f"{FIVE} 4; cron knows no seconds and no years"),
        ("0 0 5 * * *", f"{FIVE} 6; cron knows no seconds and no years"),
        ("0 0 5 * * * 2027", f"{FIVE} 7; cron knows no seconds and no years"),
        ("@reboot", "@reboot is no time; write a one_shot task with a delay instead"),
        ("@fortnightly", f"'@fortnightly' is not known; write one of {NICKNAMES}"),
        ("@Daily", f"'@Daily' is not known; write one of {NICKNAMES}"),
        ("60 * * * *", "minute: '60' is no minute; write a number from 0 to 59"),
        ("R * * * *", "minute: 'R' is no minute; write a number from 0 to 59"),
        ("H * * * *", "minute: 'H' is no minute; write a number from 0 to 59"),
        ("5/15 * * * *", "minute: a step needs a range; write 5-59/15"),
        ("*/0 * * * *", "minute: a step of 0 leads nowhere; write a step from 1"),
        (
            "1,,2 * * * *",
            "minute: '' means nothing to cron; write *, a number, a range such as 0-59, "
            "or a step such as */2",
        ),
        ("0 24 * * *", "hour: '24' is no hour; write a number from 0 to 23"),
        ("0 22-2 * * *", "hour: the range 22-2 goes backwards; write 22-23,0-2"),
        (
            "0 0 L * *",
            "day of month: 'L' is no day of month; write a number from 1 to 31",
        ),
        (
            "0 0 ? * *",
            "day of month: '?' means nothing to cron; write *, a number, a range such as 1-31, "
            "or a step such as */2",
        ),
        ("0 0 15W * *", "day of month: '15W' is no day of month; write a number from 1 to 31"),
        (
            "0 0 31 2 *",
            "day of month: 31 is in none of its months, so it would never run; "
            "write a day up to 29",
        ),
        (
            "0 0 31 4,6 *",
            "day of month: 31 is in none of its months, so it would never run; "
            "write a day up to 30",
        ),
        (
            "0 0 30 feb */2",
            "day of month: 30 is in none of its months, so it would never run; "
            "write a day up to 29",
        ),
        (
            "0 0 1 january *",
            "month: 'january' is no month; write a number from 1 to 12 or one of "
            "jan, feb, mar, apr, may, jun, jul, aug, sep, oct, nov, dec",
        ),
        ("0 0 1 nov-feb *", "month: the range nov-feb goes backwards; write 11-12,1-2"),
        (
            "0 0 * * 8",
            "day of week: '8' is no day of week; write a number from 0 to 7 or one of "
            "sun, mon, tue, wed, thu, fri, sat",
        ),
        ("0 0 * * fri-sun", "day of week: the range fri-sun goes backwards; write 5-7,0"),
        (
            "0 0 * * mon#2",
            "day of week: 'mon#2' means nothing to cron; write *, a number, a range such as 0-7, "
            "or a step such as */2",
        ),
        (
            "0 0 * * \N{ARABIC-INDIC DIGIT FIVE}",
            "day of week: '\N{ARABIC-INDIC DIGIT FIVE}' means nothing to cron; "
            "write *, a number, a range such as 0-7, or a step such as */2",
        ),
        (
            "0\N{NO-BREAK SPACE}0 * * * *",
            "minute: '0\\xa00' means nothing to cron; write *, a number, a range such as 0-59, "
            "or a step such as */2",
        ),
        (
            f"{'9' * 99} * * * *",
            f"minute: '{'9' * 19}…' is no minute; write a number from 0 to 59",
        ),
        (
            "0," * 1000 + "0 * * * *",
            f"a cron expression has at most {MAX_LENGTH} characters; write a shorter one",
        ),
    ],
)
def test_says_what_to_write_instead(text: str, message: str) -> None:
    assert complaint(text) == message


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("5/15 * * * *", "5/15"),
        ("0 22-2 * * *", "22-2"),
        ("0 0 1 nov-feb *", "nov-feb"),
        ("0 0 * * fri-sun", "fri-sun"),
        ("0 0 * * sat-mon", "sat-mon"),
    ],
)
def test_what_it_says_to_write_can_be_written(text: str, wrong: str) -> None:
    advice = complaint(text).rpartition(" ")[2]
    assert complaint(text.replace(wrong, advice)) == ""


@relaxed
@given(st.one_of(st.text(), st.text("0123456789*/-,@LW?#HR ajnsu\t\n", max_size=20)))
def test_whatever_is_written_is_taken_or_refused_in_one_printable_line(text: str) -> None:
    assert complaint(text).isprintable()


@given(expressions)
def test_two_are_equal_if_they_are_written_alike(job: Expression) -> None:
    assert Cron.parse(job.text) == Cron.parse(job.text)
    assert hash(Cron.parse(job.text)) == hash(Cron.parse(job.text))
    assert Cron.parse(job.text) != Cron.parse(f" {job.text}")
    assert repr(Cron.parse(job.text)) == f"Cron(text={job.text!r})"
