from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from clarad.automation.runs.run import AttemptResult, Run
from clarad.automation.runs.subject import Subject
from clarad.automation.tasks.run_queue import RunQueues
from clarad.automation.tasks.schedule import Occurrence
from clarad.automation.tasks.task_run import OUTPUT_TAIL, TaskRun
from clarad.events import EventType
from clarad.process.shell import Output
from clarad.store import Ending, Outcome
from tests.schedules import every, utc

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

NOON: Final = utc("2027-01-01T12:00")


class Forgetful:
    """A store that takes everything."""

    async def begin(self, run_id: str, attempt: int) -> None:
        await trio.lowlevel.checkpoint()

    async def put_off(self, run_id: str, ending: Ending) -> None:
        await trio.lowlevel.checkpoint()

    async def end(self, run_id: str, ending: Ending) -> None:
        await trio.lowlevel.checkpoint()


class Workshop:
    """Runs that are held in a line; each attempt waits to be told how it ends."""

    def __init__(self, nursery: trio.Nursery, places: int = 100) -> None:
        self.nursery = nursery
        self.queues = RunQueues()
        self.slots = trio.Semaphore(places)
        self.begun: list[str] = []
        self.ended: list[tuple[str, Outcome, str]] = []
        self.running: set[str] = set()
        self.told: list[tuple[EventType, dict[str, Any]]] = []
        self._ways: defaultdict[str, trio.Event] = defaultdict(trio.Event)
        self._tried: dict[str, AttemptResult] = {}

    def join(self, run_id: str, task: str = "task", **keys: Any) -> TaskRun:
        job = TaskRun(
            run_id,
            every(60, task, **keys),
            Occurrence(NOON),
            slots=self.slots,
            publish=self._publish,
            on_attempted=self.queues.note_change,
            caused_by=("hook-1",),
        )
        if self.queues.first(task) is None:
            job.turn.set()
        run = Run(
            run_id,
            Subject("task", task),
            store=Forgetful(),
            owner=job,
            given_up=trio.Event(),
            attempt=self._attempt,
            timeout=job.task.timeout,
            retries=job.task.retries,
        )
        self.queues.append(job, run)
        self.nursery.start_soon(self._live, job, run)
        return job

    def finish(self, run_id: str, tried: AttemptResult | None = None) -> None:
        self._tried[run_id] = tried or AttemptResult(Outcome.RAN, exit_status=0)
        self._ways[run_id].set()

    async def _attempt(self, run: Run, output: Output) -> AttemptResult:
        self.begun.append(run.id)
        self.running.add(run.id)
        try:
            await self._ways[run.id].wait()
            del self._ways[run.id]
        finally:
            self.running.discard(run.id)
        output.stdout.add(b"out " * 2000)
        output.stderr.add(b"err\n")
        return self._tried[run.id]

    async def _live(self, job: TaskRun, run: Run) -> None:
        try:
            await run.carry_out()
        finally:
            if run.ending is not None:
                self.ended.append((run.id, run.ending.outcome, run.ending.reason))
            self.queues.remove(job)

    def _publish(self, event_type: EventType, *, caused_by: Any, data: dict[str, Any]) -> None:
        assert caused_by == ("hook-1", data["run"])
        self.told.append((event_type, data))


@pytest.fixture
async def shop(nursery: trio.Nursery) -> AsyncIterator[Workshop]:
    yield Workshop(nursery)
    nursery.cancel_scope.cancel("the test has ended")


# --- one behind the other ------------------------------------------------------------------------


async def test_the_first_run_of_a_task_has_its_turn_at_once(shop: Workshop) -> None:
    job = shop.join("a")
    await wait_all_tasks_blocked()
    assert shop.running == {"a"}
    assert shop.queues.first("task") is job
    assert shop.queues.length("task") == 1


