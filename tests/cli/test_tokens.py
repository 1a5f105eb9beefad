"""`clarad tokens`: made, listed and revoked, beside a daemon and without one."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trio

from tests.daemon_process import Process
from tests.hostile import HOSTILE
from tests.installation import Console, Installation, Said, Terminal
from tests.peer import connect
from tests.postgres import BACKENDS, database

TOKEN = re.compile(r"clarad_[\w-]{43}\n")


@pytest.fixture
def alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Console:
    """Commands of an installation with a migrated database; no daemon runs."""
    console = Console(Installation(tmp_path), monkeypatch, capsys)
    assert console("migrate").status == 0
    return console


@pytest.fixture
def process(alone: Console) -> Iterator[Process]:
    """That installation's daemon."""
    with alone.installation.daemon(CLARA_LOG_LEVEL="DEBUG") as running:
        yield running


FIRST = (
    "clarad: this is the first token, and CLARA_GATEWAY_SECRET is not set here: from then on every "
    "adapter needs a token, and those that have none are refused when they register\n"
)


def refused(text: str) -> Said:
    """How a command ends that cannot do its work."""
    return Said(1, "", f"clarad: {text}\n")


def make(clarad: Console, *words: str) -> str:
    """Make a token and return it."""
    said = clarad("tokens", "create", *words, "--yes")
    assert (said.status, said.err) in [(0, ""), (0, FIRST)]
    assert TOKEN.fullmatch(said.out)
    return said.out.strip()


# --- create and list -----------------------------------------------------------------------------


def test_create_prints_the_token_and_nothing_else(alone: Console) -> None:
    assert make(alone, "discord") != make(alone, "slack")


def test_the_token_is_nowhere_but_where_it_was_printed(alone: Console, process: Process) -> None:
    token = make(alone, "discord")

    async def use() -> None:
        async with trio.open_nursery() as nursery:
            peer = await connect(nursery, process.url, [("Authorization", f"Bearer {token}")])
            await peer.register()
            await peer.drop()
            peer = await connect(nursery, process.url)
            await peer.register(secret=token)
            await peer.drop()
            nursery.cancel_scope.cancel()

    trio.run(use)
    shown = [alone("tokens", "list").out, alone("tokens", "list", "--json").out]
    files = [path for path in alone.installation.directory.rglob("*") if path.is_file()]
    assert files
    process.wait_for_log("adapter:disconnected")
    secret = token.removeprefix("clarad_")
    assert not [path for path in files if secret.encode() in path.read_bytes()]
    assert secret not in process.log + "".join(shown)


def test_list_shows_each_token(alone: Console) -> None:
    make(alone, "slack")
    make(alone, "chat", "--platform", "discord", "--platform", "teams")
    heading, *lines = alone("tokens", "list").out.splitlines()
    assert heading.split() == ["name", "platforms", "nodes", "created", "used"]
    assert [line.split()[0] for line in lines] == ["chat", "slack"]
    assert "discord, teams" in lines[0]
    assert "all" in lines[1]
    assert lines[0].endswith("-")


def test_list_as_json_is_an_object_a_line(alone: Console) -> None:
    make(alone, "chat", "--platform", "discord")
    [row] = alone("tokens", "list", "--json").rows
    assert set(row) == {"name", "platforms", "nodes", "created_at", "used_at"}
    assert (row["name"], row["platforms"], row["nodes"]) == ("chat", ["discord"], 0)


def test_list_of_no_tokens_says_so(alone: Console) -> None:
    assert alone("tokens", "list") == (0, "none\n", "")


def test_a_name_is_one_token_s(alone: Console) -> None:
    make(alone, "discord")
    text = "there is a token 'discord'; revoke it first, or take another name"
    assert alone("tokens", "create", "discord") == refused(text)


@pytest.mark.parametrize("name", ["", "x" * 256, *HOSTILE, "two\nlines"])
def test_a_name_has_to_be_one_that_can_be_shown(alone: Console, name: str) -> None:
    said = alone("tokens", "create", name)
    assert (said.status, said.out) == (2, "")
    assert "Traceback" not in said.err
    assert alone("tokens", "list").out == "none\n"


@pytest.mark.parametrize("platform", ["", " ", "two words", "tab\t", "x" * 256, "a\x1b[2J"])
def test_a_platform_has_to_be_one_word(alone: Console, platform: str) -> None:
    said = alone("tokens", "create", "discord", "--platform", platform)
    assert (said.status, said.out) == (2, "")
    assert alone("tokens", "list").out == "none\n"


# --- the first one -------------------------------------------------------------------------------


def test_the_first_token_is_not_made_unasked_and_says_whom_it_shuts_out(alone: Console) -> None:
    unasked = "clarad: nothing has changed; if this is what you want, say --yes\n"
    assert alone("tokens", "create", "discord") == (1, "", FIRST + unasked)
    assert alone("tokens", "list").out == "none\n"


