"""The class that adapters are written with, against real daemons, under Trio and under asyncio."""

import itertools
import random
import signal
import socket
import sqlite3
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Request, TextMessage

from clarad import protocol
from clarad.adapters import Adapter, GatewayError, Outcome, UnansweredError, adapter, open_adapter
from tests.daemon_process import Process, daemon
from tests.proxy import cutting_proxy

SCRIPT = r"""
case "$CLARA_CONTENT" in
    hold*) printf begun; sleep 1000;;
    in*) for part in a b c d e f; do printf "$part "; sleep 0.01; done;;
    wait*) printf 'begun '; while [ ! -e "${CLARA_CONTENT#* }" ]; do sleep 0.01; done; printf end;;
    *) printf '%s' "$CLARA_CONTENT";;
esac
"""
RESPONDER = {"CLARA_RESPONDER": "command", "CLARA_RESPONDER_COMMAND": SCRIPT}

Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with daemon(tmp_path_factory.mktemp("state"), **RESPONDER) as running:
        yield running


@pytest.fixture(params=["trio", "asyncio"])
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a scenario to its end, within 30 s; pauses between connections are short."""
    monkeypatch.setattr(adapter, "FIRST_PAUSE", 0.01)

    async def limited(scenario: Callable[[], Awaitable[None]]) -> None:
        with anyio.fail_after(30):
            await scenario()

    return lambda scenario: anyio.run(limited, scenario, backend=request.param)


def message(
    request_id: str, content: str = "hello", channel: str | None = None
) -> protocol.Message:
    return protocol.Message(
        id=request_id,
        user=protocol.User(id="test-u", platform_id="u"),
        channel=protocol.Channel(id=channel or request_id),
        content=content,
    )


_count = iter(range(10**9))


def fresh(prefix: str = "m") -> str:
    """An id that no other test uses."""
    return f"{prefix}-{next(_count)}"


def port_of(process: Process) -> int:
    return int(process.url.rpartition(":")[2])


# --- asking --------------------------------------------------------------------------------------


def test_an_answer_streams_and_ends_in_its_outcome(process: Process, run: Run) -> None:
    async def scenario() -> None:
        async with open_adapter(process.url, node_id=fresh("n"), platform="test") as node:
            frames = [frame async for frame in node.ask(message(fresh(), "in parts"))]
        chunks = [frame.chunk for frame in frames if isinstance(frame, protocol.ResponseChunk)]
        assert isinstance(frames[0], protocol.ResponseStart)
        assert isinstance(frames[-1], protocol.ResponseEnd)
        assert "".join(chunks) == frames[-1].full_text == "a b c d e f "

    run(scenario)


def test_without_streaming_there_is_only_the_end(process: Process, run: Run) -> None:
    async def scenario() -> None:
        connect = partial(open_adapter, process.url, node_id=fresh("n"), platform="test")
        async with connect(streaming=False) as node:
            frames = [frame async for frame in node.ask(message(fresh()))]
        assert [type(f) for f in frames] == [protocol.ResponseStart, protocol.ResponseEnd]

    run(scenario)


def test_a_message_that_is_cancelled_says_why(process: Process, run: Run) -> None:
    async def scenario() -> None:
        async with open_adapter(process.url, node_id=fresh("n"), platform="test") as node:
            answer = node.ask(message(fresh(), "hold"))
            async for frame in answer:
                if isinstance(frame, protocol.ResponseChunk):
                    assert node.cancel(answer.message.id, "enough")
                last = frame
        assert isinstance(last, protocol.Cancelled)
        assert last.reason == "enough"
        assert not node.cancel(answer.message.id)

    run(scenario)


def test_what_is_above_a_rate_is_answered_a_little_later(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_adapter(limited.url, node_id="n", platform="test") as node:
            answers = [node.ask(message(f"m-{n}")) for n in range(2)]
            outcomes = [await answer.outcome() for answer in answers]
        assert [type(outcome) for outcome in outcomes] == [protocol.ResponseEnd] * 2

    with daemon(tmp_path, CLARA_RATE_NODE="600/1") as limited:
        run(scenario)


def test_an_id_is_used_once_at_a_time(process: Process, run: Run) -> None:
    async def scenario() -> None:
        async with open_adapter(process.url, node_id=fresh("n"), platform="test") as node:
            answer = node.ask(message("same", channel=fresh()))
            with pytest.raises(ValueError, match="under way"):
                node.ask(message("same"))
            await answer.outcome()

    run(scenario)


def test_a_message_that_no_frame_can_hold_is_refused_here(process: Process, run: Run) -> None:
    async def scenario() -> None:
        async with open_adapter(process.url, node_id=fresh("n"), platform="test") as node:
            with pytest.raises(ValueError, match="bytes"):
                node.ask(message(fresh(), "x" * protocol.MAX_FRAME_BYTES))
            assert isinstance(await node.ask(message(fresh())).outcome(), protocol.ResponseEnd)

    run(scenario)


# --- connections that are cut --------------------------------------------------------------------


async def ask_through(port: int, cuts: list[int], asked: int) -> None:
    """Ask over connections that are cut; everything is answered once, and whole."""
    strays: list[Outcome] = []
    async with (
        cutting_proxy(port, cuts) as proxy,
        open_adapter(
            proxy.url, node_id=fresh("n"), platform="test", on_stray=strays.append
        ) as node,
    ):
        channel = fresh("c")
        answers = [
            node.ask(message(fresh(), f"text {n}", f"{channel}-{n % 3}")) for n in range(asked)
        ]
        for n, answer in enumerate(answers):
            frames = [frame async for frame in answer]
            assert [isinstance(frame, Outcome) for frame in frames].count(True) == 1
            end = frames[-1]
            assert isinstance(end, protocol.ResponseEnd), end
            assert end.full_text == f"text {n}"
            chunks = [frame.chunk for frame in frames if isinstance(frame, protocol.ResponseChunk)]
            assert "".join(chunks) == end.full_text
    assert strays == []


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cuts=st.lists(st.integers(1, 6000), max_size=6))
def test_wherever_connections_are_cut_every_message_is_answered_once(
    backend: str, process: Process, monkeypatch: pytest.MonkeyPatch, cuts: list[int]
) -> None:
    monkeypatch.setattr(adapter, "FIRST_PAUSE", 0.01)
    anyio.run(partial(ask_through, port_of(process), cuts, 6), backend=backend)


def test_what_the_last_process_had_asked_comes_to_the_next(
    process: Process, run: Run, tmp_path: Path
) -> None:
    async def scenario() -> None:
        connect = partial(open_adapter, process.url, node_id=fresh("n"), platform="test")
        gate, asked = tmp_path / "gate", fresh()
        async with connect() as node:
            async for frame in node.ask(message(asked, f"wait {gate}")):
                if isinstance(frame, protocol.ResponseChunk):
                    break
        gate.touch()
        came = anyio.Event()
        strays: list[Outcome] = []

        def on_stray(outcome: Outcome) -> None:
            strays.append(outcome)
            came.set()

        async with connect(on_stray=on_stray):
            await came.wait()
        assert [stray.request_id for stray in strays] == [asked]
        async with connect(on_stray=on_stray) as node:
            await node.ask(message(fresh())).outcome()
        assert len(strays) == 1

    run(scenario)


def test_what_was_received_and_not_taken_is_not_lost_with_the_process(
    process: Process, run: Run
) -> None:
    async def scenario() -> None:
        connect = partial(open_adapter, process.url, node_id=fresh("n"), platform="test")
        async with connect() as node:
            untaken = node.ask(message(fresh()))
            for _ in range(3):
                await node.ask(message(fresh())).outcome()
        strays: list[Outcome] = []
        async with connect(on_stray=strays.append) as node:
            await node.ask(message(fresh())).outcome()
        assert untaken.message.id in [stray.request_id for stray in strays]

    run(scenario)


# --- a gateway that is not there, or says no -----------------------------------------------------


def test_an_adapter_waits_for_its_gateway(run: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    async def scenario() -> None:
        outcomes: list[Outcome] = []

        async def talk() -> None:
            url = f"ws://127.0.0.1:{port}"
            async with open_adapter(url, node_id="n", platform="test") as node:
                outcomes.append(await node.ask(message("m")).outcome())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(talk)
            await anyio.wait_all_tasks_blocked()
            with daemon(tmp_path, CLARA_GATEWAY_PORT=f"{port}"):
                while not outcomes:
                    await anyio.sleep(0.01)
        assert isinstance(outcomes[0], protocol.ResponseEnd)

    run(scenario)


@pytest.mark.parametrize("url", ["nonsense", "http://127.0.0.1:1", "ws://127.0.0.1:x", "ws://"])
def test_an_address_that_is_none_is_said(run: Run, url: str) -> None:
    async def scenario() -> None:
        with pytest.raises(GatewayError, match="is not the address of a gateway"):
            async with open_adapter(url, node_id="n", platform="test"):
                pass

    run(scenario)


def test_a_wrong_secret_is_said_and_not_tried_again(run: Run, tmp_path: Path) -> None:
    with daemon(tmp_path, CLARA_GATEWAY_SECRET="right") as process:

        async def scenario() -> None:
            with pytest.raises(GatewayError, match="CLARA_GATEWAY_SECRET"):
                async with open_adapter(process.url, node_id="n", platform="p", secret="wrong"):
                    pass

        run(scenario)


def test_two_adapters_do_not_fight_over_a_name(process: Process, run: Run) -> None:
    async def scenario() -> None:
        connect = partial(open_adapter, process.url, node_id=fresh("n"), platform="test")
        both = connect(), connect()
        with pytest.raises(GatewayError, match="another adapter registered"):
            async with both[0], both[1]:
                await anyio.sleep_forever()

    run(scenario)


# --- a daemon that is killed ---------------------------------------------------------------------


def test_over_a_kill_every_message_ends_once(run: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        fixed = {"CLARA_GATEWAY_PORT": f"{taken.getsockname()[1]}"}

    async def count(node: Adapter, asked: protocol.Message, ends: list[str]) -> None:
        async for frame in node.ask(asked):
            if isinstance(frame, Outcome):
                ends.append(f"{asked.id} {getattr(frame, 'code', 'answered')}")

    async def scenario() -> None:
        ends: list[str] = []
        gate = tmp_path / "gate"
        with daemon(tmp_path, **RESPONDER, **fixed) as first:
            async with (
                open_adapter(first.url, node_id="n", platform="test") as node,
                anyio.create_task_group() as tasks,
            ):
                begun = node.ask(message("begun", f"wait {gate}", "c"))
                async for frame in begun:
                    if isinstance(frame, protocol.ResponseChunk):
                        break
                tasks.start_soon(count, node, message("waits", "hello", "c"), ends)
                tasks.start_soon(count, node, message("quick", "hello", "d"), ends)
                while not ends:
                    await anyio.sleep(0.01)
                first.kill()
                tasks.start_soon(count, node, message("asked meanwhile", "hello", "e"), ends)
                gate.touch()
                with daemon(tmp_path, **RESPONDER, **fixed):
                    end = await begun.outcome()
                    assert isinstance(end, protocol.Error)
                    assert end.code is protocol.ErrorCode.INTERRUPTED
                    while len(ends) < 3:
                        await anyio.sleep(0.01)
        assert sorted(ends) == ["asked meanwhile answered", "quick answered", "waits answered"]

    run(scenario)


def test_giving_up_says_whether_the_gateway_will_still_run_a_message(
    run: Run, tmp_path: Path
) -> None:
    async def ask_until_it_stops(stopping: Process) -> None:
        async with open_adapter(stopping.url, node_id="n", platform="test", patience=0.1) as node:
            async for frame in node.ask(message("begun", "hold", "c")):
                if isinstance(frame, protocol.ResponseChunk):
                    break
            waits = node.ask(message("waits", "hello", "c"))
            async for frame in waits:
                if isinstance(frame, protocol.Status):
                    break
            stopping.signal(signal.SIGTERM)
            await waits.outcome()

    async def scenario() -> None:
        with (
            daemon(tmp_path, **RESPONDER, CLARA_DRAIN_TIMEOUT="0") as stopping,
            pytest.raises(UnansweredError, match="answers it after its next start"),
        ):
            await ask_until_it_stops(stopping)

    run(scenario)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_under_load_kills_lose_and_double_nothing(
    backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(adapter, "FIRST_PAUSE", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        fixed = {"CLARA_GATEWAY_PORT": f"{taken.getsockname()[1]}"}
    ends: defaultdict[str, list[Outcome]] = defaultdict(list)
    strays: list[Outcome] = []

    async def keep_asking(node: Adapter, channel: int, enough: list[bool]) -> None:
        for n in itertools.takewhile(lambda _: not enough, itertools.count()):
            asked = message(f"{channel}-{n}", channel=f"{channel}")
            async for frame in node.ask(asked):
                if isinstance(frame, Outcome):
                    ends[asked.id].append(frame)

    async def scenario() -> None:
        enough: list[bool] = []
        url = f"ws://127.0.0.1:{fixed['CLARA_GATEWAY_PORT']}"
        process = Process(tmp_path, **fixed)
        try:
            async with (
                open_adapter(url, node_id="n", platform="test", on_stray=strays.append) as node,
                anyio.create_task_group() as tasks,
            ):
                for channel in range(8):
                    tasks.start_soon(keep_asking, node, channel, enough)
                for _ in range(3):
                    had = len(ends)
                    while len(ends) < had + 20 + random.randrange(20):
                        await anyio.sleep(0.001)
                    process.kill()
                    process = Process(tmp_path, **fixed)
                enough.append(True)
        finally:
            process.kill()

    anyio.run(scenario, backend=backend)
    assert strays == []
    assert {len(ended) for ended in ends.values()} == {1}
    database = sqlite3.connect(tmp_path / "clarad.db")
    stored = database.execute("SELECT request_id, outcome FROM clarad_messages").fetchall()
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
    told = {
        request_id: "interrupted" if isinstance(ended[0], protocol.Error) else "completed"
        for request_id, ended in ends.items()
    }
    assert dict(stored) == told


# --- what the block raises -----------------------------------------------------------------------

OWN = {
    "an exception": KeyError("mine"),
    "a group": ExceptionGroup("mine", [KeyError("a"), ValueError("b")]),
    "a group of one": ExceptionGroup("mine", [ExceptionGroup("inner", [KeyError("a")])]),
}
RUNTIMES: dict[str, tuple[str, dict[str, bool]]] = {
    "trio": ("trio", {}),
    "trio, not strict": ("trio", {"strict_exception_groups": False}),
    "asyncio": ("asyncio", {}),
}


@pytest.mark.filterwarnings("ignore:.*strict_exception_groups=False:trio.TrioDeprecationWarning")
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("own", OWN)
def test_what_the_block_raises_is_raised_as_it_is(process: Process, own: str, runtime: str) -> None:
    async def scenario() -> None:
        async with open_adapter(process.url, node_id=fresh("n"), platform="test"):
            await anyio.lowlevel.checkpoint()
            raise OWN[own]

    backend, options = RUNTIMES[runtime]
    with pytest.raises((KeyError, ExceptionGroup)) as caught:
        anyio.run(scenario, backend=backend, backend_options=options)
    assert caught.value is OWN[own]


def test_a_block_that_is_cancelled_ends_as_one(process: Process, run: Run) -> None:
    async def scenario() -> None:
        with anyio.CancelScope() as scope:
            async with open_adapter(process.url, node_id=fresh("n"), platform="test"):
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught

    run(scenario)


def test_what_is_raised_while_the_block_is_cancelled_comes_out(process: Process, run: Run) -> None:
    async def fail_at_the_end() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise KeyError("mine")

    async def scenario() -> None:
        with anyio.CancelScope() as scope:
            async with (
                open_adapter(process.url, node_id=fresh("n"), platform="test"),
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(fail_at_the_end)
                await anyio.lowlevel.checkpoint()
                scope.cancel()
                await anyio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        run(scenario)
    assert [type(error) for error in caught.value.exceptions] == [KeyError]


def test_an_adapter_that_is_replaced_ends_the_block_with_one_error(
    process: Process, run: Run
) -> None:
    async def scenario() -> None:
        open_same = partial(open_adapter, process.url, node_id=fresh("n"), platform="test")
        async with open_same(), open_same():
            await anyio.sleep_forever()

    with pytest.raises(GatewayError, match="another adapter registered"):
        run(scenario)


# --- a gateway that has died without a word ------------------------------------------------------


async def test_a_gateway_that_answers_no_ping_is_given_up(
    mock_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    listener, *_ = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}"

    async def stay() -> None:
        async with open_adapter(url, node_id="n", platform="test"):
            await trio.sleep_forever()

    async def register() -> trio.SocketStream:
        """Take a connection, and say nothing after `registered`."""
        stream = await listener.accept()
        websocket = WSConnection(ConnectionType.SERVER)
        registered = protocol.encode(protocol.Registered("n", "session", "", ""))
        while True:
            websocket.receive_data(await stream.receive_some())
            for event in websocket.events():
                if isinstance(event, Request):
                    await stream.send_all(websocket.send(AcceptConnection()))
                elif isinstance(event, TextMessage):
                    await stream.send_all(websocket.send(TextMessage(registered.decode())))
                    return stream

    async with listener:
        nursery.start_soon(stay)
        first = await register()
        async with first:
            for _ in range(round(adapter.PING_INTERVAL + adapter.PONG_TIMEOUT)):
                await trio.testing.wait_all_tasks_blocked(0.005)
                mock_clock.jump(1)
            while await first.receive_some():
                pass  # a ping, and the end
        nursery.cancel_scope.cancel("it has hung up")
