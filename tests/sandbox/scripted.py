"""An agent, and an engine, that do what a test says."""

import json
from typing import Any

import trio
from trio.testing import memory_stream_pair

from sandbox import EngineError
from sandbox.inside import frames
from sandbox.inside.frames import Decoder, Frame


class Agent:
    """The far end of a stream to a sandbox: takes frames, and sends what a test wants sent."""

    def __init__(self) -> None:
        self.theirs, self._ours = memory_stream_pair()
        self._decoder = Decoder()
        self._received: list[Frame] = []

    async def ready(self) -> None:
        """Say that it is there."""
        await self.say(frames.READY, 0, json.dumps({"python": "3"}).encode())

    async def say(self, kind: int, run: int, payload: bytes = b"") -> None:
        """Send a frame."""
        await self.say_all(frames.encode(kind, run, payload))

    async def say_all(self, data: bytes) -> None:
        """Send bytes, which arrive together."""
        await self._ours.send_all(data)

    async def exit(self, run: int, **said: Any) -> None:
        """Say that a run is over."""
        await self.say(frames.EXIT, run, json.dumps({"status": 0, **said}).encode())

    async def frame(self) -> Frame:
        """Wait for the next frame."""
        with trio.fail_after(10):
            while not self._received:
                self._received += self._decoder.feed(await self._ours.receive_some())
        return self._received.pop(0)

    async def start(self) -> int:
        """Wait until a run is asked for; return its number."""
        while True:
            kind, number, _ = await self.frame()
            if kind == frames.START:
                return number

    async def die(self) -> None:
        """Hang up."""
        await self._ours.aclose()

    async def answer_all(self) -> None:
        """Be ready, and end every run as soon as it has begun."""
        try:
            await self.ready()
            while data := await self._ours.receive_some():
                for frame in self._decoder.feed(data):
                    if frame.kind == frames.START:
                        await self.exit(frame.run)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass


class Engine:
    """An engine in memory."""

    name = "scripted"
    max_processes = None
    max_file = 1 << 20
    disk_to_verify = None

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.agents: dict[str, Agent] = {}
        self.made: list[str] = []
        self.failure: str | None = None
        self.hold: trio.Event | None = None
        self.is_mute = False
        self.undestroyable: set[str] = set()

    async def check(self) -> list[str]:
        """Fail, if that is wanted."""
        if self.failure is not None:
            raise EngineError(self.failure)
        return ["a warning"]

    async def create(self, name: str) -> trio.abc.Stream:
        """Make an agent once `hold` lets it; it answers, unless it is to be mute."""
        await trio.lowlevel.checkpoint()
        if self.hold is not None:
            await self.hold.wait()
        if self.failure is not None:
            raise EngineError(self.failure)
        agent = self.agents[name] = Agent()
        self.made.append(name)
        if not self.is_mute:
            self._nursery.start_soon(agent.answer_all)
        return agent.theirs

    async def destroy(self, name: str) -> None:
        """Forget it."""
        await trio.lowlevel.checkpoint()
        if name in self.undestroyable:
            raise EngineError("it does not want to")
        if agent := self.agents.pop(name, None):
            await agent.die()

    async def names(self) -> list[str]:
        """All that are there."""
        await trio.lowlevel.checkpoint()
        return list(self.agents)

    def close(self) -> None:
        """Nothing to let go of."""
