"""How far a task is accounted for, whatever the order in which its rows are written."""

from datetime import UTC, datetime, timedelta
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from clarad.automation.tasks.watermark import Watermarks

MIDNIGHT = datetime(2027, 1, 1, tzinfo=UTC)


def at(number: int) -> datetime:
    return MIDNIGHT + timedelta(seconds=number)


def test_rows_that_are_written_in_order_are_accounted_for_one_by_one() -> None:
    accounts = Watermarks()
    for number in range(3):
        accounts.open("t", at(number))
        assert accounts.close("t", at(number)) == at(number)


def test_a_row_that_is_missing_holds_the_account_until_it_is_written() -> None:
    accounts = Watermarks()
    for number in range(3):
        accounts.open("t", at(number))
    assert accounts.close("t", at(1)) is None
    assert accounts.close("t", at(2)) is None
    assert accounts.close("t", at(0)) == at(2)


def test_tasks_have_accounts_of_their_own() -> None:
    accounts = Watermarks()
    accounts.open("missing", at(0))
    accounts.open("t", at(1))
    assert accounts.close("t", at(1)) == at(1)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=60),
    st.randoms(use_true_random=False),
)
def test_nothing_is_accounted_for_beyond_a_row_that_is_missing(
    steps: list[tuple[bool, int]], chance: Random
) -> None:
    """Rows are written in any order, also for occurrences that are looked at once more."""
    accounts = Watermarks()
    missing: set[int] = set()
    until = None
    for is_new, number in steps:
        if is_new or not missing:
            accounts.open("t", at(number))
            missing.add(number)
            continue
        one = chance.choice(sorted(missing))
        missing.discard(one)
        until = accounts.close("t", at(one))
        assert until is None or all(at(other) > until for other in missing)
    if missing:
        latest = max(missing)
        for one in sorted(missing):
            until = accounts.close("t", at(one))
        assert until is not None
        assert until >= at(latest)
