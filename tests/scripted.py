"""A responder that does what the message tells it to, so that tests can hold it anywhere."""

from collections import defaultdict

import trio

from clarad.protocol import Message
from clarad.responders import Answer, Request, ResponderError


class Scripted:
    """`hold` waits for `release`, `slow to stop` for `release` after a cancel, and so on."""

    def __init__(self) -> None:
        self.begun: defaultdict[str, trio.Event] = defaultdict(trio.Event)
        self.release: defaultdict[str, trio.Event] = defaultdict(trio.Event)
        self.ran: list[str] = []
        self.given: dict[str, Message] = {}

    async def respond(self, request: Request, answer: Answer) -> None:
        message = request.message
        self.ran.append(message.id)
        self.given[message.id] = message
        self.begun[message.id].set()
        match message.content:
            case "hold":
                answer.text("partly ")
                await self.release[message.id].wait()
                answer.text("done")
            case "slow to stop":
                await self._wait_slowly(message.id, answer)
            case "tool":
                answer.tool_start("hammer", description="hits")
                answer.tool_result("hammer", success=True, preview="hit")
            case "refuse":
                raise ResponderError("I would rather not.")
            case "crash":
                raise RuntimeError("a path of the host: /etc/passwd")
            case "fail in a nursery":
                async with trio.open_nursery():
                    raise ResponderError("From deep inside.")
            case "endless":
                while True:
                    answer.text("x" * 100_000)
                    await trio.lowlevel.checkpoint()
            case text:
                answer.text(text)

    async def _wait_slowly(self, request_id: str, answer: Answer) -> None:
        try:
            await trio.sleep_forever()
        finally:
            answer.text("never to be seen")
            answer.stopped.processes += 3
            with trio.CancelScope(shield=True):
                await self.release[request_id].wait()
