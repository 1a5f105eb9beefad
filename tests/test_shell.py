import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clarad import shell
from clarad.shell import MAX_VARIABLE, OUTPUT_CAP, Result
from tests.process import Marker

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

PATIENCE: Final = 10.0
"""Seconds after which a test that hangs is given up; nothing here takes that long."""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL follows SIGTERM soon."""
    monkeypatch.setattr(shell, "GRACE", 0.1)


async def run(command: str, stdin: bytes = b"", **variables: str) -> Result:
    with trio.fail_after(PATIENCE):
        return await shell.run(command, env=shell.environment(variables), stdin=stdin)


async def cancel_when_ready(command: str, ready: int = 1) -> int:
    """Cancel once it has written so many lines `ready`; return how many processes were stopped."""
    output = bytearray()
    told: list[int] = []
    with trio.fail_after(PATIENCE), trio.CancelScope() as scope:

        def look(data: bytes | bytearray) -> None:
            output.extend(data)
            if output.count(b"ready\n") == ready:
                scope.cancel("the test wants it")

        await shell.run(command, env=shell.environment({}), on_stdout=look, on_stopped=told.append)
    assert scope.cancelled_caught
    (stopped,) = told
    return stopped


# --- a run ---------------------------------------------------------------------------------------


async def test_a_command_has_an_exit_status_and_two_outputs() -> None:
    result = await run("echo out; echo err >&2; exit 3")
    assert result == Result(exit_status=3, stdout=b"out\n", stderr=b"err\n")


async def test_a_command_that_does_nothing_succeeds() -> None:
    assert await run("true") == Result(exit_status=0, stdout=b"", stderr=b"")


async def test_a_command_that_does_not_exist_is_the_shells_business() -> None:
    result = await run("no-such-command-anywhere")
    assert result.exit_status == 127
    assert b"no-such-command-anywhere" in result.stderr


async def test_a_signal_is_a_negative_exit_status() -> None:
    assert (await run("kill -KILL $$")).exit_status == -signal.SIGKILL


async def test_a_directory_that_does_not_exist_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await shell.run("true", env={}, cwd=tmp_path / "nowhere")


async def test_a_command_runs_in_the_directory_that_it_is_given(tmp_path: Path) -> None:
    result = await shell.run("pwd -P", env=shell.environment({}), cwd=tmp_path)
    assert result.stdout.decode() == f"{tmp_path}\n"


async def test_a_command_reads_what_it_is_given() -> None:
    given = os.urandom(40_000)
    assert (await run("cat", given)).stdout == given


async def test_a_command_that_is_given_nothing_reads_the_end() -> None:
    assert (await run("cat; echo end")).stdout == b"end\n"


async def test_a_command_need_not_read_what_it_is_given() -> None:
    assert (await run("echo done", bytes(10_000_000))).stdout == b"done\n"


async def test_a_command_may_stop_reading_half_way() -> None:
    assert (await run("head -c 5", b"hello" + bytes(10_000_000))).stdout == b"hello"


async def test_a_command_may_read_and_write_more_than_a_pipe_holds() -> None:
    result = await run("cat; cat >&2", bytes(1_000_000))
    assert result.exit_status == 0
    assert result.stdout == bytes(OUTPUT_CAP)


async def test_of_much_output_the_end_is_kept() -> None:
    result = await run("seq 100000; seq 200000 >&2")
    assert (len(result.stdout), len(result.stderr)) == (OUTPUT_CAP, OUTPUT_CAP)
    assert result.stdout.endswith(b"\n99999\n100000\n")
    assert result.stderr.endswith(b"\n199999\n200000\n")


async def test_very_much_output_is_passed_on_whole_and_kept_to_64_kib() -> None:
    passed_on = 0

    def count(data: bytes | bytearray) -> None:
        nonlocal passed_on
        passed_on += len(data)

    with trio.fail_after(PATIENCE):
        result = await shell.run(
            "yes | head -c 10000000", env=shell.environment({}), on_stdout=count
        )
    assert passed_on == 10_000_000
    assert result.stdout == b"y\n" * (32 * 1024)


async def test_many_commands_run_side_by_side() -> None:
    results: list[bytes] = []

    async def one(number: int) -> None:
        results.append((await run(f"echo {number}")).stdout)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(one, number)
    assert sorted(results) == sorted(b"%d\n" % number for number in range(20))


# --- the environment -----------------------------------------------------------------------------


def test_a_variable_is_passed_on() -> None:
    assert shell.environment({"CLARA_USER_ID": "u"})["CLARA_USER_ID"] == "u"


def test_the_daemons_own_environment_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_VARIABLE", "value")
    assert shell.environment({})["SOME_VARIABLE"] == "value"


def test_a_variable_goes_before_an_inherited_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLARA_USER_ID", "inherited")
    assert shell.environment({"CLARA_USER_ID": "u"})["CLARA_USER_ID"] == "u"


@pytest.mark.parametrize(
    "name",
    [
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
        "CREDENTIALS_DIRECTORY",
        "CLARA_GATEWAY_SECRET",
    ],
)
async def test_what_is_the_daemons_alone_is_not_inherited(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "secret")
    assert name not in shell.environment({})
    assert (await run(f'printf %s "${{{name}-unset}}"')).stdout == b"unset"


async def test_a_variable_loses_its_nul_characters() -> None:
    result = await run('printf %s "$CLARA_CONTENT"', CLARA_CONTENT="a\0b\0")
    assert result.stdout == b"ab"


async def test_a_variable_that_is_too_long_is_cut_off() -> None:
    result = await run('printf %s "$CLARA_CONTENT" | wc -c', CLARA_CONTENT="x" * 10_000_000)
    assert int(result.stdout) == MAX_VARIABLE


def test_a_variable_is_not_cut_off_in_the_middle_of_a_character() -> None:
    value = shell.environment({"CLARA_CONTENT": "x" + "😀" * 100_000})["CLARA_CONTENT"]
    assert value == "x" + "😀" * ((MAX_VARIABLE - 1) // 4)


async def test_a_variable_with_a_lone_surrogate_does_no_harm() -> None:
    result = await run('printf %s "$CLARA_CONTENT"', CLARA_CONTENT="a\ud800b")
    assert result.stdout == b"a?b"


@relaxed
@given(st.dictionaries(st.just("CLARA_CONTENT"), st.text(st.characters())))
def test_every_variable_can_be_given_to_a_process(variables: dict[str, str]) -> None:
    for name, value in variables.items():
        fitting = shell.environment(variables)[name]
        assert "\0" not in fitting
        assert len(fitting.encode()) <= MAX_VARIABLE
        if "\0" not in value and value.isascii():
            assert fitting == value


async def test_what_is_in_a_variable_is_data() -> None:
    hostile = '"; echo broken out; $(echo broken out) `echo broken out` #'
    result = await run('printf %s "$CLARA_CONTENT"', CLARA_CONTENT=hostile)
    assert result.stdout.decode() == hostile


def zombies() -> set[int]:
    """Our children that have ended and that nobody has waited for."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has ended meanwhile
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if state == "Z" and int(parent) == os.getpid():
                    found.add(int(entry.name))
    return found


