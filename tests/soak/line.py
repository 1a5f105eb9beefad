"""The way from one node to a daemon, which can be cut, and be slow."""

import random
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import trio

GONE: Final = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)

TRICKLE: Final = 512
"""Bytes at a time of a line that is slow."""


class Line:
    """Forwards each connection to any of some ports of this machine.

    `port` is its own, once it serves.
    """

    def __init__(self, targets: Sequence[int], chance: random.Random) -> None:
        self._targets = targets
        self._chance = chance
        self._connections: set[trio.CancelScope] = set()
        self.port = 0
        self.pause = 0.0
        """Seconds between two pieces on their way to the node: above 0 it reads slowly."""

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Cut what is connected, without a good-bye."""
        for scope in self._connections:
            scope.cancel("cut")

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        await trio.serve_listeners(self._forward, listeners, task_status=task_status)  # type: ignore[arg-type]

    async def _forward(self, client: trio.SocketStream) -> None:
        with suppress(*GONE), trio.CancelScope() as scope:
            self._connections.add(scope)
            try:
                daemon = await trio.open_tcp_stream("127.0.0.1", self._chance.choice(self._targets))
                async with daemon, trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, client, daemon, nursery, False)
                    nursery.start_soon(self._pump, daemon, client, nursery, True)
            finally:
                self._connections.discard(scope)

    async def _pump(
        self,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        nursery: trio.Nursery,
        to_node: bool,
    ) -> None:
        with suppress(*GONE):
            while data := await source.receive_some(TRICKLE if self.pause else 65536):
                if to_node and self.pause:
                    await trio.sleep(self.pause)
                await sink.send_all(data)
        nursery.cancel_scope.cancel("one side has closed")
