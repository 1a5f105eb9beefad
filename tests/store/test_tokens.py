"""What the store promises of tokens and of whose each node is, on both databases."""

from contextlib import suppress

import pytest
import trio
from sqlalchemy import Engine

from clarad.store import Claim, StoreError, Tokens, tokens
from clarad.store.tokens import Token, create_token, digest, free_node, read_tokens, revoke_token
from tests.store.conftest import Outside
from tests.store.desk import Desk


class Keys:
    """Tokens in a database, and those who show them."""

    def __init__(self, desk: Desk, engine: Engine) -> None:
        self.desk = desk
        self.tokens = Tokens(desk.writer)
        self._engine = engine

    def create(self, name: str, *platforms: str) -> str:
        with self._engine.begin() as connection:
            return create_token(connection, name, platforms)

    def revoke(self, name: str) -> bool:
        with self._engine.begin() as connection:
            return revoke_token(connection, name)

    def free(self, platform: str, node_id: str) -> bool:
        with self._engine.begin() as connection:
            return free_node(connection, platform, node_id)

    def listed(self) -> list[Token]:
        with self._engine.connect() as connection:
            return read_tokens(connection)

    async def claim(
        self, token: str | None, node_id: str = "node", platform: str = "discord"
    ) -> Claim:
        claim, _ = await self.tokens.claim(token, platform, node_id)
        return claim


@pytest.fixture
def keys(desk: Desk, engine: Engine) -> Keys:
    return Keys(desk, engine)


# --- tokens --------------------------------------------------------------------------------------


async def test_a_token_that_was_made_is_known_and_no_other_is(keys: Keys) -> None:
    token = keys.create("discord")
    assert await keys.tokens.digests() == {digest(token)}
    for other in ("", "clarad_", token[:-1], token + "x", token.swapcase(), "\ud800"):
        assert digest(other) != digest(token)


async def test_no_two_tokens_are_alike(keys: Keys) -> None:
    assert len({keys.create(f"token {n}") for n in range(20)}) == 20


async def test_the_token_itself_is_nowhere_in_the_store(keys: Keys, outside: Outside) -> None:
    token = keys.create("discord")
    await keys.claim(token)
    kept = [outside.rows(f"SELECT * FROM {table}") for table in outside.tables()]
    assert token not in str(kept)
    assert token.removeprefix("clarad_") not in str(kept)


async def test_a_name_is_had_by_one_token(keys: Keys) -> None:
    first = keys.create("discord")
    with pytest.raises(StoreError, match="there is a token 'discord'; revoke it first"):
        keys.create("discord")
    assert await keys.tokens.digests() == {digest(first)}


async def test_a_revoked_token_is_good_for_nothing(keys: Keys) -> None:
    token = keys.create("discord")
    assert keys.revoke("discord")
    assert await keys.tokens.digests() == set()
    assert await keys.claim(token) is Claim.UNKNOWN
    assert not keys.revoke("discord")


async def test_who_asks_is_told_what_the_token_is_called(keys: Keys) -> None:
    token = keys.create("discord bot")
    assert await keys.tokens.claim(token, "discord", "node") == (Claim.GRANTED, "discord bot")


async def test_a_token_is_good_for_its_platforms_only(keys: Keys) -> None:
    token = keys.create("chat", "discord", "slack")
    assert await keys.claim(token, platform="discord") is Claim.GRANTED
    assert await keys.claim(token, platform="slack") is Claim.GRANTED
    for platform in ("teams", "disc", "discord slack", ""):
        assert await keys.claim(token, platform=platform) is Claim.OTHER_PLATFORM


async def test_the_list_says_what_is_known_of_each(keys: Keys) -> None:
    token = keys.create("b", "discord")
    keys.create("a")
    await keys.claim(token, "one")
    await keys.claim(token, "two")
    unused, used = keys.listed()
    assert (unused.name, unused.platforms, unused.nodes, unused.used_at) == ("a", [], 0, None)
    assert (used.name, used.platforms, used.nodes) == ("b", ["discord"], 2)
    assert used.used_at is not None
    assert used.used_at >= used.created_at


