"""Every occurrence has one row, whatever happens to the daemon, the configuration or the clock.

Hypothesis makes up how time passes, the clock is set, the daemon is stopped or killed and started
again, tasks are changed, paused and run by hand, and the disk is slow or fails. What is expected is
reckoned apart from all that, from the schedules and the times that the clock has shown.
"""

import itertools
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from clarad.automation.tasks import assignment, schedule
from clarad.automation.tasks.assignment import UnknownTask
from clarad.automation.tasks.task import Task
from clarad.nurseries import scheduler, supervisor
from clarad.process import shell
from tests.machine import NOON, Machine, task

STEP = 5.0
"""Seconds between two looks at the clock; there are fewer to live through than in earnest."""

SETTLED = 2 * STEP
"""Seconds after which the scheduler has noticed everything, if the disk lets it."""

LONG_AGO = NOON - timedelta(days=365)

OUTCOMES_IF_STARTED = {
    True: {"ran", "failed", "cancelled", "interrupted"},
    False: {"skipped", "cancelled", "interrupted"},
}

SCHEDULES: dict[str, list[dict[str, Any]]] = {
    "interval": [{"interval": 7.0}, {"interval": 11.0, "delay": 3.0}],
    "jittery": [{"interval": 20.0, "jitter": 15.0}, {"interval": 20.0, "jitter": 45.0}],
    "cron": [{"cron": "* * * * *"}, {"cron": "*/2 * * * *", "jitter": 90.0}],
    "once": [
        {"type": "one_shot", "run_at": NOON + timedelta(seconds=100)},
        {"type": "one_shot", "run_at": NOON - timedelta(seconds=100)},
    ],
    "start": [{"type": "one_shot", "delay": 4.0}, {"type": "one_shot", "delay": 40.0}],
}


@dataclass
class Span:
    """A time in which the clock went forward only."""

    since: datetime
    until: datetime


class Course:
    """A task from a start of its schedule until the next, and what of it has come due.

    It depends on when exactly the scheduler looks, so there are two answers: what is due for sure,
    by the times that it must have noticed, and what may be.
    """

    def __init__(self, task: Task, now: datetime) -> None:
        self.name = task.name
        self.versions = [task]
        since = LONG_AGO if task.run_at else now
        self._anchor = schedule.anchor(task, now)
        self._noticed = [Span(since, since)]
        self._shown = Span(since, now)

    def goes_on_as(self, task: Task) -> bool:
        return schedule.identity(self.versions[-1]) == schedule.identity(task)

    def note(self, now: datetime, *, noticed: bool) -> None:
        """Take note of what the clock shows, and whether the scheduler must have noticed."""
        self._shown = Span(min(self._shown.since, now), max(self._shown.until, now))
        if not noticed:
            return
        if now < self._noticed[-1].until:
            self._noticed.append(Span(now, now))
        self._noticed[-1].until = now

    def due(self) -> set[datetime]:
        """Return what has come due for sure."""
        found: set[datetime] = set()
        since = self._noticed[0].since
        for span in self._noticed:
            since = min(since, span.since)
            latest = LONG_AGO
            for at in self._occurrences(Span(since, span.until)):
                # Jitter reverses no order: none is due before the one that it follows.
                latest = max(latest, *(schedule.due_at(version, at) for version in self.versions))
                if latest <= span.until:
                    found.add(at)
        return found

    def maybe_due(self) -> set[datetime]:
        """Return what can have come due."""
        until = self._shown.until
        return {
            at
            for at in self._occurrences(self._shown)
            if any(schedule.due_at(version, at) <= until for version in self.versions)
        }

    def _occurrences(self, span: Span) -> Iterator[datetime]:
        after = span.since - timedelta(microseconds=1)
        for at, _ in schedule.occurrences(self.versions[0], after=after, anchor=self._anchor):
            if at > span.until:
                return
            yield at


