"""`clarad migrate`, as a person at a terminal has it."""

import gc
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from clarad.cli import main
from clarad.store import open_engine
from clarad.store.migrate import HEAD, history
from clarad.store.models import Base
from clarad.systemd import catalogue
from tests import daemon_process
from tests.daemon_process import daemon, environment
from tests.installation import Terminal
from tests.postgres import BACKENDS, SHARED, database

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
OURS = {*Base.metadata.tables, "clarad_alembic_version"}

Said = tuple[int, str, str]
Clarad = Callable[..., Said]


@pytest.fixture(params=BACKENDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of the test's own."""
    with database(request.param, tmp_path, request.config) as url:
        yield url


@pytest.fixture
def clarad(
    clean_settings: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Clarad:
    """Run `clarad migrate …` in this process; returns its exit status and what it has printed."""

    def run(*words: str, **environment: str) -> Said:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        try:
            status = main(["migrate", *words])
        except SystemExit as left:
            status = left.code if isinstance(left.code, int) else 1
        if "postgres" in os.environ.get("DATABASE_URL", ""):
            # Psycopg warns of a connection that was left open when it is collected: now, not in
            # somebody else's test.
            gc.collect()
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.fixture
def revisions() -> list[tuple[str, str]]:
    """Number and title of every migration, the oldest first."""
    engine = open_engine("sqlite:///:memory:")
    found = [(revision.id, revision.title) for revision in history(engine)]
    engine.dispose()
    return found


Revisions = list[tuple[str, str]]


# --- upgrade -------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [[], ["upgrade"]], ids=["no part", "upgrade"])
def test_migrate_upgrades_and_says_what_it_has_applied(
    clarad: Clarad, revisions: Revisions, part: list[str]
) -> None:
    applied = "".join(f"applied {number}  {title}\n" for number, title in revisions)
    assert clarad(*part) == (0, applied, "")


def test_migrate_has_nothing_to_do_the_second_time(clarad: Clarad) -> None:
    clarad()
    assert clarad() == (0, "nothing to do\n", "")


def test_without_a_database_url_the_database_lies_in_the_state_directory(
    clarad: Clarad, tmp_path: Path
) -> None:
    clarad()
    assert (tmp_path / "state" / "clarad.db").is_file()


def test_migrate_goes_where_database_url_says(clarad: Clarad, url: str) -> None:
    assert clarad(DATABASE_URL=url)[0] == 0
    assert clarad(DATABASE_URL=url) == (0, "nothing to do\n", "")


def test_migrate_takes_the_urls_that_hosting_services_hand_out(clarad: Clarad, url: str) -> None:
    handed_out = url.replace("postgresql+psycopg://", "postgres://")
    clarad(DATABASE_URL=url)
    assert clarad(DATABASE_URL=handed_out) == (0, "nothing to do\n", "")


# --- status, history, heads ----------------------------------------------------------------------


def test_status_of_an_empty_database_lists_what_is_pending(
    clarad: Clarad, revisions: Revisions
) -> None:
    pending = "".join(f"  {number}  {title}\n" for number, title in revisions)
    expected = f"revision  none\nhead      {HEAD}\npending   {len(revisions)}\n{pending}"
    assert clarad("status") == (0, expected, "")


def test_status_of_an_upgraded_database_has_nothing_pending(clarad: Clarad) -> None:
    clarad()
    expected = f"revision  {HEAD}\nhead      {HEAD}\npending   nothing\n"
    assert clarad("status") == (0, expected, "")


def test_history_has_the_newest_migration_first(clarad: Clarad, revisions: Revisions) -> None:
    clarad()
    newest_first = [f"{number}  applied  {title}" for number, title in reversed(revisions)]
    assert clarad("history") == (0, "\n".join(newest_first) + "\n", "")


def test_history_says_what_is_pending(clarad: Clarad, revisions: Revisions) -> None:
    newest_first = [f"{number}  pending  {title}" for number, title in reversed(revisions)]
    assert clarad("history") == (0, "\n".join(newest_first) + "\n", "")


def test_heads_is_the_newest_migration(clarad: Clarad) -> None:
    assert clarad("heads") == (0, f"{HEAD}\n", "")


# --- rollback ------------------------------------------------------------------------------------


def test_rollback_takes_one_migration_back_and_says_which(
    clarad: Clarad, url: str, revisions: Revisions
) -> None:
    clarad(DATABASE_URL=url)
    number, title = revisions[-1]
    status, out, err = clarad("rollback", "--yes")
    assert (status, err) == (0, "")
    assert out.startswith("deletes no row\n")
    assert out.endswith(f"rolled back {number}  {title}\n")
    assert f"{number}  pending  {title}" in clarad("history")[1]


def test_rollback_takes_as_many_back_as_it_is_told(clarad: Clarad, revisions: Revisions) -> None:
    clarad()
    newest_first = "".join(
        f"rolled back {number}  {title}\n" for number, title in reversed(revisions)
    )
    status, out, err = clarad("rollback", f"{len(revisions)}", "--yes")
    assert (status, err) == (0, "")
    assert out.endswith(newest_first)
    assert clarad("status")[1].startswith("revision  none\n")


def fill(url: str) -> None:
    """Have a message and two tokens in the database."""
    engine = open_engine(url)
    columns = "platform, channel_id, request_id, node_id, user_id, session_id, frame, received_at"
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f"INSERT INTO clarad_messages ({columns}, cancel_reason) VALUES"
            " ('a', 'b', 'c', 'd', 'e', 'f', '{\"id\": \"c\"}', '2026-01-01', 'no')"
        )
        connection.exec_driver_sql(
            "INSERT INTO clarad_tokens (name, digest, platforms, created_at)"
            " VALUES ('x', 'x', '', '2026-01-01'), ('y', 'y', '', '2026-01-01')"
        )
    engine.dispose()


def attach(url: str) -> None:
    """Have the message's attachments in the database, too."""
    engine = open_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO clarad_attachments (message_id, received_at, attachments)"
            ' SELECT id, received_at, \'[{"filename": "a"}]\' FROM clarad_messages'
        )
    engine.dispose()


