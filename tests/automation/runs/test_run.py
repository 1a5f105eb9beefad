"""One run: its attempts, its place, and what is written of it, whatever fails or ends it when."""

import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import Any, Final

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from clarad.automation.runs.run import (
    FIRST_PAUSE,
    MAX_PAUSE,
    STOPPING,
    AttemptResult,
    Run,
    retry_until_stored,
)
from clarad.automation.runs.subject import Subject
from clarad.process.shell import OUTPUT_CAP, Output
from clarad.store import Ending, Outcome, StoreError

RAN: Final = AttemptResult(Outcome.RAN, exit_status=0)
FAILED: Final = AttemptResult(Outcome.FAILED, "exit status 3", 3)
HOPELESS: Final = AttemptResult(Outcome.FAILED, "there is no such server", worth_retrying=False)


class World:
    """The store, the place and the watcher of a run, and the attempts, which end as `tries` say.

    Keeps notes of what happens, in its order. Each stage of the run (`place`, `begin`, `attempt`,
    `put off`, `end`) waits while it is held, and a write fails as often as it is told to.
    """

    def __init__(self, *tries: AttemptResult | Exception, takes: float = 0, **about: Any) -> None:
        """`takes` are the seconds of an attempt, `about` is for the run."""
        self.notes: list[str] = []
        self.faults: list[str] = []
        self.endings: list[Ending] = []
        self.put_off_with: list[Ending] = []
        self.asked_at: list[float] = []
        self.tried_at: list[float] = []
        self.outputs = [b""] * len(tries)
        self.given_up = trio.Event()
        self.is_over = False
        self.places_taken = int(about.get("has_slot", False))
        self.is_begun = about.get("begun", False)
        self.attempts_stored = int(self.is_begun)
        self.failing: Counter[str] = Counter()
        self._tries = list(tries)
        self._takes = takes
        self._held: set[str] = set()
        self._change = trio.Event()
        defaults: dict[str, Any] = {"attempt": self._attempt, "timeout": 60, "retries": 0}
        self.run = Run(
            "run-1",
            Subject("hook", "greet"),
            store=self,
            owner=self,
            given_up=self.given_up,
            **defaults | about,
        )

    # --- what a test does with it ----------------------------------------------------------------

    def hold(self, stage: str) -> None:
        self._held.add(stage)

    def unblock(self, *stages: str) -> None:
        self._held.difference_update(stages)
        self._change.set()
        self._change = trio.Event()

    def fail(self, stage: str, times: int = 1) -> None:
        self.failing[stage] += times

    def let_go(self) -> None:
        """Hold and fail nothing any more."""
        self.failing.clear()
        self.given_up.set()
        self.unblock(*self._held)

    async def carry_out(self) -> None:
        try:
            await self.run.carry_out()
        finally:
            self.is_over = True
        assert self.faults == []

    @property
    def outcomes(self) -> list[tuple[Outcome, str]]:
        """What has been written as the end."""
        return [(ending.outcome, ending.reason) for ending in self.endings]

    @property
    def attempts(self) -> int:
        """How many attempts were made."""
        return len(self.tried_at)

    # --- the store: as with the writer, cancelling has no effect on it ---------------------------

    async def begin(self, run_id: str, attempt: int) -> None:
        await self._write("begin", f"begun {attempt}")
        self.is_begun, self.attempts_stored = True, attempt

    async def put_off(self, run_id: str, ending: Ending) -> None:
        await self._write("put off", f"put off {ending.outcome}")
        self.is_begun = False
        self.put_off_with.append(ending)

    async def end(self, run_id: str, ending: Ending) -> None:
        await self._write("end", f"ended {ending.outcome}")
        self.endings.append(ending)

    async def _write(self, stage: str, note: str) -> None:
        self._claim(not self.endings, f"{note}, after the end")
        self.asked_at.append(trio.current_time())
        with trio.CancelScope(shield=True):
            await self._pass(stage)
        if self.failing[stage]:
            self.failing[stage] -= 1
            raise StoreError("the disk is full")
        self.notes.append(note)

    # --- the place -------------------------------------------------------------------------------

    async def acquire(self) -> None:
        await self._pass("place")
        self.notes.append("enter")
        self.places_taken += 1

    def release(self) -> None:
        self.notes.append("leave")
        self.places_taken -= 1
        self._claim(self.places_taken == 0, "a place is given back twice")

    # --- the watcher, and the attempts -----------------------------------------------------------

    def attempt_began(self, run: Run) -> None:
        self.notes.append(f"begins {run.attempts}")

    def attempt_ended(self, run: Run, ending: Ending, *, again: bool) -> None:
        self.notes.append(f"{ending.outcome} {run.attempts}{', again' if again else ''}")

    async def _attempt(self, run: Run, output: Output) -> AttemptResult:
        await trio.lowlevel.checkpoint()
        stored = self.is_begun and self.attempts_stored == run.attempts
        self._claim(stored, "an attempt that is not stored")
        self._claim(self.places_taken == 1, "an attempt without a place")
        self.tried_at.append(trio.current_time())
        output.stdout.add(self.outputs[self.attempts - 1] or b"attempt %d\n" % run.attempts)
        await trio.sleep(self._takes)
        await self._pass("attempt")
        tried = self._tries[self.attempts - 1]
        if isinstance(tried, Exception):
            raise tried
        return tried

    def _claim(self, holds: bool, otherwise: str) -> None:
        # Not an assert: the run would take it for a failure of the attempt.
        if not holds:
            self.faults.append(otherwise)

    async def _pass(self, stage: str) -> None:
        await trio.lowlevel.checkpoint()
        while stage in self._held:
            await self._change.wait()