class World:
    """A machine, what is configured on it, and what has to come of it."""

    def __init__(self, machine: Machine, config: dict[str, Task]) -> None:
        self.machine = machine
        self.config = config
        self.courses: dict[str, Course] = {}
        self.past: list[Course] = []

    # --- what can happen -------------------------------------------------------------------------

    async def boot(self) -> None:
        self._adopt(self.machine.wall.now(), is_start=True)
        await self.machine.boot(*self.config.values())
        await self.settle()

    async def let_pass(self, seconds: float) -> None:
        await trio.sleep(seconds)
        await self.settle()

    async def step(self, seconds: float) -> None:
        self.machine.wall.step(seconds)
        self._note(self.machine.wall.now(), noticed=False)
        await self.settle()

    async def restart(self, how: str, downtime: float, step: float) -> None:
        await self.machine.kill() if how == "kill" else await self.machine.shut_down(drain=3)
        await trio.sleep(downtime)
        self.machine.wall.step(step)
        await self.boot()

    async def reload(self, config: dict[str, Task]) -> None:
        await self.mend()
        self.config = config
        self._adopt(self.machine.wall.now(), is_start=False)
        await self.machine.scheduler.replace(list(config.values()))
        await self.settle()

    async def pause(self, name: str, on: bool) -> None:
        await self.mend()
        with suppress(UnknownTask):
            await self.machine.scheduler.pause(name, on=on)

    async def run_now(self, name: str) -> None:
        self.machine.wall.step(0.000123)  # at a moment that no schedule names
        with suppress(UnknownTask):
            self.machine.run_now(name)
        await self.settle()

    async def slow_disk(self) -> None:
        self.machine.disk.held = True
        await self.settle()

    async def commit(self, count: int) -> None:
        self.machine.disk.commit(count)
        await trio.sleep(0.01)

    async def full_disk(self, fits: int) -> None:
        """Only each so many-th row finds a place; none with 0."""
        rows = itertools.count(1)
        self.machine.disk.refuses = lambda _: fits == 0 or next(rows) % fits != 0
        await self.settle()

    async def mend(self) -> None:
        self.machine.disk.let_go()
        await self.settle()

    async def scheduler_fails(self) -> None:
        self.machine.wall.fails_once = True
        await self.settle()

    async def runs_fail(self) -> None:
        self.machine.fail_runs()
        await self.settle()

    async def settle(self) -> None:
        disk = self.machine.disk
        await trio.sleep(SETTLED)
        now = self.machine.wall.now()
        await trio.sleep(0.001)  # what is due at this very moment is noticed, too
        self._note(now, noticed=disk.is_well)

    # --- what has to come of it ------------------------------------------------------------------

    def _note(self, now: datetime, *, noticed: bool) -> None:
        for course in self.courses.values():
            course.note(now, noticed=noticed)

    def _adopt(self, now: datetime, *, is_start: bool) -> None:
        for name in set(self.courses) - set(self.config):
            self.past.append(self.courses.pop(name))
        for name, wanted in self.config.items():
            known = self.courses.get(name)
            begins_anew = is_start and name == "start"
            if known is not None and known.goes_on_as(wanted) and not begins_anew:
                known.versions.append(wanted)
                known.note(now, noticed=is_start)
                continue
            if known is not None:
                self.past.append(known)
            self.courses[name] = Course(wanted, now)

    async def end(self) -> None:
        """Let what runs end; what waits is cancelled."""
        await self.mend()
        await self.reload({})
        await trio.sleep(20)

    def check(self) -> None:
        started = [(start.task, start.nominal_at) for start in self.machine.shell.started]
        assert len(started) == len(set(started))
        assert not self.machine.shell.overlapped
        for row in self.machine.disk.rows():
            has_started = (row.task, row.nominal_at) in started
            assert row.outcome in OUTCOMES_IF_STARTED[has_started], row
            assert row.outcome == "ran" or row.reason
        for name in SCHEDULES:
            found = {row.nominal_at for row in self.machine.rows(name)}
            courses = [
                course for course in [*self.past, *self.courses.values()] if course.name == name
            ]
            due = {at for course in courses for at in course.due()}
            maybe_due = {at for course in courses for at in course.maybe_due()}
            assert due <= found, (name, "has no row", sorted(due - found))
            assert found <= maybe_due, (name, "was not due", sorted(found - maybe_due))


