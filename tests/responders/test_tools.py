"""What a message says runs in its sender's sandbox: `/python …`, `/sh …`, and what comes back."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from clarad import responders
from clarad.config import load
from clarad.events import EventType
from clarad.protocol import Channel, Message, Stopped, User
from clarad.responders import NoSandboxError, Request
from clarad.responders.tools import HELP, ToolUser
from sandbox import EngineError, FullError, GoneError, SandboxError
from sandbox.tools import Answer
from tests.conftest import Running, Start
from tests.daemon_process import Marker
from tests.installation import Installation
from tests.peer import Frame, Peer
from tests.sandbox import engines
from tests.sandbox.test_cancelling import COMETS, DEAF, FORK_BOMB
from tests.sandbox.way import Way

PATIENCE: Final = 60.0

# --- a message and its tool ----------------------------------------------------------------------


class RecordingAnswer:
    """Remembers what was answered, in order."""

    def __init__(self) -> None:
        self.stopped = Stopped()
        self.chunks: list[str] = []
        self.tools: list[tuple[Any, ...]] = []

    @property
    def whole(self) -> str:
        return "".join(self.chunks)

    def text(self, chunk: str) -> None:
        self.chunks.append(chunk)

    def tool_start(self, name: str, *, description: str | None = None, emoji: str = "🔧") -> None:
        self.tools.append((name, description, emoji))

    def tool_result(self, name: str, *, success: bool, preview: str | None = None) -> None:
        self.tools.append((name, success, preview))


class ScriptedTools:
    """Prints these pieces, and then says, or raises, how it ended."""

    def __init__(self, *pieces: tuple[str, bytes], end: Answer | Exception | None = None) -> None:
        self._pieces = pieces
        self._end = end or Answer("")
        self.used: list[tuple[Any, ...]] = []

    async def use(
        self,
        tool: str,
        owner: str,
        arguments: Mapping[str, Any],
        *,
        on_output: Callable[[str, bytes], None] | None = None,
        on_killed: Callable[[int], None] | None = None,
    ) -> Answer:
        self.used.append((tool, owner, dict(arguments)))
        assert on_output is not None
        assert on_killed is not None
        await trio.lowlevel.checkpoint()
        for stream, data in self._pieces:
            on_output(stream, data)
        if isinstance(self._end, Exception):
            on_killed(3)
            raise self._end
        return self._end


def request(content: str) -> Request:
    user, channel = User(id="test-u", platform_id="u"), Channel(id="c", type="dm")
    message = Message(id="m-1", user=user, channel=channel, content=content)
    return Request(message=message, node_id="n", platform="test", session_id="s")


async def answer_to(content: str, tools: ScriptedTools) -> RecordingAnswer:
    answer = RecordingAnswer()
    await ToolUser(tools).respond(request(content), answer)
    return answer


async def refusal_of(error: SandboxError) -> tuple[str, RecordingAnswer]:
    answer = RecordingAnswer()
    with pytest.raises(NoSandboxError) as caught:
        await ToolUser(ScriptedTools(end=error)).respond(request("/sh ls"), answer)
    return str(caught.value), answer


@pytest.mark.parametrize(
    ("content", "used"),
    [
        ("/sh ls -l", ("run_shell", {"command": "ls -l"})),
        ("  /sh\tls", ("run_shell", {"command": "ls"})),
        ("/sh\nls\npwd\n", ("run_shell", {"command": "ls\npwd\n"})),
        ("/python print(1)", ("execute_python", {"code": "print(1)"})),
        ("/python\r\nif x:\r\n  y()", ("execute_python", {"code": "if x:\r\n  y()"})),
        ("/python \n  indented", ("execute_python", {"code": "  indented"})),
    ],
)
async def test_what_follows_the_word_is_run_for_the_sender(
    content: str, used: tuple[str, dict[str, str]]
) -> None:
    tools = ScriptedTools()
    await answer_to(content, tools)
    assert tools.used == [(used[0], "test-u", used[1])]


@pytest.mark.parametrize(
    "content",
    ["", "hello", "/", "/help", "/sh", "/sh \n\t", "/python\n", "/shell ls", "/python3 1", "/sh-x",
     "say /sh ls", "/SH ls", "/sh.", "sh ls"],
)  # fmt: skip
async def test_a_message_that_is_neither_is_answered_with_how_it_is_done(content: str) -> None:
    tools = ScriptedTools()
    answer = await answer_to(content, tools)
    assert answer.whole == HELP
    assert (tools.used, answer.tools) == ([], [])


async def test_a_tool_is_announced_with_what_it_does_and_how_it_ended() -> None:
    answer = await answer_to("/sh ls", ScriptedTools(end=Answer("a\nb")))
    assert answer.tools == [("run_shell", "ls", "🐚"), ("run_shell", True, "a\nb")]


async def test_what_is_announced_is_short() -> None:
    answer = await answer_to(f"/python {'x' * 1000}", ScriptedTools(end=Answer("y" * 1000)))
    assert answer.tools == [
        ("execute_python", "x" * 200, "🐍"),
        ("execute_python", True, "y" * 200),
    ]


@pytest.mark.parametrize(
    ("printed", "whole"),
    [(b"", "[exit status 3]\n"), (b"a\n", "a\n[exit status 3]\n"), (b"a", "a\n[exit status 3]\n")],
)
async def test_remarks_have_a_line_of_their_own(printed: bytes, whole: str) -> None:
    end = Answer("…", failed=True, remarks="[exit status 3]")
    answer = await answer_to("/sh ls", ScriptedTools(("stdout", printed), end=end))
    assert answer.whole == whole
    assert answer.tools[-1] == ("run_shell", False, "…")


pieces = st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(max_size=8)))


@given(st.text(), st.data())
def test_however_the_output_is_cut_the_text_is_the_same(text: str, data: st.DataObject) -> None:
    whole = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    tools = ScriptedTools(*(("stdout", part) for part in parts))
    assert trio.run(answer_to, "/sh ls", tools).whole == text


@given(pieces)
def test_whatever_is_printed_can_be_sent(printed: list[tuple[str, bytes]]) -> None:
    answer = trio.run(answer_to, "/sh ls", ScriptedTools(*printed))
    assert answer.whole.encode().decode() == answer.whole
    assert "" not in answer.chunks


async def test_a_character_is_not_mended_with_one_of_the_other_stream() -> None:
    printed = (("stdout", b"\xc3"), ("stderr", b"\xa4"), ("stdout", b"\xa4"))
    assert (await answer_to("/sh ls", ScriptedTools(*printed))).whole == "\ufffdä"


async def test_all_sandboxes_being_taken_is_said_to_the_user() -> None:
    said, answer = await refusal_of(FullError("all 2 sandboxes are taken: they end soon"))
    assert said == "All 2 sandboxes are taken: they end soon."
    assert answer.tools[-1] == ("run_shell", False, "all 2 sandboxes are taken: they end soon")


async def test_what_an_engine_says_is_for_the_operator(caplog: pytest.LogCaptureFixture) -> None:
    said, answer = await refusal_of(EngineError("Docker does not answer at /run/secret.sock"))
    assert said == "There is no sandbox to be had at the moment; try again later."
    assert "secret" not in str(answer.tools)
    assert "Docker does not answer at /run/secret.sock" in caplog.text


async def test_a_sandbox_that_ends_under_its_tool_is_said() -> None:
    said, _ = await refusal_of(GoneError("the sandbox has ended"))
    assert said == "The sandbox has ended."
    gone = Answer("the sandbox has ended", failed=True, remarks="the sandbox has ended", lost=True)
    answer = RecordingAnswer()
    with pytest.raises(NoSandboxError, match=r"The sandbox has ended\."):
        await ToolUser(ScriptedTools(("stdout", b"so far\n"), end=gone)).respond(
            request("/sh ls"), answer
        )
    assert answer.whole == "so far\n"
    assert answer.tools[-1] == ("run_shell", False, "the sandbox has ended")


async def test_what_was_stopped_is_counted() -> None:
    answer = RecordingAnswer()
    with trio.CancelScope() as scope:
        scope.cancel("the test wants it")
        await ToolUser(ScriptedTools()).respond(request("/sh ls"), answer)
    assert answer.stopped == Stopped(tools=1)
    assert answer.tools[-1] == ("run_shell", False, "stopped")
    with pytest.raises(RuntimeError):
        await ToolUser(ScriptedTools(end=RuntimeError())).respond(request("/sh ls"), answer)
    assert answer.stopped == Stopped(tools=2, processes=3, sandbox_execs=1)


def test_it_is_chosen_by_its_name() -> None:
    settings, _ = load({"CLARA_RESPONDER": "tools", "SANDBOX_MODE": "docker"})
    assert isinstance(responders.make(settings, ScriptedTools()), ToolUser)


# --- the whole way, on each engine ---------------------------------------------------------------


@pytest.fixture
async def running(mode: str, start: Start) -> Running:
    """A daemon with sandboxes."""
    return await start(sandbox=engines.settings(mode))


async def node(running: Running) -> Peer:
    peer = await running.node()
    peer.patience = PATIENCE
    return peer


async def say(peer: Peer, content: str, user: str = "test-u", channel: str = "c") -> list[Frame]:
    """Send a message and return all its frames."""
    request_id = f"m-{next(COUNTER)}"
    await peer.ask(request_id, content, channel, user={"id": user, "platform_id": user})
    return await peer.frames_of(request_id)


COUNTER: Final = iter(range(1_000_000))


async def said(peer: Peer, content: str, user: str = "test-u", channel: str = "c") -> str:
    """Send a message and return the whole answer."""
    end = (await say(peer, content, user, channel))[-1]
    assert end["type"] == "response_end", end
    text: str = end["full_text"]
    return text


async def wait_for_text(peer: Peer, text: str) -> None:
    """Wait until a message's answer has had this in it."""
    heard = ""
    while text not in heard:
        heard += (await peer.receive()).get("chunk", "")