def there(marker: Marker, directory: Path) -> str:
    """Shell text that says when it is there, and then sleeps."""
    return f"sh -c 'echo > {directory}/there; exec sleep {marker.text}'"


def wait_for_it(directory: Path) -> str:
    os.mkfifo(directory / "there")
    return f"read _ < {directory}/there"


# --- what a command leaves running ---------------------------------------------------------------


async def test_what_holds_the_output_open_ends_with_the_command(marker: Marker) -> None:
    result = await run(f"sleep {marker.text} & echo done")
    assert result == Result(exit_status=0, stdout=b"done\n", stderr=b"")
    assert marker.alive == []


async def test_what_ignores_sigterm_ends_with_the_command(marker: Marker, impatient: None) -> None:
    result = await run(f"(trap '' TERM; sleep {marker.text}) & echo done")
    assert result.stdout == b"done\n"
    assert marker.alive == []


async def test_what_called_setsid_ends_with_the_command(marker: Marker, tmp_path: Path) -> None:
    result = await run(f"(setsid {there(marker, tmp_path)} &); {wait_for_it(tmp_path)}; echo done")
    assert result.stdout == b"done\n"
    assert marker.alive == []


async def test_what_called_setsid_with_an_empty_environment_ends_with_the_command(
    marker: Marker, tmp_path: Path
) -> None:
    result = await run(
        f"(setsid env -i {there(marker, tmp_path)} &); {wait_for_it(tmp_path)}; echo done"
    )
    assert result.stdout == b"done\n"
    assert marker.alive == []


