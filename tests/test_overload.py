"""Too much of something: the daemon says so, keeps what it promised, and serves the others."""

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio

from clarad.events import EventType
from clarad.limits.memory import MemoryBudget
from clarad.limits.rate import Rate
from clarad.messages import sessions
from clarad.messages.admission import OWN_BYTES, RETRY_AFTER
from clarad.nurseries.connection import Connection
from clarad.transport import outbox, sender, stream
from clarad.transport.sender import text_frame
from tests import peer
from tests.conftest import Running, Start
from tests.daemon_process import clarad, daemon, environment
from tests.peer import Frame, Peer, message
from tests.raw import RawPeer

ANSWER = "x" * 500_000
MESSAGES = 40
"""Together more than a socket's buffers and a small outbox."""
BACKLOG = 10_000


# --- a slow adapter ------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have outboxes that are soon full."""
    monkeypatch.setattr(outbox, "MAX_BYTES", 4 * 1024 * 1024)


async def overfill(running: Running, capabilities: list[str]) -> set[str]:
    """Ask for long answers without reading any, until closed; return what was accepted."""
    accepted: set[str] = set()
    async with RawPeer.connected(running.host, running.port) as slow:
        register = {"node_id": "slow", "platform": "test", "capabilities": capabilities}
        await slow.send_text(json.dumps({"type": "register"} | register))
        await slow.receive_text()
        good = await running.node("good")
        for n in range(MESSAGES):
            await slow.send_text(
                json.dumps({"type": "message"} | message(f"m-{n}", ANSWER, f"c-{n}"))
            )
        await good.ask("good")
        assert (await good.outcome_of("good"))["full_text"] == "hello"
        while (event := await anext(running.events)).type is not EventType.ADAPTER_DISCONNECTED:
            if event.type is EventType.MESSAGE_RECEIVED and event.node_id == "slow":
                assert event.request_id is not None
                accepted.add(event.request_id)
        assert event.data["code"] == 4008
    return accepted


async def answered(connection: Peer, expected: set[str]) -> None:
    """Wait until all these messages are answered."""
    while expected:
        frame = await connection.receive()
        if frame["type"] == "response_end":
            assert frame["full_text"] == ANSWER
            expected = expected - {frame["request_id"]}
        if "seq" in frame:
            await connection.send("ack", seq=frame["seq"])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("capabilities", [[], ["resume", "streaming"]], ids=["plain", "resume"])
async def test_a_slow_adapter_is_closed_and_given_what_it_missed(
    running: Running, capabilities: list[str]
) -> None:
    accepted = await overfill(running, capabilities)
    assert accepted
    again = await running.connect()
    await again.register("slow", capabilities)
    await answered(again, accepted)


@pytest.mark.usefixtures("small")
async def test_who_reads_on_is_told_why_it_was_closed_and_given_the_rest_by_a_resume(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "CLOSE_TIMEOUT", 60.0)
    register = {"node_id": "slow", "platform": "test", "capabilities": ["resume"]}
    async with RawPeer.connected(running.host, running.port) as slow:
        await slow.send_text(json.dumps({"type": "register"} | register))
        session_id = json.loads(await slow.receive_text())["session_id"]
        for n in range(MESSAGES):
            await slow.send_text(
                json.dumps({"type": "message"} | message(f"m-{n}", ANSWER, f"c-{n}"))
            )
        await overflow(running)
        texts, code = await slow.rest()
        assert code == 4008
    frames = [json.loads(text) for text in texts]
    again = await running.connect()
    last_seq = frames[-1]["seq"]
    await again.register("slow", ["resume"], session_id=session_id, last_seq=last_seq)
    accepted = {event.request_id or "" for event in running.events_of(EventType.MESSAGE_RECEIVED)}
    read = {frame["request_id"] for frame in frames if frame["type"] == "response_end"}
    assert read < accepted
    await answered(again, accepted - read)
    assert await again.is_silent()


async def overflow(running: Running) -> None:
    """Wait until the node `slow` is about to be closed."""
    node = running.daemon.nodes.known("slow", "test")
    assert node is not None
    assert isinstance(node.sink, Connection)
    with trio.fail_after(30):
        while node.sink._sender.closing is None:
            await trio.sleep(0.01)


# --- a flood -------------------------------------------------------------------------------------


