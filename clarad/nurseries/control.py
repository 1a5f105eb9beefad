"""One operator's connection to the control socket: its reader, its writer, and a task a request."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Literal, Protocol

import msgspec
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection

from clarad import protocol
from clarad.limits.memory import MemoryBudget
from clarad.protocol import CloseCode, ErrorCode, control
from clarad.protocol.control import Report
from clarad.systemd import catalogue
from clarad.transport.sender import Sender
from clarad.transport.stream import ClientStream

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 64
"""Connections to the control socket."""

MAX_REQUESTS: Final = 64
"""Requests of one connection that are under way."""

OUTPUT_PAUSE: Final = 0.02
"""Seconds between two frames of a command's output; what it writes in between is in one frame."""

OnStarted = Callable[[str], None]
OnText = Callable[[str, str], None]


class Operations(Protocol):
    """What an operator can ask for: the daemon.

    Each raises `operator.Refused` if it is not to be done. Cancelling one ends only the waiting: a
    run that has been started goes on, since it belongs to whoever runs it, and not to who asked.
    What `sandbox_exec` runs is nobody else's, and ends.
    """

    async def reload(self) -> Report:
        """Read the configuration again, and wait until it is in force or refused."""

    async def status(self) -> Report:
        """Say how things are, if the database does its work."""

    async def overview(self, of: Literal["hooks", "tasks"]) -> Report:
        """Say which hooks or tasks run, and what a reload would change of them."""

    async def run_task(self, name: str, caused_by: Sequence[str], started: OnStarted) -> Report:
        """Run a task now and wait for its end; `started` is told the run's id."""

    async def pause_task(self, name: str) -> Report:
        """Do not run a task by the clock until it is resumed."""

    async def resume_task(self, name: str) -> Report:
        """Run a paused task by the clock again."""

    async def replay_run(self, run: str, caused_by: Sequence[str], started: OnStarted) -> Report:
        """Run again what an earlier run did and wait for its end, as `run_task` does."""

    def sandbox_status(self) -> Report:
        """Say which sandboxes there are."""

    async def sandbox_exec(self, owner: str, argv: Sequence[str], say: OnText) -> Report:
        """Run a command in an owner's sandbox, and pass on what it writes; cancelling kills it."""

    async def sandbox_reset(self, owner: str) -> Report:
        """End an owner's sandbox, with its files."""

    async def sandbox_prune(self) -> Report:
        """Remove sandboxes that were left behind."""

    async def close_token(self, token: str) -> Report:
        """Close the connections of a token that was revoked."""


class Gathered:
    """What a command has written to each stream since it was passed on last.

    A frame for each write was rejected: a command that writes single bytes fills any outbox.
    """

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {}
        self._changed = trio.Event()
        self.is_whole = False

    def add(self, stream: str, text: str) -> None:
        """Take what a command has written."""
        self._texts.setdefault(stream, []).append(text)
        self._changed.set()

    def close(self) -> None:
        """Nothing more will come."""
        self.is_whole = True
        self._changed.set()

    def take(self) -> dict[str, str]:
        """Return what has come for each stream."""
        texts, self._texts = self._texts, {}
        self._changed = trio.Event()
        return {stream: "".join(parts) for stream, parts in texts.items()}

    async def wait(self) -> None:
        """Wait until something has come, or nothing more will."""
        if not self.is_whole:
            await self._changed.wait()


