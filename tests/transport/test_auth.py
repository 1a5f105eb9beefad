"""Who may connect and register: with the secret, with a token, with neither, from a web page."""

import threading
from typing import Final, cast

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from clarad.store import StoreError, Tokens
from clarad.store.history import open_writable
from clarad.store.tokens import PREFIX, create_token, digest, free_node, revoke_token
from clarad.transport import auth
from clarad.transport.auth import Authenticator, KnownTokens, bearer
from clarad.transport.lockout import MAX_FAILURES
from tests.conftest import Running, Start
from tests.nurseries.test_gateway import SECRET, refusal
from tests.peer import Frame, Peer

WRONG = PREFIX + "x" * 43
PAGE: Final = "https://chat.example.org"


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have wrong tokens refused at once."""
    monkeypatch.setattr(auth, "READ_INTERVAL", 0.0)


def make_token(running: Running, name: str, *platforms: str) -> str:
    """Make a token as `clarad tokens create` does: beside the daemon."""
    with open_writable(running.settings.database_url) as connection:
        return create_token(connection, name, platforms)


async def revoke(running: Running, name: str) -> str:
    """Revoke a token as `clarad tokens revoke` does; return what the daemon says of it."""
    with open_writable(running.settings.database_url) as connection:
        assert revoke_token(connection, name)
    return (await running.daemon.operations.close_token(name)).text


async def try_register(
    running: Running, secret: str | None, node_id: str = "n", **more: str
) -> Frame:
    """Register on a new connection, and return the answer."""
    peer = await running.connect()
    await peer.send("register", **{"node_id": node_id, "platform": "p", "secret": secret} | more)
    return await peer.receive()


async def register(running: Running, secret: str | None, node_id: str = "n", **more: str) -> Peer:
    """Register on a new connection, successfully."""
    peer = await running.connect()
    await peer.register(node_id, **{"platform": "p", "secret": secret} | more)  # type: ignore[arg-type]
    return peer


def reason(frame: Frame) -> tuple[str, str]:
    """Return what an adapter is refused with."""
    assert frame["type"] == "error", frame
    return frame["code"], frame["message"]


# --- the secret, the header, the origin: without a daemon -----------------------------------------


def authenticator(
    secret: str | None = "swordfish", origins: frozenset[str] = frozenset()
) -> Authenticator:
    return Authenticator(secret, origins, cast(Tokens, None))


@pytest.mark.parametrize(
    ("secret", "presented", "is_right"),
    [
        ("swordfish", "swordfish", True),
        ("pässwörd 🔑", "pässwörd 🔑", True),
        *(
            ("swordfish", wrong, False)
            for wrong in (None, "", "Swordfish", "swordfish ", "swordfis", "s" * 10_000)
        ),
        # No secret could be set to these: they are not UTF-8, or have a NUL.
        *(("swordfish", wrong, False) for wrong in ("\ud800", "a\0b", "\udfff swordfish")),
        *((None, anything, True) for anything in (None, "", "anything")),
    ],
)
def test_only_the_secret_is_right_and_without_one_everything(
    secret: str | None, presented: str | None, *, is_right: bool
) -> None:
    assert authenticator(secret).is_secret(presented) == is_right


@given(st.text(min_size=1), st.text())
def test_no_other_text_is_right(secret: str, presented: str) -> None:
    assert authenticator(secret).is_secret(presented) == (secret == presented)


@pytest.mark.parametrize("secret", ["swordfish", None])
@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [
        (PAGE, True),
        ("HTTPS://Chat.Example.org", True),
        (f"{PAGE}/", True),
        ("http://chat.example.org", False),
        (f"{PAGE}:8443", False),
        (f"{PAGE}.evil.example", False),
        (f"https://evil.example/{PAGE}", False),
        ("chat.example.org", False),
        ("http://127.0.0.1:18789", False),
        ("null", False),
        ("", False),
    ],
)
def test_a_web_page_connects_only_if_its_origin_is_listed(
    origin: str, secret: str | None, *, is_allowed: bool
) -> None:
    listed = authenticator(secret, frozenset({PAGE}))
    assert listed.is_origin_allowed({"origin": origin}) == is_allowed
    assert not authenticator(secret).is_origin_allowed({"origin": origin})


def test_an_adapter_has_no_origin_and_is_let_in() -> None:
    assert authenticator().is_origin_allowed({"host": "127.0.0.1:18789"})


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


# --- tokens --------------------------------------------------------------------------------------


async def test_a_token_opens_in_the_register_frame(start: Start) -> None:
    running = await start(gateway_secret=SECRET)
    await register(running, make_token(running, "discord"))


async def test_a_token_opens_in_the_handshake(start: Start) -> None:
    running = await start(gateway_secret=SECRET)
    token = make_token(running, "discord")
    peer = await running.connect([("Authorization", f"Bearer {token}")])
    await peer.register()


async def test_a_wrong_token_is_refused_in_the_register_frame(start: Start) -> None:
    running = await start(gateway_secret=SECRET)
    make_token(running, "discord")
    peer = await running.connect()
    await peer.send("register", node_id="n", platform="p", secret=WRONG)
    assert reason(await peer.receive())[0] == "auth_failed"
    assert await peer.close_code() == 1008


async def test_a_wrong_token_is_refused_in_the_handshake(start: Start) -> None:
    running = await start(gateway_secret=SECRET)
    assert (await refusal(running, f"Authorization: Bearer {WRONG}"))[0] == 401


async def test_a_token_that_is_wrong_is_refused_where_nothing_is_needed(running: Running) -> None:
    assert reason(await try_register(running, WRONG))[0] == "auth_failed"
    await register(running, None)


async def test_a_token_for_another_platform_is_refused(start: Start) -> None:
    running = await start(gateway_secret=SECRET)
    token = make_token(running, "discord", "discord")
    code, message = reason(await try_register(running, token, platform="slack"))
    assert (code, message) == ("auth_failed", "This token is for another platform.")
    await register(running, token, platform="discord")


async def test_where_there_is_no_secret_and_there_are_tokens_one_is_needed(
    running: Running,
) -> None:
    before = await register(running, None, "before")
    token = make_token(running, "discord")
    for secret in (None, "", "anything"):
        code, message = reason(await try_register(running, secret))
        assert code == "auth_failed"
        assert "`clarad tokens create`" in message
    await register(running, token)
    assert await before.is_silent()


async def test_the_secret_stays_good_beside_tokens(start: Start) -> None:
    running = await start(gateway_secret=SECRET)
    make_token(running, "discord")
    await register(running, SECRET)


# --- whose a node is -----------------------------------------------------------------------------


async def test_a_node_of_another_token_is_refused_and_its_adapter_undisturbed(
    start: Start,
) -> None:
    running = await start(gateway_secret=SECRET)
    mine, other = make_token(running, "mine"), make_token(running, "other")
    peer = await register(running, mine)
    for secret in (other, SECRET):
        assert reason(await try_register(running, secret)) == (
            "auth_failed",
            "This node is another adapter's: take another node_id, or have it freed.",
        )
    assert await peer.is_silent()


async def test_a_token_cannot_have_a_node_of_the_secret_s(start: Start) -> None:
    running = await start(gateway_secret=SECRET)
    peer = await register(running, SECRET)
    token = make_token(running, "discord")
    assert reason(await try_register(running, token))[0] == "auth_failed"
    assert await peer.is_silent()


async def test_the_same_token_has_its_node_again(start: Start) -> None:
    running = await start(gateway_secret=SECRET)
    token = make_token(running, "mine")
    first = await register(running, token)
    await register(running, token)
    assert await first.close_code() == 4000


async def test_a_node_that_unregisters_is_anybody_s(start: Start) -> None:
    running = await start(gateway_secret=SECRET)
    peer = await register(running, make_token(running, "mine"))
    await peer.send("unregister")
    assert await peer.close_code() == 1000
    await register(running, make_token(running, "other"))


async def test_a_node_that_is_freed_can_go_from_the_secret_to_a_token(start: Start) -> None:
    running = await start(gateway_secret=SECRET)
    await register(running, SECRET)
    with open_writable(running.settings.database_url) as connection:
        assert free_node(connection, "p", "n")
    await register(running, make_token(running, "discord"))


async def test_revoking_closes_the_token_s_connections_and_no_others(start: Start) -> None:
    running = await start(gateway_secret=SECRET)
    mine, other = make_token(running, "mine"), make_token(running, "other")
    ended = [await register(running, mine, "a"), await register(running, mine, "b")]
    staying = [await register(running, other, "c"), await register(running, SECRET, "d")]
    assert await revoke(running, "mine") == "2 connections of it closed"
    for peer in ended:
        assert await peer.close_code() == 1008
    for peer in staying:
        assert await peer.is_silent()
    assert reason(await try_register(running, mine, "a"))[0] == "auth_failed"
    await register(running, other, "a")


async def test_a_token_that_is_revoked_between_handshake_and_register_is_refused(
    start: Start,
) -> None:
    running = await start(gateway_secret=SECRET)
    token = make_token(running, "mine")
    peer = await running.connect([("Authorization", f"Bearer {token}")])
    assert await revoke(running, "mine") == "0 connections of it closed"
    await peer.send("register", node_id="n", platform="p")
    assert reason(await peer.receive())[0] == "auth_failed"


async def test_a_node_that_is_let_in_while_its_token_is_revoked_is_closed(
    start: Start,
) -> None:
    running = await start(gateway_secret=SECRET)
    token = make_token(running, "mine")
    await register(running, token, "known")
    gate = threading.Event()
    peer = await running.connect()
    running.daemon.writer.submit(lambda _: gate.wait(10))
    async with trio.open_nursery() as nursery:
        await peer.send("register", node_id="n", platform="p", secret=token)
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.start_soon(running.daemon.operations.close_token, "mine")
        await trio.testing.wait_all_tasks_blocked(0.01)
        gate.set()
    assert (await peer.receive())["type"] == "registered"
    assert await peer.close_code() == 1008


# --- guessing ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("in_handshake", [True, False], ids=["handshake", "frame"])
@pytest.mark.parametrize("kind", ["secret", "token"])
async def test_what_is_right_gets_in_from_an_address_that_is_locked_out(
    start: Start, kind: str, *, in_handshake: bool
) -> None:
    running = await start(gateway_secret=SECRET)
    right = SECRET if kind == "secret" else make_token(running, "mine")
    for n in range(MAX_FAILURES):
        assert (await refusal(running, f"Authorization: Bearer {WRONG}{n}"))[0] == 401
    assert (await refusal(running, "Authorization: Bearer wrong"))[0] == 429
    assert (await refusal(running, f"Authorization: Bearer {WRONG}"))[0] == 429
    assert reason(await try_register(running, "wrong"))[0] == "rate_limited"
    if in_handshake:
        peer = await running.connect([("Authorization", f"Bearer {right}")])
        await peer.register("n")
    else:
        await register(running, right)


async def test_guesses_from_an_address_that_is_locked_out_are_logged_once(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    running = await start(gateway_secret=SECRET)
    for n in range(MAX_FAILURES):
        await refusal(running, f"Authorization: Bearer guess-{n}")
    with caplog.at_level("INFO"):
        caplog.clear()
        await refusal(running, "Authorization: Bearer guess")
        await try_register(running, "guess")
    assert caplog.messages == []


class Counted:
    """Tokens in a store that is slow, and counts how often it is asked."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = set(tokens)
        self.asked = 0
        self.fails = False

    async def digests(self) -> frozenset[str]:
        self.asked += 1
        found = frozenset(map(digest, self.tokens))
        await trio.sleep(0.5)
        if self.fails:
            raise StoreError("the disk is full")
        return found


