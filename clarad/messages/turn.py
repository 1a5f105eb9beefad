"""A message on its way from its acceptance to its terminal frame, and the answer to it."""

import secrets
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import trio

from clarad import protocol
from clarad.delivery.node import Node
from clarad.events import EventType
from clarad.limits.memory import MemoryBudget
from clarad.messages.lifecycle import Lifecycle, Signal, State
from clarad.protocol import ErrorCode
from clarad.responders import ResponderError
from clarad.store import MessageKey, Unfinished

if TYPE_CHECKING:  # it needs this module
    from clarad.messages.recovery import Backlog

MAX_ANSWER: Final = 4 * 1024 * 1024
"""Characters of one answer."""

MAX_SHARED: Final = 128 * 1024 * 1024
"""Bytes that all answers share; `clarad.limits.memory` has the rule."""

OWN_BYTES: Final = 64 * 1024
"""Bytes that are guaranteed to every answer."""

_BY: Final = {
    Signal.FAILED: "responder",
    Signal.TIMED_OUT: "deadline",
    Signal.INTERRUPTED: "daemon",
}


def answers() -> MemoryBudget:
    """Return the budget that all answers share."""
    return MemoryBudget(MAX_SHARED, OWN_BYTES)


class SessionKey(NamedTuple):
    """Whose session it is, and where."""

    platform: str
    user_id: str
    channel_id: str


Publish = Callable[..., None]


class Session:
    """A user in a channel, from a first message until there has been none for the timeout."""

    def __init__(self, key: SessionKey, caused_by: tuple[str, ...] = ()) -> None:
        self.id = f"session-{secrets.token_hex(8)}"
        self.key = key
        self.caused_by = caused_by
        self.messages = 0
        """Messages in flight."""
        self.idle_since = 0.0
        """Since when there have been none."""


