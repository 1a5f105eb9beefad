from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from trio.testing import wait_all_tasks_blocked

from clarad.automation.runs.concurrency import Lane, Lanes

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def ask(lanes: Lanes, lane: Lane, names: Sequence[str], started: list[str]) -> None:
    """Ask for a place for each of the names; `started` gets those that have one."""
    for name in names:
        lanes.wait(lane, partial(started.append, name))


# --- how many ------------------------------------------------------------------------------------


def test_a_place_is_taken_at_once_if_there_is_one() -> None:
    lanes, lane = Lanes(10), Lane(2)
    assert [lanes.take(lane) for _ in range(3)] == [True, True, False]
    assert lane.running == 2


def test_a_lane_has_only_so_many_places() -> None:
    lanes, lane, started = Lanes(10), Lane(2), list[str]()
    ask(lanes, lane, ["a", "b", "c"], started)
    assert started == ["a", "b"]
    lanes.leave(lane)
    assert started == ["a", "b", "c"]


def test_all_lanes_together_have_only_so_many_places() -> None:
    lanes, one, other, started = Lanes(3), Lane(2), Lane(2), list[str]()
    ask(lanes, one, ["a", "b"], started)
    ask(lanes, other, ["c", "d"], started)
    assert started == ["a", "b", "c"]
    lanes.leave(one)
    assert started == ["a", "b", "c", "d"]


def test_a_lane_that_is_full_leaves_the_others_their_places() -> None:
    lanes, full, other = Lanes(3), Lane(1), Lane(5)
    ask(lanes, full, ["a", "b", "c"], [])
    assert lanes.take(other)
    assert lanes.take(other)
    assert not lanes.take(other)


def test_nobody_takes_a_place_past_those_who_wait_for_it() -> None:
    lanes, lane, started = Lanes(10), Lane(1), list[str]()
    ask(lanes, lane, ["a", "b"], started)
    lane.capacity = 2
    assert not lanes.take(lane)
    lanes.look()
    assert started == ["a", "b"]


# --- who is next ---------------------------------------------------------------------------------


def test_in_a_lane_who_asks_first_is_first() -> None:
    lanes, lane, started = Lanes(1), Lane(1), list[str]()
    ask(lanes, lane, "abcdef", started)
    for _ in range(5):
        lanes.leave(lane)
    assert started == list("abcdef")


def test_lanes_take_turns_however_many_wait_in_one_of_them() -> None:
    lanes, started = Lanes(1), list[str]()
    busy, *others = (Lane(10) for _ in range(3))
    current = busy
    lanes.take(busy)
    ask(lanes, busy, ["busy"] * 100, started)
    for n, lane in enumerate(others):
        ask(lanes, lane, [f"other {n}"] * 3, started)
    of = {"busy": busy, "other 0": others[0], "other 1": others[1]}
    for _ in range(9):
        lanes.leave(current)
        current = of[started[-1]]
    assert started == ["busy", "other 0", "other 1"] * 3


def test_who_came_long_ago_is_not_passed_by_those_who_come_again_and_again() -> None:
    lanes, lane, patient, started = Lanes(1), Lane(10), Lane(1), list[str]()
    lanes.take(lane)
    ask(lanes, patient, ["patient"], started)
    ask(lanes, lane, ["again"], started)
    lanes.leave(lane)
    assert started == ["patient"]


def test_a_lane_that_was_full_has_its_turn_when_it_has_room() -> None:
    lanes, full, other, started = Lanes(2), Lane(1), Lane(2), list[str]()
    lanes.take(full)
    ask(lanes, full, ["first"], started)
    ask(lanes, other, ["second", "third"], started)
    assert started == ["second"]
    lanes.leave(full)
    assert started == ["second", "first"]


def test_who_waits_no_longer_is_not_called() -> None:
    lanes, lane, started = Lanes(1), Lane(1), list[str]()
    lanes.take(lane)
    leaves = partial(started.append, "leaves")
    lanes.wait(lane, leaves)
    ask(lanes, lane, ["stays"], started)
    lanes.forget(lane, leaves)
    lanes.leave(lane)
    assert started == ["stays"]


def test_a_place_can_be_given_back_by_whoever_is_called() -> None:
    lanes, lane, started = Lanes(1), Lane(1), list[str]()

    def start(name: str) -> None:
        started.append(name)
        lanes.leave(lane)

    lanes.take(lane)
    for name in "abc":
        lanes.wait(lane, partial(start, name))
    lanes.leave(lane)
    assert started == ["a", "b", "c"]
    assert lane.running == 0


# --- other capacities ----------------------------------------------------------------------------


