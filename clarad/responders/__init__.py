"""Responders answer messages. One Protocol, one module for each.

A responder is a coroutine that is handed the request and something to answer with. It is cancelled
like everything else: by an exception at an `await`. Rejected: an async generator of parts. It may
not `yield` inside a cancel scope or a nursery, and a responder that runs a process needs both;
`trio.as_safe_channel` allows it at the price of two tasks and two channels for each message.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from msgspec import Struct

from clarad.config import Settings
from clarad.protocol import Message, Stopped
from sandbox.session import OnOutput
from sandbox.tools import Answer as ToolAnswer


class Request(Struct, frozen=True):
    """A message to be answered, and where it came from."""

    message: Message
    node_id: str
    platform: str
    session_id: str


class ResponderError(Exception):
    """The request cannot be answered; the text is shown to the user."""


class NoSandboxError(ResponderError):
    """There is no sandbox to be had; the text is shown to the user, who may try again later."""


class Tools(Protocol):
    """The tools that a responder can use; `clarad.nurseries.sandboxes.Sandboxes`."""

    async def use(
        self,
        tool: str,
        owner: str,
        arguments: Mapping[str, Any],
        *,
        on_output: OnOutput | None = None,
        on_killed: Callable[[int], None] | None = None,
    ) -> ToolAnswer:
        """Use a tool in the owner's sandbox; `on_killed` is told what a cancellation killed.

        Raises:
            SandboxError: there is no sandbox to be had.
        """


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


def make(settings: Settings, tools: Tools | None = None) -> Responder:
    """Return the responder that the settings name; without sandboxes there are no `tools`."""
    if settings.responder == "tools":
        from clarad.responders.tools import ToolUser

        assert tools is not None
        return ToolUser(tools)
    if settings.responder == "command":
        from clarad.responders.command import Command

        assert settings.responder_command is not None
        return Command(settings.responder_command)
    from clarad.responders.echo import Echo

    return Echo()
