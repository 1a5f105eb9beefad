"""The gateway: accepts connections at one endpoint, and serves each in its own scope."""

import logging
import math
import ssl
from collections.abc import Callable, Collection, Iterable
from typing import Final, Generic, Protocol, TypeVar

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection
from wsproto.utilities import ProtocolError

from clarad.config.proxies import NO_PROXIES, Proxies
from clarad.protocol import MAX_FRAME_BYTES, CloseCode
from clarad.systemd import catalogue
from clarad.transport.auth import Authenticator
from clarad.transport.handshake import shake_hands
from clarad.transport.listeners import Endpoint, is_near_fd_limit, peer_address
from clarad.transport.stream import ClientStream
from clarad.transport.unauthenticated import LiveListener, UnauthenticatedPeers

log = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT: Final = 10.0
"""Seconds from the TCP connection to the end of the WebSocket handshake."""

STOP_HANDSHAKE_TIMEOUT: Final = 1.0
"""Seconds that a handshake may still take once the daemon stops."""

MAX_HANDSHAKES: Final = 1024
"""Handshakes at once; one more evicts the oldest. Real ones take milliseconds."""

SPARE_DESCRIPTORS: Final = 256
"""File descriptors that connections leave to the store, to commands and to operators."""

LINGER: Final = 2.0
"""Seconds for which a closed connection is still read, so that the peer can read why it closed."""

MAX_LINGERING: Final = 64
"""Unauthenticated peers that linger at once; one more evicts the oldest."""


class Connection(Protocol):
    """An adapter's connection, or an operator's, after the handshake."""

    @property
    def closed_cleanly(self) -> bool:
        """Whether the closing handshake has been completed."""

    @property
    def token_name(self) -> str | None:
        """The name of the token that was presented, if one was."""

    @property
    def token(self) -> str | None:
        """The token itself."""

    @property
    def is_unauthenticated(self) -> bool:
        """Whether no node has been registered on it, and it is not closing."""

    def end(self, code: CloseCode, reason: str) -> None:
        """Begin to close."""

    async def run(self) -> None:
        """Serve until either side has closed."""


MakeConnection = Callable[[WebSocketConnection, ClientStream, str | None], Connection]


Address = TypeVar("Address")


