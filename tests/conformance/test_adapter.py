"""The conformance kit, playing a gateway, finds what an adapter does and does not do."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from clarad import protocol
from clarad.adapters import GatewayError, adapter, open_adapter
from clarad.adapters.websocket import Lost, WebSocket, connect
from clarad.conformance import adapter as kit
from clarad.conformance.adapter import SCENES, Play
from clarad.conformance.report import Verdict
from clarad.protocol import CloseCode
from tests.daemon_process import PATIENCE, environment
from tests.peer import message

Script = Callable[[str, trio.MemoryReceiveChannel[None]], Awaitable[None]]

PROMISES = [(scene.__doc__ or "").partition("\n")[0] for _, scene in SCENES]

ON_WS = Path(__file__).parents[1] / "node" / "adapter.mjs"
"""An adapter on Node's `ws`, which `make install` fetches where there is npm."""

NODE = ["node"] if (ON_WS.parent / "node_modules" / "ws").is_dir() else []
if not NODE and os.environ.get("CLARAD_REQUIRE_NODE") == "1":
    raise RuntimeError("CLARAD_REQUIRE_NODE=1 is set, and tests/node is not installed")


async def judge(script: Script, patience: float = 5) -> dict[str, Verdict]:
    """Have an adapter play against the kit; it is told when a message is wanted."""
    wanted, wants = trio.open_memory_channel[None](10)
    listener, *_ = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}"
    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(script, url, wants)
        play = Play(listener, patience, lambda _text: wanted.send_nowait(None))
        verdicts = await play.run()
        nursery.cancel_scope.cancel("the play is over")
    return {verdict.promise: verdict for verdict in verdicts}


def asked(number: int) -> protocol.Message:
    user = protocol.User(id="u", platform_id="u")
    channel = protocol.Channel(id="c")
    return protocol.Message(id=f"m-{number}", user=user, channel=channel, content="hello")


async def test_the_class_for_adapters_keeps_every_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "FIRST_PAUSE", 0.1)
    monkeypatch.setattr(kit, "MIN_WATCH", 0.5)

    async def ours(url: str, wants: trio.MemoryReceiveChannel[None]) -> None:
        with suppress(GatewayError):  # another has taken its place
            async with open_adapter(url, node_id="n", platform="test") as node:
                for number in itertools.count():
                    await wants.receive()
                    await node.ask(asked(number)).outcome()

    verdicts = await judge(ours)
    assert [v for v in verdicts.values() if v.broken or v.unseen] == []
    assert list(verdicts) == PROMISES


def on_ws(node: str, *fault: str) -> Script:
    """Return the adapter on Node's `ws`."""

    async def run(url: str, wants: trio.MemoryReceiveChannel[None]) -> None:
        async with trio.open_nursery() as nursery:
            command = [node, f"{ON_WS}", url, *fault]
            start = partial(trio.run_process, command, stdin=subprocess.PIPE, check=False)
            process = await nursery.start(start)
            with suppress(trio.BrokenResourceError):
                async for _ in wants:
                    await process.stdin.send_all(b"\n")

    return run


@pytest.mark.parametrize("node", NODE)
async def test_an_adapter_on_ws_keeps_every_rule(
    node: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kit, "MIN_WATCH", 0.5)
    verdicts = await judge(on_ws(node), patience=20)
    assert [v for v in verdicts.values() if v.broken or v.unseen] == []


@pytest.mark.parametrize("node", NODE)
async def test_an_adapter_on_ws_that_comes_back_when_it_was_replaced_is_found(node: str) -> None:
    verdicts = list((await judge(on_ws(node, "comes-back"), patience=20)).values())
    assert verdicts[-1].broken == "it has connected again"
    assert not any(verdict.broken or verdict.unseen for verdict in verdicts[:-1])


async def test_a_rule_that_there_was_no_time_to_see_is_not_called_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kit, "MIN_WATCH", 3600.0)

    async def leaves(url: str, wants: trio.MemoryReceiveChannel[None]) -> None:
        with trio.CancelScope() as scope:
            await Naive(leave=scope.cancel).run(url, wants)

    verdicts = list((await judge(leaves, patience=2)).values())
    assert [verdict.unseen for verdict in verdicts] == [False] * (len(SCENES) - 1) + [True]
    assert not any(verdict.broken for verdict in verdicts)


