"""One run of a hook or a task: attempts until one succeeds, each stored before it begins."""

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
"""Seconds before a retry: doubled with each, up to the maximum, and up to a half less at random."""

STORE_RETRY: Final = 1.0
"""Seconds between attempts to write to a store that fails."""

PAGE: Final = 100
"""Runs that are recovered between two checkpoints."""

_BROKEN: Final = "the daemon failed at it; its log says how"

_BUG: Final = "%s failed; this is a bug"

STOPPING: Final = "the daemon is stopping"


class AttemptResult(NamedTuple):
    """How an attempt ended; `retry_after` is in seconds, if a server has asked for a pause."""

    outcome: Outcome
    reason: str = ""
    exit_status: int | None = None
    worth_retrying: bool = True
    retry_after: float = 0


class Store(Protocol):
    """The rows of hook runs or of task runs; each method raises `StoreError`."""

    async def begin(self, run_id: str, attempt: int) -> None:
        """Store that an attempt begins."""

    async def put_off(self, run_id: str, ending: Ending) -> None:
        """Store how an attempt ended that a retry will follow."""

    async def end(self, run_id: str, ending: Ending) -> None:
        """Store that the run has ended."""


class RunOwner(Protocol):
    """The run of a hook or a task: it holds the slot, and is told of the attempts."""

    async def acquire(self) -> None:
        """Wait for the run's turn and a slot, before each attempt."""

    def release(self) -> None:
        """Release the slot, after each attempt."""

    def attempt_began(self, run: "Run") -> None:
        """Attempt `run.attempts` has begun."""

    def attempt_ended(self, run: "Run", ending: Ending, *, again: bool) -> None:
        """Attempt `run.attempts` has ended; with `again` another one follows after a pause."""


Attempt = Callable[["Run", Output], Awaitable[AttemptResult]]


async def retry_until_stored(
    subject: Subject, write: Callable[[], Awaitable[object]], given_up: trio.Event
) -> bool:
    """Call `write` each second until the store takes it; `False` if `given_up` is set first."""
    while True:
        try:
            await write()
        except StoreError as error:
            about = catalogue.STORE_FAILED.about(**subject.fields())
            log.error("%s waits, the store failed: %s", subject, error, extra=about)
            with trio.move_on_after(STORE_RETRY):
                await given_up.wait()
                return False
        else:
            return True


