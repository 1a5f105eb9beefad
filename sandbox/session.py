"""The host's end of the stream to an agent: runs by number, one reader and one writer."""

import json
from collections.abc import Callable
from typing import Any, Final

import trio

from sandbox.engine import GoneError, Output
from sandbox.inside import frames
from sandbox.inside.frames import MAX_FROM_AGENT, Decoder, Frame, FrameError
from sandbox.replies import Ended, Ready, decode

OnOutput = Callable[[str, bytes], None]
"""Called with "stdout" or "stderr", and a piece of it."""

READY_WITHIN: Final = 60.0
"""Seconds until an agent has to be ready."""

WINDOW: Final = 256 << 10
"""Bytes of input sent to a run that it has not read: a KILL frame waits behind no more."""

_CHUNK: Final = 64 << 10
_SILENT: Final = "the agent in the sandbox did not answer"
_ENDED_AT_ONCE: Final = (
    "the agent in the sandbox has ended at once: has the image a python3, 3.9 or newer?"
)
_NAMES: Final = {frames.STDOUT: "stdout", frames.STDERR: "stderr"}


class Running:
    """A run in a sandbox, from its START frame to its EXIT frame."""

    def __init__(
        self, session: "Session", number: int, request: dict[str, Any], on_output: OnOutput | None
    ) -> None:
        self._session = session
        self._number = number
        self._cap: int = request["cap"]
        self._takes_calls: bool = request.get("calls", False)
        self._on_output = on_output
        self._kept = {"stdout": bytearray(), "stderr": bytearray()}
        self._in_transit = 0
        self._read = trio.Event()
        self._is_called = False
        self._reply: Ended | None = None
        self.began_alone = session.running == 0
        """Whether no other run existed when this one was started."""
        self._answered = trio.Event()
        self.over = trio.Event()
        self.end: Ended | None = None
        """The agent's EXIT; None until it comes, and if the sandbox ends before."""
        self.failure: Exception | None = None
        """What `on_output` raised; the run has been killed for it."""

    @property
    def is_lost(self) -> bool:
        """Whether the sandbox has ended under it."""
        return self.over.is_set() and self.end is None

    @property
    def is_refused(self) -> bool:
        """Whether the agent could not start it, since no process was left."""
        return self.end is not None and self.end.error is not None

    @property
    def is_idle(self) -> bool:
        """Whether it takes calls, and there is none."""
        return self._takes_calls and not self._is_called

    @property
    def killed(self) -> int:
        """How many processes were killed at its end."""
        return 0 if self.end is None else self.end.killed

    def kill(self) -> None:
        """Ask the agent to kill it; `over` is set when nothing of it is left."""
        self._session.send(frames.KILL, self._number)

    async def feed(self, data: bytes, *, close: bool = True) -> None:
        """Write to its input, as fast as it reads; return when all is sent, or it is over."""
        for start in range(0, len(data), _CHUNK):
            while self._in_transit >= WINDOW and not self.over.is_set():
                self._read = trio.Event()
                await self._read.wait()
            chunk = data[start : start + _CHUNK]
            self._in_transit += len(chunk)
            self._session.send(frames.INPUT, self._number, chunk)
        if close:
            self._session.send(frames.CLOSE, self._number)

    async def call(self, token: bytes, data: bytes, on_output: OnOutput | None) -> Ended | None:
        """Make a call: send its code and wait for the reply; None if the run ends instead."""
        self._on_output = on_output
        self._kept = {"stdout": bytearray(), "stderr": bytearray()}
        self._reply = None
        self._is_called = True
        if not self.over.is_set():
            self._answered = trio.Event()
        self._session.send(frames.CALL, self._number, token)
        await self.feed(data, close=False)
        await self._answered.wait()
        return self._reply

    def output(self, name: str, counted: Ended) -> Output:
        """Return what it wrote to "stdout" or "stderr", with the agent's counts."""
        kept = bytes(self._kept[name])
        if counted.totals is None:
            return Output(kept, b"", len(kept))
        which = list(self._kept).index(name)
        tail = counted.tails[which].encode("latin-1", "replace")
        return Output(kept, tail, counted.totals[which])

    def receive(self, kind: int, payload: bytes) -> None:
        """Handle a frame about this run.

        Raises:
            FrameError: no agent sends this frame, or not now.
        """
        if kind in _NAMES:
            self._receive_output(_NAMES[kind], payload)
        elif kind == frames.TAKEN:
            if len(payload) != frames.NUMBER.size:
                raise FrameError(f"a count of {len(payload)} bytes")
            self._in_transit -= frames.NUMBER.unpack(payload)[0]
            if self._in_transit < 0:
                raise FrameError("more is taken than was sent")
            self._read.set()
        elif kind == frames.REPLY:
            if not self._is_called:
                raise FrameError("a reply to no call")
            self._is_called = False
            self._reply = decode(payload, Ended)
            self._answered.set()
        elif kind == frames.EXIT:
            self.finish(decode(payload, Ended))
        else:
            raise FrameError(f"a frame of kind {kind}")

    def finish(self, end: Ended | None) -> None:
        """Note that the run is over, and wake everybody who waits for it."""
        self.end = end
        for event in (self.over, self._read, self._answered):
            event.set()

    def _receive_output(self, name: str, data: bytes) -> None:
        if len(self._kept[name]) + len(data) > self._cap:
            raise FrameError("more output than is passed on")
        self._kept[name] += data
        if self._on_output is not None and self.failure is None:
            try:
                self._on_output(name, data)
            except Exception as error:  # the caller's bug: kill the run; `kill_on_error` raises it
                self.failure = error
                self.kill()


