"""One session: a user in a channel, and a nursery with everything that is done for them there."""

import secrets
from collections.abc import Awaitable, Callable

import trio

from clarad.turn import SessionKey


class Session:
    """`scope` has everything below it; it ends when there has been no activity for `timeout` s."""

    def __init__(self, key: SessionKey, timeout: float) -> None:
        self.id = f"session-{secrets.token_hex(8)}"
        self.key = key
        self.scope = trio.CancelScope()
        self.timed_out_at: float | None = None
        self.caused_by: tuple[str, ...] = ()
        self.timeout = timeout
        self.messages = 0
        """How many live in it."""
        self.crowded_out = False
        """Whether it ended because there were too many others."""
        self._nursery: trio.Nursery | None = None
        self._early: list[Callable[[], Awaitable[None]]] = []
        self.touch()

    def touch(self) -> None:
        """Note activity: the timeout counts from here."""
        self._touched = trio.current_time()

    def start_soon(self, task: Callable[[], Awaitable[None]]) -> None:
        """Start a task below this session."""
        if self._nursery is None:
            self._early.append(task)
        else:
            self._nursery.start_soon(task)

    async def run(self) -> None:
        """Live until the timeout; cancelling ends what is below."""
        with self.scope:
            async with trio.open_nursery() as self._nursery:
                for task in self._early:
                    self._nursery.start_soon(task)
                # Not a deadline of the scope: moving that with each frame costs more than this.
                while trio.current_time() < self._touched + self.timeout:
                    await trio.sleep_until(self._touched + self.timeout)
                self.timed_out_at = trio.current_time()
                self.scope.cancel("the session timed out")
