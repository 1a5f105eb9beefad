"""What `clarad hooks` and `clarad tasks` do alike."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.installation import STEERING, Console, Installation, no_daemon, refused


class Kind(NamedTuple):
    """Entries of one of the two files, and what is said of a wrong one."""

    file: str
    good: str
    bad: str
    complaint: str


KINDS: Final = {
    "hooks": Kind(
        "hooks.yaml", "event: tool:end", "event: tool:edn", "event is tool:edn; did you mean tool:"
    ),
    "tasks": Kind(
        "scheduler.yaml", "interval: 900", "interval: 0", "interval is 0; write a number of seconds"
    ),
}


@pytest.fixture(params=KINDS)
def command(request: pytest.FixtureRequest, here: Installation) -> str:
    """One command after the other; its file has the entries `one` and `two`."""
    name: str = request.param
    write(here, name, one="command: ls", two="command: ls")
    return name


def write(here: Installation, command: str, /, **entries: str) -> None:
    """Write entries that are right but for what they say themselves."""
    good = KINDS[command].good
    lines = [f"- {{name: {name}, {good}, {rest}}}\n" for name, rest in entries.items()]
    here.write(**{command: "".join(lines)})


# --- list ----------------------------------------------------------------------------------------


def test_list_needs_no_daemon_and_no_database(
    here: Installation, clarad: Console, command: str
) -> None:
    said = clarad(command, "list", "--json")
    assert (said.status, said.err) == (0, no_daemon(here))
    assert [(row["name"], row["last"]) for row in said.rows] == [("one", None), ("two", None)]
    assert not here.state_dir.exists()


def test_an_empty_list_says_so(here: Installation, clarad: Console, command: str) -> None:
    (here.directory / KINDS[command].file).unlink()
    assert clarad(command, "list") == (0, "none\n", no_daemon(here))
    assert clarad(command, "list", "--json") == (0, "", no_daemon(here))


def test_list_leaves_out_what_is_wrong_and_says_what(
    here: Installation, clarad: Console, command: str
) -> None:
    kind = KINDS[command]
    here.write(
        **{
            command: f"- {{name: good, {kind.good}, command: ls}}\n"
            f"- {{name: bad, {kind.bad}, command: ls}}\n"
        }
    )
    said = clarad(command, "list", "--json")
    assert (said.status, [row["name"] for row in said.rows]) == (0, ["good"])
    path = here.directory / kind.file
    wrong = f"clarad: left out: {path}:3: {kind.complaint}"
    assert said.err.startswith(no_daemon(here) + wrong)
    assert len(said.err.splitlines()) == 2


def test_list_shows_what_runs_and_says_what_a_reload_would_change(
    here: Installation, clarad: Console, command: str
) -> None:
    write(here, command, idle="command: ls, enabled: false", old="command: ls", same="command: ls")
    with here.daemon():
        before = clarad(command, "list", "--json")
        assert [row["name"] for row in before.rows] == ["idle", "old", "same"]
        assert before.err == ""
        idle = "command: date, enabled: false"
        write(here, command, idle=idle, same="command: ls", new="command: ls")
        changed = clarad(command, "list", "--json")
        assert changed.rows == before.rows
        assert changed.err == "clarad: a reload adds new; changes idle; removes old\n"
        here.write(**{command: "- {name: broken}\n"})
        broken = clarad(command, "list")
        assert broken.err.startswith("clarad: a reload would be refused: ")
        assert broken.status == 0


# --- what is not there ---------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["runs"], ["show", "x"]], ids=" ".join)
def test_a_state_directory_that_is_not_there_is_named(
    here: Installation, clarad: Console, command: str, words: list[str]
) -> None:
    assert clarad(command, *words) == refused(
        f"there is no state directory {here.state_dir}; set CLARA_STATE_DIR to that of the daemon, "
        "or start one with `clarad run`"
    )


@pytest.mark.parametrize("run", ["one", "a\x1b[31m"])
def test_a_run_that_is_not_there_is_one_line_that_says_where_runs_and_names_are_listed(
    clarad: Console, command: str, run: str
) -> None:
    clarad("migrate")
    answer = refused(
        f"there is no run {run!r}; `clarad {command} runs` lists the runs, "
        f"and `clarad {command} list` the {command}"
    )
    assert clarad(command, "show", run) == answer
    assert clarad(command, "show", run, "--json") == answer


# --- words that make no sense --------------------------------------------------------------------


def test_a_name_cannot_steer_the_terminal(
    here: Installation, clarad: Console, command: str
) -> None:
    good = KINDS[command].good
    here.write(**{command: rf'- {{name: "a\e[31m\x9b", {good}, command: "\e[31m"}}'})
    said = clarad(command, "list")
    assert (said.status, said.out) == (0, "none\n")
    assert not set(said.err) & set(STEERING)


PARTS: Final = {
    "hooks": (["show"], ["runs", "--hook"], ["replay"], ["test"]),
    "tasks": (["show"], ["runs", "--task"], ["preview", "--task"], ["run"], ["pause"], ["resume"]),
}
"""What takes a name or the id of a run."""

NAMING: Final = [[command, *words] for command, parts in PARTS.items() for words in parts]


@pytest.mark.parametrize("words", NAMING, ids=" ".join)
def test_what_can_be_no_name_is_refused_with_what_to_write(
    clarad: Console, words: list[str]
) -> None:
    for name, text in (
        ("\udcff", "write it in UTF-8"),
        ("", "write 1 to 255 characters"),
        ("x" * 256, "write 1 to 255 characters"),
    ):
        status, out, err = clarad(*words, name)
        assert (status, out) == (2, "")
        assert err.splitlines()[-1].endswith(f": {text}")


@pytest.mark.parametrize(
    "words",
    [*NAMING, *([command, *rest] for command in KINDS for rest in ([], ["nonsense"]))],
    ids=" ".join,
)
def test_what_is_no_command_is_refused_with_a_hint(clarad: Console, words: list[str]) -> None:
    status, out, err = clarad(*words)
    assert (status, out) == (2, "")
    assert err.startswith(f"usage: clarad {words[0]} ")


def test_help_names_every_part(clarad: Console, command: str) -> None:
    status, out, _ = clarad(command, "--help")
    assert status == 0
    for part in ("list", *(words[0] for words in PARTS[command])):
        assert f"\n    {part}" in out


# --- databases -----------------------------------------------------------------------------------

READING: Final = [
    ["hooks", "list"],
    ["hooks", "runs"],
    ["hooks", "show", "x"],
    ["hooks", "replay", "x"],
    ["tasks", "list"],
    ["tasks", "runs"],
    ["tasks", "show", "x"],
    ["tasks", "pause", "one"],
    ["tasks", "resume", "one"],
]


@pytest.fixture
def path(here: Installation, clarad: Console) -> Path:
    """The database of an installation with a hook and a task."""
    for command in KINDS:
        write(here, command, one="command: ls")
    assert clarad("migrate").status == 0
    return here.state_dir / "clarad.db"


@pytest.mark.parametrize("words", READING, ids=" ".join)
@pytest.mark.parametrize(
    "bad",
    [
        "sqlite:///{0}",
        "sqlite:///{0}/file",
        "sqlite:///{0}/half",
        "postgresql://me:a-password@/n?host={0}",
    ],
    ids=["a directory", "no database", "half a database", "no server"],
)
def test_a_database_that_cannot_be_used_is_one_line_and_exit_1(
    clarad: Console, tmp_path: Path, path: Path, words: list[str], bad: str
) -> None:
    (tmp_path / "file").write_text("This is no database.\n" * 1000)
    data = path.read_bytes()
    (tmp_path / "half").write_bytes(data[:4096] + b"\xa5" * (len(data) - 4096))
    status, out, err = clarad(*words, DATABASE_URL=bad.format(tmp_path))
    assert (status, out) == (1, "")
    [line] = err.splitlines()
    assert line.startswith("clarad: ")
    assert "a-password" not in line


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_a_database_of_a_newer_clarad_is_one_line_and_exit_1(
    clarad: Console, path: Path, words: list[str]
) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE clarad_alembic_version SET version_num = '9999'")
    status, out, err = clarad(*words)
    assert (status, out) == (1, "")
    [line] = err.splitlines()
    assert "revision 9999" in line
