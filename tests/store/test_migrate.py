"""Migrations, up and down, on SQLite and on PostgreSQL, beside an older Clara's tables too."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

from clarad.store import StoreError, migrate
from clarad.store.models import Base
from tests.postgres import SHARED
from tests.store.conftest import Outside

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
OURS = {*Base.metadata.tables, migrate.VERSION_TABLE}


def scripts() -> list[str]:
    """Return the revisions of the scripts, the oldest first."""
    found = ScriptDirectory(ROOT / "migrations").walk_revisions()
    return [script.revision for script in found][::-1]


def states(engine: Engine) -> list[str]:
    return [revision.state for revision in migrate.history(engine)]


# --- up ------------------------------------------------------------------------------------------


def test_head_is_the_newest_of_the_scripts() -> None:
    assert scripts()[-1] == migrate.HEAD


def test_the_scripts_have_one_head(engine: Engine) -> None:
    assert migrate.heads() == [migrate.HEAD]


def test_upgrade_makes_all_tables_in_an_empty_database(engine: Engine, outside: Outside) -> None:
    migrate.upgrade(engine)
    assert outside.tables() == OURS


def test_upgrade_says_what_it_has_applied(engine: Engine) -> None:
    applied = migrate.upgrade(engine)
    assert [revision.id for revision in applied] == scripts()
    assert {revision.state for revision in applied} == {"applied"}


def test_upgrade_has_nothing_to_do_the_second_time(engine: Engine) -> None:
    migrate.upgrade(engine)
    assert migrate.upgrade(engine) == []


def test_the_revision_is_kept_in_a_table_of_our_own(engine: Engine, outside: Outside) -> None:
    migrate.upgrade(engine)
    assert outside.rows("SELECT version_num FROM clarad_alembic_version") == [(migrate.HEAD,)]


def test_models_and_migrations_agree(engine: Engine) -> None:
    migrate.upgrade(engine)
    with engine.connect() as connection:
        options: dict[str, Any] = {
            "version_table": migrate.VERSION_TABLE,
            "compare_type": True,
            "compare_server_default": True,
        }
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []


def test_models_and_migrations_agree_in_what_alembic_does_not_compare(
    engine: Engine, outside: Outside
) -> None:
    """Among that: the conditions of indexes, primary keys and the names of constraints."""
    migrate.upgrade(engine)
    migrated = outside.describe(*Base.metadata.tables)
    migrate.rollback(engine, len(scripts()))
    with engine.begin() as connection:
        Base.metadata.create_all(connection)
    assert outside.describe(*Base.metadata.tables) == migrated


# --- status and history --------------------------------------------------------------------------


def test_everything_is_pending_in_an_empty_database(engine: Engine) -> None:
    assert [revision.id for revision in migrate.history(engine)] == scripts()
    assert set(states(engine)) == {"pending"}


def test_nothing_is_pending_after_upgrade(engine: Engine) -> None:
    migrate.upgrade(engine)
    assert set(states(engine)) == {"applied"}


def test_every_migration_says_what_it_does(engine: Engine) -> None:
    for revision in migrate.history(engine):
        assert revision.title
        assert len(revision.title.splitlines()) == 1


@pytest.mark.parametrize("look", [migrate.history, migrate.is_behind])
def test_looking_makes_no_tables(
    engine: Engine, outside: Outside, look: Callable[[Engine], object]
) -> None:
    look(engine)
    assert outside.tables() == set()


def test_an_empty_database_is_behind(engine: Engine) -> None:
    assert migrate.is_behind(engine)


def test_an_upgraded_database_is_not_behind(engine: Engine) -> None:
    migrate.upgrade(engine)
    assert not migrate.is_behind(engine)


# --- down ----------------------------------------------------------------------------------------


def test_rollback_takes_the_last_migration_back(engine: Engine) -> None:
    migrate.upgrade(engine)
    taken_back = migrate.rollback(engine)
    assert [revision.id for revision in taken_back] == scripts()[-1:]
    assert states(engine) == ["applied"] * (len(scripts()) - 1) + ["pending"]


def test_rolling_everything_back_leaves_no_table_but_the_empty_one_with_the_revision(
    engine: Engine, outside: Outside
) -> None:
    migrate.upgrade(engine)
    taken_back = migrate.rollback(engine, len(scripts()))
    assert [revision.id for revision in taken_back] == scripts()[::-1]
    assert outside.tables() == {migrate.VERSION_TABLE}
    assert outside.rows("SELECT * FROM clarad_alembic_version") == []


def test_up_down_and_up_again_ends_like_up(engine: Engine, outside: Outside) -> None:
    migrate.upgrade(engine)
    before = outside.describe(*Base.metadata.tables)
    migrate.rollback(engine, len(scripts()))
    migrate.upgrade(engine)
    assert outside.describe(*Base.metadata.tables) == before
    assert set(states(engine)) == {"applied"}


def test_more_migrations_than_there_are_cannot_be_rolled_back(
    engine: Engine, outside: Outside
) -> None:
    migrate.upgrade(engine)
    number = len(scripts())
    with pytest.raises(
        StoreError,
        match=f"^there are only {number} migrations to roll back, not {number + 1}$",
    ):
        migrate.rollback(engine, number + 1)
    assert outside.tables() == OURS


def test_an_empty_database_cannot_be_rolled_back(engine: Engine) -> None:
    with pytest.raises(StoreError, match="only 0 migrations"):
        migrate.rollback(engine)


def add_message(outside: Outside, number: int, frame: str) -> None:
    """Have a message there, as it was down before it had attachments of its own."""
    text = frame.replace("'", "''")
    outside.do(
        "INSERT INTO clarad_messages (id, platform, channel_id, request_id, node_id, user_id,"
        f" session_id, frame, received_at) VALUES ({number}, 'p', 'c', '{number}', 'n', 'u',"
        f" 's', '{text}', '2026-11-01 12:00:00')"
    )


def test_attachments_of_messages_that_are_there_move_and_come_back(
    engine: Engine, outside: Outside
) -> None:
    frames: list[dict[str, Any]] = [
        {"id": "none", "attachments": []},
        {"id": "some", "attachments": [{"filename": "a", "content": "'über'"}], "content": "x"},
        {"id": "words", "content": '"attachments":[{'},
    ]
    migrate.upgrade(engine, "0006")
    for number, frame in enumerate(frames, start=1):
        add_message(outside, number, json.dumps(frame, separators=(",", ":")))
    migrate.upgrade(engine, "0007")
    (kept,) = outside.rows("SELECT message_id, attachments FROM clarad_attachments")
    assert (kept[0], json.loads(kept[1])) == (2, frames[1]["attachments"])
    in_order = "SELECT frame FROM clarad_messages ORDER BY id"
    without = {"id": "some", "content": "x"}
    apart = [json.loads(frame) for (frame,) in outside.rows(in_order)]
    assert apart == [frames[0], without, frames[2]]
    migrate.rollback(engine, len(scripts()) - scripts().index("0006") - 1)
    assert [json.loads(frame) for (frame,) in outside.rows(in_order)] == frames


def test_a_message_that_is_nested_too_deeply_stays_as_it_is(
    engine: Engine, outside: Outside
) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    frames = (
        f'{{"attachments":[{{"content":"a"}}],"metadata":{deep}}}',
        '{"attachments":[{"content":"b"}],"content":"x"}',
    )
    migrate.upgrade(engine, "0006")
    for number, frame in enumerate(frames, start=1):
        add_message(outside, number, frame)
    migrate.upgrade(engine, "0007")
    assert outside.rows("SELECT message_id FROM clarad_attachments") == [(2,)]
    first = "SELECT frame FROM clarad_messages WHERE id = 1"
    assert outside.rows(first) == [(frames[0],)]


def test_what_is_nested_too_deeply_gets_its_attachments_back(
    engine: Engine, outside: Outside
) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    migrate.upgrade(engine, "0007")
    add_message(outside, 1, f'{{"metadata":{deep}}}')
    outside.do("INSERT INTO clarad_attachments VALUES (1, '2026-11-01 12:00:00', '[\"a\"]')")
    migrate.rollback(engine, 1)
    found = outside.rows("SELECT frame FROM clarad_messages")
    assert found == [(f'{{"metadata":{deep}, "attachments": ["a"]}}',)]


# --- at the start of the daemon ------------------------------------------------------------------


def test_the_start_migrates_an_empty_database(engine: Engine, outside: Outside) -> None:
    assert migrate.require_head(engine, migrate=True) == "empty"
    assert outside.tables() == OURS


def test_the_start_changes_nothing_in_a_database_that_is_up_to_date(engine: Engine) -> None:
    migrate.upgrade(engine)
    assert migrate.require_head(engine, migrate=True) is None


@pytest.mark.parametrize("url", SHARED, indirect=True)
def test_of_daemons_that_start_at_once_one_migrates_and_the_others_wait(
    url: str, connect: Callable[[str], Engine]
) -> None:
    engines = [connect(url) for _ in range(4)]
    with ThreadPoolExecutor() as threads:
        starting = [threads.submit(migrate.require_head, one, migrate=True) for one in engines]
    assert sorted(str(start.result()) for start in starting) == ["None", "None", "None", "empty"]


def test_a_database_that_is_up_to_date_needs_no_permission_to_migrate(engine: Engine) -> None:
    migrate.upgrade(engine)
    assert migrate.require_head(engine, migrate=False) is None


def test_a_database_that_is_behind_is_refused_when_it_may_not_be_migrated(
    engine: Engine, outside: Outside
) -> None:
    with pytest.raises(StoreError) as caught:
        migrate.require_head(engine, migrate=False)
    assert str(caught.value) == (
        f"the database is at revision none, this version needs {migrate.HEAD}: "
        "run `clarad migrate` first"
    )
    assert outside.tables() == set()


NEWER = "9999"


@pytest.fixture
def newer(engine: Engine, outside: Outside) -> Engine:
    """A database that a newer clarad has migrated."""
    migrate.upgrade(engine)
    outside.do(f"UPDATE clarad_alembic_version SET version_num = '{NEWER}'")
    return engine


@pytest.mark.parametrize(
    "do",
    [
        migrate.upgrade,
        migrate.rollback,
        migrate.history,
        migrate.is_behind,
        lambda engine: migrate.require_head(engine, migrate=True),
        lambda engine: migrate.require_head(engine, migrate=False),
    ],
    ids=["upgrade", "rollback", "history", "check", "start", "start without migrating"],
)
def test_a_database_of_a_newer_clarad_is_refused_and_stays_as_it_is(
    newer: Engine, outside: Outside, do: Callable[[Engine], object]
) -> None:
    with pytest.raises(StoreError) as caught:
        do(newer)
    assert str(caught.value).startswith("the database ")
    assert str(caught.value).endswith(
        f"is at revision {NEWER}, which this version does not know: it was made by a "
        "newer clarad; install that one, or roll the database back with it first"
    )
    assert outside.rows("SELECT version_num FROM clarad_alembic_version") == [(NEWER,)]
    assert outside.tables() == OURS


@pytest.mark.parametrize(
    "do",
    [
        migrate.upgrade,
        migrate.rollback,
        migrate.history,
        migrate.is_behind,
        lambda engine: migrate.require_head(engine, migrate=True),
    ],
    ids=["upgrade", "rollback", "history", "check", "start"],
)
@pytest.mark.parametrize(
    "url",
    ["sqlite:///{}", "postgresql+psycopg://me:a-password@/name?host={}"],
    ids=["a directory for a file", "no server"],
)
def test_a_database_that_cannot_be_reached_is_said_in_one_line(
    url: str, tmp_path: Path, connect: Callable[[str], Engine], do: Callable[[Engine], object]
) -> None:
    with pytest.raises(StoreError) as caught:
        do(connect(url.format(tmp_path)))
    assert len(str(caught.value).splitlines()) == 1
    assert "a-password" not in str(caught.value)


# --- migrations that fail ------------------------------------------------------------------------

MIGRATION = '''"""{title}."""

import sqlalchemy as sa
from alembic import op

revision = "{id}"
down_revision = "{after}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table("clarad_{id}", sa.Column("n", sa.Integer()))
    op.execute("INSERT INTO clarad_{id} VALUES (1)")
    {then}


def downgrade() -> None:
    op.drop_table("clarad_{id}")
    {then_down}
'''
FAIL = 'op.execute("INSERT INTO nowhere VALUES (1)")'


class Scripts:
    """A copy of the migrations that a test can add to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        shutil.copytree(ROOT / "migrations", directory)
        self._newest = migrate.HEAD

    def add(self, revision: str, *, then: str = "pass", then_down: str = "pass") -> None:
        """Add a migration that makes a table with one row, and then does something else."""
        text = MIGRATION.format(
            id=revision,
            after=self._newest,
            title=f"Test {revision}",
            then=then,
            then_down=then_down,
        )
        (self.directory / "versions" / f"{revision}_test.py").write_text(text)
        self._newest = revision


