"""The two ways to an agent, against servers in memory."""

import struct

import pytest
import trio
import wsproto
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import memory_stream_pair
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    Request,
    TextMessage,
)

from sandbox.streams import AttachStream, Broken, ExecStream, WebSocket, answers, attach

pieces = st.lists(st.binary(max_size=50), max_size=10)


def labelled(data: bytes) -> bytes:
    return struct.pack(">BxxxL", 1, len(data)) + data


@given(pieces, st.data())
def test_however_dockers_bytes_are_split_the_output_is_the_same(
    written: list[bytes], data: st.DataObject
) -> None:
    whole = b"".join(labelled(piece) for piece in written)
    cuts = data.draw(st.lists(st.integers(0, len(whole))).map(sorted))
    parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]

    async def main() -> None:
        ours, theirs = memory_stream_pair()
        stream = AttachStream(ours, parts[0])
        for part in parts[1:]:
            await theirs.send_all(part)
        await theirs.aclose()
        received = bytearray()
        while piece := await stream.receive_some():
            received += piece
        assert received == b"".join(written)
        await stream.aclose()

    trio.run(main)


async def test_what_follows_the_answer_to_an_attach_is_not_lost(nursery: trio.Nursery) -> None:
    ours, theirs = memory_stream_pair()

    async def serve() -> None:
        request = bytearray()
        while not request.endswith(b"\r\n\r\n"):
            request += await theirs.receive_some()
        assert request.startswith(b"POST /containers/x/attach HTTP/1.1\r\n")
        head = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
        await theirs.send_all(head + labelled(b"ready"))

    nursery.start_soon(serve)
    with trio.fail_after(10):
        stream = await attach(ours, "/containers/x/attach")
        assert await stream.receive_some() == b"ready"


async def test_a_refused_attach_is_said(nursery: trio.Nursery) -> None:
    ours, theirs = memory_stream_pair()
    nursery.start_soon(theirs.send_all, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    with trio.fail_after(10), pytest.raises(Broken, match="404"):
        await attach(ours, "/containers/x/attach")


async def test_an_answer_that_is_no_http_is_said_and_hung_up_on(nursery: trio.Nursery) -> None:
    ours, theirs = memory_stream_pair()
    await theirs.send_all(b"\0\0\0\0\r\n\r\n")
    with trio.fail_after(10), pytest.raises(Broken, match="does not answer in HTTP"):
        await attach(ours, "/containers/x/attach")
    with trio.fail_after(10):
        while await theirs.receive_some():  # the request, and then the end
            pass


class Server:
    """The far end of a WebSocket."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._protocol = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        self._events: list[Event] = []

    async def event(self) -> Event:
        while not self._events:
            self._protocol.receive_data(bytes(await self._stream.receive_some()))
            self._events += self._protocol.events()
        return self._events.pop(0)

    async def send(self, *events: Event) -> None:
        await self._stream.send_all(b"".join(self._protocol.send(event) for event in events))


@pytest.fixture
async def pair(nursery: trio.Nursery) -> tuple[WebSocket, Server]:
    ours, theirs = memory_stream_pair()
    socket, server = WebSocket(ours), Server(theirs)

    async def accept() -> None:
        assert isinstance(request := await server.event(), Request)
        assert request.target == "/1.0/x?secret=y"
        await server.send(AcceptConnection())

    nursery.start_soon(accept)
    with trio.fail_after(10):
        await socket.open("/1.0/x?secret=y")
    return socket, server


async def test_binary_messages_go_both_ways(pair: tuple[WebSocket, Server]) -> None:
    socket, server = pair
    await socket.send(b"to them")
    assert await server.event() == BytesMessage(data=bytearray(b"to them"))
    await server.send(BytesMessage(data=b"to "), BytesMessage(data=b"us"))
    assert await socket.receive() == b"to us"


@pytest.mark.parametrize("end", [TextMessage(data=""), CloseConnection(code=1000)])
async def test_the_end_comes_after_what_came_before(
    pair: tuple[WebSocket, Server], end: Event
) -> None:
    socket, server = pair
    await server.send(BytesMessage(data=b"last"), end)
    assert await socket.receive() == b"last"
    assert await socket.receive() is None


async def test_a_ping_is_answered(pair: tuple[WebSocket, Server]) -> None:
    socket, server = pair
    await server.send(Ping(payload=b"?"))
    assert await socket.receive() == b""
    assert await server.event() == Pong(payload=b"?")


async def test_a_refused_handshake_is_said(nursery: trio.Nursery) -> None:
    ours, theirs = memory_stream_pair()
    server = Server(theirs)

    async def refuse() -> None:
        await server.event()
        await server.send(RejectConnection(status_code=403))

    nursery.start_soon(refuse)
    with trio.fail_after(10), pytest.raises(Broken, match="403"):
        await WebSocket(ours).open("/")


async def test_a_peer_that_hangs_up_during_the_handshake_is_said() -> None:
    ours, theirs = memory_stream_pair()
    await theirs.aclose()
    with trio.fail_after(10), pytest.raises(trio.BrokenResourceError):
        await WebSocket(ours).open("/")


async def test_an_answer_that_is_no_websocket_is_said() -> None:
    ours, theirs = memory_stream_pair()
    await theirs.send_all(b"\0\0\0\0\r\n\r\n")
    with trio.fail_after(10), pytest.raises(Broken, match="does not speak WebSocket"):
        await WebSocket(ours).open("/")


async def test_what_is_sent_after_the_end_is_broken(pair: tuple[WebSocket, Server]) -> None:
    socket, server = pair
    await server.send(CloseConnection(code=1000))
    assert await socket.receive() is None
    with pytest.raises(Broken, match="closed the connection"):
        await socket.send(b"too late")


async def test_an_exec_is_one_stream(pair: tuple[WebSocket, Server]) -> None:
    socket, server = pair
    stream = ExecStream({"0": socket, "1": socket})
    await stream.send_all(b"in")
    assert await server.event() == BytesMessage(data=bytearray(b"in"))
    await server.send(Ping(payload=b"?"))
    await server.send(BytesMessage(data=b"out"))
    assert await stream.receive_some() == b"out"
    await stream.aclose()


def test_a_socket_that_is_not_there_does_not_answer() -> None:
    assert not answers("/run/no-such.socket")
