"""Listens: takes connections in, checks their handshakes, and contains whatever they break."""

import logging
import math
import ssl
from collections.abc import Callable, Collection, Iterable, Mapping
from http import HTTPStatus
from typing import Final, Generic, Protocol, TypeVar

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream
from wsproto.utilities import ProtocolError

from clarad.config.proxies import NO_PROXIES, ForwardedError, Proxies
from clarad.protocol import MAX_FRAME_BYTES, CloseCode
from clarad.systemd import catalogue
from clarad.transport.access import bearer
from clarad.transport.listeners import is_among_last, peer
from clarad.transport.plain_http import bad_request, is_plain, upgrade_required
from clarad.transport.proxy_protocol import ProxyHeaderError, begins_with_header, read_header
from clarad.transport.stream import ClientStream
from clarad.transport.unauthenticated import Present, UnauthenticatedPeers

log = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT: Final = 10.0
"""Seconds from the TCP connection to the end of the WebSocket handshake."""

LAST_HANDSHAKES: Final = 1.0
"""Seconds that a stop leaves to the handshakes that are under way."""

MAX_HANDSHAKES: Final = 1024
"""Handshakes at once; of more, the one that takes longest is cut. Real ones take milliseconds."""

SPARE_DESCRIPTORS: Final = 256
"""File descriptors that connections leave to the store, to commands and to operators."""

LINGER: Final = 2.0
"""Seconds that a peer which is still sending has to read why it was closed."""

MAX_LINGERING: Final = 64
"""Strangers that have this time at once; with one more, the oldest of them is cut."""


class Connection(Protocol):
    """What the gateway needs of one; `clarad.nurseries.connection.Connection`."""

    @property
    def said_goodbye(self) -> bool:
        """Whether the closing handshake was held."""

    @property
    def token(self) -> str | None:
        """What the token is called that it has shown, if any."""

    @property
    def shown(self) -> str | None:
        """The token itself."""

    @property
    def is_stranger(self) -> bool:
        """Whether nobody knows yet who it is."""

    def end(self, code: CloseCode, reason: str) -> None:
        """Begin to close."""

    async def run(self) -> None:
        """Serve until either side has closed."""


MakeConnection = Callable[[WebSocketConnection, ClientStream, str | None], Connection]


class Authenticator(Protocol):
    """Who decides on handshakes; `clarad.transport.auth.Authenticator`."""

    async def refusal(self, headers: Mapping[str, str], address: str) -> tuple[int, str] | None:
        """Return the HTTP status and the reason if a handshake may not be."""

    def fails(self, address: str) -> bool:
        """Count something wrong from an address; return whether there was too much of it before."""


Address = TypeVar("Address")
Address_co = TypeVar("Address_co", covariant=True)


class Endpoint(Protocol[Address_co]):
    """Where to listen; see `clarad.transport.listeners`. To be opened again once it is closed."""

    async def open(self) -> list[trio.SocketListener]:
        """Bind and listen; raises `CannotListen`."""

    @property
    def address(self) -> Address_co:
        """What `open` has bound."""

    def close(self) -> None:
        """Stop listening."""


