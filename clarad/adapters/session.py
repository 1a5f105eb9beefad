"""The state of an adapter that outlives its connections. No I/O, and no clock.

Rules (docs/protocol.md, sections 4 and 5):

1. Send a message again, with its ID, on each connection until it is accepted. In a new session,
   until it has ended: the gateway may have lost it. A message refused with `retry_after` is sent
   again on the same connection.
2. Drop a frame whose `seq` is not above the highest one seen: it is a duplicate.
3. A message has one outcome. The outcome of an unknown message is a stray: an earlier process of
   this adapter has sent the message.
4. Ack only outcomes that were read from their `Answer`, or whose `Answer` was dropped. If this
   process is killed, the gateway sends again what was received and not read.
"""

import logging
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

import anyio
import msgspec

from clarad import protocol
from clarad.protocol import ErrorCode

log = logging.getLogger(__name__)

Outcome = protocol.ResponseEnd | protocol.Cancelled | protocol.Error
"""How a message ends."""

AnswerFrame = (
    protocol.ResponseStart
    | protocol.ResponseChunk
    | protocol.ToolStart
    | protocol.ToolResult
    | protocol.Status
    | Outcome
)

REMEMBERED: Final = 1000
"""IDs of ended messages to remember."""


class Answer:
    """The frames of the answer to one message: iterate over them; the last one is the outcome.

    The chunks of a streamed text together are the whole text: what was written while there was no
    connection comes as one more chunk before the outcome. If a chunk in the middle is missing, that
    last chunk is a new line and the whole text.
    """

    def __init__(
        self, message: protocol.Message, on_read: Callable[[str], None], *, streaming: bool
    ) -> None:
        self.message = message
        self._streaming = streaming
        self._streamed: list[str] = []
        self._frames: deque[AnswerFrame] = deque()
        self._on_read = on_read
        self._more = anyio.Event()
        self._over = False

    def __aiter__(self) -> "Answer":
        return self

    async def __anext__(self) -> AnswerFrame:
        """Wait for the next frame. Cancelling loses nothing; one task may wait."""
        if self._over:
            raise StopAsyncIteration
        while not self._frames:
            self._more = anyio.Event()
            await self._more.wait()
        frame = self._frames.popleft()
        if isinstance(frame, Outcome):
            self._over = True
            self._on_read(self.message.id)
        return frame

    async def outcome(self) -> Outcome:
        """Drop all frames before the outcome, and return that."""
        async for frame in self:
            if isinstance(frame, Outcome):
                return frame
        raise RuntimeError("the outcome has been read already")

    def put(self, frame: AnswerFrame) -> None:
        """Add a frame."""
        if isinstance(frame, protocol.ResponseChunk):
            self._streamed.append(frame.chunk)
        elif isinstance(frame, protocol.ResponseEnd) and (missed := self._missed(frame.full_text)):
            self._frames.append(protocol.ResponseChunk(frame.id, frame.request_id, missed))
        self._frames.append(frame)
        self._more.set()

    def _missed(self, full_text: str) -> str:
        """Return the chunk that completes the streamed chunks to the whole text."""
        streamed = "".join(self._streamed)
        if not self._streaming:
            return ""
        if full_text.startswith(streamed):
            return full_text[len(streamed) :]
        return "\n" * (not streamed.endswith("\n")) + full_text


class _Pending:
    """A message that has not ended."""

    def __init__(self, message: protocol.Message, answer: "weakref.ref[Answer]") -> None:
        self.message = message
        self.answer = answer
        self.accepted = False
        self.refused = False
        self.cancel: protocol.Cancel | None = None


class _Numbered(msgspec.Struct):
    """The part of an unknown frame that counts."""

    seq: int | None = None