async def test_python_keeps_its_variables_for_each_user(running: Running) -> None:
    peer = await node(running)
    assert await said(peer, "/python x = 20", "test-ann") == ""
    assert await said(peer, "/python x + 1", "test-ann", "another channel") == "21\n"
    assert "NameError: name 'x' is not defined" in await said(peer, "/python x", "test-bob")


async def test_files_are_seen_by_their_owner_only(running: Running) -> None:
    peer = await node(running)
    await said(peer, "/sh echo secret > file", "test-ann")
    assert await said(peer, "/python\nprint(open('file').read())", "test-ann") == "secret\n\n"
    assert await said(peer, "/sh ls", "test-bob") == ""


@pytest.mark.parametrize(
    "content",
    [
        "/sh echo one; while [ ! -e gate ]; do sleep 0.01; done; echo two",
        "/python\nimport os, time\nprint('one')\n"
        "while not os.path.exists('gate'): time.sleep(0.01)\n"
        "print('two')",
    ],
    ids=["sh", "python"],
)
async def test_what_is_printed_is_streamed_while_it_runs(running: Running, content: str) -> None:
    peer = await node(running)
    await peer.ask("long", content)
    await wait_for_text(peer, "one\n")
    await peer.ask("gate", "/sh touch gate", "another channel")
    ends = await peer.outcomes_of("gate", "long")
    assert [end["full_text"] for end in ends] == ["", "one\ntwo\n"]


