"""Tasks by the clock: docs/automation.md, "Tasks".

Most of it happens on a `Machine`, whose clock a test sets; the rest with a real daemon and real
commands.
"""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import trio
from trio.testing import MockClock

from clarad.automation.runs import run
from clarad.automation.tasks import agenda
from clarad.automation.tasks.assignment import UnknownTask
from clarad.automation.tasks.schedule import due_at
from clarad.events import EventType
from clarad.nurseries import scheduler
from clarad.process import shell
from clarad.store import StoreError
from tests.machine import NOON, Machine, task


@pytest.fixture
async def machine(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Machine]:
    """A machine that nothing runs on yet, at noon."""
    made = Machine(nursery)
    monkeypatch.setattr(shell, "run", made.shell.run)
    yield made
    await made.kill()
    assert not made.shell.overlapped


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def ran(*seconds: float) -> list[tuple[float, str]]:
    """Return the accounts of a task all of whose occurrences have run."""
    return [(second, "ran") for second in seconds]


# --- lists ---------------------------------------------------------------------------------------


async def test_a_list_of_many_tasks_lets_others_go_on_between_two(machine: Machine) -> None:
    names = [f"t-{number}" for number in range(100)]
    await machine.boot(*(task(name, cron="0 0 29 2 *") for name in names))
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        rows = await machine.scheduler.overview()
        nursery.cancel_scope.cancel("the list is made")
    assert [row["name"] for row in rows] == names
    assert turns >= len(names) - 2  # its task may begin a step late, and end a step early


# --- intervals -----------------------------------------------------------------------------------


