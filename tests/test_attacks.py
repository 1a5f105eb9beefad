"""What is known to have been tried on gateways like this one, tried on a real daemon.

Attacks that belong to one part are tested there; docs/security.md has the whole list.
"""

import json
import resource
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from clarad.nurseries import gateway
from clarad.nurseries.gateway import HANDSHAKE_TIMEOUT
from clarad.protocol import MAX_FIRST_FRAME
from tests import peer
from tests.conftest import Running, Start
from tests.hostile import HOSTILE
from tests.installation import Installation
from tests.nurseries.test_connection import pass_time
from tests.nurseries.test_gateway import SECRET, exchange, handshake, refusal
from tests.peer import message
from tests.raw import RawPeer
from tests.strangers import FLOODS
from tests.transport.test_auth import make_token, reason, register, try_register
from tests.villains import TURNED_AWAY

STEERING = {chr(c) for c in [*range(0x20), *range(0x7F, 0xA0), 0x202E, 0x2066]} - {"\n"}
"""What a terminal obeys, or shows in another order than it is written."""

REGISTER = '{"type":"register","node_id":"n","platform":"p"}'


async def is_served(running: Running) -> bool:
    """Whether an adapter that means well is let in and answered."""
    good = await running.node("good")
    await good.ask("good")
    return bool((await good.outcome_of("good"))["type"] == "response_end")


# --- a web page that the operator visits ---------------------------------------------------------

ORIGINS = [
    "https://evil.example",
    "null",  # a sandboxed frame, or a page from a file
    "",
    "file://",
    "http://127.0.0.1:18789",  # another program's page on this machine
    "https://chat.example.evil",
    "https://chat.example@evil.example",
    "http://chat.example",
]


@pytest.mark.parametrize("origin", ORIGINS)
async def test_no_page_can_connect_that_is_not_listed(start: Start, origin: str) -> None:
    running = await start(gateway_allowed_origins=frozenset({"https://chat.example"}))
    assert (await refusal(running, f"Origin: {origin}"))[0] == 403


async def test_a_page_that_is_not_listed_cannot_guess_either(start: Start) -> None:
    running = await start(gateway_secret=SECRET)
    for _ in range(20):
        status, _ = await refusal(
            running, "Origin: https://evil.example", "Authorization: Bearer x"
        )
        assert status == 403
    await register(running, SECRET)


# --- another adapter's node ----------------------------------------------------------------------


async def test_a_session_id_that_got_about_opens_nothing_without_the_token(start: Start) -> None:
    running = await start(gateway_secret=SECRET)
    victim = await running.connect()
    fields: dict[str, Any] = {"node_id": "n", "platform": "p", "capabilities": ["resume"]}
    await victim.send("register", **fields, secret=make_token(running, "mine"))
    session_id = (await victim.expect("registered"))["session_id"]
    await victim.drop()
    for secret in (make_token(running, "other"), SECRET):
        assert (
            reason(await try_register(running, secret, session_id=session_id))[0] == "auth_failed"
        )


async def test_a_node_has_no_say_in_what_another_one_asked(running: Running) -> None:
    victim, thief = await running.node("victim"), await running.node("thief")
    await victim.ask("m1", "hold", "secret channel")
    while (await victim.receive())["type"] != "response_chunk":
        pass
    await thief.send("cancel", request_id="m1")
    assert (await thief.expect("error"))["code"] == "not_found"
    await thief.send("status")
    assert (await thief.expect("status"))["active_requests"] == 0
    await thief.send("unregister")
    assert await thief.close_code() == 1000
    await victim.send("cancel", request_id="m1")
    assert (await victim.outcome_of("m1"))["type"] == "cancelled"


async def test_who_guesses_a_message_s_ids_is_not_told_the_answer(running: Running) -> None:
    victim, thief = await running.node("victim"), await running.node("thief")
    await victim.ask("m1", "a private question", "secret channel")
    assert (await victim.outcome_of("m1"))["type"] == "response_end"
    await thief.ask("m1", "guess", "secret channel")
    frame = await thief.outcome_of("m1")
    assert (frame["type"], frame["code"]) == ("error", "invalid_message")
    assert "private" not in json.dumps(frame)


# --- texts that would like to be more ------------------------------------------------------------


