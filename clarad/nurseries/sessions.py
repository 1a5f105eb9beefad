"""The sessions, and below each the messages that are waiting or running in it.

A session is one user in one channel of one platform. It is a nursery with a cancel scope, which is
cancelled when there has been no activity for a while. A message is a task in its session's nursery
with a scope of its own, whose deadline is the message's timeout, and which a `cancel` cancels.
Whatever ends a message first decides its outcome (`clarad.lifecycle`); the task then stores the
terminal frame, shielded, and sends it.
"""

import itertools
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import msgspec
import trio

from clarad import protocol
from clarad.events import Bus, EventType
from clarad.lifecycle import Lifecycle, Signal, State
from clarad.nodes import Node, Nodes
from clarad.protocol import ErrorCode
from clarad.responders import Request, Responder, ResponderError
from clarad.store import MessageKey, Stored, StoreError, Unfinished

log = logging.getLogger(__name__)

K = TypeVar("K")
C = TypeVar("C", "list[Turn]", "deque[Turn]")

MAX_WAITING: Final = 100
"""Messages that may wait in one channel."""

MAX_ANSWER: Final = 4 * 1024 * 1024
"""Characters of one answer."""

STORE_RETRY: Final = 1.0
"""Seconds between attempts to store how a message ended."""


class MessageStore(Protocol):
    """Where messages are written down; `clarad.store.Messages`."""

    def accept(
        self,
        key: MessageKey,
        *,
        node_id: str,
        user_id: str,
        session_id: str,
        frame: str,
        begun: bool,
    ) -> Awaitable[bool]:
        """Have a new message written, in the order of the calls; `False` if it is there already."""

    async def begin(self, key: MessageKey) -> None:
        """Note that work begins."""

    async def end(
        self, key: MessageKey, *, outcome: str, reason: str | None, terminal: str
    ) -> None:
        """Note how it ended."""

    async def find(self, key: MessageKey) -> Stored | None:
        """Return what is there of a message."""


class Session:
    """One user in one channel; `scope` has everything below it."""

    def __init__(self, key: tuple[str, str, str], timeout: float) -> None:
        self.id = f"session-{secrets.token_hex(8)}"
        self.platform, self.user_id, self.channel_id = key
        self.scope = trio.CancelScope()
        self.ended_at: float | None = None  # set when it times out
        self._timeout = timeout
        self._nursery: trio.Nursery | None = None
        self._early: list[Callable[[], Any]] = []
        self.touch()

    def touch(self) -> None:
        """Note activity: the timeout counts from here."""
        self._touched = trio.current_time()

    def start_soon(self, task: Callable[[], Any]) -> None:
        """Start a message's task below this session."""
        if self._nursery is None:
            self._early.append(task)
        else:
            self._nursery.start_soon(task)

    async def run(self) -> None:
        """Live until the timeout, or until `scope` is cancelled."""
        with self.scope:
            async with trio.open_nursery() as self._nursery:
                for task in self._early:
                    self._nursery.start_soon(task)
                # Not a deadline of the scope: moving that with each frame costs more than this.
                while trio.current_time() < self._touched + self._timeout:
                    await trio.sleep_until(self._touched + self._timeout)
                self.ended_at = trio.current_time()
                self.scope.cancel("the session timed out")


