"""The responder that repeats each message, for trying the gateway out, and for benchmarks."""

from clarad.responders import Answer, Request


class Echo:
    """Answers every message with its own text."""

    async def respond(self, request: Request, answer: Answer) -> None:
        """Answer in one piece."""
        answer.text(request.message.content)
