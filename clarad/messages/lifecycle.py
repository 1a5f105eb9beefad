"""A message's life as a state machine, without I/O.

The rules (docs/protocol.md, section 4):

1. A message is `received` until the store has it. Only then is it accepted; what the store refuses
   or already has is `dropped` and has no life of its own.
2. An accepted message is `waiting` until the messages of its channel before it have ended, then
   `running`. A cancel that comes while it is still `received` makes it `doomed`: it is accepted and
   then cancelled, because the adapter may already count on an answer.
3. The first outcome wins: completion, failure, cancel or timeout makes it `settling`. Whatever
   outcome comes later changes nothing.
4. A message that had begun when the daemon was killed may have acted. The next start does not run
   it, it is `interrupted`.
5. `settling` ends when the terminal frame is in the store, and only then is the frame sent. A
   message is `ended` once, so it has exactly one terminal frame.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class State(StrEnum):
    """Where a message is in its life."""

    RECEIVED = "received"
    DOOMED = "doomed"
    WAITING = "waiting"
    RUNNING = "running"
    SETTLING = "settling"
    ENDED = "ended"
    DROPPED = "dropped"


class Signal(StrEnum):
    """What can happen to a message."""

    ACCEPTED = "accepted"
    DROPPED = "dropped"
    BEGUN = "begun"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    INTERRUPTED = "interrupted"
    SETTLED = "settled"


OUTCOMES: Final = frozenset(
    {Signal.COMPLETED, Signal.FAILED, Signal.CANCELLED, Signal.TIMED_OUT, Signal.INTERRUPTED}
)

TRANSITIONS: Final[Mapping[State, Mapping[Signal, State]]] = {
    State.RECEIVED: {
        Signal.ACCEPTED: State.WAITING,
        Signal.DROPPED: State.DROPPED,
        Signal.CANCELLED: State.DOOMED,
    },
    State.DOOMED: {
        Signal.ACCEPTED: State.SETTLING,
        Signal.DROPPED: State.DROPPED,
    },
    State.WAITING: {
        Signal.BEGUN: State.RUNNING,
        Signal.FAILED: State.SETTLING,
        Signal.CANCELLED: State.SETTLING,
        Signal.INTERRUPTED: State.SETTLING,
    },
    State.RUNNING: {
        Signal.COMPLETED: State.SETTLING,
        Signal.FAILED: State.SETTLING,
        Signal.CANCELLED: State.SETTLING,
        Signal.TIMED_OUT: State.SETTLING,
    },
    State.SETTLING: {Signal.SETTLED: State.ENDED},
    State.ENDED: {},
    State.DROPPED: {},
}

_DECIDED: Final = frozenset({State.DOOMED, State.SETTLING, State.ENDED, State.DROPPED})


class IllegalTransition(Exception):  # noqa: N818 - the field's own name
    """A signal that the table has no place for: a bug in whatever sent it."""


class Lifecycle:
    """One message's state. Changes happen synchronously, so that no lock is needed."""

    __slots__ = ("state",)

    def __init__(self, state: State = State.RECEIVED) -> None:
        self.state = state

    @property
    def decided(self) -> bool:
        """Whether the outcome is settled on, or there will be none."""
        return self.state in _DECIDED

    def apply(self, signal: Signal) -> bool:
        """Move on.

        Returns:
            Whether the signal took effect: `False` for an outcome, or a beginning, that came after
            the outcome was decided.

        Raises:
            IllegalTransition: the table does not know the signal in this state.
        """
        after = TRANSITIONS[self.state].get(signal)
        if after is not None:
            self.state = after
            return True
        if self.decided and (signal in OUTCOMES or signal is Signal.BEGUN):
            return False
        raise IllegalTransition(f"{signal} while {self.state}")
