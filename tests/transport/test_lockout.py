"""Addresses that fail too often are locked out for a minute."""

from collections.abc import Sequence
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clarad.transport import lockout
from clarad.transport.lockout import MAX_FAILURES, WINDOW, Lockout

HERE: Final = "127.0.0.1"
THERE: Final = "192.0.2.7"


def fail(at: Lockout, address: str, times: int, now: float = 0.0) -> None:
    for _ in range(times):
        at.count_failure(address, now)


@pytest.mark.parametrize("address", [HERE, THERE, "::1"])
@pytest.mark.parametrize(
    ("failures", "at", "is_locked"),
    [
        ([0] * 9, 0, False),
        ([0] * 10, 0, True),
        ([0] * 10, 59.9, True),
        ([0] * 10, 60, False),
        ([0] * 10 + [59] * 100, 60, False),  # failures during a lockout do not extend it
        ([0] * 10 + [60] * 9, 60, False),  # counting starts anew after it
        ([0] * 10 + [60] * 10, 60, True),
        ([0] * 9 + [60], 60, False),  # a failure counts for a minute
        ([0] * 5 + [50] * 5, 50, True),  # the minute slides
    ],
)
def test_ten_failures_within_a_minute_lock_an_address_out_for_a_minute(
    address: str, failures: Sequence[float], at: float, *, is_locked: bool
) -> None:
    of = Lockout()
    for now in failures:
        of.count_failure(address, now)
    assert of.is_locked(address, at) == is_locked


def test_the_failure_that_locks_out_is_told_from_the_others() -> None:
    of = Lockout()
    assert [of.count_failure(HERE, 0) for _ in range(12)] == [False] * 9 + [True, False, False]


def test_the_addresses_of_one_ipv6_network_count_as_one() -> None:
    at = Lockout()
    for n in range(10):
        fail(at, f"2001:db8::{n:x}", 1)
    assert at.is_locked("2001:db8::ffff:ffff", 0)
    assert not at.is_locked("2001:db8:0:1::1", 0)


@pytest.mark.parametrize("near", ["192.0.2.8", "::ffff:192.0.2.8", "uid 1000"])
def test_every_ipv4_address_and_every_user_counts_alone(near: str) -> None:
    at = Lockout()
    for address in (THERE, f"::ffff:{THERE}", "uid 1001"):
        fail(at, address, 10)
    assert not at.is_locked(near, 0)


@given(st.lists(st.integers(0, 30), max_size=60))
def test_an_address_is_locked_exactly_for_a_minute_after_ten_failures_in_a_minute(
    pauses: list[int],
) -> None:
    at = Lockout()
    now = 0
    failures: list[int] = []
    locked_until = 0
    for pause in pauses:
        now += pause
        is_open = now >= locked_until
        assert at.is_locked(HERE, now) != is_open
        locks = at.count_failure(HERE, now)
        if is_open:
            failures = [when for when in failures if when > now - WINDOW] + [now]
        assert locks == (is_open and len(failures) == MAX_FAILURES)
        if locks:
            failures, locked_until = [], now + int(WINDOW)


# --- addresses that are remembered ---------------------------------------------------------------


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Lockout:
    """A lockout that remembers two addresses."""
    monkeypatch.setattr(lockout, "MAX_ADDRESSES", 2)
    return Lockout()


def test_of_too_many_failing_addresses_the_one_that_failed_longest_ago_is_forgotten(
    forgetful: Lockout,
) -> None:
    for address in ("a", "b", "c"):
        fail(forgetful, address, 9)
    for address in ("b", "c", "a"):
        fail(forgetful, address, 1)
    locked = [address for address in ("a", "b", "c") if forgetful.is_locked(address, 0)]
    assert locked == ["b", "c"]


def test_an_address_that_fails_again_is_not_the_one_that_failed_longest_ago(
    forgetful: Lockout,
) -> None:
    fail(forgetful, "a", 8)
    fail(forgetful, "b", 9)
    fail(forgetful, "a", 1)
    fail(forgetful, "c", 1)
    fail(forgetful, "a", 1)
    assert forgetful.is_locked("a", 0)


def test_of_too_many_locked_addresses_the_one_that_was_locked_longest_ago_is_forgotten(
    forgetful: Lockout,
) -> None:
    for address in ("a", "b", "c"):
        fail(forgetful, address, 10)
    locked = [address for address in ("a", "b", "c") if forgetful.is_locked(address, 0)]
    assert locked == ["b", "c"]


def test_an_address_that_is_locked_again_is_not_the_one_that_was_locked_longest_ago(
    forgetful: Lockout,
) -> None:
    fail(forgetful, "a", 10, now=0)
    fail(forgetful, "b", 10, now=30)
    fail(forgetful, "a", 10, now=60)
    fail(forgetful, "c", 10, now=61)
    assert forgetful.is_locked("a", 61)
