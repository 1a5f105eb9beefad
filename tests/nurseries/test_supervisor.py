from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from clarad.nurseries.supervisor import MAX_RESTARTS, PERIOD, open_supervisor

Status = trio.TaskStatus[Any]


class Part:
    """A part of a daemon that does as it is told; `log` is shared with the others."""

    def __init__(self, name: str, log: list[str], *, value: object = None) -> None:
        self.name = name
        self.runs = 0
        self.running = False
        self._log = log
        self._value = value
        self._orders: list[Callable[[], Awaitable[None]]] = []

    def first(self, *orders: Callable[[], Awaitable[None]]) -> "Part":
        """What the first runs do, one after the other; later ones run until they are stopped."""
        self._orders += orders
        return self

    async def serve(self, task_status: Status) -> None:
        self.runs += 1
        self.running = True
        self._log.append(f"{self.name} begins")
        task_status.started(self._value)
        try:
            await (self._orders.pop(0) if self._orders else trio.sleep_forever)()
        finally:
            self.running = False
            self._log.append(f"{self.name} ends")


class Failure(Exception):  # noqa: N818 - its name says enough
    """What a part fails with."""


async def fail() -> None:
    raise Failure


async def fail_after_a_period() -> None:
    await trio.sleep(PERIOD + 1)
    raise Failure


async def end() -> None:
    pass


@pytest.fixture
def log() -> list[str]:
    return []


# --- starting ------------------------------------------------------------------------------------


async def test_what_a_part_is_started_with_is_passed_on(
    autojump_clock: MockClock, log: list[str]
) -> None:
    async with open_supervisor() as supervisor:
        assert await supervisor.start("a", Part("a", log, value=("127.0.0.1", 80)).serve) == (
            "127.0.0.1",
            80,
        )


async def test_a_part_is_ready_before_the_next_one_is_started(
    autojump_clock: MockClock, log: list[str]
) -> None:
    async def slow(task_status: Status) -> None:
        await trio.sleep(10)
        log.append("slow is ready")
        task_status.started()

    async with open_supervisor() as supervisor:
        await supervisor.start("slow", slow)
        await supervisor.start("a", Part("a", log).serve)
    assert log[:2] == ["slow is ready", "a begins"]


async def test_a_failure_before_a_part_is_ready_is_raised(autojump_clock: MockClock) -> None:
    runs = 0

    async def broken(task_status: Status) -> None:
        nonlocal runs
        runs += 1
        raise Failure

    async with open_supervisor() as supervisor:
        with pytest.raises(Failure):
            await supervisor.start("broken", broken)
    assert runs == 1


async def test_a_failure_before_a_part_is_ready_leaves_the_others_running(
    autojump_clock: MockClock, log: list[str]
) -> None:
    async def broken(task_status: Status) -> None:
        raise Failure

    part = Part("a", log)
    async with open_supervisor() as supervisor:
        await supervisor.start("a", part.serve)
        with pytest.raises(Failure):
            await supervisor.start("broken", broken)
        assert part.running


async def test_a_start_that_is_cancelled_does_not_wait_until_the_part_is_ready(
    nursery: trio.Nursery,
) -> None:
    release = trio.Event()
    given_up = trio.Event()

    async def slow(task_status: Status) -> None:
        await release.wait()
        task_status.started()

    async with open_supervisor() as supervisor:

        async def start() -> None:
            with trio.CancelScope() as scope:
                nursery.start_soon(cancel, scope)
                await supervisor.start("slow", slow)
            given_up.set()

        async def cancel(scope: trio.CancelScope) -> None:
            await wait_all_tasks_blocked()
            scope.cancel("too slow")

        nursery.start_soon(start)
        await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        in_time = given_up.is_set()
        release.set()
    assert in_time


# --- failing -------------------------------------------------------------------------------------


async def test_a_part_that_fails_is_started_again(
    autojump_clock: MockClock, log: list[str]
) -> None:
    part = Part("a", log).first(fail, fail)
    async with open_supervisor() as supervisor:
        await supervisor.start("a", part.serve)
        await trio.sleep(PERIOD)
        assert (part.runs, part.running) == (3, True)


async def test_a_part_that_fails_is_started_again_alone(
    autojump_clock: MockClock, log: list[str]
) -> None:
    before, failing, behind = (Part(name, log) for name in ("before", "failing", "behind"))
    failing.first(fail)
    async with open_supervisor() as supervisor:
        for part in (before, failing, behind):
            await supervisor.start(part.name, part.serve)
        await trio.sleep(PERIOD)
        assert [part.runs for part in (before, failing, behind)] == [1, 2, 1]
        assert before.running
        assert behind.running


