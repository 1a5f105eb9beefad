"""How many messages a node and a user may send."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clarad.limits import rate
from clarad.limits.rate import Buckets, Rate, Rates


def allowed(limits: Rates, *, user: str = "u", node: str = "n", now: float = 0.0) -> int:
    """Return how many messages are taken in at once."""
    taken = 0
    while not limits.acquire(node, user, now):
        taken += 1
        assert taken <= 1000
    return taken


def test_without_a_rate_nothing_is_refused() -> None:
    assert not any(Rates().acquire("n", "u", 0) for _ in range(1000))


def test_as_many_as_are_said_come_at_once() -> None:
    assert allowed(Rates(node=Rate(60, at_once=10))) == 10


def test_a_token_comes_back_each_interval() -> None:
    limits = Rates(node=Rate(60, at_once=10))
    allowed(limits)
    assert [allowed(limits, now=now) for now in (0.5, 1.0, 3.0, 100.0)] == [0, 1, 2, 10]


def test_who_is_refused_is_told_how_long_to_wait() -> None:
    limits = Rates(user=Rate(6, at_once=1))
    allowed(limits)
    assert limits.acquire("n", "u", 4.0) == pytest.approx(6)


def test_everyone_has_a_bucket_of_their_own() -> None:
    limits = Rates(user=Rate(60, at_once=3))
    assert [allowed(limits, user=user) for user in "aba"] == [3, 3, 0]


def test_both_rates_count_and_a_refused_message_counts_for_neither() -> None:
    limits = Rates(node=Rate(60, at_once=3), user=Rate(60, at_once=2))
    assert [allowed(limits, user=user) for user in "abc"] == [2, 1, 0]
    assert allowed(limits, user="b", node="another") == 1


def test_only_so_many_buckets_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate, "MAX_KEYS", 2)
    limits = Rates(user=Rate(60, at_once=1))
    assert [allowed(limits, user=user) for user in "abcba"] == [1, 1, 1, 0, 1]


@given(
    st.integers(1, 600),
    st.integers(1, 20),
    st.lists(st.floats(0, 100), max_size=100),
)
def test_it_is_a_bucket_that_fills_evenly(
    per_minute: int, at_once: int, pauses: list[float]
) -> None:
    buckets = Buckets(Rate(per_minute, at_once))
    tokens, now = float(at_once), 0.0
    for pause in pauses:
        now += pause
        tokens = min(tokens + pause * per_minute / 60, at_once)
        wait = buckets.delay("key", now)
        assert wait == pytest.approx(max(1 - tokens, 0) * 60 / per_minute, abs=1e-6)
        if not wait:
            buckets.acquire("key", now)
            tokens -= 1
