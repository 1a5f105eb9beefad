"""What becomes of each occurrence, whatever becomes of the daemon and of the clock."""

import gc
import re
import tracemalloc
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from clarad.automation.tasks import agenda as agenda_module
from clarad.automation.tasks import schedule
from clarad.automation.tasks.agenda import GRACE, Agenda, Decision, Entry
from clarad.automation.tasks.schedule import Occurrence
from clarad.automation.tasks.task import Task
from tests.schedules import (
    INSTANT,
    Rhythm,
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

NOON: Final = utc("2027-01-01T12:00")
LONG_AGO: Final = utc("1970-01-01")

RUNS: Final = "runs"
LATE: Final = "runs late"


class Verdict(NamedTuple):
    """What is to become of an occurrence: one of the two above, or the reason why it is skipped."""

    nominal_at: datetime
    what: str


def verdict(decision: Decision) -> Verdict:
    runs = LATE if decision.is_late else RUNS
    return Verdict(decision.occurrence.nominal_at, decision.skipped or runs)


def verdicts(decisions: Iterable[Decision]) -> list[Verdict]:
    return [verdict(decision) for decision in decisions]


def agenda_of(
    *tasks: Task, up_since: datetime = NOON, anchor: datetime = NOON, cursor: datetime | None = None
) -> Agenda:
    """Return an agenda; what was due up to `cursor` is decided on, else all before `up_since`."""
    agenda = Agenda(up_since)
    for task in tasks:
        agenda.put(Entry(task, anchor=anchor, cursor=cursor or up_since - INSTANT))
    return agenda


def take_all(agenda: Agenda, now: datetime, limit: int = 1000) -> list[Verdict]:
    """Decide on all that is due by `now`, as many at one go as `limit` says."""
    found = verdicts(agenda.decide(now, limit))
    while is_due(agenda, now):
        found += verdicts(agenda.decide(now, limit))
    return found


def is_due(agenda: Agenda, now: datetime) -> bool:
    return agenda.next_due_at is not None and agenda.next_due_at <= now


def rewind(agenda: Agenda, now: datetime) -> None:
    """Take note that the clock was set back to `now`, as the scheduler does."""
    agenda.rewind(now)
    for entry in list(agenda):
        entry.rewind(now)
        agenda.put(entry)


def at(text: str, what: str) -> Verdict:
    """Return what is to become of what is due at a time of the first of January."""
    return Verdict(utc(f"2027-01-01T{text}"), what)


# --- while the daemon is there -------------------------------------------------------------------


def test_nothing_is_decided_before_it_is_due() -> None:
    agenda = agenda_of(every(60), up_since=NOON + INSTANT)
    assert agenda.next_due_at == NOON + seconds(60)
    assert agenda.decide(NOON + seconds(60) - INSTANT, 1000) == []


def test_what_is_due_runs_and_is_not_late() -> None:
    agenda = agenda_of(every(60))
    assert take_all(agenda, NOON) == [at("12:00", RUNS)]
    assert take_all(agenda, NOON + seconds(60)) == [at("12:01", RUNS)]


def test_what_is_decided_is_decided_once() -> None:
    agenda = agenda_of(every(60))
    assert take_all(agenda, NOON) == [at("12:00", RUNS)]
    assert take_all(agenda, NOON) == []
    assert agenda.next_due_at == NOON + seconds(60)


def test_a_decision_names_the_task_and_the_mark_of_its_occurrence() -> None:
    task = by_cron("30 2 * * *", "Europe/Berlin")
    agenda = agenda_of(task, up_since=utc("2027-03-28T00:59"))
    [decision] = agenda.decide(utc("2027-03-28T01:00"), 1000)
    assert decision.entry.task is task
    assert decision.occurrence == Occurrence(utc("2027-03-28T01:00"), "gap")


def test_all_tasks_that_are_due_at_the_same_time_are_taken() -> None:
    tasks = [every(60, f"task {n}") for n in range(1000)]
    agenda = agenda_of(*tasks)
    decisions = agenda.decide(NOON, 1000)
    assert sorted(decision.entry.task.name for decision in decisions) == sorted(
        task.name for task in tasks
    )
    assert {decision.skipped for decision in decisions} == {None}
    assert agenda.next_due_at == NOON + seconds(60)


def test_tasks_that_are_due_earlier_are_taken_earlier() -> None:
    agenda = agenda_of(every(3, "slow"), every(2, "quick"), up_since=NOON + INSTANT)
    decisions = agenda.decide(NOON + seconds(4), 1000)
    assert [decision.entry.task.name for decision in decisions] == ["quick", "quick", "slow"]


def test_what_does_not_fit_into_one_look_is_there_at_the_next() -> None:
    agenda = agenda_of(every(1))
    now = NOON + seconds(9)
    looks = [verdicts(agenda.decide(now, 4)) for _ in range(4)]
    assert [len(look) for look in looks] == [4, 4, 2, 0]
    in_all = [one for look in looks for one in look]
    assert in_all == [Verdict(NOON + seconds(n), RUNS) for n in range(10)]


def test_no_task_is_kept_waiting_by_one_that_is_always_due() -> None:
    agenda = agenda_of(every(0.001, "restless"), every(60, "calm"))
    now = NOON + seconds(1)
    taken: list[str] = []
    while "calm" not in taken:
        taken += [decision.entry.task.name for decision in agenda.decide(now, 100)]
    assert len(taken) <= 1100


def test_a_one_shot_runs_once() -> None:
    agenda = agenda_of(once(NOON + seconds(5)))
    assert take_all(agenda, NOON + seconds(5)) == [at("12:00:05", RUNS)]
    assert agenda.next_due_at is None
    assert take_all(agenda, NOON + timedelta(days=1000)) == []


def test_a_look_that_is_a_minute_late_is_in_time() -> None:
    agenda = agenda_of(every(3600, catch_up="none"))
    assert take_all(agenda, NOON + GRACE) == [at("12:00", RUNS)]


def test_the_jitter_puts_off_when_it_is_due_and_not_what_it_is_called() -> None:
    task = every(3600, jitter=600)
    due_at = schedule.due_at(task, NOON)
    agenda = agenda_of(task)
    assert agenda.next_due_at == due_at
    assert take_all(agenda, due_at - INSTANT) == []
    assert take_all(agenda, due_at) == [at("12:00", RUNS)]


@pytest.mark.parametrize("limit", [1, 1000])
def test_more_jitter_than_is_between_two_occurrences_loses_none_of_them(limit: int) -> None:
    task = every(10, jitter=3600)
    agenda = agenda_of(task)
    found: list[Verdict] = []
    for second in range(2 * 3600):
        found += take_all(agenda, NOON + seconds(second), limit)
    assert found == [Verdict(NOON + seconds(10 * n), RUNS) for n in range(len(found))]
    assert len(found) > 300


# --- what was missed while the daemon was down ---------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "start", "expected"),
    [
        ({}, "06:30", ["missed", "missed", "missed", LATE]),
        ({}, "06:00", ["missed", "missed", "missed", RUNS]),
        ({"catch_up": "none"}, "06:30", ["missed", "missed", "missed", "missed"]),
        ({"catch_up": "all"}, "06:30", [LATE, LATE, LATE, LATE]),
        (
            {"catch_up": "all", "catch_up_window": 5400},
            "06:30",
            ["missed", "missed", LATE, LATE],
        ),
        ({"catch_up_window": 5400}, "06:30", ["missed", "missed", "missed", LATE]),
        ({"catch_up_window": 1799}, "06:30", ["missed", "missed", "missed", "missed"]),
        ({"enabled": False}, "04:30", ["disabled", "disabled"]),
    ],
)
def test_after_a_night_catch_up_says_what_becomes_of_each_hour(
    keys: dict[str, Any], start: str, expected: list[str]
) -> None:
    """The task is due each hour, and the daemon was down from after two o'clock until `start`."""
    midnight, two, up_since = utc("2027-01-01"), utc("2027-01-01T02:00"), utc(f"2027-01-01T{start}")
    agenda = agenda_of(every(3600, **keys), up_since=up_since, anchor=midnight, cursor=two)
    assert take_all(agenda, up_since) == [
        at(f"{hour:02}:00", what) for hour, what in enumerate(expected, 3)
    ]