class Run:
    """A run that is in the store and has not ended.

    Args:
        subject: Names it in the log.
        timeout: Seconds for each attempt.
        attempts: Those that were made before.
        begun: Whether the first attempt is stored as begun.
        has_slot: Whether `owner` has acquired a slot for it.
    """

    def __init__(
        self,
        run_id: str,
        subject: Subject,
        *,
        store: Store,
        owner: RunOwner,
        given_up: trio.Event,
        attempt: Attempt,
        timeout: float,
        retries: int,
        attempts: int = 0,
        begun: bool = False,
        has_slot: bool = False,
    ) -> None:
        self.id = run_id
        self.subject = subject
        self.attempts = 1 if begun else attempts
        self.ending: Ending | None = None
        self._store = store
        self._owner = owner
        self._given_up = given_up
        self._attempt = attempt
        self._timeout = timeout
        self._retries = retries
        self._begun = begun
        self._has_slot = has_slot
        self._is_waiting = False
        self._scope = trio.CancelScope()
        self._cancel_reason = STOPPING
        self._output = Output()
        self._began_at: float | None = None
        self._ended_at: float | None = None

    def cancel(self, reason: str) -> None:
        """End the run and all its processes; the reason of the first call counts."""
        if not self._scope.cancel_called:
            self._cancel_reason = reason
            self._scope.cancel(reason)

    async def carry_out(self) -> None:
        """Make attempts until one succeeds or no retries are left, and store the ending.

        Cancelling this ends the run as `cancelled`, unless it waits for a slot or a retry: then
        its row goes on waiting in the store, and the daemon's next start makes the attempt.
        """
        ending: Ending | None = None
        try:
            with self._scope:
                ending = await self._attempt_all()
        except Exception:
            log.exception(_BUG, self.subject, extra=self._about(catalogue.INTERNAL_ERROR))
            ending = self._ended(Outcome.FAILED, _BROKEN)
        finally:
            # A run that waits has an ending only if `cancel` was called, not if the daemon stops.
            if ending is None and (self._scope.cancel_called or not self._is_waiting):
                ending = self._ended(Outcome.CANCELLED, self._cancel_reason)
            if ending is not None:
                await self.finish(ending)

    async def finish(self, ending: Ending) -> None:
        """Store the ending, however long the store needs. Cancelling has no effect."""
        self.ending = ending
        with trio.CancelScope(shield=True):
            stored = await self._retry_until_stored(lambda: self._store.end(self.id, ending))
        if not stored:
            about = self._about(catalogue.STORE_FAILED)
            log.error(
                "how %s ended is not stored: the daemon has to stop", self.subject, extra=about
            )
        self._log(ending)

    async def _attempt_all(self) -> Ending:
        while True:
            if not self._has_slot:
                self._is_waiting = True
                await self._owner.acquire()
                self._is_waiting = False
            try:
                if not self._begun:
                    await self._begin()
                result, ending, again = await self._attempt_once()
            finally:
                self._begun = self._has_slot = False
                self._owner.release()
            if not again:
                return ending
            await self._wait_for_retry(ending, result.retry_after)

    async def _begin(self) -> None:
        self.attempts += 1
        self._is_waiting = True  # until the store has it as begun, the next start may run it
        if not await self._retry_until_stored(lambda: self._store.begin(self.id, self.attempts)):
            await trio.sleep_forever()  # the daemon is stopping, and will cancel this
        self._is_waiting = False

    async def _attempt_once(self) -> tuple[AttemptResult, Ending, bool]:
        self._owner.attempt_began(self)
        self._output = Output()
        self._began_at, self._ended_at = trio.current_time(), None
        why = f"it had not ended within {self._timeout:g} s"
        result = AttemptResult(Outcome.TIMED_OUT, why)
        with trio.move_on_after(self._timeout):
            try:
                result = await self._attempt(self, self._output)
            except Exception:
                log.exception(_BUG, self.subject, extra=self._about(catalogue.INTERNAL_ERROR))
                result = AttemptResult(Outcome.FAILED, _BROKEN, worth_retrying=False)
        self._ended_at = trio.current_time()
        ending = self._ended(result.outcome, result.reason, result.exit_status)
        may_again = result.outcome is not Outcome.RAN and result.worth_retrying
        again = may_again and self.attempts <= self._retries
        log_output(self.subject, self.id, ending)
        self._owner.attempt_ended(self, ending, again=again)
        return result, ending, again

    async def _wait_for_retry(self, ending: Ending, retry_after: float) -> None:
        """Wait before the next attempt; if the daemon stops meanwhile, its next start makes it."""
        self._is_waiting = True
        await self._retry_until_stored(lambda: self._store.put_off(self.id, ending))
        longest = min(FIRST_PAUSE * 2.0 ** (self.attempts - 1), MAX_PAUSE)
        pause = max(longest * random.uniform(0.5, 1), retry_after)  # noqa: S311 - no secret
        log.info(
            "%s: attempt %d %s (%s), the next one in %.1f s",
            self.subject,
            self.attempts,
            ending.outcome,
            ending.reason,
            pause,
            extra=self._about(catalogue.ATTEMPT_FAILED, ending),
        )
        await trio.sleep(pause)

    async def _retry_until_stored(self, write: Callable[[], Awaitable[None]]) -> bool:
        return await retry_until_stored(self.subject, write, self._given_up)

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
            self.subject,
            ending.outcome,
            f": {ending.reason}" if ending.reason else "",
            f": {last_words!r}" if last_words and not usual else "",
            self.id,
            extra=self._about(self.subject.entry(ending), ending),
        )

    def _about(self, entry: Entry, ending: Ending | None = None) -> dict[str, Any]:
        fields = {} if ending is None else ending._asdict()
        known = {key: fields.get(key) for key in ("outcome", "reason", "exit_status", "duration")}
        return entry.about(**self.subject.fields(self.id), attempt=self.attempts, **known)
