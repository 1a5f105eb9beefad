"""What answers a message. One Protocol, one module each.

A responder is a coroutine that is handed the request and something to answer with. It is cancelled
like everything else: by an exception at an `await`. Rejected: an async generator of parts. It may
not `yield` inside a cancel scope or a nursery, and a responder that runs a process needs both;
`trio.as_safe_channel` mends that at the price of two tasks and two channels a message.
"""

from typing import Protocol

from msgspec import Struct

from clarad.config import Settings
from clarad.protocol import Message, Stopped


class Request(Struct, frozen=True):
    """A message to be answered, and where it came from."""

    message: Message
    node_id: str
    platform: str
    session_id: str


class ResponderError(Exception):
    """The request cannot be answered; the text is shown to the user."""


class Answer(Protocol):
    """What a responder answers with. Nothing here blocks, and after a cancel nothing is sent."""

    @property
    def stopped(self) -> Stopped:
        """Counts what a cancellation stops; the responder adds to it."""

    def text(self, chunk: str) -> None:
        """Stream the next piece of the answer's text.

        Raises:
            ResponderError: the answer has become too long.
        """

    def tool_start(self, name: str, *, description: str | None = None, emoji: str = "🔧") -> None:
        """Tell the user that a tool begins."""

    def tool_result(self, name: str, *, success: bool, preview: str | None = None) -> None:
        """Tell the user that the tool begun last has ended."""


class Responder(Protocol):
    """Answers one message after another, many at a time."""

    async def respond(self, request: Request, answer: Answer) -> None:
        """Answer; what was said by the time this returns is the whole answer.

        Raises:
            ResponderError: the message ends in an `error` frame with its text.
        """


def make(settings: Settings) -> Responder:
    """Return the responder that the settings name."""
    if settings.responder == "command":
        from clarad.responders.command import Command

        assert settings.responder_command is not None
        return Command(settings.responder_command)
    from clarad.responders.echo import Echo

    return Echo()
