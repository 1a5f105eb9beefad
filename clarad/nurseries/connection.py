"""One adapter's connection: a nursery with its reader, its writer and its heartbeat."""

import logging
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

import trio
from msgspec import Struct
from trio_websocket import ConnectionClosed, WebSocketConnection

from clarad import protocol
from clarad.delivery.node import Node
from clarad.delivery.redelivery import Redelivery
from clarad.delivery.registry import Nodes
from clarad.events import Bus, EventType
from clarad.limits.memory import MemoryBudget
from clarad.protocol import MAX_FRAME_BYTES, Capability, CloseCode, ErrorCode
from clarad.store import Causes, StoreError
from clarad.systemd import catalogue
from clarad.transport.auth import Authenticator
from clarad.transport.sender import Sender
from clarad.transport.stream import ClientStream

log = logging.getLogger(__name__)

REGISTER_TIMEOUT: Final = 10.0
"""Seconds a connection has to register."""

PING_INTERVAL: Final = 30.0
"""Seconds between the gateway's WebSocket pings."""

PONG_TIMEOUT: Final = 10.0
"""Seconds a peer has to answer one."""


class MessageHandler(Protocol):
    """Handles the frames about messages: `Turns`. Only `apply_backpressure` waits."""

    def submit(self, node: Node, message: protocol.Message, text: str) -> None:
        """Admit or refuse a message; the answer goes to the node."""

    async def apply_backpressure(self, node: Node) -> None:
        """Wait for a moment if the node sends faster than the store can commit."""

    def cancel(self, node: Node, cancel: protocol.Cancel) -> None:
        """Cancel a message of this node."""

    def status(self, node: Node) -> protocol.Status:
        """Return how many of this node's messages run and wait."""

    def abandon(self, node: Node) -> None:
        """Cancel all messages of a node that has unregistered."""