def test_a_window_does_not_matter_to_what_is_in_time() -> None:
    agenda = agenda_of(every(3600, catch_up_window=0))
    assert take_all(agenda, NOON + seconds(30)) == [at("12:00", RUNS)]


def test_what_could_still_be_made_up_for_is_missed_once_its_window_has_passed() -> None:
    start = NOON + timedelta(minutes=10, seconds=30)
    agenda = agenda_of(every(60, catch_up_window=3600), up_since=start, cursor=NOON - INSTANT)
    begun = verdicts(agenda.decide(start, 5))
    rest = take_all(agenda, NOON + timedelta(hours=3, seconds=90))
    assert begun + rest == [
        *(Verdict(NOON + timedelta(minutes=n), "missed") for n in range(181)),
        at("15:01", RUNS),
    ]


def test_what_was_missed_by_a_second_was_missed() -> None:
    start = NOON + seconds(1)
    agenda = agenda_of(every(3600, catch_up="none"), up_since=start, cursor=NOON - INSTANT)
    assert take_all(agenda, start) == [at("12:00", "missed")]


@pytest.mark.parametrize(("catch_up", "expected"), [("one", LATE), ("none", "missed")])
def test_a_one_shot_whose_time_has_passed_counts_as_missed(catch_up: str, expected: str) -> None:
    long_ago = NOON - timedelta(days=99)
    agenda = agenda_of(once(long_ago, catch_up=catch_up), cursor=LONG_AGO)
    assert take_all(agenda, NOON) == [Verdict(long_ago, expected)]