def hostile_message(number: int, text: str) -> dict[str, Any]:
    """Return a message all of whose ids hold this text."""
    words = text.replace("\0", "").replace("\udc80", "")
    whole = message(f"{number}{words}", words, f"c{words}")
    return whole | {"user": {"id": f"u{words}", "platform_id": "u", "name": words}}


@pytest.mark.parametrize("style", ["text", "json"])
def test_no_id_forges_a_line_of_the_log_or_steers_a_terminal(tmp_path: Path, style: str) -> None:
    made = Installation(tmp_path, CLARA_LOG_FORMAT=style, CLARA_LOG_LEVEL="DEBUG")
    made.write(hooks="- {name: h, event: 'message:received', command: 'true'}")

    async def attack(url: str) -> None:
        for number, text in enumerate(HOSTILE):
            async with trio.open_nursery() as nursery:
                attacker = await peer.connect(nursery, url)
                name = text.replace("\udc80", "\0")[:-1]
                await attacker.send("register", node_id=name, platform=name)
                if (await attacker.receive())["type"] == "registered":
                    await attacker.send("message", **hostile_message(number, text))
                    assert (await attacker.receive())["type"] == "response_start"
                await attacker.drop()
                nursery.cancel_scope.cancel()

    with made.daemon() as process:
        trio.run(attack, process.url)
        process.wait_for_log("hook h ran")
        shown = [made.clarad("hooks", *words).out for words in (("runs",), ("runs", "--json"))]
        run = made.clarad("hooks", "runs", "--json").rows[0]["run"]
        shown += [made.clarad("hooks", "show", run).out, made.clarad("tokens", "list").out]
    for text in [process.log, *shown]:
        assert not STEERING & set(text)
    for line in process.log.splitlines():
        if style == "json":
            json.loads(line)
        else:
            assert line[:2] == "20" or line.startswith(" ")
            assert not line.endswith("INFO    stopped")


NASTY = ["$(touch pwned)", "`touch pwned`; touch pwned", "../../pwned", "-rf /etc/passwd *"]


@pytest.mark.parametrize("nasty", NASTY)
def test_no_id_becomes_a_command_or_a_path(tmp_path: Path, nasty: str) -> None:
    made = Installation(tmp_path)
    names = ("USER_ID", "CHANNEL_ID", "REQUEST_ID", "NODE_ID")
    bare = "printf '%s|' " + " ".join(f"$CLARA_{name}" for name in names)
    quoted = "printf '%s|' " + " ".join(f'"$CLARA_{name}"' for name in names)
    commands = {"bare": bare, "h": quoted}
    made.write(
        hooks="".join(
            f"- {{name: {name}, event: 'message:received', command: {json.dumps(command)}}}\n"
            for name, command in commands.items()
        )
    )

    async def attack(url: str) -> None:
        async with trio.open_nursery() as nursery:
            attacker = await peer.connect(nursery, url)
            await attacker.register(nasty)
            whole = message(nasty, nasty, nasty) | {"user": {"id": nasty, "platform_id": nasty}}
            await attacker.send("message", **whole)
            assert (await attacker.outcome_of(nasty))["type"] == "response_end"
            await attacker.drop()
            nursery.cancel_scope.cancel()

    before = {path for path in tmp_path.rglob("*") if "pwned" in path.name}
    with made.daemon() as process:
        trio.run(attack, process.url)
        process.wait_for_log("hook bare ran")
        process.wait_for_log("hook h ran")
        run = made.clarad("hooks", "runs", "--json", "--hook", "h").rows[0]["run"]
        [row] = made.clarad("hooks", "show", run, "--json").rows
    assert row["stdout"] == f"{nasty}|" * len(names)
    assert {path for path in tmp_path.rglob("*") if "pwned" in path.name} == before


# --- bombs ---------------------------------------------------------------------------------------


async def test_compression_is_not_negotiated(running: Running) -> None:
    offer = handshake("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits")
    async with await trio.open_tcp_stream(running.host, running.port) as stream:
        await stream.send_all(offer)
        with trio.fail_after(10):
            answer = await stream.receive_some()
    assert answer.startswith(b"HTTP/1.1 101")
    assert b"extensions" not in answer.lower()