@pytest.fixture
def more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scripts:
    """Migrations that a newer clarad could have; those of this one come first."""
    added = Scripts(tmp_path / "migrations")
    monkeypatch.setattr(migrate, "_directory", lambda: added.directory)
    return added


def revision_of(outside: Outside) -> list[tuple[Any, ...]]:
    return outside.rows("SELECT version_num FROM clarad_alembic_version")


def test_a_migration_that_fails_half_way_leaves_nothing_of_itself(
    engine: Engine, outside: Outside, more: Scripts
) -> None:
    migrate.upgrade(engine)
    more.add("bad", then=FAIL)
    with pytest.raises(StoreError, match="nowhere") as caught:
        migrate.upgrade(engine)
    assert len(str(caught.value).splitlines()) == 1
    assert outside.tables() == OURS
    assert revision_of(outside) == [(migrate.HEAD,)]


def test_a_migration_that_raises_half_way_leaves_nothing_of_itself(
    engine: Engine, outside: Outside, more: Scripts
) -> None:
    more.add("bad", then='raise ValueError("no")')
    with pytest.raises(ValueError, match="no"):
        migrate.upgrade(engine)
    assert outside.tables() == OURS
    assert revision_of(outside) == [(migrate.HEAD,)]


def test_the_migrations_before_one_that_fails_stay_applied(
    engine: Engine, outside: Outside, more: Scripts
) -> None:
    more.add("good")
    more.add("bad", then=FAIL)
    more.add("after")
    with pytest.raises(StoreError):
        migrate.upgrade(engine)
    assert outside.tables() == OURS | {"clarad_good"}
    assert outside.rows("SELECT n FROM clarad_good") == [(1,)]
    assert revision_of(outside) == [("good",)]
    assert states(engine) == ["applied"] * (len(scripts()) + 1) + ["pending"] * 2


