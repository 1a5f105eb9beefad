"""Gives systemd its signs of life, while every part of the daemon gets on with its work.

A loop that turns is not enough: a part can be stuck while the loop turns. So each is asked to prove
that it gets on, and the sign is withheld while one has not done so for longer than its patience.
Then systemd ends the daemon (SIGABRT) and starts it anew. Before that, the log gets the stacks of
all tasks and threads. If the loop itself is stuck there is nobody to write them: faulthandler does,
those of the threads, when SIGABRT comes.

What is silent is stuck; what fails is not. A database that is down is answered for by errors, and a
restart would not mend it.
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
_SHARE_OF_SIGNS: Final = 1 / 2
_SHARE_OF_DOUBT: Final = 1 / 20


class Part:
    """A part of the daemon. `progress` returns as soon as the part has got on by something.

    `patience` is how many seconds it may take for that at most; half the watchdog's timeout, if
    that is more.
    """

    def __init__(
        self, name: str, progress: Callable[[], Awaitable[None]], patience: float = 0
    ) -> None:
        self.name = name
        self.progress = progress
        self.patience = patience
        self.got_on_at = 0.0


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
                part.got_on_at = trio.current_time()
                nursery.start_soon(self._probe, part)
            task_status.started()
            await self._give_signs()

    async def _probe(self, part: Part) -> None:
        while True:
            await part.progress()
            part.got_on_at = trio.current_time()
            await trio.sleep(self._timeout * _SHARE_OF_PROBES)

    async def _give_signs(self) -> None:
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
            # One that gets on again in time saves the daemon.
            share = _SHARE_OF_DOUBT if stuck else _SHARE_OF_SIGNS
            await trio.sleep(self._timeout * share)

    def _stuck(self, part: Part) -> float:
        """Return for how long a part has been silent, 0 if that is no longer than it may."""
        silence = trio.current_time() - part.got_on_at
        return silence if silence > max(part.patience, self._timeout * _SHARE_OF_PATIENCE) else 0

    def _tell(self, stuck: dict[str, float]) -> None:
        names = " and ".join(f"the {name} (for {silence:.0f} s)" for name, silence in stuck.items())
        log.critical(
            "stuck: %s; systemd is going to restart the daemon. What it is doing:\n%s",
            names,
            every_stack(),
            extra=catalogue.WATCHDOG.about(part=" ".join(stuck)),
        )
