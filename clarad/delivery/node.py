"""The adapters that the gateway knows, each as a node: where frames for it are to go.

A message belongs to a node, not to a connection: its frames take whatever connection the node has
at the time. What a connection has missed, the next one is given (`clarad.delivery.redelivery`).
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
"""Terminal frames of one connection that are remembered as delivered."""


class Sink(Protocol):
    """A connection, as a node sees it."""

    def send(self, frame: bytes) -> None:
        """Queue a frame; never blocks."""

    def when_written(self, then: Callable[[], None]) -> None:
        """Call `then` once all that is queued is written; never, if the connection is lost."""

    def end(self, code: CloseCode, reason: str) -> None:
        """Close after what is queued."""

    def fetch_missed(self) -> None:
        """Read what another daemon has stored for the node."""

    def replace(self) -> None:
        """Close with 4000: the node has another connection, which gets what is queued."""


class Node:
    """One adapter, by its platform and the id that it chose."""

    def __init__(
        self, node_id: str, platform: str, budget: MemoryBudget, last_seq: int = 0
    ) -> None:
        """`budget` is what all nodes' frames are entry in, `last_seq` the highest number so far."""
        self.id = node_id
        self.platform = platform
        self.session_id = ""
        self.caused_by: tuple[str, ...] = ()
        self.streaming = False
        self.wants_accepted = False
        self.resumes = False
        self.sink: Sink | None = None
        self.disconnected_at = 0.0
        """When its last connection ended, by `time.monotonic`."""
        self.unregistered = False
        self.after_seq = 0
        """The number after which this daemon numbers its frames, if others may have had it."""
        self.replay = ReplayBuffer(budget, last_seq)
        self.caught_up = False
        """Whether the connection was given all that it had missed."""
        self.has_missed_more = False
        """Whether a terminal frame came meanwhile, which is in the store only."""
        self._sent = 0
        self._acked = 0
        self._unsent: deque[ReplayFrame] = deque()
        self._sent_terminals: deque[int] = deque(maxlen=MAX_SENT_TERMINALS)

    # --- connections -----------------------------------------------------------------------------

    def connect(self, sink: Sink, capabilities: frozenset[str]) -> None:
        """Take a new connection, which is to be caught up; what it had before is closed."""
        if self.sink is not None:
            self.sink.replace()
        self.streaming = Capability.STREAMING in capabilities
        self.wants_accepted = Capability.ACCEPTED in capabilities
        self.resumes = Capability.RESUME in capabilities
        self.sink = sink
        self.caught_up = False
        self._sent_terminals.clear()

    def disconnect(self) -> None:
        """Be without a connection."""
        self.sink = None
        self.caught_up = False
        self.disconnected_at = time.monotonic()
        self.replay.trim(self.replay.last)

    def adopt(self, session: NodeSession, after_seq: int) -> None:
        """Go on where another daemon, or an earlier life of this one, has left off."""
        self.session_id = session.session_id
        self.resumes = bool(session.session_id)
        self.disconnected_at = time.monotonic() - session.away
        self.after_seq = after_seq
        self.replay.restart(after_seq)
        self._unsent.clear()
        self._sent = self._acked = 0

    def evict(self) -> None:
        """Be with another daemon, which finds the frames from here on in the store."""
        if self.sink is not None:
            self.sink.replace()
        self.disconnect()
        self.resumes = False
        self.after_seq = 0

    def resume(self, last_seq: int) -> int:
        """Go on with the session after what has arrived; return the number from which to go on."""
        last_seq = min(last_seq, self.replay.last)
        self.replay.forget(last_seq)
        self._sent = self._acked = last_seq
        return last_seq

    def end_session(self) -> None:
        """Let nobody resume it, and keep nothing of it here."""
        self.resumes = False
        self.replay.forget(self.replay.last)

    def begin_session(self) -> None:
        """Begin a new session: of what is kept, the terminal frames belong to it."""
        self.session_id = f"node-{secrets.token_hex(16)}"
        self._sent = self._acked = 0
        if self.resumes:
            self.replay.keep_terminal()
        else:
            self.replay.forget(self.replay.last)

    def catch_up(self) -> None:
        """From here on frames go to the connection at once; first those that have waited here."""
        self.caught_up = True
        self._unsent = deque(self.replay.after(self._sent))
        self._flush()

    # --- frames ----------------------------------------------------------------------------------

    def send(self, frame: Struct) -> None:
        """Send a frame that is no terminal one. Never blocks.

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
        """Say on the connection that a message came on that it is not taken.

        It has no number, and is not kept: on its next connection a node sends again what was not
        accepted, and a refusal that came there as well would seem to end what is taken then.
        """
        if received_on is not None and received_on is self.sink:
            received_on.send(encode(error))

    def reserve(self, key: MessageKey) -> ReplayFrame | None:
        """Give a terminal frame that is about to be stored its place; `None` if it needs none."""
        if not self.resumes or self.unregistered:
            return None
        entry = self.replay.reserve(key)
        if self.caught_up:
            self._unsent.append(entry)
        return entry

    def withdraw(self, place: ReplayFrame | None) -> None:
        """Give a place up: the frame could not be stored."""
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
        """Send a terminal frame that is in the store, or leave it to be asked for there.

        `written` is called if it was given out without a number, so that nobody will ack it.
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
        """Send a terminal frame whose number is below all that is kept here."""
        if self.sink is not None:
            self.sink.send(numbered(terminal, seq))
            self._sent = seq
            self.note_sent(key)

    def resend(self, key: MessageKey, terminal: bytes) -> None:
        """Send a terminal frame once more, that had arrived or was another node's."""
        if self.resumes:
            self._queue(self.replay.reserve(key), terminal)
        elif self.sink is not None:
            self.sink.send(terminal)
            self.note_sent(key)

    def ack(self, seq: int) -> int | None:
        """Forget what has arrived; return up to where, `None` if that is nothing new.

        What was never sent cannot have arrived. So there are no more acks than frames to note.
        """
        seq = min(seq, self._sent)
        if seq <= self._acked:
            return None
        self._acked = seq
        self.replay.forget(seq)
        return seq

    def was_sent(self, key: MessageKey) -> bool:
        """Whether the connection that the node has now was given this message's terminal frame."""
        return hash(key) in self._sent_terminals

    def _queue(self, entry: ReplayFrame, frame: bytes) -> None:
        self.replay.fill(entry, frame)
        if self.caught_up:
            self._unsent.append(entry)
        self._flush()

    def _flush(self) -> None:
        """Send what is in its turn; a frame that is still to be stored holds up those after it."""
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
        """Note that this message's terminal frame is given to the connection."""
        self._sent_terminals.append(hash(key))