async def test_peers_that_make_tokens_up_cause_one_read_of_the_store_a_second(
    autojump_clock: MockClock,
) -> None:
    counted = Counted(f"{PREFIX}right")
    known = KnownTokens(cast(Tokens, counted))
    found: list[bool] = []

    async def ask(number: int) -> None:
        await trio.sleep(number / 100)
        found.append(await known.contains(f"{PREFIX}{number}"))

    async with trio.open_nursery() as nursery:
        for number in range(1000):  # ten seconds of them
            nursery.start_soon(ask, number)
    assert found == [False] * 1000
    assert counted.asked <= 12
    assert await known.contains(f"{PREFIX}right")


async def test_a_token_that_is_known_is_not_asked_for_again() -> None:
    counted = Counted(f"{PREFIX}right")
    known = KnownTokens(cast(Tokens, counted))
    for _ in range(10):
        assert await known.contains(f"{PREFIX}right")
    assert counted.asked == 1


async def test_a_token_that_is_made_while_the_store_is_asked_is_found(
    autojump_clock: MockClock,
) -> None:
    counted = Counted()
    known = KnownTokens(cast(Tokens, counted))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(known.contains, f"{PREFIX}wrong")
        await trio.testing.wait_all_tasks_blocked()
        counted.tokens.add(f"{PREFIX}new")
        assert await known.contains(f"{PREFIX}new")