async def test_runs_of_a_task_go_one_behind_the_other(shop: Workshop) -> None:
    for run_id in "abc":
        shop.join(run_id)
    for run_id in "abc":
        await wait_all_tasks_blocked()
        assert shop.running == {run_id}
        shop.finish(run_id)
    await wait_all_tasks_blocked()
    assert shop.begun == ["a", "b", "c"]
    assert shop.queues.length("task") == 0
    assert shop.queues.first("task") is None


async def test_runs_of_different_tasks_go_side_by_side(shop: Workshop) -> None:
    for run_id in "abc":
        shop.join(run_id, task=f"task {run_id}")
    await wait_all_tasks_blocked()
    assert shop.running == {"a", "b", "c"}


async def test_a_run_that_fails_gives_the_next_one_its_turn(shop: Workshop) -> None:
    shop.join("a")
    shop.join("b")
    await wait_all_tasks_blocked()
    shop.finish("a", AttemptResult(Outcome.FAILED, "exit status 1", 1))
    await wait_all_tasks_blocked()
    assert shop.running == {"b"}


async def test_a_run_that_waits_for_another_attempt_keeps_its_turn(
    shop: Workshop, autojump_clock: trio.testing.MockClock
) -> None:
    shop.join("a", retries=1)
    shop.join("b")
    await wait_all_tasks_blocked()
    shop.finish("a", AttemptResult(Outcome.FAILED))
    await trio.sleep(10)
    assert shop.begun == ["a", "a"]
    shop.finish("a")
    await wait_all_tasks_blocked()
    assert shop.begun == ["a", "a", "b"]


async def test_with_its_turn_a_run_still_waits_for_a_place(nursery: trio.Nursery) -> None:
    shop = Workshop(nursery, places=1)
    shop.join("a", task="one")
    await wait_all_tasks_blocked()
    shop.join("b", task="other")
    await wait_all_tasks_blocked()
    assert shop.running == {"a"}
    shop.finish("a")
    await wait_all_tasks_blocked()
    assert shop.running == {"b"}
    nursery.cancel_scope.cancel("the test has ended")


async def test_a_run_that_waits_for_its_turn_takes_nobody_elses_place(
    nursery: trio.Nursery,
) -> None:
    shop = Workshop(nursery, places=2)
    for run_id in "abc":
        shop.join(run_id, task="busy")
    shop.join("d", task="other")
    await wait_all_tasks_blocked()
    assert shop.running == {"a", "d"}
    nursery.cancel_scope.cancel("the test has ended")


async def test_a_place_is_taken_at_once_only_by_whose_turn_it_is(shop: Workshop) -> None:
    first, second = shop.join("a"), shop.join("b")
    assert first.try_acquire()
    first.release()
    assert not second.try_acquire()


# --- cancelling ----------------------------------------------------------------------------------


async def test_all_runs_of_a_task_can_be_cancelled(shop: Workshop) -> None:
    for run_id in "abc":
        shop.join(run_id)
    shop.join("d", task="other")
    await wait_all_tasks_blocked()
    shop.queues.cancel("task", "enough")
    await wait_all_tasks_blocked()
    assert sorted(shop.ended) == [
        (run_id, Outcome.CANCELLED, "enough") for run_id in ("a", "b", "c")
    ]
    assert sorted(shop.begun) == ["a", "d"]
    assert shop.running == {"d"}


async def test_those_that_wait_can_be_cancelled_alone(shop: Workshop) -> None:
    first, *_ = (shop.join(run_id) for run_id in "abc")
    await wait_all_tasks_blocked()
    shop.queues.cancel("task", "the task was removed", only_waiting=True)
    await wait_all_tasks_blocked()
    assert sorted(shop.ended) == [
        (run_id, Outcome.CANCELLED, "the task was removed") for run_id in ("b", "c")
    ]
    assert shop.running == {"a"}
    assert shop.queues.first("task") is first
    assert shop.queues.length("task") == 1


async def test_those_before_a_run_can_be_cancelled_for_it(shop: Workshop) -> None:
    jobs = [shop.join(run_id) for run_id in "abcd"]
    await wait_all_tasks_blocked()
    shop.queues.cancel_before(jobs[2], "overlap: the next run is due")
    await wait_all_tasks_blocked()
    assert sorted(shop.ended) == [
        (run_id, Outcome.CANCELLED, "overlap: the next run is due") for run_id in ("a", "b")
    ]
    assert shop.running == {"c"}
    assert shop.queues.length("task") == 2


