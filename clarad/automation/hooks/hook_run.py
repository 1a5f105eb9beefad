"""An event on its way to the hooks that want it: one delivery each, in tiers of priority.

No I/O: the hook runner writes them down and carries them out.
"""

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

import trio

from clarad.automation.hooks.hook import Hook
from clarad.automation.runs.run import Run
from clarad.automation.runs.subject import Subject
from clarad.events import Event
from clarad.limits.concurrency import Slots
from clarad.store import Ending
from clarad.systemd.catalogue import Entry


class HookRun:
    """One event for one hook: a run, from the event to its end. It watches its own attempts."""

    def __init__(
        self,
        run_id: str,
        hook: Hook,
        event: Event | None,
        *,
        slots: Slots[str],
        key: str,
        attempts: int = 0,
    ) -> None:
        """Runs overlap that have the same `key` of `slots`.

        Without `event` it is read from the store when it is needed.
        """
        self.run_id = run_id
        self.hook = hook
        self.event = event
        self.attempts = attempts
        self.tier = Tier([self], is_open=True)
        self.is_stored = False
        self.begun = False
        self.is_placed = False
        self.is_started = False
        self.is_parked = False
        self.ending: Ending | None = None
        self.ended = trio.Event()
        self.when_tried: Callable[[HookRun], None] = lambda _: None
        """Called after each attempt, and when it is clear that there will be none."""
        self._slots = slots
        self._key = key
        self._is_tried = False

    @property
    def what(self) -> Subject:
        """What it is a run of."""
        return Subject("hook", self.hook.name)

    def about(self, entry: Entry) -> dict[str, Any]:
        """Return what makes a record of the log one about this."""
        return entry.about(**self.what.fields(self.run_id))

    # --- its place among those that run at once: the `Places` of its run -------------------------

    @property
    def overlaps(self) -> bool:
        """Whether another run of the hook goes on, or waits to."""
        return self._slots.held(self._key) > 0 or self._slots.is_waiting(self._key)

    def wait_for_place(self, start: Callable[[], None]) -> None:
        """Have `start` called once it has a place."""

        def take() -> None:
            self.is_placed = True
            start()

        self._slots.call_when_acquired(self._key, take)

    async def enter(self) -> None:
        """Wait for a place."""
        await self._slots.acquire(self._key)
        self.is_placed = True

    def leave(self) -> None:
        """Give the place back."""
        self.is_placed = False
        self._slots.release(self._key)

    # --- its attempts: the `Watcher` of its run --------------------------------------------------

    def attempt_begins(self, _run: Run) -> None:
        """Note that it no longer waits for another attempt."""
        self.is_parked = False

    def attempt_ended(self, _run: Run, _ending: Ending, *, again: bool) -> None:
        """Note that it has been tried."""
        self.is_parked = again
        self.tried()

    def tried(self) -> None:
        """Note that it has been tried, or never will be."""
        if not self._is_tried:
            self._is_tried = True
            self.tier.untried -= 1
        self.when_tried(self)


class Tier:
    """The deliveries of one event and one priority; the next tier opens when all are tried."""

    def __init__(self, deliveries: list[HookRun], *, is_open: bool) -> None:
        self.deliveries = deliveries
        self.is_open = is_open
        self.untried = len(deliveries)
        self.following: Tier | None = None


def into_tiers(deliveries: Iterable[HookRun]) -> None:
    """Put the deliveries of one event, those of highest priority first, into tiers."""
    last: Tier | None = None
    for _, group in groupby(deliveries, key=lambda delivery: delivery.hook.priority):
        tier = Tier(list(group), is_open=last is None)
        for delivery in tier.deliveries:
            delivery.tier = tier
        if last is not None:
            last.following = tier
        last = tier


def opened_by(delivery: HookRun) -> list[HookRun]:
    """Open the tiers whose turn it is now that this one is tried; return what is in them.

    More than one, if nothing of the next is to be tried.
    """
    opened: list[HookRun] = []
    tier = delivery.tier
    while tier.is_open and not tier.untried and tier.following is not None:
        tier = tier.following
        if not tier.is_open:
            tier.is_open = True
            opened += tier.deliveries
    return opened
