"""What an adapter remembers over its connections. No I/O, and no clock.

Rules (docs/protocol.md, sections 4 and 5):

1. A message is sent again, with its id, on each connection until it is known to be accepted; in a
   session that is new, until it has ended: the gateway may know nothing of it. One that is refused
   for now (`retry_after`) is sent again on the same connection, and is nobody's until then.
2. A frame whose `seq` is not above the highest seen was here already.
3. A message has one outcome. What comes for a message that nobody waits for is a stray: the answer
   to one that an earlier process of this adapter has sent.
4. What is acked has been taken by whoever wanted it; an `Answer` that nobody holds any more is not
   wanted. So what was received and not taken, when this process is killed, is sent again.
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
"""Messages that are remembered after their end."""


class Answer:
    """The frames of the answer to one message: iterate, the last one is its outcome.

    If the text is streamed, its chunks are all of it. What was written while there was no
    connection comes as one more chunk before the outcome. If something is missing in between, that
    chunk is a new line and the whole text.
    """

    def __init__(
        self, message: protocol.Message, taken: Callable[[str], None], *, streaming: bool
    ) -> None:
        self.message = message
        self._streaming = streaming
        self._streamed: list[str] = []
        self._frames: deque[AnswerFrame] = deque()
        self._taken = taken
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
            self._taken(self.message.id)
        return frame

    async def outcome(self) -> Outcome:
        """Wait for the end, and return it; what comes before is dropped."""
        async for frame in self:
            if isinstance(frame, Outcome):
                return frame
        raise RuntimeError("the outcome was taken already")

    def put(self, frame: AnswerFrame) -> None:
        """Hand on a frame."""
        if isinstance(frame, protocol.ResponseChunk):
            self._streamed.append(frame.chunk)
        elif isinstance(frame, protocol.ResponseEnd) and (missed := self._missed(frame.full_text)):
            self._frames.append(protocol.ResponseChunk(frame.id, frame.request_id, missed))
        self._frames.append(frame)
        self._more.set()

    def _missed(self, full_text: str) -> str:
        """Return what has to follow the chunks so that somebody who reads them has the text."""
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
    """As much of a frame as is needed if it is not known."""

    seq: int | None = None


class Session:
    """The messages under way, and how far the gateway's frames have come."""

    def __init__(
        self,
        on_stray: Callable[[Outcome], None],
        on_taken: Callable[[], None] = lambda: None,
        on_refused: Callable[[str, float], None] = lambda _id, _seconds: None,
        *,
        streaming: bool = True,
    ) -> None:
        """`on_taken` is called when there may be something to ack.

        `on_refused` is called with the id of a message to be sent `again` in so many seconds.
        `streaming` is whether the gateway sends the text of answers as it comes.
        """
        self._streaming = streaming
        self._on_stray = on_stray
        self._on_taken = on_taken
        self._on_refused = on_refused
        self._pending: dict[str, _Pending] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._untaken: dict[str, tuple[int, weakref.ref[Answer]]] = {}
        self._acked = 0
        self.session_id: str | None = None
        self.last_seq = 0

    def ask(self, message: protocol.Message) -> Answer:
        """Take a message on.

        Raises:
            ValueError: one with this id is under way, or it is too large to be sent.
        """
        if message.id in self._pending:
            raise ValueError(f"a message with the id {message.id!r} is under way")
        if len(protocol.encode(message)) > protocol.MAX_FRAME_BYTES:
            raise ValueError(f"the message has more than {protocol.MAX_FRAME_BYTES} bytes")
        answer = Answer(message, self._take, streaming=self._streaming)
        untaken = self._untaken  # only this: the garbage collector may run in any thread
        dropped = weakref.ref(answer, lambda _: untaken.pop(message.id, None))
        self._pending[message.id] = _Pending(message, dropped)
        return answer

    def cancel(self, cancel: protocol.Cancel) -> bool:
        """Have a message cancelled; `False` if it has ended, as far as is known."""
        pending = self._pending.get(cancel.request_id)
        if pending is None:
            return False
        pending.cancel = cancel
        if pending.refused:
            self._end_refused(pending)
        return True

    def again(self, request_id: str) -> protocol.Message | None:
        """Return a message that was refused, to be sent again now; `None` if it need not be."""
        pending = self._pending.get(request_id)
        if pending is None or not pending.refused:
            return None
        pending.refused = False
        return pending.message

    def registered(self, registered: protocol.Registered) -> list[protocol.Inbound]:
        """Begin a connection; return what is to be sent on it first."""
        if not registered.resumed:
            self.last_seq = 0
            self._untaken.clear()
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
        """Take a frame, and hand it on to whoever waits for it.

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
            self._hand_on(frame)

    def due_ack(self) -> int | None:
        """Return up to where the gateway may forget, if that has changed since it was asked."""
        if self.arrived <= self._acked:
            return None
        self._acked = self.arrived
        return self._acked

    @property
    def arrived(self) -> int:
        """The number up to which every frame was taken by whoever wanted it."""
        return min((seq for seq, _ in self._untaken.values()), default=self.last_seq + 1) - 1

    def _is_new(self, seq: int | None) -> bool:
        if seq is None:
            return True
        if seq <= self.last_seq:
            return False
        self.last_seq = seq
        return True

    def _hand_on(self, frame: protocol.Outbound) -> None:
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
                return  # about a cancel that came too late
            if frame.code is ErrorCode.SHUTTING_DOWN and pending and not pending.accepted:
                return  # it is sent again to the next daemon
            if isinstance(frame.retry_after, (int, float)) and pending:
                self._refuse(pending, frame.retry_after)
                return
        if pending is not None:
            answer = pending.answer()
            del self._pending[request_id]
            self._remember(request_id)
            if answer is not None:
                if isinstance(frame.seq, int):
                    self._untaken[request_id] = frame.seq, pending.answer
                answer.put(frame)
        elif request_id not in self._ended:
            self._remember(request_id)
            self._on_stray(frame)
            self._on_taken()

    def _refuse(self, pending: _Pending, seconds: float) -> None:
        pending.accepted, pending.refused = False, True
        if pending.cancel is not None:
            self._end_refused(pending)
        else:
            self._on_refused(pending.message.id, seconds)

    def _end_refused(self, pending: _Pending) -> None:
        """End a message that was cancelled, and that the gateway knows nothing of."""
        assert pending.cancel is not None
        reason = pending.cancel.reason or "requested"
        self._end(protocol.Cancelled(pending.message.id, reason, protocol.Stopped()))

    def _remember(self, request_id: str) -> None:
        self._ended[request_id] = None
        if len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)

    def _take(self, request_id: str) -> None:
        self._untaken.pop(request_id, None)
        self._on_taken()