def test_rollback_says_what_it_would_delete_and_does_not_without_a_yes(
    clarad: Clarad, url: str, revisions: Revisions
) -> None:
    clarad(DATABASE_URL=url)
    fill(url)
    to_tokens = str(len(revisions) - [number for number, _ in revisions].index("0004"))
    lost = "deletes clarad_messages.cancel_reason: in 1 rows\ndeletes clarad_tokens: all 2 rows\n"
    said = clarad("rollback", to_tokens)
    assert said == (1, lost, "clarad: nothing has changed; if this is what you want, say --yes\n")
    assert "pending   nothing" in clarad("status")[1]
    status, out, _ = clarad("rollback", to_tokens, "--yes")
    assert status == 0
    assert out.startswith(lost)


def test_rollback_counts_attachments_only_if_their_messages_go_with_them(
    clarad: Clarad, url: str, revisions: Revisions
) -> None:
    clarad(DATABASE_URL=url)
    fill(url)
    attach(url)
    before = len(revisions) - [number for number, _ in revisions].index("0007")
    assert clarad("rollback", f"{before}")[1] == "deletes no row\n"
    lost = clarad("rollback", f"{len(revisions)}")[1]
    assert "deletes clarad_attachments: all 1 rows\n" in lost
    out = clarad("rollback", f"{before}", "--yes")[1]
    assert out.startswith("deletes no row\n")
    engine = open_engine(url)
    with engine.connect() as connection:
        frame = connection.exec_driver_sql("SELECT frame FROM clarad_messages").scalar_one()
    engine.dispose()
    assert json.loads(frame) == {"id": "c", "attachments": [{"filename": "a"}]}


