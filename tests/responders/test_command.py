import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import pytest
import trio

from clarad import responders
from clarad.config import load
from clarad.process import shell
from clarad.protocol import Attachment, Channel, Message, Stopped, User
from clarad.responders import Request, ResponderError
from clarad.responders.command import Command
from tests.daemon_process import Marker

PATIENCE: Final = 10.0
"""Seconds after which a test that hangs is given up; nothing here takes that long."""


class RecordingAnswer:
    """Remembers what was answered; `on_text` is called with the whole text so far."""

    def __init__(self, on_text: Callable[[str], None] | None = None) -> None:
        self.stopped = Stopped()
        self.chunks: list[str] = []
        self._on_text = on_text

    @property
    def whole(self) -> str:
        return "".join(self.chunks)

    def text(self, chunk: str) -> None:
        self.chunks.append(chunk)
        if self._on_text is not None:
            self._on_text(self.whole)

    def tool_start(self, name: str, *, description: str | None = None, emoji: str = "🔧") -> None:
        raise AssertionError("a command has no tools")

    def tool_result(self, name: str, *, success: bool, preview: str | None = None) -> None:
        raise AssertionError("a command has no tools")


def message(content: str = "hello", name: str | None = None) -> Message:
    return Message(
        id="m-1",
        user=User(id="test-u", platform_id="u", name=name),
        channel=Channel(id="c", type="dm"),
        content=content,
    )


def request(asked: Message) -> Request:
    return Request(message=asked, node_id="n", platform="test", session_id="s")


async def answer_to(command: str, asked: Message | None = None) -> str:
    answer = RecordingAnswer()
    with trio.fail_after(PATIENCE):
        await Command(command).respond(request(asked or message()), answer)
    return answer.whole


async def failure_of(command: str) -> str:
    with pytest.raises(ResponderError) as caught:
        await answer_to(command)
    return str(caught.value)


