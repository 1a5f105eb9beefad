import errno
import os
import secrets
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clarad.process import procfs, shell
from clarad.process.shell import MAX_VARIABLE, OUTPUT_CAP, Output, Result, UnkillableError
from tests.daemon_process import Marker
from tests.descriptors import at_most_open, open_files

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


class Running:
    """A command that goes on; `end` cancels it."""

    def __init__(self) -> None:
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    async def run(self, command: str, *, task_status: trio.TaskStatus[None]) -> None:
        def look(data: bytes | bytearray) -> None:
            if data.endswith(b"ready\n"):
                task_status.started()

        with self._scope:
            await shell.run(command, env=shell.environment({}), on_stdout=look)
        self._ended.set()

    async def end(self) -> None:
        self._scope.cancel("the test wants it")
        await self._ended.wait()


async def start(nursery: trio.Nursery, command: str) -> Running:
    """Start a command, and wait until it writes that it is ready."""
    running = Running()
    with trio.fail_after(PATIENCE):
        await nursery.start(running.run, command)
    return running


async def alive(marker: Marker, count: int) -> None:
    """Wait until so many are alive: one that is in an execve(2) has no command line to be seen."""
    with trio.fail_after(PATIENCE):
        while len(marker.alive) != count:
            await trio.sleep(0.001)


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


@pytest.mark.parametrize(
    ("exit_status", "words"),
    [
        (1, "exit status 1"),
        (-signal.SIGKILL, "ended by SIGKILL"),
        (-signal.SIGTERM, "ended by SIGTERM"),
        (-35, "ended by signal 35"),
    ],
)
def test_an_exit_status_can_be_said_in_words(exit_status: int, words: str) -> None:
    assert shell.describe_exit(exit_status) == words


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


async def test_how_much_was_before_what_is_kept_is_known() -> None:
    result = await run("seq 100000; seq 5 >&2")
    written = "".join(f"{n}\n" for n in range(1, 100_001)).encode()
    assert (result.stdout_cut, result.stdout) == (len(written) - OUTPUT_CAP, written[-OUTPUT_CAP:])
    assert (result.stderr_cut, result.stderr) == (0, b"1\n2\n3\n4\n5\n")


@given(st.lists(st.integers(0, 3 * OUTPUT_CAP), max_size=8))
def test_however_output_comes_what_is_kept_and_what_is_cut_are_all_of_it(sizes: list[int]) -> None:
    tail, whole = shell.Tail(), bytearray()
    for number, size in enumerate(sizes):
        tail.add(bytes([number]) * size)
        whole += bytes([number]) * size
    assert tail.kept == whole[tail.cut :]
    assert len(tail.kept) == min(len(whole), OUTPUT_CAP)


async def test_what_a_cancelled_command_has_written_is_known(marker: Marker) -> None:
    output = Output()
    with trio.fail_after(PATIENCE), trio.CancelScope() as scope:

        def look(data: bytes | bytearray) -> None:
            if data.endswith(b"ready\n"):
                scope.cancel("all of it is there")

        await shell.run(
            f"echo err >&2; seq 100000; echo ready; exec sleep {marker.text}",
            env=shell.environment({}),
            output=output,
            on_stdout=look,
        )
    assert scope.cancelled_caught
    assert output.stdout.kept.endswith(b"\n100000\nready\n")
    assert output.stdout.cut > 0
    assert (output.stderr.kept, output.stderr.cut) == (b"err\n", 0)


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


# --- starting ------------------------------------------------------------------------------------


async def test_whoever_asks_is_told_when_a_command_has_started() -> None:
    told: list[str] = []
    await shell.run(
        "echo",
        env=shell.environment({}),
        on_started=lambda: told.append("started"),
        on_stdout=lambda data: told.append("output"),
    )
    assert told == ["started", "output"]


