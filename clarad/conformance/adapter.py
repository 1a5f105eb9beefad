"""Conformance tests for an adapter: play a gateway that loses connections, and check what it does.

The rules are in the last section of docs/writing-an-adapter.md. What the adapter shows to its users
cannot be seen from here: that it drops duplicate frames shows only in its acks.
"""

import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final, TypeVar

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    CloseConnection,
    Event,
    Ping,
    Pong,
    Request,
    TextMessage,
)
from wsproto.utilities import ProtocolError

from clarad import protocol
from clarad.conformance.report import Broken, Verdict
from clarad.protocol import Capability, CloseCode, numbered

REGISTER_TIMEOUT: Final = 10.0
"""Seconds for a connection to register, as in the gateway."""

DROPPED: Final = 4
"""Connections to drop one after another, to see whether the pauses grow."""

GROWTH: Final = 1.5
"""The last pause has to be at least so many times as long as the first."""

MIN_WATCH: Final = 5.0
"""Seconds to watch, at least, whether a replaced adapter connects again."""

WATCH_FACTOR: Final = 3.0
"""Watch so many times as long as the adapter took to reconnect after another close."""

_GONE: Final = (trio.BrokenResourceError, trio.ClosedResourceError)
_READ_SIZE: Final = 64 * 1024

F = TypeVar("F", bound=protocol.Inbound)
E = TypeVar("E", bound=Event)

LATER: Final = b'{"type":"of_a_later_version"}'