async def test_without_a_token_one_is_needed_if_there_are_any(keys: Keys) -> None:
    assert await keys.tokens.claim(None, "p", "n", needed=True) == (Claim.GRANTED, None)
    keys.create("discord")
    assert await keys.tokens.claim(None, "p", "n", needed=True) == (Claim.NEEDED, None)
    assert await keys.tokens.claim(None, "p", "n", needed=False) == (Claim.GRANTED, None)


# --- whose a node is -----------------------------------------------------------------------------


async def test_a_node_is_whose_who_registers_it_first(keys: Keys) -> None:
    mine, other = keys.create("mine"), keys.create("other")
    assert await keys.claim(mine) is Claim.GRANTED
    for shown in (other, None):
        assert await keys.claim(shown) is Claim.TAKEN
    assert await keys.claim(mine) is Claim.GRANTED


async def test_the_nodes_of_those_who_have_the_secret_are_no_token_s(keys: Keys) -> None:
    token = keys.create("discord")
    assert await keys.claim(None) is Claim.GRANTED
    assert await keys.claim(token) is Claim.TAKEN
    assert await keys.claim(None) is Claim.GRANTED


async def test_a_node_is_of_one_platform(keys: Keys) -> None:
    mine, other = keys.create("mine"), keys.create("other")
    assert await keys.claim(mine, platform="discord") is Claim.GRANTED
    assert await keys.claim(other, platform="slack") is Claim.GRANTED


async def test_who_is_refused_leaves_no_trace(keys: Keys) -> None:
    mine, other = keys.create("mine"), keys.create("other", "slack")
    await keys.claim(mine)
    assert await keys.claim(other) is Claim.OTHER_PLATFORM
    assert await keys.claim(other, platform="slack", node_id="node") is Claim.GRANTED
    assert [token.nodes for token in keys.listed()] == [1, 1]


async def test_a_node_that_has_unregistered_is_anybody_s(keys: Keys) -> None:
    mine, other = keys.create("mine"), keys.create("other")
    await keys.claim(mine)
    keys.tokens.free("discord", "node")
    assert await keys.claim(other) is Claim.GRANTED


async def test_a_node_that_an_operator_frees_is_anybody_s(keys: Keys) -> None:
    token = keys.create("discord")
    await keys.claim(None)
    assert not keys.free("slack", "node")
    assert keys.free("discord", "node")
    assert await keys.claim(token) is Claim.GRANTED


async def test_the_nodes_of_a_revoked_token_are_anybody_s_and_no_others_are(keys: Keys) -> None:
    mine, other, third = keys.create("mine"), keys.create("other"), keys.create("third")
    await keys.claim(mine, "a")
    await keys.claim(other, "b")
    keys.revoke("mine")
    assert await keys.claim(third, "a") is Claim.GRANTED
    assert await keys.claim(third, "b") is Claim.TAKEN


async def test_of_too_many_nodes_the_one_that_registered_longest_ago_is_free(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "MAX_NODES", 2)
    mine, other = keys.create("mine"), keys.create("other")
    await keys.claim(other, "theirs")
    await keys.claim(None, "the secret's")
    for node_id in ("a", "b", "a", "c"):
        assert await keys.claim(mine, node_id) is Claim.GRANTED
    assert await keys.claim(other, "a") is Claim.TAKEN
    assert await keys.claim(other, "b") is Claim.GRANTED
    assert await keys.claim(mine, "theirs") is Claim.TAKEN
    assert await keys.claim(mine, "the secret's") is Claim.TAKEN


async def test_a_claim_beside_a_revocation_leaves_no_node_that_is_nobody_s(keys: Keys) -> None:
    token = keys.create("mine")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, keys.revoke, "mine")
        for n in range(20):
            with suppress(StoreError):  # the token went in the middle of it
                await keys.claim(token, f"node {n}")
    for n in range(20):
        assert await keys.claim(None, f"node {n}") is Claim.GRANTED
