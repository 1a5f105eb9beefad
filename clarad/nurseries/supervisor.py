"""Keeps the parts of the daemon running: restarts what fails, gives up on what keeps failing.

Erlang's rules in Trio's words. Children are started in order, each ready before the next. A child
that fails with an `Exception` is started again, alone, after a jittered pause (permanent,
one_for_one). All restarts share one budget; once it is spent the last failure is raised, so that
systemd restarts the whole daemon. A cancellation is not a failure.

Whether the supervisor is stopped or cancelled, or fails, it stops the children in reverse order and
waits for each: a child that is being cancelled can still write to the store.
"""

import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

from clarad.systemd import catalogue

log = logging.getLogger(__name__)

MAX_RESTARTS: Final = 5
"""Restarts allowed within `PERIOD`."""

PERIOD: Final = 60.0
"""Seconds over which restarts are counted."""

FIRST_PAUSE: Final = 0.1
MAX_PAUSE: Final = 5.0
"""Seconds before a restart: doubled with each restart in the period, up to the maximum."""

Serve = Callable[..., Awaitable[Any]]


class Child:
    """A part of the daemon; `serve` takes `task_status` and calls `started` when it is ready."""

    def __init__(self, name: str, serve: Serve) -> None:
        self.name = name
        self.serve = serve
        self.scope = trio.CancelScope()
        self.is_ready = False
        self.ended = trio.Event()


class Supervisor:
    """Holds the children; made by `open_supervisor`."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._children: dict[str, Child] = {}
        self._restarts: deque[float] = deque()

    async def start(self, name: str, serve: Serve) -> Any:
        """Start a child and wait until it is ready; return what it was `started` with.

        A failure before it is ready is not retried: it is raised here.
        """
        child = self._children[name] = Child(name, serve)
        return await self._nursery.start(self._supervise, child)

    async def stop(self, name: str) -> None:
        """Cancel a child and wait until it has ended, if it was ever started."""
        if (child := self._children.get(name)) is not None:
            child.scope.cancel("stopping")
            await child.ended.wait()

    def cancel(self, *names: str) -> None:
        """Cancel children that are ready at once, whatever is built upon them."""
        for name in names:
            child = self._children.get(name)
            if child is not None and child.is_ready:
                child.scope.cancel("cancelled")

    async def stop_all(self) -> None:
        """Stop the children in reverse order."""
        for name in reversed(self._children):
            await self.stop(name)

    async def ended(self, name: str) -> None:
        """Wait until a child has ended by itself, if it was ever started."""
        if (child := self._children.get(name)) is not None:
            await child.ended.wait()

    async def _supervise(
        self, child: Child, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED
    ) -> None:
        ready = _Ready(child, task_status)
        try:
            with child.scope:
                while (failure := await self._serve(child, ready)) is not None:
                    if not child.is_ready:
                        raise failure
                    if self._is_budget_spent(trio.current_time()):
                        about = catalogue.PART_GIVEN_UP.about(part=child.name)
                        log.critical("%s keeps failing; giving up", child.name, extra=about)
                        raise failure
                    about = catalogue.PART_RESTARTED.about(part=child.name)
                    text = "%s failed and is started again"
                    log.error(text, child.name, exc_info=failure, extra=about)
                    await trio.sleep(self._pause())
        finally:
            child.ended.set()

    async def _serve(self, child: Child, ready: "_Ready") -> Exception | None:
        """Run the child once and return what it failed with.

        A failure during a cancellation is logged, and the cancellation goes on: it must not use the
        budget up.
        """
        failure: Exception | None = None
        try:
            await child.serve(task_status=ready)
        except Exception as error:
            failure = error
        except BaseExceptionGroup as group:  # a nursery's: the failure, and the cancellation
            failure, rest = group.split(Exception)
            if failure is None or rest is None:
                raise
            about = catalogue.INTERNAL_ERROR.about(part=child.name)
            log.error("%s failed while it was stopped", child.name, exc_info=failure, extra=about)
            raise rest from None
        await trio.lowlevel.checkpoint_if_cancelled()
        return failure

    def _is_budget_spent(self, now: float) -> bool:
        while self._restarts and self._restarts[0] <= now - PERIOD:
            self._restarts.popleft()
        self._restarts.append(now)
        return len(self._restarts) > MAX_RESTARTS

    def _pause(self) -> float:
        longest = min(FIRST_PAUSE * 2.0 ** len(self._restarts), MAX_PAUSE)
        return longest * random.uniform(0.5, 1)  # noqa: S311 - not a secret


@asynccontextmanager
async def open_supervisor() -> AsyncIterator[Supervisor]:
    """Supervise for the length of the block; at its end, all children are stopped."""
    async with trio.open_nursery() as nursery:
        supervisor = Supervisor(nursery)
        try:
            yield supervisor
        finally:
            with trio.CancelScope(shield=True):
                await supervisor.stop_all()


class _Ready:
    """A `task_status` for all starts of a child: `started` counts the first time only."""

    def __init__(self, child: Child, task_status: trio.TaskStatus[Any]) -> None:
        self._child = child
        self._task_status = task_status

    def started(self, value: Any = None) -> None:
        """Pass the first call on; Trio takes only one."""
        if not self._child.is_ready:
            self._child.is_ready = True
            # From here on only the supervisor ends it, and it does so in order.
            self._child.scope.shield = True
            self._task_status.started(value)
