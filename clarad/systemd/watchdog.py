"""Sends systemd's watchdog keep-alives as long as every part of the daemon makes progress.

A running event loop proves too little: a part can be stuck while the loop runs. So each part is
asked for progress, and no keep-alive is sent while one has made none for longer than its patience.
Then systemd kills the daemon (SIGABRT) and starts it again. Before that, the log gets the stacks of
all tasks and threads. If the loop itself is stuck, faulthandler writes the threads' stacks when
SIGABRT arrives.

A silent part is stuck; a failing one is not. A database that is down still answers with errors, and
a restart would not fix it.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import trio

from clarad.systemd import catalogue
from clarad.systemd.notify import WATCHDOG, Notifier
from clarad.systemd.stacks import every_stack

log = logging.getLogger(__name__)

_SHARE_OF_PROBES: Final = 1 / 4
_SHARE_OF_PATIENCE: Final = 1 / 2
_SHARE_OF_KEEP_ALIVES: Final = 1 / 2
_SHARE_OF_DOUBT: Final = 1 / 20


class Part:
    """A part of the daemon. `progress` returns as soon as the part has made progress.

    `patience` is how many seconds that may take; at least half the watchdog's timeout.
    """

    def __init__(
        self, name: str, progress: Callable[[], Awaitable[None]], patience: float = 0
    ) -> None:
        self.name = name
        self.progress = progress
        self.patience = patience
        self.progress_at = 0.0


class Watchdog:
    """Watches parts; `timeout` is systemd's, in seconds (WatchdogSec=)."""

    def __init__(self, notifier: Notifier, timeout: float, parts: Iterable[Part]) -> None:
        self._notifier = notifier
        self._timeout = timeout
        self._parts = list(parts)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch until cancelled."""
        async with trio.open_nursery() as nursery:
            for part in self._parts:
                part.progress_at = trio.current_time()
                nursery.start_soon(self._probe, part)
            task_status.started()
            await self._send_keep_alives()

    async def _probe(self, part: Part) -> None:
        while True:
            await part.progress()
            part.progress_at = trio.current_time()
            await trio.sleep(self._timeout * _SHARE_OF_PROBES)

    async def _send_keep_alives(self) -> None:
        told: set[str] = set()
        while True:
            stuck = {part.name: silence for part in self._parts if (silence := self._stuck(part))}
            for name in told - stuck.keys():
                log.warning("the %s gets on again", name)
            if stuck.keys() - told:
                self._tell(stuck)
            told = set(stuck)
            if not stuck:
                self._notifier.send(WATCHDOG)
            # If the part makes progress in time, the next keep-alive saves the daemon.
            share = _SHARE_OF_DOUBT if stuck else _SHARE_OF_KEEP_ALIVES
            await trio.sleep(self._timeout * share)

    def _stuck(self, part: Part) -> float:
        """Return for how long a part has been silent; 0 if that is within its patience."""
        silence = trio.current_time() - part.progress_at
        return silence if silence > max(part.patience, self._timeout * _SHARE_OF_PATIENCE) else 0

    def _tell(self, stuck: dict[str, float]) -> None:
        names = " and ".join(f"the {name} (for {silence:.0f} s)" for name, silence in stuck.items())
        log.critical(
            "stuck: %s; systemd is going to restart the daemon. What it is doing:\n%s",
            names,
            every_stack(),
            extra=catalogue.WATCHDOG.about(part=" ".join(stuck)),
        )