class Gate:
    """Where a command waits for the test: `hold` is shell text that does it."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._path = path
        self.hold = f"read _ < '{path}'"

    async def open(self) -> None:
        await trio.to_thread.run_sync(self._path.write_text, "go\n")


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


# --- what it says --------------------------------------------------------------------------------


async def test_what_a_command_writes_is_the_answer() -> None:
    assert await answer_to("echo hello") == "hello\n"


async def test_a_command_may_say_nothing() -> None:
    answer = RecordingAnswer()
    await Command("true").respond(request(message()), answer)
    assert answer.chunks == []


async def test_what_a_command_writes_to_standard_error_is_not_part_of_the_answer() -> None:
    assert await answer_to("echo chatter >&2; echo hello") == "hello\n"


async def test_a_long_answer_is_whole() -> None:
    assert await answer_to("seq 100000") == "".join(f"{n}\n" for n in range(1, 100_001))


async def test_an_answer_streams_as_it_is_written(gate: Gate) -> None:
    arrived = trio.Event()
    answer = RecordingAnswer(lambda whole: arrived.set())
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            command = Command(f"echo one; {gate.hold}; echo two")
            nursery.start_soon(command.respond, request(message()), answer)
            await arrived.wait()
            assert answer.whole == "one\n"
            await gate.open()
    assert answer.whole == "one\ntwo\n"


@pytest.mark.parametrize(
    ("before", "after", "character"),
    [
        (r"\303", r"\244", "ä"),
        (r"\342", r"\202\254", "€"),
        (r"\342\202", r"\254", "€"),
        (r"\360", r"\237\230\200", "😀"),
        (r"\360\237\230", r"\200", "😀"),
    ],
)
async def test_a_character_that_is_cut_in_half_is_held_back(
    gate: Gate, before: str, after: str, character: str
) -> None:
    arrived = trio.Event()
    answer = RecordingAnswer(lambda whole: arrived.set())
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            command = Command(f"printf 'a{before}'; {gate.hold}; printf '{after}b'")
            nursery.start_soon(command.respond, request(message()), answer)
            await arrived.wait()
            assert answer.chunks == ["a"]
            await gate.open()
    assert answer.chunks == ["a", f"{character}b"]


async def test_half_a_character_at_the_end_is_replaced() -> None:
    assert await answer_to(r"printf 'a\303'") == "a\ufffd"


async def test_what_is_not_utf_8_is_replaced() -> None:
    assert await answer_to(r"printf 'a\377b'") == "a\ufffdb"


# --- what it is told -----------------------------------------------------------------------------


async def test_the_message_is_on_standard_input() -> None:
    asked = Message(
        id="m-1",
        user=User(id="test-u", platform_id="u", name="name", display_name="Display Name"),
        channel=Channel(id="c", type="group", name="general", guild_id="g"),
        content='hello "there"\n\0😀',
        attachments=[Attachment(type="text", filename="a.txt", content="a")],
        reply_chain=[{"id": "m-0"}],
        tier_override="high",
        metadata={"deep": [1, {"a": None}]},
    )
    assert msgspec.json.decode(await answer_to("cat", asked), type=Message) == asked


async def test_a_long_message_is_whole_on_standard_input() -> None:
    asked = message("x" * 5_000_000)
    assert int(await answer_to("wc -c", asked)) == len(msgspec.json.encode(asked))


async def test_a_message_need_not_be_read() -> None:
    assert await answer_to("echo hello", message("x" * 5_000_000)) == "hello\n"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CLARA_REQUEST_ID", "m-1"),
        ("CLARA_NODE_ID", "n"),
        ("CLARA_PLATFORM", "test"),
        ("CLARA_SESSION_ID", "s"),
        ("CLARA_USER_ID", "test-u"),
        ("CLARA_USER_NAME", "Ann"),
        ("CLARA_CHANNEL_ID", "c"),
        ("CLARA_CHANNEL_TYPE", "dm"),
        ("CLARA_TIER", ""),
        ("CLARA_CONTENT", "hello"),
    ],
)
async def test_the_message_is_in_variables(variable: str, value: str) -> None:
    assert await answer_to(f'printf %s "${{{variable}-unset}}"', message(name="Ann")) == value


async def test_the_name_that_is_displayed_goes_before_the_users_name() -> None:
    user = User(id="test-u", platform_id="u", name="ann99", display_name="Ann")
    asked = Message(id="m-1", user=user, channel=Channel(id="c"), content="")
    assert await answer_to('printf %s "$CLARA_USER_NAME"', asked) == "Ann"


async def test_a_user_without_a_name_has_an_empty_one() -> None:
    assert await answer_to('printf %s "${CLARA_USER_NAME-unset}"') == ""


async def test_a_long_content_is_cut_off_in_its_variable() -> None:
    length = await answer_to('printf %s "$CLARA_CONTENT" | wc -c', message("x" * 5_000_000))
    assert int(length) == shell.MAX_VARIABLE


@pytest.mark.parametrize(
    "name",
    [
        "'; touch broken-out; '",
        '"; touch broken-out; "',
        "$(touch broken-out)",
        "`touch broken-out`",
        "ann\ntouch broken-out",
        "-n",
        "${IFS}",
        "*",
        "() { :; }; touch broken-out",
    ],
)
async def test_a_users_name_is_data(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = await answer_to('printf "%s" "$CLARA_USER_NAME"', message(name=name))
    assert said == name
    assert not (tmp_path / "broken-out").exists()


# --- how it fails --------------------------------------------------------------------------------


async def test_a_failing_command_is_explained_by_its_last_line_on_standard_error() -> None:
    command = "echo first >&2; echo 'no such city: Atlantis' >&2; echo >&2; exit 1"
    assert await failure_of(command) == "no such city: Atlantis"


async def test_a_last_line_without_its_end_is_a_line_as_well() -> None:
    assert await failure_of("echo first >&2; printf last >&2; exit 1") == "last"


async def test_a_failing_command_that_says_nothing_has_an_exit_status() -> None:
    assert await failure_of("exit 3") == "The command failed: exit status 3."


async def test_blank_lines_say_nothing() -> None:
    assert await failure_of("printf '\\n \\n' >&2; exit 3") == (
        "The command failed: exit status 3."
    )


async def test_a_command_that_is_ended_by_a_signal_is_said_to_be() -> None:
    assert await failure_of("kill -KILL $$") == "The command failed: ended by SIGKILL."


async def test_a_command_may_be_ended_by_a_signal_without_a_name() -> None:
    assert "35" in await failure_of("kill -35 $$")


async def test_an_explanation_that_is_not_utf_8_is_replaced() -> None:
    assert await failure_of(r"printf 'a\377b' >&2; exit 1") == "a\ufffdb"


async def test_what_a_failing_command_has_said_before_is_not_lost() -> None:
    answer = RecordingAnswer()
    with pytest.raises(ResponderError):
        await Command("echo half; exit 1").respond(request(message()), answer)
    assert answer.whole == "half\n"


async def test_a_command_that_succeeds_may_complain() -> None:
    assert await answer_to("echo careful >&2; echo hello") == "hello\n"


async def test_a_lack_of_processes_is_one_line_in_the_log_until_one_starts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    command = Command("true")

    async def fail_with(number: int) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "Popen", refuse)
            with pytest.raises(ResponderError, match="try again later"):
                await command.respond(request(message()), RecordingAnswer())

    for number in (errno.EAGAIN, errno.EAGAIN, errno.ENOMEM, errno.EMFILE):
        await fail_with(number)
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(":")[1].strip() for line in lines] == [
        "no more processes are allowed",
        "there is not enough memory for one more process",
        "too many files are open",
    ]
    assert all(record.exc_info is None for record in caplog.records)
    await command.respond(request(message()), RecordingAnswer())
    await fail_with(errno.EMFILE)
    assert len(caplog.records) == 4


# --- how it is stopped ---------------------------------------------------------------------------


async def test_cancelling_ends_all_processes_and_counts_them(marker: Marker) -> None:
    with trio.fail_after(PATIENCE), trio.CancelScope() as scope:
        answer = RecordingAnswer(lambda whole: scope.cancel("requested"))
        command = f"sleep {marker.text} & (setsid sleep {marker.text} &); echo ready; wait"
        await Command(command).respond(request(message()), answer)
    assert scope.cancelled_caught
    assert answer.stopped.processes == 3
    assert marker.alive == []


async def test_cancelling_adds_to_what_was_stopped_before(marker: Marker) -> None:
    with trio.fail_after(PATIENCE), trio.CancelScope() as scope:
        answer = RecordingAnswer(lambda whole: scope.cancel("requested"))
        answer.stopped.processes = 5
        command = Command(f"echo ready; exec sleep {marker.text}")
        await command.respond(request(message()), answer)
    assert answer.stopped == Stopped(processes=6)


async def test_a_command_that_ends_by_itself_was_not_stopped() -> None:
    answer = RecordingAnswer()
    await Command("echo hello").respond(request(message()), answer)
    assert answer.stopped == Stopped()


async def test_an_answer_that_becomes_too_long_ends_the_command(marker: Marker) -> None:
    def refuse(whole: str) -> None:
        if len(whole) > 100_000:
            raise ResponderError("The answer is too long.")

    command = f"sleep {marker.text} & yes"
    with trio.fail_after(PATIENCE), pytest.RaisesGroup(ResponderError, allow_unwrapped=True):
        await Command(command).respond(request(message()), RecordingAnswer(refuse))
    assert marker.alive == []


def test_a_command_is_what_answers_where_it_is_set() -> None:
    settings, _ = load({"CLARA_RESPONDER": "command", "CLARA_RESPONDER_COMMAND": "cat"})
    assert isinstance(responders.make(settings), Command)