@asynccontextmanager
async def under_way(world: World) -> AsyncIterator[trio.CancelScope]:
    """Carry the run out as far as it gets; at the end of the block it has to be over.

    The scope is the daemon's.
    """
    daemon = trio.CancelScope()

    async def live() -> None:
        with daemon:
            await world.carry_out()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(live)
        await wait_all_tasks_blocked()
        try:
            yield daemon
            await wait_all_tasks_blocked()
            assert world.is_over, "the run goes on"
        finally:
            world.let_go()  # or a test that fails would wait for ever
    assert world.places_taken == 0
    assert world.faults == []


async def pass_by(clock: MockClock, *seconds: float) -> None:
    """Let time pass, in steps."""
    for step in seconds:
        clock.jump(step)
        await wait_all_tasks_blocked()


# --- one attempt ---------------------------------------------------------------------------------


async def test_a_run_has_its_place_and_is_written_down_before_it_begins(
    autojump_clock: MockClock,
) -> None:
    world = World(RAN)
    await world.carry_out()
    assert world.notes == ["enter", "begun 1", "begins 1", "ran 1", "leave", "ended ran"]


async def test_a_run_that_is_written_down_as_begun_and_has_its_place_begins_at_once(
    autojump_clock: MockClock,
) -> None:
    world = World(RAN, begun=True, has_slot=True)
    await world.carry_out()
    assert world.notes == ["begins 1", "ran 1", "leave", "ended ran"]


async def test_a_run_that_has_its_place_is_written_down_before_it_begins(
    autojump_clock: MockClock,
) -> None:
    world = World(RAN, has_slot=True)
    await world.carry_out()
    assert world.notes == ["begun 1", "begins 1", "ran 1", "leave", "ended ran"]


@pytest.mark.parametrize(
    "tried",
    [
        RAN,
        FAILED,
        HOPELESS,
        AttemptResult(Outcome.FAILED, "ended by SIGKILL", -9),
        AttemptResult(Outcome.TIMED_OUT, "too slow for its own taste"),
    ],
)
async def test_a_run_ends_as_its_attempt(autojump_clock: MockClock, tried: AttemptResult) -> None:
    world = World(tried, takes=2.5)
    await world.carry_out()
    (ending,) = world.endings
    assert ending == world.run.ending
    assert ending == Ending(
        tried.outcome, tried.reason, tried.exit_status, 2.5, "attempt 1\n", "", 0, 0
    )