class Gateway(Generic[Address]):
    """Listens at one endpoint.

    `make_connection` is given the WebSocket, its stream, and the secret or token that the handshake
    has shown, if any.
    """

    def __init__(
        self,
        endpoint: Endpoint[Address],
        *,
        admission: Authenticator,
        max_connections: int,
        make_connection: MakeConnection,
        max_first_frame: int = MAX_FRAME_BYTES,
        tls: ssl.SSLContext | None = None,
        proxies: Proxies = NO_PROXIES,
        spare_descriptors: int = SPARE_DESCRIPTORS,
    ) -> None:
        """`tls` is what connections are encrypted with, `proxies` are trusted; replace them freely.

        `max_first_frame` is in characters, and holds until a connection allows itself more. When
        only so many descriptors are left, no connection gets one of them.
        """
        self._endpoint = endpoint
        self._admission = admission
        self.tls = tls
        self.proxies = proxies
        self.max_connections = max_connections
        self._make_connection = make_connection
        self._max_first_frame = max_first_frame
        self._listening = trio.CancelScope()
        self._stopping = False
        self._connections: dict[Connection, None] = {}  # in the order in which they came, as
        self._handshakes: dict[trio.CancelScope, None] = {}  # a set is not
        self._handshakes_until = math.inf
        self._lingering: dict[trio.CancelScope, None] = {}
        self._strangers = UnauthenticatedPeers()
        self._spare_descriptors = spare_descriptors
        self._streams: dict[ClientStream, trio.CancelScope] = {}  # in this order, too
        self._listeners: list[trio.SocketListener] = []
        self._probe = trio.CancelScope()
        self._taken = trio.Event()

    async def run(self, task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve; `started` with the address that was bound, once connections are taken.

        After `stop_listening` and when the last connection has ended, this returns. Cancelling
        drops all connections.

        Raises:
            CannotListen: the port is taken, the address is not ours, …
        """
        self._listeners = await self._endpoint.open()
        self._listening = trio.CancelScope()
        if self._stopping:
            self._listening.cancel("stopping")
        # Two nurseries: the listeners can be ended while their connections live on.
        async with trio.open_nursery() as handlers:
            try:
                with self._listening:
                    task_status.started(self._endpoint.address)
                    taking = [Present(one, self._note_taken) for one in self._listeners]
                    await trio.serve_listeners(self._contain, taking, handler_nursery=handlers)
            finally:
                self._endpoint.close()

    def stop_listening(self) -> None:
        """Take no new connection."""
        self._stopping = True
        self._listening.cancel("stopping")
        self._probe.cancel("stopping")

    async def progress(self) -> None:
        """Wait until a connection has been taken: one of our own, unless another comes first.

        Returns at once after `stop_listening`, and if there is an error: the gateway is then
        being started again, or has no descriptors left, and a restart is not the mend for that.
        """
        if self._stopping:
            return
        self._taken = trio.Event()
        with trio.CancelScope() as self._probe:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._connect_to_ourselves)
                await self._taken.wait()
                nursery.cancel_scope.cancel("a connection was taken")

    def _note_taken(self) -> None:
        self._taken.set()

    async def _connect_to_ourselves(self) -> None:
        """Connect, and have the connection taken; what then ends a handshake is that we go."""
        try:
            name = self._listeners[0].socket.getsockname()
            with trio.socket.socket(self._listeners[0].socket.family) as ours:
                await ours.connect(name)
                await trio.sleep_forever()
        except OSError as error:
            log.debug("the gateway cannot connect to itself: %s", error)
            self._taken.set()

    def close_all(self) -> None:
        """Close every connection with 1001, after what is queued for it.

        A handshake has `LAST_HANDSHAKES` to end, also one whose task has not begun yet: the peer
        was taken away from the listener, so only this daemon can answer it.
        """
        self._handshakes_until = trio.current_time() + LAST_HANDSHAKES
        for scope in self._handshakes:
            scope.deadline = min(scope.deadline, self._handshakes_until)
        for connection in self._connections:
            connection.end(CloseCode.STOPPING, "the daemon is stopping")

    async def _contain(self, socket_stream: trio.SocketStream) -> None:
        """Serve one connection and let no exception out: it would take all the others along."""
        try:
            address = peer(socket_stream.socket)
        except OSError:  # it has gone before we looked
            await trio.aclose_forcefully(socket_stream)
            return
        if is_among_last(socket_stream.socket, self._spare_descriptors):
            # To let it in for the other's place would have it keep one of the last descriptors.
            self._cut_a_stranger()
            await trio.aclose_forcefully(socket_stream)
            return
        stream = ClientStream(socket_stream, address, self._strangers, self.tls)
        with trio.CancelScope() as self._streams[stream]:
            try:
                await self._contain_stream(stream, socket_stream.socket)
            finally:
                del self._streams[stream]

    def _cut_a_stranger(self) -> None:
        """Make room for the next connection: end the oldest one that has not registered."""
        for stream, scope in self._streams.items():
            if not stream.is_admitted and not scope.cancel_called:
                scope.cancel("there are few descriptors left")
                return

    async def _contain_stream(
        self, stream: ClientStream, connected: trio.socket.SocketType
    ) -> None:
        patience = LINGER
        try:
            if not await self._serve(stream, connected):
                patience = 0
        except* (ConnectionClosed, ProtocolError, trio.BrokenResourceError) as group:
            log.debug("the connection from %s broke: %r", stream.address, group.exceptions)
        except* Exception:
            about = catalogue.CONNECTION_FAILED.about(address=stream.address)
            log.exception("the connection from %s failed", stream.address, extra=about)
        finally:
            await self._hang_up(stream, patience)

    async def _hang_up(self, stream: ClientStream, patience: float) -> None:
        if stream.is_admitted:
            await stream.hang_up(patience)
            return
        if len(self._lingering) >= MAX_LINGERING:
            oldest = next(iter(self._lingering))
            del self._lingering[oldest]
            oldest.cancel("too many are lingering")
        with trio.CancelScope() as scope:
            self._lingering[scope] = None
            try:
                await stream.hang_up(patience)
            finally:
                self._lingering.pop(scope, None)

    async def _serve(self, stream: ClientStream, connected: trio.socket.SocketType) -> bool:
        """Serve one connection; return whether the peer may still have to read why it is closed."""
        # trio-websocket's own task, which reads, lives here: what it raises ends this connection.
        async with trio.open_nursery() as nursery:
            timeout = trio.current_time() + HANDSHAKE_TIMEOUT
            with trio.CancelScope(deadline=min(timeout, self._handshakes_until)) as limit:
                if len(self._handshakes) >= MAX_HANDSHAKES:
                    # Not only cancelled: it takes some steps to end, and others come meanwhile.
                    longest = next(iter(self._handshakes))
                    del self._handshakes[longest]
                    longest.cancel("too many handshakes")
                self._handshakes[limit] = None
                try:
                    connection = await self._shake_hands(nursery, stream, connected, limit)
                finally:
                    self._handshakes.pop(limit, None)  # unless it was cut
            if not limit.cancelled_caught and connection is not None:
                await self._talk(connection)
            nursery.cancel_scope.cancel("the connection is closed")
        if limit.cancelled_caught:
            return False  # it was told nothing
        return connection is None or not connection.said_goodbye

    async def _introduce(self, stream: ClientStream, connected: trio.socket.SocketType) -> Proxies:
        """Have a trusted proxy's PROXY header say the address; return whose headers to believe.

        Raises:
            ProxyHeaderError: what it has sent is none, or it is not trusted and has sent one.
        """
        if not self.proxies.trusts(stream.address):
            if await begins_with_header(connected):
                raise ProxyHeaderError(
                    "it sends a PROXY header and is not in CLARA_TRUSTED_PROXIES"
                )
            return NO_PROXIES
        header = await read_header(connected)
        if header.source is not None:
            stream.address = header.source
        elif header.size:  # it passes on the words of somebody whom it does not name
            return NO_PROXIES
        return self.proxies

    async def _shake_hands(
        self,
        nursery: trio.Nursery,
        stream: ClientStream,
        connected: trio.socket.SocketType,
        limit: trio.CancelScope,
    ) -> Connection | None:
        """Return the connection, or `None` if there is to be none."""
        try:
            proxies = await self._introduce(stream, connected)
        except ProxyHeaderError as error:
            about = catalogue.ADAPTER_REFUSED.about(address=stream.address)
            # Of an address that is locked out it was said once.
            level = logging.DEBUG if self._admission.fails(stream.address) else logging.WARNING
            line = "refused a connection from %s: %s"
            log.log(level, line, stream.address, error, extra=about)
            await stream.send_all(bad_request(f"Refused {stream.address}: {error}."))
            return None
        # What is no request costs no more than reading it.
        head = await stream.receive_head()
        if stream.ended.is_set():
            return None
        if is_plain(head):
            await stream.send_all(upgrade_required())
            return None
        async with trio.open_nursery() as watch:
            watch.start_soon(_cancel_at_end, stream, limit)
            request = await wrap_server_stream(
                nursery,
                stream,
                max_message_size=self._max_first_frame,
            )
            headers = {
                name.decode("latin-1").lower(): value.decode(errors="replace")
                for name, value in request.headers
            }
            refusal: tuple[int, str] | None
            try:
                stream.address = proxies.client(stream.address, request.headers)
            except ForwardedError as error:
                refusal = HTTPStatus.BAD_REQUEST, f"{error}"
            else:
                refusal = await self._admission.refusal(headers, stream.address)
            if refusal is None:
                websocket = await request.accept()
            else:
                status, text = refusal
                about = catalogue.ADAPTER_REFUSED.about(address=stream.address, status=status)
                line = "refused a handshake from %s: %d %s"
                # Of an address that is locked out it was said once.
                level = logging.DEBUG if status == HTTPStatus.TOO_MANY_REQUESTS else logging.WARNING
                log.log(level, line, stream.address, status, text, extra=about)
                await request.reject(status, body=f"{text}\n".encode())
            watch.cancel_scope.cancel("the handshake is done")
        if refusal is not None:
            return None
        return self._make_connection(websocket, stream, bearer(headers))

    def close_token(self, token: str) -> int:
        """Close the connections whose nodes have shown this token; return how many they are."""
        closed = [connection for connection in self._connections if connection.token == token]
        _end_revoked(closed)
        return len(closed)

    def tokens_shown(self) -> set[str]:
        """Return the tokens that nodes have shown."""
        return {connection.shown for connection in self._connections if connection.shown}

    def close_shown(self, tokens: Collection[str]) -> None:
        """Close the connections whose nodes have shown one of these tokens."""
        _end_revoked(one for one in self._connections if one.shown in tokens)

    async def _talk(self, connection: Connection) -> None:
        if self._stopping:
            connection.end(CloseCode.STOPPING, "the daemon is stopping")
        elif len(self._connections) >= self.max_connections:
            # Nobody is to keep adapters out by connections that cost nothing but a handshake.
            strangers = (one for one in self._connections if one.is_stranger)
            surplus = next(strangers, connection)
            surplus.end(CloseCode.TOO_MANY_CONNECTIONS, "too many connections; try later")
        self._connections[connection] = None
        try:
            await connection.run()
        finally:
            del self._connections[connection]


def _end_revoked(connections: Iterable[Connection]) -> None:
    for connection in connections:
        connection.end(CloseCode.REFUSED, "the token was revoked")


async def _cancel_at_end(stream: ClientStream, scope: trio.CancelScope) -> None:
    await stream.ended.wait()
    scope.cancel("the peer has gone")
