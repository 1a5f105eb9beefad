from itertools import groupby
from pathlib import Path
from typing import Any

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from clarad.automation.hooks.hook import Hook
from clarad.automation.hooks.hook_run import HookRun, assign_tiers, open_next_tiers
from clarad.automation.runs.run import AttemptResult, Run
from clarad.limits.concurrency import Slots
from clarad.process.shell import Output
from clarad.store import Ending, Outcome
from tests.in_trio import run_in_trio

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

RAN = Ending(Outcome.RAN)
FAILED = Ending(Outcome.FAILED)


def hook_run(
    name: str, priority: int = 0, *, slots: Slots[str] | None = None, key: str = ""
) -> HookRun:
    hook = Hook(name=name, events=frozenset(), priority=priority, working_dir=Path("/"))
    return HookRun(f"run of {name}", hook, None, slots=slots or one_each(9), key=key or name)


def one_each(capacity: int) -> Slots[str]:
    """Return slots of which each hook may have one."""
    return Slots(capacity, lambda _hook, held, _free: held < 1)


def two_of(slots: Slots[str]) -> tuple[HookRun, HookRun]:
    """Return two hook_runs of the same hook."""
    return hook_run("first", slots=slots, key="hook"), hook_run("second", slots=slots, key="hook")


def nothing() -> None:
    """Start what does nothing."""


def tiers_of(*priorities: int) -> list[HookRun]:
    """Return the hook_runs of an event, in tiers; each opens what it can once it is tried."""
    made = [hook_run(f"hook {n}", priority) for n, priority in enumerate(priorities)]
    assign_tiers(made)
    return made


def names(hook_runs: list[HookRun]) -> list[str]:
    return [each.hook.name for each in hook_runs]


def open_ones(hook_runs: list[HookRun]) -> list[str]:
    return names([each for each in hook_runs if each.tier.is_open])


# --- tiers ---------------------------------------------------------------------------------------


@run_in_trio
def test_those_of_the_highest_priority_are_first_side_by_side() -> None:
    made = tiers_of(9, 9, 5, 0)
    assert open_ones(made) == ["hook 0", "hook 1"]


@run_in_trio
def test_the_next_ones_follow_when_each_of_the_first_has_been_tried() -> None:
    first, second, *rest = made = tiers_of(9, 9, 5, 5, 0)
    first.note_attempted()
    assert open_next_tiers(first) == []
    assert open_ones(made) == ["hook 0", "hook 1"]
    second.note_attempted()
    assert names(open_next_tiers(second)) == ["hook 2", "hook 3"]
    assert open_ones(made) == ["hook 0", "hook 1", "hook 2", "hook 3"]
    assert not rest[-1].tier.is_open


@run_in_trio
def test_a_tier_opens_once() -> None:
    first, *_ = tiers_of(9, 5)
    first.note_attempted()
    assert names(open_next_tiers(first)) == ["hook 1"]
    first.note_attempted()
    assert open_next_tiers(first) == []


@run_in_trio
def test_after_the_last_tier_comes_nothing() -> None:
    [only] = tiers_of(0)
    only.note_attempted()
    assert open_next_tiers(only) == []


@run_in_trio
def test_one_that_is_tried_twice_counts_once() -> None:
    first, *rest = tiers_of(9, 9, 5)
    first.note_attempted()
    first.note_attempted()
    assert open_next_tiers(first) == []
    assert not rest[-1].tier.is_open


@run_in_trio
def test_a_delivery_of_its_own_waits_for_nobody() -> None:
    assert hook_run("alone").tier.is_open


@run_in_trio
def test_of_no_deliveries_there_are_no_tiers() -> None:
    assign_tiers([])


@run_in_trio
def test_one_that_is_given_up_early_holds_nobody_up_and_lets_nobody_pass() -> None:
    first, refused, last = tiers_of(9, 5, 0)
    refused.note_attempted()
    assert open_next_tiers(refused) == []
    assert not last.tier.is_open
    first.note_attempted()
    assert names(open_next_tiers(first)) == ["hook 1", "hook 2"]