def test_a_migration_that_has_failed_can_be_applied_once_it_is_mended(
    engine: Engine, outside: Outside, more: Scripts
) -> None:
    more.add("bad", then=FAIL)
    with pytest.raises(StoreError):
        migrate.upgrade(engine)
    bad = more.directory / "versions" / "bad_test.py"
    bad.write_text(bad.read_text().replace(FAIL, "pass  # mended"))
    assert [revision.id for revision in migrate.upgrade(engine)] == ["bad"]
    assert outside.rows("SELECT n FROM clarad_bad") == [(1,)]


def test_a_rollback_that_fails_half_way_takes_nothing_back(
    engine: Engine, outside: Outside, more: Scripts
) -> None:
    more.add("bad", then_down=FAIL)
    migrate.upgrade(engine)
    with pytest.raises(StoreError, match="nowhere"):
        migrate.rollback(engine)
    assert outside.rows("SELECT n FROM clarad_bad") == [(1,)]
    assert revision_of(outside) == [("bad",)]


def test_a_database_that_is_one_migration_behind_says_where_it_is(
    engine: Engine, outside: Outside, more: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate.upgrade(engine)
    before = migrate.HEAD
    more.add("next")
    monkeypatch.setattr(migrate, "HEAD", "next")
    assert migrate.is_behind(engine)
    with pytest.raises(StoreError, match=f"is at revision {before}, this version needs next"):
        migrate.require_head(engine, migrate=False)
    assert migrate.require_head(engine, migrate=True) == before
    assert "clarad_next" in outside.tables()


def test_what_had_ended_before_there_was_a_resume_is_not_sent_again(
    engine: Engine, outside: Outside
) -> None:
    migrate.upgrade(engine)
    migrate.rollback(engine, sum(one.id >= "0003" for one in migrate.history(engine)))
    outside.do(
        "INSERT INTO clarad_messages (platform, channel_id, request_id, node_id, user_id,"
        " session_id, frame, received_at, ended_at)"
        " VALUES ('p', 'c', 'ended', 'n', 'u', 's', '{}', '2026-01-01', '2026-01-02'),"
        " ('p', 'c', 'waits', 'n', 'u', 's', '{}', '2026-01-01', NULL)"
    )
    migrate.upgrade(engine)
    waiting = "SELECT request_id FROM clarad_messages WHERE delivered_at IS NULL"
    assert outside.rows(waiting) == [("waits",)]


def test_several_migrations_are_rolled_back_in_one_go(
    engine: Engine, outside: Outside, more: Scripts
) -> None:
    for revision in ("a", "b", "c"):
        more.add(revision)
    migrate.upgrade(engine)
    taken_back = migrate.rollback(engine, 2)
    assert [revision.id for revision in taken_back] == ["c", "b"]
    assert outside.tables() == OURS | {"clarad_a"}


# --- making migrations ---------------------------------------------------------------------------


@pytest.fixture
def checkout(engine: Engine, more: Scripts) -> Scripts:
    """Migrations to which a maintainer adds one, and a database that is up to date."""
    (more.directory.parent / "pyproject.toml").touch()
    migrate.upgrade(engine)
    return more


def test_a_new_migration_follows_the_newest(engine: Engine, checkout: Scripts) -> None:
    made = migrate.create(engine, "More of it")
    assert made.parent == checkout.directory / "versions"
    assert made.name == f"{len(scripts()) + 1:04}_more_of_it.py"
    assert migrate.history(engine)[-1].title == "More of it"


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "title", ['It says "no"', "A back\\slash", 'Three """ quotes', "../../up", "${7 * 6}", "Ü"]
)
def test_a_migration_can_have_any_title(engine: Engine, checkout: Scripts, title: str) -> None:
    made = migrate.create(engine, title)
    assert made.parent == checkout.directory / "versions"
    assert migrate.history(engine)[-1].title == title
    assert migrate.upgrade(engine)