async def test_a_command_that_cannot_be_started_has_not_started(tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(OSError, match="nowhere"):
        await shell.run(
            "true", env={}, cwd=tmp_path / "nowhere", on_started=lambda: told.append("started")
        )
    assert told == []


async def test_a_failure_of_whoever_is_told_of_the_start_ends_the_command(marker: Marker) -> None:
    def refuse() -> None:
        raise ValueError("too late")

    with trio.fail_after(PATIENCE), pytest.RaisesGroup(ValueError):
        await shell.run(f"exec sleep {marker.text}", env=shell.environment({}), on_started=refuse)
    assert marker.alive == []


async def reason_of(command: str, env: dict[str, str], cwd: Path | None = None) -> str:
    """Return why a command cannot be started."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - what it says is the test's business
        await shell.run(command, env=env, cwd=cwd)
    return str(caught.value)


async def test_a_directory_that_does_not_exist_is_named(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(FileNotFoundError) as caught:
        await shell.run("true", env={}, cwd=nowhere)
    assert str(caught.value) == (
        f"the working directory {nowhere} cannot be entered: {os.strerror(errno.ENOENT)}"
    )


async def test_a_file_in_a_directorys_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert await reason_of("true", {}, tmp_path / "file") == (
        f"the working directory {tmp_path}/file cannot be entered: {os.strerror(errno.ENOTDIR)}"
    )


@pytest.mark.parametrize(
    ("command", "env"),
    [
        ("true", {"LONG": "x" * 200_000}),
        ("true", {f"LONG_{n}": "x" * 30_000 for n in range(300)}),
        (": " + "x" * 200_000, {}),
    ],
    ids=["variable", "variables", "command"],
)
async def test_what_linux_does_not_take_is_said_to_be_too_large(
    command: str, env: dict[str, str]
) -> None:
    assert "too large: Linux takes" in await reason_of(command, env)


@pytest.mark.parametrize(
    ("command", "env"),
    [("true\0", {}), ("true", {"NAME": "a\0b"}), ("true", {"A=B": ""}), ("true \ud800", {})],
)
async def test_what_cannot_be_passed_to_a_program_is_said(
    command: str, env: dict[str, str]
) -> None:
    assert "cannot be passed to a program" in await reason_of(command, env)


@pytest.mark.parametrize("files", range(1, 8))
async def test_a_lack_of_files_is_said_and_leaves_none_open(files: int) -> None:
    await run("true")  # the thread that starts commands is there
    before = open_files()
    with at_most_open(files):
        reason = await reason_of("true", {})
    assert reason == "too many files are open: raise the limit (ulimit -n, or LimitNOFILE=)"
    assert open_files() == before


WITHOUT_PROCESSES: Final = """
import os, resource, sys, trio
from clarad.process import shell

async def main(commands_before: int) -> None:
    for _ in range(commands_before):
        await shell.run("true", env={})
    if os.getuid() == 0:  # there are no limits for root
        os.setuid(65534)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    try:
        await shell.run("true", env={})
    except OSError as error:
        print(error)

trio.run(main, int(sys.argv[1]))
"""


@pytest.mark.parametrize("commands_before", [0, 1])
async def test_a_lack_of_processes_is_said_whether_a_thread_or_the_command_is_refused(
    commands_before: int,
) -> None:
    with trio.fail_after(PATIENCE):
        process = await trio.run_process(
            [sys.executable, "-c", WITHOUT_PROCESSES, str(commands_before)], capture_stdout=True
        )
    reason = "no more processes are allowed: raise the limit (ulimit -u, or TasksMax=)\n"
    assert process.stdout.decode() == reason


async def test_a_command_that_waits_to_be_started_holds_no_files(marker: Marker) -> None:
    started = 0

    def count() -> None:
        nonlocal started
        started += 1
        if started == 100:
            nursery.cancel_scope.cancel("all have started")

    async def one() -> None:
        await shell.run(f"exec sleep {marker.text}", env=shell.environment({}), on_started=count)

    with trio.fail_after(PATIENCE), at_most_open(4 * 100 + 50):
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(one)
    assert started == 100
    assert marker.alive == []


async def test_a_command_that_is_cancelled_while_it_is_started_leaves_nothing(
    marker: Marker,
) -> None:
    told: list[int] = []
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:

            async def one() -> None:
                await shell.run(
                    f"exec sleep {marker.text}",
                    env=shell.environment({}),
                    on_started=lambda: told.append(0),
                    on_stopped=told.append,
                )

            nursery.start_soon(one)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel("a thread is starting it")
    assert told == [0, 1]
    assert marker.alive == []


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
        "FDSTORE",
        "CREDENTIALS_DIRECTORY",
        "CLARA_GATEWAY_SECRET",
    ],
)
async def test_what_is_the_daemons_alone_is_not_inherited(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "secret")
    assert name not in shell.operators_environment({})
    assert (await run(f'printf %s "${{{name}-unset}}"')).stdout == b"unset"


@pytest.mark.parametrize("name", ["DATABASE_URL", "PGPASSWORD", "CLARA_GATEWAY_TOKEN"])
async def test_the_daemons_secrets_are_for_the_operators_commands_alone(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "secret")
    assert (await run(f'printf %s "${{{name}-unset}}"')).stdout == b"unset"
    assert shell.operators_environment({})[name] == "secret"
    assert shell.environment({name: "its own"})[name] == "its own"


async def test_the_mark_of_the_run_that_started_the_daemon_is_not_inherited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLARA_RUN_ID", "inherited")
    assert "CLARA_RUN_ID" not in shell.environment({})
    assert (await run('printf %s "$CLARA_RUN_ID"')).stdout not in (b"", b"inherited")


async def test_each_run_has_a_mark_of_its_own() -> None:
    marks = {(await run('printf %s "$CLARA_RUN_ID"')).stdout for _ in range(3)}
    assert len(marks) == 3


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


async def test_what_called_setsid_ends_with_its_command_while_others_run(
    marker: Marker, nursery: trio.Nursery
) -> None:
    other = Marker()
    running = await start(nursery, f"echo ready; exec sleep {other.text}")
    async with trio.open_nursery() as runs:
        for _ in range(100):
            runs.start_soon(run, f"(setsid sleep {marker.text} &); true")
    assert marker.alive == []
    await alive(other, 1)
    await running.end()


def without_a_trace(marker: Marker) -> str:
    """Shell text that starts what leaves the session, empties its environment, and is ready."""
    return f"(setsid env -i sh -c 'echo ready; exec sleep {marker.text}' &)"


async def test_what_left_no_trace_does_not_end_with_another_command(
    marker: Marker, nursery: trio.Nursery
) -> None:
    running = await start(nursery, f"{without_a_trace(marker)}; exec sleep {marker.text}")
    await run("true")
    await alive(marker, 2)
    await running.end()
    assert marker.alive == []


async def test_what_left_no_trace_ends_with_its_command_while_a_later_one_runs(
    marker: Marker, nursery: trio.Nursery
) -> None:
    other = Marker()
    running = await start(nursery, f"{without_a_trace(marker)}; exec sleep {marker.text}")
    begun = procfs.now()
    while procfs.now() == begun:  # within one tick it cannot be told which was there first
        await trio.sleep(0.001)
    later = await start(nursery, f"echo ready; exec sleep {other.text}")
    await running.end()
    assert marker.alive == []
    await alive(other, 1)
    await later.end()


async def test_what_left_no_trace_ends_with_the_last_command_that_was_there_when_it_began(
    marker: Marker, nursery: trio.Nursery, tmp_path: Path
) -> None:
    earlier = await start(nursery, "echo ready; exec sleep 1000")
    hidden = f"(setsid env -i {there(marker, tmp_path)} &)"
    assert (await run(f"{hidden}; {wait_for_it(tmp_path)}; echo done")).stdout == b"done\n"
    await alive(marker, 1)
    await earlier.end()
    assert marker.alive == []


WITHOUT_ITS_FIRST_THREAD: Final = """
import ctypes, os, threading, time

def go_on():
    while " Z " not in open(f"/proc/self/task/{os.getpid()}/stat").read():
        time.sleep(0.001)
    os.write(1, b"ready\\n")
    time.sleep(1000)

threading.Thread(target=go_on).start()
ctypes.CDLL(None).pthread_exit(None)
"""


async def test_what_has_lost_its_first_thread_ends_with_the_command(
    marker: Marker, tmp_path: Path
) -> None:
    script = tmp_path / f"{marker.text}.py"
    script.write_text(WITHOUT_ITS_FIRST_THREAD)
    assert await cancel_when_ready(f"{sys.executable} {script} & wait") == 2
    assert procfs.living(marker.alive) == set()


async def test_what_others_have_started_does_not_end_with_a_command() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:  # noqa: ASYNC220 - it blocks for a moment
        await run("true")
        assert process.poll() is None
        process.kill()
        await run("true")
        assert process.wait() == -signal.SIGKILL


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


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is killed would end, but is not waited for."""
    monkeypatch.setattr(shell, "GRACE", 0)
    monkeypatch.setattr(procfs, "UNKILLABLE", 0)


async def test_what_sigkill_does_not_end_is_an_error(marker: Marker, hasty: None) -> None:
    with pytest.raises(UnkillableError, match="do not end"):
        await run(f"sleep {marker.text} & true")


CANCELLED: Final = """
import sys, trio
from clarad.process import procfs as processes, shell

shell.GRACE = processes.UNKILLABLE = 0

async def main():
    with trio.CancelScope() as scope:
        try:
            await shell.run(sys.argv[1], env={}, on_stdout=lambda _: scope.cancel())
        except shell.UnkillableError as error:
            print(error)

trio.run(main)
"""


async def test_what_sigkill_does_not_end_is_an_error_of_a_cancelled_command(
    marker: Marker,
) -> None:
    with trio.fail_after(PATIENCE):
        process = await trio.run_process(
            [sys.executable, "-c", CANCELLED, f"echo ready; exec sleep {marker.text}"],
            capture_stdout=True,
        )
    assert b"do not end" in process.stdout


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
        f"trap 'echo cleaned > {cleaned}; exit' TERM; sleep {marker.text} & echo ready; wait"
    )
    assert cleaned.read_text() == "cleaned\n"
    assert marker.alive == []


