"""One attempt at a shell command, with real processes; and what a hook's command gets to know."""

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import trio

from clarad.automation.hooks import attempt as reaction
from clarad.automation.hooks.client import WebhookClient
from clarad.automation.hooks.hook import Hook
from clarad.automation.runs import command
from clarad.automation.runs.run import AttemptResult
from clarad.events import Event, EventType
from clarad.process import procfs, shell
from clarad.process.shell import MAX_VARIABLE, OUTPUT_CAP, Output, Tail
from clarad.store import Outcome
from tests.daemon_process import Marker
from tests.unprivileged import unprivileged

PATIENCE: Final = 30
"""Seconds after which a test that hangs is given up; nothing here takes that long."""

HOSTILE: Final = "\"; echo broken out; $(echo broken out) `echo broken out` '\n&& echo out #"


async def attempt(
    text: str,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path = Path("/"),
    output: Output | None = None,
    stdin: bytes = b"",
) -> AttemptResult:
    with trio.fail_after(PATIENCE):
        return await command.attempt(
            text, env=env or {}, cwd=cwd, output=output or Output(), stdin=stdin
        )


# --- how it ends ---------------------------------------------------------------------------------


async def test_what_exits_with_0_ran() -> None:
    assert await attempt("exit 0") == AttemptResult(Outcome.RAN, exit_status=0)


@pytest.mark.parametrize("status", [1, 2, 126, 127, 128, 255])
async def test_what_exits_with_anything_else_failed(status: int) -> None:
    tried = await attempt(f"exit {status}")
    assert tried == AttemptResult(Outcome.FAILED, f"exit status {status}", status)


@pytest.mark.parametrize(
    ("signal", "number", "words"),
    [
        ("TERM", 15, "ended by SIGTERM"),
        ("KILL", 9, "ended by SIGKILL"),
        ("SEGV", 11, "ended by SIGSEGV"),
        ("40", 40, "ended by signal 40"),
    ],
)
async def test_what_a_signal_ends_failed_and_says_by_which(
    signal: str, number: int, words: str
) -> None:
    tried = await attempt(f"ulimit -c 0; kill -{signal} $$")
    assert tried == AttemptResult(Outcome.FAILED, words, -number)


async def test_a_command_that_does_not_exist_failed_and_the_shell_says_so() -> None:
    output = Output()
    tried = await attempt("no-such-command-anywhere", output=output)
    assert tried == AttemptResult(Outcome.FAILED, "exit status 127", 127)
    assert b"no-such-command-anywhere" in output.stderr.kept


async def test_what_its_last_command_does_counts_not_what_runs_in_the_background(
    marker: Marker,
) -> None:
    assert (await attempt(f"(sleep {marker.text}; exit 3) & exit 0")).outcome is Outcome.RAN
    assert marker.alive == []


async def test_what_does_not_end_though_it_is_killed_failed_and_is_named(
    marker: Marker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell, "GRACE", 0)
    monkeypatch.setattr(procfs, "UNKILLABLE", 0)
    tried = await attempt(f"sleep {marker.text} & exit 0")
    assert tried.outcome is Outcome.FAILED
    assert tried.exit_status is None
    assert "SIGKILL notwithstanding" in tried.reason


# --- what cannot be started ----------------------------------------------------------------------


def assert_not_started(tried: AttemptResult, *words: str) -> None:
    """It failed, which may be different the next time, and says why in one line."""
    assert tried.outcome is Outcome.FAILED
    assert tried.reason.startswith("it cannot be started: ")
    assert tried.reason.isprintable()
    assert tried.exit_status is None
    assert tried.worth_retrying
    for word in words:
        assert word in tried.reason


