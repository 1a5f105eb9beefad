"""The keeper, on an engine in memory and a clock of the test's own."""

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import sandbox
from sandbox import (
    EngineError,
    FullError,
    GoneError,
    Keeper,
    Sandbox,
    SandboxError,
    Settings,
    load,
    open_keeper,
)
from sandbox.session import READY_WITHIN
from tests.sandbox.scripted import Engine

MakeKeeper = Callable[..., Keeper]
Opened = Callable[[], AbstractAsyncContextManager[Keeper]]


@pytest.fixture
def clock() -> MockClock:
    return MockClock()


@pytest.fixture
def engine(nursery: trio.Nursery, clock: MockClock) -> Engine:
    return Engine(nursery)


@pytest.fixture
def make(engine: Engine) -> MakeKeeper:
    def make(pool: int = 0, capacity: int = 10, idle_timeout: float = 100) -> Keeper:
        return Keeper(engine, "k", pool=pool, capacity=capacity, idle_timeout=idle_timeout)

    return make


async def pass_time(clock: MockClock, seconds: float) -> None:
    clock.jump(seconds)
    await wait_all_tasks_blocked()


async def test_an_owner_has_one_sandbox(make: MakeKeeper, nursery: trio.Nursery) -> None:
    await nursery.start((keeper := make()).run)
    first = await keeper.acquire("a")
    assert await keeper.acquire("a") is first
    assert await keeper.acquire("b") is not first


async def test_owners_who_ask_twice_at_once_get_one_sandbox(
    make: MakeKeeper, nursery: trio.Nursery, engine: Engine
) -> None:
    await nursery.start((keeper := make()).run)
    found: list[Sandbox] = []

    async def ask() -> None:
        found.append(await keeper.acquire("a"))

    async with trio.open_nursery() as inner:
        for _ in range(5):
            inner.start_soon(ask)
    assert len(set(found)) == 1
    assert len(engine.made) == 1


async def test_ready_means_warm(make: MakeKeeper, nursery: trio.Nursery, engine: Engine) -> None:
    await nursery.start((keeper := make(pool=1)).run)
    (name,) = engine.made
    engine.hold = trio.Event()  # no other can be made
    assert (await keeper.acquire("a")).name == name


async def test_the_pool_is_filled_up_again(
    make: MakeKeeper, nursery: trio.Nursery, engine: Engine
) -> None:
    await nursery.start((keeper := make(pool=2)).run)
    await wait_all_tasks_blocked()
    assert [status.owner for status in keeper.status()] == [None, None]
    await keeper.acquire("a")
    await wait_all_tasks_blocked()
    assert [status.owner for status in keeper.status()] == ["a", None, None]
    assert len(engine.agents) == 3


async def test_there_are_never_more_than_the_maximum(
    make: MakeKeeper, nursery: trio.Nursery, engine: Engine
) -> None:
    await nursery.start((keeper := make(pool=2, capacity=3)).run)
    for owner in "abc":
        await keeper.acquire(owner)
    with pytest.raises(FullError, match="all 3 sandboxes are taken: they end 100 s after"):
        await keeper.acquire("d")
    assert len(engine.agents) == 3
    assert not (await keeper.acquire("a")).is_lost  # who has one keeps it


async def test_when_one_ends_the_next_owner_gets_one(
    make: MakeKeeper, nursery: trio.Nursery
) -> None:
    await nursery.start((keeper := make(capacity=1)).run)
    await keeper.acquire("a")
    await keeper.delete("a")
    assert not (await keeper.acquire("b")).is_lost


async def test_an_idle_sandbox_ends(
    make: MakeKeeper, nursery: trio.Nursery, engine: Engine, clock: MockClock
) -> None:
    await nursery.start((keeper := make()).run)
    sandbox = await keeper.acquire("a")
    await pass_time(clock, 99)
    assert await keeper.acquire("a") is sandbox
    await pass_time(clock, 99)
    assert not sandbox.is_lost  # being asked for counts as use
    await pass_time(clock, 2)
    assert sandbox.is_lost
    assert engine.agents == {}
    assert keeper.status() == []
    assert await keeper.acquire("a") is not sandbox