async def test_the_last_of_the_output_is_kept_and_what_was_before_it_is_said(
    autojump_clock: MockClock,
) -> None:
    world = World(RAN)
    world.outputs = [b"early" + b"x" * OUTPUT_CAP]
    await world.carry_out()
    (ending,) = world.endings
    assert (ending.stdout, ending.stdout_cut) == ("x" * OUTPUT_CAP, len("early"))


async def test_output_that_is_no_text_is_shown_as_far_as_it_is_one(
    autojump_clock: MockClock,
) -> None:
    world = World(RAN)
    world.outputs = [b"a\0b \xff \xed\xa0\x80 \xf0\x9f\xa6\x80"]
    await world.carry_out()
    (ending,) = world.endings
    assert ending.stdout == "a\0b \ufffd \ufffd\ufffd\ufffd \N{CRAB}"


async def test_waiting_counts_neither_for_the_duration_nor_for_the_time_out(
    mock_clock: MockClock,
) -> None:
    world = World(RAN, takes=4, timeout=5)
    for stage in ("place", "begin", "end"):
        world.hold(stage)
    async with under_way(world):
        for stage in ("place", "begin"):
            await pass_by(mock_clock, 100)
            world.unblock(stage)
            await wait_all_tasks_blocked()
        await pass_by(mock_clock, 4, 100)
        world.unblock("end")
    (ending,) = world.endings
    assert (ending.outcome, ending.duration) == (Outcome.RAN, 4)


# --- its time-out --------------------------------------------------------------------------------


async def test_an_attempt_that_has_not_ended_in_time_is_ended(autojump_clock: MockClock) -> None:
    world = World(RAN, takes=1e6, timeout=0.5)
    await world.carry_out()
    assert world.outcomes == [(Outcome.TIMED_OUT, "it had not ended within 0.5 s")]
    assert world.notes[-3:] == ["timed_out 1", "leave", "ended timed_out"]


async def test_what_an_attempt_wrote_before_its_time_out_is_kept(
    autojump_clock: MockClock,
) -> None:
    world = World(RAN, takes=1e6)
    await world.carry_out()
    assert world.endings[0].stdout == "attempt 1\n"


async def test_each_attempt_has_a_time_out_of_its_own(autojump_clock: MockClock) -> None:
    world = World(FAILED, FAILED, RAN, takes=59, timeout=60, retries=2)
    await world.carry_out()
    assert world.outcomes == [(Outcome.RAN, "")]


async def test_a_run_lasts_until_an_attempt_that_has_timed_out_has_cleaned_up(
    autojump_clock: MockClock,
) -> None:
    async def clean_up_slowly(_run: Run, output: Output) -> AttemptResult:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(2)
            output.stdout.add(b"last words")

    world = World(attempt=clean_up_slowly, timeout=5)
    await world.carry_out()
    (ending,) = world.endings
    assert (ending.outcome, ending.duration, ending.stdout) == (
        Outcome.TIMED_OUT,
        7,
        "last words",
    )


# --- further attempts ----------------------------------------------------------------------------


async def test_what_failed_is_tried_again_and_leaves_its_place_meanwhile(
    autojump_clock: MockClock,
) -> None:
    world = World(FAILED, RAN, retries=1)
    await world.carry_out()
    first = ["enter", "begun 1", "begins 1", "failed 1, again", "leave", "put off failed"]
    second = ["enter", "begun 2", "begins 2", "ran 2", "leave", "ended ran"]
    assert world.notes == first + second


