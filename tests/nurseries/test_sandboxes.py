"""The sandboxes' place in the daemon: ready before it is used, and gone when it has ended."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio

from clarad.nurseries.sandboxes import Sandboxes
from sandbox import EngineError, SandboxError, choose_engine, load
from tests.daemon_process import Marker
from tests.sandbox import engines

PATIENCE = 60.0
NOWHERE = {"DOCKER_HOST": "unix:///run/no-docker", "INCUS_SOCKET": "/run/no-incus"}

Open = Callable[..., Awaitable[Sandboxes]]


@pytest.fixture
async def open_sandboxes(mode: str, nursery: trio.Nursery) -> AsyncIterator[Open]:
    """Run sandboxes; keyword arguments are variables. They end with the test."""

    async def run(name: str | None = None, **variables: str) -> Sandboxes:
        settings = engines.settings(mode, **variables)
        sandboxes = Sandboxes(settings, name or engines.keeper_name())
        await nursery.start(sandboxes.run)
        return sandboxes

    yield run
    nursery.cancel_scope.cancel("the test has ended")


@pytest.fixture
async def sandboxes(open_sandboxes: Open) -> Sandboxes:
    """Those with the default settings."""
    return await open_sandboxes()


def ignore(_stream: str, _data: bytes) -> None:
    """Take output."""


async def test_before_they_are_ready_one_is_told_to_wait() -> None:
    sandboxes = Sandboxes(load({"SANDBOX_MODE": "docker"}), "test")
    with pytest.raises(EngineError, match="being started; try again"):
        await sandboxes.use("run_shell", "ann", {"command": "true"})
    with pytest.raises(EngineError, match="being started; try again"):
        sandboxes.status()


@pytest.mark.parametrize("wanted", ["docker", "incus", "incus-vm", "auto"])
async def test_without_an_engine_they_do_not_start(wanted: str, nursery: trio.Nursery) -> None:
    sandboxes = Sandboxes(load({"SANDBOX_MODE": wanted, **NOWHERE}), "test")
    with pytest.raises(EngineError, match="does not answer at"):
        await nursery.start(sandboxes.run)


async def test_which_engine_it_is_is_logged(
    mode: str, open_sandboxes: Open, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await open_sandboxes()
    assert f"sandboxes are made by {mode}" in caplog.messages


async def test_a_tool_is_used_in_its_owner_s_sandbox(sandboxes: Sandboxes) -> None:
    with trio.fail_after(PATIENCE):
        await sandboxes.use("write_file", "ann", {"path": "note", "content": "hers"})
        assert (await sandboxes.use("read_file", "ann", {"path": "note"})).text == "hers"
        assert (await sandboxes.use("read_file", "bob", {"path": "note"})).failed
    assert [one.owner for one in sandboxes.status()] == ["ann", "bob"]


async def test_a_command_is_executed_as_it_is_written(sandboxes: Sandboxes) -> None:
    seen: list[tuple[str, bytes]] = []
    with trio.fail_after(PATIENCE):
        result = await sandboxes.execute(
            "ann", ["printf", "%s", "$HOME; exit 1"], lambda *piece: seen.append(piece)
        )
    assert (result.exit_status, seen) == (0, [("stdout", b"$HOME; exit 1")])


async def test_a_reset_ends_what_runs_and_the_files_are_gone(
    sandboxes: Sandboxes, marker: Marker
) -> None:
    running = trio.Event()
    failures: list[SandboxError] = []

    async def run() -> None:
        command = ["sh", "-c", f"touch file; echo; exec sleep {marker.text}"]
        try:
            await sandboxes.execute("ann", command, lambda *_: running.set())
        except SandboxError as failure:
            failures.append(failure)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await running.wait()
            await sandboxes.reset("ann")
            assert marker.alive == []
        assert "the next call gets a new one" in str(failures[0])
        assert (await sandboxes.execute("ann", ["ls"], ignore)).stdout.total == 0


async def test_the_reset_of_nobody_s_sandbox_is_fine(sandboxes: Sandboxes) -> None:
    with trio.fail_after(PATIENCE):
        await sandboxes.reset("nobody")
    assert sandboxes.status() == []


async def test_prune_removes_what_is_left_and_not_what_is_used(
    mode: str, open_sandboxes: Open
) -> None:
    name = engines.keeper_name()
    sandboxes = await open_sandboxes(name)
    with trio.fail_after(PATIENCE):
        await sandboxes.execute("ann", ["touch", "file"], ignore)
        engines.make_leftover(mode, name, f"{name}-left")
        assert await sandboxes.prune() == 1
        assert await sandboxes.prune() == 0
        assert (await sandboxes.execute("ann", ["ls"], ignore)).stdout.kept == b"file\n"


async def test_two_on_one_engine_leave_each_other_s_alone(open_sandboxes: Open) -> None:
    name = engines.keeper_name()
    one, two = await open_sandboxes(name), await open_sandboxes(f"{name}2")
    with trio.fail_after(PATIENCE):
        for sandboxes in (one, two):
            await sandboxes.execute("ann", ["touch", "file"], ignore)
        assert (await one.prune(), await two.prune()) == (0, 0)
        await one.reset("ann")
        assert (await two.execute("ann", ["ls"], ignore)).stdout.kept == b"file\n"


async def test_when_they_have_ended_none_is_left(mode: str, nursery: trio.Nursery) -> None:
    name = engines.keeper_name()
    sandboxes = Sandboxes(engines.settings(mode, SANDBOX_POOL="1"), name)
    engine = await choose_engine(engines.settings(mode), name)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as inner:
            await inner.start(sandboxes.run)
            await sandboxes.execute("ann", ["true"], ignore)
            inner.cancel_scope.cancel("the test wants it")
        assert await engine.names() == []
        with pytest.raises(EngineError, match="does not run"):
            await sandboxes.execute("ann", ["true"], ignore)
    engine.close()


async def test_they_can_be_started_again(mode: str, nursery: trio.Nursery) -> None:
    sandboxes = Sandboxes(engines.settings(mode), engines.keeper_name())
    for _ in range(2):
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as inner:
                await inner.start(sandboxes.run)
                result = await sandboxes.execute("ann", ["echo", "usable"], ignore)
                inner.cancel_scope.cancel("the test wants it")
        assert result.stdout.kept == b"usable\n"