async def test_a_part_may_fail_before_it_is_ready_once_it_has_been(
    autojump_clock: MockClock,
) -> None:
    runs = 0

    async def flaky(task_status: Status) -> None:
        nonlocal runs
        runs += 1
        if runs == 2:
            raise Failure
        task_status.started(runs)
        if runs == 1:
            raise Failure
        await trio.sleep_forever()

    async with open_supervisor() as supervisor:
        assert await supervisor.start("flaky", flaky) == 1
        await trio.sleep(PERIOD)
    assert runs == 3


async def test_a_failure_and_its_restart_are_in_the_log(
    autojump_clock: MockClock, log: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with open_supervisor() as supervisor:
        await supervisor.start("a", Part("a", log).first(fail).serve)
        await trio.sleep(PERIOD)
    assert caplog.messages == ["a failed and is started again"]


async def test_a_part_that_keeps_failing_is_given_up(
    autojump_clock: MockClock, log: list[str]
) -> None:
    part = Part("a", log).first(*[fail] * 100)
    with pytest.RaisesGroup(Failure, flatten_subgroups=True):
        async with open_supervisor() as supervisor:
            await supervisor.start("a", part.serve)
            await trio.sleep_forever()
    assert part.runs == MAX_RESTARTS + 1


async def test_all_parts_pay_from_one_budget(autojump_clock: MockClock, log: list[str]) -> None:
    parts = [Part(name, log).first(*[fail] * 100) for name in ("a", "b")]
    with pytest.RaisesGroup(Failure, flatten_subgroups=True, allow_unwrapped=True):
        async with open_supervisor() as supervisor:
            for part in parts:
                await supervisor.start(part.name, part.serve)
            await trio.sleep_forever()
    failures = log.count("a ends") + log.count("b ends")
    assert MAX_RESTARTS + 1 <= failures <= MAX_RESTARTS + 2


async def test_a_part_that_fails_now_and_then_is_never_given_up(
    autojump_clock: MockClock, log: list[str]
) -> None:
    part = Part("a", log).first(*[fail_after_a_period] * 20)
    async with open_supervisor() as supervisor:
        await supervisor.start("a", part.serve)
        await trio.sleep(100 * PERIOD)
        assert (part.runs, part.running) == (21, True)


async def test_a_part_that_ends_by_itself_is_not_started_again(
    autojump_clock: MockClock, log: list[str]
) -> None:
    part = Part("a", log).first(end)
    async with open_supervisor() as supervisor:
        await supervisor.start("a", part.serve)
        await supervisor.ended("a")
        await trio.sleep(PERIOD)
    assert part.runs == 1


# --- stopping ------------------------------------------------------------------------------------


async def test_a_part_that_is_stopped_has_ended(autojump_clock: MockClock, log: list[str]) -> None:
    part = Part("a", log)
    async with open_supervisor() as supervisor:
        await supervisor.start("a", part.serve)
        await supervisor.stop("a")
        assert not part.running


async def test_a_cancellation_is_not_a_failure(
    autojump_clock: MockClock, log: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    part = Part("a", log)
    async with open_supervisor() as supervisor:
        await supervisor.start("a", part.serve)
        await supervisor.stop("a")
        await trio.sleep(PERIOD)
    assert part.runs == 1
    assert caplog.messages == []


async def test_a_part_can_be_stopped_between_a_failure_and_the_restart(
    autojump_clock: MockClock, log: list[str]
) -> None:
    part = Part("a", log).first(fail)
    async with open_supervisor() as supervisor:
        await supervisor.start("a", part.serve)
        await supervisor.stop("a")
        await trio.sleep(PERIOD)
    assert part.runs == 1


async def test_a_part_that_has_ended_can_be_stopped(
    autojump_clock: MockClock, log: list[str]
) -> None:
    async with open_supervisor() as supervisor:
        await supervisor.start("a", Part("a", log).first(end).serve)
        await supervisor.ended("a")
        await supervisor.stop("a")


async def test_stopping_a_part_leaves_the_others_running(
    autojump_clock: MockClock, log: list[str]
) -> None:
    other = Part("b", log)
    async with open_supervisor() as supervisor:
        await supervisor.start("a", Part("a", log).serve)
        await supervisor.start("b", other.serve)
        await supervisor.stop("a")
        assert other.running


async def fail_when_stopped() -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise Failure


async def test_a_failure_on_the_way_out_is_not_a_failure(
    autojump_clock: MockClock, log: list[str]
) -> None:
    part = Part("a", log).first(fail_when_stopped)
    async with open_supervisor() as supervisor:
        await supervisor.start("a", part.serve)
        await supervisor.stop("a")
        await trio.sleep(PERIOD)
    assert part.runs == 1


async def test_a_failure_on_the_way_out_of_a_nursery_is_not_a_failure_either(
    autojump_clock: MockClock, log: list[str]
) -> None:
    async def fail_beside_others() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_when_stopped)
            nursery.start_soon(trio.sleep_forever)

    part = Part("a", log).first(fail_beside_others)
    async with open_supervisor() as supervisor:
        await supervisor.start("a", part.serve)
        await supervisor.stop("a")
        await trio.sleep(PERIOD)
    assert part.runs == 1


# --- cancelled at once ---------------------------------------------------------------------------


async def test_parts_are_cancelled_at_once_and_the_others_go_on(
    autojump_clock: MockClock, log: list[str]
) -> None:
    parts = {name: Part(name, log) for name in ("a", "b", "c")}
    async with open_supervisor() as supervisor:
        for name, part in parts.items():
            await supervisor.start(name, part.serve)
        supervisor.cancel("a", "c")
        await wait_all_tasks_blocked()
        assert [part.running for part in parts.values()] == [False, True, False]
        await trio.sleep(PERIOD)
        assert [part.runs for part in parts.values()] == [1, 1, 1]


async def test_none_that_is_cancelled_waits_for_what_is_built_upon_it(
    autojump_clock: MockClock, log: list[str]
) -> None:
    async def end_slowly() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(10)

    async with open_supervisor() as supervisor:
        await supervisor.start("below", Part("below", log).serve)
        await supervisor.start("above", Part("above", log).first(end_slowly).serve)
        supervisor.cancel("below", "above")
        await supervisor.ended("below")
        assert log[2:] == ["below ends"]
        await supervisor.ended("above")


async def test_a_part_that_waits_for_its_next_start_is_not_started(
    autojump_clock: MockClock, log: list[str]
) -> None:
    part = Part("a", log).first(fail)
    async with open_supervisor() as supervisor:
        await supervisor.start("a", part.serve)
        await wait_all_tasks_blocked()
        supervisor.cancel("a")
        await supervisor.ended("a")
    assert part.runs == 1


async def test_what_is_not_there_or_not_ready_is_left_to_who_starts_it(
    autojump_clock: MockClock, log: list[str]
) -> None:
    async def slow(task_status: Status) -> None:
        await trio.sleep(10)
        task_status.started()
        log.append("slow is ready")
        await trio.sleep_forever()

    async with open_supervisor() as supervisor, trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.start, "slow", slow)
        await wait_all_tasks_blocked()
        supervisor.cancel("slow", "never there")
        await trio.sleep(20)
        assert log == ["slow is ready"]