class OperatorConnection:
    """A WebSocket connection to the control socket, after its handshake.

    There is no heartbeat: the peer is on this machine, and the kernel says when it has gone.
    """

    def __init__(
        self,
        websocket: WebSocketConnection,
        stream: ClientStream,
        _shown: str | None,
        *,
        operations: Operations,
        outboxes: MemoryBudget,
    ) -> None:
        """Whoever could connect is trusted: the socket's mode is the door."""
        self._websocket = websocket
        self._address = stream.address
        self._operations = operations
        self._sender = Sender(websocket, stream, outboxes)
        stream.admit()
        stream.watch(self.end)
        self._under_way: set[str] = set()
        self.token: str | None = None
        self.shown: str | None = None
        self.is_stranger = False

    def end(self, code: CloseCode, reason: str) -> None:
        """Close, after writing what is queued, within `CLOSE_TIMEOUT`. The first call counts."""
        self._sender.end(code, reason)

    @property
    def said_goodbye(self) -> bool:
        """Whether the closing handshake was held, as far as trio-websocket lets us know."""
        return self._sender.said_goodbye

    async def run(self) -> None:
        """Serve until either side closes; who waits for an outcome then waits no more."""
        try:
            with self._sender.limit:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._sender.write, nursery.cancel_scope)
                    await self._read(nursery)
                    # If the close is ours, the writer is still waiting for the peer's answer to it.
                    if self._sender.closing is None:
                        nursery.cancel_scope.cancel("the peer has closed")
        finally:
            self._sender.give_up()

    async def _read(self, requests: trio.Nursery) -> None:
        """Take requests as they come; each is carried out in a task of its own."""
        try:
            while True:
                text = await self._websocket.get_message()
                if self._sender.closing is None:
                    self._take(text, requests)
        except ConnectionClosed:
            return

    def _take(self, text: str | bytes, requests: trio.Nursery) -> None:
        try:
            request = self._decode(text)
        except protocol.Refused as refused:
            self._send(protocol.encode(refused.error))
            return
        if len(self._under_way) >= MAX_REQUESTS:
            problem = f"{MAX_REQUESTS} requests are under way; wait until one of them has ended"
            self._send(protocol.encode(control.Refusal(request.id, [problem])))
            return
        # A health check asks twice a minute, for ever.
        level = logging.DEBUG if isinstance(request, control.Status) else logging.INFO
        log.log(level, "%s asks: %.1000r", self._address, request)
        self._under_way.add(request.id)
        requests.start_soon(self._answer, request, requests)

    def _decode(self, text: str | bytes) -> control.Request:
        if isinstance(text, bytes):
            raise protocol.Refused(
                ErrorCode.INVALID_MESSAGE, "Frames are text; this one was binary."
            )
        request = control.decode(text)
        if request.id in self._under_way:
            raise protocol.Refused(
                ErrorCode.INVALID_MESSAGE,
                "A request with this id is under way; take another id.",
                request.id,
            )
        return request

    async def _answer(self, request: control.Request, requests: trio.Nursery) -> None:
        """Carry out a request and answer it, whatever happens."""
        try:
            frame = protocol.encode(await self._carry_out(request, requests))
        except Exception:
            text = "what %s asked for failed; this is a bug: %r"
            about = catalogue.INTERNAL_ERROR.about()
            log.exception(text, self._address, request, extra=about)
            problems = ["this failed inside the daemon; its log says why"]
            frame = protocol.encode(control.Refusal(request.id, problems))
        finally:
            self._under_way.discard(request.id)
        self._send(frame)

    async def _carry_out(
        self, request: control.Request, requests: trio.Nursery
    ) -> control.Done | control.Refusal:
        try:
            outcome = await self._perform(request, requests)
        except control.Refused as refused:
            return control.Refusal(request.id, refused.problems)
        return control.Done(request.id, **msgspec.structs.asdict(outcome))

    async def _perform(self, request: control.Request, requests: trio.Nursery) -> Report:
        started = partial(self._started, request.id)
        match request:
            case control.Reload():
                return await self._operations.reload()
            case control.Status():
                return await self._operations.status()
            case control.Overview():
                return await self._operations.overview(request.of)
            case control.RunTask():
                return await self._operations.run_task(request.task, request.caused_by, started)
            case control.PauseTask():
                return await self._operations.pause_task(request.task)
            case control.ResumeTask():
                return await self._operations.resume_task(request.task)
            case control.ReplayRun():
                return await self._operations.replay_run(request.run, request.caused_by, started)
            case control.SandboxStatus():
                return self._operations.sandbox_status()
            case control.SandboxExec():
                return await self._execute(request, requests)
            case control.SandboxReset():
                return await self._operations.sandbox_reset(request.owner)
            case control.SandboxPrune():
                return await self._operations.sandbox_prune()
            case control.CloseToken():
                return await self._operations.close_token(request.token)

    async def _execute(self, request: control.SandboxExec, requests: trio.Nursery) -> Report:
        output = Gathered()
        requests.start_soon(self._pass_on, request.id, output)
        try:
            return await self._operations.sandbox_exec(request.owner, request.argv, output.add)
        finally:
            output.close()
            self._say(request.id, output)

    async def _pass_on(self, request_id: str, output: Gathered) -> None:
        while not output.is_whole:
            await output.wait()
            self._say(request_id, output)
            await trio.sleep(OUTPUT_PAUSE)

    def _say(self, request_id: str, output: Gathered) -> None:
        for stream, text in output.take().items():
            self._send(protocol.encode(control.Output(request_id, stream, text)))

    def _started(self, request_id: str, run: str) -> None:
        self._send(protocol.encode(control.Started(request_id, run)))

    def _send(self, frame: bytes) -> None:
        self._sender.send(frame)