# --- an older Clara's database -------------------------------------------------------------------

LEGACY = {
    "sessions": (
        "CREATE TABLE sessions (id VARCHAR(36) PRIMARY KEY, user_id VARCHAR(100) NOT NULL,"
        " context TEXT, archived BOOLEAN, started_at TIMESTAMP)",
        "INSERT INTO sessions VALUES ('s1', 'u1', '{\"a\": 1}', '1', '2024-01-02 03:04:05')",
        "INSERT INTO sessions VALUES ('s2', 'u2', NULL, '0', NULL)",
    ),
    "messages": (
        "CREATE TABLE messages (id INTEGER PRIMARY KEY, session_id VARCHAR(36) NOT NULL"
        " REFERENCES sessions (id), role VARCHAR(20), content TEXT)",
        "CREATE INDEX ix_messages_session_id ON messages (session_id)",
        "INSERT INTO messages VALUES (1, 's1', 'user', 'Hello'), (2, 's1', 'assistant', 'Hi')",
        "INSERT INTO messages VALUES (7, 's2', 'user', 'A line''s\nend')",
    ),
    "alembic_version": (
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL"
        " CONSTRAINT alembic_version_pkc PRIMARY KEY)",
        "INSERT INTO alembic_version VALUES ('d41d8cd98f00')",
    ),
    "proactive_messages": (
        "CREATE TABLE proactive_messages (id VARCHAR(36) PRIMARY KEY, user_id VARCHAR(100),"
        " message TEXT, sent_at TIMESTAMP)",
        "INSERT INTO proactive_messages VALUES ('p1', 'u1', 'Good morning', '2024-05-06 07:08:09')",
    ),
    "proactive_assessments": (
        "CREATE TABLE proactive_assessments (id VARCHAR(36) PRIMARY KEY, score REAL, why TEXT)",
        "INSERT INTO proactive_assessments VALUES ('a1', 0.5, 'quiet'), ('a2', NULL, NULL)",
    ),
    "proactive_notes": (
        "CREATE TABLE proactive_notes (id VARCHAR(36) PRIMARY KEY, note TEXT NOT NULL)",
        "CREATE UNIQUE INDEX ix_proactive_notes_note ON proactive_notes (note)",
        "INSERT INTO proactive_notes VALUES ('n1', 'likes tea'), ('n2', '')",
    ),
}