class AdapterConnection:
    """A connection that the adapter has made."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._websocket = WSConnection(ConnectionType.SERVER)

    async def shake_hands(self) -> None:
        """Accept the WebSocket handshake."""
        await self._next(Request)
        await self._send(AcceptConnection())

    async def send(self, *texts: bytes) -> None:
        """Send frames."""
        await self._send(*(TextMessage(text.decode()) for text in texts))

    async def next(self, kind: type[F]) -> F:
        """Wait for a frame of this type; drop others, and answer a `ping`."""
        while True:
            text = ""
            while not (part := await self._next(TextMessage)).message_finished:
                text += part.data
            try:
                frame = protocol.decode(text + part.data)
            except protocol.Refused as refused:
                raise Broken(refused.error.message) from None
            if isinstance(frame, kind):
                return frame
            if isinstance(frame, protocol.Ping):
                await self.send(protocol.encode(protocol.Pong(timestamp="")))

    async def ping(self) -> None:
        """Send a ping and wait for the pong."""
        await self._send(Ping())
        await self._next(Pong)

    async def close(self, code: CloseCode) -> None:
        """Close, wait for the adapter's close frame, then close the TCP connection.

        The server has to close TCP (RFC 6455, section 7.1.1). Some client libraries report the
        close to the adapter only then; Node's `ws` waits for 30 s.
        """
        await self._send(CloseConnection(code=code, reason="as the test wants it"))
        await self._next(CloseConnection)
        await self._stream.aclose()

    async def _next(self, kind: type[E]) -> E:
        while True:
            try:
                for event in self._websocket.events():
                    if isinstance(event, kind):
                        return event
                    if isinstance(event, Ping):
                        await self._send(event.response())
                data = await self._stream.receive_some(_READ_SIZE)
                if not data:
                    raise Broken("it closed the connection")
                self._websocket.receive_data(data)
            except (ProtocolError, *_GONE) as error:
                raise Broken(f"the connection broke: {error}") from None

    async def _send(self, *events: Event) -> None:
        try:
            await self._stream.send_all(b"".join(map(self._websocket.send, events)))
        except _GONE:
            raise Broken("it closed the connection") from None

    async def cut(self) -> None:
        """Drop the connection without a close frame."""
        await trio.aclose_forcefully(self._stream)


class Unseen(Exception):  # noqa: N818 - it is an answer, not a fault
    """The adapter lacks the capability that the rule is about, or the time was too short."""


class Play:
    """The gateway's part: a scene for each rule, each of which continues the one before."""

    def __init__(
        self, listener: trio.SocketListener, patience: float, prompt: Callable[[str], None]
    ) -> None:
        """A scene may take `patience` seconds; `prompt` tells the user what to do."""
        self._listener = listener
        self._patience = patience
        self._prompt = prompt
        self._connections: list[AdapterConnection] = []
        self._register: protocol.Register
        self._message: protocol.Message
        self._session_id = ""
        self._reconnect_time = 0.0

    async def run(self) -> list[Verdict]:
        """Play to the end, or to the first broken rule; the remaining ones are then unseen."""
        try:
            return await self._judge()
        finally:
            for connection in self._connections:
                await connection.cut()

    async def _judge(self) -> list[Verdict]:
        verdicts: list[Verdict] = []
        broken: str | None = None
        for rule, scene in SCENES:
            promise = (scene.__doc__ or "").partition("\n")[0]
            unseen = broken is not None
            try:
                if not unseen:
                    await self._play(scene)
            except Broken as error:
                broken = f"{error}"
            except Unseen:
                unseen = True
            verdicts.append(Verdict(rule, promise, None if unseen else broken, unseen))
        return verdicts

    async def _play(self, scene: "Callable[[Play], Awaitable[None]]") -> None:
        with trio.move_on_after(self._patience) as limit:
            await scene(self)
        if limit.cancelled_caught:
            raise Broken(f"nothing of the kind came within {self._patience:g} s")

    # --- the scenes, in their order --------------------------------------------------------------

    async def registers(self) -> None:
        """It connects, and registers first of all."""
        await self._accept_registration()

    async def asks(self) -> None:
        """What it sends are frames of the protocol."""
        await self._send_registered(resumed=False)
        self._prompt("send a message through the adapter")
        self._message = await self._connection.next(protocol.Message)
        await self._connection.cut()

    async def pauses(self) -> None:
        """It connects again after a pause that grows."""
        arrivals = []
        for _ in range(DROPPED):
            stream = await self._listener.accept()
            arrivals.append(trio.current_time())
            await trio.aclose_forcefully(stream)
        pauses = [after - before for before, after in pairwise(arrivals)]
        if pauses[-1] < GROWTH * pauses[0]:
            raise Broken(f"the pauses were {', '.join(f'{pause:.2f} s' for pause in pauses)}")

    async def comes_back(self) -> None:
        """It registers again as what it was, with the `session_id` that it was given."""
        was = self._register
        await self._accept_registration()
        now = self._register
        if (was.node_id, was.platform) != (now.node_id, now.platform):
            raise Broken(f"it was {was.node_id!r} on {was.platform!r}, and is another now")
        if self._resumes and now.session_id != self._session_id:
            raise Broken(f"session_id is {now.session_id!r}")

    async def sends_again(self) -> None:
        """A message that was not accepted is sent again, with its id."""
        await self._send_registered(resumed=True)
        again = await self._connection.next(protocol.Message)
        if (again.id, again.content) != (self._message.id, self._message.content):
            raise Broken(f"{again.id!r} came, and not {self._message.id!r}")

    async def ignores(self) -> None:
        """Frames and fields that it does not know change nothing, and it answers pings."""
        await self._connection.send(*self._first_frames())
        await self._connection.ping()
        await self._connection.cut()

    async def counts(self) -> None:
        """It registers with a `last_seq` that it has seen."""
        await self._accept_registration()
        if not self._resumes:
            raise Unseen
        last_seq = self._register.last_seq
        if last_seq is None or not 0 < last_seq <= len(self._first_frames()):
            raise Broken(f"last_seq is {last_seq}, and {len(self._first_frames())} were sent")

    async def acks(self) -> None:
        """It acks the end of a message, also if frames came before that it had seen."""
        await self._send_registered(resumed=True)
        await self._connection.send(*(self._first_frames() if self._resumes else ()))
        await self._end(len(self._first_frames()) + 1)

    async def begins_anew(self) -> None:
        """After `resumed: false` it counts anew."""
        await self._connection.close(CloseCode.STOPPING)
        closed = trio.current_time()
        await self._accept_registration()
        self._reconnect_time = trio.current_time() - closed
        await self._send_registered(resumed=False)
        self._prompt("send another message")
        self._message = await self._connection.next(protocol.Message)
        await self._end(1)

    async def stays_away(self) -> None:
        """It does not come back when another has taken its place (4000)."""
        await self._connection.close(CloseCode.REPLACED)
        wanted = max(MIN_WATCH, WATCH_FACTOR * self._reconnect_time)
        watched = min(wanted, self._patience / 2)
        with trio.move_on_after(watched):
            await trio.aclose_forcefully(await self._listener.accept())
            raise Broken("it has connected again")
        if watched < wanted:
            raise Unseen

    # --- helpers of the scenes -------------------------------------------------------------------

    @property
    def _connection(self) -> AdapterConnection:
        return self._connections[-1]

    @property
    def _resumes(self) -> bool:
        return Capability.RESUME in self._register.capabilities

    async def _accept_registration(self) -> None:
        """Accept the next connection, and receive its registration."""
        self._connections.append(AdapterConnection(await self._listener.accept()))
        with trio.move_on_after(REGISTER_TIMEOUT):
            await self._connection.shake_hands()
            self._register = await self._connection.next(protocol.Register)
            return
        raise Broken(f"it has not registered within {REGISTER_TIMEOUT:g} s")

    async def _send_registered(self, *, resumed: bool) -> None:
        if not resumed:
            self._session_id = f"session-{secrets.token_hex(8)}"
        registered = protocol.Registered(
            node_id=self._register.node_id,
            session_id=self._session_id,
            server_time=datetime.now(UTC).isoformat(),
            adapter_token=secrets.token_urlsafe(32),
            resumed=resumed and self._resumes,
        )
        await self._connection.send(protocol.encode(registered))

    def _first_frames(self) -> list[bytes]:
        """Return the first frames of the answer, and one of an unknown type."""
        request_id = self._message.id
        frames: list[protocol.Outbound] = [protocol.ResponseStart(id="r", request_id=request_id)]
        if Capability.ACCEPTED in self._register.capabilities:
            frames.insert(0, protocol.Accepted(request_id=request_id, duplicate=False))
        if Capability.STREAMING in self._register.capabilities:
            chunk = protocol.ResponseChunk(id="r", request_id=request_id, chunk="Good ")
            frames.append(chunk)
        texts = [LATER, *(extended(protocol.encode(frame)) for frame in frames)]
        return [self._numbered(text, seq) for seq, text in enumerate(texts, 1)]

    async def _end(self, seq: int) -> None:
        """Send the terminal frame, and wait for its ack."""
        end = protocol.ResponseEnd(id="r", request_id=self._message.id, full_text="Good morning.")
        await self._connection.send(self._numbered(protocol.encode(end), seq))
        if not self._resumes:
            raise Unseen
        while (ack := await self._connection.next(protocol.Ack)).seq < seq:
            pass
        if ack.seq > seq:
            raise Broken(f"it has acked {ack.seq}, and {seq} was the last")

    def _numbered(self, frame: bytes, seq: int) -> bytes:
        return numbered(frame, seq) if self._resumes else frame


def extended(frame: bytes) -> bytes:
    """Return the frame with an unknown field."""
    return frame[:-1] + b',"of_a_later_version":[1]}'


SCENES: Final[tuple[tuple[int, Callable[[Play], Awaitable[None]]], ...]] = (
    (2, Play.registers),
    (4, Play.asks),
    (5, Play.pauses),
    (2, Play.comes_back),
    (1, Play.sends_again),
    (4, Play.ignores),
    (2, Play.counts),
    (3, Play.acks),
    (2, Play.begins_anew),
    (5, Play.stays_away),
)
