"""Python that keeps its variables."""

from typing import Final

import pytest
import trio
from trio.testing import MockClock

from sandbox import Sandbox
from sandbox.engine import Output
from sandbox.python import MAX_CODE, Executed, Interpreter
from tests.daemon_process import Marker

PATIENCE: Final = 60.0


@pytest.fixture
def python(sandbox: Sandbox) -> Interpreter:
    return Interpreter(sandbox)


async def execute(python: Interpreter, code: str) -> Executed:
    with trio.fail_after(PATIENCE):
        return await python.execute(code)


async def test_variables_imports_and_functions_are_kept(python: Interpreter) -> None:
    await execute(python, "import math\ndef area(r): return math.pi * r * r")
    executed = await execute(python, "print(round(area(2), 2))")
    assert executed.result.stdout.kept == b"12.57\n"


async def test_the_value_of_the_last_line_is_shown(python: Interpreter) -> None:
    assert (await execute(python, "x = 20\nx + 1")).result.stdout.kept == b"21\n"
    assert (await execute(python, "None")).result.stdout.kept == b""


async def test_an_exception_shows_the_line_and_leaves_the_variables(python: Interpreter) -> None:
    executed = await execute(python, "kept = 1\nprint('before')\nkept / 0")
    assert executed.result.exit_status == 1
    assert executed.result.stdout.kept == b"before\n"
    assert b"kept / 0" in executed.result.stderr.kept
    assert b"ZeroDivisionError" in executed.result.stderr.kept
    assert b"interpreter" not in executed.result.stderr.kept  # nothing of ours
    assert (await execute(python, "kept")).result.stdout.kept == b"1\n"


async def test_what_cannot_run_is_an_error_of_the_code(python: Interpreter) -> None:
    for code in ("x =", "import no_such_module", "\0", "raise KeyboardInterrupt"):
        executed = await execute(python, code)
        assert executed.result.exit_status == 1
        assert not executed.state_lost


async def test_exit_is_an_exit_status_and_not_the_end(python: Interpreter) -> None:
    executed = await execute(python, "kept = 1\nraise SystemExit(3)")
    assert executed.result.exit_status == 3
    assert not executed.state_lost


async def test_the_end_of_the_interpreter_is_said_and_another_one_follows(
    python: Interpreter,
) -> None:
    executed = await execute(python, "import os\nprint('last words', flush=True)\nos._exit(7)")
    assert executed.state_lost
    assert executed.result.exit_status == 7
    assert executed.result.stdout.kept == b"last words\n"
    assert (await execute(python, "'os' in globals()")).result.stdout.kept == b"False\n"


async def test_output_belongs_to_the_call_that_wrote_it(python: Interpreter) -> None:
    for number in range(20):
        executed = await execute(python, f"print({number}); print({number} * 2)")
        assert executed.result.stdout.kept == b"%d\n%d\n" % (number, number * 2)


async def test_subprocesses_write_to_the_same_outputs(python: Interpreter) -> None:
    code = "import subprocess\nr = subprocess.run('echo out; echo err >&2', shell=True)"
    executed = await execute(python, code)
    assert executed.result.stdout.kept == b"out\n"
    assert executed.result.stderr.kept == b"err\n"


async def test_much_output_is_cut_for_each_call_anew(python: Interpreter) -> None:
    first = await execute(python, "print('x' * 1_000_000)")
    assert first.result.stdout.total == 1_000_001
    assert first.result.stdout.cut > 0
    assert (await execute(python, "print('y')")).result.stdout.kept == b"y\n"


async def test_a_timeout_kills_it_with_what_it_has_started(
    clock: MockClock, python: Interpreter, marker: Marker
) -> None:
    code = (
        f"import subprocess\nsubprocess.Popen(['sleep', '{marker.text}'])\n"
        "print('started', flush=True)\nwhile True: pass"
    )
    # Without `fail_after`, which would expire, too. Only the first piece of the output counts: what
    # the timeout does then has deadlines of its own.
    passes = iter([60])
    executed = await python.execute(
        code, timeout=60, on_output=lambda *_: clock.jump(next(passes, 0))
    )
    assert executed.state_lost
    assert executed.result.timed_out
    assert executed.result.killed == 2
    assert marker.alive == []


async def test_a_cancel_kills_it_and_another_one_follows(
    python: Interpreter, marker: Marker
) -> None:
    told: list[int] = []
    with trio.fail_after(PATIENCE), trio.CancelScope() as scope:
        code = f"import subprocess\nsubprocess.run('echo ready; sleep {marker.text}', shell=True)"
        await python.execute(
            code,
            on_output=lambda *_: scope.cancel("the test wants it"),
            on_killed=told.append,
        )
    assert marker.alive == []
    assert told[0] >= 2
    assert (await execute(python, "1 + 1")).result.stdout.kept == b"2\n"