async def test_a_command_leaves_no_zombies(marker: Marker) -> None:
    before = zombies()
    for _ in range(5):
        await run(f"(sleep {marker.text} &); (setsid sleep {marker.text} &); true")
    assert zombies() <= before


async def test_a_command_that_ends_by_itself_was_not_stopped(marker: Marker) -> None:
    told: list[int] = []
    await shell.run(
        f"sleep {marker.text} & true", env=shell.environment({}), on_stopped=told.append
    )
    assert told == []


# --- cancelling ----------------------------------------------------------------------------------


async def test_a_cancel_ends_a_plain_command(marker: Marker) -> None:
    assert await cancel_when_ready(f"echo ready; exec sleep {marker.text}") == 1
    assert marker.alive == []


async def test_a_cancel_ends_all_children(marker: Marker) -> None:
    stopped = await cancel_when_ready(
        f"sleep {marker.text} & sleep {marker.text} & echo ready; wait"
    )
    assert stopped == 3
    assert marker.alive == []


async def test_a_cancel_ends_a_pipeline(marker: Marker) -> None:
    await cancel_when_ready(f"echo ready; sleep {marker.text} | sleep {marker.text} | cat")
    assert marker.alive == []


async def test_a_cancel_gives_a_command_time_to_clean_up(marker: Marker, tmp_path: Path) -> None:
    cleaned = tmp_path / "cleaned"
    await cancel_when_ready(
        f"trap 'echo cleaned > {cleaned}; exit' TERM; echo ready; sleep {marker.text} & wait"
    )
    assert cleaned.read_text() == "cleaned\n"
    assert marker.alive == []


async def test_a_cancel_ends_what_ignores_sigterm(marker: Marker, impatient: None) -> None:
    stopped = await cancel_when_ready(f"trap '' TERM; echo ready; exec sleep {marker.text}")
    assert stopped == 1
    assert marker.alive == []


async def test_a_cancel_ends_a_grandchild_that_ignores_sigterm(
    marker: Marker, impatient: None
) -> None:
    await cancel_when_ready(
        f"(trap '' TERM; (trap '' TERM; echo ready; sleep {marker.text}) & wait) & wait"
    )
    assert marker.alive == []


async def test_a_cancel_ends_a_grandchild_in_the_background(marker: Marker) -> None:
    await cancel_when_ready(f"(sleep {marker.text} &); echo ready; exec sleep {marker.text}")
    assert marker.alive == []


async def test_a_cancel_ends_what_was_stopped(marker: Marker, impatient: None) -> None:
    await cancel_when_ready(f"sleep {marker.text} & kill -STOP $!; echo ready; wait")
    assert marker.alive == []


async def test_a_cancel_ends_what_called_setsid(marker: Marker) -> None:
    stopped = await cancel_when_ready(f"setsid sh -c 'echo ready; exec sleep {marker.text}' & wait")
    assert stopped == 2
    assert marker.alive == []


async def test_a_cancel_ends_what_called_setsid_and_whose_parent_has_ended(
    marker: Marker,
) -> None:
    stopped = await cancel_when_ready(
        f"(setsid sh -c 'echo ready; exec sleep {marker.text}' &); "
        f"echo ready; exec sleep {marker.text}",
        ready=2,
    )
    assert stopped == 2
    assert marker.alive == []


async def test_a_cancel_ends_what_called_setsid_ignores_sigterm_and_whose_parent_has_ended(
    marker: Marker, impatient: None
) -> None:
    await cancel_when_ready(
        f"(setsid sh -c \"trap '' TERM; echo ready; exec sleep {marker.text}\" &); "
        f"echo ready; exec sleep {marker.text}",
        ready=2,
    )
    assert marker.alive == []


async def test_a_cancel_ends_what_called_setsid_with_an_empty_environment(marker: Marker) -> None:
    await cancel_when_ready(f"setsid env -i sh -c 'echo ready; exec sleep {marker.text}' & wait")
    assert marker.alive == []