@relaxed
@given(st.lists(st.integers(-2, 2), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_a_tier_opens_once_when_all_before_it_are_tried_whatever_comes_first(
    priorities: list[int], random: Any
) -> None:
    @run_in_trio
    def check() -> None:
        made = tiers_of(*sorted(priorities, reverse=True))
        tiers = [list(tier) for _, tier in groupby(made, key=lambda each: each.hook.priority)]
        opened = names(tiers[0])
        tried: set[str] = set()
        while len(tried) < len(made):
            # Mostly one whose turn it is; one that is refused may be done with before that.
            waiting = [each for each in made if each.hook.name not in tried]
            ready = [each for each in waiting if each.tier.is_open]
            one = random.choice(ready or waiting if random.random() < 0.8 else waiting)
            one.note_attempted()
            tried.add(one.hook.name)
            opened += names(open_next_tiers(one))
            done = [set(names(tier)) <= tried for tier in tiers]
            expected = 1 + (done.index(False) if False in done else len(tiers))
            assert opened == [name for tier in tiers[:expected] for name in names(tier)]
            assert open_ones(made) == opened

    check()


# --- its attempts --------------------------------------------------------------------------------


@run_in_trio
def test_whoever_wants_to_know_is_told_after_each_attempt() -> None:
    one, told = hook_run("hook"), list[HookRun]()
    one.on_attempted = told.append
    one.attempt_ended(_run_of(one), FAILED, again=True)
    one.attempt_ended(_run_of(one), RAN, again=False)
    assert told == [one, one]


@run_in_trio
def test_one_that_waits_for_another_attempt_has_been_tried() -> None:
    first, second = tiers_of(9, 5)
    first.attempt_began(_run_of(first))
    assert not first.is_parked
    first.attempt_ended(_run_of(first), FAILED, again=True)
    assert first.is_parked
    assert open_next_tiers(first) == [second]
    first.attempt_began(_run_of(first))
    assert not first.is_parked


class Unused:
    """A store for runs that are not carried out."""

    async def begin(self, run_id: str, attempt: int) -> None:
        raise AssertionError

    async def put_off(self, run_id: str, ending: Ending) -> None:
        raise AssertionError

    async def end(self, run_id: str, ending: Ending) -> None:
        raise AssertionError


async def _attempt(run: Run, output: Output) -> AttemptResult:
    raise AssertionError


def _run_of(one: HookRun) -> Run:
    return Run(
        one.run_id,
        one.subject,
        store=Unused(),
        owner=one,
        given_up=trio.Event(),
        attempt=_attempt,
        timeout=1,
        retries=0,
    )


# --- its place -----------------------------------------------------------------------------------


@run_in_trio
def test_one_that_has_a_place_overlaps_the_next() -> None:
    first, second = two_of(one_each(9))
    assert not first.overlaps
    first.request_slot(nothing)
    assert first.has_slot
    assert second.overlaps
    first.release()
    assert not first.has_slot
    assert not second.overlaps


@run_in_trio
def test_one_that_waits_for_a_place_overlaps_the_next() -> None:
    slots = one_each(1)
    first, second = two_of(slots)
    hook_run("another hook", slots=slots).request_slot(nothing)
    first.request_slot(nothing)
    assert not first.has_slot
    assert second.overlaps


@run_in_trio
def test_one_that_gets_a_place_has_it_before_it_is_started() -> None:
    first, second = two_of(one_each(9))
    started = list[bool]()
    first.request_slot(nothing)
    second.request_slot(lambda: started.append(second.has_slot))
    assert started == []
    first.release()
    assert started == [True]


async def test_one_that_is_cancelled_while_it_waits_has_no_place(nursery: trio.Nursery) -> None:
    slots = one_each(9)
    first, second = two_of(slots)
    await first.acquire()
    assert first.has_slot
    scope = trio.CancelScope()

    async def enter() -> None:
        with scope:
            await second.acquire()

    nursery.start_soon(enter)
    await wait_all_tasks_blocked()
    scope.cancel()
    await wait_all_tasks_blocked()
    assert not second.has_slot
    first.release()
    assert slots.in_use == 0
