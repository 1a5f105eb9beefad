"""What was asked and what came of it, as the nodes' users see it."""

from dataclasses import dataclass, field
from typing import Final

import trio

from clarad.adapters import Outcome
from clarad.protocol import Cancelled, Error, ErrorCode, ResponseEnd

ASK_ANEW: Final = frozenset({ErrorCode.INTERRUPTED, ErrorCode.TIMEOUT, ErrorCode.NO_SANDBOX})
"""Ends of messages that had begun: recoverable, but only with a new id."""


@dataclass(eq=False)
class Asked:
    """A message, from when it was asked for the first time."""

    id: str
    channel: str
    kind: str
    """What it has the responder do."""
    number: int
    """Its place among those of its channel."""
    asked_at: float = field(default_factory=trio.current_time)
    ended_at: float | None = None
    refusals: int = 0
    outcomes: list[Outcome] = field(default_factory=list)
    over: trio.Event = field(default_factory=trio.Event)

    @property
    def outcome(self) -> str:
        """How it ended, in the words of the store."""
        match self.outcomes[0]:
            case ResponseEnd():
                return "completed"
            case Cancelled():
                return "cancelled"
            case Error(code=ErrorCode.INTERRUPTED):
                return "interrupted"
            case Error(code=ErrorCode.TIMEOUT):
                return "timed_out"
            case _:
                return "failed"

    @property
    def took(self) -> float:
        """Seconds from the first time that it was asked to its end."""
        assert self.ended_at is not None
        return self.ended_at - self.asked_at

    def end(self, outcome: Outcome) -> None:
        """Take note of a terminal frame, which has to be the only one."""
        self.outcomes.append(outcome)
        if self.ended_at is None:
            self.ended_at = trio.current_time()
            self.over.set()


def is_refusal(outcome: Outcome) -> bool:
    """Whether the message was not accepted, and may be sent again under its id."""
    return isinstance(outcome, Error) and outcome.recoverable and outcome.code not in ASK_ANEW


class Ledger:
    """All messages by their ids, and what else the nodes have noticed."""

    def __init__(self) -> None:
        self.asked: dict[str, Asked] = {}
        self.broken: list[str] = []
        self.sent_twice = 0

    def ask(self, node: str, channel: int, kind: str) -> Asked:
        """Enter a new message."""
        number = len(self.asked)
        message = Asked(f"{node}-{number}", f"{node}-{channel}", kind, number)
        self.asked[message.id] = message
        return message

    @property
    def lost(self) -> list[Asked]:
        return [message for message in self.asked.values() if not message.outcomes]

    @property
    def answered_twice(self) -> list[Asked]:
        return [message for message in self.asked.values() if len(message.outcomes) > 1]
