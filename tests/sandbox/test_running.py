"""What a run gives back."""

from typing import Final

import pytest
import trio
from trio.testing import MockClock

from sandbox import GoneError, Keeper, Result, Sandbox
from sandbox.engine import Output
from sandbox.sandbox import OUTPUT_CAP

PATIENCE: Final = 60.0


async def run(sandbox: Sandbox, command: str | list[str], **how: object) -> Result:
    with trio.fail_after(PATIENCE):
        return await sandbox.run(command, **how)  # type: ignore[arg-type]


async def test_a_command_has_an_exit_status_and_two_outputs(sandbox: Sandbox) -> None:
    result = await run(sandbox, "echo out; echo err >&2; exit 3")
    assert result.exit_status == 3
    assert result.stdout == Output(b"out\n", b"", 4)
    assert result.stderr == Output(b"err\n", b"", 4)


async def test_a_command_that_a_signal_ends_says_which(sandbox: Sandbox) -> None:
    assert (await run(sandbox, "kill -11 $$")).exit_status == -11


async def test_an_argument_vector_is_taken_as_it_is(sandbox: Sandbox) -> None:
    result = await run(sandbox, ["printf", "%s,", "a b", "$HOME", "*"])
    assert result.stdout.kept == b"a b,$HOME,*,"


async def test_a_program_that_is_not_there_is_said_as_a_shell_says_it(sandbox: Sandbox) -> None:
    result = await run(sandbox, ["no-such-program"])
    assert result.exit_status == 127
    assert b"no-such-program: No such file or directory" in result.stderr.kept


async def test_a_directory_that_is_not_there_is_said(sandbox: Sandbox) -> None:
    result = await run(sandbox, "true", cwd="/nowhere")
    assert result.exit_status == 127
    assert b"/nowhere: No such file" in result.stderr.kept


async def test_standard_input_is_fed_whole_and_ends(sandbox: Sandbox) -> None:
    content = bytes(range(256)) * 12_000
    result = await run(sandbox, "sha256sum; cat | wc -c", stdin=content)
    assert result.stdout.text().endswith("\n0\n")
    again = await run(sandbox, "cat", stdin=content, cap=len(content))
    assert again.stdout.kept == content


async def test_input_that_is_not_read_holds_nothing_up(sandbox: Sandbox) -> None:
    assert (await run(sandbox, "exit 4", stdin=bytes(5_000_000))).exit_status == 4


async def test_a_command_has_the_environment_of_the_sandbox_and_no_other(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_DAEMON", "secret")
    result = await run(sandbox, "echo $HOME $USER $GREETING; env", env={"GREETING": "hello"})
    assert result.stdout.text().startswith("/home/sandbox sandbox hello\n")
    assert "SECRET" not in result.stdout.text()


async def test_output_is_passed_on_as_it_comes(sandbox: Sandbox) -> None:
    pieces: list[tuple[str, bytes]] = []
    first = trio.Event()

    def take(name: str, data: bytes) -> None:
        pieces.append((name, data))
        first.set()

    async with trio.open_nursery() as nursery:
        command = "echo one; while [ ! -e go ]; do sleep 0.01; done; echo two >&2"
        nursery.start_soon(lambda: run(sandbox, command, on_output=take))
        with trio.fail_after(PATIENCE):
            await first.wait()
        assert pieces == [("stdout", b"one\n")]
        await run(sandbox, "touch go")
    assert pieces == [("stdout", b"one\n"), ("stderr", b"two\n")]


async def test_output_is_cut_after_the_cap_and_its_end_is_kept(sandbox: Sandbox) -> None:
    passed_on = bytearray()
    result = await run(sandbox, "seq 200000", on_output=lambda _, data: passed_on.extend(data))
    whole = "".join(f"{n}\n" for n in range(1, 200001)).encode()
    assert result.stdout.kept == passed_on == whole[:OUTPUT_CAP]
    assert whole.endswith(result.stdout.tail)
    assert len(result.stdout.tail) == 4096
    assert result.stdout.total == len(whole)
    assert f"[… {len(whole) - OUTPUT_CAP - 4096} bytes are cut …]" in result.stdout.text()


async def test_a_flood_does_not_fill_memory_here(sandbox: Sandbox) -> None:
    passed_on = 0

    def count(_: str, data: bytes) -> None:
        nonlocal passed_on
        passed_on += len(data)

    result = await run(sandbox, "yes | head -c 300000000", on_output=count)
    assert result.stdout.total == 300_000_000
    assert passed_on == len(result.stdout.kept) == OUTPUT_CAP


async def test_a_timeout_kills_and_is_said(clock: MockClock, sandbox: Sandbox) -> None:
    command = "sleep 1000 & echo before; wait"
    passes = iter([60])  # with the first piece of the output
    result = await sandbox.run(
        command, timeout=60, on_output=lambda *_: clock.jump(next(passes, 0))
    )
    assert result.timed_out
    assert result.exit_status == -9
    assert result.stdout.kept == b"before\n"
    assert result.killed == 2


async def test_cpu_time_counts_all_processes(sandbox: Sandbox) -> None:
    spin = "import time\nwhile time.process_time() < 0.3: pass"
    result = await run(sandbox, f"python3 -c '{spin}' & python3 -c '{spin}' & wait")
    assert result.cpu >= 0.6
    assert result.wall > 0


async def test_running_out_of_memory_is_said(sandbox: Sandbox) -> None:
    result = await run(sandbox, ["python3", "-c", "x = b'x' * (4 << 30)"])
    assert result.out_of_memory
    assert result.exit_status == -9
    assert not (await run(sandbox, "true")).out_of_memory


async def test_running_out_of_processes_is_said(sandbox: Sandbox) -> None:
    bomb = "import os, time\ntry:\n while True: os.fork() or time.sleep(1000)\nexcept OSError: pass"
    result = await run(sandbox, ["python3", "-c", bomb])
    assert result.out_of_processes
    assert not (await run(sandbox, "true")).out_of_processes


async def test_the_working_directory_survives_from_run_to_run(sandbox: Sandbox) -> None:
    await run(sandbox, "mkdir here; echo kept > here/file")
    assert (await run(sandbox, "cat here/file")).stdout.kept == b"kept\n"


async def test_what_a_run_leaves_running_ends_with_it(sandbox: Sandbox) -> None:
    result = await run(sandbox, "(setsid sleep 1000 &); sleep 1000 & echo done")
    assert result.stdout.kept == b"done\n"
    assert result.killed == 2
    left = await run(sandbox, ["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"])
    assert "sleep 1000" not in left.stdout.text()


async def test_many_runs_go_on_side_by_side(sandbox: Sandbox) -> None:
    found: list[bytes] = []

    async def one(number: int) -> None:
        found.append((await run(sandbox, f"echo {number}")).stdout.kept)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(one, number)
    assert sorted(found) == sorted(b"%d\n" % number for number in range(20))


async def test_a_run_in_a_sandbox_that_was_deleted_says_so(
    keeper: Keeper, sandbox: Sandbox
) -> None:
    await keeper.delete("somebody")
    with pytest.raises(GoneError, match="the next call gets a new one"):
        await run(sandbox, "true")


async def test_a_sandbox_that_is_deleted_under_a_run_is_said(
    keeper: Keeper, sandbox: Sandbox
) -> None:
    async with trio.open_nursery() as nursery:

        async def delete() -> None:
            await started.wait()
            await keeper.delete("somebody")

        started = trio.Event()
        nursery.start_soon(delete)
        with pytest.raises(GoneError, match="has ended under what ran in it"):
            await run(sandbox, "echo; sleep 1000", on_output=lambda *_: started.set())
