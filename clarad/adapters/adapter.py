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
from clarad.adapters.errors import AuthError, GatewayError
from clarad.adapters.session import Answer, Outcome, Session
from clarad.adapters.websocket import Lost, WebSocket, connect
from clarad.protocol import CAUSED_BY, Capability, CloseCode, ErrorCode

log = logging.getLogger(__name__)

CONNECT_TIMEOUT: Final = 10.0
"""Seconds until the gateway has answered a handshake, and then the registration."""

CLOSE_TIMEOUT: Final = 2.0
"""Seconds that a good-bye may take."""

PING_INTERVAL: Final = 30.0
"""Seconds between pings at the most; each pause is between half of it and all of it."""

PONG_TIMEOUT: Final = 10.0
"""Seconds the gateway has to answer one."""

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0
"""Seconds before another connection: doubled with each that fails, and half of it random."""


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
        self._session = Session(on_stray, self._wake, self._send_later, streaming=streaming)
        self._tasks: TaskGroup | None = None
        self._outgoing: deque[protocol.Inbound] = deque()
        self._wakeup = anyio.Event()
        self._connected = False
        self._leaving = False
        self._unregister = False
        self.ready = anyio.Event()
        """Set once there was a connection."""
        self.over = anyio.Event()
        """Set when it has left, or given up."""
        self.failure: GatewayError | None = None
        """Why it gave up."""

    def ask(self, message: protocol.Message) -> Answer:
        """Send a message; the answer is what is returned. Never waits, also without a connection.

        The message is sent until the gateway has accepted it, over every connection, and ends in
        exactly one outcome. The gateway keeps an answer until it was taken to its end.

        Raises:
            ValueError: a message with this id is under way, or this one is too large.
        """
        answer = self._session.ask(message)
        self._send(message)
        return answer

    def cancel(self, request_id: str, reason: str | None = None) -> bool:
        """Have a message cancelled; its answer then ends soon. `False` if it has ended already."""
        cancel = protocol.Cancel(request_id=request_id, reason=reason)
        if not self._session.cancel(cancel):
            return False
        self._send(cancel)
        return True

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection now; without one, frames wait for the next."""
        return self._connected

    def _send(self, frame: protocol.Inbound) -> None:
        if self._connected:  # else it is sent when there is a connection
            self._outgoing.append(frame)
            self._wake()

    def _wake(self) -> None:
        self._wakeup.set()

    def _send_later(self, request_id: str, seconds: float) -> None:
        """Send a message again that was refused; a new connection begins with it anyway."""
        assert self._tasks is not None  # a frame has come
        self._tasks.start_soon(self._send_again, request_id, seconds)

    async def _send_again(self, request_id: str, seconds: float) -> None:
        # Not before; and not all at once, who were refused together.
        await anyio.sleep(seconds * random.uniform(1, 1.5))  # noqa: S311 - no secret
        if (message := self._session.again(request_id)) is not None:
            self._send(message)

    # --- connections -----------------------------------------------------------------------------

    async def run(self, patience: float) -> None:
        """Keep a connection until `leave`, or until there is no use in it: then `failure` says why.

        `patience` is how long to try, in seconds, while the gateway does not answer; a first
        connection is waited for only if that is infinite.
        """
        try:
            await self._keep_connected(patience)
        except GatewayError as error:
            self.failure = error
        finally:
            self.over.set()

    async def _keep_connected(self, patience: float) -> None:
        failed, since, first = 0, 0.0, Lost("")
        while not self._leaving:
            try:
                websocket, stream = await connect(self._url, CONNECT_TIMEOUT, self._tls)
                async with stream:
                    await self._introduce(websocket)
                    if failed:
                        log.warning("connected to %s again", self._url)
                    failed = 0
                    self.ready.set()
                    await self._talk(websocket)
            except Lost as lost:
                if not failed:
                    since, first = anyio.current_time(), lost
                if lost.code == CloseCode.REPLACED:
                    raise GatewayError(
                        f"another adapter registered as {self._register.node_id!r} at "
                        f"{self._url}; give each a node_id of its own"
                    ) from None
                tried_for = anyio.current_time() - since
                if math.isfinite(patience) and (tried_for >= patience or not self.ready.is_set()):
                    raise GatewayError(str(first)) from None
                if not failed:
                    log.warning("%s; trying again", lost)
                longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2**failed)
                failed = min(failed + 1, 10)
                await anyio.sleep(longest * random.uniform(0.5, 1))  # noqa: S311 - no secret

    async def _introduce(self, websocket: WebSocket) -> None:
        """Register, and have everything sent that the gateway may not know."""
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

    async def _talk(self, websocket: WebSocket) -> None:
        """Send and receive until the connection is lost, or it is time to leave."""
        reasons: list[Lost] = []
        self._connected = True
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks

                async def until_lost(talk: Callable[[WebSocket], Any]) -> None:
                    try:
                        await talk(websocket)
                    except Lost as lost:
                        reasons.append(lost)
                    tasks.cancel_scope.cancel()

                for talk in (self._read, self._write, self._beat):
                    tasks.start_soon(until_lost, talk)
        finally:
            self._connected = False
        if not self._leaving:
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
            elif self._leaving:
                break
            else:
                self._wakeup = anyio.Event()
                await self._wakeup.wait()
        if self._unregister:  # the gateway closes in answer
            await websocket.send(_text(protocol.Unregister()))
        else:
            await websocket.close()
        await anyio.sleep_forever()  # the reader sees the end

    async def _beat(self, websocket: WebSocket) -> None:
        while True:
            await anyio.sleep(PING_INTERVAL * random.uniform(0.5, 1))  # noqa: S311 - no secret
            await websocket.ping()
            with anyio.move_on_after(PONG_TIMEOUT):
                await websocket.pong.wait()
                continue
            raise Lost(f"{self._url} answers no ping")

    async def leave(self, unregister: bool) -> None:
        """Say what is still to be said, and close the connection."""
        self._leaving, self._unregister = True, unregister
        self._wake()
        if self._connected:
            with anyio.move_on_after(CLOSE_TIMEOUT):
                await self.over.wait()


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
    """Be a node of the gateway at this address, for the length of the block.

    It is `ws://` or `wss://`, a host and a port, or `ws+unix:` and the path of a socket file.

    The connection is made anew when it is lost, the session is resumed, and nothing is lost or
    comes twice. What the gateway does meanwhile goes on.

    Args:
        node_id: which adapter this is; the same each time that it is started, and nobody else's.
        streaming: whether to be sent the answer's text as it comes, and not only at its end.
        capabilities: others than those that this class sees to.
        on_stray: called with the answers to messages of an earlier process of this adapter.
        patience: seconds to go on for while the gateway does not answer, once it did; if they are
            infinite, it is waited for in the first place, too.
        unregister: at the end, have the gateway cancel and forget what there is of this node.
        tls: which certificates to trust, if not those of the system.

    Raises:
        AuthError: the gateway refuses the secret, or asks for one.
        GatewayError: another adapter has taken the `node_id`, or patience has ended.

    What the block raises is raised as it is.
    """
    wanted = {Capability.ACCEPTED, Capability.RESUME, *capabilities}
    if streaming:
        wanted.add(Capability.STREAMING)
    register = protocol.Register(
        node_id=node_id,
        platform=platform,
        capabilities=sorted(wanted),
        secret=secret,
        # Set in what a hook or a task runs: so the daemon knows a loop.
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
            # What the block raises goes around the task group, which would wrap it. A cancellation
            # goes through it, since it may be the group's own; from a group of exceptions the
            # block's other ones are kept for the end.
            try:
                yield adapter
                await adapter.leave(unregister)
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