class Turn:
    """A message on its way from its acceptance to its terminal frame: the `Answer` to it, too."""

    def __init__(
        self,
        node: Node,
        message: protocol.Message,
        text: str,
        session: Session,
        state: State,
        response_id: str,
    ) -> None:
        self.node = node
        self.key = MessageKey(session.platform, message.channel.id, message.id)
        self.message = message
        self.frame = text
        self.session = session
        self.life = Lifecycle(state)
        self.scope = trio.CancelScope()
        self.begun = False  # in the store
        self.its_turn: trio.Event | None = None
        self.resent_by: list[Node] = []
        self.stopped = protocol.Stopped()
        self.received_at = trio.current_time()
        self.decided_at = self.received_at
        self.signal = Signal.CANCELLED
        self.reason = ""
        self.decided_by = ""
        self.error: ErrorCode | None = None
        self._response_id = response_id
        self._text: list[str] = []
        self._length = 0
        self._tools = 0
        self._tool_began = 0.0

    def decide(
        self, signal: Signal, reason: str = "", by: str = "", at: float | None = None
    ) -> bool:
        """Settle the outcome, unless it is settled already; return whether this call did it."""
        if not self.life.apply(signal):
            return False
        self.signal, self.reason, self.decided_by = signal, reason, by
        self.decided_at = trio.current_time() if at is None else at
        return True

    def fail(self, code: ErrorCode, reason: str) -> None:
        """Settle on an `error` frame, unless the outcome is settled already."""
        if self.decide(Signal.FAILED, reason, "responder"):
            self.error = code

    def cancel(self, reason: str, by: str) -> bool:
        """Settle on a cancellation, and start it; return whether this call did it."""
        if not self.decide(Signal.CANCELLED, reason, by):
            return False
        self.scope.cancel(reason)
        return True

    def begin(self, timeout: float) -> bool:
        """Start the answer; `False` if the outcome is settled already."""
        if not self.life.apply(Signal.BEGUN):
            return False
        self.scope.deadline = trio.current_time() + timeout
        self._emit(protocol.ResponseStart(id=self._response_id, request_id=self.message.id))
        return True

    # --- the Answer that a responder is handed ---------------------------------------------------

    def text(self, chunk: str) -> None:
        """Stream a piece of text."""
        self._length += len(chunk)
        if self._length > MAX_ANSWER:
            raise ResponderError(f"The answer is longer than {MAX_ANSWER} characters.")
        self._text.append(chunk)
        if self.node.streaming:
            self._emit(
                protocol.ResponseChunk(
                    id=self._response_id, request_id=self.message.id, chunk=chunk
                )
            )

    def tool_start(self, name: str, *, description: str | None = None, emoji: str = "🔧") -> None:
        """Announce a tool."""
        self._tools += 1
        self._tool_began = trio.current_time()
        self._emit(
            protocol.ToolStart(
                id=self._response_id,
                request_id=self.message.id,
                tool_name=name,
                step=self._tools,
                emoji=emoji,
                description=description or msgspec.UNSET,
            )
        )

    def tool_result(self, name: str, *, success: bool, preview: str | None = None) -> None:
        """Announce a tool's end."""
        self._emit(
            protocol.ToolResult(
                id=self._response_id,
                request_id=self.message.id,
                tool_name=name,
                success=success,
                output_preview=preview or msgspec.UNSET,
                duration_ms=round((trio.current_time() - self._tool_began) * 1000),
            )
        )

    def _emit(self, frame: msgspec.Struct) -> None:
        """Send a frame that is not terminal: only while the message runs."""
        if self.life.state is State.RUNNING:
            self.session.touch()
            self.node.send(frame)

    # --- its end ---------------------------------------------------------------------------------

    @property
    def answer(self) -> str:
        """The text so far."""
        return "".join(self._text)

    def terminal(self) -> protocol.ResponseEnd | protocol.Cancelled | protocol.Error:
        """Return the one terminal frame that the outcome calls for."""
        request_id = self.message.id
        match self.signal:
            case Signal.COMPLETED:
                return protocol.ResponseEnd(
                    id=self._response_id,
                    request_id=request_id,
                    full_text=self.answer,
                    tool_count=self._tools,
                )
            case Signal.CANCELLED:
                return protocol.Cancelled(
                    request_id=request_id, reason=self.reason, stopped=self.stopped
                )
            case Signal.TIMED_OUT:
                code = ErrorCode.TIMEOUT
            case _:
                code = self.error or ErrorCode.PROCESSING_ERROR
        return protocol.Error(
            code=code,
            message=self.reason,
            recoverable=code is not ErrorCode.PROCESSING_ERROR,
            request_id=request_id,
        )


