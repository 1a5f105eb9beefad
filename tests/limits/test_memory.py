from hypothesis import given
from hypothesis import strategies as st

from clarad.limits.memory import MemoryBudget

SIZE = 1000
OWN = 10


def fill(budget: MemoryBudget) -> int:
    """Be a holder that takes whatever it can get, one by one; return how much that is."""
    held = 0
    while budget.fits(held, held + 1):
        budget.change(held, held + 1)
        held += 1
    return held


def test_the_first_may_have_half_and_each_next_one_half_of_the_rest() -> None:
    budget = MemoryBudget(SIZE)
    assert [fill(budget) for _ in range(4)] == [500, 250, 125, 62]


def test_everyone_has_something_in_any_case() -> None:
    budget = MemoryBudget(SIZE, OWN)
    for _ in range(100):
        assert fill(budget) >= OWN
    assert budget.used <= SIZE


def test_what_is_given_back_is_free_again() -> None:
    budget = MemoryBudget(SIZE, OWN)
    budget.change(fill(budget), 0)
    assert fill(budget) == SIZE // 2 + OWN


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, SIZE)), max_size=100))
def test_no_more_is_shared_than_there_is(steps: list[tuple[int, int]]) -> None:
    budget = MemoryBudget(SIZE, OWN)
    held = dict.fromkeys(range(6), 0)
    for holder, wanted in steps:
        if budget.fits(held[holder], wanted):
            budget.change(held[holder], wanted)
            held[holder] = wanted
        else:
            assert wanted > max(held[holder], OWN)
        assert budget.used == sum(max(h - OWN, 0) for h in held.values()) <= SIZE
