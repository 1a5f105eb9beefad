"""The stream below trio-websocket: what it passes on at once, and which peers wait for which."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

from clarad.protocol import CloseCode
from clarad.transport.stream import MAX_FIRST_FRAMES, ClientStream, receive_budget
from clarad.transport.unauthenticated import UnauthenticatedPeers
from tests.strangers import frame

HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
CONTINUATION, TEXT, WHOLE_TEXT, PING, PONG = 0x00, 0x01, 0x81, 0x89, 0x8A


class Steps(trio.abc.Instrument):
    """Counts the steps of the event loop."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


class Pair:
    """A client's stream as the gateway has it, the client's end of it, and how it was refused."""

    def __init__(self, stream: ClientStream, client: trio.SocketStream) -> None:
        self.stream = stream
        self.client = client
        self.refused: list[tuple[CloseCode, str]] = []

    def refuse(self, code: CloseCode, reason: str) -> None:
        self.refused.append((code, reason))


@asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    """Connect the two, past the head of the request."""
    ours, theirs = trio.socket.socketpair()
    client = trio.SocketStream(theirs)
    made = Pair(ClientStream(trio.SocketStream(ours), "here", UnauthenticatedPeers()), client)
    async with client:
        await client.send_all(HEAD)
        assert await made.stream.receive_head() == HEAD
        assert await made.stream.receive_some() == HEAD
        made.stream.start_frames(made.refuse, receive_budget())
        yield made
        await made.stream.lingering_close(0)


async def test_what_comes_at_once_is_passed_on_a_few_frames_at_a_time() -> None:
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    async with pair() as made:
        made.stream.admit()
        one = frame(WHOLE_TEXT)
        await made.client.send_all(one * 1000)
        seen, came = list[int](), 0
        while came < 1000 * len(one):
            piece = await made.stream.receive_some()
            assert len(piece) <= 16 * len(one)
            seen.append(steps.count)
            came += len(piece)
    assert not made.refused
    assert len(seen) == len(set(seen))  # no two of them in one step


async def test_the_frames_of_an_unauthenticated_peer_are_passed_on_one_by_one() -> None:
    async with pair() as made:
        one = frame(WHOLE_TEXT, b"x")
        await made.client.send_all(one * MAX_FIRST_FRAMES)
        for _ in range(MAX_FIRST_FRAMES):
            assert await made.stream.receive_some() == one


async def test_in_each_step_of_the_loop_one_unauthenticated_peer_has_a_time_slice() -> None:
    steps, slices = Steps(), Counter[int]()
    trio.lowlevel.add_instrument(steps)
    peers = UnauthenticatedPeers()
    ours, theirs = trio.socket.socketpair()

    async def unauthenticated() -> None:
        for _ in range(10):
            assert await peers.time_slice(ours, "here")
            slices[steps.count] += 1

    with ours, theirs:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(unauthenticated)
    assert slices.total() == 200
    assert set(slices.values()) == {1}


@pytest.mark.parametrize(
    ("crowd", "other", "is_one"),
    [
        (["192.0.2.1"], "192.0.2.2", False),
        (["2001:db8::1", "2001:db8::2", "2001:db8::3"], "2001:db8:0:1::1", False),
        (["2001:db8::1", "2001:db8::2", "2001:db8::3"], "2001:db8::4", True),
    ],
)
async def test_a_crowd_with_one_address_leaves_every_second_slice_to_another_address(
    crowd: list[str], other: str, is_one: bool
) -> None:
    peers, given = UnauthenticatedPeers(), list[str]()
    ours, theirs = trio.socket.socketpair()

    async def wait(address: str) -> None:
        assert await peers.time_slice(ours, address)
        given.append(address)

    with ours, theirs:
        async with trio.open_nursery() as nursery, peers._lock:
            for _ in range(30):
                for address in crowd:
                    nursery.start_soon(wait, address)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(wait, other)
            await trio.testing.wait_all_tasks_blocked()
    assert given.index(other) == (len(given) - 1 if is_one else 1)


