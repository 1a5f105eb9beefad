"""Lost connections: docs/protocol.md, section 5, on the wire of a real daemon."""

import signal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trio
from sqlalchemy import Engine, event

from clarad.delivery import replay
from clarad.events import EventType
from clarad.limits.rate import Rate
from clarad.store import missed
from tests.conftest import Running, Start
from tests.daemon_process import daemon
from tests.peer import TERMINAL, Frame, Peer, connect

RESUME = ("streaming", "accepted", "resume")


class Resumer:
    """A node that resumes, and what it remembers over its connections."""

    def __init__(self, running: Running, node_id: str = "node-1") -> None:
        self.running = running
        self.node_id = node_id
        self.session_id: str | None = None
        self.frames: list[Frame] = []
        self.peer: Peer

    async def register(self, **fields: Any) -> Frame:
        """Connect, and register with what is remembered."""
        self.peer = await self.running.connect()
        about = {"session_id": self.session_id, "last_seq": self.last_seq} | fields
        registered = await self.peer.register(self.node_id, RESUME, **about)
        self.session_id = registered["session_id"]
        return registered

    @property
    def last_seq(self) -> int:
        return max((frame.get("seq", 0) for frame in self.frames), default=0)

    async def read_until(self, request_id: str, *kinds: str) -> list[Frame]:
        """Read up to a frame of this message of one of these types; remember what came."""
        came = []
        while True:
            came.append(frame := await self.peer.receive())
            self.frames.append(frame)
            if frame.get("request_id") == request_id and frame["type"] in kinds:
                return came

    async def lose(self) -> None:
        """Lose the connection, and wait until the daemon has noticed."""
        await self.peer.drop()
        await self.running.event(EventType.ADAPTER_DISCONNECTED)


@pytest.fixture
async def node(running: Running) -> Resumer:
    resumer = Resumer(running)
    await resumer.register()
    return resumer


def types(frames: list[Frame]) -> list[str]:
    return [frame["type"] for frame in frames]


def ends(frames: list[Frame]) -> list[str]:
    return [frame["request_id"] for frame in frames if frame["type"] in TERMINAL]


async def has_nothing_more(peer: Peer) -> bool:
    """Whether nothing comes before what is about a new message: what was missed would."""
    last = f"last-{uuid4().hex}"
    await peer.ask(last, channel=last)
    while True:
        frame = await peer.receive()
        if frame.get("request_id") != last:
            return False
        if frame["type"] in TERMINAL:
            return True


# --- nodes that resume ---------------------------------------------------------------------------


async def test_every_frame_about_a_message_has_a_number_that_rises(node: Resumer) -> None:
    await node.peer.ask("m1", "tool")
    frames = await node.read_until("m1", "response_end")
    numbers = [frame["seq"] for frame in frames]
    assert numbers == sorted(set(numbers))


async def test_what_is_not_about_a_message_has_none(node: Resumer) -> None:
    await node.peer.send("ping")
    assert "seq" not in await node.peer.expect("pong")


async def test_a_node_that_does_not_resume_is_sent_no_numbers(running: Running) -> None:
    peer = await running.node()
    await peer.ask("m1")
    assert all("seq" not in frame for frame in await peer.frames_of("m1"))


async def test_what_was_missed_comes_after_registered_and_then_what_is_new(
    node: Resumer, running: Running
) -> None:
    await node.peer.ask("m1", "hold")
    await node.read_until("m1", "response_start")
    await node.lose()
    running.responder.release["m1"].set()
    await running.event(EventType.MESSAGE_SENT)
    assert (await node.register())["resumed"] is True
    await node.peer.ask("m2", "hello")
    frames = await node.read_until("m2", "response_end")
    mine = [frame for frame in frames if frame["request_id"] == "m1"]
    assert types(mine) == ["response_chunk", "response_chunk", "response_end"]
    assert frames.index(mine[-1]) < min(frames.index(f) for f in frames if f not in mine)
    assert ends(node.frames) == ["m1", "m2"]
    numbers = [frame["seq"] for frame in node.frames]
    assert numbers == sorted(set(numbers))


async def test_what_was_not_acked_comes_again_with_its_number(node: Resumer) -> None:
    await node.peer.ask("m1", "hello")
    first = await node.read_until("m1", "response_end")
    await node.lose()
    await node.register(last_seq=0)
    assert await node.read_until("m1", "response_end") == first


async def test_what_was_acked_does_not_come_again(node: Resumer) -> None:
    await node.peer.ask("m1", "hello")
    await node.read_until("m1", "response_end")
    await node.peer.send("ack", seq=node.last_seq)
    await node.peer.is_silent()
    await node.lose()
    await node.register(last_seq=0)
    assert await has_nothing_more(node.peer)