async def test_a_run_that_comes_after_a_cancellation_runs(shop: Workshop) -> None:
    shop.join("a")
    await wait_all_tasks_blocked()
    shop.queues.cancel("task", "overlap: the next run is due")
    shop.join("b")
    await wait_all_tasks_blocked()
    assert shop.running == {"b"}


async def test_cancelling_the_runs_of_a_task_that_has_none_does_nothing(shop: Workshop) -> None:
    shop.queues.cancel("task", "enough")
    assert shop.queues.length("task") == 0


# --- the daemon stops ----------------------------------------------------------------------------


async def test_once_it_is_held_nobody_gets_a_turn(shop: Workshop) -> None:
    shop.join("a")
    waiting = shop.join("b")
    await wait_all_tasks_blocked()
    shop.queues.stop()
    shop.finish("a")
    await wait_all_tasks_blocked()
    assert shop.begun == ["a"]
    assert not waiting.turn.is_set()


async def test_what_runs_is_waited_for_and_what_waits_is_not(
    shop: Workshop, nursery: trio.Nursery
) -> None:
    shop.join("a", task="one")
    shop.join("b", task="other")
    shop.join("c", task="other")
    await wait_all_tasks_blocked()
    shop.queues.stop()
    drained = trio.Event()

    async def drain() -> None:
        await shop.queues.drained()
        drained.set()

    nursery.start_soon(drain)
    for run_id in "ab":
        await wait_all_tasks_blocked()
        assert not drained.is_set()
        shop.finish(run_id)
    await wait_all_tasks_blocked()
    assert drained.is_set()


async def test_a_run_that_is_cancelled_is_waited_for_and_no_longer(
    shop: Workshop, nursery: trio.Nursery
) -> None:
    shop.join("a")
    await wait_all_tasks_blocked()
    shop.queues.stop()

    async def cancel() -> None:
        await wait_all_tasks_blocked()
        shop.queues.cancel("task", "enough")

    nursery.start_soon(cancel)
    with trio.fail_after(5):
        await shop.queues.drained()
    assert shop.ended == [("a", Outcome.CANCELLED, "enough")]


async def test_who_waits_for_another_attempt_is_not_waited_for(shop: Workshop) -> None:
    shop.join("a", retries=1)
    await wait_all_tasks_blocked()
    shop.queues.stop()
    shop.finish("a", AttemptResult(Outcome.FAILED, retry_after=1000))
    with trio.fail_after(5):
        await shop.queues.drained()
    assert shop.ended == []


async def test_where_nothing_runs_there_is_nothing_to_wait_for() -> None:
    with trio.fail_after(1):
        await RunQueues().drained()


# --- what is told of a run -----------------------------------------------------------------------


async def test_each_attempt_is_told_of_before_it_is_made(shop: Workshop) -> None:
    shop.join("a", task="backup")
    await wait_all_tasks_blocked()
    [(event_type, data)] = shop.told
    assert event_type is EventType.SCHEDULER_TASK_RUN
    assert data == {
        "task": "backup",
        "task_name": "backup",
        "task_type": "interval",
        "nominal_time": "2027-01-01T12:00:00+00:00",
        "attempt": 1,
        "run": "a",
    }


async def test_nothing_more_is_told_of_an_attempt_that_succeeds(shop: Workshop) -> None:
    shop.join("a")
    await wait_all_tasks_blocked()
    shop.finish("a")
    await wait_all_tasks_blocked()
    assert [event_type for event_type, _ in shop.told] == [EventType.SCHEDULER_TASK_RUN]