def test_what_is_missed_while_the_machine_sleeps_is_missed() -> None:
    agenda = agenda_of(every(3600))
    assert take_all(agenda, NOON) == [at("12:00", RUNS)]
    assert take_all(agenda, NOON + timedelta(hours=3, minutes=30)) == [
        at("13:00", "missed"),
        at("14:00", "missed"),
        at("15:00", LATE),
    ]


def test_what_is_just_due_when_the_machine_wakes_up_is_in_time() -> None:
    agenda = agenda_of(every(3600))
    assert take_all(agenda, NOON + timedelta(hours=2, seconds=59)) == [
        at("12:00", "missed"),
        at("13:00", "missed"),
        at("14:00", RUNS),
    ]


# --- switched off --------------------------------------------------------------------------------


def test_a_disabled_task_says_so_each_time() -> None:
    agenda = agenda_of(every(60, enabled=False))
    assert take_all(agenda, NOON + seconds(60)) == [
        at("12:00", "disabled"),
        at("12:01", "disabled"),
    ]


def test_a_paused_task_says_so_until_it_goes_on() -> None:
    agenda = agenda_of(every(60))
    entry = agenda.find("task")
    assert entry is not None
    entry.is_paused = True
    assert take_all(agenda, NOON) == [at("12:00", "paused")]
    entry.is_paused = False
    assert take_all(agenda, NOON + seconds(60)) == [at("12:01", RUNS)]


def test_what_could_still_be_made_up_for_is_missed_if_the_task_is_paused() -> None:
    start = NOON + timedelta(minutes=5, seconds=30)
    agenda = agenda_of(every(60), up_since=start, cursor=NOON - INSTANT)
    begun = verdicts(agenda.decide(start, 3))
    [entry] = agenda
    entry.is_paused = True
    assert begun + take_all(agenda, start) == [
        at("12:00", "missed"),
        at("12:01", "missed"),
        at("12:02", "missed"),
        at("12:03", "paused"),
        at("12:04", "paused"),
        at("12:05", "paused"),
    ]


# --- the clock is set ----------------------------------------------------------------------------


def test_what_a_clock_jumped_over_is_missed() -> None:
    agenda = agenda_of(every(3600, catch_up="none"))
    assert take_all(agenda, NOON + timedelta(hours=1, minutes=30)) == [
        at("12:00", "missed"),
        at("13:00", "missed"),
    ]


def test_what_a_clock_jumped_over_is_looked_at_again_when_its_time_comes_after_all() -> None:
    agenda = agenda_of(every(3600, catch_up="none"))
    take_all(agenda, NOON + timedelta(hours=1, minutes=30))
    rewind(agenda, NOON + timedelta(minutes=30))
    assert take_all(agenda, NOON + timedelta(minutes=59)) == []
    assert take_all(agenda, NOON + timedelta(hours=1)) == [at("13:00", RUNS)]


def test_what_is_put_off_by_jitter_is_not_lost_when_the_clock_is_set_back() -> None:
    task = every(3600, jitter=600)
    due_at = schedule.due_at(task, NOON)
    assert due_at > NOON + seconds(10)
    agenda = agenda_of(task)
    assert take_all(agenda, NOON + seconds(9)) == []
    rewind(agenda, NOON + seconds(5))
    assert take_all(agenda, due_at) == [at("12:00", RUNS)]