async def test_the_call_after_a_cancelled_one_says_that_the_variables_are_gone(
    python: Interpreter,
) -> None:
    await execute(python, "kept = 1")
    with trio.fail_after(PATIENCE), trio.CancelScope() as scope:
        await python.execute(
            "print('ready', flush=True)\nwhile True: pass",
            on_output=lambda *_: scope.cancel("the test wants it"),
        )
    executed = await execute(python, "'kept' in globals()")
    assert (executed.result.stdout.kept, executed.state_lost) == (b"False\n", True)
    assert not (await execute(python, "1 + 1")).state_lost


async def test_calls_wait_for_each_other(python: Interpreter) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(5):
            code = f"seen = globals().get('seen', 0) + 1\nprint({number}, seen)"
            nursery.start_soon(execute, python, code)
    assert (await execute(python, "seen")).result.stdout.kept == b"5\n"


async def test_a_fork_that_comes_back_is_not_a_second_interpreter(python: Interpreter) -> None:
    await execute(python, "import os\nif os.fork() == 0: x = 1\nelse: os.wait(); x = 2")
    assert (await execute(python, "x")).result.stdout.kept == b"2\n"


BOMB: Final = """
import os, time
while True:
    try:
        if os.fork() == 0: time.sleep(1000)
    except OSError: break
"""


async def test_processes_that_a_call_has_left_make_room_for_the_next_run(
    python: Interpreter, sandbox: Sandbox
) -> None:
    with trio.fail_after(PATIENCE):
        assert (await execute(python, BOMB)).result.out_of_processes
        result = await sandbox.run("echo usable")
        assert (result.stdout.kept, result.made_room) == (b"usable\n", True)
        executed = await execute(python, "'BOMB' in globals()")
        assert executed.state_lost  # said once
        assert not (await execute(python, "1 + 1")).state_lost
        assert not (await sandbox.run("true")).made_room


ATTACKS: Final = {
    "nonsense": "os.write(4, b'nonsense\\n')",
    "deep JSON": "os.write(4, b'[' * 60000)",
    "a huge number": "os.write(4, b'9' * 10000 + b'\\n')",
    "counts of its own": 'os.write(4, b\'{"status": 0, "totals": [7, 7]}\\n\')',
    "an end without the call's token": "os.write(4, bytes(9))",
    "half an end": "os.write(4, bytes(4))",
    "a flood": "while True: os.write(4, bytes(65536))",
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
async def test_nonsense_on_its_own_channel_ends_it(python: Interpreter, attack: str) -> None:
    executed = await execute(python, f"import os\n{attack}\nwhile True: pass")
    assert executed.state_lost
    assert executed.result.exit_status == -9
    assert executed.result.stdout == Output()
    assert (await execute(python, "1 + 1")).result.stdout.kept == b"2\n"


FORGED: Final = """
import os, sys
frame = sys._getframe()
while "token" not in frame.f_locals: frame = frame.f_back
os.write(4, frame.f_locals["token"] + b"\\0")
"""


async def test_an_end_that_code_has_forged_is_its_own_and_no_other_calls(
    python: Interpreter,
) -> None:
    """Its interpreter ends with the second end, that of nobody, whether or not a call goes on."""
    forged = await execute(python, FORGED)
    # Both ends may be read at once: then that is nonsense, and neither counts.
    assert (forged.result.exit_status, forged.state_lost) in ((0, False), (-9, True))
    executed = await execute(python, "1 + 1")
    assert executed.state_lost or executed.result.stdout.kept == b"2\n"
    assert (await execute(python, "'frame' in globals()")).result.stdout.kept == b"False\n"


async def test_cpu_time_is_the_calls_own(python: Interpreter) -> None:
    spin = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    assert (await execute(python, spin)).result.cpu >= 0.3
    assert (await execute(python, "1 + 1")).result.cpu < 0.3


async def test_an_exit_status_is_one_byte_as_for_the_kernel(python: Interpreter) -> None:
    assert (await execute(python, "raise SystemExit(10 ** 100 + 3)")).result.exit_status == 3
    assert (await execute(python, "raise SystemExit(-1)")).result.exit_status == 255


async def test_code_that_is_too_long_is_refused(python: Interpreter) -> None:
    with pytest.raises(ValueError, match="longer than"):
        await execute(python, "#" * (MAX_CODE + 1))


async def test_running_out_of_memory_ends_it_and_not_the_sandbox(python: Interpreter) -> None:
    executed = await execute(python, "x = b'x' * (4 << 30)")
    assert executed.state_lost
    assert executed.result.out_of_memory
    assert (await execute(python, "1 + 1")).result.stdout.kept == b"2\n"
