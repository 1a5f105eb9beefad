"""An operator's connection to the control socket: a reader, a writer, a task for each request."""

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
"""Requests of one connection at once."""

OUTPUT_PAUSE: Final = 0.02
"""Seconds between two frames of a command's output; each has what was written in between."""

OnStarted = Callable[[str], None]
OnText = Callable[[str, str], None]


class Operations(Protocol):
    """The daemon's operations; `clarad.app.operations.Operations`.

    Each raises `control.Refused` if it refuses. Cancelling `run_task` or `replay_run` ends only the
    wait: the run goes on, since it belongs to the nursery that runs it. Cancelling `sandbox_exec`
    kills the command.
    """

    async def reload(self) -> Report:
        """Read the configuration again; wait until it is in force or refused."""

    async def status(self) -> Report:
        """Report the daemon's state, if the database works."""

    async def overview(self, of: Literal["hooks", "tasks"]) -> Report:
        """List the hooks or tasks in force, and what a reload would change."""

    async def run_task(self, name: str, caused_by: Sequence[str], started: OnStarted) -> Report:
        """Run a task now and wait for its end; `started` is called with the run's ID."""

    async def pause_task(self, name: str) -> Report:
        """Stop running a task by its schedule until it is resumed."""

    async def resume_task(self, name: str) -> Report:
        """Run a paused task by its schedule again."""

    async def replay_run(self, run: str, caused_by: Sequence[str], started: OnStarted) -> Report:
        """Repeat an earlier run and wait for its end, like `run_task`."""

    def sandbox_status(self) -> Report:
        """List the sandboxes."""

    async def sandbox_exec(self, owner: str, argv: Sequence[str], say: OnText) -> Report:
        """Run a command in an owner's sandbox; `say` is called with what it writes."""

    async def sandbox_reset(self, owner: str) -> Report:
        """Remove an owner's sandbox and its files."""

    async def sandbox_prune(self) -> Report:
        """Remove sandboxes that no daemon uses any more."""

    async def close_token(self, token: str) -> Report:
        """Close the connections of a revoked token."""


class OutputBuffer:
    """A command's output on each stream since the last `drain`.

    (Rejected: a frame for each write. A command that writes single bytes would fill any outbox.)
    """

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {}
        self._changed = trio.Event()
        self.is_closed = False

    def add(self, stream: str, text: str) -> None:
        """Add what a command has written."""
        self._texts.setdefault(stream, []).append(text)
        self._changed.set()

    def close(self) -> None:
        """Note that the command has ended."""
        self.is_closed = True
        self._changed.set()

    def drain(self) -> dict[str, str]:
        """Return the text of each stream, and empty the buffer."""
        texts, self._texts = self._texts, {}
        self._changed = trio.Event()
        return {stream: "".join(parts) for stream, parts in texts.items()}

    async def wait(self) -> None:
        """Wait for output, or for the command's end."""
        if not self.is_closed:
            await self._changed.wait()