async def test_a_sandbox_in_use_is_not_idle(
    make: MakeKeeper, nursery: trio.Nursery, clock: MockClock
) -> None:
    await nursery.start((keeper := make()).run)
    sandbox = await keeper.acquire("a")
    with sandbox.in_use():
        await pass_time(clock, 1000)
        assert keeper.status()[0].idle == 0
    await pass_time(clock, 99)
    assert not sandbox.is_lost
    await pass_time(clock, 2)
    assert sandbox.is_lost


async def test_a_warm_sandbox_waits_for_ever(
    make: MakeKeeper, nursery: trio.Nursery, engine: Engine, clock: MockClock
) -> None:
    await nursery.start((keeper := make(pool=1)).run)
    for _ in range(10):
        await pass_time(clock, 90)
    assert len(engine.made) == 1
    sandbox = await keeper.acquire("a")
    await pass_time(clock, 99)
    assert not sandbox.is_lost


async def test_a_sandbox_that_dies_is_removed_and_replaced(
    make: MakeKeeper, nursery: trio.Nursery, engine: Engine
) -> None:
    await nursery.start((keeper := make()).run)
    sandbox = await keeper.acquire("a")
    await engine.agents[sandbox.name].die()
    await wait_all_tasks_blocked()
    assert engine.agents == {}
    with pytest.raises(GoneError):
        await sandbox.run("true")
    assert (await (await keeper.acquire("a")).run("true")).exit_status == 0


async def test_a_warm_sandbox_that_dies_is_replaced(
    make: MakeKeeper, nursery: trio.Nursery, engine: Engine
) -> None:
    await nursery.start((keeper := make(pool=1)).run)
    await engine.agents[engine.made[0]].die()
    await wait_all_tasks_blocked()
    assert [status.name for status in keeper.status()] == [engine.made[1]]


async def test_a_reset_gives_another_sandbox(
    make: MakeKeeper, nursery: trio.Nursery, engine: Engine
) -> None:
    await nursery.start((keeper := make()).run)
    first = await keeper.acquire("a")
    second = await keeper.reset("a")
    assert second is not first
    assert first.is_lost
    assert list(engine.agents) == [second.name]


async def test_one_that_is_being_made_can_be_deleted(
    make: MakeKeeper, nursery: trio.Nursery, engine: Engine
) -> None:
    await nursery.start((keeper := make(capacity=1)).run)
    engine.hold = trio.Event()
    async with trio.open_nursery() as inner:
        inner.start_soon(keeper.acquire, "a")
        await wait_all_tasks_blocked()
        inner.start_soon(keeper.delete, "a")
        await wait_all_tasks_blocked()
        engine.hold.set()
    assert keeper.status() == []
    assert engine.agents == {}
    assert not (await keeper.acquire("b")).is_lost  # its place is free


async def test_deleting_what_nobody_has_is_nothing(make: MakeKeeper, nursery: trio.Nursery) -> None:
    await nursery.start((keeper := make()).run)
    await keeper.delete("nobody")


async def test_leftovers_with_our_label_are_removed_at_the_start(
    make: MakeKeeper, nursery: trio.Nursery, engine: Engine
) -> None:
    await engine.create("left")
    await nursery.start(make().run)
    assert engine.agents == {}


