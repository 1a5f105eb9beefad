"""The hook runner: starts what hooks.yaml says when something happens, beside the gateway.

An event's runs are written to the store, in the order of the events, before any of them starts.
Those of the highest priority start side by side; those of the next when each of these has been
tried once, so that one that waits for another attempt holds nobody up.
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
from clarad.automation.hooks.hook_run import HookRun, into_tiers, opened_by
from clarad.automation.hooks.matching import Index
from clarad.automation.runs.retries import RetryQueue, Write
from clarad.automation.runs.run import PAGE, Run, Tried
from clarad.events import Event, EventType
from clarad.limits.concurrency import Slots
from clarad.process import shell
from clarad.store import Ending, HookRuns, Outcome, StoredHookRun, StoreError
from clarad.systemd import catalogue

log = logging.getLogger(__name__)

MAX_RUNNING: Final = 64
"""Runs that go on at once; those of `gateway:shutdown` start all the same."""

MAX_PARALLEL: Final = 16
"""Runs of one hook that go on at once: one that hangs leaves places to the others."""

MAX_LIVING: Final = 10_000
"""Runs that go on or wait; past that they are written down as skipped, to be replayed.

While the store takes nothing, as many that are skipped wait for it; past that they are only logged.
"""

MAX_CHAIN: Final = 8
"""Runs that may lead to each other; past that it is taken for a loop."""

SMALL_EVENT: Final = 16 * 1024
"""Bytes of an event that is kept in memory while its run waits; a larger one is read again."""

_INTERRUPTED: Final = Ending(Outcome.INTERRUPTED, "the daemon was stopped while it ran")
_REMOVED: Final = Ending(Outcome.SKIPPED, "the hook was removed or disabled")
_OVERLAP: Final = Ending(Outcome.SKIPPED, "overlap: an earlier run of the hook goes on")
_OVERLOAD: Final = Ending(Outcome.SKIPPED, f"overload: {MAX_LIVING} runs wait; replay it later")
_LOOP: Final = Ending(Outcome.SKIPPED, f"loop: {MAX_CHAIN} runs have led to each other")


class UnknownRun(Exception):  # noqa: N818 - it is an answer, not a fault
    """There is no such run, or its hook is gone; the text says which."""


class Hooks:
    """The runner. `offer`, and what it leads to, is synchronous: nobody waits for a hook."""

    def __init__(self, hooks: Iterable[Hook], store: HookRuns, given_up: trio.Event) -> None:
        """`given_up` is set when the daemon waits no longer for a store that fails."""
        self._store = store
        self._given_up = given_up
        self._poster = WebhookClient()
        self._slots = Slots[str](MAX_RUNNING, self._may_run)
        self._last_slots = Slots[str](MAX_LIVING, lambda *_: True)
        self._living: set[HookRun] = set()
        self._retries = RetryQueue(given_up)
        self._idle = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._serving = False
        boot = secrets.token_hex(4)
        self._run_ids = (f"hook-{boot}-{n}" for n in count(1))
        self.replace(hooks)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry runs out until cancelled; those that go on then end as `cancelled`.

        Those that wait are in the store, and the daemon's next start runs them, as this one does
        with what an earlier one has left.

        Raises:
            StoreError: what was left cannot be read.
        """
        self._slots = Slots[str](MAX_RUNNING, self._may_run)
        self.replace(self.current)
        self._living.clear()
        self._retries = RetryQueue(self._given_up)
        try:
            async with trio.open_nursery() as self._nursery:
                self._serving = True
                self._nursery.start_soon(self._retries.run)
                try:
                    await self._recover(await self._store.unfinished(SMALL_EVENT))
                    task_status.started()
                    await trio.sleep_forever()
                finally:
                    self._serving = False
        finally:
            with trio.CancelScope(shield=True):
                await self._poster.aclose()

    def replace(self, hooks: Iterable[Hook]) -> None:
        """Take other hooks. What goes on goes on; what waits is run as its hook now is."""
        self.current: Sequence[Hook] = list(hooks)
        """The hooks that are in force; those that are off are among them."""
        self._hooks = {hook.name: hook for hook in self.current if hook.enabled}
        self._index = Index(self._hooks.values())
        self._slots.grant()

    async def inherit(self, lives: Collection[int]) -> None:
        """Go on with what these lives of daemons have left.

        Raises:
            StoreError: it cannot be read.
        """
        await self._recover(await self._store.unfinished(SMALL_EVENT, lives))

    async def drained(self) -> None:
        """Wait until nothing runs or waits, but for runs that wait for another attempt."""
        while not all(delivery.is_parked for delivery in self._living):
            self._idle = trio.Event()
            await self._idle.wait()

    # --- what starts a run -----------------------------------------------------------------------

    @property
    def types(self) -> frozenset[EventType]:
        """The types of event that some hook wants."""
        return self._index.types

    def offer(self, event: Event) -> None:
        """Have the event's hooks run; a subscriber of the bus."""
        if hooks := self._index.matching(event):
            if len(self._living) >= 2 * MAX_LIVING:
                text = "no hook runs for event %s, and none can be replayed: %d runs wait"
                about = catalogue.STORE_FAILED.about(event_id=event.id)
                log.error(text, event.id, len(self._living), extra=about)
                return
            try:
                payload = msgspec.json.encode(event)
                deliveries = [self._deliver(next(self._run_ids), hook, event) for hook in hooks]
                into_tiers(deliveries)
                for delivery in deliveries:
                    self._write(delivery, event, payload)
            except Exception:  # whoever published the event has nothing to do with it
                about = catalogue.INTERNAL_ERROR.about(event_id=event.id)
                log.exception("the hooks of event %s failed; this is a bug", event.id, extra=about)

    async def replay(self, run_id: str, caused_by: Sequence[str] = ()) -> HookRun:
        """Run a hook again for the event that an earlier run had; returns when it is under way.

        `caused_by` are the runs that led to this, if any: a replay is no way out of a loop.

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
        event = _read(stored.event)
        if caused_by:
            event = msgspec.structs.replace(event, caused_by=tuple(caused_by))
        delivery = self._deliver(next(self._run_ids), hook, event)
        self._write(delivery, event, msgspec.json.encode(event), replay_of=run_id)
        return delivery

    async def _recover(self, unfinished: Iterable[StoredHookRun]) -> None:
        """Go on with what an earlier run of the daemon left.

        What waited is run. What ran may have acted: it is tried again if its hook has retries left,
        and otherwise it is `interrupted`. There may be thousands, so others have their turn in
        between.
        """
        known = {delivery.run_id for delivery in self._living}
        left = [stored for stored in unfinished if stored.run_id not in known]
        taken_up = 0
        for _, group in groupby(left, key=lambda stored: stored.event_id):
            deliveries = [self._recovered(stored) for stored in group]
            waiting = [delivery for delivery in deliveries if delivery.ending is None]
            into_tiers(sorted(waiting, key=lambda delivery: -delivery.hook.priority))
            for delivery in deliveries:
                self._queue(delivery)
                self._go_on(delivery)
            taken_up += len(deliveries)
            if taken_up >= PAGE:
                taken_up = 0
                await trio.lowlevel.checkpoint()

    def _recovered(self, stored: StoredHookRun) -> HookRun:
        hook = self._hooks.get(stored.hook)
        event = None if stored.event is None else _read(stored.event)
        known = hook or Hook(name=stored.hook, events=frozenset(), working_dir=Path())
        delivery = self._deliver(stored.run_id, known, event, attempts=stored.attempts)
        delivery.is_stored = True
        if stored.begun and stored.attempts > known.retries:
            delivery.ending = _INTERRUPTED
        elif hook is None:
            delivery.ending = _REMOVED
        self._living.add(delivery)
        return delivery

    # --- a run's way -----------------------------------------------------------------------------

    def _may_run(self, name: str, running: int, _free: int) -> bool:
        """Return whether another run of a hook may go on; the rule of `Slots`."""
        hook = self._hooks.get(name)
        is_parallel = hook is not None and hook.overlap == "parallel"
        return running < (MAX_PARALLEL if is_parallel else 1)

    def _deliver(self, run_id: str, hook: Hook, event: Event | None, attempts: int = 0) -> HookRun:
        is_last = event is not None and event.type is EventType.GATEWAY_SHUTDOWN
        delivery = HookRun(
            run_id,
            hook,
            event,
            slots=self._last_slots if is_last else self._slots,
            key=run_id if is_last else hook.name,
            attempts=attempts,
        )
        delivery.when_tried = self._tried
        return delivery

    def _write(
        self, delivery: HookRun, event: Event, payload: bytes, replay_of: str | None = None
    ) -> None:
        """Write the run down: as begun if it can begin at once, as skipped if it is not to run."""
        delivery.ending = ending = self._refusal(delivery, event)
        self._living.add(delivery)
        self._queue(delivery)  # before it is in the store: the order of events is kept
        delivery.begun = delivery.is_placed and self._serving
        add = partial(
            self._store.add,
            run_id=delivery.run_id,
            hook=delivery.hook.name,
            event_id=event.id,
            event_type=event.type.value,
            event=payload.decode(),
            caused_by=event.caused_by,
            due_at=event.timestamp,
            begun=delivery.begun,
            ending=ending,
            replay_of=replay_of,
        )
        if not delivery.is_placed and len(payload) > SMALL_EVENT:
            delivery.event = None
        add(then=partial(self._written, delivery, add, ending is not None))

    def _refusal(self, delivery: HookRun, event: Event) -> Ending | None:
        if len(event.caused_by) >= MAX_CHAIN:
            return _LOOP
        if len(self._living) >= MAX_LIVING:
            return _OVERLOAD
        if delivery.hook.overlap == "skip" and delivery.tier.is_open and delivery.overlaps:
            return _OVERLAP
        return None

    def _written(
        self, delivery: HookRun, add: Write, ended: bool, error: StoreError | None
    ) -> None:
        if error is not None and self._serving and not self._given_up.is_set():
            _complain(delivery, f"waits, the store failed: {error}")
            self._retries.put(add, partial(self._written, delivery, add, ended), error)
        elif error is not None:
            _complain(delivery, f"is not stored, the daemon stops: {error}")
            self._left(delivery)
        elif ended:
            assert delivery.ending is not None
            about = delivery.about(catalogue.HOOK_SKIPPED)
            log.warning("%s skipped: %s", delivery.what, delivery.ending.reason, extra=about)
            self._left(delivery)
        elif delivery in self._living:  # if not: this was started again, and has found it there
            delivery.is_stored = True
            self._go_on(delivery)

    def _queue(self, delivery: HookRun) -> None:
        """Have a run wait for its place, if it is its tier's turn."""
        if delivery.tier.is_open and delivery.ending is None:
            delivery.wait_for_place(partial(self._go_on, delivery))

    def _go_on(self, delivery: HookRun) -> None:
        """Start a run that is in the store and has its place, or is not to run after all."""
        may_start = delivery.is_placed or delivery.ending is not None
        if delivery.is_stored and may_start and self._serving and not delivery.is_started:
            delivery.is_started = True
            assert self._nursery is not None
            self._nursery.start_soon(self._live, delivery)

    async def _live(self, delivery: HookRun) -> None:
        current = self._hooks.get(delivery.hook.name)
        if delivery.ending is None and not delivery.begun:
            delivery.hook = current or delivery.hook
            delivery.ending = None if current else _REMOVED
        run = self._run(delivery)
        try:
            if delivery.ending is None:
                await run.carry_out()
                delivery.ending = run.ending
            else:
                if delivery.is_placed:
                    delivery.leave()
                await run.finish(delivery.ending)
        finally:
            self._left(delivery)

    def _run(self, delivery: HookRun) -> Run:
        hook = delivery.hook
        return Run(
            delivery.run_id,
            delivery.what,
            store=self._store,
            places=delivery,
            watcher=delivery,
            given_up=self._given_up,
            attempt=partial(self._attempt, delivery),
            timeout=hook.timeout,
            retries=hook.retries,
            attempts=delivery.attempts,
            begun=delivery.begun,
            placed=delivery.is_placed,
        )

    async def _attempt(self, delivery: HookRun, run: Run, output: shell.Output) -> Tried:
        try:
            event = delivery.event or _read(await self._store.event(run.id))
        except StoreError as error:
            return Tried(Outcome.FAILED, f"its event cannot be read: {error}")
        return await attempt.attempt(
            delivery.hook,
            event,
            run_id=run.id,
            number=run.attempts,
            poster=self._poster,
            output=output,
        )

    def _tried(self, delivery: HookRun) -> None:
        self._idle.set()
        for following in opened_by(delivery):
            if following.hook.overlap == "skip" and following.overlaps:
                following.ending = following.ending or _OVERLAP
            self._queue(following)
            self._go_on(following)

    def _left(self, delivery: HookRun) -> None:
        self._living.discard(delivery)
        delivery.ended.set()
        delivery.tried()


def _read(event: str) -> Event:
    return msgspec.json.decode(event, type=Event)


def _complain(delivery: HookRun, text: str) -> None:
    log.error("a run of %s %s", delivery.what, text, extra=delivery.about(catalogue.STORE_FAILED))