class OperatorConnection:
    """A WebSocket connection to the control socket, after its handshake.

    It needs no heartbeat: the peer is on this machine, and the kernel reports when it has gone.
    """

    def __init__(
        self,
        websocket: WebSocketConnection,
        stream: ClientStream,
        _credential: str | None,
        *,
        operations: Operations,
        outboxes: MemoryBudget,
    ) -> None:
        """Every peer is trusted: the mode of the socket file decides who may connect."""
        self._websocket = websocket
        self._address = stream.address
        self._operations = operations
        self._sender = Sender(websocket, stream, outboxes)
        stream.admit()
        stream.start_frames(self.end)
        self._request_ids: set[str] = set()
        self.token_name: str | None = None
        self.token: str | None = None
        self.is_unauthenticated = False

    def end(self, code: CloseCode, reason: str) -> None:
        """Write the queue, then close, within `CLOSE_TIMEOUT`. Only the first call counts."""
        self._sender.end(code, reason)

    @property
    def closed_cleanly(self) -> bool:
        """Whether the closing handshake has been completed, as far as trio-websocket tells."""
        return self._sender.closed_cleanly

    async def run(self) -> None:
        """Serve until either side closes; that cancels the requests."""
        try:
            with self._sender.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._sender.run, nursery.cancel_scope)
                    await self._read(nursery)
                    # If we close, the writer waits for the peer's answer, and cancels this then.
                    if self._sender.closing is None:
                        nursery.cancel_scope.cancel("the peer has closed")
        finally:
            self._sender.discard()

    async def _read(self, requests: trio.Nursery) -> None:
        """Receive requests; each gets a task in `requests`."""
        try:
            while True:
                text = await self._websocket.get_message()
                if self._sender.closing is None:
                    self._start(text, requests)
        except ConnectionClosed:
            return

    def _start(self, text: str | bytes, requests: trio.Nursery) -> None:
        try:
            request = self._decode(text)
        except protocol.Refused as refused:
            self._sender.send(protocol.encode(refused.error))
            return
        if len(self._request_ids) >= MAX_REQUESTS:
            problem = f"{MAX_REQUESTS} requests are under way; wait until one of them has ended"
            self._sender.send(protocol.encode(control.Refusal(request.id, [problem])))
            return
        # A health check sends one twice a minute, and would fill the log.
        level = logging.DEBUG if isinstance(request, control.Status) else logging.INFO
        log.log(level, "%s asks: %.1000r", self._address, request)
        self._request_ids.add(request.id)
        requests.start_soon(self._answer, request, requests)

    def _decode(self, text: str | bytes) -> control.Request:
        if isinstance(text, bytes):
            raise protocol.Refused(
                ErrorCode.INVALID_MESSAGE, "Frames are text; this one was binary."
            )
        request = control.decode(text)
        if request.id in self._request_ids:
            raise protocol.Refused(
                ErrorCode.INVALID_MESSAGE,
                "A request with this id is under way; take another id.",
                request.id,
            )
        return request

    async def _answer(self, request: control.Request, requests: trio.Nursery) -> None:
        """Perform a request and send the answer, also if it fails."""
        try:
            frame = protocol.encode(await self._outcome(request, requests))
        except Exception:
            text = "what %s asked for failed; this is a bug: %r"
            about = catalogue.INTERNAL_ERROR.about()
            log.exception(text, self._address, request, extra=about)
            problems = ["this failed inside the daemon; its log says why"]
            frame = protocol.encode(control.Refusal(request.id, problems))
        finally:
            self._request_ids.discard(request.id)
        self._sender.send(frame)

    async def _outcome(
        self, request: control.Request, requests: trio.Nursery
    ) -> control.Done | control.Refusal:
        try:
            outcome = await self._perform(request, requests)
        except control.Refused as refused:
            return control.Refusal(request.id, refused.problems)
        return control.Done(request.id, **msgspec.structs.asdict(outcome))

    async def _perform(self, request: control.Request, requests: trio.Nursery) -> Report:
        started = partial(self._send_started, request.id)
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
        # `sandbox_exec` hands output over synchronously. A second task sends it, at intervals.
        output = OutputBuffer()
        requests.start_soon(self._stream_output, request.id, output)
        try:
            return await self._operations.sandbox_exec(request.owner, request.argv, output.add)
        finally:
            output.close()
            self._send_output(request.id, output)

    async def _stream_output(self, request_id: str, output: OutputBuffer) -> None:
        while not output.is_closed:
            await output.wait()
            self._send_output(request_id, output)
            await trio.sleep(OUTPUT_PAUSE)

    def _send_output(self, request_id: str, output: OutputBuffer) -> None:
        for stream, text in output.drain().items():
            self._sender.send(protocol.encode(control.Output(request_id, stream, text)))

    def _send_started(self, request_id: str, run: str) -> None:
        self._sender.send(protocol.encode(control.Started(request_id, run)))