async def test_a_store_that_fails_is_the_answer_to_every_task_that_waits(
    autojump_clock: MockClock,
) -> None:
    counted = Counted()
    counted.fails = True
    known = KnownTokens(cast(Tokens, counted))
    failed = 0

    async def ask() -> None:
        nonlocal failed
        with pytest.raises(StoreError, match="the disk is full"):
            await known.contains(WRONG)
        failed += 1

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(ask)
    assert failed == 100
    assert counted.asked == 1
    counted.fails = False
    assert not await known.contains(WRONG)


async def test_a_task_that_is_cancelled_during_a_read_leaves_the_others_their_answer(
    autojump_clock: MockClock,
) -> None:
    known = KnownTokens(cast(Tokens, Counted(f"{PREFIX}right")))
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(0.1):
            nursery.start_soon(known.contains, f"{PREFIX}right")
            await known.contains(f"{PREFIX}right")
        assert await known.contains(f"{PREFIX}right")


async def test_what_is_refused_for_its_node_or_platform_is_no_guess(start: Start) -> None:
    running = await start(gateway_secret=SECRET)
    token = make_token(running, "mine", "p")
    for _ in range(MAX_FAILURES + 1):
        assert reason(await try_register(running, token, platform="q"))[0] == "auth_failed"
    await register(running, token)


# --- a database that fails -----------------------------------------------------------------------


async def test_while_the_database_fails_a_node_is_told_to_try_again_and_stays(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await start(gateway_secret=SECRET)
    token = make_token(running, "mine")
    peer = await running.connect()

    async def fail(*_: object, **__: object) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(Tokens, "claim", fail)
        patched.setattr(Tokens, "digests", fail)
        await peer.send("register", node_id="n", platform="p", secret=token)
        frame = await peer.receive()
        assert (frame["code"], frame["recoverable"]) == ("processing_error", True)
        assert "disk" not in frame["message"]
        assert (await refusal(running, f"Authorization: Bearer {token}"))[0] == 503
    await peer.register(secret=token)
    assert await peer.is_silent()


async def test_an_adapter_without_a_secret_is_told_that_one_is_missing(start: Start) -> None:
    running = await start(gateway_secret=SECRET)
    for nothing in (None, ""):
        code, message = reason(await try_register(running, nothing))
        assert (code, message.partition(";")[0]) == ("auth_failed", "No secret was shown")
    assert reason(await try_register(running, "other"))[1].startswith("The secret is wrong")