def test_what_was_missed_is_not_lost_when_the_clock_is_set_back_half_way_through_it() -> None:
    agenda = agenda_of(every(60))
    now = NOON + timedelta(minutes=10, seconds=30)
    begun = verdicts(agenda.decide(now, 3))
    rewind(agenda, now - seconds(5))
    rest = take_all(agenda, now)
    assert [each.nominal_at for each in begun + rest] == [
        NOON + timedelta(minutes=n) for n in range(11)
    ]


def test_a_daemon_whose_clock_was_ahead_when_it_started_is_there_all_the_same() -> None:
    agenda = agenda_of(every(3600, catch_up="none"), up_since=NOON + timedelta(hours=2, minutes=30))
    rewind(agenda, NOON + timedelta(minutes=30))
    assert take_all(agenda, NOON + timedelta(minutes=30)) == []
    assert take_all(agenda, NOON + timedelta(hours=1)) == [at("13:00", RUNS)]


# --- tasks come and go ---------------------------------------------------------------------------


def test_a_task_that_is_removed_is_not_taken() -> None:
    agenda = agenda_of(every(60), every(90, "other"), up_since=NOON + INSTANT)
    agenda.remove("task")
    assert agenda.find("task") is None
    assert [entry.task.name for entry in agenda] == ["other"]
    assert agenda.next_due_at == NOON + seconds(90)
    decisions = agenda.decide(NOON + timedelta(minutes=3), 1000)
    assert {decision.entry.task.name for decision in decisions} == {"other"}


def test_a_task_that_comes_back_is_taken_once() -> None:
    agenda = agenda_of(every(60))
    agenda.remove("task")
    assert agenda.next_due_at is None
    agenda.put(Entry(every(60), anchor=NOON, cursor=NOON - INSTANT))
    assert take_all(agenda, NOON) == [at("12:00", RUNS)]


def test_a_task_with_another_schedule_is_due_by_that_one() -> None:
    agenda = agenda_of(every(60), up_since=NOON + INSTANT)
    agenda.put(Entry(every(90), anchor=NOON, cursor=NOON))
    assert agenda.next_due_at == NOON + seconds(90)
    assert take_all(agenda, NOON + seconds(100)) == [at("12:01:30", RUNS)]


def test_a_task_that_changed_in_another_way_keeps_its_place() -> None:
    agenda = agenda_of(every(60))
    entry = agenda.find("task")
    assert entry is not None
    take_all(agenda, NOON)
    entry.replace(every(60, enabled=False, command="false"))
    agenda.put(entry)
    assert take_all(agenda, NOON + seconds(60)) == [at("12:01", "disabled")]


@pytest.mark.parametrize(("before", "after"), [(0, 600), (600, 0)])
def test_a_task_that_gets_another_jitter_is_due_by_that_one(before: float, after: float) -> None:
    agenda = agenda_of(every(3600, jitter=before))
    entry = agenda.find("task")
    assert entry is not None
    entry.replace(every(3600, jitter=after))
    agenda.put(entry)
    due_at = schedule.due_at(every(3600, jitter=after), NOON)
    assert agenda.next_due_at == due_at
    assert take_all(agenda, due_at - INSTANT) == []
    assert take_all(agenda, due_at) == [at("12:00", RUNS)]


# --- too much was missed -------------------------------------------------------------------------

LISTED: Final = 20

_UNLISTED: Final = re.compile(
    r"(missed|disabled|paused), as was every occurrence from here to (.+)", re.DOTALL
)