@pytest.fixture
def legacy(outside: Outside) -> Outside:
    """The database of an older Clara, with rows in every table."""
    for statements in LEGACY.values():
        outside.do(*statements)
    return outside


def everything(outside: Outside) -> dict[str, object]:
    """Return the older Clara's tables, with all their rows."""
    rows = {table: outside.rows(f"SELECT * FROM {table} ORDER BY 1") for table in LEGACY}
    return {"rows": rows, "tables": outside.describe(*LEGACY)}


def test_upgrade_leaves_every_row_of_an_older_clara_as_it_is(
    legacy: Outside, engine: Engine
) -> None:
    before = everything(legacy)
    migrate.upgrade(engine)
    assert everything(legacy) == before
    assert legacy.tables() == LEGACY.keys() | OURS


def test_rollback_leaves_every_row_of_an_older_clara_as_it_is(
    legacy: Outside, engine: Engine
) -> None:
    before = everything(legacy)
    migrate.upgrade(engine)
    migrate.rollback(engine, len(scripts()))
    assert everything(legacy) == before
    assert legacy.tables() == LEGACY.keys() | {migrate.VERSION_TABLE}


def test_an_older_clara_s_revision_is_not_taken_for_ours(legacy: Outside, engine: Engine) -> None:
    assert migrate.require_head(engine, migrate=True) == "empty"
    assert legacy.rows("SELECT version_num FROM alembic_version") == [("d41d8cd98f00",)]


