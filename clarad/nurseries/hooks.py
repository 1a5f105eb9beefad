"""The hook runner: executes the hooks of hooks.yaml on events.

The store has an event's runs, in the order of the events, before any of them starts. Those of the
highest priority start together; the next tier starts when each of these has made one attempt, so
that a run that waits for a retry delays nothing.
"""

import logging
import secrets
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from itertools import count, groupby
from pathlib import Path
from typing import Final

import msgspec
import trio

from clarad.automation.hooks import attempt
from clarad.automation.hooks.client import WebhookClient
from clarad.automation.hooks.hook import Hook
from clarad.automation.hooks.hook_run import HookRun, assign_tiers, open_next_tiers
from clarad.automation.hooks.matching import Index
from clarad.automation.runs.retries import RetryQueue, Write
from clarad.automation.runs.run import PAGE, AttemptResult, Run
from clarad.events import Event, EventType
from clarad.limits.concurrency import Slots
from clarad.process import shell
from clarad.store import Ending, HookRuns, Outcome, StoredHookRun, StoreError
from clarad.systemd import catalogue

log = logging.getLogger(__name__)

MAX_RUNNING: Final = 64
"""Runs that execute at once; those of `gateway:shutdown` do not count."""

MAX_PARALLEL: Final = 16
"""Runs of one hook that execute at once: a hook that hangs leaves slots to the others."""

MAX_ACTIVE: Final = 10_000
"""Runs that execute or wait; above that, runs are stored as skipped, and can be replayed.

While the store fails, as many skipped runs again wait for it; above that, events are only logged.
"""

MAX_CHAIN: Final = 8
"""Runs that may lead to each other; a longer chain counts as a loop, and is skipped."""

SMALL_EVENT: Final = 16 * 1024
"""Bytes of an event that stays in memory while its run waits; a larger one is read again."""

_INTERRUPTED: Final = Ending(Outcome.INTERRUPTED, "the daemon was stopped while it ran")
_REMOVED: Final = Ending(Outcome.SKIPPED, "the hook was removed or disabled")
_OVERLAP: Final = Ending(Outcome.SKIPPED, "overlap: an earlier run of the hook goes on")
_OVERLOAD: Final = Ending(Outcome.SKIPPED, f"overload: {MAX_ACTIVE} runs wait; replay it later")
_LOOP: Final = Ending(Outcome.SKIPPED, f"loop: {MAX_CHAIN} runs have led to each other")


class UnknownRun(Exception):  # noqa: N818 - it is an answer, not a fault
    """There is no such run, or its hook is gone; the text says which."""