async def test_only_an_ack_that_moves_something_is_written(node: Resumer) -> None:
    written: list[Any] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "SET delivered_at" in statement and "seq <= " in statement:
            written.extend(parameters if isinstance(parameters, list) else [parameters])

    event.listen(Engine, "before_cursor_execute", note)
    try:
        await node.peer.ask("m1")
        await node.read_until("m1", "response_end")
        for seq in [node.last_seq, node.last_seq - 1, node.last_seq, 2**62] * 100:
            await node.peer.send("ack", seq=seq)
        assert await has_nothing_more(node.peer)  # its commit takes the ack along
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert len(written) == 1


@pytest.mark.parametrize("seq", [-1, 0, 2**62])
async def test_an_ack_of_what_was_never_sent_loses_nothing(
    node: Resumer, running: Running, seq: int
) -> None:
    await node.peer.ask("m1", "hold")
    await node.read_until("m1", "response_start")
    await node.peer.send("ack", seq=seq)
    await node.peer.is_silent()
    await node.lose()
    running.responder.release["m1"].set()
    await running.event(EventType.MESSAGE_SENT)
    await node.register()
    await node.read_until("m1", "response_end")


async def test_a_new_session_gets_the_answers_that_the_last_one_has_not_acked(
    node: Resumer,
) -> None:
    await node.peer.ask("m1", "hello")
    await node.read_until("m1", "response_end")
    was = node.session_id
    await node.lose()
    assert (await node.register(session_id=None, last_seq=None))["resumed"] is False
    assert node.session_id != was
    assert types(await node.read_until("m1", "response_end")) == ["response_end"]


async def test_another_node_s_session_id_opens_nothing(node: Resumer, running: Running) -> None:
    await node.peer.ask("m1", "hello")
    await node.read_until("m1", "response_end")
    thief = Resumer(running, "thief")
    registered = await thief.register(session_id=node.session_id)
    assert registered["resumed"] is False
    assert registered["session_id"] != node.session_id
    assert await has_nothing_more(thief.peer)


async def test_a_session_is_of_one_platform(node: Resumer, running: Running) -> None:
    await node.peer.ask("m1", "hello")
    await node.read_until("m1", "response_end")
    other = Resumer(running)
    registered = await other.register(session_id=node.session_id, platform="other")
    assert registered["resumed"] is False
    assert await has_nothing_more(other.peer)


async def test_resuming_closes_the_connection_that_was_there(node: Resumer) -> None:
    first = node.peer
    assert (await node.register())["resumed"] is True
    assert await first.close_code() == 4000


async def test_unregistering_forgets_the_session_and_what_was_kept(node: Resumer) -> None:
    await node.peer.ask("m1", "hello")
    await node.read_until("m1", "response_end")
    await node.peer.send("unregister")
    assert await node.peer.close_code() == 1000
    assert (await node.register(last_seq=0))["resumed"] is False
    assert await has_nothing_more(node.peer)


async def test_past_the_bound_the_replay_is_the_whole_answer(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "MAX_FRAMES", 3)
    running = await start()
    node = Resumer(running)
    await node.register()
    for n in range(5):
        await node.peer.ask(f"m{n}", "hello", channel=f"{n}")
        await node.read_until(f"m{n}", "response_end")
    await node.lose()
    node.frames.clear()
    await node.register()
    await node.read_until("m4", "response_end")
    assert ends(node.frames) == [f"m{n}" for n in range(5)]
    assert {frame["full_text"] for frame in node.frames if "full_text" in frame} == {"hello"}
    numbers = [frame["seq"] for frame in node.frames]
    assert numbers == sorted(set(numbers))


async def test_messages_that_are_sent_again_after_a_resume_end_once(
    node: Resumer, running: Running
) -> None:
    await node.peer.ask("m1", "hold")
    await running.responder.begun["m1"].wait()
    await node.lose()
    running.responder.release["m1"].set()
    await running.event(EventType.MESSAGE_SENT)
    await node.register()
    await node.peer.ask("m1", "hold")
    await node.read_until("m1", "response_end")
    assert await node.peer.expect("accepted") | {"seq": 0} == {
        "type": "accepted",
        "request_id": "m1",
        "duplicate": True,
        "seq": 0,
    }
    assert running.responder.ran == ["m1"]
    assert await has_nothing_more(node.peer)


async def test_numbers_go_on_after_a_restart_and_nothing_is_lost_or_doubled(start: Start) -> None:
    before = await start()
    node = Resumer(before)
    await node.register()
    await node.peer.ask("read", "hello")
    await node.read_until("read", "response_end")
    await node.peer.ask("unread", "hello")
    await before.event(EventType.MESSAGE_SENT)
    await before.event(EventType.MESSAGE_SENT)
    await node.peer.ask("running", "hold", channel="other")
    await before.responder.begun["running"].wait()
    node.running = await start()  # on the same database, as if the first had been killed
    assert (await node.register())["resumed"] is True
    await node.peer.ask("new", "hello")
    while len(set(ends(node.frames))) < 4:
        node.frames.append(await node.peer.receive())
    assert sorted(ends(node.frames)) == ["new", "read", "running", "unread"]
    numbers = [frame["seq"] for frame in node.frames]
    assert numbers == sorted(set(numbers))
    assert node.running.responder.ran == ["new"]