async def test_what_could_not_be_removed_is_removed_later(
    make: MakeKeeper,
    nursery: trio.Nursery,
    engine: Engine,
    clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await nursery.start((keeper := make()).run)
    sandbox = await keeper.acquire("a")
    engine.undestroyable.add(sandbox.name)
    await keeper.delete("a")
    assert f"{sandbox.name} is left for later" in caplog.text
    engine.undestroyable.clear()
    await pass_time(clock, 61)
    assert engine.agents == {}


async def test_what_is_missing_is_raised_before_it_is_ready(
    make: MakeKeeper, nursery: trio.Nursery, engine: Engine
) -> None:
    engine.failure = "the engine is not there"
    with pytest.raises(EngineError, match="the engine is not there"):
        await nursery.start(make().run)


async def test_a_first_sandbox_that_cannot_be_made_is_raised_before_it_is_ready(
    make: MakeKeeper, nursery: trio.Nursery, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def create(name: str) -> trio.abc.Stream:
        raise EngineError("no room")

    monkeypatch.setattr(engine, "create", create)
    with pytest.raises(EngineError, match="no room"):
        await nursery.start(make(pool=1).run)


async def test_a_failure_is_said_to_whoever_asked_and_the_next_one_is_tried(
    make: MakeKeeper, nursery: trio.Nursery, engine: Engine
) -> None:
    await nursery.start((keeper := make()).run)
    engine.failure = "no room"
    with pytest.raises(SandboxError, match="no room"):
        await keeper.acquire("a")
    engine.failure = None
    assert not (await keeper.acquire("a")).is_lost


async def test_an_agent_that_never_answers_costs_one_sandbox_and_no_other(
    make: MakeKeeper, nursery: trio.Nursery, engine: Engine, clock: MockClock
) -> None:
    await nursery.start((keeper := make(idle_timeout=1000)).run)
    theirs = await keeper.acquire("a")
    engine.is_mute = True
    async with trio.open_nursery() as inner:
        inner.start_soon(expect_no_sandbox, keeper, "b", "did not answer")
        await wait_all_tasks_blocked()
        await pass_time(clock, READY_WITHIN)
    assert list(engine.agents) == [theirs.name]
    assert (await theirs.run("true")).exit_status == 0
    engine.is_mute = False
    assert not (await keeper.acquire("b")).is_lost


async def test_a_first_agent_that_never_answers_is_raised_before_it_is_ready(
    make: MakeKeeper, nursery: trio.Nursery, engine: Engine, clock: MockClock
) -> None:
    engine.is_mute = True

    async def start() -> None:
        with pytest.raises(EngineError, match="did not answer"):
            await nursery.start(make(pool=1).run)

    async with trio.open_nursery() as inner:
        inner.start_soon(start)
        await wait_all_tasks_blocked()
        await pass_time(clock, READY_WITHIN)
    assert engine.agents == {}


async def test_an_agent_that_dies_while_its_disk_is_tried_is_said_to_whoever_waits(
    make: MakeKeeper,
    nursery: trio.Nursery,
    engine: Engine,
    clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(engine, "disk_to_verify", 1 << 30)
    await nursery.start((keeper := make()).run)
    engine.is_mute = True
    async with trio.open_nursery() as inner:
        inner.start_soon(expect_no_sandbox, keeper, "a", "has ended under what ran in it")
        await wait_all_tasks_blocked()
        (agent,) = engine.agents.values()
        await agent.ready()
        await agent.start()
        await agent.die()
    await wait_all_tasks_blocked()
    assert engine.agents == {}
    assert "Traceback" not in caplog.text
    engine.is_mute = False
    assert not (await keeper.acquire("a")).is_lost


async def test_a_connection_that_breaks_in_an_unforeseen_way_costs_one_sandbox_and_no_other(
    make: MakeKeeper,
    nursery: trio.Nursery,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await nursery.start((keeper := make()).run)
    theirs, broken = await keeper.acquire("a"), await keeper.acquire("b")

    async def send_all(data: bytes) -> None:
        raise ArithmeticError("nobody has thought of this")

    monkeypatch.setattr(engine.agents[broken.name].theirs, "send_all", send_all)
    with pytest.raises(GoneError):
        await broken.run("true")
    await wait_all_tasks_blocked()
    assert "nobody has thought of this" in caplog.text
    assert list(engine.agents) == [theirs.name]
    assert (await theirs.run("true")).exit_status == 0


async def expect_no_sandbox(keeper: Keeper, owner: str, why: str) -> None:
    with pytest.raises(EngineError, match=why):
        await keeper.acquire(owner)


async def test_the_pool_is_tried_again_after_a_failure(
    make: MakeKeeper,
    nursery: trio.Nursery,
    engine: Engine,
    clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await nursery.start((keeper := make(pool=1)).run)
    engine.failure = "no room"
    await keeper.acquire("a")
    await wait_all_tasks_blocked()
    assert "no sandbox can be made: no room" in caplog.text
    engine.failure = None
    await pass_time(clock, 31)
    assert [status.owner for status in keeper.status()] == ["a", None]


async def test_whoever_stops_waiting_has_a_sandbox_later(
    make: MakeKeeper, nursery: trio.Nursery, engine: Engine
) -> None:
    await nursery.start((keeper := make()).run)
    engine.hold = trio.Event()
    with trio.move_on_after(0) as scope:
        await keeper.acquire("a")
    assert scope.cancelled_caught
    engine.hold.set()
    await wait_all_tasks_blocked()
    assert not (await keeper.acquire("a")).is_lost
    assert len(engine.made) == 1


async def test_the_end_of_the_keeper_ends_everything(
    make: MakeKeeper, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with trio.open_nursery() as nursery:
        await nursery.start((keeper := make(pool=2)).run)
        sandbox = await keeper.acquire("a")
        nursery.cancel_scope.cancel("the test wants it")
    assert engine.agents == {}
    assert sandbox.is_lost
    assert caplog.text == ""
    with pytest.raises(EngineError, match="does not run"):
        await keeper.acquire("b")


async def test_whoever_waits_when_the_keeper_ends_is_told(
    make: MakeKeeper, nursery: trio.Nursery, engine: Engine
) -> None:
    keeper = make()
    told: list[EngineError] = []

    async def ask() -> None:
        try:
            await keeper.acquire("a")
        except EngineError as error:
            told.append(error)

    async with trio.open_nursery() as inner:
        await inner.start(keeper.run)
        engine.hold = trio.Event()
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        inner.cancel_scope.cancel("the test wants it")
    await wait_all_tasks_blocked()
    assert "does not run" in str(told[0])


async def test_a_keeper_can_run_again(
    make: MakeKeeper, nursery: trio.Nursery, engine: Engine
) -> None:
    keeper = make(pool=1)
    for _ in range(2):
        async with trio.open_nursery() as inner:
            await inner.start(keeper.run)
            assert not (await keeper.acquire("a")).is_lost
            inner.cancel_scope.cancel("the test wants it")
    assert engine.agents == {}


async def test_what_the_engine_cannot_keep_is_known(
    make: MakeKeeper, nursery: trio.Nursery
) -> None:
    await nursery.start((keeper := make()).run)
    assert keeper.warnings == ["a warning"]


# --- open_keeper ---------------------------------------------------------------------------------


@pytest.fixture
def opened(make: MakeKeeper, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Open a keeper on the engine in memory."""

    async def make_keeper(_settings: Settings, _name: str) -> Keeper:
        return make()

    monkeypatch.setattr(sandbox, "make_keeper", make_keeper)
    return partial(open_keeper, load({}), "k")


@pytest.mark.parametrize(
    "own", [KeyError("mine"), ExceptionGroup("mine", [KeyError("a")])], ids=["one", "group"]
)
async def test_what_the_block_raises_is_raised_as_it_is(opened: Opened, own: Exception) -> None:
    async def block() -> None:
        async with opened() as keeper:
            await keeper.acquire("a")
            raise own

    with pytest.raises((KeyError, ExceptionGroup)) as caught:
        await block()
    assert caught.value is own


async def test_a_block_that_is_cancelled_ends_as_one(opened: Opened) -> None:
    with trio.CancelScope() as scope:
        async with opened():
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_what_is_raised_while_the_block_is_cancelled_comes_out(opened: Opened) -> None:
    async def fail_at_the_end() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise KeyError("mine")

    async def block() -> None:
        with trio.CancelScope() as scope:
            async with opened(), trio.open_nursery() as nursery:
                nursery.start_soon(fail_at_the_end)
                await wait_all_tasks_blocked()
                scope.cancel()
                await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        await block()
    assert [type(error) for error in caught.value.exceptions] == [KeyError]