@pytest.mark.parametrize("addresses", [1, 30])
async def test_between_two_time_slices_the_loop_has_as_long_without_them(
    autojump_clock: trio.testing.MockClock, addresses: int
) -> None:
    peers = UnauthenticatedPeers()
    ours, theirs = trio.socket.socketpair()
    began = trio.current_time()

    async def peer(number: int) -> None:
        assert await peers.time_slice(ours, f"192.0.2.{number % addresses}")
        autojump_clock.jump(0.002)  # what it does in its slice

    with ours, theirs:
        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(peer, number)
    assert trio.current_time() - began == pytest.approx(30 * 0.002 + 29 * 0.002)


async def test_a_peer_that_goes_while_it_waits_gets_no_time_slice() -> None:
    peers, given = UnauthenticatedPeers(), dict[str, bool]()
    ours, theirs = trio.socket.socketpair()
    other, at_other = trio.socket.socketpair()

    async def wait(name: str, connected: trio.socket.SocketType) -> None:
        given[name] = await peers.time_slice(connected, "here")

    with ours, theirs, other, at_other:
        async with trio.open_nursery() as nursery, peers._lock:
            nursery.start_soon(wait, "goes", ours)
            nursery.start_soon(wait, "stays", other)
            await trio.testing.wait_all_tasks_blocked()
            assert not given
            await theirs.send(b"what nobody waits for an answer to")
            theirs.close()
        assert given == {"goes": False, "stays": True}
        async with peers._lock:
            assert not await peers.time_slice(ours, "here")  # nor does it wait for one


async def test_a_lingering_close_waits_for_no_time_slice() -> None:
    peers = UnauthenticatedPeers()
    ours, theirs = trio.socket.socketpair()
    stream = ClientStream(trio.SocketStream(ours), "here", peers)
    with theirs:
        async with peers._lock, trio.open_nursery() as nursery:
            nursery.start_soon(stream.lingering_close, 3600)
            await theirs.send(b"x" * 100_000)
            theirs.shutdown(trio.socket.SHUT_WR)
            with trio.fail_after(10):
                assert await theirs.recv(1) == b""
    assert ours.fileno() == -1


@pytest.mark.parametrize(
    ("first", "then"),
    [(TEXT, CONTINUATION), (PING, PING), (PONG, PONG), (WHOLE_TEXT, WHOLE_TEXT)],
)
async def test_an_unauthenticated_peer_with_many_frames_is_refused_once_and_the_rest_is_dropped(
    first: int, then: int
) -> None:
    async with pair() as made:
        await made.client.send_all(frame(first) + frame(then) * 1000)
        for _ in range(MAX_FIRST_FRAMES):
            assert await made.stream.receive_some()

        async def go_after_that() -> None:
            await trio.testing.wait_all_tasks_blocked()
            await made.client.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(go_after_that)
            assert await made.stream.receive_some() == b""
    assert [code for code, _ in made.refused] == [CloseCode.REFUSED]


async def test_pings_are_no_part_of_a_message_that_is_waited_for() -> None:
    room = receive_budget()
    async with pair() as made:
        made.stream.admit()
        made.stream.start_frames(made.refuse, room)
        await made.client.send_all(frame(TEXT, b"x" * 100) + frame(PING, b"x" * 100) * 10)
        await made.client.send_eof()
        while await made.stream.receive_some():
            pass
        assert made.stream._charged == 100
        made.stream.release_received()
        assert made.stream._charged == 0
    assert not made.refused


async def test_a_close_and_a_write_at_once_are_not_in_each_other_s_way() -> None:
    async def write(stream: ClientStream) -> None:
        with suppress(trio.ClosedResourceError):
            await stream.send_all(b"x")

    for _ in range(20):  # whichever comes first
        async with pair() as made, trio.open_nursery() as nursery:
            nursery.start_soon(made.stream.aclose)
            nursery.start_soon(write, made.stream)
