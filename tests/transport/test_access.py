from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clarad.transport import access
from clarad.transport.access import MAX_FAILURES, WINDOW, AuthGuard, bearer

HERE: Final = "127.0.0.1"
THERE: Final = "192.0.2.7"


def door(secret: str | None = "swordfish", origins: frozenset[str] = frozenset()) -> AuthGuard:
    return AuthGuard(secret, origins)


def guess(at: AuthGuard, address: str, times: int, now: float = 0.0) -> None:
    for _ in range(times):
        at.note_failure(address, now)


# --- the secret ----------------------------------------------------------------------------------


def test_the_secret_opens_the_door() -> None:
    assert door().admits("swordfish")


@pytest.mark.parametrize("secret", [None, "", "Swordfish", "swordfish ", "swordfis", "s" * 10_000])
def test_nothing_else_opens_it(secret: str | None) -> None:
    assert not door().admits(secret)


def test_a_secret_may_be_any_text() -> None:
    assert door("pässwörd 🔑").admits("pässwörd 🔑")


@pytest.mark.parametrize("secret", ["\ud800", "a\0b", "\udfff swordfish"])
def test_a_secret_that_no_one_could_have_set_is_wrong_like_any_other(secret: str) -> None:
    assert not door().admits(secret)


@pytest.mark.parametrize("secret", [None, "", "anything"])
def test_without_a_secret_the_door_is_open(secret: str | None) -> None:
    assert door(None).admits(secret)


@given(st.text(min_size=1), st.text())
def test_only_the_secret_itself_opens_the_door(secret: str, tried: str) -> None:
    assert door(secret).admits(tried) == (secret == tried)


# --- guessing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [HERE, THERE, "::1"])
def test_ten_wrong_secrets_in_a_minute_lock_out(address: str) -> None:
    at = door()
    guess(at, address, 9)
    assert not at.is_locked(address, 0)
    guess(at, address, 1)
    assert at.is_locked(address, 0)


def test_a_lockout_lasts_a_minute() -> None:
    at = door()
    guess(at, HERE, 10)
    assert at.is_locked(HERE, 59.9)
    assert not at.is_locked(HERE, 60)


def test_the_secret_opens_the_door_from_a_locked_address_too() -> None:
    at = door()
    guess(at, HERE, 10)
    assert at.is_locked(HERE, 0)
    assert at.admits("swordfish")
    assert not at.admits("guess")


def test_after_that_minute_counting_starts_anew() -> None:
    at = door()
    guess(at, HERE, 10)
    guess(at, HERE, 9, now=60)
    assert not at.is_locked(HERE, 60)
    guess(at, HERE, 1, now=60)
    assert at.is_locked(HERE, 60)


def test_guessing_during_a_lockout_does_not_make_it_longer() -> None:
    at = door()
    guess(at, HERE, 10)
    guess(at, HERE, 100, now=59)
    assert not at.is_locked(HERE, 60)


def test_the_failure_that_locks_out_is_told_from_the_others() -> None:
    at = door()
    assert [at.note_failure(HERE, 0) for _ in range(12)] == [False] * 9 + [True, False, False]


def test_failures_that_are_a_minute_old_do_not_count() -> None:
    at = door()
    guess(at, HERE, 9, now=0)
    guess(at, HERE, 1, now=60)
    assert not at.is_locked(HERE, 60)


def test_the_minute_slides() -> None:
    at = door()
    guess(at, HERE, 5, now=0)
    guess(at, HERE, 5, now=50)
    assert at.is_locked(HERE, 50)


def test_one_address_does_not_close_the_door_to_another() -> None:
    at = door()
    guess(at, HERE, 10)
    assert at.admits("swordfish")


def test_the_addresses_of_one_ipv6_network_are_one_guesser() -> None:
    at = door()
    for n in range(10):
        guess(at, f"2001:db8::{n:x}", 1)
    assert at.is_locked("2001:db8::ffff:ffff", 0)
    assert not at.is_locked("2001:db8:0:1::1", 0)


@pytest.mark.parametrize("near", ["192.0.2.8", "::ffff:192.0.2.8", "uid 1000"])
def test_every_ipv4_address_and_every_user_is_a_guesser_of_their_own(near: str) -> None:
    at = door()
    for address in (THERE, f"::ffff:{THERE}", "uid 1001"):
        guess(at, address, 10)
    assert not at.is_locked(near, 0)