class Hooks:
    """The runner. `offer` and all that it calls are synchronous: no publisher waits for a hook."""

    def __init__(self, hooks: Iterable[Hook], store: HookRuns, given_up: trio.Event) -> None:
        """`given_up` is set when the daemon stops waiting for a store that fails."""
        self._store = store
        self._given_up = given_up
        self._webhooks = WebhookClient()
        self._slots = Slots[str](MAX_RUNNING, self._may_run)
        self._shutdown_slots = Slots[str](MAX_ACTIVE, lambda *_: True)
        self._active: set[HookRun] = set()
        self._retries = RetryQueue(given_up)
        self._idle = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._is_serving = False
        boot = secrets.token_hex(4)
        self._run_ids = (f"hook-{boot}-{n}" for n in count(1))
        self.replace(hooks)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Execute runs until cancelled.

        First this recovers the runs that an earlier start has left. Cancelling ends the runs that
        execute as `cancelled`; those that wait are in the store, for the next start.

        Raises:
            StoreError: the runs that were left cannot be read.
        """
        self._slots = Slots[str](MAX_RUNNING, self._may_run)
        self.replace(self.current)
        self._active.clear()
        self._retries = RetryQueue(self._given_up)
        try:
            async with trio.open_nursery() as self._nursery:
                self._is_serving = True
                self._nursery.start_soon(self._retries.run)
                try:
                    await self._recover(await self._store.unfinished(SMALL_EVENT))
                    task_status.started()
                    await trio.sleep_forever()
                finally:
                    self._is_serving = False
        finally:
            with trio.CancelScope(shield=True):
                await self._webhooks.aclose()

    def replace(self, hooks: Iterable[Hook]) -> None:
        """Replace the hooks. Runs that execute are not touched; waiting ones use the new hook."""
        self.current: Sequence[Hook] = list(hooks)
        """The hooks that are in force, disabled ones included."""
        self._hooks = {hook.name: hook for hook in self.current if hook.enabled}
        self._index = Index(self._hooks.values())
        self._slots.grant()

    async def inherit(self, epochs: Collection[int]) -> None:
        """Recover the runs of epochs that this daemon has taken over.

        Raises:
            StoreError: they cannot be read.
        """
        await self._recover(await self._store.unfinished(SMALL_EVENT, epochs))

    async def drained(self) -> None:
        """Wait until all runs have ended or wait for a retry."""
        while not all(hook_run.is_parked for hook_run in self._active):
            self._idle = trio.Event()
            await self._idle.wait()

    # --- what starts a run -----------------------------------------------------------------------

    @property
    def types(self) -> frozenset[EventType]:
        """The event types that some hook matches."""
        return self._index.types

    def offer(self, event: Event) -> None:
        """Start the runs of the hooks that match an event; raises nothing."""
        if hooks := self._index.matching(event):
            if len(self._active) >= 2 * MAX_ACTIVE:
                text = "no hook runs for event %s, and none can be replayed: %d runs wait"
                about = catalogue.STORE_FAILED.about(event_id=event.id)
                log.error(text, event.id, len(self._active), extra=about)
                return
            try:
                payload = msgspec.json.encode(event)
                hook_runs = [self._make_run(next(self._run_ids), hook, event) for hook in hooks]
                assign_tiers(hook_runs)
                for hook_run in hook_runs:
                    self._insert(hook_run, event, payload)
            except Exception:  # the publisher must not fail for a bug in here
                about = catalogue.INTERNAL_ERROR.about(event_id=event.id)
                log.exception("the hooks of event %s failed; this is a bug", event.id, extra=about)

    async def replay(self, run_id: str, caused_by: Sequence[str] = ()) -> HookRun:
        """Start a new run of a hook for the event of an earlier run.

        `caused_by` are the runs that led to the replay, if any, so that loops are found here, too.

        Raises:
            UnknownRun: there is no such run, or its hook is gone.
            StoreError: the run cannot be read.
        """
        stored = await self._store.find(run_id)
        if stored is None:
            raise UnknownRun(f"there is no run {run_id!r}; `clarad hooks runs` lists them")
        hook = self._hooks.get(stored.hook)
        if hook is None or stored.event is None:
            raise UnknownRun(f"the hook {stored.hook!r} of this run was removed or disabled")
        event = _decode(stored.event)
        if caused_by:
            event = msgspec.structs.replace(event, caused_by=tuple(caused_by))
        hook_run = self._make_run(next(self._run_ids), hook, event)
        self._insert(hook_run, event, msgspec.json.encode(event), replay_of=run_id)
        return hook_run

    async def _recover(self, unfinished: Iterable[StoredHookRun]) -> None:
        """Take up the runs that another start, or another daemon, has left.

        Those that waited are executed. Those that had begun may have acted: they are retried if
        their hooks have retries left, and otherwise end as `interrupted`. There may be thousands,
        so there is a checkpoint after each page.
        """
        known = {hook_run.run_id for hook_run in self._active}
        left = [stored for stored in unfinished if stored.run_id not in known]
        recovered = 0
        for _, group in groupby(left, key=lambda stored: stored.event_id):
            hook_runs = [self._recovered(stored) for stored in group]
            waiting = [hook_run for hook_run in hook_runs if hook_run.ending is None]
            assign_tiers(sorted(waiting, key=lambda hook_run: -hook_run.hook.priority))
            for hook_run in hook_runs:
                self._request_slot(hook_run)
                self._start_if_ready(hook_run)
            recovered += len(hook_runs)
            if recovered >= PAGE:
                recovered = 0
                await trio.lowlevel.checkpoint()

    def _recovered(self, stored: StoredHookRun) -> HookRun:
        hook = self._hooks.get(stored.hook)
        event = None if stored.event is None else _decode(stored.event)
        known = hook or Hook(name=stored.hook, events=frozenset(), working_dir=Path())
        hook_run = self._make_run(stored.run_id, known, event, attempts=stored.attempts)
        hook_run.is_stored = True
        if stored.begun and stored.attempts > known.retries:
            hook_run.ending = _INTERRUPTED
        elif hook is None:
            hook_run.ending = _REMOVED
        self._active.add(hook_run)
        return hook_run

    # --- one run: stored, given a slot, executed --------------------------------------------------

    def _may_run(self, name: str, running: int, _free: int) -> bool:
        """Return whether another run of a hook may have a slot; the rule of `Slots`."""
        hook = self._hooks.get(name)
        is_parallel = hook is not None and hook.overlap == "parallel"
        return running < (MAX_PARALLEL if is_parallel else 1)

    def _make_run(self, run_id: str, hook: Hook, event: Event | None, attempts: int = 0) -> HookRun:
        is_last = event is not None and event.type is EventType.GATEWAY_SHUTDOWN
        hook_run = HookRun(
            run_id,
            hook,
            event,
            slots=self._shutdown_slots if is_last else self._slots,
            key=run_id if is_last else hook.name,
            attempts=attempts,
        )
        hook_run.on_attempted = self._on_attempted
        return hook_run

    def _insert(
        self, hook_run: HookRun, event: Event, payload: bytes, replay_of: str | None = None
    ) -> None:
        """Store a new run: as begun if it has a slot already, as ended if it is skipped."""
        hook_run.ending = ending = self._skip_reason(hook_run, event)
        self._active.add(hook_run)
        # Before the commit, so that slots are given out in the order of the events.
        self._request_slot(hook_run)
        hook_run.begun = hook_run.has_slot and self._is_serving
        add = partial(
            self._store.add,
            run_id=hook_run.run_id,
            hook=hook_run.hook.name,
            event_id=event.id,
            event_type=event.type.value,
            event=payload.decode(),
            caused_by=event.caused_by,
            due_at=event.timestamp,
            begun=hook_run.begun,
            ending=ending,
            replay_of=replay_of,
        )
        if not hook_run.has_slot and len(payload) > SMALL_EVENT:
            hook_run.event = None
        add(then=partial(self._on_stored, hook_run, add, ending is not None))

    def _skip_reason(self, hook_run: HookRun, event: Event) -> Ending | None:
        if len(event.caused_by) >= MAX_CHAIN:
            return _LOOP
        if len(self._active) >= MAX_ACTIVE:
            return _OVERLOAD
        if hook_run.hook.overlap == "skip" and hook_run.tier.is_open and hook_run.overlaps:
            return _OVERLAP
        return None

    def _on_stored(
        self, hook_run: HookRun, add: Write, ended: bool, error: StoreError | None
    ) -> None:
        if error is not None and self._is_serving and not self._given_up.is_set():
            _log_store_failure(hook_run, f"waits, the store failed: {error}")
            self._retries.put(add, partial(self._on_stored, hook_run, add, ended), error)
        elif error is not None:
            _log_store_failure(hook_run, f"is not stored, the daemon stops: {error}")
            self._finish(hook_run)
        elif ended:
            assert hook_run.ending is not None
            about = hook_run.about(catalogue.HOOK_SKIPPED)
            log.warning("%s skipped: %s", hook_run.subject, hook_run.ending.reason, extra=about)
            self._finish(hook_run)
        elif hook_run in self._active:  # otherwise `run` was restarted, and has recovered its row
            hook_run.is_stored = True
            self._start_if_ready(hook_run)

    def _request_slot(self, hook_run: HookRun) -> None:
        """Request a slot for a run, if its tier is open and it has not been skipped."""
        if hook_run.tier.is_open and hook_run.ending is None:
            hook_run.request_slot(partial(self._start_if_ready, hook_run))

    def _start_if_ready(self, hook_run: HookRun) -> None:
        """Start a run's task if its row is stored, and it has a slot or only has to be ended."""
        may_start = hook_run.has_slot or hook_run.ending is not None
        if hook_run.is_stored and may_start and self._is_serving and not hook_run.is_started:
            hook_run.is_started = True
            assert self._nursery is not None
            self._nursery.start_soon(self._run_one, hook_run)

    async def _run_one(self, hook_run: HookRun) -> None:
        current = self._hooks.get(hook_run.hook.name)
        if hook_run.ending is None and not hook_run.begun:
            hook_run.hook = current or hook_run.hook
            hook_run.ending = None if current else _REMOVED
        run = self._make_attempts(hook_run)
        try:
            if hook_run.ending is None:
                await run.carry_out()
                hook_run.ending = run.ending
            else:
                if hook_run.has_slot:
                    hook_run.release()
                await run.finish(hook_run.ending)
        finally:
            self._finish(hook_run)

    def _make_attempts(self, hook_run: HookRun) -> Run:
        hook = hook_run.hook
        return Run(
            hook_run.run_id,
            hook_run.subject,
            store=self._store,
            owner=hook_run,
            given_up=self._given_up,
            attempt=partial(self._attempt, hook_run),
            timeout=hook.timeout,
            retries=hook.retries,
            attempts=hook_run.attempts,
            begun=hook_run.begun,
            has_slot=hook_run.has_slot,
        )

    async def _attempt(self, hook_run: HookRun, run: Run, output: shell.Output) -> AttemptResult:
        try:
            event = hook_run.event or _decode(await self._store.event(run.id))
        except StoreError as error:
            return AttemptResult(Outcome.FAILED, f"its event cannot be read: {error}")
        return await attempt.attempt(
            hook_run.hook,
            event,
            run_id=run.id,
            number=run.attempts,
            webhooks=self._webhooks,
            output=output,
        )

    def _on_attempted(self, hook_run: HookRun) -> None:
        self._idle.set()
        for following in open_next_tiers(hook_run):
            if following.hook.overlap == "skip" and following.overlaps:
                following.ending = following.ending or _OVERLAP
            self._request_slot(following)
            self._start_if_ready(following)

    def _finish(self, hook_run: HookRun) -> None:
        self._active.discard(hook_run)
        hook_run.ended.set()
        hook_run.note_attempted()


def _decode(event: str) -> Event:
    return msgspec.json.decode(event, type=Event)


def _log_store_failure(hook_run: HookRun, text: str) -> None:
    log.error(
        "a run of %s %s", hook_run.subject, text, extra=hook_run.about(catalogue.STORE_FAILED)
    )