class Turn:
    """One message's turn to be answered.

    The responder runs in `scope`: its deadline is the message's timeout, and a cancel of the
    message cancels it. The wait for a slot and for the store to begin the message runs in `waiting`
    inside it: a stop of the daemon cancels that, while a message that has begun is still answered.
    The responder knows this as its `Answer`.
    """

    def __init__(
        self,
        node: Node,
        platform: str,
        message: protocol.Message,
        *,
        size: int,
        session: Session,
        response_id: str,
        state: State,
        publish: Publish,
        answers: MemoryBudget,
        is_known_first: bool,
        number: float,
    ) -> None:
        """`size` is what it counts for in admission, in bytes; `answers` is the shared budget.

        With `is_known_first`, all messages ahead of it in its channel are in memory; otherwise some
        may be in the store only. `number` is its row of the store if it was recovered.
        """
        self.node = node
        self.received_on = node.sink
        self.message = message
        self.size = size
        self.session = session
        self.key = MessageKey(platform, message.channel.id, message.id)
        self.lifecycle = Lifecycle(state)
        self.scope = trio.CancelScope()
        self.waiting = trio.CancelScope()
        self.is_known_first = is_known_first
        self.number = number
        # Found by recovery while a message of this identity waits for the store: it was sent again.
        self.found: tuple[Unfinished, Backlog] | None = None
        self.backlog: Backlog | None = None  # which it was read back from
        self.wanted = True  # by its node; unless that was found to have unregistered
        self.has_task = False
        self.has_slot = False
        self.begun = False  # in the store
        self.ahead = 0  # unfinished in its channel when it was accepted, as the store has counted
        self.resent_by: list[Node] = []
        self.stopped = protocol.Stopped()
        self.received_at = self.decided_at = trio.current_time()
        self.signal = Signal.CANCELLED
        self.code = ErrorCode.PROCESSING_ERROR
        self.reason = ""
        self.decided_by = ""
        self._response_id = response_id
        self._publish = publish
        self._text: list[str] = []
        self._length = 0
        self._answer_budget = answers
        self._held = 0
        self._tools = 0
        self._tool_began = 0.0

    def queued(self, ahead: int) -> None:
        """Note that so many unfinished messages of its channel are before it in the store."""
        self.begun, self.ahead = False, ahead

    def decide(
        self, signal: Signal, reason: str = "", by: str = "", at: float | None = None
    ) -> bool:
        """Decide the outcome; return `False` if it is decided already."""
        if not self.lifecycle.apply(signal):
            return False
        self.signal, self.reason, self.decided_by = signal, reason, by
        self.decided_at = trio.current_time() if at is None else at
        return True

    def decide_error(
        self, signal: Signal, code: ErrorCode, reason: str, at: float | None = None
    ) -> None:
        """Decide on an `error` frame, unless the outcome is decided already."""
        if self.decide(signal, reason, _BY[signal], at):
            self.code = code

    def begin(self, timeout: float) -> bool:
        """Start the answer; return `False` if the outcome is decided already."""
        if not self.lifecycle.apply(Signal.BEGUN):
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
        held = self._held + sys.getsizeof(chunk)
        if not self._answer_budget.fits(self._held, held):
            raise ResponderError("Too many long answers are under way; try again later.")
        self._hold(held)
        self._text.append(chunk)
        if self.node.streaming:
            request_id = self.message.id
            self._emit(
                protocol.ResponseChunk(id=self._response_id, request_id=request_id, chunk=chunk)
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
        self._publish_tool(EventType.TOOL_START, name, {"description": description})

    def tool_result(self, name: str, *, success: bool, preview: str | None = None) -> None:
        """Announce a tool's end."""
        duration = trio.current_time() - self._tool_began
        self._emit(
            protocol.ToolResult(
                id=self._response_id,
                request_id=self.message.id,
                tool_name=name,
                success=success,
                output_preview=preview or msgspec.UNSET,
                duration_ms=round(duration * 1000),
            )
        )
        told = {"duration": round(duration, 6), "output_preview": preview}
        self._publish_tool(EventType.TOOL_END if success else EventType.TOOL_ERROR, name, told)

    def _publish_tool(self, event_type: EventType, tool: str, data: dict[str, Any]) -> None:
        about = {"tool_name": tool, "step": self._tools}
        self._publish(event_type, **self.event_fields(), data=about | data)

    def _emit(self, frame: msgspec.Struct) -> None:
        """Send a frame that is not terminal: only while the message runs."""
        if self.lifecycle.state is State.RUNNING:
            self.node.send(frame)

    # --- its end ---------------------------------------------------------------------------------

    @property
    def answer(self) -> str:
        """The text so far; joined once, however often it is asked for."""
        if len(self._text) != 1:
            self._text = ["".join(self._text)]
        return self._text[0]

    def release_answer(self) -> None:
        """Release the answer's bytes: the terminal frame has been sent."""
        self._hold(0)

    def _hold(self, size: int) -> None:
        self._answer_budget.change(self._held, size)
        self._held = size

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
            case _:
                return protocol.Error(
                    code=self.code,
                    message=self.reason,
                    recoverable=self.code is not ErrorCode.PROCESSING_ERROR,
                    request_id=request_id,
                )

    # --- what subscribers are told ---------------------------------------------------------------

    def log_fields(self) -> dict[str, Any]:
        """Return the fields that identify the message in a record of the log."""
        return {name: value for name, value in self.event_fields().items() if name != "caused_by"}

    def event_fields(self) -> dict[str, Any]:
        """Return the fields that identify the message, and its cause, in an event."""
        return {
            "node_id": self.node.id,
            "platform": self.key.platform,
            "user_id": self.message.user.id,
            "channel_id": self.key.channel_id,
            "request_id": self.key.request_id,
            "session_id": self.session.id,
            "caused_by": self.node.caused_by,
        }

    def end_event(self, stopped_in: float) -> tuple[EventType, dict[str, Any]]:
        """Return the one event, and its data, that every accepted message ends in.

        `stopped_in` is how long it took, in seconds, until everything of it had ended.
        """
        if self.signal in (Signal.CANCELLED, Signal.TIMED_OUT):
            return EventType.MESSAGE_CANCELLED, {
                "reason": "timeout" if self.signal is Signal.TIMED_OUT else self.reason,
                "by": self.decided_by,
                "stopped_in": round(stopped_in, 6),
                "stopped": msgspec.structs.asdict(self.stopped),
            }
        data = {
            "outcome": self.signal.value,
            "duration": round(trio.current_time() - self.received_at, 6),
            "text": self.answer,
        }
        if self.signal is not Signal.COMPLETED:
            data["error"] = self.reason
        return EventType.MESSAGE_SENT, data