async def test_a_cancel_leaves_a_clean_up_the_commands_that_it_runs(marker: Marker) -> None:
    """They come after the SIGTERM, and below a process that has had it."""
    output = Output()
    clean_up = "for i in 1 2 3 4 5; do sleep 0.01 || exit; done; echo cleaned; exit"
    command = f"trap '{clean_up}' TERM; echo ready; sleep {marker.text} & wait"
    with trio.fail_after(PATIENCE), trio.CancelScope() as scope:
        await shell.run(
            command,
            env=shell.environment({}),
            output=output,
            on_stdout=lambda _: scope.cancel("it is ready"),
        )
    assert output.stdout.kept == b"ready\ncleaned\n"
    assert marker.alive == []


async def test_a_cancel_tells_what_is_born_meanwhile_to_end(marker: Marker, tmp_path: Path) -> None:
    """It is born after the first look, and its parent ends."""
    born, told, child = tmp_path / "born", tmp_path / "told", tmp_path / "child"
    os.mkfifo(born)
    child.write_text(
        f"trap 'echo told > {told}; exit' TERM; echo > {born}; sleep {marker.text} & wait"
    )
    bear = f"sh {child} & read _ < {born}; exit"
    await cancel_when_ready(f"trap '{bear}' TERM; echo ready; sleep {marker.text} & wait")
    assert told.read_text() == "told\n"
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
        await alive(other, 2)
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


