"""What an operator can have the running daemon do, over the control socket or by a signal."""

import logging
from collections.abc import Callable, Sequence
from functools import partial

import trio

from clarad.automation import definitions
from clarad.automation.definitions import Definitions
from clarad.config import Settings
from clarad.nurseries.hooks import Hooks, UnknownRun
from clarad.nurseries.scheduler import Scheduler, UnknownTask
from clarad.operator import Refused, Report
from clarad.store import Ending, StoreError

log = logging.getLogger(__name__)

OnStarted = Callable[[str], None]


class Operations:
    """The parts of the daemon that an operator can reach; each method raises `Refused`."""

    def __init__(self, settings: Settings, hooks: Hooks, scheduler: Scheduler) -> None:
        self._settings = settings
        self._hooks = hooks
        self._scheduler = scheduler
        self._reloading = trio.Lock()  # a reload has awaits in it, and the last one is to win

    async def reload(self) -> Report:
        """Read hooks.yaml and scheduler.yaml again; one that is broken changes nothing."""
        async with self._reloading:
            found = await trio.to_thread.run_sync(partial(definitions.load, self._settings))
            if found.problems:
                raise Refused([str(problem) for problem in found.problems])
            try:
                # Whoever asked may go meanwhile; tasks without their hooks would be half a reload.
                with trio.CancelScope(shield=True):
                    await self._scheduler.replace(found.tasks)
                    self._hooks.replace(found.hooks)
            except StoreError as error:
                raise Refused([f"the store failed, nothing has changed: {error}"]) from None
        return Report(f"reloaded: {summary(found)}")

    async def run_task(self, name: str, caused_by: Sequence[str], started: OnStarted) -> Report:
        """Run a task now and wait for its end; a cancellation ends only the waiting."""
        try:
            job = self._scheduler.run_now(name, caused_by)
        except UnknownTask as error:
            raise Refused([str(error)]) from None
        started(job.run_id)
        await job.ended.wait()
        return _ended(f"task {name}", job.run_id, job.ending)

    async def pause_task(self, name: str) -> Report:
        """Skip what comes due of a task, until it is resumed."""
        await self._pause(name, on=True)
        return Report(f"task {name} is paused: what comes due is skipped")

    async def resume_task(self, name: str) -> Report:
        """Let a paused task go on."""
        await self._pause(name, on=False)
        return Report(f"task {name} goes on")

    async def replay_run(self, run: str, caused_by: Sequence[str], started: OnStarted) -> Report:
        """Run a hook again for the event that an earlier run had, and wait for its end."""
        try:
            delivery = await self._hooks.replay(run, caused_by)
        except UnknownRun as error:
            raise Refused([str(error)]) from None
        except StoreError as error:
            raise Refused([f"the store failed: {error}"]) from None
        started(delivery.run_id)
        await delivery.ended.wait()
        return _ended(f"hook {delivery.hook.name}", delivery.run_id, delivery.ending)

    async def _pause(self, name: str, *, on: bool) -> None:
        try:
            await self._scheduler.pause(name, on=on)
        except UnknownTask as error:
            raise Refused([str(error)]) from None
        except StoreError as error:
            raise Refused([f"the store failed, nothing has changed: {error}"]) from None


def summary(found: Definitions) -> str:
    """Say how much is configured."""
    hooks, tasks = len(found.hooks), len(found.tasks)
    return f"{hooks} hook{'s' * (hooks != 1)}, {tasks} task{'s' * (tasks != 1)}"


def _ended(what: str, run: str, ending: Ending | None) -> Report:
    if ending is None:
        raise Refused([f"{what} was not run: the daemon stops, or its store fails; see its log"])
    reason = f": {ending.reason}" if ending.reason else ""
    return Report(f"{what} {ending.outcome}{reason}", run, ending.outcome.value)