@pytest.mark.parametrize("answer", ["y\n", "n\n", "\n", ""], ids=repr)
def test_rollback_asks_at_a_terminal(
    clarad: Clarad, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    clarad()
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    status, _, err = clarad("rollback")
    agreed = answer == "y\n"
    assert (status, "Go on? [y/N]" in err) == (0 if agreed else 1, True)
    assert ("pending   nothing" in clarad("status")[1]) is not agreed


def test_before_a_rollback_a_backup_is_made(clarad: Clarad, tmp_path: Path) -> None:
    clarad()
    fill(f"sqlite:///{tmp_path}/state/clarad.db")
    _, out, _ = clarad("rollback", "3", "--yes")
    [copy] = (tmp_path / "state" / "backups").iterdir()
    assert f"a backup of what was there is {copy}\n" in out
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("SELECT count(*) FROM clarad_tokens").fetchone() == (2,)


@pytest.mark.parametrize("url", SHARED, indirect=True)
def test_rollback_is_refused_while_a_daemon_uses_the_database(
    clarad: Clarad, url: str, tmp_path: Path
) -> None:
    with daemon(tmp_path / "other", DATABASE_URL=url):
        status, out, err = clarad("rollback", "--yes", DATABASE_URL=url)
    assert (status, out) == (1, "")
    assert err.startswith("clarad: daemons use the database (")
    assert "pending   nothing" in clarad("status")[1]


def test_rollback_of_more_than_there_are_changes_nothing(
    clarad: Clarad, revisions: Revisions
) -> None:
    clarad()
    number = len(revisions)
    status, out, err = clarad("rollback", f"{number + 1}", "--yes")
    assert (status, out) == (1, "")
    assert err == (f"clarad: there are only {number} migrations to roll back, not {number + 1}\n")
    assert "pending   nothing" in clarad("status")[1]


@pytest.mark.parametrize("steps", ["0", "-1"])
def test_rollback_takes_a_number_from_1(clarad: Clarad, steps: str) -> None:
    clarad()
    assert clarad("rollback", steps) == (1, "", "clarad: rollback takes a number from 1\n")
    assert "pending   nothing" in clarad("status")[1]


# --- bad arguments, bad settings, bad databases --------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [["nonsense"], ["rollback", "two"], ["rollback", "1", "2"], ["create"], ["upgrade", "0001"]],
    ids=" ".join,
)
def test_what_is_no_command_is_refused_with_a_hint(clarad: Clarad, words: list[str]) -> None:
    status, out, err = clarad(*words)
    assert (status, out) == (2, "")
    assert err.startswith("usage: clarad ")


def test_help_names_every_part(clarad: Clarad) -> None:
    status, out, _ = clarad("--help")
    assert status == 0
    for part in ("upgrade", "status", "history", "heads", "rollback", "create"):
        assert f"\n    {part}" in out


def test_wrong_settings_are_all_named(clarad: Clarad) -> None:
    status, out, err = clarad(DATABASE_URL="mysql://h/n", CLARA_GATEWAY_PORT="http")
    assert (status, out) == (1, "")
    lines = sorted(err.splitlines())
    assert [line.split(":")[:2] for line in lines] == [
        ["clarad", " CLARA_GATEWAY_PORT='http'"],
        ["clarad", " DATABASE_URL"],
    ]


def test_before_a_run_wrong_settings_are_left_for_the_run_to_say(clarad: Clarad) -> None:
    assert clarad("--before-run", CLARA_GATEWAY_PORT="none") == (0, "", "")


def test_before_a_run_a_wrong_file_of_settings_is_left_for_the_run_to_say(
    clarad: Clarad, tmp_path: Path
) -> None:
    assert clarad("--before-run", CLARA_ENV_FILE=f"{tmp_path}/none") == (0, "", "")


def test_before_a_run_a_damaged_database_is_left_for_the_run_to_say(
    clarad: Clarad, tmp_path: Path
) -> None:
    (tmp_path / "broken").write_text("this is no database" * 100)
    url = f"sqlite:///{tmp_path}/broken"
    assert clarad("--before-run", DATABASE_URL=url) == (0, "", "")


def test_before_a_run_what_fails_in_the_database_is_said_as_the_daemon_says_it(
    tmp_path: Path,
) -> None:
    url = f"postgresql://me:a-password@/name?host={tmp_path}"
    env = environment(tmp_path, DATABASE_URL=url, CLARA_LOG_FORMAT="json")
    said = daemon_process.clarad("migrate", "--before-run", env=env)
    assert (said.returncode, said.stdout) == (74, "")
    [record] = [json.loads(line) for line in said.stderr.splitlines()]
    assert record["level"] == "critical"
    assert record["message_id"] == catalogue.STORE_UNUSABLE.message_id
    assert "No such file" in record["message"]
    assert "a-password" not in said.stderr