async def test_an_interval_begins_with_the_first_start_and_never_drifts(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot(task(interval=10, command="sleep 7"))
    await trio.sleep(48)
    assert machine.accounts() == ran(0, 10, 20, 30, 40)
    for start in machine.shell.started:
        assert start.at - start.nominal_at < timedelta(milliseconds=1)


async def test_an_interval_with_a_delay_begins_that_much_later(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot(task(interval=10, delay=4))
    await trio.sleep(25)
    assert machine.accounts() == ran(4, 14, 24)


async def test_an_interval_keeps_its_phase_over_restarts(
    machine: Machine, autojump_clock: MockClock
) -> None:
    for _ in range(3):
        await machine.boot(task(interval=10, delay=4))
        await trio.sleep(9)
        await machine.shut_down()
    assert machine.accounts() == ran(4, 14, 24)


async def test_a_short_interval_fires_each_time(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot(task(interval=0.1))
    await trio.sleep(5.05)
    assert [second for second, _ in machine.accounts()] == [n / 10 for n in range(51)]


# --- one-shots -----------------------------------------------------------------------------------


@pytest.mark.parametrize("catch_up", ["one", "none", "all"])
@pytest.mark.parametrize("delay", [0, 5])
async def test_a_one_shot_with_a_delay_runs_once_in_each_start(
    machine: Machine, autojump_clock: MockClock, delay: float, catch_up: str
) -> None:
    for _ in range(2):
        await machine.boot(task(type="one_shot", delay=delay, catch_up=catch_up), takes=0.5)
        await trio.sleep(100)
        await machine.shut_down()
    assert machine.accounts() == ran(delay, 100.5 + delay)


async def test_a_one_shot_that_a_start_did_not_live_to_see_is_not_of_the_next(
    machine: Machine,
    autojump_clock: MockClock,
) -> None:
    await machine.boot(task(type="one_shot", delay=50))
    await trio.sleep(10)
    await machine.shut_down()
    await machine.boot(task(type="one_shot", delay=50))
    await trio.sleep(100)
    assert machine.accounts() == ran(60)


async def test_a_one_shot_with_a_time_runs_once_ever(
    machine: Machine, autojump_clock: MockClock
) -> None:
    for _ in range(3):
        await machine.boot(task(type="one_shot", run_at=at(5)))
        await trio.sleep(20)
        await machine.shut_down()
    assert machine.accounts() == ran(5)


async def test_a_one_shot_whose_time_is_past_runs_late_and_once(
    machine: Machine, autojump_clock: MockClock
) -> None:
    for _ in range(2):
        await machine.boot(task(type="one_shot", run_at=at(-1000)))
        await trio.sleep(5)
        await machine.shut_down()
    assert machine.accounts() == ran(-1000)


async def test_a_one_shot_that_is_taken_out_and_put_back_is_not_repeated(
    machine: Machine, autojump_clock: MockClock
) -> None:
    once = task(type="one_shot", run_at=at(5))
    await machine.boot(once)
    await trio.sleep(10)
    await machine.scheduler.replace([])
    await machine.scheduler.replace([once])
    await trio.sleep(10)
    assert machine.accounts() == ran(5)


# --- cron ----------------------------------------------------------------------------------------


async def test_cron_is_by_the_clock_of_its_zone(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot(
        task("utc", cron="*/5 12 * * *"),
        task("kolkata", cron="*/5 12 * * *", timezone=ZoneInfo("Asia/Kolkata")),
        task("nepal", cron="*/5 17 * * *", timezone=ZoneInfo("Asia/Kathmandu")),
    )
    await trio.sleep(1000)
    assert machine.accounts("utc") == ran(0, 300, 600, 900)
    assert machine.accounts("kolkata") == []
    assert machine.accounts("nepal") == ran(0, 300, 600)  # it is 17:45 there at noon


@pytest.mark.parametrize(
    ("begin", "minutes", "fixed", "every"),
    [
        # The clocks of Berlin go from 2:00 to 3:00 at 1:00 UTC, and back from 3:00 at 1:00 UTC.
        ("2027-03-28T00:25Z", 70, ["01:00"], ["00:30", "01:30"]),
        ("2027-10-31T00:25Z", 70, ["00:30"], ["00:30", "01:30"]),
    ],
)
async def test_a_fixed_hour_runs_once_when_clocks_change_and_a_star_by_the_hour(
    machine: Machine,
    autojump_clock: MockClock,
    begin: str,
    minutes: int,
    fixed: list[str],
    every: list[str],
) -> None:
    berlin = ZoneInfo("Europe/Berlin")
    machine.wall.step((datetime.fromisoformat(begin) - NOON).total_seconds())
    await machine.boot(
        task("fixed", cron="30 2 * * *", timezone=berlin),
        task("every", cron="30 * * * *", timezone=berlin),
    )
    await trio.sleep(60 * minutes)
    for name, expected in (("fixed", fixed), ("every", every)):
        assert [f"{row.nominal_at:%H:%M}" for row in machine.rows(name)] == expected


# --- jitter --------------------------------------------------------------------------------------


async def test_jitter_puts_off_the_start_and_not_the_occurrence(
    machine: Machine, autojump_clock: MockClock
) -> None:
    jittery = task(interval=100, jitter=60)
    await machine.boot(jittery)
    await trio.sleep(1000)
    assert machine.accounts() == ran(*range(0, 1000, 100))
    late_by = [start.at - start.nominal_at for start in machine.shell.started]
    assert len(set(late_by)) == len(late_by)
    for start in machine.shell.started:
        due = due_at(jittery, start.nominal_at)
        assert timedelta() <= start.at - due < timedelta(milliseconds=1)
        assert due < start.nominal_at + timedelta(seconds=60)


async def test_an_occurrence_that_jitter_puts_off_over_a_restart_runs_once(
    machine: Machine,
    autojump_clock: MockClock,
) -> None:
    jittery = task(interval=1000, jitter=900)
    late_by = (due_at(jittery, NOON) - NOON).total_seconds()
    await machine.boot(jittery)
    await trio.sleep(late_by / 2)
    await machine.shut_down()
    await machine.boot(jittery)
    await trio.sleep(late_by / 2 + 1)
    assert machine.accounts() == ran(0)
    assert [start.at >= at(late_by) for start in machine.shell.started] == [True]


async def test_an_occurrence_that_jitter_puts_off_outlasts_a_clock_that_is_set_back(
    machine: Machine,
    autojump_clock: MockClock,
) -> None:
    jittery = task(interval=1000, jitter=900)
    late_by = (due_at(jittery, NOON) - NOON).total_seconds()
    await machine.boot(jittery)
    await trio.sleep(late_by / 2)
    machine.wall.step(-late_by / 4)
    await trio.sleep(late_by)
    assert machine.accounts() == ran(0)


# --- overlap -------------------------------------------------------------------------------------


async def test_a_run_that_goes_on_has_the_next_skipped(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot(task(interval=10, command="sleep 25", overlap="skip"))
    await trio.sleep(56)
    assert machine.accounts() == [
        (0, "ran"),
        (10, "overlap"),
        (20, "overlap"),
        (30, "ran"),
        (40, "overlap"),
        (50, "overlap"),
    ]
    first, second, *_ = machine.rows()
    assert second.reason == f"overlap: run {first.run_id} goes on"


async def test_a_run_that_goes_on_has_the_next_wait(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot(task(interval=10, command="sleep 14", overlap="queue"))
    await trio.sleep(39)
    assert machine.accounts() == [*ran(0, 10), (20, None), (30, None)]
    assert [start.at for start in machine.shell.started] == [at(0), at(14), at(28)]


async def test_of_those_that_wait_there_are_so_many_at_most(
    machine: Machine, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "MAX_QUEUED", 2)
    await machine.boot(task(interval=10, command="hold", overlap="queue"))
    await trio.sleep(45)
    assert [outcome for _, outcome in machine.accounts()] == [None, None, None, *["overlap"] * 2]
    machine.shell.release.set()
    await trio.sleep(1)
    assert machine.accounts()[:3] == ran(0, 10, 20)


async def test_a_run_that_goes_on_is_ended_for_the_next(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot(task(interval=10, command="sleep 25", overlap="cancel"))
    await trio.sleep(25)
    assert machine.accounts() == [(0, "cancelled"), (10, "cancelled"), (20, None)]
    assert machine.rows()[0].reason == "overlap: the next run is due"
    await trio.sleep(3)
    await machine.scheduler.replace([])
    await trio.sleep(20)
    assert machine.accounts()[-1] == (20, "ran")


async def test_tasks_are_in_each_other_s_way_only_in_their_hundreds(
    machine: Machine, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clarad.nurseries.task_runs.MAX_RUNNING", 2)
    await machine.boot(*(task(f"t{n}", interval=100, command="sleep 10") for n in range(3)))
    await trio.sleep(5)
    states = sorted(machine.rows(f"t{n}")[0].begun_at is not None for n in range(3))
    assert states == [False, True, True]
    await trio.sleep(20)
    assert [machine.accounts(f"t{n}") for n in range(3)] == [ran(0)] * 3


# --- what was missed -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("catch_up", "outcomes"),
    [
        ("one", ["missed"] * 3 + ["ran"]),
        ("none", ["missed"] * 4),
        ("all", ["ran"] * 4),
    ],
)
async def test_what_was_missed_is_caught_up_with_as_the_task_says(
    machine: Machine, autojump_clock: MockClock, catch_up: str, outcomes: list[str]
) -> None:
    missing = task(interval=10, catch_up=catch_up)
    await machine.boot(missing)
    await trio.sleep(5)
    await machine.shut_down()
    await trio.sleep(40)
    await machine.boot(missing)
    await trio.sleep(10)
    times = range(10, 50, 10)
    assert machine.accounts() == [(0, "ran"), *zip(times, outcomes, strict=True), (50, "ran")]


async def test_what_was_missed_runs_one_by_one_and_in_order(
    machine: Machine, autojump_clock: MockClock
) -> None:
    missing = task(interval=10, catch_up="all", command="sleep 3")
    await machine.boot(missing)
    await trio.sleep(5)
    await machine.shut_down()
    await trio.sleep(40)
    await machine.boot(missing)
    await trio.sleep(40)
    nominal_times = machine.shell.nominal_times("t")
    assert nominal_times == sorted(nominal_times)
    assert nominal_times[:5] == [at(second) for second in (0, 10, 20, 30, 40)]


async def test_nothing_is_made_up_for_if_another_run_is_just_due(
    machine: Machine, autojump_clock: MockClock
) -> None:
    missing = task(interval=10)
    await machine.boot(missing)
    await trio.sleep(5)
    await machine.shut_down()
    await trio.sleep(25)
    await machine.boot(missing)
    await trio.sleep(5)
    assert machine.accounts() == [(0, "ran"), (10, "missed"), (20, "missed"), (30, "ran")]


async def test_what_was_missed_too_long_ago_is_not_made_up_for(
    machine: Machine, autojump_clock: MockClock
) -> None:
    missing = task(interval=100, catch_up="all", catch_up_window=150)
    await machine.boot(missing)
    await trio.sleep(5)
    await machine.shut_down()
    await trio.sleep(400)
    await machine.boot(missing)
    await trio.sleep(20)
    assert machine.accounts() == [(0, "ran"), (100, "missed"), (200, "missed"), *ran(300, 400)]


async def test_what_the_machine_slept_through_is_missed(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot(task(interval=100))
    await trio.sleep(50)
    machine.wall.step(500)
    await trio.sleep(30)
    missed = [(second, "missed") for second in range(100, 500, 100)]
    assert machine.accounts() == [(0, "ran"), *missed, (500, "ran")]


async def test_of_very_many_the_last_row_says_until_when_all_were_missed(
    machine: Machine, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agenda, "MAX_LISTED", 5)
    missing = task(interval=10)
    await machine.boot(missing)
    await trio.sleep(5)
    await machine.shut_down()
    await trio.sleep(1000)
    await machine.boot(missing)
    await trio.sleep(1)
    listed = [(second, "missed") for second in (10, 20, 30, 40, 50, 60)]
    rest = (70, f"missed, as was every occurrence from here to {at(1000)}")
    assert machine.accounts() == [*ran(0), *listed, rest, *ran(1000)]


# --- what is off ---------------------------------------------------------------------------------


async def test_a_disabled_task_has_a_row_for_each_occurrence(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot(task(enabled=False))
    await trio.sleep(25)
    assert machine.accounts() == [(0, "disabled"), (10, "disabled"), (20, "disabled")]


async def test_a_paused_task_has_a_row_for_each_occurrence(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot(task())
    await trio.sleep(5)
    await machine.scheduler.pause("t", on=True)
    await trio.sleep(20)
    await machine.scheduler.pause("t", on=False)
    await trio.sleep(10)
    assert machine.accounts() == [(0, "ran"), (10, "paused"), (20, "paused"), (30, "ran")]


async def test_a_pause_outlasts_a_restart_and_a_reload(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot(task())
    await machine.scheduler.pause("t", on=True)
    await trio.sleep(15)
    await machine.shut_down()
    await trio.sleep(20)
    await machine.boot(task())
    await trio.sleep(10)
    await machine.scheduler.replace([task(interval=20)])
    await trio.sleep(25)
    outcomes = [outcome for _, outcome in machine.accounts()[1:]]
    assert set(outcomes) == {"paused"}
    assert len(outcomes) > 5


async def test_a_pause_in_the_middle_of_a_reload_counts(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot(task(), task("other"))
    await trio.sleep(5)
    machine.disk.held = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(machine.scheduler.replace, [task(interval=5), task("other")])
        await trio.testing.wait_all_tasks_blocked()

        async def pause() -> None:
            await machine.scheduler.pause("t", on=True)

        nursery.start_soon(pause)
        await trio.testing.wait_all_tasks_blocked()
        machine.disk.let_go()
    await trio.sleep(20)
    assert {outcome for second, outcome in machine.accounts() if second > 5} == {"paused"}
    await machine.shut_down()
    await machine.boot(task(interval=5), task("other"))
    before = len(machine.rows())
    await trio.sleep(20)
    assert {outcome for _, outcome in machine.accounts()[before:]} == {"paused"}


# --- the clock is set ----------------------------------------------------------------------------


async def test_a_clock_that_is_set_back_repeats_nothing(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot(task(interval=10), task("cron", cron="* * * * *"))
    await trio.sleep(125)
    machine.wall.step(-100)
    await trio.sleep(110)
    assert machine.accounts() == ran(*range(0, 140, 10))
    assert machine.accounts("cron") == ran(0, 60, 120)
    assert len(machine.shell.started) == 14 + 3


async def test_a_clock_that_is_set_forward_jumps_over_nothing_silently(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot(task(interval=100, catch_up="none"))
    await trio.sleep(50)
    machine.wall.step(500)
    await trio.sleep(55)
    missed = [(second, "missed") for second in range(100, 500, 100)]
    assert machine.accounts() == [*ran(0), *missed, *ran(500, 600)]  # 50 s are no delay


async def test_what_was_jumped_over_runs_if_its_time_comes_after_all(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot(task(interval=100, catch_up="none"))
    await trio.sleep(50)
    machine.wall.step(500)
    await trio.sleep(10)
    machine.wall.step(-500)
    await trio.sleep(350)
    assert machine.accounts() == ran(0, 100, 200, 300, 400, 500)


@pytest.mark.parametrize("catch_up", ["one", "none", "all"])
async def test_a_machine_that_booted_with_a_clock_ahead_runs_its_tasks_when_it_is_put_right(
    machine: Machine, autojump_clock: MockClock, catch_up: str
) -> None:
    machine.wall.step(100_000)
    await machine.boot(task(cron="* * * * *", catch_up=catch_up))
    await trio.sleep(30)
    machine.wall.step(-100_000)
    await trio.sleep(100)
    assert ran(60, 120) == [account for account in machine.accounts() if account[0] < 100_000]


async def test_a_clock_that_is_set_back_ends_no_run(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot(task(interval=100, command="sleep 90", overlap="cancel"))
    await trio.sleep(30)
    machine.wall.step(-40)
    await trio.sleep(80)
    assert machine.accounts() == ran(0)


async def test_what_comes_due_while_a_corrected_clock_is_behind_what_has_run_is_accounted_for(
    machine: Machine,
    autojump_clock: MockClock,
) -> None:
    often = task(cron="* * * * *", catch_up="all")
    machine.wall.step(3600)
    await machine.boot(often)
    await trio.sleep(90)
    machine.wall.step(-3600)
    await trio.sleep(30)
    await machine.kill()
    await trio.sleep(300)
    await machine.boot(often)
    await trio.sleep(30)
    assert [s for s, _ in machine.accounts() if s < 3600] == [120, 180, 240, 300, 360, 420]


@pytest.mark.parametrize("times", [1, 2])
async def test_a_clock_that_is_set_back_while_nobody_looks_hides_nothing(
    machine: Machine, autojump_clock: MockClock, times: int
) -> None:
    often = task(cron="* * * * *", catch_up="all")
    machine.wall.step(3600)
    await machine.boot(often)
    await trio.sleep(90)
    await machine.shut_down()
    machine.wall.step(-3600)
    for _ in range(times):
        await machine.boot(often)
        await trio.sleep(1)
        await machine.kill()
        await trio.sleep(119)
    await machine.boot(often)
    await trio.sleep(1)
    seen = [second for second, _ in machine.accounts() if second < 3600]
    assert seen == list(range(120, 90 + 120 * times, 60))


# --- events --------------------------------------------------------------------------------------


async def test_a_run_is_announced_and_a_failure_has_its_details(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot(task(type="one_shot", delay=5, command="false"))
    await trio.sleep(10)
    [(first, about), (second, failure)] = machine.events
    [row] = machine.rows()
    assert first is EventType.SCHEDULER_TASK_RUN
    assert second is EventType.SCHEDULER_TASK_ERROR
    names = {"task": "t", "task_name": "t", "task_type": "one_shot"}
    of_run = {"nominal_time": at(5).isoformat(), "attempt": 1, "run": row.run_id}
    assert about == names | of_run | {"caused_by": (row.run_id,)}
    details = {"outcome": "failed", "reason": "exit status 1", "exit_status": 1, "again": False}
    assert failure.items() >= (about | details).items()
    assert failure["duration"] >= 0


# --- what an operator does -----------------------------------------------------------------------


async def test_a_task_can_be_run_now_whatever_its_schedule_says(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot(task(cron="0 0 1 1 *"), task("off", enabled=False, interval=1000))
    await trio.sleep(5)
    await machine.scheduler.pause("t", on=True)
    for name in ("t", "off"):
        job = machine.run_now(name)
        await job.ended.wait()
        assert job.ending is not None
        assert job.ending.outcome == "ran"
    by_hand = [row for row in machine.disk.rows() if row.origin == "operator"]
    assert [(row.task, row.outcome) for row in by_hand] == [("t", "ran"), ("off", "ran")]


async def test_a_task_that_runs_already_is_not_run_now_unless_it_may_wait(
    machine: Machine, autojump_clock: MockClock
) -> None:
    slow: dict[str, Any] = {"interval": 1000, "command": "sleep 10"}
    await machine.boot(task(**slow), task("patient", **slow, overlap="queue"))
    await trio.sleep(5)
    with pytest.raises(UnknownTask, match=machine.rows()[0].run_id):
        machine.run_now("t")
    job = machine.run_now("patient")
    await job.ended.wait()
    assert [start.at for start in machine.shell.started if start.task == "patient"] == [
        at(0),
        at(10),
    ]


async def test_a_task_that_there_is_not_is_said_with_the_one_that_was_meant(
    machine: Machine,
    autojump_clock: MockClock,
) -> None:
    await machine.boot(task("backup"))
    with pytest.raises(UnknownTask, match="'bakcup'; did you mean 'backup'"):
        machine.run_now("bakcup")
    with pytest.raises(UnknownTask, match="no task 'x'"):
        await machine.scheduler.pause("x", on=True)


# --- a reload ------------------------------------------------------------------------------------


async def test_a_task_that_did_not_change_goes_on_as_it_was(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot(task(interval=10, command="sleep 7"))
    await trio.sleep(15)
    await machine.scheduler.replace([task("new", interval=100), task(interval=10)])
    await trio.sleep(20)
    assert machine.accounts() == ran(0, 10, 20, 30)
    assert machine.accounts("new") == ran(15)


async def test_a_run_that_goes_on_is_not_touched_and_the_next_is_as_the_task_now_is(
    machine: Machine,
    autojump_clock: MockClock,
) -> None:
    await machine.boot(task(interval=10, command="sleep 7"))
    await trio.sleep(15)
    await machine.scheduler.replace([task(interval=10, command="false")])
    await trio.sleep(10)
    assert machine.accounts() == [*ran(0, 10), (20, "failed")]


async def test_a_changed_schedule_is_a_new_start(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot(task(interval=10))
    await trio.sleep(25)
    await machine.scheduler.replace([task(interval=20)])
    await trio.sleep(30)
    await machine.scheduler.replace([task(cron="* * * * *")])
    await trio.sleep(10)
    assert machine.accounts() == ran(0, 10, 20, 25, 45, 60)


async def test_of_a_task_that_is_gone_what_waits_is_cancelled_and_what_runs_runs_on(
    machine: Machine,
    autojump_clock: MockClock,
) -> None:
    await machine.boot(task(interval=10, command="sleep 25", overlap="queue"))
    await trio.sleep(22)
    await machine.scheduler.replace([])
    await trio.sleep(100)
    assert machine.accounts() == [(0, "ran"), (10, "cancelled"), (20, "cancelled")]
    assert machine.rows()[1].reason == "the task was removed"
    assert machine.shell.nominal_times("t") == [NOON]


async def test_a_reload_that_cannot_be_stored_changes_nothing(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot(task(interval=10))
    await trio.sleep(5)
    machine.disk.fill_up()
    with pytest.raises(StoreError):
        await machine.scheduler.replace([task(interval=7), task("new")])
    machine.disk.let_go()
    await trio.sleep(20)
    assert machine.accounts() == ran(0, 10, 20)
    assert machine.accounts("new") == []


async def test_a_switch_takes_effect_with_a_reload(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot(task())
    await trio.sleep(5)
    await machine.scheduler.replace([task(enabled=False)])
    await trio.sleep(10)
    await machine.scheduler.replace([task(enabled=True)])
    await trio.sleep(10)
    assert machine.accounts() == [(0, "ran"), (10, "disabled"), (20, "ran")]


# --- stopping and starting -----------------------------------------------------------------------


async def test_a_stop_lets_runs_end_and_starts_none(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot(task(interval=10, command="sleep 15", overlap="queue"))
    await trio.sleep(12)
    await machine.shut_down(drain=60)
    assert trio.current_time() == pytest.approx(15)
    assert machine.accounts() == [(0, "ran"), (10, None)]


async def test_past_the_drain_a_run_is_cancelled_and_what_waits_is_for_the_next_start(
    machine: Machine,
    autojump_clock: MockClock,
) -> None:
    slow = task(interval=100, command="sleep 150", overlap="queue")
    await machine.boot(slow)
    await trio.sleep(102)
    await machine.shut_down(drain=20)
    assert machine.accounts() == [(0, "cancelled"), (100, None)]
    assert machine.rows()[0].reason == run.STOPPING
    await machine.boot(slow)
    await trio.sleep(160)
    assert machine.accounts()[:2] == [(0, "cancelled"), (100, "ran")]


async def test_after_a_kill_what_ran_is_interrupted_and_what_waited_runs(
    machine: Machine, autojump_clock: MockClock
) -> None:
    slow = task(interval=10, command="sleep 14", overlap="queue")
    await machine.boot(slow)
    await trio.sleep(12)
    await machine.kill()
    await machine.boot(slow)
    await trio.sleep(7)
    assert machine.accounts()[:2] == [(0, "interrupted"), (10, None)]
    await trio.sleep(8)
    assert machine.accounts()[:2] == [(0, "interrupted"), (10, "ran")]
    assert machine.shell.nominal_times("t").count(NOON) == 1


# --- faults --------------------------------------------------------------------------------------


async def test_while_the_store_fails_runs_wait_and_then_happen_once(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot(task(interval=10, overlap="queue"), task("off", enabled=False))
    await trio.sleep(5)
    machine.disk.fill_up()
    await trio.sleep(20)
    assert len(machine.shell.started) == 1
    machine.disk.let_go()
    await trio.sleep(10)
    assert machine.accounts() == ran(0, 10, 20, 30)
    assert [second for second, _ in machine.accounts("off")] == [0, 10, 20, 30]
    assert len(machine.shell.started) == 4


async def test_how_a_run_ended_is_written_once_the_store_works_again(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot(task(type="one_shot", delay=0, command="sleep 5"))
    await trio.sleep(2)
    machine.disk.fill_up()
    await trio.sleep(20)
    assert machine.accounts() == [(0, None)]
    machine.disk.let_go()
    await trio.sleep(2)
    assert machine.accounts() == ran(0)


async def test_an_occurrence_that_could_not_be_stored_is_found_by_the_next_start(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot(task())
    await trio.sleep(5)
    machine.disk.refuses = lambda row: row.get("outcome") == "skipped"
    machine.wall.step(95)
    await trio.sleep(3)
    await machine.shut_down()
    machine.disk.let_go()
    await machine.boot(task())
    await trio.sleep(3)
    assert [second for second, _ in machine.accounts()] == list(range(0, 101, 10))


async def test_a_scheduler_that_failed_serves_again_and_leaves_what_runs_alone(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot(task(command="sleep 7"), task("q", command="sleep 14", overlap="queue"))
    await trio.sleep(22)
    machine.wall.fails_once = True
    await trio.sleep(21)
    assert machine.accounts() == [*ran(0, 10, 20, 30), (40, None)]
    assert machine.accounts("q") == [*ran(0, 10, 20), (30, None), (40, None)]
    assert len(machine.shell.started) == 5 + 4


async def test_a_delay_counts_from_the_reload_that_brought_it_also_if_the_scheduler_fails_since(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot()
    await trio.sleep(30)
    await machine.scheduler.replace([task(type="one_shot", delay=40.0)])
    machine.wall.fails_once = True
    await trio.sleep(60)
    assert machine.accounts() == ran(70)


# --- whether it gets on --------------------------------------------------------------------------


async def gets_on(machine: Machine) -> bool:
    """Whether the scheduler gets on before long."""
    with trio.move_on_after(100) as limit:
        await machine.scheduler.progress()
    return not limit.cancelled_caught


async def test_a_scheduler_with_nothing_to_do_gets_on(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot()
    assert await gets_on(machine)


async def test_a_scheduler_that_waits_for_the_disk_does_not_get_on_before_it(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot(task(interval=10, enabled=False))
    await trio.sleep(5)
    machine.disk.held = True
    await trio.sleep(10)
    assert not await gets_on(machine)
    machine.disk.let_go()
    assert await gets_on(machine)


async def test_a_scheduler_gets_on_that_tries_a_full_disk_again_and_again(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot(task(interval=10, enabled=False))
    await trio.sleep(5)
    machine.disk.fill_up()
    await trio.sleep(10)
    for _ in range(3):
        assert await gets_on(machine)
    machine.disk.let_go()


async def test_of_a_scheduler_that_is_told_to_fire_no_more_nothing_is_expected(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.boot(task(interval=10))
    machine.scheduler.stop_firing()
    await trio.sleep(10)
    assert await gets_on(machine)