async def test_a_run_that_had_its_place_at_first_waits_for_another_one_like_all(
    autojump_clock: MockClock,
) -> None:
    world = World(FAILED, RAN, begun=True, has_slot=True, retries=1)
    await world.carry_out()
    first = ["begins 1", "failed 1, again", "leave", "put off failed"]
    second = ["enter", "begun 2", "begins 2", "ran 2", "leave", "ended ran"]
    assert world.notes == first + second


async def test_what_timed_out_is_tried_again(autojump_clock: MockClock) -> None:
    world = World(RAN, RAN, takes=100, retries=1)
    await world.carry_out()
    assert world.attempts == 2
    assert world.put_off_with[0].outcome is Outcome.TIMED_OUT


@pytest.mark.parametrize("retries", [0, 1, 5])
async def test_a_run_is_tried_again_as_often_as_it_may_be(
    autojump_clock: MockClock, retries: int
) -> None:
    world = World(*[FAILED] * 10, retries=retries)
    await world.carry_out()
    assert world.attempts == retries + 1
    assert world.outcomes == [(Outcome.FAILED, "exit status 3")]
    assert len(world.put_off_with) == retries


async def test_attempts_of_an_earlier_daemon_count(autojump_clock: MockClock) -> None:
    world = World(FAILED, FAILED, retries=2, attempts=2)
    await world.carry_out()
    assert world.notes[1] == "begun 3"
    assert world.attempts == 1
    assert world.outcomes == [(Outcome.FAILED, "exit status 3")]


async def test_what_ran_is_not_tried_again(autojump_clock: MockClock) -> None:
    world = World(RAN, retries=5)
    await world.carry_out()
    assert world.attempts == 1


async def test_what_would_fail_again_is_not_tried_again(autojump_clock: MockClock) -> None:
    world = World(HOPELESS, retries=5)
    await world.carry_out()
    assert world.attempts == 1
    assert "failed 1" in world.notes
    assert world.outcomes == [(Outcome.FAILED, "there is no such server")]


async def test_each_attempt_has_an_output_and_a_duration_of_its_own(
    autojump_clock: MockClock,
) -> None:
    world = World(FAILED, FAILED, takes=2, retries=1)
    await world.carry_out()
    seen = [(e.stdout, e.duration) for e in world.put_off_with + world.endings]
    assert seen == [("attempt 1\n", 2), ("attempt 2\n", 2)]


def pauses(world: World) -> list[float]:
    """How long was waited for each further attempt."""
    return [after - before for before, after in pairwise(world.tried_at)]


async def test_pauses_double_up_to_a_maximum_and_half_of_each_is_random(
    autojump_clock: MockClock,
) -> None:
    world = World(*[FAILED] * 101, retries=100)
    await world.carry_out()
    fractions = [
        pause / min(FIRST_PAUSE * 2**n, MAX_PAUSE) for n, pause in enumerate(pauses(world))
    ]
    assert len(fractions) == 100
    assert 0.5 <= min(fractions) < 0.6
    assert 0.9 < max(fractions) <= 1


async def test_a_server_that_wants_to_be_left_alone_for_long_is(
    autojump_clock: MockClock,
) -> None:
    world = World(FAILED._replace(retry_after=3600), RAN, retries=1)
    await world.carry_out()
    assert pauses(world) == [3600]


async def test_a_server_cannot_ask_for_more_attempts_than_are_good_for_it(
    autojump_clock: MockClock,
) -> None:
    world = World(*[FAILED._replace(retry_after=0.001)] * 5, retries=4)
    await world.carry_out()
    assert all(pause >= 2**n / 2 for n, pause in enumerate(pauses(world)))


# --- cancelling ----------------------------------------------------------------------------------

REASON: Final = "the hook was removed"
CANCELLED: Final = [(Outcome.CANCELLED, REASON)]

HELD: Final = ("place", "begin", "attempt", "put off")
"""The stages in which a run can be held before its end; after the last one it pauses."""


