"""One run of a hook or a task: attempts until one succeeds, each step in the store first."""

import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, Protocol

import trio

from clarad.automation.runs.output import log_output
from clarad.automation.runs.subject import Subject
from clarad.process.shell import Output
from clarad.store import Ending, Outcome, StoreError
from clarad.systemd import catalogue
from clarad.systemd.catalogue import Entry

log = logging.getLogger(__name__)

FIRST_PAUSE: Final = 1.0
MAX_PAUSE: Final = 300.0
"""Seconds before another attempt: doubled with each, up to the maximum, and half of it random."""

STORE_RETRY: Final = 1.0
"""Seconds between attempts to write down what has to be."""

PAGE: Final = 100
"""Runs that are taken up at one go, before others may do something."""

_BROKEN: Final = "the daemon failed at it; its log says how"

_BUG: Final = "%s failed; this is a bug"

STOPPING: Final = "the daemon is stopping"


class Tried(NamedTuple):
    """What came of an attempt; `retry_after` in seconds, if whoever was asked has said it."""

    outcome: Outcome
    reason: str = ""
    exit_status: int | None = None
    worth_retrying: bool = True
    retry_after: float = 0


class Store(Protocol):
    """Where a run is written down; each method raises `StoreError`."""

    async def begin(self, run_id: str, attempt: int) -> None:
        """Note that an attempt begins."""

    async def put_off(self, run_id: str, ending: Ending) -> None:
        """Note that another attempt will follow."""

    async def end(self, run_id: str, ending: Ending) -> None:
        """Note that the run has ended."""


class Slots(Protocol):
    """Where a run waits for its turn before each attempt."""

    async def enter(self) -> None:
        """Wait for a place and take it."""

    def leave(self) -> None:
        """Give the place back."""


class Watcher(Protocol):
    """Who is told of a run's attempts."""

    def attempt_begins(self, run: "Run") -> None:
        """Attempt `run.attempts` begins."""

    def attempt_ended(self, run: "Run", ending: Ending, *, again: bool) -> None:
        """Attempt `run.attempts` has ended, and perhaps the run goes on, after a pause."""


Attempt = Callable[["Run", Output], Awaitable[Tried]]


async def retry_until_stored(
    what: Subject, write: Callable[[], Awaitable[object]], given_up: trio.Event
) -> bool:
    """Write, again and again while the store fails; `False` once the daemon has given up on it."""
    while True:
        try:
            await write()
        except StoreError as error:
            about = catalogue.STORE_FAILED.about(**what.fields())
            log.error("%s waits, the store failed: %s", what, error, extra=about)
            with trio.move_on_after(STORE_RETRY):
                await given_up.wait()
                return False
        else:
            return True