async def test_a_cancel_ends_what_called_setsid_with_an_empty_environment_and_ignores_sigterm(
    marker: Marker, impatient: None
) -> None:
    await cancel_when_ready(
        f"setsid env -i sh -c \"trap '' TERM; echo ready; exec sleep {marker.text}\" & wait"
    )
    assert marker.alive == []


async def test_a_cancel_ends_what_called_setsid_with_an_empty_environment_and_lost_its_parent(
    marker: Marker,
) -> None:
    await cancel_when_ready(
        f"(setsid env -i sh -c 'echo ready; exec sleep {marker.text}' &); "
        f"echo ready; exec sleep {marker.text}",
        ready=2,
    )
    assert marker.alive == []


async def test_a_cancel_ends_children_of_what_called_setsid(marker: Marker) -> None:
    stopped = await cancel_when_ready(
        f"(setsid sh -c 'sleep {marker.text} & echo ready; wait' &); "
        f"echo ready; exec sleep {marker.text}",
        ready=2,
    )
    assert stopped == 3
    assert marker.alive == []


async def test_a_cancel_ends_a_command_that_writes_without_end() -> None:
    seen = 0
    told: list[int] = []
    with trio.fail_after(PATIENCE), trio.CancelScope() as scope:

        def look(data: bytes | bytearray) -> None:
            nonlocal seen
            seen += len(data)
            if seen > 1_000_000:
                scope.cancel("enough")

        await shell.run(
            "exec yes", env=shell.environment({}), on_stdout=look, on_stopped=told.append
        )
    assert scope.cancelled_caught
    assert told == [1]


async def test_a_cancel_ends_a_command_that_does_not_read_its_input(marker: Marker) -> None:
    told: list[int] = []
    with trio.fail_after(PATIENCE), trio.CancelScope() as scope:
        await shell.run(
            f"echo ready; exec sleep {marker.text}",
            env=shell.environment({}),
            stdin=bytes(10_000_000),
            on_stdout=lambda _: scope.cancel("the test wants it"),
            on_stopped=told.append,
        )
    assert told == [1]
    assert marker.alive == []


async def test_a_cancel_ends_one_command_and_no_other(marker: Marker) -> None:
    other = Marker()
    async with trio.open_nursery() as nursery:
        running = trio.Event()

        async def neighbour() -> None:
            await shell.run(
                f"(setsid sleep {other.text} &); echo ready; exec sleep {other.text}",
                env=shell.environment({}),
                on_stdout=lambda _: running.set(),
            )

        nursery.start_soon(neighbour)
        await running.wait()
        await cancel_when_ready(f"(setsid sleep {marker.text} &); echo ready; sleep {marker.text}")
        assert marker.alive == []
        assert len(other.alive) >= 2
        nursery.cancel_scope.cancel("the test has ended")
    assert other.alive == []


async def test_many_commands_can_be_cancelled_at_once(marker: Marker) -> None:
    told: list[int] = []
    ready = 0
    with trio.fail_after(PATIENCE), trio.CancelScope() as scope:

        def count(_: bytes | bytearray) -> None:
            nonlocal ready
            ready += 1
            if ready == 20:
                scope.cancel("all are there")

        async def one() -> None:
            await shell.run(
                f"echo ready; exec sleep {marker.text}",
                env=shell.environment({}),
                on_stdout=count,
                on_stopped=told.append,
            )

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(one)
    assert told == [1] * 20
    assert marker.alive == []


async def test_a_command_that_is_cancelled_before_it_starts_is_not_started(
    tmp_path: Path,
) -> None:
    told: list[int] = []
    started = tmp_path / "started"
    with trio.CancelScope() as scope:
        scope.cancel("too early")
        await shell.run(f"touch {started}", env=shell.environment({}), on_stopped=told.append)
    assert scope.cancelled_caught
    assert not started.exists()
    assert told == []


async def test_a_failure_of_whoever_reads_the_output_ends_the_command(marker: Marker) -> None:
    def refuse(_: bytes | bytearray) -> None:
        raise ValueError("too much")

    with trio.fail_after(PATIENCE), pytest.RaisesGroup(ValueError):
        await shell.run(
            f"echo; exec sleep {marker.text}", env=shell.environment({}), on_stdout=refuse
        )
    assert marker.alive == []
