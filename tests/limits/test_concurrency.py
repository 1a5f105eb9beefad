"""How many messages or runs go on at once, and whose is next."""

from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from clarad.limits.concurrency import SHARE, Slots, fair_share

Rule = Callable[[str, int, int], bool]


def fixed(key: str, held: int, _free: int) -> bool:
    """Allow `a` one slot, `b` two and `c` five."""
    return held < {"a": 1, "b": 2, "c": 5}[key]


def fill(slots: Slots[str], node: str) -> int:
    """Be a node that takes whatever it can get; return how much that is."""
    taken = 0
    while slots.acquire_nowait(node):
        taken += 1
    return taken


class World:
    """Nodes that take slots and wait for them, and who got one, in order."""

    def __init__(self, capacity: int, nursery: trio.Nursery, rule: Rule = fair_share) -> None:
        self.slots = Slots(capacity, rule)
        self.capacity = capacity
        self.held: Counter[str] = Counter()
        self.waiting: dict[int, tuple[str, trio.CancelScope]] = {}
        self.given: list[tuple[str, int]] = []
        self._nursery = nursery
        self._asked = 0

    def ask(self, node: str) -> None:
        self._asked += 1
        scope = trio.CancelScope()
        self.waiting[self._asked] = node, scope
        self._nursery.start_soon(self._enter, self._asked, node, scope)

    async def _enter(self, number: int, node: str, scope: trio.CancelScope) -> None:
        with scope:
            await self.slots.acquire(node)
            self.held[node] += 1
            self.given.append((node, number))
        del self.waiting[number]

    def leave(self, node: str) -> None:
        if self.held[node]:
            self.held[node] -= 1
            self.slots.release(node)

    def cancel(self, number: int) -> None:
        if self.waiting:
            _, scope = list(self.waiting.values())[number % len(self.waiting)]
            scope.cancel()

    def resize(self, capacity: int) -> None:
        self.capacity = capacity
        self.slots.resize(capacity)


def test_a_node_that_is_alone_has_nearly_all_and_the_next_one_finds_some() -> None:
    slots = Slots[str](256)
    assert [fill(slots, node) for node in "abc"] == [228, 25, 3]


@pytest.mark.parametrize("capacity", range(1, SHARE + 1))
def test_of_few_one_node_may_have_all(capacity: int) -> None:
    assert fill(Slots(capacity), "a") == capacity


async def test_nodes_that_wait_take_turns_however_many_messages_each_has(
    nursery: trio.Nursery,
) -> None:
    world = World(1, nursery)
    for node in "aaaaaabbc":
        world.ask(node)
        await wait_all_tasks_blocked()
    for _ in range(8):
        world.leave(world.given[-1][0])
        await wait_all_tasks_blocked()
    assert "".join(node for node, _ in world.given) == "aabcabaaa"
    for node in "abc":
        assert (numbers := [n for of, n in world.given if of == node]) == sorted(numbers)


async def test_what_a_node_has_too_much_goes_to_those_that_wait(nursery: trio.Nursery) -> None:
    world = World(64, nursery)
    for node in "a" * 100 + "b" * 100:
        world.ask(node)
        await wait_all_tasks_blocked()  # Trio starts tasks in any order
    for _ in range(60):
        world.leave("a")
        await wait_all_tasks_blocked()
    assert 28 <= world.held["a"] <= 32 >= world.held["b"] >= 28


NODES = st.sampled_from("abc")
STEPS = st.one_of(
    st.tuples(st.just("ask"), NODES),
    st.tuples(st.just("ask"), NODES),
    st.tuples(st.just("leave"), NODES),
    st.tuples(st.just("cancel"), st.integers(0, 20)),
    st.tuples(st.just("resize"), st.integers(1, 20)),
    st.just(("pause",)),
)


async def live_through(capacity: int, rule: Rule, steps: list[tuple[str, ...]]) -> None:
    async with trio.open_nursery() as nursery:
        world = World(capacity, nursery, rule)
        for name, *arguments in steps:
            if name != "pause":
                getattr(world, name)(*arguments)
                continue
            before = world.slots.in_use
            await wait_all_tasks_blocked()
            assert world.slots.in_use == world.held.total() <= max(before, world.capacity)
            free = world.capacity - world.slots.in_use
            for node, _ in world.waiting.values():
                assert free <= 0 or not rule(node, world.held[node], free)
        await wait_all_tasks_blocked()
        while world.held.total():
            for node in list(world.held):
                world.leave(node)
            await wait_all_tasks_blocked()
        assert not world.waiting
        assert world.slots.in_use == 0


@given(st.integers(1, 20), st.sampled_from([fair_share, fixed]), st.lists(STEPS, max_size=60))
def test_nobody_waits_who_may_have_one_and_none_is_lost(
    capacity: int, rule: Rule, steps: list[tuple[str, ...]]
) -> None:
    trio.run(live_through, capacity, rule, steps)


# --- with a callback -----------------------------------------------------------------------------


def ask(slots: Slots[str], key: str, names: str, started: list[str]) -> None:
    """Have each name put down once a slot is acquired for it."""
    for name in names:
        slots.call_when_acquired(key, partial(started.append, name))


def test_callbacks_are_called_in_the_order_in_which_they_asked() -> None:
    slots, started = Slots[str](10, fixed), list[str]()
    ask(slots, "b", "wxyz", started)
    assert started == ["w", "x"]
    slots.release("b")
    assert started == ["w", "x", "y"]


def test_a_callback_that_was_withdrawn_is_not_called() -> None:
    slots, started = Slots[str](1), list[str]()
    assert slots.acquire_nowait("a")
    leaves = partial(started.append, "leaves")
    slots.call_when_acquired("a", leaves)
    ask(slots, "a", "s", started)
    slots.withdraw("a", leaves)
    slots.release("a")
    assert started == ["s"]
    assert not slots.is_waiting("a")


def test_a_callback_can_release_its_slot() -> None:
    slots, started = Slots[str](1), list[str]()

    def start(name: str) -> None:
        started.append(name)
        slots.release("a")

    assert slots.acquire_nowait("a")
    for name in "xyz":
        slots.call_when_acquired("a", partial(start, name))
    slots.release("a")
    assert started == ["x", "y", "z"]
    assert slots.in_use == 0


def test_what_a_rule_allows_from_now_on_is_granted() -> None:
    most, started = {"hook": 1}, list[str]()
    slots = Slots[str](10, lambda key, held, _free: held < most[key])
    ask(slots, "hook", "xyz", started)
    most["hook"] = 2
    slots.grant()
    assert started == ["x", "y"]


def test_a_key_that_may_have_no_more_is_passed_over_and_keeps_its_turn() -> None:
    slots, started = Slots[str](2, fixed), list[str]()
    ask(slots, "a", "xy", started)
    ask(slots, "b", "zw", started)
    assert started == ["x", "z"]
    slots.release("a")
    assert started == ["x", "z", "y"]
