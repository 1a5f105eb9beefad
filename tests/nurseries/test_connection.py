"""One connection: registration, frames that cannot be used, and every way in which it ends."""

import json
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from clarad.events import EventType
from clarad.nurseries.connection import PING_INTERVAL, PONG_TIMEOUT, REGISTER_TIMEOUT
from clarad.protocol import MAX_FRAME_BYTES
from tests.conftest import Running, Start
from tests.peer import message
from tests.raw import RawPeer


async def pass_time(clock: MockClock, seconds: float) -> None:
    """Let time pass in steps that no sleeper can sleep through."""
    for _ in range(round(seconds)):
        await trio.testing.wait_all_tasks_blocked(0.005)
        clock.jump(1)


# --- registration --------------------------------------------------------------------------------


async def test_registering_is_answered_with_everything_an_adapter_reads(running: Running) -> None:
    peer = await running.connect()
    frame = await peer.register("node-1")
    assert frame["node_id"] == "node-1"
    assert frame["session_id"]
    assert frame["adapter_token"]
    assert frame["server_time"].endswith("+00:00")
    assert (frame["resumed"], frame["protocol"]) == (False, 1)


async def test_the_older_adapter_s_register_is_taken(running: Running) -> None:
    peer = await running.connect()
    frame = {
        "type": "register",
        "node_id": "discord-1a2b3c4d",
        "platform": "discord",
        "capabilities": ["streaming", "attachments", "reactions"],
        "metadata": {},
        "secret": "",
        "timestamp": "2026-05-15T10:00:00",
    }
    await peer.send_text(json.dumps(frame))
    await peer.expect("registered")


async def test_nothing_but_register_is_looked_at_before(running: Running) -> None:
    peer = await running.connect()
    for kind in ("ping", "status", "unregister"):
        await peer.send(kind)
        assert (await peer.expect("error"))["code"] == "not_registered"
    await peer.ask("m1")
    assert (await peer.expect("error"))["code"] == "not_registered"
    assert running.responder.ran == []


async def test_registering_twice_is_refused_and_the_first_stays(running: Running) -> None:
    peer = await running.node("node-1")
    await peer.send("register", node_id="node-2", platform="test")
    assert (await peer.expect("error"))["code"] == "already_registered"
    assert await peer.is_silent()


async def test_the_same_node_on_another_connection_closes_the_first(running: Running) -> None:
    first = await running.node("same")
    second = await running.node("same")
    assert await first.close_code() == 4000
    assert await second.is_silent()


async def test_who_does_not_register_is_closed(start: Start, mock_clock: MockClock) -> None:
    running = await start()
    peer = await running.connect()
    await pass_time(mock_clock, REGISTER_TIMEOUT)
    assert await peer.close_code() == 1008


async def test_unregister_closes_with_1000(running: Running) -> None:
    peer = await running.node()
    await peer.send("unregister")
    assert await peer.close_code() == 1000


# --- frames --------------------------------------------------------------------------------------


async def test_ping_is_answered(running: Running) -> None:
    peer = await running.node()
    await peer.send("ping", timestamp="2026-05-15T10:00:00")
    assert (await peer.expect("pong"))["timestamp"].endswith("+00:00")


async def test_status_counts_the_node_s_own_messages(running: Running) -> None:
    peer, other = await running.node("mine"), await running.node("other")
    await peer.ask("m1", "hold")
    while (await peer.receive())["type"] != "response_chunk":
        pass
    await peer.ask("m2", "hold")
    while (await peer.receive())["type"] != "status":
        pass
    for node, active, waiting in ((peer, 1, 1), (other, 0, 0)):
        await node.send("status")
        frame = await node.expect("status")
        assert (frame["active_requests"], frame["queue_length"]) == (active, waiting)
        assert frame["uptime_seconds"] >= 0


MALFORMED: list[tuple[str | bytes, str]] = [
    ("", "invalid_json"),
    ("{", "invalid_json"),
    ("nonsense", "invalid_json"),
    ('{"type":"ping","x":' + "[" * 100_000 + "]" * 100_000 + "}", "invalid_json"),
    ('{"type":"ping","x":"\\ud800"}', "invalid_json"),
    ("[]", "invalid_message"),
    ("null", "invalid_message"),
    ("{}", "invalid_message"),
    ('{"type":7}', "invalid_message"),
    ('{"type":"message"}', "invalid_message"),
    ('{"type":"message","id":"\\u0000"}', "invalid_message"),
    ('{"type":"cancel"}', "invalid_message"),
    ('{"type":"cancel","request_id":""}', "invalid_message"),
    (b'{"type":"ping"}', "invalid_message"),
    ('{"type":"mcp_list","request_id":"r"}', "unknown_type"),
]