def test_a_lane_that_gets_more_places_lets_those_in_who_wait() -> None:
    lanes, lane, started = Lanes(10), Lane(1), list[str]()
    ask(lanes, lane, "abcde", started)
    lane.capacity = 3
    lanes.look()
    assert started == ["a", "b", "c"]


def test_a_lane_that_gets_fewer_places_lets_nobody_in_until_there_is_one() -> None:
    lanes, lane, started = Lanes(10), Lane(3), list[str]()
    ask(lanes, lane, "abcde", started)
    lane.capacity = 1
    lanes.leave(lane)
    lanes.leave(lane)
    assert started == ["a", "b", "c"]
    lanes.leave(lane)
    assert started == ["a", "b", "c", "d"]


# --- whatever is done ----------------------------------------------------------------------------

CAPACITY: Final = 4
LANES: Final = 3

numbers = st.integers(0, 1000)


class Asking(RuleBasedStateMachine):
    """Many ask for places in three lanes, wait or go away, and give them back."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes = Lanes(CAPACITY)
        self.all = [Lane(1), Lane(2), Lane(5)]
        self.running: dict[Lane, list[int]] = {lane: [] for lane in self.all}
        self.waiting: dict[Lane, list[int]] = {lane: [] for lane in self.all}
        self.starts: dict[int, Callable[[], None]] = {}
        self.passed: dict[Lane, list[Lane]] = {lane: [] for lane in self.all}
        self.count = 0

    def start(self, lane: Lane, who: int) -> None:
        assert self.waiting[lane][0] == who, "who asks first is first"
        self.waiting[lane].remove(who)
        self.running[lane].append(who)
        self.passed[lane].clear()
        for other in self.all:
            if other is not lane and self.could_start(other):
                assert lane not in self.passed[other], "lanes take turns"
                self.passed[other].append(lane)

    def could_start(self, lane: Lane) -> bool:
        return bool(self.waiting[lane]) and len(self.running[lane]) < lane.capacity

    @rule(n=st.integers(0, LANES - 1))
    def somebody_asks_and_waits(self, n: int) -> None:
        lane, self.count = self.all[n], self.count + 1
        self.waiting[lane].append(self.count)
        self.starts[self.count] = partial(self.start, lane, self.count)
        self.lanes.wait(lane, self.starts[self.count])

    @rule(n=st.integers(0, LANES - 1))
    def somebody_asks_and_does_not_wait(self, n: int) -> None:
        lane, self.count = self.all[n], self.count + 1
        is_free = len(self.running[lane]) < lane.capacity and self.total < CAPACITY
        assert self.lanes.take(lane) == (is_free and not self.waiting[lane])
        if is_free and not self.waiting[lane]:
            self.running[lane].append(self.count)

    @precondition(lambda self: self.total)
    @rule(n=numbers)
    def somebody_gives_a_place_back(self, n: int) -> None:
        places = [(lane, who) for lane in self.all for who in self.running[lane]]
        lane, who = places[n % len(places)]
        self.running[lane].remove(who)
        self.lanes.leave(lane)

    @precondition(lambda self: any(self.waiting.values()))
    @rule(n=numbers)
    def somebody_waits_no_longer(self, n: int) -> None:
        places = [(lane, who) for lane in self.all for who in self.waiting[lane]]
        lane, who = places[n % len(places)]
        self.waiting[lane].remove(who)
        if not self.waiting[lane]:
            self.passed[lane].clear()
        self.lanes.forget(lane, self.starts[who])

    @rule(n=st.integers(0, LANES - 1), capacity=st.integers(1, 5))
    def a_lane_gets_another_capacity(self, n: int, capacity: int) -> None:
        self.all[n].capacity = capacity
        self.lanes.look()

    @property
    def total(self) -> int:
        return sum(map(len, self.running.values()))

    @invariant()
    def no_more_run_than_there_are_places(self) -> None:
        assert self.total <= CAPACITY
        assert [lane.running for lane in self.all] == [len(self.running[lane]) for lane in self.all]

    @invariant()
    def nobody_waits_while_there_is_a_place(self) -> None:
        assert self.total == CAPACITY or not any(map(self.could_start, self.all))

    def teardown(self) -> None:
        """In the end everybody has had a place, and all places are free."""
        while self.total:
            self.somebody_gives_a_place_back(0)
        assert not any(self.waiting.values())
        lane = Lane(CAPACITY + 1)
        assert [self.lanes.take(lane) for _ in range(CAPACITY + 1)] == [True] * CAPACITY + [False]


TestWhoeverAsks = Asking.TestCase


# --- tasks that wait for a place -----------------------------------------------------------------


async def test_a_task_enters_at_once_if_there_is_a_place() -> None:
    lanes, lane = Lanes(1), Lane(1)
    with trio.fail_after(1):
        await lanes.enter(lane)
    assert lane.running == 1


async def test_a_task_enters_when_another_leaves(nursery: trio.Nursery) -> None:
    lanes, lane = Lanes(1), Lane(1)
    await lanes.enter(lane)
    entered = trio.Event()

    async def enter() -> None:
        await lanes.enter(lane)
        entered.set()

    nursery.start_soon(enter)
    await wait_all_tasks_blocked()
    assert not entered.is_set()
    lanes.leave(lane)
    with trio.fail_after(1):
        await entered.wait()
    assert lane.running == 1


async def test_a_task_that_is_cancelled_takes_no_place() -> None:
    lanes, lane = Lanes(1), Lane(1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await lanes.enter(lane)
    assert scope.cancelled_caught
    assert lanes.take(lane)


async def test_a_task_that_is_cancelled_while_it_waits_is_passed_over(
    nursery: trio.Nursery,
) -> None:
    lanes, lane, entered = Lanes(1), Lane(1), list[str]()
    await lanes.enter(lane)
    scope = trio.CancelScope()

    async def enter(name: str, scope: trio.CancelScope) -> None:
        with scope:
            await lanes.enter(lane)
            entered.append(name)

    for name in ("first", "second"):
        nursery.start_soon(enter, name, scope if name == "first" else trio.CancelScope())
        await wait_all_tasks_blocked()
    scope.cancel()
    await wait_all_tasks_blocked()
    lanes.leave(lane)
    await wait_all_tasks_blocked()
    assert entered == ["second"]


async def test_a_place_that_comes_with_a_cancellation_goes_to_the_next(
    nursery: trio.Nursery,
) -> None:
    lanes, lane, entered = Lanes(1), Lane(1), list[str]()
    await lanes.enter(lane)
    scope = trio.CancelScope()

    async def enter(name: str, scope: trio.CancelScope) -> None:
        with scope:
            await lanes.enter(lane)
            entered.append(name)

    for name in ("first", "second"):
        nursery.start_soon(enter, name, scope if name == "first" else trio.CancelScope())
        await wait_all_tasks_blocked()
    scope.cancel()
    lanes.leave(lane)  # before the first one can notice that it is cancelled
    await wait_all_tasks_blocked()
    assert entered == ["second"]
    assert lane.running == 1


@dataclass(eq=False)
class Guest:
    """A task that enters, stays until it is told to go, and leaves."""

    lane: Lane
    number: int
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    go: trio.Event = field(default_factory=trio.Event)
    is_inside: bool = False

    async def visit(self, lanes: Lanes, entered: list[int]) -> None:
        with self.scope:
            await lanes.enter(self.lane)
            entered.append(self.number)
            self.is_inside = True
            try:
                await self.go.wait()
            finally:
                self.is_inside = False
                lanes.leave(self.lane)


steps = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, LANES - 1)),
    st.tuples(st.sampled_from(["cancel", "go"]), numbers),
    st.tuples(st.just("let happen"), st.just(0)),
)


@relaxed
@given(st.lists(steps, max_size=60))
async def test_no_place_is_lost_whenever_whoever_is_cancelled(
    steps: list[tuple[str, int]],
) -> None:
    lanes = Lanes(CAPACITY)
    all_lanes = [Lane(1), Lane(2), Lane(5)]
    guests: list[Guest] = []
    entered: list[int] = []
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for what, n in steps:
                if what == "ask":
                    guests.append(Guest(all_lanes[n], len(guests)))
                    nursery.start_soon(guests[-1].visit, lanes, entered)
                    await wait_all_tasks_blocked()  # so that they ask in this order
                elif what == "let happen":
                    await wait_all_tasks_blocked()
                elif guests:
                    guest = guests[n % len(guests)]
                    guest.scope.cancel() if what == "cancel" else guest.go.set()
                for lane in all_lanes:
                    inside = sum(guest.is_inside for guest in guests if guest.lane is lane)
                    assert inside <= lane.running <= lane.capacity
                assert sum(guest.is_inside for guest in guests) <= CAPACITY
            for guest in guests:
                guest.go.set()
    assert [lane.running for lane in all_lanes] == [0, 0, 0]
    assert [len(lane.waiting) for lane in all_lanes] == [0, 0, 0]
    uncancelled = {guest.number for guest in guests if not guest.scope.cancel_called}
    assert uncancelled <= set(entered)
    assert all(lanes.take(all_lanes[2]) for _ in range(CAPACITY))