async def test_a_tool_s_beginning_and_end_are_frames_and_events(running: Running) -> None:
    peer = await node(running)
    await peer.ask("m", "/sh echo hello")
    frames = await peer.frames_of("m")
    kinds = [frame["type"] for frame in frames if frame["type"] != "accepted"]
    assert kinds[:2] + kinds[-2:] == ["response_start", "tool_start", "tool_result", "response_end"]
    assert set(kinds[2:-2]) == {"response_chunk"}
    [start] = [frame for frame in frames if frame["type"] == "tool_start"]
    assert (start["tool_name"], start["step"], start["emoji"]) == ("run_shell", 1, "🐚")
    assert start["description"] == "echo hello"
    result = frames[-2]
    assert (result["tool_name"], result["success"]) == ("run_shell", True)
    assert result["output_preview"] == "hello"
    assert result["duration_ms"] >= 0
    assert frames[-1]["tool_count"] == 1
    began = await running.event(EventType.TOOL_START)
    ended = await running.event(EventType.TOOL_END)
    assert began.data == {"tool_name": "run_shell", "step": 1, "description": "echo hello"}
    assert (ended.data["tool_name"], ended.data["step"]) == ("run_shell", 1)
    assert ended.data["duration"] >= 0
    assert (ended.request_id, ended.user_id, ended.channel_id) == ("m", "test-u", "c")


@pytest.mark.parametrize(
    ("content", "end"),
    [
        ("/sh echo out; exit 3", "out\n[exit status 3]\n"),
        ("/sh kill -9 $$", "[exit status -9]\n"),
        ("/python 1 / 0", "ZeroDivisionError: division by zero\n[exit status 1]\n"),
        ("/python import sys; sys.exit(7)", "[exit status 7]\n"),
        ("/sh no-such-command", "not found\n[exit status 127]\n"),
    ],
)
async def test_what_fails_says_its_exit_status(running: Running, content: str, end: str) -> None:
    frames = await say(await node(running), content)
    assert frames[-1]["full_text"].endswith(end)
    assert [frame["success"] for frame in frames if frame["type"] == "tool_result"] == [False]
    event = await running.event(EventType.TOOL_ERROR)
    assert event.data["step"] == 1
    assert event.data["output_preview"]