@pytest.mark.parametrize("answer", ["y\n", "n\n", ""], ids=repr)
def test_at_a_terminal_it_asks_beside_what_it_prints(
    alone: Console, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    said = alone("tokens", "create", "discord")
    assert said.err.startswith(f"{FIRST}Go on? [y/N] ")
    if answer == "y\n":
        assert said.status == 0
        assert TOKEN.fullmatch(said.out)
    else:
        assert (said.status, said.out) == (1, "")
        assert alone("tokens", "list").out == "none\n"


def test_whoever_has_it_made_with_yes_is_told_all_the_same(alone: Console) -> None:
    said = alone("tokens", "create", "discord", "--yes")
    assert (said.status, said.err) == (0, FIRST)
    assert TOKEN.fullmatch(said.out)


def test_a_second_one_shuts_nobody_out(alone: Console) -> None:
    make(alone, "discord")
    said = alone("tokens", "create", "slack")
    assert (said.status, said.err) == (0, "")


def test_nor_does_the_first_one_where_there_is_a_secret(alone: Console) -> None:
    said = alone("tokens", "create", "discord", CLARA_GATEWAY_SECRET="a long secret word")
    assert (said.status, said.err) == (0, "")


# --- revoke --------------------------------------------------------------------------------------


def test_without_a_daemon_revoke_says_that_it_is_done(alone: Console) -> None:
    make(alone, "discord")
    make(alone, "slack")
    assert alone("tokens", "revoke", "discord") == (0, "revoked\n", "")
    assert [row["name"] for row in alone("tokens", "list", "--json").rows] == ["slack"]


def test_who_revokes_the_last_token_is_told_what_is_open_now(alone: Console) -> None:
    make(alone, "discord")
    said = alone("tokens", "revoke", "discord")
    assert (said.status, said.out) == (0, "revoked\n")
    assert said.err.startswith("clarad: warning: that was the last token")
    make(alone, "discord")
    assert alone("tokens", "revoke", "discord", CLARA_GATEWAY_SECRET="a secret").err == ""


def test_revoke_closes_the_connections_at_once(alone: Console, process: Process) -> None:
    token, other = make(alone, "discord"), make(alone, "slack")

    async def use() -> int:
        async with trio.open_nursery() as nursery:
            peer, undisturbed = [await connect(nursery, process.url) for _ in range(2)]
            await peer.register("a", secret=token)
            await undisturbed.register("b", secret=other)
            said = await trio.to_thread.run_sync(
                alone.installation.clarad, "tokens", "revoke", "discord"
            )
            assert said == (0, "revoked; 1 connection of it closed\n", "")
            code = await peer.close_code()
            assert await undisturbed.is_silent()
            await peer.drop()
            await undisturbed.drop()
            nursery.cancel_scope.cancel()
        return code

    assert trio.run(use) == 1008
    assert alone("tokens", "revoke", "slack").out == "revoked; 0 connections of it closed\n"


def test_a_token_that_is_not_there_is_one_line_and_exit_1(alone: Console) -> None:
    text = r"there is no token 'no\x1b[2J'; `clarad tokens list` has them"
    assert alone("tokens", "revoke", "no\x1b[2J") == refused(text)


# --- free ----------------------------------------------------------------------------------------


def test_free_is_for_a_node_that_is_somebody_s(alone: Console, process: Process) -> None:
    token = make(alone, "discord")

    async def use(node: str) -> None:
        async with trio.open_nursery() as nursery:
            peer = await connect(nursery, process.url)
            await peer.register(node, secret=token)
            await peer.drop()
            nursery.cancel_scope.cancel()

    trio.run(use, "bot")
    assert alone("tokens", "list", "--json").rows[0]["nodes"] == 1
    said = alone("tokens", "free", "test", "bot")
    assert said == (0, "freed; who registers it next has it\n", "")
    assert alone("tokens", "list", "--json").rows[0]["nodes"] == 0
    assert alone("tokens", "free", "test", "bot") == refused("'bot' of 'test' is nobody's")


# --- what can be in the way ----------------------------------------------------------------------


def test_without_a_database_there_are_no_tokens_and_none_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clarad = Console(Installation(tmp_path), monkeypatch, capsys)
    assert clarad("tokens", "list") == (0, "none\n", "")
    for words in (("create", "a"), ("revoke", "a"), ("free", "p", "n")):
        said = clarad("tokens", *words)
        assert (said.status, said.out) == (1, "")
        assert len(said.err.splitlines()) == 1
    assert not (tmp_path / "state" / "clarad.db").exists()


def test_a_database_that_is_locked_is_one_line_and_exit_1(
    alone: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clarad.store.engine.BUSY_TIMEOUT", 0.01)
    with closing(sqlite3.connect(alone.installation.state_dir / "clarad.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        assert alone("tokens", "create", "discord") == refused("database is locked")


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_part_works_on_each_database(
    alone: Console, backend: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with database(backend, tmp_path, request.config) as url:
        assert alone("migrate", DATABASE_URL=url).status == 0
        for words in (("create", "a", "--yes"), ("list",), ("revoke", "a")):
            assert alone("tokens", *words, DATABASE_URL=url).status == 0
        assert alone("tokens", "list", DATABASE_URL=url).out == "none\n"


def test_help_names_every_part(alone: Console) -> None:
    said = alone("tokens", "--help")
    assert said.status == 0
    for part in ("create", "list", "revoke", "free"):
        assert part in said.out


def test_before_the_first_start_it_says_what_is_needed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(Installation(tmp_path), monkeypatch, capsys)
    (tmp_path / "state").mkdir()
    said = console("tokens", "create", "discord", "--yes")
    assert (said.status, said.out) == (1, "")
    assert said.err.endswith("run `clarad migrate` first\n")
    assert "CLARA_AUTO_MIGRATE" not in said.err