async def test_a_run_that_is_cancelled_before_it_starts_makes_no_attempt(
    mock_clock: MockClock,
) -> None:
    world = World(RAN)
    world.run.cancel(REASON)
    async with under_way(world):
        pass
    assert world.attempts == 0
    assert world.outcomes == CANCELLED


@pytest.mark.parametrize("begun", [False, True])
async def test_a_run_that_is_cancelled_before_it_starts_gives_its_place_back(
    mock_clock: MockClock, begun: bool
) -> None:
    world = World(RAN, begun=begun, has_slot=True)
    world.run.cancel(REASON)
    async with under_way(world):
        pass
    assert world.notes.count("leave") == 1
    assert world.attempts == 0
    assert world.outcomes == CANCELLED


@pytest.mark.parametrize("stage", HELD)
async def test_a_run_can_be_cancelled_at_any_stage(mock_clock: MockClock, stage: str) -> None:
    world = World(FAILED, retries=1)
    world.hold(stage)
    async with under_way(world):
        world.run.cancel(REASON)
        world.unblock(stage)
    assert world.outcomes == CANCELLED
    assert world.notes.count("enter") == world.notes.count("leave")


async def test_a_run_can_be_cancelled_between_two_attempts(mock_clock: MockClock) -> None:
    world = World(FAILED, RAN, retries=1)
    async with under_way(world):
        assert world.notes[-1] == "put off failed"
        world.run.cancel(REASON)
    assert world.outcomes == CANCELLED
    assert world.attempts == 1


@pytest.mark.parametrize("stage", ["begin", "put off"])
async def test_a_run_can_be_cancelled_while_the_store_fails(
    mock_clock: MockClock, stage: str
) -> None:
    world = World(FAILED, retries=1)
    world.fail(stage, 1000)
    async with under_way(world):
        world.run.cancel(REASON)
    assert world.outcomes == CANCELLED


async def test_a_run_that_has_ended_is_not_cancelled_any_more(mock_clock: MockClock) -> None:
    world = World(RAN)
    world.hold("end")
    async with under_way(world):
        world.run.cancel(REASON)
        world.unblock("end")
    assert world.outcomes == [(Outcome.RAN, "")]


async def test_the_first_who_cancels_says_why(mock_clock: MockClock) -> None:
    world = World(RAN)
    world.hold("attempt")
    async with under_way(world):
        world.run.cancel(REASON)
        world.run.cancel("another reason")
    assert world.outcomes == CANCELLED


async def test_what_an_attempt_wrote_before_it_was_cancelled_is_kept(
    mock_clock: MockClock,
) -> None:
    world = World(RAN)
    world.hold("attempt")
    async with under_way(world):
        mock_clock.jump(3)
        world.run.cancel(REASON)
    (ending,) = world.endings
    assert (ending.stdout, ending.duration) == ("attempt 1\n", 3)


async def test_what_the_last_attempt_wrote_and_took_is_kept_if_another_one_is_cancelled(
    mock_clock: MockClock,
) -> None:
    world = World(FAILED, RAN, takes=2, retries=1)
    async with under_way(world):
        await pass_by(mock_clock, 2, 0.25)
        world.run.cancel(REASON)
    (ending,) = world.endings
    assert (ending.stdout, ending.duration) == ("attempt 1\n", 2)


async def test_a_run_that_never_began_has_no_duration(mock_clock: MockClock) -> None:
    world = World(RAN)
    world.hold("place")
    async with under_way(world):
        world.run.cancel(REASON)
    assert world.endings == [Ending(Outcome.CANCELLED, REASON)]


# --- when the daemon stops -----------------------------------------------------------------------


async def test_a_run_that_waits_for_its_place_goes_on_waiting_when_the_daemon_stops(
    mock_clock: MockClock,
) -> None:
    world = World(RAN)
    world.hold("place")
    async with under_way(world) as daemon:
        daemon.cancel("stopping")
    assert world.notes == []
    assert world.run.ending is None