class Naive:
    """An adapter written by hand, with one fault."""

    def __init__(self, fault: str = "", leave: Callable[[], None] | None = None) -> None:
        """`leave` is called when another has taken its place; without it, it comes back."""
        self.fault = fault
        self.leave = leave
        self.session_id: str | None = None
        self.seen = 0
        self.pause = 0.05
        self.pending: dict[str, dict[str, Any]] = {}

    async def run(self, url: str, wants: trio.MemoryReceiveChannel[None]) -> None:
        while True:
            try:
                websocket, stream = await connect(url, 5)
                async with stream:
                    await self.talk(websocket, wants)
            except Lost as lost:
                if lost.code == CloseCode.REPLACED and self.leave is not None:
                    self.leave()
            await trio.sleep(0.2 if self.fault == "hammers" else self.pause)
            self.pause *= 2

    async def talk(self, websocket: WebSocket, wants: trio.MemoryReceiveChannel[None]) -> None:
        about: dict[str, Any] = {
            "node_id": "n",
            "platform": "test",
            "capabilities": ["accepted", "resume"],
        }
        if self.fault != "forgets its session":
            about |= {"session_id": self.session_id, "last_seq": self.last_seq}
        await send(websocket, "register", **about)
        registered = json.loads(await websocket.receive())
        self.session_id = registered["session_id"]
        self.pause = 0.05
        if not registered["resumed"] and self.fault != "never counts anew":
            self.seen = 0
        if self.fault != "sends once":
            for asked_before in self.pending.values():
                await send(websocket, "message", **asked_before)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.ask, websocket, wants)
            try:
                while True:
                    await self.take(websocket, json.loads(await websocket.receive()))
            except Lost as error:
                lost = error
            nursery.cancel_scope.cancel("the connection is lost")
        raise lost

    @property
    def last_seq(self) -> int:
        return self.seen + 100 if self.fault == "boasts" else self.seen

    async def ask(self, websocket: WebSocket, wants: trio.MemoryReceiveChannel[None]) -> None:
        async for _ in wants:
            whole = message(f"m-{len(self.pending)}")
            self.pending[whole["id"]] = whole
            await send(websocket, "message", **whole)

    async def take(self, websocket: WebSocket, frame: dict[str, Any]) -> None:
        if frame.get("seq", 0) <= self.seen:
            return
        self.seen = frame["seq"]
        if frame["type"] == "accepted":
            self.pending.pop(frame["request_id"], None)
        if frame["type"] == "response_end" and self.fault != "acks nothing":
            await send(websocket, "ack", seq=self.seen)


async def send(websocket: WebSocket, kind: str, **fields: Any) -> None:
    await websocket.send(json.dumps({"type": kind, **fields}))


FAULTS = {
    "hammers": "It connects again after a pause that grows.",
    "forgets its session": "It registers again as what it was, with the `session_id` that",
    "sends once": "A message that was not accepted is sent again, with its id.",
    "boasts": "It registers with a `last_seq` that it has seen.",
    "acks nothing": "It acks the end of a message, also if frames came before that it had seen.",
    "never counts anew": "After `resumed: false` it counts anew.",
    "": "It does not come back when another has taken its place (4000).",
}


@pytest.fixture(scope="module")
def judged() -> dict[str, list[Verdict]]:
    """What is said of each fault. They play at once: most of a play is the kit's patience."""
    judged = {}

    async def one(fault: str) -> None:
        judged[fault] = list((await judge(Naive(fault).run, patience=2)).values())

    async def every_one() -> None:
        async with trio.open_nursery() as nursery:
            for fault in FAULTS:
                nursery.start_soon(one, fault)

    trio.run(every_one)
    return judged


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_what_comes_after_it_is_unseen(
    fault: str, judged: dict[str, list[Verdict]]
) -> None:
    verdicts = judged[fault]
    (broken,) = (n for n, verdict in enumerate(verdicts) if verdict.broken is not None)
    assert verdicts[broken].promise.startswith(FAULTS[fault])
    assert [verdict.unseen for verdict in verdicts] == [n > broken for n in range(len(verdicts))]


async def test_an_adapter_that_never_comes_is_said() -> None:
    async def absent(_url: str, _wants: trio.MemoryReceiveChannel[None]) -> None:
        pass

    verdicts = await judge(absent, patience=0.1)
    assert verdicts[PROMISES[0]].broken == "nothing of the kind came within 0.1 s"


def test_the_command_says_where_it_listens_and_what_came(tmp_path: Path) -> None:
    words = ["-m", "clarad", "adapter-test", "--listen", "0", "--patience", "0.1"]
    done = subprocess.run(
        [sys.executable, *words],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("point the adapter at ws://127.0.0.1:")
    assert done.stdout.splitlines()[-1] == f"1 BROKEN, {len(SCENES) - 1} unseen"