# --- what a killed process leaves ----------------------------------------------------------------

LEAVER: Final = """
import functools, os, sys, trio
from clarad.process import shell

async def main(instance: str, *commands: str) -> None:
    shell.set_instance(instance)
    say = functools.partial(os.write, 1)
    async with trio.open_nursery() as nursery:
        for command in commands:
            go_on = functools.partial(shell.run, env=shell.environment({}), on_stdout=say)
            nursery.start_soon(go_on, command)

trio.run(main, *sys.argv[1:])
"""


@pytest.fixture
def instance() -> str:
    return secrets.token_hex(8)


async def leave(instance: str, *commands: str, ready: int = 1) -> None:
    """Have a process of this instance run commands until they have said `ready`, and kill it."""
    output = b""
    with trio.fail_after(PATIENCE):
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", LEAVER, instance, *commands], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        async with process.stdout:
            while output.count(b"ready\n") < ready:
                output += await process.stdout.receive_some()
            process.kill()
            await process.wait()


async def end_leftovers(instance: str) -> int:
    with trio.fail_after(PATIENCE):
        return await shell.end_leftovers(instance)


async def test_where_nothing_is_left_nothing_is_ended(instance: str) -> None:
    assert await end_leftovers(instance) == 0


@pytest.mark.parametrize(
    ("command", "processes_left"),
    [
        ("echo ready; exec sleep {}", 1),
        ("sleep {} & echo ready; wait", 2),
        ("setsid sh -c 'echo ready; exec sleep {}' & wait", 2),
        ("(setsid sh -c 'echo ready; exec sleep {}' &); exec sleep {}", 2),
        ("env -i sh -c 'echo ready; exec sleep {}' & wait", 2),
        ("(env -i sh -c 'echo ready; exec sleep {}' &); exec sleep {}", 2),
        ("setsid env -i sh -c 'echo ready; exec sleep {}' & wait", 2),
        ("setsid env -i sh -c 'sleep {} & echo ready; wait' & wait", 3),
    ],
)
async def test_what_a_killed_process_has_left_is_ended_and_counted(
    marker: Marker, instance: str, command: str, processes_left: int
) -> None:
    await leave(instance, command.replace("{}", marker.text))
    assert await end_leftovers(instance) == processes_left
    assert marker.alive == []
    assert await end_leftovers(instance) == 0


