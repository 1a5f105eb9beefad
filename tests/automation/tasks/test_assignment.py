"""The tasks that a daemon has: taken up to a fair share, given up when others come, inherited."""

from collections.abc import Callable, Iterable
from typing import cast

import pytest

from clarad.automation.tasks.assignment import Assignment, UnknownTask
from clarad.automation.tasks.run_queue import RunQueues
from clarad.automation.tasks.runner import Runner
from clarad.automation.tasks.task import Task
from clarad.store import StoredTaskRun, TaskRuns, Tasks
from tests.machine import NOON
from tests.postgres import SHARED
from tests.schedules import every, once
from tests.store.daemons import Daemon, Share

pytestmark = pytest.mark.parametrize("url", SHARED, indirect=True)

FOUR = [every(1000, name) for name in "abcd"]


class Runs:
    """Carries nothing out; knows what is busy, and what it was told to go on with."""

    def __init__(self) -> None:
        self.queues = RunQueues()
        self.busy: set[str] = set()
        self.recovered: list[str] = []

    def is_idle(self, task: str) -> bool:
        return task not in self.busy

    async def recover(
        self, unfinished: Iterable[StoredTaskRun], find: Callable[[str], Task | None]
    ) -> None:
        self.recovered += [run.run_id for run in unfinished if find(run.task)]


class Side(Assignment):
    """What one of several daemons has of the tasks."""

    def __init__(self, daemon: Daemon, tasks: Iterable[Task] = FOUR) -> None:
        self.daemon = daemon
        self.runner = Runs()
        self.rows = TaskRuns(daemon.writer)
        super().__init__(
            tasks,
            runner=cast(Runner, self.runner),
            runs=self.rows,
            states=Tasks(daemon.writer),
            now=lambda: NOON,
        )

    @property
    def names(self) -> str:
        return "".join(sorted(entry.task.name for entry in self.agenda))

    def is_paused(self, name: str) -> bool:
        return self.find(name).is_paused


@pytest.fixture
async def two(share: Share) -> list[Side]:
    """Two daemons that know the same tasks; nothing has been set up."""
    return [Side(daemon) for daemon in await share(2)]


async def both_set_up(two: list[Side]) -> None:
    """Have the first daemon start alone, and the second one come."""
    for side in two:
        await side.set_up()
    for side in two:
        side.set_peer_count(1)


async def test_who_is_alone_has_all_tasks_until_another_comes(two: list[Side]) -> None:
    here, there = two
    await both_set_up(two)
    assert (here.names, there.names) == ("abcd", "")
    await there.rebalance()
    assert there.names == ""
    await here.rebalance()
    await there.rebalance()
    assert (here.names, there.names) == ("cd", "ab")


async def test_a_task_is_given_up_when_nothing_of_it_goes_on(two: list[Side]) -> None:
    here, there = two
    await both_set_up(two)
    here.runner.busy = {"a", "b", "c"}
    await here.rebalance()
    assert here.names == "abc"
    here.runner.busy.clear()
    await here.rebalance()
    await there.rebalance()
    assert (here.names, there.names) == ("bc", "ad")


async def test_what_counts_from_a_start_stays_where_that_was(share: Share) -> None:
    daemons = await share(2)
    from_start = [once(name=name, delay=60) for name in "ab"]
    here, there = [Side(daemon, from_start) for daemon in daemons]
    await both_set_up([here, there])
    await here.rebalance()
    assert here.names == "ab"


async def test_the_tasks_and_the_runs_of_the_dead_are_gone_on_with(two: list[Side]) -> None:
    here, there = two
    await both_set_up(two)
    await here.rows.add(run_id="r", task="a", nominal_at=NOON, due_at=NOON, origin="schedule")
    await there.inherit([here.daemon.number])
    assert there.names == "abcd"
    assert there.runner.recovered == ["r"]


async def test_a_task_of_the_dead_that_this_daemon_does_not_know_is_free(share: Share) -> None:
    dead, heir, other = await share(3)
    await Side(dead).set_up()
    inheriting, another = Side(heir, FOUR[:1]), Side(other)
    await inheriting.inherit([dead.number])
    assert inheriting.names == "a"
    await another.set_up()
    assert another.names == "bcd"


async def test_a_pause_counts_wherever_the_task_is_or_goes(two: list[Side]) -> None:
    here, there = two
    await both_set_up(two)
    await there.pause("a", on=True)
    assert not here.is_paused("a")
    here.mark_stale()
    await here.rebalance()
    await there.rebalance()
    assert there.is_paused("a")
    await here.pause("a", on=False)
    there.mark_stale()
    await there.rebalance()
    assert not there.is_paused("a")


async def test_who_is_asked_for_another_s_task_says_whose_it_is_not(two: list[Side]) -> None:
    _, there = two
    await both_set_up(two)
    with pytest.raises(UnknownTask, match="another daemon has the task 'a'"):
        there.find("a")
    for name in ("aa", "x"):
        with pytest.raises(UnknownTask, match=f"no task '{name}'"):
            there.find(name)


async def test_what_a_reload_brings_is_shared_out_too(two: list[Side]) -> None:
    here, there = two
    await both_set_up(two)
    await here.replace([*FOUR, every(1000, "e")])
    assert here.names == "abcd"
    await there.replace([*FOUR, every(1000, "e")])
    await there.rebalance()
    assert there.names == "e"
    assert here.digest == there.digest


async def test_a_task_that_a_reload_takes_away_is_forgotten_by_who_has_it(
    two: list[Side],
) -> None:
    here, there = two
    await both_set_up(two)
    await here.replace(FOUR[1:])
    assert here.names == "bcd"
    await there.rebalance()  # which knows it still, and has nothing new to write down
    assert there.names == ""