class Session:
    """All runs in one sandbox."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._running: dict[int, Running] = {}
        self._number = 0
        self._outbox = bytearray()
        self._written = trio.Event()
        self._ready = trio.Event()
        self.ended = trio.Event()
        self.about = Ready()
        """The agent's READY."""

    @property
    def is_lost(self) -> bool:
        """Whether the sandbox has ended."""
        return self.ended.is_set()

    @property
    def running(self) -> int:
        """How many runs there are."""
        return len(self._running)

    @property
    def idle(self) -> list[Running]:
        """Those that take calls, and have none."""
        return [running for running in self._running.values() if running.is_idle]

    def start(self, request: dict[str, Any], on_output: OnOutput | None = None) -> Running:
        """Start a run (`inside.runs.Run` has the request's keys).

        Raises:
            GoneError: the sandbox has ended.
        """
        if self.is_lost:
            raise GoneError("the sandbox has ended; the next call gets a new one")
        self._number += 1
        running = Running(self, self._number, request, on_output)
        self._running[self._number] = running
        self.send(frames.START, self._number, json.dumps(request).encode())
        return running

    def send(self, kind: int, number: int, payload: bytes = b"") -> None:
        """Queue a frame; the writer sends it whole, even if the caller is cancelled."""
        self._outbox += frames.encode(kind, number, payload)
        self._written.set()

    def abandon(self) -> None:
        """Count the sandbox as lost, and all its runs as over."""
        self.ended.set()
        for running in self._running.values():
            running.finish(None)
        self._running.clear()

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read and write until the agent's stream ends; started when the agent is ready.

        Raises:
            GoneError: the stream ended, or `READY_WITHIN` passed, before the agent was ready.
        """
        try:
            async with self._stream, trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                nursery.start_soon(self._read, nursery.cancel_scope)
                with trio.move_on_after(READY_WITHIN) as patience:
                    await self._ready.wait()
                if self._ready.is_set():
                    task_status.started()
                else:  # raised below, since the nursery would wrap it in a group
                    nursery.cancel_scope.cancel("the agent does not answer")
        finally:
            self.abandon()
        if not self._ready.is_set():
            raise GoneError(_SILENT if patience.cancelled_caught else _ENDED_AT_ONCE)

    async def _write(self) -> None:
        while True:
            await self._written.wait()
            self._written = trio.Event()
            data, self._outbox = self._outbox, bytearray()
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return  # the reader will find the stream broken, too

    async def _read(self, scope: trio.CancelScope) -> None:
        decoder = Decoder(MAX_FROM_AGENT)
        try:
            while data := await self._stream.receive_some(_CHUNK):
                for frame in decoder.feed(data):
                    self._dispatch(frame)
        except (trio.BrokenResourceError, trio.ClosedResourceError, FrameError):
            pass  # treat a broken agent like one that has ended
        scope.cancel("the agent has gone")

    def _dispatch(self, frame: Frame) -> None:
        if frame.kind == frames.READY:
            self.about = decode(frame.payload, Ready)
            self._ready.set()
        elif frame.run in self._running:
            self._running[frame.run].receive(frame.kind, frame.payload)
            if frame.kind == frames.EXIT:
                del self._running[frame.run]