@pytest.mark.parametrize("part", [[], ["status"], ["history"], ["rollback"]], ids=str)
@pytest.mark.parametrize(
    "bad",
    [
        "sqlite:///{}",
        "sqlite:///{}/file/clarad.db",
        "sqlite:///{}/file",
        "postgresql://me:a-password@/name?host={}",
        "postgresql://me:a-password@host:port/name",
    ],
    ids=["a directory", "below a file", "no database", "no server", "no port"],
)
def test_a_database_that_cannot_be_used_is_one_line_and_exit_1(
    clarad: Clarad, tmp_path: Path, part: list[str], bad: str
) -> None:
    (tmp_path / "file").write_text("This is no database.\n" * 1000)
    status, out, err = clarad(*part, DATABASE_URL=bad.format(tmp_path))
    assert (status, out) == (1, "")
    assert err.startswith("clarad: ")
    assert len(err.splitlines()) == 1
    assert "a-password" not in err


def test_a_database_of_a_newer_clarad_is_one_line_and_exit_1(clarad: Clarad, url: str) -> None:
    clarad(DATABASE_URL=url)
    engine = open_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE clarad_alembic_version SET version_num = '9999'")
    engine.dispose()
    status, out, err = clarad()
    assert (status, out) == (1, "")
    assert "is at revision 9999, which this version does not know" in err
    assert len(err.splitlines()) == 1


# --- create, in a copy of the checkout -----------------------------------------------------------


class Checkout:
    """A copy of clarad's source, whose models a test can change."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        without_caches = shutil.ignore_patterns("__pycache__")
        for name in ("clarad", "migrations"):
            shutil.copytree(ROOT / name, directory / name, ignore=without_caches)
        for name in ("pyproject.toml", "alembic.ini"):
            shutil.copy(ROOT / name, directory)
        self.versions = directory / "migrations" / "versions"
        self._before = set(self.versions.iterdir())

    def add_column(self, text: str) -> None:
        """Give the table of messages one more column."""
        models = self.directory / "clarad" / "store" / "models.py"
        models.write_text(models.read_text().rstrip() + f"\n    {text}\n")

    @property
    def made(self) -> list[Path]:
        """The migrations that have come since."""
        return sorted({*self.versions.glob("*.py")} - self._before)

    def migrate(self, *words: str) -> str:
        """Run this copy's `clarad migrate …`, and return what it prints."""
        done = self.run(*words)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "clarad", "migrate", *words],
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": f"{self.directory}"},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def checkout(clarad: Clarad, tmp_path: Path) -> Checkout:
    """A copy of the checkout, with a migrated database."""
    assert clarad()[0] == 0
    return Checkout(tmp_path / "checkout")


def test_create_writes_what_the_models_have_more_than_the_database(checkout: Checkout) -> None:
    checkout.add_column("note: Mapped[datetime | None] = mapped_column(UtcDateTime)")
    number = f"{int(HEAD) + 1:04}"
    said = checkout.migrate("create", "Notes on messages")
    assert said.splitlines()[-1] == f"{checkout.versions / f'{number}_notes_on_messages.py'}"
    [made] = checkout.made
    assert "sa.Column('note', sa.DateTime(timezone=True), nullable=True)" in made.read_text()


def test_what_create_has_written_goes_up_and_down(checkout: Checkout) -> None:
    checkout.add_column('note: Mapped[str] = mapped_column(Text, server_default="")')
    checkout.migrate("create", "Notes on messages")
    number = f"{int(HEAD) + 1:04}"
    assert checkout.migrate() == f"applied {number}  Notes on messages\n"
    assert checkout.migrate("rollback", "--yes").endswith(
        f"rolled back {number}  Notes on messages\n"
    )


def test_create_wants_a_database_that_is_up_to_date(clarad: Clarad, checkout: Checkout) -> None:
    clarad("rollback", "--yes")
    done = checkout.run("create", "Too early")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("clarad: ")
    assert len(done.stderr.splitlines()) == 1
    assert not checkout.made


def test_create_is_for_a_checkout_only(checkout: Checkout) -> None:
    (checkout.directory / "pyproject.toml").unlink()
    done = checkout.run("create", "Elsewhere")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "clarad: migrations are made in a checkout of clarad, not in an installed one\n"
    )
    assert not checkout.made


@pytest.mark.parametrize("part", ["status", "history", "heads"])
def test_who_only_looks_makes_no_database(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLARA_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("DATABASE_URL", raising=False)
    assert main(["migrate", part]) == 0
    assert not (tmp_path / "state").exists()