async def test_a_run_that_waits_for_another_attempt_goes_on_waiting_when_the_daemon_stops(
    mock_clock: MockClock,
) -> None:
    world = World(FAILED, RAN, retries=1)
    async with under_way(world) as daemon:
        daemon.cancel("stopping")
    assert world.notes[-1] == "put off failed"
    assert world.run.ending is None


async def test_a_run_that_waits_for_the_place_of_another_attempt_goes_on_waiting(
    mock_clock: MockClock,
) -> None:
    world = World(FAILED, RAN, retries=1)
    async with under_way(world) as daemon:
        world.hold("place")
        await pass_by(mock_clock, 1)
        daemon.cancel("stopping")
    assert world.notes[-1] == "put off failed"
    assert world.run.ending is None


async def test_a_run_whose_next_attempt_is_being_noted_waits_for_it(
    mock_clock: MockClock,
) -> None:
    world = World(FAILED, RAN, retries=1)
    world.hold("put off")
    async with under_way(world) as daemon:
        daemon.cancel("stopping")
        world.unblock("put off")
    assert world.notes[-1] == "put off failed"
    assert world.run.ending is None


async def test_a_run_that_the_store_does_not_let_begin_goes_on_waiting(
    mock_clock: MockClock,
) -> None:
    world = World(RAN)
    world.fail("begin")
    async with under_way(world) as daemon:
        daemon.cancel("stopping")
    assert world.notes == ["enter", "leave"]
    assert world.run.ending is None


async def test_a_run_whose_next_attempt_the_store_does_not_note_is_left_to_the_next_start(
    mock_clock: MockClock,
) -> None:
    world = World(FAILED, RAN, retries=1)
    world.fail("put off")
    async with under_way(world) as daemon:
        daemon.cancel("stopping")
    assert world.endings == []
    assert world.run.ending is None


@pytest.mark.parametrize("stage", ["begin", "attempt"])
async def test_a_run_that_may_have_acted_is_cancelled_when_the_daemon_stops(
    mock_clock: MockClock, stage: str
) -> None:
    world = World(RAN, retries=1)
    world.hold(stage)
    async with under_way(world) as daemon:
        daemon.cancel("stopping")
        world.unblock(stage)
    assert world.outcomes == [(Outcome.CANCELLED, STOPPING)]


async def test_the_end_of_a_run_is_written_down_though_the_daemon_stops(
    mock_clock: MockClock,
) -> None:
    world = World(RAN)
    world.hold("end")
    world.fail("end", 2)
    async with under_way(world) as daemon:
        daemon.cancel("stopping")
        world.unblock("end")
        await wait_all_tasks_blocked()
        assert world.endings == []
        await pass_by(mock_clock, 1, 1)
    assert world.outcomes == [(Outcome.RAN, "")]


async def test_a_run_that_was_cancelled_first_ends_for_that_reason_though_it_waited(
    mock_clock: MockClock,
) -> None:
    world = World(RAN)
    world.hold("place")
    async with under_way(world) as daemon:
        world.run.cancel(REASON)
        daemon.cancel("stopping")
    assert world.outcomes == CANCELLED