async def test_without_its_directory_it_is_not_started(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    tried = await attempt(f"touch {tmp_path}/started", cwd=nowhere)
    assert_not_started(tried, str(nowhere), "No such file or directory")
    assert not (tmp_path / "started").exists()


async def test_in_a_directory_that_is_none_it_is_not_started(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert_not_started(await attempt("true", cwd=file), str(file), "Not a directory")


async def test_in_a_directory_that_may_not_be_entered_it_is_not_started(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    with unprivileged():
        tried = await attempt("true", cwd=closed)
    assert_not_started(tried, str(closed), "Permission denied")


async def test_a_command_that_is_too_long_is_not_started() -> None:
    assert_not_started(await attempt("true " + "x" * 200_000), "too large")


async def test_an_environment_that_is_too_large_is_not_started() -> None:
    env = {f"VARIABLE_{n}": "x" * MAX_VARIABLE for n in range(400)}
    assert_not_started(await attempt("true", env=env), "too large")


@pytest.mark.parametrize("text", ["true \0", "true \ud800"])
async def test_a_command_that_is_no_text_is_not_started(text: str) -> None:
    assert_not_started(await attempt(text))


# --- what it gets --------------------------------------------------------------------------------


async def test_it_runs_in_its_directory(tmp_path: Path) -> None:
    output = Output()
    await attempt("pwd -P", cwd=tmp_path, output=output)
    assert output.stdout.kept.decode() == f"{tmp_path}\n"


@pytest.mark.parametrize("size", [0, 5, 1_000_000])
async def test_it_reads_what_it_is_given(size: int) -> None:
    output = Output()
    await attempt("wc -c", stdin=os.urandom(size), output=output)
    assert int(output.stdout.kept) == size


async def test_it_need_not_read_what_it_is_given() -> None:
    assert (await attempt("exit 0", stdin=bytes(1_000_000))).outcome is Outcome.RAN


async def test_it_has_the_environment_of_the_daemon_and_what_it_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OF_DAEMON", "inherited")
    monkeypatch.setenv("OF_BOTH", "inherited")
    monkeypatch.setenv("CLARA_GATEWAY_SECRET", "hush")
    output = Output()
    text = 'echo "$OF_DAEMON $OF_BOTH ${CLARA_GATEWAY_SECRET-unset}"'
    await attempt(text, env={"OF_BOTH": "given"}, output=output)
    assert output.stdout.kept == b"inherited given unset\n"


async def test_what_is_in_a_variable_is_data_also_where_it_is_not_quoted() -> None:
    output = Output()
    await attempt('printf %s "${WORDS}"; echo ${WORDS}', env={"WORDS": HOSTILE}, output=output)
    assert output.stdout.kept.decode() == HOSTILE + " ".join(HOSTILE.split()) + "\n"


# --- what it writes ------------------------------------------------------------------------------


async def test_both_outputs_are_kept() -> None:
    output = Output()
    await attempt("echo out; echo err >&2; exit 3", output=output)
    assert (output.stdout.kept, output.stderr.kept) == (b"out\n", b"err\n")


async def test_of_much_output_the_end_is_kept_and_counted_what_was_before() -> None:
    output = Output()
    await attempt("yes | head -c 1000000; yes n | head -c 100000 >&2", output=output)
    assert output.stdout.kept == b"y\n" * (OUTPUT_CAP // 2)
    assert output.stdout.cut == 1_000_000 - OUTPUT_CAP
    assert output.stderr.cut == 100_000 - OUTPUT_CAP


class Announced(Tail):
    """Says when something has come."""

    def __init__(self) -> None:
        super().__init__()
        self.has_come = trio.Event()

    def add(self, data: bytes | bytearray) -> None:
        super().add(data)
        self.has_come.set()


async def cancelled_when_it_complains(text: str) -> Output:
    """Cancel the command as soon as it writes to standard error; return what it wrote."""
    output = Output()
    output.stderr = complaints = Announced()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(attempt, text, output=output))
            await complaints.has_come.wait()
            nursery.cancel_scope.cancel("the test wants it")
    return output


async def test_what_was_written_before_a_cancel_is_kept_and_nothing_of_the_command(
    marker: Marker,
) -> None:
    output = await cancelled_when_it_complains(
        f"echo half; echo way >&2; sleep {marker.text} & exec sleep {marker.text}"
    )
    assert (output.stdout.kept, output.stderr.kept) == (b"half\n", b"way\n")
    assert marker.alive == []


async def test_what_it_writes_when_it_is_told_to_end_is_kept(marker: Marker) -> None:
    output = await cancelled_when_it_complains(
        f"trap 'echo it was the disk; exit' TERM; (echo >&2; exec sleep {marker.text}) & wait"
    )
    assert output.stdout.kept == b"it was the disk\n"
    assert marker.alive == []


# --- what a hook's command gets ------------------------------------------------------------------


def event(**fields: Any) -> Event:
    about: dict[str, Any] = {"id": "event-1", "type": EventType.TOOL_ERROR} | fields
    return Event(timestamp=datetime(2027, 3, 1, 12, tzinfo=UTC), **about)


async def react(text: str, to: Event, **fields: Any) -> bytes:
    """Return what a hook with this command writes."""
    about: dict[str, Any] = {"events": frozenset({to.type}), "working_dir": Path("/")} | fields
    output = Output()
    with trio.fail_after(PATIENCE):
        tried = await reaction.attempt(
            Hook(name="h", command=text, **about),
            to,
            run_id="hook-1-1",
            number=2,
            webhooks=WebhookClient(),
            output=output,
        )
    assert tried.outcome is Outcome.RAN, output.stderr.kept
    return output.stdout.kept


async def test_a_hook_has_the_event_in_its_environment() -> None:
    happened = event(
        node_id="node-1",
        platform="discord",
        user_id=HOSTILE,
        channel_id="general",
        request_id="request-1",
        session_id="session-1",
        data={"tool": "hammer", "tries": 3, "list": [1], "none": None, "odd key": "x"},
    )
    got = await react("env -0", happened)
    variables = dict(entry.split("=", 1) for entry in got.decode().split("\0") if entry)
    assert {
        "CLARA_EVENT_ID": "event-1",
        "CLARA_EVENT_TYPE": "tool:error",
        "CLARA_TIMESTAMP": "2027-03-01T12:00:00+00:00",
        "CLARA_NODE_ID": "node-1",
        "CLARA_PLATFORM": "discord",
        "CLARA_USER_ID": HOSTILE,
        "CLARA_CHANNEL_ID": "general",
        "CLARA_REQUEST_ID": "request-1",
        "CLARA_SESSION_ID": "session-1",
        "CLARA_TOOL": "hammer",
        "CLARA_TRIES": "3",
        "CLARA_RUN": "hook-1-1",
        "CLARA_ATTEMPT": "2",
        "CLARA_CAUSED_BY": "hook-1-1",
    }.items() <= variables.items()
    assert json.loads(variables["CLARA_EVENT_DATA"]) == happened.data
    assert not {"CLARA_LIST", "CLARA_NONE", "CLARA_ODD KEY"} & variables.keys()


async def test_what_an_event_does_not_have_is_not_set() -> None:
    text = 'echo "${CLARA_NODE_ID-unset} ${CLARA_USER_ID-unset} ${CLARA_SESSION_ID-unset}"'
    assert await react(text, event()) == b"unset unset unset\n"


async def test_a_hook_reads_the_whole_event() -> None:
    happened = event(user_id="ü", caused_by=("hook-1-9",), data={"text": "x" * 100_000})
    got = await react("sha256sum | head -c 64; wc -c >&2", happened)
    whole = msgspec.json.encode(happened)
    assert msgspec.json.decode(whole, type=Event) == happened
    assert got == await react("sha256sum | head -c 64", happened)
    short = event(user_id="ü", caused_by=("hook-1-9",), data={"text": "\0\n"})
    assert msgspec.json.decode(await react("cat", short), type=Event) == short


async def test_a_hook_knows_what_led_to_it() -> None:
    got = await react('echo "$CLARA_CAUSED_BY"', event(caused_by=("task-1-1", "hook-1-7")))
    assert got == b"task-1-1 hook-1-7 hook-1-1\n"


async def test_what_a_hook_sets_itself_goes_before_what_the_event_has() -> None:
    happened = event(platform="discord", data={"channel": "of the event"})
    env = {"CLARA_PLATFORM": "mine", "CLARA_CHANNEL": "alerts"}
    assert await react('echo "$CLARA_PLATFORM $CLARA_CHANNEL"', happened, env=env) == (
        b"mine alerts\n"
    )


async def test_data_does_not_pass_for_what_the_event_is() -> None:
    happened = event(data={"event_id": "x", "event_type": "x", "run": "x", "caused_by": "x"})
    got = await react(
        'echo "$CLARA_EVENT_ID $CLARA_EVENT_TYPE $CLARA_RUN $CLARA_CAUSED_BY"', happened
    )
    assert got == b"event-1 tool:error hook-1-1 hook-1-1\n"


async def test_data_that_is_too_long_for_the_environment_is_whole_on_standard_input() -> None:
    data = {f"text_{n}": "x" * 100_000 for n in range(30)}
    got = await react("wc -c", event(data=data))
    assert int(got) > 3_000_000


async def test_a_hook_runs_in_its_directory(tmp_path: Path) -> None:
    assert await react("pwd -P", event(), working_dir=tmp_path) == f"{tmp_path}\n".encode()
