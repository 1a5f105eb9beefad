"""A node: an adapter as the gateway knows it, and the way of frames to it.

A message belongs to a node, not to a connection: its frames go to whatever connection the node has
at the time. What one connection has missed, the next one gets (`clarad.delivery.redelivery`).
"""

import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from msgspec import Struct

from clarad.delivery.replay import ReplayBuffer, ReplayFrame
from clarad.limits.memory import MemoryBudget
from clarad.protocol import Capability, CloseCode, Error, ErrorCode, encode, numbered
from clarad.store import MessageKey, NodeSession

MAX_SENT_TERMINALS: Final = 1000
"""Terminal frames that are remembered as sent on a connection; the oldest is forgotten first."""


class Sink(Protocol):
    """A connection, as a node sees it."""

    def send(self, frame: bytes) -> None:
        """Queue a frame; never blocks."""

    def when_written(self, then: Callable[[], None]) -> None:
        """Call `then` once everything queued is written; never, if the connection is lost."""

    def end(self, code: CloseCode, reason: str) -> None:
        """Close after writing what is queued."""

    def fetch_missed(self) -> None:
        """Fetch what other daemons have stored for the node, and send it."""

    def replace(self) -> None:
        """Close with 4000: the node has another connection, and this one's queue is dropped."""


class Node:
    """One adapter, by its platform and the id that it chose."""

    def __init__(
        self, node_id: str, platform: str, budget: MemoryBudget, last_seq: int = 0
    ) -> None:
        """All nodes' frames count in `budget`; `last_seq` is the highest number so far."""
        self.id = node_id
        self.platform = platform
        self.session_id = ""
        self.caused_by: tuple[str, ...] = ()
        self.streaming = False
        self.wants_accepted = False
        self.resumes = False
        self.sink: Sink | None = None
        self.disconnected_at = 0.0
        """When its last connection has ended, by `time.monotonic`."""
        self.unregistered = False
        self.after_seq = 0
        """This daemon numbers its frames above this; 0 unless another one may have had the node."""
        self.replay = ReplayBuffer(budget, last_seq)
        self.caught_up = False
        """Whether the connection has got everything that the node had missed."""
        self.has_missed_more = False
        """Whether a terminal frame was stored while the connection is being caught up."""
        self._sent = 0
        self._acked = 0
        self._unsent: deque[ReplayFrame] = deque()
        self._sent_terminals: deque[int] = deque(maxlen=MAX_SENT_TERMINALS)

    # --- connections -----------------------------------------------------------------------------

    def connect(self, sink: Sink, capabilities: frozenset[str]) -> None:
        """Switch to a new connection, which has to be caught up; the old one is closed."""
        if self.sink is not None:
            self.sink.replace()
        self.streaming = Capability.STREAMING in capabilities
        self.wants_accepted = Capability.ACCEPTED in capabilities
        self.resumes = Capability.RESUME in capabilities
        self.sink = sink
        self.caught_up = False
        self._sent_terminals.clear()

    def disconnect(self) -> None:
        """Note that the connection has ended."""
        self.sink = None
        self.caught_up = False
        self.disconnected_at = time.monotonic()
        self.replay.trim(self.replay.last)

    def adopt(self, session: NodeSession, after_seq: int) -> None:
        """Continue the session of another daemon, or of an earlier run of this one."""
        self.session_id = session.session_id
        self.resumes = bool(session.session_id)
        self.disconnected_at = time.monotonic() - session.away
        self.after_seq = after_seq
        self.replay.restart(after_seq)
        self._unsent.clear()
        self._sent = self._acked = 0

    def evict(self) -> None:
        """Leave the node to another daemon, which finds frames from now on in the store."""
        if self.sink is not None:
            self.sink.replace()
        self.disconnect()
        self.resumes = False
        self.after_seq = 0

    def resume(self, last_seq: int) -> int:
        """Resume the session after frame `last_seq`; return the number that it goes on after."""
        last_seq = min(last_seq, self.replay.last)
        self.replay.forget(last_seq)
        self._sent = self._acked = last_seq
        return last_seq

    def end_session(self) -> None:
        """End the session: nobody can resume it, and its frames are dropped."""
        self.resumes = False
        self.replay.forget(self.replay.last)

    def begin_session(self) -> None:
        """Begin a new session. It inherits the terminal frames that were not acked."""
        self.session_id = f"node-{secrets.token_hex(16)}"
        self._sent = self._acked = 0
        if self.resumes:
            self.replay.keep_terminal()
        else:
            self.replay.forget(self.replay.last)

    def catch_up(self) -> None:
        """Send the frames that have waited in the replay buffer; from now on send at once."""
        self.caught_up = True
        self._unsent = deque(self.replay.after(self._sent))
        self._flush()

    # --- frames ----------------------------------------------------------------------------------

    def send(self, frame: Struct) -> None:
        """Send a frame that is not terminal. Never blocks.

        If the node is not connected the frame is kept for it, or dropped if it does not resume.
        """
        if self.resumes:
            self._queue(self.replay.reserve(None), encode(frame))
        elif self.sink is not None:
            self.sink.send(encode(frame))

    def send_error(self, request_id: str, code: ErrorCode, text: str, *, recoverable: bool) -> None:
        """Send an `error` about a message."""
        self.send(Error(code=code, message=text, recoverable=recoverable, request_id=request_id))

    def refuse(self, received_on: Sink | None, error: Error) -> None:
        """Send a refusal, if the node still has the connection that the message came on.

        It has no number and is not replayed. The node sends an unaccepted message again on its next
        connection, where a replayed refusal would seem to answer the second attempt.
        """
        if received_on is not None and received_on is self.sink:
            received_on.send(encode(error))

    def reserve(self, key: MessageKey) -> ReplayFrame | None:
        """Number a terminal frame before it is stored; `None` if it needs no number."""
        if not self.resumes or self.unregistered:
            return None
        entry = self.replay.reserve(key)
        if self.caught_up:
            self._unsent.append(entry)
        return entry

    def withdraw(self, place: ReplayFrame | None) -> None:
        """Leave the number of `reserve` unused: the frame could not be stored."""
        if place is not None:
            self.replay.withdraw(place)
            self._flush()

    def deliver(
        self,
        key: MessageKey,
        terminal: bytes,
        place: ReplayFrame | None,
        written: Callable[[], None],
    ) -> None:
        """Send a terminal frame that is stored, or leave it to redelivery.

        `written` is called once it is written, if it has no number: then there will be no ack.
        """
        if self.resumes and place is not None and place.here:
            self.replay.fill(place, terminal)
            self._flush()
        elif self.caught_up:
            self.send_terminal(key, terminal, written)
        else:
            self.has_missed_more = True

    def send_terminal(self, key: MessageKey, terminal: bytes, written: Callable[[], None]) -> None:
        """Send a terminal frame without a number."""
        if self.sink is not None:
            self.sink.send(terminal)
            self.sink.when_written(written)
            self.note_sent(key)

    def send_numbered(self, key: MessageKey, terminal: bytes, seq: int) -> None:
        """Send a terminal frame with a number below those in the replay buffer."""
        if self.sink is not None:
            self.sink.send(numbered(terminal, seq))
            self._sent = seq
            self.note_sent(key)

    def resend(self, key: MessageKey, terminal: bytes) -> None:
        """Send a terminal frame again that had arrived, or that was for another node."""
        if self.resumes:
            self._queue(self.replay.reserve(key), terminal)
        elif self.sink is not None:
            self.sink.send(terminal)
            self.note_sent(key)

    def ack(self, seq: int) -> int | None:
        """Drop what has arrived; return its last number, or `None` if nothing is new.

        A number that was never sent counts as the last one sent, so each ack that has to be stored
        stands for a frame.
        """
        seq = min(seq, self._sent)
        if seq <= self._acked:
            return None
        self._acked = seq
        self.replay.forget(seq)
        return seq

    def was_sent(self, key: MessageKey) -> bool:
        """Return whether this message's terminal frame was sent on the present connection."""
        return hash(key) in self._sent_terminals

    def _queue(self, entry: ReplayFrame, frame: bytes) -> None:
        self.replay.fill(entry, frame)
        if self.caught_up:
            self._unsent.append(entry)
        self._flush()

    def _flush(self) -> None:
        """Send frames in order, up to the first terminal frame that is not stored yet."""
        if not self.caught_up or self.sink is None:
            self.replay.trim(self.replay.last)
            return
        while self._unsent and self._unsent[0].settled:
            entry = self._unsent.popleft()
            self._sent = entry.seq
            if entry.frame:
                self.sink.send(entry.frame)
                if entry.key is not None:
                    self.note_sent(entry.key)
        self.replay.trim(self._sent)

    def note_sent(self, key: MessageKey) -> None:
        """Note that this message's terminal frame was sent on the connection."""
        self._sent_terminals.append(hash(key))