@pytest.mark.parametrize(
    "tried",
    [
        AttemptResult(Outcome.FAILED, "exit status 3", 3),
        AttemptResult(Outcome.FAILED, "it cannot be started: No such file or directory"),
    ],
)
async def test_an_attempt_that_fails_is_told_of(shop: Workshop, tried: AttemptResult) -> None:
    shop.join("a")
    await wait_all_tasks_blocked()
    shop.finish("a", tried)
    await wait_all_tasks_blocked()
    event_type, data = shop.told[-1]
    assert event_type is EventType.SCHEDULER_TASK_ERROR
    assert data["task"] == "task"
    assert data["nominal_time"] == "2027-01-01T12:00:00+00:00"
    assert data["attempt"] == 1
    assert data["outcome"] == "failed"
    assert data["reason"] == tried.reason
    assert data["exit_status"] == tried.exit_status
    assert data["duration"] >= 0
    assert data["output"].endswith("out err\n")
    assert len(data["output"]) == OUTPUT_TAIL


async def test_an_attempt_that_takes_too_long_is_told_of(
    shop: Workshop, autojump_clock: trio.testing.MockClock
) -> None:
    shop.join("a", timeout=5)
    await trio.sleep(6)
    event_type, data = shop.told[-1]
    assert event_type is EventType.SCHEDULER_TASK_ERROR
    assert data["outcome"] == "timed_out"
    assert data["exit_status"] is None
    assert data["duration"] == 5


async def test_each_attempt_says_which_it_is_and_whether_another_follows(
    shop: Workshop, autojump_clock: trio.testing.MockClock
) -> None:
    shop.join("a", retries=1)
    for _ in range(2):
        await wait_all_tasks_blocked()
        shop.finish("a", AttemptResult(Outcome.FAILED))
        await trio.sleep(10)
    assert [(event_type, data["attempt"], data.get("again")) for event_type, data in shop.told] == [
        (EventType.SCHEDULER_TASK_RUN, 1, None),
        (EventType.SCHEDULER_TASK_ERROR, 1, True),
        (EventType.SCHEDULER_TASK_RUN, 2, None),
        (EventType.SCHEDULER_TASK_ERROR, 2, False),
    ]


# --- whatever is done ----------------------------------------------------------------------------

TASKS: Final = 3

steps = st.one_of(
    st.tuples(st.just("join"), st.integers(0, TASKS - 1)),
    st.tuples(st.just("finish"), st.integers(0, 100)),
    st.tuples(st.sampled_from(["cancel all", "cancel those that wait"]), st.integers(0, TASKS - 1)),
    st.tuples(st.just("let happen"), st.just(0)),
)


@relaxed
@given(st.lists(steps, max_size=40))
async def test_of_each_task_one_run_goes_on_and_they_begin_in_order(
    steps: list[tuple[str, int]],
) -> None:
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            shop = Workshop(nursery, places=TASKS)
            joined: list[tuple[str, str]] = []
            task_of: dict[str, str] = {}
            for what, n in steps:
                match what:
                    case "join":
                        run_id = f"run {len(joined):03}"
                        task_of[run_id] = f"task {n}"
                        joined.append((run_id, task_of[run_id]))
                        shop.join(run_id, task_of[run_id])
                    case "finish" if shop.running:
                        shop.finish(sorted(shop.running)[n % len(shop.running)])
                    case "cancel all":
                        shop.queues.cancel(f"task {n}", "enough")
                    case "cancel those that wait":
                        shop.queues.cancel(f"task {n}", "enough", only_waiting=True)
                    case "let happen":
                        await wait_all_tasks_blocked()
                tasks = [task_of[run_id] for run_id in shop.running]
                assert len(tasks) == len(set(tasks))
            while len(shop.ended) < len(joined):
                await wait_all_tasks_blocked()
                for run_id in shop.running:
                    shop.finish(run_id)
    for task in {task for _, task in joined}:
        begun = [run_id for run_id in shop.begun if task_of[run_id] == task]
        assert begun == sorted(set(begun))
        assert shop.queues.length(task) == 0
    assert sorted(run_id for run_id, _, _ in shop.ended) == [run_id for run_id, _ in joined]
    assert shop.slots.value == TASKS
