"""Deletes what is older than the settings say: a sweep every minute, a few rows at a time."""

import logging
from datetime import datetime, timedelta
from typing import Final

import trio

from clarad.config import Settings
from clarad.store import StoreError
from clarad.store.retention import (
    ATTACHMENTS,
    HOOK_RUNS,
    MESSAGES,
    TASK_RUNS,
    Extent,
    Place,
    Retention,
)
from clarad.systemd import catalogue

log = logging.getLogger(__name__)

MAX_PAUSE: Final = 60.0
"""Seconds between two sweeps; a tenth of the shortest period, if that is less."""

REST: Final = 0.05
"""Seconds between two transactions of a sweep."""

PATIENCE: Final = 1.0
"""Seconds to wait for an idle store before the next transaction: a busy one must be swept, too."""


class Sweeper:
    """Deletes old messages, attachments and runs, by the settings in force."""

    def __init__(self, store: Retention, settings: Settings) -> None:
        self._store = store
        self._extent: Extent | None = None
        self._changed = trio.Event()
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """Put these settings in force; a sweep that is under way ends, and a new one begins."""
        periods = {
            MESSAGES: settings.keep,
            ATTACHMENTS: settings.keep_attachments,
            HOOK_RUNS: settings.keep_runs,
            TASK_RUNS: settings.keep_runs,
        }
        self._periods = {kind: period for kind, period in periods.items() if period is not None}
        self._changed.set()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sweep until cancelled; an open transaction is still committed."""
        await self._measure()
        task_status.started()
        while True:
            self._changed = trio.Event()
            await self._sweep()
            await self._measure()
            pause = min([MAX_PAUSE, *(period / 10 for period in self._periods.values())])
            with trio.move_on_after(pause):
                await self._changed.wait()

    def describe(self) -> str:
        """Return how large the database was after the last sweep, and how far back it reached."""
        if self._extent is None:
            return "database: not looked at yet"
        size, messages, runs = self._extent
        since = {"messages": messages, "runs": runs}
        parts = [f"{what} since {_local(at)}" for what, at in since.items() if at is not None]
        return ", ".join([f"database: {size / 2**20:.1f} MiB", *parts])

    async def _sweep(self) -> None:
        """Delete what is old, until it is all gone or `apply` has changed the settings."""
        try:
            for kind, period in self._periods.items():
                before = self._store.now() - timedelta(seconds=period)
                place: Place | None = None
                while await self._may_go_on():
                    place = await self._store.delete(kind, before, place)
                    if place is None:
                        break
                else:
                    return
            while await self._may_go_on() and await self._store.shrink():
                pass
        except StoreError as error:
            about = catalogue.STORE_FAILED.about()
            log.warning("what is old is not deleted, the store failed: %s", error, extra=about)

    async def _may_go_on(self) -> bool:
        """Rest until the store is idle; return whether the settings are still the same."""
        await trio.sleep(REST)
        with trio.move_on_after(PATIENCE):
            while not self._store.is_idle:
                await trio.sleep(REST)
        return not self._changed.is_set()

    async def _measure(self) -> None:
        try:
            self._extent = await self._store.extent()
        except StoreError as error:
            about = catalogue.STORE_FAILED.about()
            log.warning("the size of the database is not known: %s", error, extra=about)


def _local(at: datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M}"