@given(st.lists(st.integers(0, 30), max_size=60))
def test_an_address_is_locked_exactly_for_a_minute_after_ten_failures_in_a_minute(
    pauses: list[int],
) -> None:
    at = door()
    now = 0
    failures: list[int] = []
    locked_until = 0
    for pause in pauses:
        now += pause
        is_open = now >= locked_until
        assert at.is_locked(HERE, now) != is_open
        locks = at.note_failure(HERE, now)
        if is_open:
            failures = [when for when in failures if when > now - WINDOW] + [now]
        assert locks == (is_open and len(failures) == MAX_FAILURES)
        if locks:
            failures, locked_until = [], now + int(WINDOW)


# --- addresses that are remembered ---------------------------------------------------------------


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> AuthGuard:
    """A door that remembers two addresses."""
    monkeypatch.setattr(access, "MAX_ADDRESSES", 2)
    return door()


def test_of_too_many_failing_addresses_the_one_that_failed_longest_ago_is_forgotten(
    forgetful: AuthGuard,
) -> None:
    for address in ("a", "b", "c"):
        guess(forgetful, address, 9)
    for address in ("b", "c", "a"):
        guess(forgetful, address, 1)
    locked = [address for address in ("a", "b", "c") if forgetful.is_locked(address, 0)]
    assert locked == ["b", "c"]


def test_an_address_that_fails_again_is_not_the_one_that_failed_longest_ago(
    forgetful: AuthGuard,
) -> None:
    guess(forgetful, "a", 8)
    guess(forgetful, "b", 9)
    guess(forgetful, "a", 1)
    guess(forgetful, "c", 1)
    guess(forgetful, "a", 1)
    assert forgetful.is_locked("a", 0)


def test_of_too_many_locked_addresses_the_one_that_was_locked_longest_ago_is_forgotten(
    forgetful: AuthGuard,
) -> None:
    for address in ("a", "b", "c"):
        guess(forgetful, address, 10)
    locked = [address for address in ("a", "b", "c") if forgetful.is_locked(address, 0)]
    assert locked == ["b", "c"]


def test_an_address_that_is_locked_again_is_not_the_one_that_was_locked_longest_ago(
    forgetful: AuthGuard,
) -> None:
    guess(forgetful, "a", 10, now=0)
    guess(forgetful, "b", 10, now=30)
    guess(forgetful, "a", 10, now=60)
    guess(forgetful, "c", 10, now=61)
    assert forgetful.is_locked("a", 61)


# --- origins -------------------------------------------------------------------------------------


def test_an_adapter_has_no_origin_and_is_let_in() -> None:
    assert door().admits_origin({"host": "127.0.0.1:18789"})


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://localhost", "http://127.0.0.1:18789", "null", ""]
)
def test_a_web_page_is_kept_out(origin: str) -> None:
    assert not door().admits_origin({"origin": origin})


def test_a_web_page_is_kept_out_also_where_no_secret_is_set() -> None:
    assert not door(None).admits_origin({"origin": "https://evil.example"})


@pytest.mark.parametrize(
    "origin", ["https://chat.example.org", "HTTPS://Chat.Example.org", "https://chat.example.org/"]
)
def test_a_web_page_that_is_listed_is_let_in(origin: str) -> None:
    at = door(origins=frozenset({"https://chat.example.org"}))
    assert at.admits_origin({"origin": origin})


@pytest.mark.parametrize(
    "origin",
    [
        "http://chat.example.org",
        "https://chat.example.org:8443",
        "https://chat.example.org.evil.example",
        "https://evil.example/https://chat.example.org",
        "chat.example.org",
    ],
)
def test_a_web_page_that_is_like_a_listed_one_is_kept_out(origin: str) -> None:
    at = door(origins=frozenset({"https://chat.example.org"}))
    assert not at.admits_origin({"origin": origin})


# --- the header ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer swordfish", "swordfish"),
        ("bearer swordfish", "swordfish"),
        ("BEARER  swordfish ", "swordfish"),
        ("Bearer sword fish", "sword fish"),
        ("Bearer ", ""),
        ("Bearer", ""),
        ("Basic c3dvcmQ6ZmlzaA==", None),
        ("swordfish", None),
        ("", None),
    ],
)
def test_the_token_is_what_follows_bearer(header: str, token: str | None) -> None:
    assert bearer({"authorization": header}) == token


def test_a_handshake_without_the_header_has_no_token() -> None:
    assert bearer({"host": "127.0.0.1"}) is None