async def test_a_flood_of_one_node_is_refused_and_another_node_is_answered(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = MemoryBudget(1_000_000, OWN_BYTES)
    monkeypatch.setattr(running.daemon.turns.admission, "_budget", budget)
    flooder = await running.node("flooder", ["accepted"])
    refusals: list[Frame] = []
    for n in range(200):
        await flooder.ask(f"m-{n}", "hold", f"c-{n}")
    while len(refusals) < 100:
        if (frame := await flooder.receive())["type"] == "error":
            refusals.append(frame)
    told = {(frame["code"], frame["recoverable"], frame["retry_after"]) for frame in refusals}
    assert told == {("queue_full", True, RETRY_AFTER)}
    good = await running.node("good")
    await good.ask("m", "hello")
    assert (await good.outcome_of("m"))["full_text"] == "hello"
    await flooder.send("cancel", request_id="m-0")
    assert (await flooder.outcome_of("m-0"))["type"] == "cancelled"


async def test_a_message_above_the_rate_is_refused_and_a_cancel_never(start: Start) -> None:
    running = await start(rate_user=Rate(1, at_once=2))
    node = await running.node()
    for n in range(3):
        await node.ask(f"m-{n}", "hold", f"c-{n}")
    refused = await node.outcome_of("m-2")
    assert (refused["code"], refused["recoverable"]) == ("rate_limited", True)
    assert "send it again in 60 s" in refused["message"]
    assert refused["retry_after"] == 60
    for n in range(2):
        await node.send("cancel", request_id=f"m-{n}")
        assert (await node.outcome_of(f"m-{n}"))["type"] == "cancelled"
    assert await node.is_silent()
    assert len(running.events_of(EventType.MESSAGE_RECEIVED)) == 2


async def test_a_message_that_is_sent_again_while_it_lives_is_not_counted(start: Start) -> None:
    running = await start(rate_node=Rate(1, at_once=1))
    node = await running.node("n", ["accepted"])
    for _ in range(3):
        await node.ask("m", "hold")
    accepted = [await node.expect(kind) for kind in ("accepted", "accepted", "accepted")]
    assert [frame["duplicate"] for frame in accepted] == [False, True, True]


async def test_of_very_many_sessions_the_one_that_was_idle_longest_ends(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MAX_IDLE", 3)
    node = await running.node()
    await node.ask("busy", "hold", "busy")
    for n, channel in enumerate(("c-0", "c-1", "c-2", "c-0", "c-3")):
        await node.ask(f"m-{n}", "hello", channel)
        await node.outcome_of(f"m-{n}")
    ended = await running.event(EventType.SESSION_END)
    assert (ended.channel_id, ended.data["reason"]) == ("c-1", "crowded_out")
    await node.send("cancel", request_id="busy")
    assert (await node.outcome_of("busy"))["type"] == "cancelled"


async def test_of_frames_that_come_in_part_only_so_much_is_kept(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "MAX_RECEIVED", 1_000_000)
    running = await start()
    register = json.dumps({"type": "register", "node_id": "slow", "platform": "test"})
    half = text_frame(b"x" * 900_000)[:-1]
    async with (
        RawPeer.connected(running.host, running.port) as patient,
        RawPeer.connected(running.host, running.port) as greedy,
    ):
        await patient.send_text(register)
        await patient.receive_text()
        await patient.stream.send_all(masked(half[:400_000]))
        await greedy.send_text(register.replace("slow", "greedy"))
        await greedy.receive_text()
        await greedy.stream.send_all(masked(half))
        assert await greedy.close_code() == 1013
        good = await running.node("good")
        await good.ask("m", "x" * 100_000)
        assert len((await good.outcome_of("m"))["full_text"]) == 100_000


def masked(frame: bytes) -> bytes:
    """Return a client's frame, made from a server's: its mask changes nothing (RFC 6455, 5.3)."""
    return frame[:1] + bytes([frame[1] | 0x80]) + frame[2:10] + bytes(4) + frame[10:]


async def test_of_very_long_answers_only_so_many_are_under_way(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = MemoryBudget(1_000_000, OWN_BYTES)
    monkeypatch.setattr(running.daemon.turns, "_answers", room)
    node = await running.node(capabilities=())
    await node.ask("m-0", "hold", "c-0")
    await node.ask("m-1", "endless", "c-1")
    refused = await node.outcome_of("m-1")
    assert (refused["code"], "under way" in refused["message"]) == ("processing_error", True)
    running.responder.release["m-0"].set()
    assert (await node.outcome_of("m-0"))["full_text"] == "partly done"
    assert room.used == 0


# --- messages that run at once -------------------------------------------------------------------


async def test_only_so_many_messages_run_at_once_and_the_others_wait_for_them(
    start: Start,
) -> None:
    running = await start(max_running=2)
    node = await running.node()
    for n in range(4):
        await node.ask(f"m-{n}", "hold", f"c-{n}")
    for _ in range(4):
        await running.event(EventType.MESSAGE_RECEIVED)
    for n in range(2):
        await running.responder.begun[f"m-{n}"].wait()
    assert running.daemon.turns.count() == (4, 2, 2)
    await node.send("cancel", request_id="m-2")
    assert (await node.outcome_of("m-2"))["type"] == "cancelled"
    running.responder.release["m-0"].set()
    await running.responder.begun["m-3"].wait()
    assert sorted(running.responder.ran) == ["m-0", "m-1", "m-3"]


async def test_a_node_with_many_channels_does_not_keep_another_waiting(start: Start) -> None:
    running = await start(max_running=20)
    flooder, good = await running.node("flooder"), await running.node("good")
    for n in range(40):
        await flooder.ask(f"m-{n}", "hold", f"c-{n}")
    await running.responder.begun["m-17"].wait()
    await good.ask("m", "hello")
    assert (await good.outcome_of("m"))["full_text"] == "hello"
    assert len(running.responder.ran) == 19


async def test_what_waits_for_others_to_end_has_not_begun(start: Start) -> None:
    settings = {"max_running": 1, "drain_timeout": 0.01}
    before = await start(**settings)
    node = await before.node()
    await node.ask("m-0", "hold", "c-0")
    await before.responder.begun["m-0"].wait()
    await node.ask("m-1", "hold", "c-1")
    while not (rows := begun(before)).keys() >= {"m-1"}:
        await trio.sleep(0.01)
    assert rows == {"m-0": True, "m-1": False}
    before.daemon.request_stop()
    assert (await node.outcome_of("m-0"))["type"] == "cancelled"
    await before.daemon.stopped.wait()
    assert begun(before) == {"m-0": True, "m-1": False}


def begun(running: Running) -> dict[str, bool]:
    """Return which messages are stored, and of which it is stored that they have begun."""
    path = running.settings.database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path)) as database:
        found = database.execute("SELECT request_id, begun_at IS NOT NULL FROM clarad_messages")
        return {name: bool(has_begun) for name, has_begun in found}


# --- a backlog at the start ----------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """What a killed daemon has left: very many messages that wait."""
    assert clarad("migrate", env=environment(tmp_path)).returncode == 0
    now = datetime.now(UTC).replace(tzinfo=None).isoformat(" ")
    rows = [
        (channel, request_id, json.dumps({"type": "message"} | message(request_id, "x", channel)))
        for n in range(BACKLOG)
        for channel, request_id in [(f"c-{n % 1000}", f"m-{n}")]
    ]
    with sqlite3.connect(tmp_path / "clarad.db") as connection:
        connection.executemany(
            "INSERT INTO clarad_messages (platform, channel_id, request_id, node_id, user_id,"
            " session_id, frame, received_at)"
            f" VALUES ('test', ?, ?, 'old', 'test-u', 's', ?, '{now}')",
            rows,
        )
    connection.close()
    return tmp_path


async def test_a_huge_backlog_is_worked_off_while_others_are_answered(
    state: Path, nursery: trio.Nursery
) -> None:
    with daemon(state) as process:
        new = await peer.connect(nursery, process.url)
        await new.register("new")
        await new.ask("m", "hello", "another")
        assert (await new.outcome_of("m"))["full_text"] == "hello"
        old = await peer.connect(nursery, process.url)
        await old.register("old")
        ended: list[str] = []
        while len(ended) < BACKLOG:
            if (frame := await old.receive())["type"] == "response_end":
                ended.append(frame["request_id"])
        assert set(ended) == {f"m-{n}" for n in range(BACKLOG)}
        assert peak_memory(process.pid) < 300 * 1024
        for connection in (new, old):
            await connection.drop()


def peak_memory(pid: int) -> int:
    """Return the largest resident size that a process has had, in KiB (proc_pid_status(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(peak)