def listed_until(found: Verdict) -> datetime | None:
    """Return until when a verdict is one on all that follows, if it is."""
    match = _UNLISTED.fullmatch(found.what)
    return None if match is None else datetime.fromisoformat(match[2])


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too much is little."""
    monkeypatch.setattr(agenda_module, "MAX_LISTED", LISTED)


@pytest.mark.usefixtures("few")
def test_too_much_to_be_listed_is_one_row_that_says_until_when() -> None:
    start = NOON + timedelta(days=1, seconds=30)
    agenda = agenda_of(every(60, catch_up="none"), up_since=start, cursor=NOON - INSTANT)
    *listed, unlisted, last = take_all(agenda, start)
    assert listed == [Verdict(NOON + timedelta(minutes=n), "missed") for n in range(LISTED)]
    assert unlisted == at(
        "12:20", "missed, as was every occurrence from here to 2027-01-02 12:00:00+00:00"
    )
    assert last == Verdict(NOON + timedelta(days=1), "missed")


@pytest.mark.usefixtures("few")
def test_exactly_as_much_as_is_listed_is_listed() -> None:
    start = NOON + timedelta(minutes=LISTED, seconds=30)
    agenda = agenda_of(every(60, catch_up="none"), up_since=start, cursor=NOON - INSTANT)
    found = take_all(agenda, start)
    assert found == [Verdict(NOON + timedelta(minutes=n), "missed") for n in range(LISTED + 1)]


@pytest.mark.usefixtures("few")
def test_what_comes_due_a_few_at_a_time_is_listed_for_ever() -> None:
    agenda = agenda_of(every(60, enabled=False))
    looks = [take_all(agenda, NOON + timedelta(minutes=n)) for n in range(4, 100, 5)]
    found = [verdict for look in looks for verdict in look]
    assert found == [Verdict(NOON + timedelta(minutes=n), "disabled") for n in range(100)]


@pytest.mark.usefixtures("few")
def test_what_is_in_time_runs_though_too_much_was_missed_before_it() -> None:
    agenda = agenda_of(every(10))
    found = take_all(agenda, NOON + timedelta(hours=1))
    assert [each for each in found if each.what in (RUNS, LATE)] == [
        Verdict(NOON + timedelta(minutes=59, seconds=n), RUNS) for n in range(0, 70, 10)
    ]


@pytest.mark.usefixtures("few")
def test_what_is_within_the_window_is_made_up_for_though_too_much_was_missed_before_it() -> None:
    start = NOON + timedelta(hours=2, seconds=30)
    task = every(60, catch_up="all", catch_up_window=1800)
    found = take_all(agenda_of(task, up_since=start, cursor=NOON - INSTANT), start)
    assert [each for each in found if each.what in (RUNS, LATE)] == [
        Verdict(NOON + timedelta(minutes=n), LATE) for n in range(91, 121)
    ]


@pytest.mark.usefixtures("few")
def test_what_is_not_due_yet_is_not_skipped_with_what_was_missed() -> None:
    task = every(60, jitter=3600, catch_up="none")
    start = NOON + timedelta(hours=10)
    agenda = agenda_of(task, up_since=start, cursor=NOON - INSTANT)
    found = take_all(agenda, start)
    following = Occurrence(found[-1].nominal_at + seconds(60))
    assert following.nominal_at <= start < schedule.due_at(task, following.nominal_at)
    assert [entry.upcoming for entry in agenda] == [following]
    assert all(schedule.due_at(task, each.nominal_at) <= start for each in found)


def test_ten_thousand_occurrences_are_listed() -> None:
    start = NOON + seconds(20_000)
    agenda = agenda_of(every(1, catch_up="none"), up_since=start, cursor=NOON - INSTANT)
    *listed, unlisted, last = take_all(agenda, start)
    assert listed == [Verdict(NOON + seconds(n), "missed") for n in range(10_000)]
    assert unlisted.nominal_at == NOON + seconds(10_000)
    assert listed_until(unlisted) == start
    assert last == Verdict(start, RUNS)


# --- what it costs -------------------------------------------------------------------------------


def memory() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@contextmanager
def memory_is_traced() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def test_ten_thousand_tasks_cost_nothing_while_none_is_due() -> None:
    agenda = agenda_of(*(every(3600 + n, f"task {n}") for n in range(10_000)))
    take_all(agenda, NOON)
    with at_most(20):
        assert agenda.next_due_at == NOON + seconds(3600)
        assert agenda.decide(NOON + seconds(3599), 200) == []


def test_one_of_ten_thousand_tasks_costs_what_it_would_cost_alone() -> None:
    agenda = agenda_of(*(every(3600 + n, f"task {n}") for n in range(10_000)))
    take_all(agenda, NOON)
    with at_most(100):
        [decision] = agenda.decide(NOON + seconds(3600), 200)
    assert decision.entry.task.name == "task 0"


def test_ten_thousand_tasks_are_taken_in_and_taken_with_few_calls_each() -> None:
    tasks = [every(3600 + n, f"task {n}") for n in range(10_000)]
    with at_most(10_000 * 50):
        agenda = agenda_of(*tasks)
        assert len(take_all(agenda, NOON)) == 10_000


def test_taking_the_same_tasks_in_again_and_again_needs_no_more_memory() -> None:
    agenda = agenda_of(*(every(3600, f"task {n}") for n in range(100)))
    with memory_is_traced():
        before = memory()
        for _ in range(100):
            for entry in list(agenda):
                agenda.put(entry)
        assert memory() - before < 200_000


def test_changing_the_schedule_of_a_task_again_and_again_needs_no_more_memory() -> None:
    agenda = agenda_of()
    with memory_is_traced():
        before = memory()
        for n in range(5000):
            agenda.put(Entry(every(1_000_000 + n), anchor=NOON, cursor=NOON))
        agenda.remove("task")
        assert memory() - before < 200_000


# --- whatever happens ----------------------------------------------------------------------------


def expected(
    task: Task,
    due: Sequence[Occurrence],
    *,
    now: datetime,
    up_since: datetime,
    is_paused: bool = False,
) -> list[Verdict]:
    """Return what is promised for the occurrences that are due, when nobody has looked before."""
    found = []
    for occurrence in due:
        due_at = schedule.due_at(task, occurrence.nominal_at)
        age = now - occurrence.nominal_at
        if not task.enabled:
            what = "disabled"
        elif is_paused:
            what = "paused"
        elif due_at >= up_since and now - due_at <= GRACE:
            what = RUNS
        elif task.catch_up_window is not None and age.total_seconds() > task.catch_up_window:
            what = "missed"
        elif task.catch_up == "all" or (task.catch_up == "one" and occurrence is due[-1]):
            what = LATE
        else:
            what = "missed"
        found.append(Verdict(occurrence.nominal_at, what))
    return found


def due_by(task: Task, now: datetime, *, after: datetime, anchor: datetime) -> list[Occurrence]:
    return [
        occurrence
        for occurrence in between(task, after, now, anchor)
        if schedule.due_at(task, occurrence.nominal_at) <= now
    ]


def merged(found: Sequence[Verdict], due: Sequence[Occurrence]) -> list[Verdict]:
    """Give each occurrence that was skipped with others in one row a verdict of its own."""
    own = {each.nominal_at: each for each in found}
    merged = []
    until, reason = LONG_AGO, ""
    for nominal_at in sorted({*own, *(occurrence.nominal_at for occurrence in due)}):
        each = own.get(nominal_at)
        if each is not None and (last := listed_until(each)) is not None:
            until, reason = last, each.what.partition(",")[0]
            each = None
        if each is None and nominal_at < until:
            each = Verdict(nominal_at, reason)
        if each is not None:
            merged.append(each)
    return merged


class Situation(NamedTuple):
    """The daemon starts, and is there for a while before it looks."""

    task: Task
    anchor: datetime
    cursor: datetime
    up_since: datetime
    now: datetime
    is_paused: bool

    @property
    def agenda(self) -> Agenda:
        agenda = Agenda(self.up_since)
        entry = Entry(self.task, anchor=self.anchor, cursor=self.cursor, is_paused=self.is_paused)
        agenda.put(entry)
        return agenda

    @property
    def due(self) -> list[Occurrence]:
        return due_by(self.task, self.now, after=self.cursor, anchor=self.anchor)


@st.composite
def situations(draw: st.DrawFn, longest: float = 40) -> Situation:
    rhythm = draw(rhythms)
    anchor = draw(starts)
    cursor = anchor + seconds(draw(st.floats(-3, 3)) * rhythm.spacing)
    up_since = cursor + seconds(draw(st.floats(0, longest)) * rhythm.spacing)
    while_there = (
        st.just(0.0) | st.floats(0, 100) | st.floats(0, 3).map(lambda share: share * rhythm.spacing)
    )
    now = up_since + min(seconds(draw(while_there)), seconds(40 * rhythm.spacing))
    task = draw(tasks(rhythm))
    return Situation(task, anchor, cursor, up_since, now, draw(st.booleans()))


limits = st.sampled_from([1, 2, 3, 7, 1000])


@relaxed
@given(situations(), limits)
def test_each_occurrence_gets_the_decision_that_is_promised(
    situation: Situation, limit: int
) -> None:
    found = take_all(situation.agenda, situation.now, limit)
    assert found == expected(
        situation.task,
        situation.due,
        now=situation.now,
        up_since=situation.up_since,
        is_paused=situation.is_paused,
    )


@relaxed
@given(situations(), limits)
def test_what_comes_next_is_what_is_looked_at_next(situation: Situation, limit: int) -> None:
    agenda = situation.agenda
    take_all(agenda, situation.now, limit)
    [entry] = agenda
    after = situation.due[-1].nominal_at if situation.due else situation.cursor
    following = next(schedule.occurrences(situation.task, after=after, anchor=situation.anchor))
    assert entry.upcoming == following
    assert agenda.next_due_at == schedule.due_at(situation.task, following.nominal_at)
    assert agenda.next_due_at > situation.now


@pytest.mark.usefixtures("few")
@settings(relaxed, suppress_health_check=[*HealthCheck])
@given(situations(longest=150), limits)
def test_however_much_was_missed_what_is_to_run_runs_and_all_is_accounted_for(
    situation: Situation, limit: int
) -> None:
    found = take_all(situation.agenda, situation.now, limit)
    assert merged(found, situation.due) == expected(
        situation.task,
        situation.due,
        now=situation.now,
        up_since=situation.up_since,
        is_paused=situation.is_paused,
    )


@relaxed
@given(st.lists(rhythms.flatmap(tasks), min_size=2, max_size=6), starts, st.floats(0, 9), limits)
def test_of_many_tasks_each_is_treated_as_if_it_were_alone(
    crowd: list[Task], start: datetime, hours: float, limit: int
) -> None:
    named = [msgspec.structs.replace(task, name=f"task {n}") for n, task in enumerate(crowd)]
    missed = {task.name: min(hours * 3600, 40 * (task.interval or 3600)) for task in named}
    agenda = Agenda(start)
    for task in named:
        cursor = start - seconds(missed[task.name])
        agenda.put(Entry(task, anchor=cursor, cursor=cursor))
    found: dict[str, list[Verdict]] = {task.name: [] for task in named}
    while is_due(agenda, start):
        for decision in agenda.decide(start, limit):
            found[decision.entry.task.name].append(verdict(decision))
    for task in named:
        cursor = start - seconds(missed[task.name])
        due = due_by(task, start, after=cursor, anchor=cursor)
        assert found[task.name] == expected(task, due, now=start, up_since=start)


class TasksLife(RuleBasedStateMachine):
    """A daemon comes and goes and is killed, its clock is set, and its task is changed.

    What the machine keeps of decisions is what the store does: a row for each nominal time, which
    only what is down as missed gives up, to a run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(agenda_module, "MAX_LISTED", LISTED)
        self.rows: dict[datetime, str] = {}
        self.unlisted: list[tuple[datetime, datetime]] = []
        self.runs: Counter[datetime] = Counter()
        self.is_paused = False
        self.is_half_way = False

    def teardown(self) -> None:
        self.patch.undo()

    @initialize(start=starts, rhythm=rhythms, data=st.data())
    def the_daemon_starts_for_the_first_time(
        self, start: datetime, rhythm: Rhythm, data: st.DataObject
    ) -> None:
        self.spacing = rhythm.spacing
        self.task = data.draw(tasks(rhythm))
        self.beginning = self.anchor = self.now = start
        self.accounted_until = start - INSTANT
        self.start()

    def start(self) -> None:
        self.up_since = self.last_look = self.now
        self.decided_until = min(self.accounted_until, self.now - INSTANT)
        self.agenda = Agenda(self.now)
        self.entry = Entry(
            self.task, anchor=self.anchor, cursor=self.decided_until, is_paused=self.is_paused
        )
        self.agenda.put(self.entry)
        self.is_half_way = False

    # --- the clock ---

    @rule(spacings=st.floats(0, 3))
    def time_passes(self, spacings: float) -> None:
        self.now += seconds(spacings * self.spacing)

    @rule(moments=st.floats(0, 100))
    def a_moment_passes(self, moments: float) -> None:
        self.now += seconds(min(moments, 40 * self.spacing))

    @rule(spacings=st.floats(3, 60))
    def the_machine_sleeps_or_its_clock_is_set_forward(self, spacings: float) -> None:
        self.now += seconds(spacings * self.spacing)

    @rule(spacings=st.floats(0, 60))
    def the_clock_is_set_back(self, spacings: float) -> None:
        self.now = max(self.beginning, self.now - seconds(2 + spacings * self.spacing))

    # --- the daemon ---

    @rule(limit=limits)
    def the_daemon_looks(self, limit: int) -> None:
        self.notice_the_clock()
        due = self.due()
        promised = expected(
            self.task, due, now=self.now, up_since=self.up_since, is_paused=self.is_paused
        )
        found = self.write_down(self.agenda.decide(self.now, limit))
        while is_due(self.agenda, self.now):
            found += self.write_down(self.agenda.decide(self.now, limit))
        for got, wanted in zip(merged(found, due), promised, strict=True):
            was_held = self.is_half_way and got == (wanted.nominal_at, "missed")
            assert got == wanted or (was_held and wanted.what in ("paused", "disabled"))
        self.is_half_way = False
        self.check_that_nothing_is_forgotten()

    @rule(limit=st.integers(1, 30))
    def the_daemon_looks_and_there_is_too_much(self, limit: int) -> None:
        self.notice_the_clock()
        self.write_down(self.agenda.decide(self.now, limit))
        self.is_half_way = True

    @rule(limit=st.integers(1, 30), written=st.integers(0, 30), spacings=st.floats(0, 30))
    def the_daemon_is_killed_while_it_writes(
        self, limit: int, written: int, spacings: float
    ) -> None:
        self.notice_the_clock()
        self.write_down(self.agenda.decide(self.now, limit)[:written])
        self.now += seconds(spacings * self.spacing)
        self.start()

    @rule(spacings=st.floats(0, 3) | st.floats(0, 60))
    def the_daemon_is_down(self, spacings: float) -> None:
        self.now += seconds(spacings * self.spacing)
        self.start()

    # --- the task ---

    @rule(is_paused=st.booleans())
    def the_task_is_paused_or_goes_on(self, is_paused: bool) -> None:
        self.is_paused = self.entry.is_paused = is_paused

    @rule(enabled=st.booleans(), jitter=st.floats(0, 0.9))
    def the_task_is_changed(self, enabled: bool, jitter: float) -> None:
        self.task = msgspec.structs.replace(
            self.task, enabled=enabled, jitter=jitter * min(self.spacing, 7200)
        )
        self.entry.replace(self.task)
        self.agenda.put(self.entry)

    # --- what is held to be true ---

    def notice_the_clock(self) -> None:
        """Do what the scheduler does before it takes what is due."""
        if self.now < self.last_look - seconds(1):
            rewind(self.agenda, self.now)
            self.decided_until = min(self.decided_until, self.now - INSTANT)
            self.up_since = min(self.up_since, self.now)
            self.is_half_way = False
        self.last_look = self.now

    def due(self) -> list[Occurrence]:
        return due_by(self.task, self.now, after=self.decided_until, anchor=self.anchor)

    def write_down(self, decisions: Iterable[Decision]) -> list[Verdict]:
        """Take note of decisions as the store does, and see that they come in order."""
        found = verdicts(decisions)
        for each in found:
            assert schedule.due_at(self.task, each.nominal_at) <= self.now
            assert each.nominal_at > self.decided_until
            self.decided_until = each.nominal_at
            if (until := listed_until(each)) is not None:
                self.unlisted.append((each.nominal_at, until))
                self.decided_until = until - INSTANT
            row = self.rows.get(each.nominal_at)
            is_run = each.what in (RUNS, LATE)
            if row is None or (is_run and row == "missed"):
                self.rows[each.nominal_at] = each.what
                self.runs[each.nominal_at] += is_run
                self.accounted_until = max(self.accounted_until, each.nominal_at)
        return found

    def check_that_nothing_is_forgotten(self) -> None:
        for at, _ in due_by(self.task, self.now, after=self.beginning, anchor=self.anchor):
            assert at in self.rows or any(begin <= at < end for begin, end in self.unlisted)

    @invariant()
    def nothing_runs_twice(self) -> None:
        assert all(count <= 1 for count in self.runs.values())

    @invariant()
    def nothing_is_decided_that_does_not_occur(self) -> None:
        for at in list(self.rows)[-1:]:
            assert between(self.task, at - INSTANT, at, self.anchor) != []

    @precondition(lambda self: not self.is_half_way and self.now == self.last_look)
    @rule()
    def the_next_look_is_when_the_next_occurrence_is_due(self) -> None:
        if self.due():
            assert self.agenda.next_due_at is not None
            assert self.agenda.next_due_at <= self.now
        else:
            following = next(
                schedule.occurrences(self.task, after=self.decided_until, anchor=self.anchor)
            )
            due_at = schedule.due_at(self.task, following.nominal_at)
            assert self.agenda.next_due_at == due_at


TestWhateverHappensToADaemonAndItsClock = TasksLife.TestCase
TestWhateverHappensToADaemonAndItsClock.settings = settings(relaxed, stateful_step_count=30)
