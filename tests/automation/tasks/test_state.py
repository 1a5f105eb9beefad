"""What is remembered of tasks, and how daemons share them out."""

from datetime import datetime, timedelta
from random import Random
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from clarad.automation.tasks import schedule
from clarad.automation.tasks.agenda import INSTANT
from clarad.automation.tasks.state import digest, fair_share, new_state, rewound
from clarad.store import TaskState
from tests.schedules import every, once, seconds, utc

NOON: Final = utc("2027-03-01T12:00")
moments: Final = st.integers(-1000, 1000).map(lambda second: NOON + seconds(second))
names: Final = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=3), unique=True
)


def state(until: datetime) -> TaskState:
    return TaskState("every 10.0 s", NOON, until, NOON)


# --- a clock that was set back -------------------------------------------------------------------


@given(st.dictionaries(st.text(max_size=3), moments.map(state)), moments)
def test_nothing_is_accounted_for_beyond_a_clock_that_was_set_back(
    known: dict[str, TaskState], now: datetime
) -> None:
    after = known | rewound(known, now)
    assert after.keys() == known.keys()
    for name, before in known.items():
        until = min(before.accounted_until, now - INSTANT)
        assert after[name] == before._replace(accounted_until=until)


@given(st.dictionaries(st.text(max_size=3), moments.map(state)), moments)
def test_only_what_changes_is_to_be_written_down(
    known: dict[str, TaskState], now: datetime
) -> None:
    changed = rewound(known, now)
    assert all(known[name] != state for name, state in changed.items())
    assert rewound(known | changed, now) == {}


# --- tasks that are new --------------------------------------------------------------------------


def test_a_new_task_is_due_from_now_on() -> None:
    task = every(10)
    fresh = new_state(task, NOON, None)
    assert fresh == TaskState(schedule.identity(task), NOON, NOON - INSTANT)
    first = next(schedule.occurrences(task, after=fresh.accounted_until, anchor=fresh.anchor_at))
    assert first.nominal_at == NOON


def test_a_new_one_shot_whose_time_is_past_is_made_up_for() -> None:
    task = once(NOON - timedelta(days=365))
    fresh = new_state(task, NOON, None)
    (occurrence,) = schedule.occurrences(task, after=fresh.accounted_until, anchor=fresh.anchor_at)
    assert occurrence.nominal_at == NOON - timedelta(days=365)


def test_a_pause_outlasts_another_schedule_and_nothing_else_does() -> None:
    paused = TaskState("every 5.0 s", NOON - seconds(77), NOON - seconds(3), NOON - seconds(50))
    fresh = new_state(every(10), NOON, paused)
    assert fresh == new_state(every(10), NOON, None)._replace(paused_at=paused.paused_at)


# --- shared out ----------------------------------------------------------------------------------


@given(names, st.randoms())
def test_daemons_that_know_tasks_of_the_same_names_are_alike(
    known: list[str], chance: Random
) -> None:
    others = [every(7, name) for name in known]
    chance.shuffle(others)
    assert digest(every(10, name) for name in known) == digest(others)


@given(names, names)
def test_daemons_that_know_tasks_of_other_names_are_not(known: list[str], other: list[str]) -> None:
    are_alike = digest(every(1, n) for n in known) == digest(every(1, n) for n in other)
    assert are_alike is (sorted(known) == sorted(other))


def test_what_is_said_of_the_tasks_fits_into_its_column() -> None:
    assert digest([]) == ""
    assert len(digest(every(1, f"{n}") for n in range(1000))) == 64


@given(st.integers(0, 10_000), st.integers(1, 100))
def test_daemons_take_all_tasks_together_and_none_has_more_than_it_must(
    tasks: int, daemons: int
) -> None:
    share = fair_share(tasks, daemons)
    assert share * daemons >= tasks
    assert (share - 1) * daemons < tasks or share == 0