class Sessions:
    """All sessions, and the order of messages within a channel."""

    def __init__(
        self,
        *,
        session_timeout: float,
        message_timeout: float,
        bus: Bus,
        nodes: Nodes,
        store: MessageStore,
        responder: Responder,
    ) -> None:
        """Timeouts in seconds."""
        self._session_timeout = session_timeout
        self._message_timeout = message_timeout
        self._bus = bus
        self._nodes = nodes
        self._store = store
        self._responder = responder
        self._boot = secrets.token_hex(4)
        self._nursery: trio.Nursery | None = None
        self._sessions: dict[tuple[str, str, str], Session] = {}
        self._turns: dict[MessageKey, Turn] = {}
        self._by_request: dict[tuple[str, str], list[Turn]] = {}
        # The messages of one channel in the order in which they came; the first is its turn.
        self._channels: dict[tuple[str, str], deque[Turn]] = {}
        self._stopping = False
        self._given_up = trio.Event()
        self._idle = trio.Event()
        self._response_ids = (f"response-{self._boot}-{n}" for n in itertools.count(1))
        self._started = trio.current_time()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; every message then still gets its terminal frame."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def refuse(self) -> None:
        """Take no new messages."""
        self._stopping = True

    async def drained(self) -> None:
        """Wait until no message is left; to be called after `refuse`."""
        while self._turns:
            self._idle = trio.Event()
            await self._idle.wait()

    def stop(self) -> None:
        """Cancel what is left; to be followed by `drained`."""
        for turn in list(self._turns.values()):
            turn.cancel("the daemon is stopping", "daemon")

    def give_up(self) -> None:
        """Wait no longer for a store that fails; the next start finds what is unfinished."""
        self._given_up.set()

    # --- what connections ask for ----------------------------------------------------------------

    def submit(self, node: Node, message: protocol.Message, text: str) -> None:
        """Take a message from a node. Everything it is answered with comes through the node."""
        key = MessageKey(node.platform, message.channel.id, message.id)
        if (turn := self._turns.get(key)) is not None:
            self._resent(turn, node, message)
            return
        channel = self._channels.get((key.platform, key.channel_id), ())
        if self._stopping or self._nursery is None:
            self._refuse(node, message, ErrorCode.SHUTTING_DOWN, "The daemon is stopping; resend.")
        elif len(channel) > MAX_WAITING:
            self._refuse(
                node, message, ErrorCode.QUEUE_FULL, f"{MAX_WAITING} messages wait here; try later."
            )
        else:
            self._admit(node, message, text, State.RECEIVED)

    def cancel(self, node: Node, cancel: protocol.Cancel) -> None:
        """Cancel the node's messages with this id; `not_found` if none can be cancelled."""
        turns = self._by_request.get((node.id, cancel.request_id), ())
        cancelled = [turn.cancel(cancel.reason or "requested", node.id) for turn in turns]
        if not any(cancelled):
            node.send(
                protocol.Error(
                    code=ErrorCode.NOT_FOUND,
                    message="No message with this id is waiting or running.",
                    recoverable=False,
                    request_id=cancel.request_id,
                )
            )

    def status(self, node: Node) -> protocol.Status:
        """Count the node's messages."""
        turns = [turn for turn in self._turns.values() if turn.node is node]
        running = sum(turn.life.state is State.RUNNING for turn in turns)
        return protocol.Status(
            node_id=node.id,
            active_requests=running,
            queue_length=len(turns) - running,
            uptime_seconds=self._uptime(),
        )

    def abandon(self, node: Node) -> None:
        """Cancel all messages of a node that is gone for good."""
        for turn in list(self._turns.values()):
            if turn.node is node:
                turn.cancel("the node unregistered", node.id)

    async def recover(self, unfinished: Iterable[Unfinished]) -> None:
        """Go on with what an earlier run of the daemon left: run what had not begun.

        What had begun may have acted, and ends as `interrupted`.
        """
        for entry in unfinished:
            message = protocol.decode(entry.frame)
            assert isinstance(message, protocol.Message)
            node = self._nodes.find(entry.node_id, entry.key.platform)
            if entry.begun:
                error = protocol.Error(
                    code=ErrorCode.INTERRUPTED,
                    message="The daemon was stopped while it worked on this message; send it anew.",
                    recoverable=True,
                    request_id=message.id,
                )
                await self._store.end(
                    entry.key,
                    outcome=ErrorCode.INTERRUPTED,
                    reason=error.message,
                    terminal=protocol.encode(error).decode(),
                )
            else:
                self._admit(node, message, entry.frame, State.WAITING)

    # --- a message's way -------------------------------------------------------------------------

    def _admit(self, node: Node, message: protocol.Message, text: str, state: State) -> None:
        session = self._session(node.platform, message)
        turn = Turn(node, message, text, session, state, next(self._response_ids))
        self._turns[turn.key] = turn
        self._by_request.setdefault((node.id, message.id), []).append(turn)
        self._channels.setdefault((turn.key.platform, turn.key.channel_id), deque()).append(turn)
        session.touch()
        stored = None
        if state is State.RECEIVED:
            turn.begun = self._is_first(turn)
            stored = self._store.accept(
                turn.key,
                node_id=node.id,
                user_id=session.user_id,
                session_id=session.id,
                frame=text,
                begun=turn.begun,
            )
        session.start_soon(partial(self._live, turn, stored))

    def _session(self, platform: str, message: protocol.Message) -> Session:
        key = (platform, message.user.id, message.channel.id)
        session = self._sessions.get(key)
        if session is None or session.scope.cancel_called:
            session = self._sessions[key] = Session(key, self._session_timeout)
            assert self._nursery is not None
            self._nursery.start_soon(self._run_session, key, session)
        return session

    async def _run_session(self, key: tuple[str, str, str], session: Session) -> None:
        about = {
            "platform": session.platform,
            "user_id": session.user_id,
            "channel_id": session.channel_id,
            "session_id": session.id,
        }
        self._bus.publish(EventType.SESSION_START, **about)
        try:
            await session.run()
            if session.ended_at is not None:
                self._bus.publish(
                    EventType.SESSION_TIMEOUT, **about, data={"timeout": self._session_timeout}
                )
        finally:
            if self._sessions.get(key) is session:
                del self._sessions[key]
            why = "shutdown" if session.ended_at is None else "timeout"
            self._bus.publish(EventType.SESSION_END, **about, data={"reason": why})

    async def _live(self, turn: Turn, stored: Awaitable[bool] | None) -> None:
        """A message's whole life, as a task below its session."""
        try:
            if stored is not None:
                await self._accept(turn, stored)
            with turn.scope:
                await self._answer(turn)
            if turn.scope.cancelled_caught:
                why = f"No answer within {self._message_timeout:g} s."
                turn.decide(Signal.TIMED_OUT, why, "deadline", turn.scope.deadline)
        except* Exception as group:
            self._fail(turn, group)
        finally:
            await self._settle(turn)
            self._leave(turn)

    async def _accept(self, turn: Turn, stored: Awaitable[bool]) -> None:
        """Wait until the message is written down; from then on it is owed an answer."""
        try:
            new = await stored
        except Exception as error:
            turn.life.apply(Signal.DROPPED)
            log.error(
                "message %r is not accepted, the store failed: %s",
                turn.message.id,
                error,
                exc_info=not isinstance(error, StoreError),
            )
            self._refuse(
                turn.node,
                turn.message,
                ErrorCode.PROCESSING_ERROR,
                "The message could not be stored; send it again later.",
            )
            return
        if not new:
            turn.life.apply(Signal.DROPPED)
            await self._repeat(turn)
            return
        turn.life.apply(Signal.ACCEPTED)
        self._tell_accepted(turn)
        self._publish(turn, EventType.MESSAGE_RECEIVED, {"content": turn.message.content})

    def _tell_accepted(self, turn: Turn) -> None:
        request_id = turn.message.id
        if turn.node.told_accepted:
            turn.node.send(protocol.Accepted(request_id=request_id, duplicate=False))
        for node in turn.resent_by:
            self._tell_duplicate(turn.message.id, node)
        if not self._is_first(turn) and not turn.life.decided:
            channel = self._channels[turn.key.platform, turn.key.channel_id]
            turn.node.send(
                protocol.Status(
                    active_requests=1,
                    queue_length=channel.index(turn),
                    uptime_seconds=self._uptime(),
                    request_id=request_id,
                )
            )

    async def _answer(self, turn: Turn) -> None:
        """Wait for the turn, and have the responder answer. Runs in the message's scope."""
        if turn.life.decided:
            return
        if not self._is_first(turn):
            turn.its_turn = trio.Event()
            await turn.its_turn.wait()
        if not turn.begun:
            await self._store.begin(turn.key)
        if turn.begin(self._message_timeout):
            request = Request(turn.message, turn.node.id, turn.session.platform, turn.session.id)
            await self._responder.respond(request, turn)
            turn.decide(Signal.COMPLETED)

    def _fail(self, turn: Turn, error: BaseException) -> None:
        wanted = _find(error, ResponderError)
        if wanted is not None:
            turn.fail(ErrorCode.PROCESSING_ERROR, str(wanted))
            return
        log.error("message %r failed", turn.message.id, exc_info=error)
        turn.fail(ErrorCode.PROCESSING_ERROR, "The message failed; the daemon's log says why.")

    async def _settle(self, turn: Turn) -> None:
        """Store the terminal frame, then send it: in this order, or a kill between the two would
        have the message answered twice."""
        if turn.life.state is State.DROPPED:
            return
        if not turn.life.decided:  # cancelled from above
            self._decide_from_above(turn)
        stopped_in = trio.current_time() - turn.decided_at
        terminal = protocol.encode(turn.terminal())
        if await self._store_end(turn, terminal.decode()):
            turn.life.apply(Signal.SETTLED)
            turn.session.touch()
            turn.node.deliver(turn.key, terminal)
            self._publish_end(turn, stopped_in)

    def _decide_from_above(self, turn: Turn) -> None:
        if (at := turn.session.ended_at) is not None:
            turn.decide(Signal.CANCELLED, "the session timed out", "session", at)
        else:
            turn.decide(Signal.CANCELLED, "the daemon is stopping", "daemon")

    async def _store_end(self, turn: Turn, terminal: str) -> bool:
        """Try until it is stored; `False` if the daemon has to stop before."""
        while True:
            try:
                await self._store.end(
                    turn.key, outcome=turn.signal, reason=turn.reason or None, terminal=terminal
                )
            except StoreError as error:
                log.error(
                    "the answer to %r waits, the store failed: %s; next attempt in %g s",
                    turn.message.id,
                    error,
                    STORE_RETRY,
                )
            else:
                return True
            with trio.move_on_after(STORE_RETRY, shield=True):
                await self._given_up.wait()
                log.error("how %r ended is not stored: the daemon has to stop", turn.message.id)
                return False

    def _leave(self, turn: Turn) -> None:
        """Forget the message, and give its channel to the next."""
        del self._turns[turn.key]
        _remove(self._by_request, (turn.node.id, turn.message.id), turn)
        channel = _remove(self._channels, (turn.key.platform, turn.key.channel_id), turn)
        if channel and channel[0].its_turn is not None:
            channel[0].its_turn.set()
        if not self._turns:
            self._idle.set()

    # --- small things ----------------------------------------------------------------------------

    def _is_first(self, turn: Turn) -> bool:
        return self._channels[turn.key.platform, turn.key.channel_id][0] is turn

    def _uptime(self) -> int:
        return int(trio.current_time() - self._started)

    def _refuse(self, node: Node, message: protocol.Message, code: ErrorCode, text: str) -> None:
        node.send(protocol.Error(code=code, message=text, recoverable=True, request_id=message.id))

    def _resent(self, turn: Turn, node: Node, message: protocol.Message) -> None:
        """Answer a message that was sent again while it lives."""
        if turn.message.content != message.content:
            self._refuse_reuse(node, message.id)
        elif turn.life.state in (State.RECEIVED, State.DOOMED):
            turn.resent_by.append(node)
        else:
            self._tell_duplicate(message.id, node)

    async def _repeat(self, turn: Turn) -> None:
        """Answer a message that was sent again after its end, with what the node missed."""
        stored = await self._store.find(turn.key)
        if stored is None or stored.terminal is None:
            return
        first = protocol.decode(stored.frame)
        if isinstance(first, protocol.Message) and first.content != turn.message.content:
            self._refuse_reuse(turn.node, turn.message.id)
            return
        self._tell_duplicate(turn.message.id, turn.node)
        if not turn.node.has_had(turn.key):
            turn.node.deliver(turn.key, stored.terminal.encode())

    def _tell_duplicate(self, request_id: str, node: Node) -> None:
        if node.told_accepted:
            node.send(protocol.Accepted(request_id=request_id, duplicate=True))

    def _refuse_reuse(self, node: Node, request_id: str) -> None:
        node.send(
            protocol.Error(
                code=ErrorCode.INVALID_MESSAGE,
                message="This id belongs to an earlier message of this channel; use a new one.",
                recoverable=False,
                request_id=request_id,
            )
        )

    def _publish_end(self, turn: Turn, stopped_in: float) -> None:
        """Every accepted message ends in one event: `message:cancelled` or `message:sent`."""
        if turn.signal in (Signal.CANCELLED, Signal.TIMED_OUT):
            data = {
                "reason": "timeout" if turn.signal is Signal.TIMED_OUT else turn.reason,
                "by": turn.decided_by,
                "stopped_in": round(stopped_in, 6),
                "stopped": msgspec.structs.asdict(turn.stopped),
            }
            self._publish(turn, EventType.MESSAGE_CANCELLED, data)
            return
        data = {
            "outcome": turn.signal.value,
            "duration": round(trio.current_time() - turn.received_at, 6),
            "text": turn.answer,
        }
        if turn.signal is Signal.FAILED:
            data["error"] = turn.reason
        self._publish(turn, EventType.MESSAGE_SENT, data)

    def _publish(self, turn: Turn, event_type: EventType, data: dict[str, Any]) -> None:
        self._bus.publish(
            event_type,
            node_id=turn.node.id,
            platform=turn.session.platform,
            user_id=turn.session.user_id,
            channel_id=turn.session.channel_id,
            request_id=turn.message.id,
            session_id=turn.session.id,
            data=data,
        )


def _find(error: BaseException, kind: type[ResponderError]) -> ResponderError | None:
    """Return the exception of this kind, also from within the groups that nurseries make."""
    if isinstance(error, kind):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next((found for e in error.exceptions if (found := _find(e, kind))), None)
    return None


def _remove(index: dict[K, C], key: K, turn: Turn) -> C | None:
    """Take the message out of an index; return what is left under the key, if anything."""
    turns = index[key]
    turns.remove(turn)
    if turns:
        return turns
    del index[key]
    return None