# --- nodes that do not ---------------------------------------------------------------------------


async def test_a_plain_node_gets_the_answers_that_it_missed(running: Running) -> None:
    first = await running.node()
    await first.ask("read", "hello")
    await first.outcome_of("read")
    await first.ask("missed", "hold")
    await running.responder.begun["missed"].wait()
    await first.drop()
    await running.event(EventType.ADAPTER_DISCONNECTED)
    running.responder.release["missed"].set()
    await running.event(EventType.MESSAGE_SENT)
    second = await running.node()
    end = await second.expect("response_end")
    assert (end["request_id"], end["full_text"]) == ("missed", "partly done")
    assert await has_nothing_more(second)
    third = await running.node()
    assert await has_nothing_more(third)


async def test_a_plain_node_gets_them_from_the_next_daemon(start: Start) -> None:
    before = await start()
    peer = await before.node()
    await peer.ask("m1", "hold")
    await before.responder.begun["m1"].wait()
    await peer.drop()
    await before.event(EventType.ADAPTER_DISCONNECTED)
    before.responder.release["m1"].set()
    await before.event(EventType.MESSAGE_SENT)
    after = await start()
    again = await after.node()
    assert (await again.expect("response_end"))["request_id"] == "m1"


async def test_however_many_answers_were_missed_all_come_once(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(missed, "PAGE_CHARACTERS", 500)
    running = await start()
    first = await running.node()
    names = [f"m{n}" for n in range(30)]
    for name in names:
        await first.ask(name, "hold", channel=name)
        await running.responder.begun[name].wait()
    await first.drop()
    await running.event(EventType.ADAPTER_DISCONNECTED)
    for name in names:
        running.responder.release[name].set()
        await running.event(EventType.MESSAGE_SENT)
    second = await running.node()
    came = [(await second.expect("response_end"))["request_id"] for _ in names]
    assert sorted(came) == sorted(names)
    assert await has_nothing_more(second)


async def test_answers_for_another_node_are_not_given_away(running: Running) -> None:
    owner = await running.node("owner")
    await owner.ask("m1", "hold")
    await running.responder.begun["m1"].wait()
    await owner.drop()
    await running.event(EventType.ADAPTER_DISCONNECTED)
    running.responder.release["m1"].set()
    await running.event(EventType.MESSAGE_SENT)
    other = await running.node("other")
    assert await has_nothing_more(other)
    stranger = await running.connect()
    await stranger.register("owner", platform="other")
    assert await has_nothing_more(stranger)


async def test_a_node_that_begins_to_resume_gets_what_it_missed_before(running: Running) -> None:
    plain = await running.node()
    await plain.ask("m1", "hold")
    await running.responder.begun["m1"].wait()
    await plain.drop()
    await running.event(EventType.ADAPTER_DISCONNECTED)
    running.responder.release["m1"].set()
    await running.event(EventType.MESSAGE_SENT)
    node = Resumer(running)
    await node.register()
    await node.read_until("m1", "response_end")
    await node.lose()
    await node.register()
    assert await has_nothing_more(node.peer)


async def test_a_node_that_resumes_no_more_gets_what_it_has_not_acked(node: Resumer) -> None:
    await node.peer.ask("m1", "hello")
    await node.read_until("m1", "response_end")
    await node.lose()
    plain = await node.running.node()
    frame = await plain.expect("response_end")
    assert "seq" not in frame
    assert await has_nothing_more(plain)


async def test_a_refusal_does_not_come_to_the_connection_on_which_it_may_be_sent_again(
    start: Start,
) -> None:
    node = Resumer(await start(rate_user=Rate(1, 1)))
    await node.register()
    await node.peer.ask("m1", "hello")
    await node.read_until("m1", "response_end")
    await node.peer.ask("m2", "hello")
    assert (await node.peer.outcome_of("m2"))["code"] == "rate_limited"
    await node.lose()  # let it be before the refusal had arrived
    assert (await node.register())["resumed"] is True
    assert await has_nothing_more(node.peer)


# --- a kill --------------------------------------------------------------------------------------


async def test_a_kill_between_an_answer_and_its_ack_loses_nothing(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    with daemon(tmp_path) as process:
        peer = await connect(nursery, process.url)
        session_id = (await peer.register("node-1", RESUME))["session_id"]
        await peer.ask("m1", "hello")
        first = await peer.frames_of("m1")
        process.signal(signal.SIGKILL)
        process.wait()
        await peer.drop()
    with daemon(tmp_path) as process:
        peer = await connect(nursery, process.url)
        last = first[-2]["seq"]
        again = await peer.register("node-1", RESUME, session_id=session_id, last_seq=last)
        assert again["resumed"] is True
        assert await peer.receive() == first[-1]
        await peer.ask("m2", "hello")
        assert all(frame["seq"] > first[-1]["seq"] for frame in await peer.frames_of("m2"))
        await peer.drop()