def test_alembic_finds_nothing_to_change_in_an_older_clara_s_tables(
    legacy: Outside, engine: Engine, checkout: Scripts
) -> None:
    made = migrate.create(engine, "whatever there is").read_text()
    assert made.count("# ### end Alembic commands ###") == 2
    assert "op." not in made


# --- alembic itself ------------------------------------------------------------------------------


def alembic(url: str, *arguments: str, directory: Path = ROOT) -> str:
    """Run `alembic` as a person would, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=directory,
        env={**os.environ, "DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


on_sqlite = pytest.mark.parametrize("url", ["sqlite"], indirect=True)


def test_alembic_upgrades_the_database_of_the_settings(url: str, engine: Engine) -> None:
    alembic(url, "upgrade", "head")
    assert not migrate.is_behind(engine)
    assert alembic(url, "current") == f"{migrate.HEAD} (head)"


@on_sqlite
def test_alembic_knows_of_no_revision_in_an_empty_database(url: str) -> None:
    assert alembic(url, "current") == ""


@on_sqlite
def test_alembic_takes_back_what_clarad_has_applied(
    url: str, engine: Engine, outside: Outside
) -> None:
    migrate.upgrade(engine)
    alembic(url, "downgrade", "base")
    assert outside.tables() == {migrate.VERSION_TABLE}


def test_alembic_checks_that_models_and_migrations_agree_beside_an_older_clara(
    url: str, engine: Engine, legacy: Outside
) -> None:
    migrate.upgrade(engine)
    assert alembic(url, "check") == "No new upgrade operations detected."


@on_sqlite
def test_alembic_works_from_any_directory(url: str, engine: Engine, tmp_path: Path) -> None:
    alembic(url, "-c", f"{ROOT / 'alembic.ini'}", "upgrade", "head", directory=tmp_path)
    assert not migrate.is_behind(engine)


def test_alembic_ini_gives_alembic_no_cause_for_a_warning() -> None:
    """Without `path_separator` a path with a space in it is taken for two."""
    command.heads(Config(ROOT / "alembic.ini", stdout=io.StringIO()))


@pytest.mark.parametrize("url", SHARED, indirect=True)
def test_alembic_understands_the_urls_that_hosting_services_hand_out(
    url: str, engine: Engine
) -> None:
    handed_out = url.replace("postgresql+psycopg://", "postgres://")
    alembic(handed_out, "upgrade", "head")
    assert not migrate.is_behind(engine)