async def test_a_compressed_frame_is_refused(running: Running) -> None:
    compressed = (
        b"\xc1\x85" + b"\0\0\0\0" + b"\xcaH\xcd\xc9\xc9"
    )  # RSV1 (RFC 7692, section 7.2.3.1)
    async with RawPeer.connected(running.host, running.port) as raw:
        await raw.stream.send_all(compressed)
        assert await raw.close_code() in (1002, None)
    assert await is_served(running)


BOMBS = {
    "deep arrays": '{"type":"ping","x":' + "[" * 30_000 + "]" * 30_000 + "}",
    "deep objects": '{"type":"ping","x":' + '{"a":' * 10_000 + "1" + "}" * 10_001,
    "deep where it is looked at": REGISTER[:-1]
    + ',"metadata":'
    + '{"a":' * 10_000
    + "1"
    + "}" * 10_001,
    "a huge number": REGISTER[:-1] + ',"last_seq":' + "9" * 60_000 + "}",
    "a number below all": REGISTER[:-1] + ',"last_seq":-1}',
    "a number above all": REGISTER[:-1] + f',"last_seq":{2**63}}}',
    "a huge exponent": REGISTER[:-1] + ',"metadata":{"x":1e999999999}}',
    "a huge type": '{"type":"' + "x" * 60_000 + '"}',
    "a type that is said twice": '{"type":"register","type":"unregister"}',
}


@pytest.mark.parametrize("name", BOMBS)
async def test_a_bomb_of_json_is_answered_with_a_short_error(running: Running, name: str) -> None:
    attacker = await running.connect()
    await attacker.send_text(BOMBS[name])
    frame = await attacker.expect("error")
    assert len(json.dumps(frame)) < 1000
    await attacker.register("still alive")
    assert await is_served(running)


@pytest.mark.parametrize("seq", [-1, 2**63, 10**400])
async def test_an_ack_of_what_no_number_can_be_is_an_error(running: Running, seq: int) -> None:
    attacker = await running.node("n", ("resume",))
    await attacker.send("ack", seq=seq)
    assert (await attacker.expect("error"))["code"] == "invalid_message"
    assert await attacker.is_silent()


async def test_many_keys_and_huge_keys_are_keys(running: Running) -> None:
    attacker = await running.node("n")
    keys = {f"{n}": n for n in range(100_000)} | {"k" * 1_000_000: 1}
    await attacker.ask("m1", metadata=keys)
    assert (await attacker.outcome_of("m1"))["type"] == "response_end"
    assert await is_served(running)


async def test_of_two_fields_of_one_name_all_read_the_same(running: Running) -> None:
    attacker = await running.node("n")
    twice = json.dumps({"type": "message"} | message("m1"))[:-1] + ',"id":"m2"}'
    await attacker.send_text(twice)
    assert (await attacker.outcome_of("m2"))["type"] == "response_end"
    await attacker.send("cancel", request_id="m1")
    assert (await attacker.expect("error"))["code"] == "not_found"


# --- what unauthenticated peers can hold ---------------------------------------------------------


def masked(head: int, payload: bytes) -> bytes:
    """Return a frame of a client, masked with zeros; its first byte is `head`."""
    return bytes([head, 0xFE]) + len(payload).to_bytes(2, "big") + bytes(4) + payload


async def test_before_it_registers_a_peer_cannot_send_much(running: Running) -> None:
    attacker = await running.connect()
    await attacker.send_text("x" * (MAX_FIRST_FRAME + 1))
    assert await attacker.close_code() == 1009
    assert await is_served(running)


async def test_once_registered_it_can(running: Running) -> None:
    good = await running.node()
    await good.ask("m1", "x" * 1_000_000)
    assert (await good.outcome_of("m1"))["type"] == "response_end"


async def test_fragments_count_together(running: Running) -> None:
    pieces = [masked(0x01, b"x" * 10_000), *[masked(0x00, b"x" * 10_000)] * 7]
    async with RawPeer.connected(running.host, running.port) as raw:
        await raw.stream.send_all(b"".join(pieces))
        assert await raw.close_code() == 1009