class Connection:
    """A WebSocket connection after its handshake."""

    def __init__(
        self,
        websocket: WebSocketConnection,
        stream: ClientStream,
        credential: str | None,
        *,
        authenticator: Authenticator,
        nodes: Nodes,
        redelivery: Redelivery,
        causes: Causes,
        handler: MessageHandler,
        bus: Bus,
        outboxes: MemoryBudget,
        receiving: MemoryBudget,
    ) -> None:
        """`credential` is the secret or token that the handshake has presented, if any."""
        self._websocket = websocket
        self._stream = stream
        self._address = stream.address
        self._credential = credential
        self._authenticator = authenticator
        self.token_name: str | None = None
        self.token: str | None = None
        self._nodes = nodes
        self._redelivery = redelivery
        self._causes = causes
        self._handler = handler
        self._bus = bus
        self._sender = Sender(websocket, stream, outboxes)
        stream.start_frames(self.end, receiving)
        self._nursery: trio.Nursery | None = None
        self.node: Node | None = None

    def send(self, frame: bytes) -> None:
        """Queue a frame; if the peer does not keep up the connection ends with 4008."""
        self._sender.send(frame)

    def when_written(self, then: Callable[[], None]) -> None:
        """Call `then` once everything queued is written; never, if the connection is lost."""
        self._sender.when_written(then)

    def fetch_missed(self) -> None:
        """Fetch what other daemons have stored for the node, and send it."""
        nursery = self._nursery
        # Other tasks call this. Whatever ends the connection cancels its nursery before it closes,
        # and a closed one lets nobody in: the node's next connection fetches what it has missed.
        if self.node is not None and nursery and not nursery.cancel_scope.cancel_called:
            nursery.start_soon(self._redelivery.fetch_missed, self.node, self)

    def replace(self) -> None:
        """Close with 4000: the node has another connection, and this one's queue is dropped."""
        self._sender.replace()

    def end(self, code: CloseCode, reason: str) -> None:
        """Close, after writing what is queued, within `CLOSE_TIMEOUT`. The first call counts."""
        self._sender.end(code, reason)

    @property
    def closed_cleanly(self) -> bool:
        """Whether the closing handshake was held, as far as trio-websocket lets us know."""
        return self._sender.closed_cleanly

    @property
    def is_unauthenticated(self) -> bool:
        """Whether it has not registered, and is not about to be closed either."""
        return self.node is None and self._sender.closing is None

    async def run(self) -> None:
        """Serve until either side closes. Cancelling drops the connection without a close frame."""
        try:
            with self._sender.scope:
                async with trio.open_nursery() as self._nursery:
                    nursery = self._nursery
                    nursery.start_soon(self._sender.run, nursery.cancel_scope)
                    nursery.start_soon(self._heartbeat)
                    await self._read()
                    # If the close is ours, the writer is still waiting for the peer's answer to it.
                    if self._sender.closing is None:
                        nursery.cancel_scope.cancel("the peer has closed")
        finally:
            self._sender.discard()
            self._stream.release_received()
            if self.node is not None:
                self._disconnect(self.node)

    # --- the three tasks -------------------------------------------------------------------------

    async def _heartbeat(self) -> None:
        """Close if the peer does not register in time, then ping it until it is gone."""
        await trio.sleep(REGISTER_TIMEOUT)
        if self.node is None:
            self.end(CloseCode.REFUSED, "no register within 10 s")
        await trio.sleep(PING_INTERVAL - REGISTER_TIMEOUT)
        while True:
            with trio.move_on_after(PONG_TIMEOUT) as limit:
                try:
                    await self._websocket.ping()
                except ConnectionClosed:
                    return
            if limit.cancelled_caught:
                self.end(CloseCode.HEARTBEAT_LOST, "no pong within 10 s")
                return
            await trio.sleep(PING_INTERVAL)

    async def _read(self) -> None:
        """Handle frames as they arrive, without waiting for the work that they cause.

        Backpressure: a node with `MAX_UNCOMMITTED` messages on their way to the store is not read
        from for a moment.
        """
        try:
            while True:
                text = await self._websocket.get_message()
                self._stream.release_received()
                if self._sender.closing is None:
                    await self._handle_frame(text)
        except ConnectionClosed:
            return

    # --- frames ----------------------------------------------------------------------------------

    async def _handle_frame(self, text: str | bytes) -> None:
        try:
            if isinstance(text, bytes):
                raise protocol.Refused(
                    ErrorCode.INVALID_MESSAGE, "Frames are text; this one was binary."
                )
            frame = self._decode(text)
            if self.node is None:
                await self._register(frame)
            else:
                self._dispatch(self.node, frame, text)
                await self._handler.apply_backpressure(self.node)
        except protocol.Refused as refused:
            self._reply(refused.error)

    def _decode(self, text: str) -> protocol.Inbound:
        # trio-websocket counts characters, and one of them can be four bytes.
        if len(text) > MAX_FRAME_BYTES // 4 and len(text.encode()) > MAX_FRAME_BYTES:
            raise protocol.Refused(
                ErrorCode.TOO_LARGE,
                f"A frame may have {MAX_FRAME_BYTES} bytes; send less, or in several messages.",
            )
        return protocol.decode(text)

    def _dispatch(self, node: Node, frame: protocol.Inbound, text: str) -> None:
        match frame:
            case protocol.Message():
                self._handler.submit(node, frame, text)
            case protocol.Cancel():
                self._handler.cancel(node, frame)
            case protocol.Ping():
                self._reply(protocol.Pong(timestamp=_now()))
            case protocol.StatusRequest():
                self._reply(self._handler.status(node))
            case protocol.Unregister():
                self._nodes.forget(node)
                self._redelivery.forget(node)
                self._authenticator.free(node.platform, node.id)
                self._handler.abandon(node)
                self.end(CloseCode.UNREGISTERED, "unregistered")
            case protocol.Register():
                raise protocol.Refused(
                    ErrorCode.ALREADY_REGISTERED,
                    "This connection is registered; open another one for another node.",
                )
            case protocol.Ack():
                self._redelivery.ack(node, frame.seq)

    async def _register(self, frame: protocol.Inbound) -> None:
        if not isinstance(frame, protocol.Register):
            raise protocol.Refused(
                ErrorCode.NOT_REGISTERED, 'Send "register" first, with node_id and platform.'
            )
        try:
            self.token_name = await self._authenticator.authenticate(
                frame, self._address, self._credential
            )
        except protocol.Refused as refused:
            error = refused.error
            about = catalogue.ADAPTER_REFUSED.about(node_id=frame.node_id, address=self._address)
            text = "refused node %r from %s: %s"
            # A lockout of the address was logged once already.
            level = logging.DEBUG if error.code is ErrorCode.RATE_LIMITED else logging.WARNING
            log.log(level, text, frame.node_id, self._address, error.message, extra=about)
            self._reply(error)
            if not error.recoverable:
                self.end(CloseCode.REFUSED, "authentication failed")
            return
        if self.token_name is not None:
            self.token = self._credential or frame.secret
        if self._sender.closing is None:
            await self._adopt_node(frame)

    async def _adopt_node(self, frame: protocol.Register) -> None:
        """Register a node that another daemon may have had."""
        resumes = Capability.RESUME in frame.capabilities
        try:
            caused_by = await self._causes.confirm(frame.caused_by)
            held = await self._redelivery.adopt(
                self._nodes, frame.node_id, frame.platform, resumes=resumes
            )
        except StoreError as error:
            about = catalogue.STORE_FAILED.about(node_id=frame.node_id)
            log.error("node %r cannot register: %s", frame.node_id, error, extra=about)
            why = "The store failed; connect again later."
            self._reply(
                protocol.Error(code=ErrorCode.PROCESSING_ERROR, message=why, recoverable=True)
            )
            self.end(CloseCode.TOO_MANY_CONNECTIONS, "try again later")
            return
        if self._sender.closing is None:
            self._connect(frame, caused_by)
            assert held is None or held is self.node

    def _connect(self, frame: protocol.Register, caused_by: Sequence[str]) -> None:
        node, arrived = self._nodes.connect(
            frame.node_id,
            frame.platform,
            frozenset(frame.capabilities),
            self,
            caused_by,
            frame.session_id,
            frame.last_seq,
        )
        self.node = node
        self._stream.admit()
        self._websocket._max_message_size = MAX_FRAME_BYTES  # there is no public name for it
        self._reply(
            protocol.Registered(
                node_id=node.id,
                session_id=node.session_id,
                server_time=_now(),
                adapter_token=secrets.token_urlsafe(32),
                resumed=arrived is not None,
            )
        )
        self._redelivery.connected(node, arrived)
        assert self._nursery is not None
        self._nursery.start_soon(self._redelivery.catch_up, node, self, arrived)
        self._bus.publish(
            EventType.ADAPTER_CONNECTED,
            node_id=node.id,
            platform=node.platform,
            caused_by=node.caused_by,
            data={"address": self._address, "capabilities": sorted(frame.capabilities)},
        )

    def _disconnect(self, node: Node) -> None:
        if self._nodes.disconnect(node, self):
            self._redelivery.disconnected(node)
        code: int | None = None
        reason: str | None = None
        if self._sender.closing is not None:
            code, reason = self._sender.closing
        elif (closed := self._websocket.closed) is not None:
            code, reason = closed.code, closed.reason
        self._bus.publish(
            EventType.ADAPTER_DISCONNECTED,
            node_id=node.id,
            platform=node.platform,
            caused_by=node.caused_by,
            data={"code": None if code is None else int(code), "reason": reason},
        )

    def _reply(self, frame: Struct) -> None:
        self.send(protocol.encode(frame))


def _now() -> str:
    return datetime.now(UTC).isoformat()
