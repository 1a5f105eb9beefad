"""The runs that one event starts: one for each hook that matches it, in tiers by priority.

No I/O: `clarad.nurseries.hooks` stores and executes them.
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
    """One event for one hook, from the event to the run's end; the `RunOwner` of its `Run`."""

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
        """Runs overlap if they have the same `key` of `slots`.

        If `event` is `None`, it has to be read from the store before an attempt.
        """
        self.run_id = run_id
        self.hook = hook
        self.event = event
        self.attempts = attempts
        self.tier = Tier([self], is_open=True)
        self.is_stored = False
        self.begun = False
        self.has_slot = False
        self.is_started = False
        self.is_parked = False
        self.ending: Ending | None = None
        self.ended = trio.Event()
        self.on_attempted: Callable[[HookRun], None] = lambda _: None
        """Called after each attempt, and when the run ends without one."""
        self._slots = slots
        self._key = key
        self._was_attempted = False

    @property
    def subject(self) -> Subject:
        """The hook, as the log names it."""
        return Subject("hook", self.hook.name)

    def about(self, entry: Entry) -> dict[str, Any]:
        """Return the `extra` of a log record about this run."""
        return entry.about(**self.subject.fields(self.run_id))

    # --- its slot --------------------------------------------------------------------------------

    @property
    def overlaps(self) -> bool:
        """Whether another run of the hook has a slot or waits for one."""
        return self._slots.held(self._key) > 0 or self._slots.is_waiting(self._key)

    def request_slot(self, start: Callable[[], None]) -> None:
        """Call `start` as soon as the run has a slot, perhaps at once."""

        def on_acquired() -> None:
            self.has_slot = True
            start()

        self._slots.call_when_acquired(self._key, on_acquired)

    async def acquire(self) -> None:
        """Wait for a slot and acquire it. If cancelled, no slot is held."""
        await self._slots.acquire(self._key)
        self.has_slot = True

    def release(self) -> None:
        """Release the slot."""
        self.has_slot = False
        self._slots.release(self._key)

    # --- its attempts ----------------------------------------------------------------------------

    def attempt_began(self, _run: Run) -> None:
        """Note that the run no longer waits for a retry."""
        self.is_parked = False

    def attempt_ended(self, _run: Run, _ending: Ending, *, again: bool) -> None:
        """Note whether the run waits for a retry, and let the next tier start."""
        self.is_parked = again
        self.note_attempted()

    def note_attempted(self) -> None:
        """Note that the run has made an attempt, or never will."""
        if not self._was_attempted:
            self._was_attempted = True
            self.tier.pending -= 1
        self.on_attempted(self)


class Tier:
    """The runs of one event and one priority.

    The next tier opens when each of them has made its first attempt.
    """

    def __init__(self, hook_runs: list[HookRun], *, is_open: bool) -> None:
        self.hook_runs = hook_runs
        self.is_open = is_open
        self.pending = len(hook_runs)  # that have made no attempt
        self.following: Tier | None = None


def assign_tiers(hook_runs: Iterable[HookRun]) -> None:
    """Put the runs of one event, sorted by descending priority, into tiers."""
    last: Tier | None = None
    for _, group in groupby(hook_runs, key=lambda hook_run: hook_run.hook.priority):
        tier = Tier(list(group), is_open=last is None)
        for hook_run in tier.hook_runs:
            hook_run.tier = tier
        if last is not None:
            last.following = tier
        last = tier


def open_next_tiers(hook_run: HookRun) -> list[HookRun]:
    """Open the tiers that may start after this run's attempt; return the runs in them.

    More than one tier opens if no run of the first one is going to make an attempt.
    """
    opened: list[HookRun] = []
    tier = hook_run.tier
    while tier.is_open and not tier.pending and tier.following is not None:
        tier = tier.following
        if not tier.is_open:
            tier.is_open = True
            opened += tier.hook_runs
    return opened