@pytest.mark.parametrize(("text", "code"), MALFORMED, ids=lambda value: repr(value)[:24])
async def test_a_malformed_frame_gets_an_error_and_the_connection_stays(
    running: Running, text: str | bytes, code: str
) -> None:
    peer = await running.node()
    await peer.send_text(text)
    frame = await peer.expect("error")
    assert frame["code"] == code
    assert frame["message"]
    assert await peer.is_silent()


@pytest.mark.parametrize("field", ["id", "user", "channel", "content"])
async def test_a_message_without_a_field_names_it(running: Running, field: str) -> None:
    peer = await running.node()
    whole: dict[str, Any] = message("m1")
    del whole[field]
    await peer.send("message", **whole)
    frame = await peer.expect("error")
    assert frame["code"] == "invalid_message"
    assert field in frame["message"]


async def test_an_unknown_type_is_answered_with_its_id(running: Running) -> None:
    peer = await running.node()
    await peer.send("mcp_list", request_id="r1")
    assert (await peer.expect("error"))["request_id"] == "r1"
    await peer.send("something", id="r2")
    assert (await peer.expect("error"))["request_id"] == "r2"


async def test_unlisted_fields_are_ignored(running: Running) -> None:
    peer = await running.node()
    await peer.ask("m1", new_field={"deep": [1, 2, 3]}, timestamp="2026-05-15T10:00:00")
    assert (await peer.outcome_of("m1"))["type"] == "response_end"


async def test_text_is_text_whatever_is_in_it(running: Running) -> None:
    peer = await running.node()
    text = "NUL \x00, astral 🦀, right-to-left \u202e, and a line\r\nend"
    await peer.ask("m1", text)
    assert (await peer.outcome_of("m1"))["full_text"] == text


async def test_a_frame_of_too_many_characters_closes_with_1009(running: Running) -> None:
    peer = await running.node()
    with trio.move_on_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.send_text, "x" * (20 * 1024 * 1024))
            assert await peer.close_code() == 1009
            nursery.cancel_scope.cancel()


async def test_a_frame_of_too_many_bytes_is_refused(running: Running) -> None:
    peer = await running.node()
    await peer.ask("m1", "🦀" * (MAX_FRAME_BYTES // 4))
    assert (await peer.expect("error"))["code"] == "too_large"
    assert await peer.is_silent()


# --- losing each other ---------------------------------------------------------------------------


async def test_a_peer_that_answers_pings_stays(start: Start, mock_clock: MockClock) -> None:
    running = await start()
    peer = await running.node()
    for _ in range(3):
        await pass_time(mock_clock, PING_INTERVAL)
        assert await peer.is_silent()


async def test_a_peer_that_answers_no_ping_is_closed(start: Start, mock_clock: MockClock) -> None:
    running = await start()
    async with RawPeer.connected(running.host, running.port) as raw:
        await raw.send_text('{"type":"register","node_id":"n","platform":"p"}')
        await raw.receive_text()
        await pass_time(mock_clock, PING_INTERVAL)
        await raw.wait_for_ping()
        await pass_time(mock_clock, PONG_TIMEOUT)
        assert await raw.close_code() == 4001


async def test_a_peer_that_does_not_read_is_closed_and_others_are_served(running: Running) -> None:
    async with RawPeer.connected(running.host, running.port) as slow:
        await slow.send_text('{"type":"register","node_id":"slow","platform":"p"}')
        await slow.receive_text()
        # Errors enough to fill the socket's buffers and then the outbox.
        useless = [json.dumps({"type": "x" * 64, "id": "y" * 255})] * 500
        good = await running.node("good")
        with suppress(trio.BrokenResourceError):
            while not (ended := running.events_of(EventType.ADAPTER_DISCONNECTED)):
                with trio.move_on_after(1):
                    await slow.send_text(*useless)
                assert await good.is_silent()
        assert ended[0].data["code"] == 4008


class NoticeInEachStep(trio.abc.Instrument):
    """Tells the nodes to fetch what they have missed after each step of the loop."""

    def __init__(self, running: Running) -> None:
        self._nodes = running.daemon.nodes
        self.error: Exception | None = None

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        try:
            self._nodes.fetch_missed()
        except Exception as error:
            self.error = error


@pytest.mark.parametrize("ours", [True, False])
async def test_a_notice_in_any_step_of_a_connection_s_end_fails_nobody(
    running: Running, ours: bool
) -> None:
    peer = await running.connect()
    await peer.register("node-1")
    notices = NoticeInEachStep(running)
    trio.lowlevel.add_instrument(notices)
    if ours:
        await peer.send("unregister")
        await peer.close_code()
    else:
        await peer.drop()
    while running.daemon.nodes.connected:
        await trio.sleep(0.001)
    trio.lowlevel.remove_instrument(notices)
    assert notices.error is None
