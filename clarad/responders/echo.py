"""The responder that says what it is told. For trying the gateway out, and for measuring it."""

from clarad.responders import Answer, Request


class Echo:
    """Answers every message with its own text."""

    async def respond(self, request: Request, answer: Answer) -> None:
        """Answer in one piece."""
        answer.text(request.message.content)