# --- the end of everything -----------------------------------------------------------------------


async def test_parts_are_stopped_in_reverse_order(
    autojump_clock: MockClock, log: list[str]
) -> None:
    async with open_supervisor() as supervisor:
        for name in ("a", "b", "c"):
            await supervisor.start(name, Part(name, log).serve)
    assert log[3:] == ["c ends", "b ends", "a ends"]


async def test_all_parts_can_be_stopped_at_any_time(
    autojump_clock: MockClock, log: list[str]
) -> None:
    async with open_supervisor() as supervisor:
        for name in ("a", "b", "c"):
            await supervisor.start(name, Part(name, log).serve)
        await supervisor.stop_all()
        assert log[3:] == ["c ends", "b ends", "a ends"]


async def test_a_cancellation_stops_parts_in_reverse_order(
    autojump_clock: MockClock, log: list[str]
) -> None:
    with trio.move_on_after(PERIOD):
        async with open_supervisor() as supervisor:
            for name in ("a", "b", "c"):
                await supervisor.start(name, Part(name, log).serve)
            await trio.sleep_forever()
    assert log[3:] == ["c ends", "b ends", "a ends"]


async def test_a_failure_of_the_block_stops_parts_in_reverse_order_and_leaves(
    autojump_clock: MockClock, log: list[str]
) -> None:
    with pytest.RaisesGroup(Failure):
        async with open_supervisor() as supervisor:
            for name in ("a", "b", "c"):
                await supervisor.start(name, Part(name, log).serve)
            raise Failure
    assert log[3:] == ["c ends", "b ends", "a ends"]


async def test_a_part_that_is_given_up_stops_the_others_in_reverse_order(
    autojump_clock: MockClock, log: list[str]
) -> None:
    with pytest.RaisesGroup(Failure, flatten_subgroups=True):
        async with open_supervisor() as supervisor:
            for name in ("a", "b"):
                await supervisor.start(name, Part(name, log).serve)
            await supervisor.start("broken", Part("broken", log).first(*[fail] * 100).serve)
            await trio.sleep_forever()
    assert log[-3:] == ["broken ends", "b ends", "a ends"]


async def test_a_part_can_use_those_before_it_until_it_has_ended(
    autojump_clock: MockClock, log: list[str]
) -> None:
    store = Part("store", log)
    store_was_there = False

    async def clean_up_slowly() -> None:
        nonlocal store_was_there
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(10)
                store_was_there = store.running

    with trio.move_on_after(PERIOD):
        async with open_supervisor() as supervisor:
            await supervisor.start("store", store.serve)
            await supervisor.start("user", Part("user", log).first(clean_up_slowly).serve)
            await trio.sleep_forever()
    assert store_was_there