# --- when the store fails ------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["begin", "put off", "end"])
async def test_what_the_store_fails_at_is_tried_each_second_and_nothing_goes_on_before(
    mock_clock: MockClock, stage: str, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(FAILED, RAN, retries=1)
    world.fail(stage, 3)
    async with under_way(world):
        if stage == "end":
            await pass_by(mock_clock, FIRST_PAUSE)
        began, before = trio.current_time(), list(world.notes)
        await pass_by(mock_clock, 0.5, 0.5, 1)
        assert world.asked_at[-3:] == [began, began + 1, began + 2]
        assert world.notes == before
        await pass_by(mock_clock, 1, 1)
    assert world.outcomes == [(Outcome.RAN, "")]
    errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert errors == ["hook greet waits, the store failed: the disk is full"] * 3


async def test_an_end_that_cannot_be_stored_is_given_up_with_the_store(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(RAN)
    world.fail("end", 1000)
    async with under_way(world):
        await pass_by(mock_clock, 1)
        assert not world.is_over
        world.given_up.set()
    assert world.endings == []
    assert "how hook greet ended is not stored: the daemon has to stop" in caplog.messages


async def test_a_run_whose_beginning_cannot_be_stored_does_not_begin(
    mock_clock: MockClock,
) -> None:
    world = World(RAN)
    world.fail("begin", 1000)
    async with under_way(world) as daemon:
        world.given_up.set()
        await pass_by(mock_clock, 1, 100)
        assert not world.is_over
        daemon.cancel("stopping")
    assert world.attempts == 0


async def test_an_attempt_is_not_made_while_the_one_before_it_cannot_be_noted(
    mock_clock: MockClock,
) -> None:
    world = World(FAILED, RAN, retries=1)
    world.fail("put off", 1000)
    async with under_way(world):
        await pass_by(mock_clock, *[100] * 10)
        assert world.attempts == 1
        world.run.cancel(REASON)
    assert world.outcomes == CANCELLED


async def test_what_is_insisted_on_is_written_once(autojump_clock: MockClock) -> None:
    written: list[float] = []

    async def write() -> None:
        written.append(trio.current_time())
        await trio.lowlevel.checkpoint()

    assert await retry_until_stored(Subject("task", "this"), write, trio.Event())
    assert len(written) == 1


async def test_what_is_insisted_on_when_all_is_given_up_is_tried_once_more(
    autojump_clock: MockClock,
) -> None:
    given_up = trio.Event()
    given_up.set()
    answers = iter([StoreError("the disk is full")])
    write = partial(_raise_next, answers)
    assert not await retry_until_stored(Subject("task", "this"), write, given_up)
    assert await retry_until_stored(Subject("task", "this"), write, given_up)


async def _raise_next(errors: Any) -> None:
    await trio.lowlevel.checkpoint()
    for error in errors:
        raise error


async def test_a_run_that_is_not_to_be_carried_out_can_be_ended(mock_clock: MockClock) -> None:
    world = World()
    ending = Ending(Outcome.SKIPPED, "the hook was removed or disabled")
    with trio.CancelScope() as daemon:
        daemon.cancel("stopping")
        await world.run.finish(ending)
    assert world.endings == [ending]
    assert world.run.ending == ending
    assert world.notes == ["ended skipped"]


# --- what else goes wrong ------------------------------------------------------------------------


async def test_an_attempt_that_breaks_has_failed(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(ValueError("/etc/passwd"))
    await world.carry_out()
    assert world.outcomes == [(Outcome.FAILED, "the daemon failed at it; its log says how")]
    assert world.places_taken == 0
    (logged,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert logged.getMessage() == "hook greet failed; this is a bug"
    assert logged.exc_info is not None


async def test_an_attempt_that_breaks_is_told_as_one_that_failed(
    autojump_clock: MockClock,
) -> None:
    world = World(ValueError("/etc/passwd"))
    await world.carry_out()
    assert "failed 1" in world.notes


async def test_what_breaks_beside_an_attempt_stays_within_the_run(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Watched(World):
        def attempt_began(self, run: Run) -> None:
            raise ValueError("/etc/passwd")

    world = Watched(RAN)
    async with under_way(world):
        pass
    assert world.outcomes == [(Outcome.FAILED, "the daemon failed at it; its log says how")]
    assert "hook greet failed; this is a bug" in caplog.messages


# --- the log -------------------------------------------------------------------------------------


async def test_the_log_says_how_a_run_ended_with_its_last_words_on_one_line(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def complain(_run: Run, output: Output) -> AttemptResult:
        await trio.lowlevel.checkpoint()
        output.stderr.add(b"first\nlast \x1b[31mwords\r\n")
        return FAILED

    world = World(attempt=complain)
    await world.run.carry_out()
    record = caplog.records[-1]
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        r"hook greet failed: exit status 3: 'last \x1b[31mwords' (run run-1)"
    )


async def test_a_run_that_went_well_is_no_warning(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await World(RAN).carry_out()
    assert {r.levelno for r in caplog.records} == {logging.INFO}


# --- every interleaving --------------------------------------------------------------------------

STAGES: Final = (*HELD, "end")

steps = st.one_of(
    st.tuples(st.sampled_from(["hold", "release", "release", "fail"]), st.sampled_from(STAGES)),
    st.tuples(st.just("time"), st.sampled_from([0.5, 1, 60, 300])),
    st.tuples(st.sampled_from(["cancel", "stop", "give up"])),
)

runs = st.fixed_dictionaries(
    {"retries": st.integers(0, 2), "attempts": st.integers(0, 1), "has_slot": st.booleans()}
) | st.fixed_dictionaries(
    {"retries": st.integers(0, 2), "begun": st.just(True), "has_slot": st.just(True)}
)

trials = st.sampled_from([RAN, FAILED, FAILED, HOPELESS, ValueError("a bug")])


async def live_through(world: World, course: list[tuple[Any, ...]], clock: MockClock) -> set[str]:
    """Return what was done before the run was over."""
    in_time: set[str] = set()
    async with under_way(world) as daemon:
        deeds: dict[str, Callable[..., object]] = {
            "hold": world.hold,
            "release": world.unblock,
            "fail": world.fail,
            "time": clock.jump,
            "cancel": partial(world.run.cancel, REASON),
            "stop": partial(daemon.cancel, "stopping"),
            "give up": world.given_up.set,
        }
        for name, *arguments in [*course, ("stop",)]:
            if not world.is_over:
                in_time.add(name)
            deeds[name](*arguments)
            await wait_all_tasks_blocked()
        world.failing.clear()
        world.unblock(*STAGES)
        await wait_all_tasks_blocked()
        await pass_by(clock, 1)
    return in_time


@settings(max_examples=4 * settings().max_examples, deadline=None)
@given(
    tries=st.lists(trials, min_size=3, max_size=3),
    about=runs,
    held=st.sets(st.sampled_from(STAGES), max_size=2),
    course=st.lists(steps, max_size=25),
)
def test_whatever_happens_when_a_run_ends_once_or_goes_on_waiting(
    tries: list[AttemptResult | Exception],
    about: dict[str, Any],
    held: set[str],
    course: list[tuple[Any, ...]],
) -> None:
    async def main() -> None:
        world = World(*tries, **about)
        for stage in held:
            world.hold(stage)
        done = await live_through(world, course, clock)
        assert_attempts_are_told(world)
        if world.run.ending is None:
            assert "stop" in done
            assert "cancel" not in done
            assert world.endings == []
            assert world.attempts_stored <= about["retries"]  # so that it is tried again
        elif world.endings != [world.run.ending]:
            assert world.endings == []
            assert world.given_up.is_set()

    clock = MockClock()
    logging.disable()
    try:
        trio.run(main, clock=clock)
    finally:
        logging.disable(logging.NOTSET)


def assert_attempts_are_told(world: World) -> None:
    """Who watches is told of each attempt, in order: its beginning, and its end unless cut short.

    Only the last one can be cut short.
    """
    told = [note for note in world.notes if note.split()[0] in {"begins", *map(str, Outcome)}]
    numbers = [int(note.split()[1].strip(",")) for note in told]
    assert numbers == sorted(numbers)
    for begins, ended in zip(told[::2], told[1::2], strict=False):
        assert begins.startswith("begins")
        assert not ended.startswith("begins")
    assert all(note.endswith("again") for note in told[1:-1:2])
