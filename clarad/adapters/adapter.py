"""An adapter's node: messages out, answers in, over as many connections as it takes.

It runs under Trio and under asyncio. docs/writing-an-adapter.md shows its use.
"""

import logging
import math
import os
import random
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import msgspec
from anyio.abc import TaskGroup

from clarad import protocol
from clarad.adapters.errors import AuthError, GatewayError, UnansweredError
from clarad.adapters.session import Answer, Outcome, Session
from clarad.adapters.websocket import Lost, WebSocket, connect
from clarad.protocol import CAUSED_BY, Capability, CloseCode, ErrorCode

log = logging.getLogger(__name__)

CONNECT_TIMEOUT: Final = 10.0
"""Seconds for the gateway to answer the handshake, and again for the registration."""

CLOSE_TIMEOUT: Final = 2.0
"""Seconds that a close may take."""

PING_INTERVAL: Final = 30.0
"""Seconds between pings at most; each pause is a random part of it, at least half."""

PONG_TIMEOUT: Final = 10.0
"""Seconds for the gateway to answer a ping."""

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0
"""Seconds before a reconnect: exponential backoff, half of it random."""


class Adapter:
    """A node of the gateway; made by `open_adapter`."""

    def __init__(
        self,
        url: str,
        register: protocol.Register,
        on_stray: Callable[[Outcome], None],
        tls: ssl.SSLContext | None,
    ) -> None:
        self._url = url
        self._tls = tls
        self._register = register
        streaming = Capability.STREAMING in register.capabilities
        self._session = Session(on_stray, self._wake, self._schedule_retry, streaming=streaming)
        self._tasks: TaskGroup | None = None
        self._outgoing: deque[protocol.Inbound] = deque()
        self._wakeup = anyio.Event()
        self._connected = False
        self._closing = False
        self._unregister = False
        self.ready = anyio.Event()
        """Set once the first registration has succeeded."""
        self.closed = anyio.Event()
        """Set when `run` has ended."""
        self.failure: GatewayError | None = None
        """Why `run` has given up, if it has."""

    def ask(self, message: protocol.Message) -> Answer:
        """Send a message and return its answer. Never waits, even without a connection.

        The message is sent again on each connection until the gateway has accepted it, and it ends
        in exactly one outcome. The gateway keeps the outcome until the answer was read to its end.

        Raises:
            ValueError: a message with this ID has not ended, or this one is too large.
        """
        answer = self._session.ask(message)
        self._send(message)
        return answer

    def cancel(self, request_id: str, reason: str | None = None) -> bool:
        """Cancel a message: its answer ends soon. Returns `False` if it has already ended."""
        cancel = protocol.Cancel(request_id=request_id, reason=reason)
        if not self._session.cancel(cancel):
            return False
        self._send(cancel)
        return True

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection now; without one, frames wait for the next one."""
        return self._connected

    def _send(self, frame: protocol.Inbound) -> None:
        if self._connected:  # otherwise `Session.registered` returns it for the next connection
            self._outgoing.append(frame)
            self._wake()

    def _wake(self) -> None:
        self._wakeup.set()

    def _schedule_retry(self, request_id: str, seconds: float) -> None:
        """Retry a refused message on this connection; the next one would begin with it anyway."""
        assert self._tasks is not None  # the refusal has come over a connection
        self._tasks.start_soon(self._retry, request_id, seconds)

    async def _retry(self, request_id: str, seconds: float) -> None:
        # No earlier than the gateway asks for; the jitter spreads messages refused together.
        await anyio.sleep(seconds * random.uniform(1, 1.5))  # noqa: S311 - no secret
        if (message := self._session.retry(request_id)) is not None:
            self._send(message)

    # --- connections -----------------------------------------------------------------------------

    async def run(self, patience: float) -> None:
        """Stay connected until `close`, or until connecting is hopeless: `failure` then says why.

        `patience` is how long to try, in seconds, while the gateway does not answer. Unless it is
        infinite, the first connection is tried only once.
        """
        try:
            await self._keep_connected(patience)
        except GatewayError as error:
            self.failure = error
        finally:
            self.closed.set()

    async def _keep_connected(self, patience: float) -> None:
        failed, since, first = 0, 0.0, Lost("")
        while not self._closing:
            try:
                websocket, stream = await connect(self._url, CONNECT_TIMEOUT, self._tls)
                async with stream:
                    await self._register_node(websocket)
                    if failed:
                        log.warning("connected to %s again", self._url)
                    failed = 0
                    self.ready.set()
                    await self._exchange(websocket)
            except Lost as lost:
                # A second adapter of the same node_id would take the node back, and so on.
                if not failed:
                    since, first = anyio.current_time(), lost
                if lost.code == CloseCode.REPLACED:
                    raise GatewayError(
                        f"another adapter registered as {self._register.node_id!r} at "
                        f"{self._url}; give each a node_id of its own"
                    ) from None
                tried_for = anyio.current_time() - since
                if math.isfinite(patience) and (tried_for >= patience or not self.ready.is_set()):
                    raise self._give_up(first) from None
                if not failed:
                    log.warning("%s; trying again", lost)
                longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2**failed)
                failed = min(failed + 1, 10)
                await anyio.sleep(longest * random.uniform(0.5, 1))  # noqa: S311 - no secret

    def _give_up(self, lost: Lost) -> GatewayError:
        if not self._session.has_accepted:
            return GatewayError(str(lost))
        return UnansweredError(
            f"{lost}; it has accepted the message, and answers it after its next start"
        )

    async def _register_node(self, websocket: WebSocket) -> None:
        """Register, and queue every frame that the gateway may not have received."""
        session = self._session
        register = msgspec.structs.replace(
            self._register, session_id=session.session_id, last_seq=session.arrived
        )
        with anyio.move_on_after(CONNECT_TIMEOUT):
            await websocket.send(_text(register))
            registered = await self._read_registered(websocket)
            self._outgoing = deque(session.registered(registered))
            return
        raise Lost(f"{self._url} does not answer the registration")

    async def _read_registered(self, websocket: WebSocket) -> protocol.Registered:
        try:
            answer = protocol.decode_outbound(await websocket.receive())
        except msgspec.MsgspecError as error:
            raise Lost(f"{self._url} does not speak this protocol: {error}") from None
        match answer:
            case protocol.Registered():
                return answer
            case protocol.Error(code=code, message=message):
                text = f"{self._url} refuses: {message}"
                raise AuthError(text) if code is ErrorCode.AUTH_FAILED else Lost(text)
            case _:
                kind = type(answer).__name__
                raise Lost(f"{self._url} answered the registration with {kind}")

    async def _exchange(self, websocket: WebSocket) -> None:
        """Send and receive until the connection is lost, or `close` has closed it."""
        reasons: list[Lost] = []
        self._connected = True
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks

                async def until_lost(task: Callable[[WebSocket], Any]) -> None:
                    try:
                        await task(websocket)
                    except Lost as lost:
                        reasons.append(lost)
                    tasks.cancel_scope.cancel()

                for task in (self._read, self._write, self._heartbeat):
                    tasks.start_soon(until_lost, task)
        finally:
            self._connected = False
        if not self._closing:
            raise reasons[0]

    async def _read(self, websocket: WebSocket) -> None:
        while True:
            text = await websocket.receive()
            try:
                self._session.receive(text)
            except msgspec.DecodeError as error:
                raise Lost(f"{self._url} does not speak this protocol: {error}") from None

    async def _write(self, websocket: WebSocket) -> None:
        while True:
            texts = [_text(frame) for frame in self._outgoing]
            self._outgoing.clear()
            if (seq := self._session.due_ack()) is not None:
                texts.append(_text(protocol.Ack(seq=seq)))
            if texts:
                await websocket.send(*texts)
            elif self._closing:
                break
            else:
                self._wakeup = anyio.Event()
                await self._wakeup.wait()
        if self._unregister:  # the gateway answers with a close
            await websocket.send(_text(protocol.Unregister()))
        else:
            await websocket.close()
        await anyio.sleep_forever()  # the reader gets the gateway's close, and ends the connection

    async def _heartbeat(self, websocket: WebSocket) -> None:
        while True:
            await anyio.sleep(PING_INTERVAL * random.uniform(0.5, 1))  # noqa: S311 - no secret
            await websocket.ping()
            with anyio.move_on_after(PONG_TIMEOUT):
                await websocket.pong.wait()
                continue
            raise Lost(f"{self._url} answers no ping")

    async def close(self, unregister: bool) -> None:
        """Send what is queued, then close the connection, within `CLOSE_TIMEOUT`."""
        self._closing, self._unregister = True, unregister
        self._wake()
        if self._connected:
            with anyio.move_on_after(CLOSE_TIMEOUT):
                await self.closed.wait()


@asynccontextmanager
async def open_adapter(
    url: str,
    *,
    node_id: str,
    platform: str,
    secret: str | None = None,
    streaming: bool = True,
    capabilities: Sequence[str] = (),
    on_stray: Callable[[Outcome], None] = lambda _outcome: None,
    patience: float = math.inf,
    unregister: bool = False,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Adapter]:
    """Register a node at a gateway for the length of the block.

    `url` is `ws://` or `wss://` with a host and a port, or `ws+unix:` with a socket file's path.

    A lost connection is made again and its session resumed: nothing is lost, nothing comes twice.
    The gateway meanwhile goes on with the node's messages.

    Args:
        node_id: identifies this adapter; unique on its platform, and the same at each start.
        streaming: receive the text of answers as it is written, not only at the end.
        capabilities: more capabilities to ask for.
        on_stray: called with the outcomes of messages from an earlier process of this adapter.
        patience: seconds to go on trying while a gateway that has answered before does not; if
            infinite, also wait for the first connection.
        unregister: at the end, have the gateway cancel the node's messages and forget the node.
        tls: certificates to trust, if not the system's.

    Raises:
        AuthError: the gateway refuses the secret, or asks for one.
        GatewayError: another adapter has taken the `node_id`, or patience has ended.

    Exceptions of the block are raised unchanged, not in a group.
    """
    wanted = {Capability.ACCEPTED, Capability.RESUME, *capabilities}
    if streaming:
        wanted.add(Capability.STREAMING)
    register = protocol.Register(
        node_id=node_id,
        platform=platform,
        capabilities=sorted(wanted),
        secret=secret,
        # Set for the commands of hooks and tasks, so that the daemon notices loops.
        caused_by=os.environ.get(CAUSED_BY, "").split(),
    )
    adapter = Adapter(url, register, on_stray, tls)
    cancelled = anyio.get_cancelled_exc_class()
    raised: BaseException | None = None
    try:
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                await adapter.run(patience)
                if adapter.failure is not None:
                    tasks.cancel_scope.cancel()

            tasks.start_soon(run)
            await adapter.ready.wait()
            # Carry an exception of the block around the task group, which would wrap it in an
            # ExceptionGroup. A cancellation has to pass through the group, since it may be the
            # group's own. A mixed group is split: its cancellations pass, the rest waits for the
            # `finally`.
            try:
                yield adapter
                await adapter.close(unregister)
            except cancelled:
                raise
            except BaseExceptionGroup as group:
                ours, rest = group.split(cancelled)
                raised = group if ours is None else rest
                if ours is not None:
                    raise ours from None
            except BaseException as error:
                raised = error
            tasks.cancel_scope.cancel()
    finally:
        if raised is not None:
            raise raised
    if adapter.failure is not None:
        raise adapter.failure


def _text(frame: protocol.Inbound) -> str:
    return protocol.encode(frame).decode()