async def test_leftovers_of_many_commands_are_ended(marker: Marker, instance: str) -> None:
    await leave(instance, *[f"echo ready; exec sleep {marker.text}"] * 20, ready=20)
    assert await end_leftovers(instance) == 20
    assert marker.alive == []


async def test_leftovers_have_time_to_clean_up(
    marker: Marker, instance: str, tmp_path: Path
) -> None:
    cleaned = tmp_path / "cleaned"
    trap = f"trap 'echo cleaned > {cleaned}; exit' TERM"
    await leave(instance, f"{trap}; sleep {marker.text} & echo ready; wait")
    await end_leftovers(instance)
    assert cleaned.read_text() == "cleaned\n"
    assert marker.alive == []


async def test_a_leftover_that_ignores_sigterm_and_loses_its_parent_is_ended(
    marker: Marker, instance: str, impatient: None
) -> None:
    stubborn = f"setsid env -i sh -c \"trap '' TERM; echo ready; exec sleep {marker.text}\""
    await leave(instance, f"{stubborn} & wait")
    assert await end_leftovers(instance) == 2
    assert marker.alive == []


async def test_a_leftover_that_does_not_end_is_an_error(
    marker: Marker, instance: str, hasty: None
) -> None:
    await leave(instance, f"echo ready; exec sleep {marker.text}")
    with pytest.raises(UnkillableError, match="do not end"):
        await end_leftovers(instance)


@pytest.mark.parametrize("other", ["another", "{}x", "{}.more", "{}.", "x.{}"])
async def test_leftovers_of_another_instance_are_left_alone(
    marker: Marker, instance: str, other: str
) -> None:
    other = other.replace("{}", instance)
    await leave(other, f"echo ready; exec sleep {marker.text}")
    assert await end_leftovers(instance) == 0
    await alive(marker, 1)
    assert await end_leftovers(other) == 1
    assert marker.alive == []


async def test_the_commands_of_this_process_are_no_leftovers(
    marker: Marker, instance: str, nursery: trio.Nursery
) -> None:
    left = Marker()
    await leave(instance, f"echo ready; exec sleep {left.text}")
    shell.set_instance(instance)
    running = await start(nursery, f"setsid sh -c 'echo ready; exec sleep {marker.text}' & wait")
    assert await end_leftovers(instance) == 1
    assert left.alive == []
    await alive(marker, 2)
    await running.end()


ENDER: Final = """
import sys, trio
from clarad.process import shell
print(trio.run(shell.end_leftovers, sys.argv[1]), flush=True)
"""


async def test_who_was_started_by_a_command_of_the_instance_does_not_end_itself(
    marker: Marker, instance: str, tmp_path: Path
) -> None:
    left = Marker()
    await leave(instance, f"echo ready; exec sleep {left.text}")
    script = tmp_path / "ender.py"
    script.write_text(ENDER)
    shell.set_instance(instance)
    ender = f"{sys.executable} {script} {instance}; echo $?"
    result = await run(f"sleep {marker.text} & setsid sh -c '{ender}' | cat")
    assert result.stdout == b"1\n0\n"
    assert left.alive == []


async def test_a_daemon_that_a_command_has_left_is_ended_and_its_commands_are_its_own(
    marker: Marker, instance: str, tmp_path: Path
) -> None:
    script = tmp_path / f"{marker.text}.py"
    script.write_text(LEAVER)
    inner = Marker()
    command = f"echo ready; exec sleep {inner.text}"
    await leave(instance, f"{sys.executable} {script} {instance}-2 '{command}'")
    assert await end_leftovers(instance) == 2
    assert marker.alive == []
    await alive(inner, 1)
    assert await end_leftovers(f"{instance}-2") == 1
    assert inner.alive == []