class Gateway(Generic[Address]):
    """Listens at one endpoint; no failure of one connection reaches another.

    `make_connection` is called after each handshake, with the WebSocket, its stream, and the secret
    or token that the handshake presented, if any.
    """

    def __init__(
        self,
        endpoint: Endpoint[Address],
        *,
        authenticator: Authenticator,
        max_connections: int,
        make_connection: MakeConnection,
        max_first_frame: int = MAX_FRAME_BYTES,
        tls: ssl.SSLContext | None = None,
        proxies: Proxies = NO_PROXIES,
        spare_descriptors: int = SPARE_DESCRIPTORS,
    ) -> None:
        """`tls`, `proxies` (which are trusted) and `max_connections` may be replaced at any time.

        `max_first_frame` is in characters, and holds until the connection raises it. No connection
        gets one of the last `spare_descriptors` file descriptors.
        """
        self._endpoint = endpoint
        self._authenticator = authenticator
        self.tls = tls
        self.proxies = proxies
        self.max_connections = max_connections
        self._make_connection = make_connection
        self._max_first_frame = max_first_frame
        self._listening = trio.CancelScope()
        self._stopping = False
        # Dictionaries, since sets do not keep the order of arrival: the oldest is evicted first.
        self._connections: dict[Connection, None] = {}
        self._streams: dict[ClientStream, trio.CancelScope] = {}
        self._handshakes: dict[trio.CancelScope, None] = {}
        self._lingering: dict[trio.CancelScope, None] = {}
        self._handshake_deadline = math.inf
        self._unauthenticated = UnauthenticatedPeers()
        self._spare_descriptors = spare_descriptors
        self._listeners: list[trio.SocketListener] = []
        self._probe = trio.CancelScope()
        self._accepted = trio.Event()

    async def run(self, task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until `stop_listening` is called and the last connection has ended.

        `started` is called with the bound address, once connections are accepted. Cancelling drops
        all connections.

        Raises:
            CannotListen: the port is taken, the address is not ours, …
        """
        self._listeners = await self._endpoint.open()
        self._listening = trio.CancelScope()
        if self._stopping:
            self._listening.cancel("stopping")
        # The handlers' nursery is around the listeners': connections outlive the listening.
        async with trio.open_nursery() as handlers:
            try:
                with self._listening:
                    task_status.started(self._endpoint.address)
                    listeners = [LiveListener(one, self._on_accept) for one in self._listeners]
                    await trio.serve_listeners(self._handle, listeners, handler_nursery=handlers)
            finally:
                self._endpoint.close()

    def stop_listening(self) -> None:
        """Accept no more connections; those that are open stay open."""
        self._stopping = True
        self._listening.cancel("stopping")
        self._probe.cancel("stopping")

    async def progress(self) -> None:
        """Wait until a connection has been accepted: one of our own, unless another comes first.

        Returns at once after `stop_listening`, and if the connection cannot be made: the supervisor
        is then starting the gateway anew, or there are no descriptors left, and restarting the
        daemon would help with neither.
        """
        if self._stopping:
            return
        self._accepted = trio.Event()
        with trio.CancelScope() as self._probe:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._connect_to_ourselves)
                await self._accepted.wait()
                nursery.cancel_scope.cancel("a connection was accepted")

    def _on_accept(self) -> None:
        self._accepted.set()

    async def _connect_to_ourselves(self) -> None:
        """Connect, and stay connected until cancelled; the handshake then ends at our EOF."""
        try:
            name = self._listeners[0].socket.getsockname()
            with trio.socket.socket(self._listeners[0].socket.family) as ours:
                await ours.connect(name)
                await trio.sleep_forever()
        except OSError as error:
            log.debug("the gateway cannot connect to itself: %s", error)
            self._accepted.set()

    def close_all(self) -> None:
        """Close every connection with 1001, after what is queued for it.

        Every handshake has `STOP_HANDSHAKE_TIMEOUT` to end, also one whose task has not started:
        the listener has given the connection away, so no other daemon could answer the peer.
        """
        self._handshake_deadline = trio.current_time() + STOP_HANDSHAKE_TIMEOUT
        for scope in self._handshakes:
            scope.deadline = min(scope.deadline, self._handshake_deadline)
        for connection in self._connections:
            connection.end(CloseCode.STOPPING, "the daemon is stopping")

    def close_token(self, name: str) -> int:
        """Close the connections that presented the token of this name; return how many."""
        matching = [one for one in self._connections if one.token_name == name]
        _end_revoked(matching)
        return len(matching)

    def tokens(self) -> set[str]:
        """Return the tokens that open connections have presented."""
        return {connection.token for connection in self._connections if connection.token}

    def close_tokens(self, tokens: Collection[str]) -> None:
        """Close the connections that presented one of these tokens."""
        _end_revoked(one for one in self._connections if one.token in tokens)

    # --- one connection, from the outside to the inside ------------------------------------------

    async def _handle(self, socket_stream: trio.SocketStream) -> None:
        """Serve one accepted connection. Raises no `Exception`: it would cancel all the others."""
        try:
            address = peer_address(socket_stream.socket)
        except OSError:  # the peer has gone
            await trio.aclose_forcefully(socket_stream)
            return
        if is_near_fd_limit(socket_stream.socket, self._spare_descriptors):
            # Close this one, too: if it took the place of the evicted one, it would still hold one
            # of the last descriptors.
            self._evict_unauthenticated()
            await trio.aclose_forcefully(socket_stream)
            return
        stream = ClientStream(socket_stream, address, self._unauthenticated, self.tls)
        with trio.CancelScope() as self._streams[stream]:
            try:
                await self._contain(stream, socket_stream.socket)
            finally:
                del self._streams[stream]

    def _evict_unauthenticated(self) -> None:
        """End the oldest connection that has not registered, so that the next has a descriptor."""
        for stream, scope in self._streams.items():
            if not stream.is_admitted and not scope.cancel_called:
                scope.cancel("there are few descriptors left")
                return

    async def _contain(self, stream: ClientStream, connected: trio.socket.SocketType) -> None:
        linger = LINGER
        try:
            if not await self._serve(stream, connected):
                linger = 0
        except* (ConnectionClosed, ProtocolError, trio.BrokenResourceError) as group:
            log.debug("the connection from %s broke: %r", stream.address, group.exceptions)
        except* Exception:
            about = catalogue.CONNECTION_FAILED.about(address=stream.address)
            log.exception("the connection from %s failed", stream.address, extra=about)
        finally:
            await self._close(stream, linger)

    async def _close(self, stream: ClientStream, linger: float) -> None:
        if stream.is_admitted:
            await stream.lingering_close(linger)
            return
        if len(self._lingering) >= MAX_LINGERING:
            oldest = next(iter(self._lingering))
            del self._lingering[oldest]
            oldest.cancel("too many are lingering")
        with trio.CancelScope() as scope:
            self._lingering[scope] = None
            try:
                await stream.lingering_close(linger)
            finally:
                self._lingering.pop(scope, None)

    async def _serve(self, stream: ClientStream, connected: trio.socket.SocketType) -> bool:
        """Serve one connection; return whether the peer may not have read yet why it is closed."""
        # trio-websocket's reader task lives in this nursery, so its failures end only this
        # connection.
        async with trio.open_nursery() as nursery:
            timeout = trio.current_time() + HANDSHAKE_TIMEOUT
            with trio.CancelScope(deadline=min(timeout, self._handshake_deadline)) as scope:
                connection = await self._shake_hands(stream, connected, scope, nursery)
            if not scope.cancelled_caught and connection is not None:
                await self._run_connection(connection)
            nursery.cancel_scope.cancel("the connection is closed")
        if scope.cancelled_caught:
            return False  # nothing was sent
        return connection is None or not connection.closed_cleanly

    async def _shake_hands(
        self,
        stream: ClientStream,
        connected: trio.socket.SocketType,
        scope: trio.CancelScope,
        nursery: trio.Nursery,
    ) -> Connection | None:
        """Return the connection; `None` if the handshake was refused."""
        if len(self._handshakes) >= MAX_HANDSHAKES:
            # Delete it here, not when its task ends some steps later: more may arrive before that.
            oldest = next(iter(self._handshakes))
            del self._handshakes[oldest]
            oldest.cancel("too many handshakes")
        self._handshakes[scope] = None
        try:
            accepted = await shake_hands(
                stream,
                connected,
                scope,
                nursery,
                authenticator=self._authenticator,
                proxies=self.proxies,
                max_first_frame=self._max_first_frame,
            )
        finally:
            self._handshakes.pop(scope, None)  # it may have been evicted
        if accepted is None:
            return None
        websocket, credential = accepted
        return self._make_connection(websocket, stream, credential)

    async def _run_connection(self, connection: Connection) -> None:
        if self._stopping:
            connection.end(CloseCode.STOPPING, "the daemon is stopping")
        elif len(self._connections) >= self.max_connections:
            # Evict an unauthenticated peer first: a handshake alone must not keep adapters out.
            unauthenticated = (one for one in self._connections if one.is_unauthenticated)
            surplus = next(unauthenticated, connection)
            surplus.end(CloseCode.TOO_MANY_CONNECTIONS, "too many connections; try later")
        self._connections[connection] = None
        try:
            await connection.run()
        finally:
            del self._connections[connection]


def _end_revoked(connections: Iterable[Connection]) -> None:
    for connection in connections:
        connection.end(CloseCode.REFUSED, "the token was revoked")
