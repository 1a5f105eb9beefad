"""What becomes of sandboxes whose keeper, or whose engine, has gone."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
import trio

from sandbox import Engine, GoneError, SandboxError, choose_engine
from tests.daemon_process import Marker
from tests.sandbox import engines
from tests.sandbox.conftest import StartKeeper
from tests.sandbox.way import Way

PATIENCE: Final = 60.0


async def engine_of(mode: str, name: str) -> Engine:
    """The engine as a keeper of this name sees it."""
    engine = await choose_engine(engines.settings(mode), name)
    await engine.check()
    return engine


async def wait_until_gone(engine: Engine) -> None:
    with trio.fail_after(PATIENCE):
        while await engine.names():
            await trio.sleep(0.05)


@contextmanager
def holder(mode: str, name: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a sandbox with something running in it."""
    command = [sys.executable, "-m", "tests.sandbox.holder", mode, name]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()}
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(name)
        yield process


async def test_the_end_of_a_keeper_is_the_end_of_its_sandboxes(
    mode: str, nursery: trio.Nursery
) -> None:
    name = engines.keeper_name()
    engine = await engine_of(mode, name)
    async with trio.open_nursery() as inner:
        keeper = await engines.keeper(mode, name, SANDBOX_POOL="1")
        await inner.start(keeper.run)
        await keeper.acquire("somebody")
        assert len(await engine.names()) >= 1
        inner.cancel_scope.cancel("the test wants it")
    assert await engine.names() == []


async def test_a_process_that_is_killed_takes_its_sandboxes_with_it(mode: str) -> None:
    name = engines.keeper_name()
    engine = await engine_of(mode, name)
    with holder(mode, name) as process:
        assert len(await engine.names()) == 1
        process.kill()
        await wait_until_gone(engine)


async def test_what_is_left_is_removed_at_the_next_start(
    mode: str, start_keeper: StartKeeper, nursery: trio.Nursery
) -> None:
    name = engines.keeper_name()
    engines.make_leftover(mode, name, f"{name}-left")
    keeper = await engines.keeper(mode, name)
    assert await keeper.engine.names() == [f"{name}-left"]
    await nursery.start(keeper.run)
    assert await keeper.engine.names() == []
    nursery.cancel_scope.cancel("the test has ended")


async def test_nothing_of_others_is_removed(mode: str, start_keeper: StartKeeper) -> None:
    """Neither another keeper's, though its name begins with ours, nor what has no label."""
    name = engines.keeper_name()
    others = {f"{name}2": f"{name}2-left", None: f"{name}-unlabelled"}
    engine = await engine_of(mode, f"{name}2")
    try:
        for label, instance in others.items():
            engines.make_leftover(mode, label, instance)
        keeper = await engines.keeper(mode, name)
        async with trio.open_nursery() as nursery:
            await nursery.start(keeper.run)
            await keeper.acquire("somebody")
            nursery.cancel_scope.cancel("the test has seen enough")
        assert await engine.names() == [f"{name}2-left"]
    finally:
        with trio.CancelScope(shield=True):
            for instance in others.values():
                await engine.destroy(instance)


async def test_a_sandbox_that_is_gone_can_be_destroyed_again(mode: str) -> None:
    engine = await engine_of(mode, engines.keeper_name())
    await engine.destroy("test-never-was")


async def test_a_sandbox_removed_behind_our_back_is_replaced(
    mode: str, start_keeper: StartKeeper
) -> None:
    keeper = await start_keeper()
    with trio.fail_after(PATIENCE):
        first = await keeper.acquire("somebody")
        other = await choose_engine(engines.settings(mode), "someone-else")
        await other.destroy(first.name)
        await first.session.ended.wait()
        second = await keeper.acquire("somebody")
        assert second.name != first.name
        assert (await second.run("echo usable")).stdout.kept == b"usable\n"


async def test_a_killed_agent_ends_the_run_and_the_sandbox_is_replaced(
    start_keeper: StartKeeper, marker: Marker
) -> None:
    """As the kernel does it when memory runs out; seen from outside, the agent is one process."""
    keeper = await start_keeper()
    command = f"echo; sleep {marker.text}"
    with trio.fail_after(PATIENCE):
        sandbox = await keeper.acquire("somebody")
        with pytest.raises(GoneError):
            await sandbox.run(command, on_output=lambda *_: kill_agent_of(marker))
        assert (await (await keeper.acquire("somebody")).run("true")).exit_status == 0


def kill_agent_of(marker: Marker) -> None:
    """Kill the agent whose run has the marker: on this machine others may have agents, too."""
    pid = marker.alive[0]
    while not is_agent(pid) or is_agent(parent_of(pid)):  # it has forked itself for the run
        pid = parent_of(pid)
    os.kill(pid, signal.SIGKILL)


def is_agent(pid: int) -> bool:
    command = Path(f"/proc/{pid}/cmdline").read_bytes()
    return b"sandbox.inside" in command and b"\x00/home/sandbox\x00" in command


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def test_an_engine_that_goes_away_ends_the_run_with_a_word_and_heals(
    mode: str,
    start_keeper: StartKeeper,
    nursery: trio.Nursery,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To this keeper it is gone; the engine itself may have other users."""
    monkeypatch.setattr("sandbox.keeper.SWEEP", 0.5)
    way = Way(mode, tmp_path / "engine")
    opened = await nursery.start(way.open)
    keeper = await start_keeper(**way.variables)
    sandbox = await keeper.acquire("somebody")
    running = trio.Event()
    failures: list[SandboxError] = []

    async def run() -> None:
        try:
            await sandbox.run("echo; sleep 1000", on_output=lambda *_: running.set())
        except SandboxError as failure:
            failures.append(failure)

    async with trio.open_nursery() as runs:
        runs.start_soon(run)
        await running.wait()
        opened.cancel("the engine goes away")
    assert "the next call gets a new one" in str(failures[0])
    await nursery.start(way.open)
    with trio.fail_after(PATIENCE):
        again = await keeper.acquire("somebody")
        assert (await again.run("echo usable")).stdout.kept == b"usable\n"
        while len(await keeper.engine.names()) > 1:  # what it could not remove, it removes later
            await trio.sleep(0.1)
