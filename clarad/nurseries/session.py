"""One session: a user in a channel, and a nursery with everything that is done for them there.

Its timeout never ends a message: a session with a message in it is not idle, however long the
message waits for others, or works without output.
"""

import secrets
from collections.abc import Awaitable, Callable

import trio

from clarad.turn import SessionKey


class Session:
    """`scope` has everything below it; it ends after `timeout` seconds without a message in it."""

    def __init__(self, key: SessionKey, timeout: float) -> None:
        self.id = f"session-{secrets.token_hex(8)}"
        self.key = key
        self.scope = trio.CancelScope()
        self.timed_out = False
        self.caused_by: tuple[str, ...] = ()
        self.timeout = timeout
        self.messages = 0
        """How many are in it. The timeout counts from the `touch` after the last one has left."""
        self.crowded_out = False
        """Whether it ended because there were too many others."""
        self._nursery: trio.Nursery | None = None
        self._early: list[Callable[[], Awaitable[None]]] = []
        self.touch()

    def touch(self) -> None:
        """Note that a message has come or gone."""
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
                # Not a deadline of the scope: moving that with each message costs more than this.
                while (left := self._time_left()) > 0:
                    await trio.sleep(left)
                self.timed_out = True
                self.scope.cancel("the session timed out")

    def _time_left(self) -> float:
        """Return the seconds until it may end; while a message is in it, the whole timeout."""
        if self.messages:
            return self.timeout
        return self._touched + self.timeout - trio.current_time()
