"""How a command reaches the daemon that runs, and what it says when it cannot."""

import os
import pwd
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from clarad.adapters.operator import CONNECT_TIMEOUT, NoDaemon, OperatorError, open_operator
from clarad.config import discovery
from clarad.protocol.control import PauseTask, Refused, Reload, RunTask
from tests.control import Control
from tests.unprivileged import unprivileged


@pytest.fixture
async def control(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Control]:
    """A daemon whose control socket is in its state directory."""
    served = Control(tmp_path / "control.sock", nursery)
    await nursery.start(served.gateway.run)
    yield served
    await served.stop()
    nursery.cancel_scope.cancel("the test has ended")


async def reload(state_dir: Path, **environ: str) -> str:
    """Ask for the one thing that needs no more, and return what the daemon says."""
    with trio.fail_after(30):
        async with open_operator(state_dir, environ) as daemon:
            return (await daemon.ask(Reload("1"))).text


async def failure(state_dir: Path, kind: type[OperatorError] = OperatorError) -> str:
    """Return the one sentence that a command has for its user."""
    with pytest.raises(OperatorError) as caught:
        await reload(state_dir)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def listening(path: Path) -> socket.socket:
    """Take connections and answer nothing."""
    silent = socket.socket(socket.AF_UNIX)
    silent.bind(str(path))
    silent.listen()
    return silent


# --- asking --------------------------------------------------------------------------------------


async def test_what_is_asked_for_is_done(control: Control) -> None:
    assert "reloaded" in await reload(control.path.parent)
    assert control.operations.asked == [("reload",)]


async def test_one_request_after_the_other(control: Control) -> None:
    async with open_operator(control.path.parent, {}) as daemon:
        for task in ("one", "two"):
            done = await daemon.ask(PauseTask("1", task))
            assert done.text == f"{task} is paused"


async def test_a_run_is_told_of_when_it_starts(control: Control) -> None:
    async with open_operator(control.path.parent, {}) as daemon:
        seen: list[str] = []

        def release(run: str) -> None:
            seen.append(run)
            control.operations.release["backup"].set()

        done = await daemon.ask(RunTask("1", "backup", ["run-7"]), release)
    assert seen == [done.run] == ["run-backup"]
    assert done.outcome == "completed"


async def test_a_refusal_brings_every_problem(control: Control) -> None:
    with pytest.raises(Refused) as caught:
        async with open_operator(control.path.parent, {}) as daemon:
            await daemon.ask(RunTask("1", "unknown"))
    assert len(caught.value.problems) == 2


async def test_a_long_text_arrives_whole(control: Control) -> None:
    async with open_operator(control.path.parent, {}) as daemon:
        done = await daemon.ask(RunTask("1", "long"))
    assert done.text == control.operations.long_text


async def test_what_the_daemon_does_not_understand_is_said(control: Control) -> None:
    with pytest.raises(OperatorError, match="task"):
        async with open_operator(control.path.parent, {}) as daemon:
            await daemon.ask(PauseTask("1", ""))


async def test_what_is_no_text_is_not_sent(control: Control) -> None:
    with pytest.raises(OperatorError, match="UTF-8"):
        async with open_operator(control.path.parent, {}) as daemon:
            await daemon.ask(PauseTask("1", "\udcff"))


async def test_who_stops_waiting_leaves_the_run_alone(control: Control) -> None:
    async with trio.open_nursery() as nursery:

        async def wait_for_the_run() -> None:
            async with open_operator(control.path.parent, {}) as daemon:
                await daemon.ask(RunTask("1", "backup"), lambda _run: nursery.cancel_scope.cancel())

        nursery.start_soon(wait_for_the_run)
    with trio.fail_after(10):
        await control.operations.abandoned.wait()
        control.operations.release["backup"].set()
        await control.operations.ended["backup"].wait()


async def test_a_stop_is_told_to_an_operator_that_waits(control: Control) -> None:
    with pytest.raises(OperatorError, match="the daemon is stopping"):
        async with open_operator(control.path.parent, {}) as daemon:
            await daemon.ask(RunTask("1", "backup"), lambda _run: control.gateway.close_all())


# --- finding the daemon --------------------------------------------------------------------------


async def test_it_is_found_in_the_runtime_directory(control: Control, tmp_path: Path) -> None:
    elsewhere = tmp_path / "state"
    runtime = f"{control.path.parent}:/run/other"
    assert "reloaded" in await reload(elsewhere, RUNTIME_DIRECTORY=runtime)


async def test_it_is_found_where_the_daemon_says(control: Control, tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    discovery.announce(state_dir, discovery.Address("127.0.0.1", 1), 1, control=control.path)
    assert "reloaded" in await reload(state_dir)
    assert "reloaded" in await reload(state_dir, RUNTIME_DIRECTORY="/nowhere")


async def test_what_a_dead_daemon_left_does_not_hide_it(control: Control, tmp_path: Path) -> None:
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    listening(runtime / "control.sock").close()
    assert "reloaded" in await reload(tmp_path, RUNTIME_DIRECTORY=str(runtime))


async def test_a_path_that_is_too_long_for_a_socket_is_reached(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    state_dir = tmp_path / ("d" * 200)
    state_dir.mkdir()
    served = Control(state_dir / "control.sock", nursery)
    await nursery.start(served.gateway.run)
    assert "reloaded" in await reload(state_dir)
    await served.stop()


# --- when it cannot be reached -------------------------------------------------------------------


async def test_without_a_daemon_it_says_how_to_start_one(tmp_path: Path) -> None:
    for state_dir in (tmp_path, tmp_path / "missing", tmp_path / ("long" * 50)):
        said = await failure(state_dir, NoDaemon)
        assert said.startswith(f"no daemon runs with the state directory {state_dir};")
        assert "clarad run" in said


async def test_a_daemon_that_was_killed_is_no_daemon(tmp_path: Path) -> None:
    listening(tmp_path / "control.sock").close()
    assert "no daemon runs" in await failure(tmp_path, NoDaemon)


async def test_an_operator_without_permission_is_told_the_owner(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with listening(path):
        os.chmod(path, 0)
        with unprivileged():
            said = await failure(tmp_path)
    me = pwd.getpwuid(os.getuid()).pw_name
    assert said == f"{path} belongs to {me}; run this as that user or with sudo"


async def test_a_daemon_that_hangs_is_not_waited_for(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    with listening(tmp_path / "control.sock"):
        before = trio.current_time()
        assert "does not answer" in await failure(tmp_path)
        assert trio.current_time() == before + CONNECT_TIMEOUT


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "was lost"),
        (b"220 mail.example ESMTP\r\n\r\n", "does not speak this protocol"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "404"),
    ],
)
async def test_what_is_no_daemon_is_named(tmp_path: Path, answer: bytes, said: str) -> None:
    path = tmp_path / "control.sock"
    with listening(path) as other:

        async def answer_once() -> None:
            client, _ = await trio.to_thread.run_sync(other.accept)
            with client:
                client.recv(4096)
                client.sendall(answer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_once)
            text = await failure(tmp_path)
    assert str(path) in text
    assert said in text