@pytest.mark.parametrize("kind", sorted(set(FLOODS) - {"guesses", "handshakes"}))
async def test_an_unauthenticated_peer_cannot_send_many_frames_however_small(
    running: Running, kind: str
) -> None:
    flood = FLOODS[kind]
    async with RawPeer.connected(running.host, running.port) as raw:
        await raw.stream.send_all(flood.first + flood.then * 10_000)
        assert await raw.close_code() == 1008
    assert await is_served(running)


@pytest.mark.parametrize("kind", ["empty continuations", "one-byte fragments", "empty pongs"])
async def test_a_node_cannot_send_frames_without_end_for_nothing(
    running: Running, kind: str
) -> None:
    flood = FLOODS[kind]
    async with RawPeer.connected(running.host, running.port) as raw:
        await raw.send_text(REGISTER)
        await raw.receive_text()
        await raw.stream.send_all(flood.first + flood.then * 10_000)
        assert await raw.close_code() == 1008
    assert await is_served(running)


async def test_a_frame_that_says_that_it_is_huge_is_not_waited_for(running: Running) -> None:
    async with RawPeer.connected(running.host, running.port) as raw:
        head = b"\x81\xff" + (2**62).to_bytes(8, "big") + bytes(4)
        await raw.stream.send_all(head + b"x" * 2 * MAX_FIRST_FRAME)
        assert await raw.close_code() == 1009


async def test_a_handshake_that_takes_its_time_is_cut(start: Start, mock_clock: MockClock) -> None:
    running = await start()
    request = handshake()
    async with await trio.open_tcp_stream(running.host, running.port) as stream:
        for n in range(round(HANDSHAKE_TIMEOUT) - 1):
            await stream.send_all(request[n : n + 1])
            await pass_time(mock_clock, 1)
        await pass_time(mock_clock, 4)
        with trio.fail_after(10):
            assert await stream.receive_some() == b""


async def test_a_flood_of_handshakes_keeps_nobody_out(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "MAX_HANDSHAKES", 8)
    flood = [await trio.open_tcp_stream(running.host, running.port) for _ in range(20)]
    for stream in flood[:12]:
        with trio.fail_after(10):
            assert await stream.receive_some() == b""
    assert await is_served(running)
    for stream in flood:
        await stream.aclose()


async def test_unauthenticated_peers_at_the_limit_leave_room_for_a_registration(
    start: Start,
) -> None:
    running = await start(gateway_max_connections=3)
    unauthenticated = [await running.connect() for _ in range(3)]
    assert await is_served(running)
    assert await unauthenticated[0].close_code() == 1013
    for n in range(2):
        await running.node(f"node {n}")
    assert await (await running.connect()).close_code() == 1013


async def get_in(host: str, port: int) -> None:
    """Register, as an adapter does that tries again."""
    with trio.fail_after(30):
        while True:
            with suppress(*TURNED_AWAY):
                async with RawPeer.connected(host, port) as raw:
                    await raw.send_text(REGISTER)
                    assert "registered" in await raw.receive_text()
                    return
            await trio.lowlevel.checkpoint()


def test_unauthenticated_peers_leave_descriptors_to_registered_nodes(tmp_path: Path) -> None:
    made = Installation(
        tmp_path, CLARA_RESPONDER="command", CLARA_RESPONDER_COMMAND="echo an answer"
    )

    async def attack(url: str, host: str, port: int) -> None:
        async with trio.open_nursery() as nursery:
            inside = await peer.connect(nursery, url)
            await inside.register("inside")
            flood = [await trio.open_tcp_stream(host, port) for _ in range(200)]
            with trio.fail_after(30), suppress(trio.BrokenResourceError):
                assert await flood[-1].receive_some() == b""
            await inside.ask("m1")
            outcome = await inside.outcome_of("m1")
            assert outcome.get("full_text") == "an answer\n", outcome
            assert made.clarad("status").status == 0
            await get_in(host, port)
            await inside.drop()
            for stream in flood:
                await stream.aclose()
            nursery.cancel_scope.cancel()

    with made.daemon() as process:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (128, 128))
        host, _, port = process.url.removeprefix("ws://").rpartition(":")
        trio.run(attack, process.url, host, int(port))
    assert "Traceback" not in process.log


async def test_a_flood_of_what_is_no_websocket_keeps_nobody_out(running: Running) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(exchange, running, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await is_served(running)