class Session:
    """The messages that have not ended, and the highest `seq` received."""

    def __init__(
        self,
        on_stray: Callable[[Outcome], None],
        on_ack_due: Callable[[], None] = lambda: None,
        on_refused: Callable[[str, float], None] = lambda _id, _seconds: None,
        *,
        streaming: bool = True,
    ) -> None:
        """`on_ack_due` is called when there may be something to ack.

        `on_refused` is called with the ID of a message to `retry`, and in how many seconds.
        `streaming` says whether the gateway sends chunks.
        """
        self._streaming = streaming
        self._on_stray = on_stray
        self._on_ack_due = on_ack_due
        self._on_refused = on_refused
        self._pending: dict[str, _Pending] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._unread: dict[str, tuple[int, weakref.ref[Answer]]] = {}
        self._acked = 0
        self.session_id: str | None = None
        self.last_seq = 0

    def ask(self, message: protocol.Message) -> Answer:
        """Add a message, which the caller sends if it is connected.

        Raises:
            ValueError: a message with this ID has not ended, or this one is too large.
        """
        if message.id in self._pending:
            raise ValueError(f"a message with the id {message.id!r} is under way")
        if len(protocol.encode(message)) > protocol.MAX_FRAME_BYTES:
            raise ValueError(f"the message has more than {protocol.MAX_FRAME_BYTES} bytes")
        answer = Answer(message, self._mark_read, streaming=self._streaming)
        unread = self._unread  # not `self`: the garbage collector may call this in any thread
        dropped = weakref.ref(answer, lambda _: unread.pop(message.id, None))
        self._pending[message.id] = _Pending(message, dropped)
        return answer

    def cancel(self, cancel: protocol.Cancel) -> bool:
        """Note that a message is cancelled; `False` if it is unknown or has ended."""
        pending = self._pending.get(cancel.request_id)
        if pending is None:
            return False
        pending.cancel = cancel
        if pending.refused:
            self._end_refused(pending)
        return True

    @property
    def has_accepted(self) -> bool:
        """Whether the gateway has accepted a message whose end has not arrived."""
        return any(pending.accepted for pending in self._pending.values())

    def retry(self, request_id: str) -> protocol.Message | None:
        """Return a refused message, to be sent again now; `None` if it is not refused any more."""
        pending = self._pending.get(request_id)
        if pending is None or not pending.refused:
            return None
        pending.refused = False
        return pending.message

    def registered(self, registered: protocol.Registered) -> list[protocol.Inbound]:
        """Begin a connection; return the frames to send on it first."""
        if not registered.resumed:
            self.last_seq = 0
            self._unread.clear()
        self._acked = self.arrived
        self.session_id = registered.session_id
        frames: list[protocol.Inbound] = []
        for pending in self._pending.values():
            pending.refused = False
            if not (registered.resumed and pending.accepted):
                frames.append(pending.message)
            if pending.cancel is not None:
                frames.append(pending.cancel)
        return frames

    def receive(self, text: str) -> None:
        """Pass a frame on to its `Answer`, or to `on_stray`.

        Raises:
            msgspec.DecodeError: it is not JSON.
        """
        try:
            frame = protocol.decode_outbound(text)
        except msgspec.ValidationError:  # of a newer gateway
            numbered = msgspec.json.decode(text, type=_Numbered)
            self._is_new(numbered.seq)
            return
        seq = getattr(frame, "seq", None)
        if self._is_new(None if seq is msgspec.UNSET else seq):
            self._dispatch(frame)

    def due_ack(self) -> int | None:
        """Return the `seq` to ack, if it has risen since the last call."""
        if self.arrived <= self._acked:
            return None
        self._acked = self.arrived
        return self._acked

    @property
    def arrived(self) -> int:
        """The highest `seq` up to which no outcome is unread."""
        return min((seq for seq, _ in self._unread.values()), default=self.last_seq + 1) - 1

    def _is_new(self, seq: int | None) -> bool:
        if seq is None:
            return True
        if seq <= self.last_seq:
            return False
        self.last_seq = seq
        return True

    def _dispatch(self, frame: protocol.Outbound) -> None:
        match frame:
            case protocol.Accepted():
                self._accept(frame.request_id)
            case protocol.ResponseEnd() | protocol.Cancelled() | protocol.Error():
                self._end(frame)
            case (
                protocol.ResponseStart()
                | protocol.ResponseChunk()
                | protocol.ToolStart()
                | protocol.ToolResult()
                | protocol.Status()
            ) if isinstance(frame.request_id, str):
                self._accept(frame.request_id)
                if (answer := self._answer(frame.request_id)) is not None:
                    answer.put(frame)
            case _:
                pass

    def _answer(self, request_id: str) -> Answer | None:
        pending = self._pending.get(request_id)
        return None if pending is None else pending.answer()

    def _accept(self, request_id: str) -> None:
        if (pending := self._pending.get(request_id)) is not None:
            pending.accepted, pending.refused = True, False

    def _end(self, frame: Outcome) -> None:
        request_id = frame.request_id
        if not isinstance(request_id, str):
            log.warning("the gateway could not use a frame: %s", frame)
            return
        pending = self._pending.get(request_id)
        if isinstance(frame, protocol.Error):
            if frame.code is ErrorCode.NOT_FOUND:
                return  # the answer to a cancel that came too late
            if frame.code is ErrorCode.SHUTTING_DOWN and pending and not pending.accepted:
                return  # the next connection sends it again
            if isinstance(frame.retry_after, (int, float)) and pending:
                self._refuse(pending, frame.retry_after)
                return
        if pending is not None:
            answer = pending.answer()
            del self._pending[request_id]
            self._remember(request_id)
            if answer is not None:
                if isinstance(frame.seq, int):
                    self._unread[request_id] = frame.seq, pending.answer
                answer.put(frame)
        elif request_id not in self._ended:
            self._remember(request_id)
            self._on_stray(frame)
            self._on_ack_due()

    def _refuse(self, pending: _Pending, seconds: float) -> None:
        pending.accepted, pending.refused = False, True
        if pending.cancel is not None:
            self._end_refused(pending)
        else:
            self._on_refused(pending.message.id, seconds)

    def _end_refused(self, pending: _Pending) -> None:
        """End a cancelled message that the gateway has refused, and so does not know."""
        assert pending.cancel is not None
        reason = pending.cancel.reason or "requested"
        self._end(protocol.Cancelled(pending.message.id, reason, protocol.Stopped()))

    def _remember(self, request_id: str) -> None:
        self._ended[request_id] = None
        if len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)

    def _mark_read(self, request_id: str) -> None:
        self._unread.pop(request_id, None)
        self._on_ack_due()
