"""Stop means stopped: seen from outside, in the machine's own list of processes."""

import random
from typing import Final

import pytest
import trio

from sandbox import Sandbox
from sandbox.python import Interpreter
from tests.daemon_process import Marker

PATIENCE: Final = 60.0

FORK_BOMB: Final = """
import os, sys, time
print("ready", flush=True)
while True:
    try: os.fork()
    except OSError: time.sleep(0.001)
"""
COMETS: Final = """
import os, sys
print("ready", flush=True)
while True:
    try:
        if os.fork(): os._exit(0)
        os.setsid()
    except OSError: pass
"""
DEAF: Final = """
import signal, time
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
print("ready", flush=True)
time.sleep(1000)
"""

COMMANDS: Final = {
    "a sleeping command": "echo ready; exec sleep {marker}",
    "children": "for i in 1 2 3; do sleep {marker} & done; echo ready; wait",
    "a pipeline": "echo ready; sleep {marker} | sleep {marker} | cat",
    "what called setsid": "setsid sh -c 'echo ready; exec sleep {marker}' & wait",
    "what was daemonised": "(setsid sh -c 'sleep {marker} & echo ready' &); exec sleep {marker}",
    "what emptied its environment": "env -i setsid sh -c 'echo ready; exec sleep {marker}'",
    "what was stopped": "sleep {marker} & kill -STOP $!; echo ready; wait",
    "what floods": "echo ready; exec yes {marker}",
    "what closed its output": "echo ready; exec sleep {marker} >&- 2>&-",
}
PROGRAMS: Final = {
    "what ignores every signal": DEAF,
    "a fork bomb at the limit": FORK_BOMB,
    "what forks and exits without end": COMETS,
}


async def cancel_when_ready(sandbox: Sandbox, command: str | list[str]) -> int:
    """Cancel once it has written something; return how many processes were killed."""
    told: list[int] = []
    with trio.fail_after(PATIENCE), trio.CancelScope() as scope:
        await sandbox.run(
            command,
            on_output=lambda *_: scope.cancel("the test wants it"),
            on_killed=told.append,
        )
    assert scope.cancelled_caught
    (killed,) = told
    return killed


async def is_usable(sandbox: Sandbox) -> bool:
    with trio.fail_after(PATIENCE):
        return (await sandbox.run("echo usable")).stdout.kept == b"usable\n"


@pytest.mark.parametrize("kind", COMMANDS)
async def test_a_cancel_ends(sandbox: Sandbox, marker: Marker, kind: str) -> None:
    killed = await cancel_when_ready(sandbox, COMMANDS[kind].format(marker=marker.text))
    assert marker.alive == []
    assert killed >= 1
    assert await is_usable(sandbox)


@pytest.mark.parametrize("kind", PROGRAMS)
async def test_a_cancel_ends_a_program(sandbox: Sandbox, marker: Marker, kind: str) -> None:
    killed = await cancel_when_ready(sandbox, ["python3", "-c", PROGRAMS[kind], marker.text])
    assert marker.alive == []
    assert killed >= 1
    assert await is_usable(sandbox)


async def test_every_process_that_died_is_counted(sandbox: Sandbox, marker: Marker) -> None:
    command = f"sleep {marker.text} & sleep {marker.text} & echo ready; wait"
    assert await cancel_when_ready(sandbox, command) == 3


async def test_a_fork_bomb_can_be_cancelled_when_it_holds_every_process(
    sandbox: Sandbox, marker: Marker
) -> None:
    told: list[int] = []
    with trio.fail_after(PATIENCE), trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            command = ["python3", "-c", FORK_BOMB, marker.text]
            nursery.start_soon(lambda: sandbox.run(command, on_killed=told.append))
            while len(marker.alive) < 200:
                await trio.sleep(0.01)
            assert (await sandbox.run("true")).exit_status != 0  # nothing else gets through
            scope.cancel("the test wants it")
    assert marker.alive == []
    assert told[0] > 200
    assert await is_usable(sandbox)


async def test_a_cancel_ends_one_run_and_no_other(sandbox: Sandbox, marker: Marker) -> None:
    other = Marker()
    async with trio.open_nursery() as nursery:
        running = trio.Event()
        command = f"(setsid sleep {other.text} &); echo ready; exec sleep {other.text}"
        nursery.start_soon(lambda: sandbox.run(command, on_output=lambda *_: running.set()))
        with trio.fail_after(PATIENCE):
            await running.wait()
            while len(other.alive) < 2:  # the first of them may not have been started yet
                await trio.sleep(0.01)
        await cancel_when_ready(sandbox, f"(setsid sleep {marker.text} &); echo ready; sleep 1000")
        assert marker.alive == []
        assert len(other.alive) >= 2
        nursery.cancel_scope.cancel("the test has ended")
    assert other.alive == []


async def test_a_cancel_leaves_the_interpreter_its_variables(sandbox: Sandbox) -> None:
    interpreter = Interpreter(sandbox)
    await interpreter.execute("kept = 42")
    await cancel_when_ready(sandbox, ["python3", "-c", FORK_BOMB])
    executed = await interpreter.execute("kept")
    assert executed.result.stdout.kept == b"42\n"
    assert not executed.state_lost


async def test_a_cancel_can_come_at_any_moment(sandbox: Sandbox, marker: Marker) -> None:
    chance = random.Random(4)
    command = f"(setsid sleep {marker.text} &); sleep {marker.text} & exec sleep {marker.text}"
    for _ in range(40):
        with trio.move_on_after(chance.uniform(0, 0.05)):
            await sandbox.run(command)
        assert marker.alive == []
    assert await is_usable(sandbox)


async def test_a_run_that_is_cancelled_before_it_starts_is_not_started(sandbox: Sandbox) -> None:
    told: list[int] = []
    with trio.CancelScope() as scope:
        scope.cancel("too early")
        await sandbox.run("touch started", on_killed=told.append)
    assert told == []
    assert await sandbox.list_files() == []


async def test_a_cancel_ends_what_does_not_read_its_input(sandbox: Sandbox, marker: Marker) -> None:
    with trio.fail_after(PATIENCE), trio.CancelScope() as scope:
        await sandbox.run(
            f"echo ready; exec sleep {marker.text}",
            stdin=bytes(10_000_000),
            on_output=lambda *_: scope.cancel("the test wants it"),
        )
    assert scope.cancelled_caught
    assert marker.alive == []


async def test_a_failure_of_whoever_reads_the_output_ends_the_run(
    sandbox: Sandbox, marker: Marker
) -> None:
    def refuse(_: str, data: bytes) -> None:
        raise ValueError("too much")

    with trio.fail_after(PATIENCE), pytest.raises(ValueError, match="too much"):
        await sandbox.run(f"echo; exec sleep {marker.text}", on_output=refuse)
    assert marker.alive == []
    assert await is_usable(sandbox)


async def test_a_timeout_ends_a_fork_bomb(sandbox: Sandbox, marker: Marker) -> None:
    with trio.fail_after(PATIENCE):
        result = await sandbox.run(["python3", "-c", FORK_BOMB, marker.text], timeout=0.5)
    assert result.timed_out
    assert marker.alive == []


async def test_killing_everything_from_inside_ends_runs_and_not_the_sandbox(
    sandbox: Sandbox,
) -> None:
    with trio.fail_after(PATIENCE):
        await sandbox.run(["python3", "-c", "import os; os.kill(-1, 9)"])
    assert await is_usable(sandbox)