class Run:
    """A run that is in the store and has not ended.

    `what` names it in the log; `timeout` in seconds for each attempt. `attempts` were made before;
    with `begun` the store knows already that the first one begins, with `placed` its place is
    taken.
    """

    def __init__(
        self,
        run_id: str,
        what: Subject,
        *,
        store: Store,
        places: Slots,
        watcher: Watcher,
        given_up: trio.Event,
        attempt: Attempt,
        timeout: float,
        retries: int,
        attempts: int = 0,
        begun: bool = False,
        placed: bool = False,
    ) -> None:
        self.id = run_id
        self.what = what
        self.attempts = 1 if begun else attempts
        self.ending: Ending | None = None
        self._store = store
        self._places = places
        self._watcher = watcher
        self._given_up = given_up
        self._attempt = attempt
        self._timeout = timeout
        self._retries = retries
        self._begun = begun
        self._placed = placed
        self._is_waiting = False
        self._scope = trio.CancelScope()
        self._cancel_reason = STOPPING
        self._output = Output()
        self._began_at: float | None = None
        self._ended_at: float | None = None

    def cancel(self, reason: str) -> None:
        """End it, with everything that it has started; the first call counts."""
        if not self._scope.cancel_called:
            self._cancel_reason = reason
            self._scope.cancel(reason)

    async def carry_out(self) -> None:
        """Make attempts, and write down how it ended.

        Cancelling ends it as `cancelled`; but while it waits for its turn, or for another attempt,
        it goes on waiting in the store, and the daemon's next start makes the attempt.
        """
        ending: Ending | None = None
        try:
            with self._scope:
                ending = await self._try()
        except Exception:
            log.exception(_BUG, self.what, extra=self._about(catalogue.INTERNAL_ERROR))
            ending = self._ended(Outcome.FAILED, _BROKEN)
        finally:
            if ending is None and (self._scope.cancel_called or not self._is_waiting):
                ending = self._ended(Outcome.CANCELLED, self._cancel_reason)
            if ending is not None:
                await self.finish(ending)

    async def finish(self, ending: Ending) -> None:
        """Write down how it ended, however long the store needs. Cancelling has no effect."""
        self.ending = ending
        with trio.CancelScope(shield=True):
            stored = await self._insist(lambda: self._store.end(self.id, ending))
        if not stored:
            about = self._about(catalogue.STORE_FAILED)
            log.error("how %s ended is not stored: the daemon has to stop", self.what, extra=about)
        self._log(ending)

    async def _try(self) -> Ending:
        while True:
            if not self._placed:
                self._is_waiting = True
                await self._places.enter()
                self._is_waiting = False
            try:
                if not self._begun:
                    await self._begin()
                tried, ending, again = await self._try_once()
            finally:
                self._begun = self._placed = False
                self._places.leave()
            if not again:
                return ending
            await self._park(ending, tried.retry_after)

    async def _begin(self) -> None:
        self.attempts += 1
        self._is_waiting = True  # as long as the store does not know otherwise
        if not await self._insist(lambda: self._store.begin(self.id, self.attempts)):
            await trio.sleep_forever()  # the daemon has to stop, and cancels us
        self._is_waiting = False

    async def _try_once(self) -> tuple[Tried, Ending, bool]:
        self._watcher.attempt_begins(self)
        self._output = Output()
        self._began_at, self._ended_at = trio.current_time(), None
        why = f"it had not ended within {self._timeout:g} s"
        tried = Tried(Outcome.TIMED_OUT, why)
        with trio.move_on_after(self._timeout):
            try:
                tried = await self._attempt(self, self._output)
            except Exception:
                log.exception(_BUG, self.what, extra=self._about(catalogue.INTERNAL_ERROR))
                tried = Tried(Outcome.FAILED, _BROKEN, worth_retrying=False)
        self._ended_at = trio.current_time()
        ending = self._ended(tried.outcome, tried.reason, tried.exit_status)
        may_again = tried.outcome is not Outcome.RAN and tried.worth_retrying
        again = may_again and self.attempts <= self._retries
        log_output(self.what, self.id, ending)
        self._watcher.attempt_ended(self, ending, again=again)
        return tried, ending, again

    async def _park(self, ending: Ending, retry_after: float) -> None:
        """Wait for the next attempt; if the daemon stops meanwhile, its next start makes it."""
        self._is_waiting = True
        await self._insist(lambda: self._store.put_off(self.id, ending))
        longest = min(FIRST_PAUSE * 2.0 ** (self.attempts - 1), MAX_PAUSE)
        pause = max(longest * random.uniform(0.5, 1), retry_after)  # noqa: S311 - no secret
        log.info(
            "%s: attempt %d %s (%s), the next one in %.1f s",
            self.what,
            self.attempts,
            ending.outcome,
            ending.reason,
            pause,
            extra=self._about(catalogue.ATTEMPT_FAILED, ending),
        )
        await trio.sleep(pause)

    async def _insist(self, write: Callable[[], Awaitable[None]]) -> bool:
        return await retry_until_stored(self.what, write, self._given_up)

    def _ended(self, outcome: Outcome, reason: str, exit_status: int | None = None) -> Ending:
        output, until = self._output, self._ended_at
        until = trio.current_time() if until is None else until
        return Ending(
            outcome,
            reason,
            exit_status,
            None if self._began_at is None else round(until - self._began_at, 6),
            output.stdout.kept.decode(errors="replace"),
            output.stderr.kept.decode(errors="replace"),
            output.stdout.cut,
            output.stderr.cut,
        )

    def _log(self, ending: Ending) -> None:
        usual = ending.outcome in (Outcome.RAN, Outcome.SKIPPED)
        last_words = ending.stderr.strip().rpartition("\n")[2][-200:]
        log.log(
            logging.INFO if usual else logging.WARNING,
            "%s %s%s%s (run %s)",
            self.what,
            ending.outcome,
            f": {ending.reason}" if ending.reason else "",
            f": {last_words!r}" if last_words and not usual else "",
            self.id,
            extra=self._about(self.what.entry(ending), ending),
        )

    def _about(self, entry: Entry, ending: Ending | None = None) -> dict[str, Any]:
        told = {} if ending is None else ending._asdict()
        known = {key: told.get(key) for key in ("outcome", "reason", "exit_status", "duration")}
        return entry.about(**self.what.fields(self.id), attempt=self.attempts, **known)