TASKS = st.fixed_dictionaries(
    {},
    optional={
        name: st.builds(
            lambda name, which, how: task(name, **which | how),
            st.just(name),
            st.sampled_from(versions),
            st.fixed_dictionaries(
                {
                    "command": st.sampled_from(["true", "false", "sleep 3", "sleep 15"]),
                    "overlap": st.sampled_from(["skip", "queue", "cancel"]),
                    "catch_up": st.sampled_from(["one", "none", "all"]),
                    "enabled": st.sampled_from([True, True, False]),
                }
            ),
        )
        for name, versions in SCHEDULES.items()
    },
)
NAMES = st.sampled_from(list(SCHEDULES))
SECONDS = st.integers(0, 400).map(lambda tenths: tenths / 10)
SHIFTS = st.integers(-300, 300)

STEPS = st.one_of(
    st.tuples(st.just("let_pass"), SECONDS),
    st.tuples(st.just("step"), SHIFTS),
    st.tuples(st.just("restart"), st.sampled_from(["kill", "stop"]), SECONDS, SHIFTS | st.just(0)),
    st.tuples(st.just("reload"), TASKS),
    st.tuples(st.just("pause"), NAMES, st.booleans()),
    st.tuples(st.just("run_now"), NAMES),
    st.tuples(st.sampled_from(["slow_disk", "mend", "scheduler_fails", "runs_fail"])),
    st.tuples(st.just("full_disk"), st.sampled_from([0, 2, 3])),
    st.tuples(st.just("commit"), st.integers(1, 5)),
)


async def live_through(config: dict[str, Task], steps: list[tuple[Any, ...]]) -> World:
    async with trio.open_nursery() as nursery:
        machine = Machine(nursery)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shell, "run", machine.shell.run)
            world = World(machine, config)
            try:
                await world.boot()
                for name, *arguments in steps:
                    await getattr(world, name)(*arguments)
                await world.end()
                await machine.shut_down()
            finally:
                await machine.kill()
        nursery.cancel_scope.cancel()
    return world


@pytest.fixture(autouse=True, scope="module")
def _coarse() -> Iterator[None]:
    """Look at the clock seldom, and decide on few occurrences at one go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "STEP", STEP)
        patch.setattr(scheduler, "PAGE", 7)
        patch.setattr(assignment, "AT_ONE_GO", 7)
        patch.setattr(supervisor, "MAX_RESTARTS", 1000)
        yield


# The scheduler waits for the disk, and an operator is the first to look at the clock that fails.
@example(
    {"interval": task("interval", interval=7.0), "cron": task("cron", cron="* * * * *")},
    [
        ("slow_disk",),
        ("let_pass", 30.0),
        ("scheduler_fails",),
        ("let_pass", 24.3),
        ("run_now", "cron"),
    ],
)
# The disk does not take that the clock was set back, and is well again before the kill.
@example(
    {
        "start": task("start", type="one_shot", delay=4.0),
        "cron": task("cron", cron="*/2 * * * *", jitter=90.0),
    },
    [
        ("let_pass", 89.1),
        ("full_disk", 0),
        ("step", -260),
        ("mend",),
        ("let_pass", 0.0),
        ("restart", "kill", 0.0, 0),
    ],
)
@settings(deadline=None)
@given(TASKS, st.lists(STEPS, max_size=12))
def test_each_occurrence_has_one_row_and_runs_once_at_most(
    config: dict[str, Task], steps: list[tuple[Any, ...]]
) -> None:
    clock = MockClock(autojump_threshold=0)
    world = trio.run(live_through, config, steps, clock=clock)
    world.check()