async def test_what_is_no_text_comes_as_text(running: Running) -> None:
    peer = await node(running)
    answer = await said(peer, "/python import os; _ = os.write(1, bytes(range(256)) * 16)")
    assert len(answer) == 256 * 16
    assert answer.startswith("\0\x01\x02")
    assert answer.count("\ufffd") == 128 * 16


async def test_a_character_that_was_cut_in_two_comes_whole(running: Running) -> None:
    peer = await node(running)
    await peer.ask(
        "long", r"/sh printf 'a\303'; while [ ! -e gate ]; do sleep 0.01; done; printf '\244b'"
    )
    await wait_for_text(peer, "a")
    await peer.ask("gate", "/sh touch gate", "another channel")
    assert (await peer.outcomes_of("gate", "long"))[1]["full_text"] == "aäb"


async def test_of_megabytes_the_beginning_and_the_end_come(running: Running) -> None:
    answer = await said(await node(running), "/sh seq 600000")  # 4 MB
    head, cut, tail = re.split(r"\n\[… (\d+) bytes are cut …\]\n", answer)
    whole = "".join(f"{n}\n" for n in range(1, 600_001))
    assert whole.startswith(head)
    assert whole.endswith(tail)
    assert len(head) + int(cut) + len(tail) == len(whole)


async def test_a_little_more_than_is_streamed_comes_whole(running: Running) -> None:
    answer = await said(await node(running), f"/sh yes | head -c {(256 << 10) + 100}")
    assert answer == "y\n" * ((128 << 10) + 50)


# --- stop means stopped --------------------------------------------------------------------------

RUNAWAYS: Final = {
    "what called setsid": "/sh (setsid sh -c 'echo ready; exec sleep {marker}' &); sleep {marker}",
    "what ignores signals": "/sh exec python3 -c {deaf} {marker}",
    "a fork bomb": "/sh exec python3 -c {bomb} {marker}",
    # In the background: a run whose command ends by itself may be over before the cancel comes.
    "what forks and exits without end": "/sh python3 -c {comets} {marker} & exec sleep {marker}",
    "what floods": "/sh echo ready; exec yes {marker}",
    "Python and its children": (
        "/python import os, subprocess; print('ready'); subprocess.run(['sleep', '{marker}'])"
    ),
}


def runaway(kind: str, marker: Marker) -> str:
    def quoted(program: str) -> str:
        return "'" + program.replace("'", '"') + "'"

    return RUNAWAYS[kind].format(
        marker=marker.text, deaf=quoted(DEAF), bomb=quoted(FORK_BOMB), comets=quoted(COMETS)
    )


@pytest.mark.parametrize("kind", RUNAWAYS)
async def test_a_cancel_leaves_nothing_of_it(running: Running, marker: Marker, kind: str) -> None:
    peer = await node(running)
    await said(peer, "/python kept = 42")
    await peer.ask("m", runaway(kind, marker))
    await wait_for_text(peer, "ready\n")
    await peer.send("cancel", request_id="m")
    cancelled = await peer.outcome_of("m")
    assert marker.alive == []
    assert cancelled["type"] == "cancelled"
    assert_stopped(cancelled["stopped"])
    event = await running.event(EventType.MESSAGE_CANCELLED)
    assert event.data["stopped"] == cancelled["stopped"]
    if kind.startswith("Python"):
        gone = "[the interpreter has ended: all variables are gone]\n"
        assert await said(peer, "/python 6 * 7") == f"42\n{gone}"
    else:
        assert await said(peer, "/python kept") == "42\n"
    assert await said(peer, "/sh echo usable") == "usable\n"


async def test_a_cancelled_tool_has_failed_to_subscribers(running: Running) -> None:
    peer = await node(running)
    await peer.ask("m", "/sh echo ready; sleep 1000")
    await wait_for_text(peer, "ready\n")
    await peer.send("cancel", request_id="m")
    await peer.outcome_of("m")
    event = await running.event(EventType.TOOL_ERROR)
    assert event.data["tool_name"] == "run_shell"
    assert event.data["output_preview"] == "stopped"


@pytest.mark.parametrize("kind", ["what called setsid", "a fork bomb"])
async def test_the_deadline_of_a_message_leaves_nothing_of_it(
    mode: str, start: Start, marker: Marker, kind: str
) -> None:
    ready = engines.settings(mode, SANDBOX_POOL="1")
    running = await start(sandbox=ready, message_timeout=3)
    peer = await node(running)
    await said(peer, "/python kept = 42")
    await peer.ask("m", runaway(kind, marker))
    frames = await peer.frames_of("m")
    assert marker.alive == []
    assert (frames[-1]["type"], frames[-1]["code"]) == ("error", "timeout")
    event = await running.event(EventType.MESSAGE_CANCELLED)
    assert event.data["reason"] == "timeout"
    assert_stopped(event.data["stopped"])
    assert await said(peer, "/python kept") == "42\n"


def assert_stopped(stopped: Mapping[str, int]) -> None:
    assert (stopped["tools"], stopped["sandbox_execs"]) == (1, 1)
    assert stopped["processes"] > 0


# --- no sandbox to be had ------------------------------------------------------------------------


async def test_when_all_sandboxes_are_taken_the_user_may_try_again(mode: str, start: Start) -> None:
    running = await start(sandbox=engines.settings(mode, SANDBOX_MAX="1"))
    peer = await node(running)
    await said(peer, "/sh true", "test-ann")
    frames = await say(peer, "/sh true", "test-bob")
    error = frames[-1]
    assert (error["type"], error["code"], error["recoverable"]) == ("error", "no_sandbox", True)
    assert error["message"].startswith("All 1 sandboxes are taken: ")
    assert (await running.event(EventType.TOOL_ERROR)).user_id == "test-bob"
    assert await said(peer, "/sh echo still mine", "test-ann") == "still mine\n"


async def test_a_sandbox_that_is_removed_in_the_middle_is_said_and_replaced(
    mode: str, running: Running
) -> None:
    peer = await node(running)
    await peer.ask("m", "/sh echo ready; sleep 1000")
    await wait_for_text(peer, "ready\n")
    [row] = running.daemon.operations.sandbox_status().rows or []
    await engines.remove(mode, row["name"])
    error = await peer.outcome_of("m")
    assert (error["type"], error["code"], error["recoverable"]) == ("error", "no_sandbox", True)
    assert "the next call gets a new one" in error["message"]
    assert await said(peer, "/sh echo usable") == "usable\n"


async def test_an_engine_that_goes_away_is_said_and_used_again_when_it_is_back(
    mode: str, start: Start, tmp_path: Path, nursery: trio.Nursery
) -> None:
    way = Way(mode, tmp_path / "engine.sock")
    scope = await nursery.start(way.open)
    running = await start(sandbox=engines.settings(mode, **way.variables))
    peer = await node(running)
    await peer.ask("m", "/sh echo ready; sleep 1000")
    await wait_for_text(peer, "ready\n")
    scope.cancel("the engine goes")
    outcomes = [await peer.outcome_of("m"), (await say(peer, "/sh echo anybody?"))[-1]]
    assert [(end["code"], end["recoverable"]) for end in outcomes] == [("no_sandbox", True)] * 2
    assert str(tmp_path) not in str(outcomes)
    await nursery.start(way.open)
    assert await said(peer, "/sh echo usable") == "usable\n"


# --- hooks ---------------------------------------------------------------------------------------

HOOKS: Final = """
- name: tell-start
  event: tool:start
  command: echo "$CLARA_TOOL_NAME $CLARA_STEP $CLARA_DESCRIPTION" > start
- name: tell-end
  event: tool:end
  command: echo "$CLARA_TOOL_NAME $CLARA_STEP $CLARA_OUTPUT_PREVIEW ${CLARA_DURATION%.*}" > end
- name: tell-error
  event: tool:error
  command: echo "$CLARA_TOOL_NAME $CLARA_STEP $CLARA_OUTPUT_PREVIEW" > error
"""


def test_hooks_are_told_of_tools(mode: str, tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    installation.write(hooks=HOOKS)
    with installation.daemon(**engines.variables(mode, CLARA_RESPONDER="tools")) as process:
        assert installation.clarad("send", "/sh echo hello").out == "hello\n"
        process.wait_for_log("hook tell-start ran")
        process.wait_for_log("hook tell-end ran")
        assert (tmp_path / "start").read_text() == "run_shell 1 echo hello\n"
        assert re.fullmatch(r"run_shell 1 hello \d+\n", (tmp_path / "end").read_text())
        assert installation.clarad("send", "/python 1 / 0").out.endswith("[exit status 1]\n")
        process.wait_for_log("hook tell-error ran")
        assert (tmp_path / "error").read_text().startswith("execute_python 1 [standard error]\n")
