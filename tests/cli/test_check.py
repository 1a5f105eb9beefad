"""`clarad check`: everything that is wrong, in one go, and nothing touched."""

import gc
import os
import pwd
import re
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import inspect

from clarad.cli import main
from clarad.store import open_engine
from tests import certificates
from tests.daemon_process import daemon
from tests.installation import Installation
from tests.migrated import migrate
from tests.postgres import BACKENDS, database
from tests.sandbox import engines
from tests.unprivileged import NOBODY, unprivileged

GOOD = "The configuration is good: 0 hooks, 0 tasks.\n"
DOUBTFUL = "The configuration can be used, apart from the warnings: {}.\n"
NOTHING = "0 hooks, 0 tasks"

HOOKS = """\
hooks:
  - name: log-startup
    event: gateway:startup
    command: echo "Gateway started"

  - name: notify-errors
    event: tool:error
    command: env curl -X POST https://webhook.example.com -d "${CLARA_EVENT_DATA}"
"""
TASKS = """\
tasks:
  - name: cleanup-sessions
    type: interval
    interval: 3600
    command: python3 -m scripts.cleanup_sessions

  - name: daily-backup
    type: cron
    cron: "0 3 * * *"
    command: sh ./scripts/backup.sh
"""
"""What people have from an older Clara."""

Said = tuple[int, str, str]
Check = Callable[..., Said]
Automation = Callable[[str, str], None]


@pytest.fixture
def check(
    clean_settings: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Check:
    """Run `clarad check` with settings; returns its exit status and what it has printed."""
    monkeypatch.chdir(tmp_path)  # where there are no hooks and no tasks

    def run(**environment: str) -> Said:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        status = main(["check"])
        if "postgres" in os.environ.get("DATABASE_URL", ""):
            # Psycopg warns of a connection that was left open when it is collected: now, not in
            # somebody else's test.
            gc.collect()
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.fixture(params=BACKENDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of the test's own."""
    with database(request.param, tmp_path, request.config) as url:
        yield url


def do(url: str, *statements: str) -> None:
    """Migrate the database, then run statements in it."""
    engine = open_engine(url)
    migrate(engine)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


# --- good ----------------------------------------------------------------------------------------


def test_without_any_setting_the_configuration_is_good(check: Check) -> None:
    assert check() == (0, GOOD, "")


def test_every_setting_can_be_set_well(check: Check, tmp_path: Path) -> None:
    good = {
        "CLARA_GATEWAY_HOST": "0.0.0.0",
        "CLARA_GATEWAY_PORT": "0",
        "CLARA_GATEWAY_SECRET": "a long random word",
        "CLARA_GATEWAY_ALLOWED_ORIGINS": "https://a.example, http://b.example:8080/",
        "CLARA_GATEWAY_MAX_CONNECTIONS": "10",
        "CLARA_RATE_NODE": "600",
        "CLARA_RATE_USER": "60/10",
        "CLARA_MAX_RUNNING": "1",
        "CLARA_RESPONDER": "command",
        "CLARA_RESPONDER_COMMAND": "cat",
        "CLARA_SESSION_TIMEOUT": "60",
        "CLARA_MESSAGE_TIMEOUT": "0.5",
        "CLARA_DRAIN_TIMEOUT": "0",
        "CLARA_AUTO_MIGRATE": "yes",
        "CLARA_LOG_LEVEL": "debug",
        "CLARA_HOOKS_DIR": f"{tmp_path}",
        "CLARA_SCHEDULER_DIR": f"{tmp_path}",
        "DATABASE_URL": f"sqlite:///{tmp_path}/other.db",
    }
    assert check(**good) == (0, GOOD, "")


def test_an_empty_variable_counts_as_not_set(check: Check) -> None:
    empty = dict.fromkeys(("CLARA_GATEWAY_PORT", "CLARA_RESPONDER", "DATABASE_URL"), "")
    assert check(**empty) == (0, GOOD, "")


def test_a_migrated_database_is_good(check: Check, url: str) -> None:
    do(url)
    assert check(DATABASE_URL=url, CLARA_AUTO_MIGRATE="0") == (0, GOOD, "")


def test_a_database_that_the_start_will_migrate_is_good(check: Check, url: str) -> None:
    assert check(DATABASE_URL=url) == (0, GOOD, "")


@pytest.mark.parametrize("name", ["memory.db", "my memory/clarad.db", "file:clarad.db"])
def test_a_file_can_be_called_what_one_likes(check: Check, tmp_path: Path, name: str) -> None:
    (tmp_path / "my memory").mkdir()
    assert check(DATABASE_URL=f"sqlite:///{tmp_path}/{name}") == (0, GOOD, "")


# --- bad settings --------------------------------------------------------------------------------

BAD = {
    "CLARA_GATEWAY_HOST": ("0.0.0.0", "CLARA_GATEWAY_SECRET"),
    "CLARA_GATEWAY_PORT": ("65536", "write a number from 0 (any free port) to 65535"),
    "CLARA_GATEWAY_ALLOWED_ORIGINS": ("chat.example.org", "with its scheme"),
    "CLARA_GATEWAY_MAX_CONNECTIONS": ("0", "write a whole number from 1"),
    "CLARA_MAX_RUNNING": ("many", "write a whole number from 1"),
    "CLARA_RESPONDER": ("ecko", "did you mean echo?"),
    "CLARA_SESSION_TIMEOUT": ("0", "write a number of seconds above 0"),
    "CLARA_MESSAGE_TIMEOUT": ("5 minutes", "write a number of seconds"),
    "CLARA_DRAIN_TIMEOUT": ("-1", "write a number of seconds"),
    "CLARA_AUTO_MIGRATE": ("maybe", "write 1 or 0"),
    "CLARA_LOG_LEVEL": ("loud", "write one of DEBUG, INFO, WARNING, ERROR"),
    "DATABASE_URL": ("mysql://me:a-password@host/name", "postgresql://user@host"),
}
"""For each setting a bad value, and what is said of it."""


@pytest.mark.parametrize("name", BAD)
def test_a_bad_setting_is_named_with_what_to_write_instead(check: Check, name: str) -> None:
    value, what_to_write = BAD[name]
    status, out, err = check(**{name: value})
    assert (status, out) == (1, "")
    [line] = err.splitlines()
    assert line.startswith(f"clarad: {name}")
    assert what_to_write in line


def test_all_bad_settings_are_named_in_one_go(check: Check) -> None:
    status, out, err = check(**{name: value for name, (value, _) in BAD.items()})
    assert (status, out) == (1, "")
    named = [line.removeprefix("clarad: ").partition("=")[0] for line in err.splitlines()]
    assert sorted(name.partition(":")[0] for name in named) == sorted(BAD)


def test_a_bad_database_is_named_beside_bad_settings(check: Check, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("This is no database.\n" * 1000)
    _, _, err = check(DATABASE_URL=f"sqlite:///{tmp_path}/file", CLARA_GATEWAY_PORT="http")
    assert "CLARA_GATEWAY_PORT" in err
    assert "DATABASE_URL" in err


def test_a_responder_without_its_command_is_named(check: Check) -> None:
    status, out, err = check(CLARA_RESPONDER="command")
    assert (status, out) == (1, "")
    assert err.startswith("clarad: CLARA_RESPONDER=command needs CLARA_RESPONDER_COMMAND: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CLARA_STATE_DIR", "~nobody-of-this-name/clarad"),
        ("CLARA_STATE_DIR", "/" + "x" * 300),
        ("CLARA_GATEWAY_HOST", "a..b"),
        ("CLARA_GATEWAY_HOST", "x" * 64 + ".example"),
        ("DATABASE_URL", "sqlite://clarad.db"),
        ("DATABASE_URL", "sqlite:////" + "x" * 300),
        ("DATABASE_URL", "postgresql://me:a-password@host:port/name"),
        ("DATABASE_URL", "postgresql://me:a-password@[::1/name"),
        ("DATABASE_URL", "postgresql:///name?nonsense=1"),
    ],
    ids=[
        "home of nobody",
        "state directory too long",
        "host with two dots",
        "host too long",
        "a slash too few",
        "file name too long",
        "no port",
        "half an address",
        "unknown option",
    ],
)
def test_what_the_daemon_could_not_start_with_is_one_line_and_exit_1(
    check: Check, name: str, value: str
) -> None:
    status, out, err = check(**{name: value})
    assert (status, out) == (1, "")
    [line] = err.splitlines()
    assert name in line
    assert "a-password" not in err


def test_a_state_directory_that_cannot_be_made_is_named(check: Check, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, out, err = check(CLARA_STATE_DIR=f"{tmp_path}/file/state")
    assert (status, out) == (1, "")
    assert "CLARA_STATE_DIR" in err


def test_a_state_directory_that_only_permissions_allow_is_named(check: Check) -> None:
    status, out, err = check(CLARA_STATE_DIR="/proc/clarad")  # root may write to /proc, and cannot
    assert (status, out) == (1, "")
    [line] = err.splitlines()
    assert line.startswith("clarad: CLARA_STATE_DIR: ")
    assert "cannot " in line
    assert "a directory" in line


def test_a_bad_value_is_no_traceback(check: Check) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clarad", "check"],
        env={**os.environ, **{name: value for name, (value, _) in BAD.items()}},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert all(line.startswith("clarad: ") for line in done.stderr.splitlines())


def test_no_secret_is_shown(check: Check) -> None:
    _, _, err = check(
        CLARA_GATEWAY_SECRET="the-secret",
        DATABASE_URL="mysql://me:the-password@host/name",
        CLARA_GATEWAY_PORT="http",
    )
    assert "the-secret" not in err
    assert "the-password" not in err


def test_tls_and_a_socket_file_can_be_set_well(check: Check, tmp_path: Path) -> None:
    made = certificates.make(tmp_path)
    good = {
        "CLARA_GATEWAY_TLS_CERT": f"{made.certificate}",
        "CLARA_GATEWAY_TLS_KEY": f"{made.key}",
        "CLARA_GATEWAY_SOCKET": f"{tmp_path}/gateway.sock",
    }
    assert check(**good) == (0, GOOD, "")
    assert not (tmp_path / "gateway.sock").exists()


BAD_LISTENERS = {
    "no certificate": (
        {"CLARA_GATEWAY_TLS_KEY": "/dev/null"},
        "CLARA_GATEWAY_TLS_KEY needs the certificate: set CLARA_GATEWAY_TLS_CERT",
    ),
    "no such file": (
        {"CLARA_GATEWAY_TLS_CERT": "{}/gone.pem"},
        "CLARA_GATEWAY_TLS_CERT: No such file or directory: {}/gone.pem",
    ),
    "a file in the way": (
        {"CLARA_GATEWAY_SOCKET": "{}/file"},
        "CLARA_GATEWAY_SOCKET: {}/file is in the way; move it, or name another file",
    ),
    "no directory": (
        {"CLARA_GATEWAY_SOCKET": "{}/file/gateway.sock"},
        "CLARA_GATEWAY_SOCKET: {}/file is not a directory; make it",
    ),
    "a name too long": (
        {"CLARA_GATEWAY_SOCKET": "{}/" + "x" * 300},
        "CLARA_GATEWAY_SOCKET: File name too long: {}/" + "x" * 300,
    ),
    "a secret like a token": (
        {"CLARA_GATEWAY_SECRET": "clarad_and-sixteen-more"},
        "CLARA_GATEWAY_SECRET begins as tokens do, with clarad_; choose another word",
    ),
}


@pytest.mark.parametrize("name", BAD_LISTENERS)
def test_what_the_gateway_could_not_use_is_one_line_and_exit_1(
    check: Check, tmp_path: Path, name: str
) -> None:
    (tmp_path / "file").touch()
    settings, problem = BAD_LISTENERS[name]
    here = {variable: value.format(tmp_path) for variable, value in settings.items()}
    assert check(**here) == (1, "", f"clarad: {problem.format(tmp_path)}\n")


# --- warnings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ORS_ENABLED", "PROACTIVE_INTERVAL"])
def test_a_variable_of_the_removed_system_is_a_warning_and_no_error(
    check: Check, name: str
) -> None:
    warning = (
        f"clarad: warning: {name} has no effect: the proactive system (ORS) was removed. "
        "Delete the variable\n"
    )
    assert check(**{name: "1"}) == (0, DOUBTFUL.format(NOTHING), warning)


def test_warnings_are_shown_beside_errors(check: Check) -> None:
    status, out, err = check(ORS_ENABLED="1", CLARA_GATEWAY_PORT="http")
    assert (status, out) == (1, "")
    assert "ORS_ENABLED has no effect" in err
    assert "CLARA_GATEWAY_PORT" in err


def test_a_name_that_is_nearly_a_setting_is_a_warning(check: Check) -> None:
    warning = "clarad: warning: CLARA_RESPONDR is not a setting; did you mean CLARA_RESPONDER?\n"
    assert check(CLARA_RESPONDR="echo") == (0, DOUBTFUL.format(NOTHING), warning)


# --- databases -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    ["sqlite:///{}", "sqlite:///{}/file", "postgresql://me:a-password@/name?host={}"],
    ids=["a directory", "no database", "no server"],
)
def test_a_database_that_cannot_be_used_is_one_line_and_exit_1(
    check: Check, tmp_path: Path, bad: str
) -> None:
    (tmp_path / "file").write_text("This is no database.\n" * 1000)
    status, out, err = check(DATABASE_URL=bad.format(tmp_path))
    assert (status, out) == (1, "")
    [line] = err.splitlines()
    assert line.startswith("clarad: DATABASE_URL: ")
    assert "a-password" not in line


def test_a_database_of_a_newer_clarad_is_one_line_and_exit_1(check: Check, url: str) -> None:
    do(url, "UPDATE clarad_alembic_version SET version_num = '9999'")
    status, out, err = check(DATABASE_URL=url)
    assert (status, out) == (1, "")
    [line] = err.splitlines()
    assert "revision 9999" in line


def test_a_database_that_is_behind_is_an_error_if_the_start_may_not_migrate_it(
    check: Check, url: str
) -> None:
    do(url, "DELETE FROM clarad_alembic_version")
    assert check(DATABASE_URL=url, CLARA_AUTO_MIGRATE="0") == (
        1,
        "",
        "clarad: the database is behind and CLARA_AUTO_MIGRATE=0 is set: run `clarad migrate`\n",
    )


def test_a_database_that_is_not_there_is_an_error_if_the_start_may_not_migrate_it(
    check: Check,
) -> None:
    status, out, err = check(CLARA_AUTO_MIGRATE="0")
    assert (status, out) == (1, "")
    assert "clarad migrate" in err


def test_damage_that_a_start_would_find_is_one_line_and_exit_1(
    check: Check, tmp_path: Path
) -> None:
    (tmp_path / "state").mkdir()
    path = tmp_path / "state" / "clarad.db"
    waits = (
        "INSERT INTO clarad_messages (platform, channel_id, request_id, node_id, user_id,"
        " session_id, frame, received_at)"
        " VALUES ('a', 'b', 'c', 'd', 'e', 'f', '{}', '2026-01-02 03:04:05.000000')"
    )
    do(f"sqlite:///{path}", waits)
    statement = "SELECT rootpage FROM sqlite_schema WHERE name = 'clarad_messages'"
    connection = sqlite3.connect(path)
    [page] = connection.execute(statement).fetchone()
    connection.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    status, out, err = check()
    assert (status, out) == (1, "")
    assert err.startswith(f"clarad: CLARA_STATE_DIR: the database {path} is damaged (")
    assert len(err.splitlines()) == 1


def test_a_name_that_was_lost_is_one_line_and_exit_1(check: Check, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "instance").touch()
    status, out, err = check()
    assert (status, out) == (1, "")
    assert err.startswith(f"clarad: CLARA_STATE_DIR: {tmp_path}/state/instance is empty: ")
    assert len(err.splitlines()) == 1


def test_a_database_of_a_daemon_with_another_state_directory_is_one_line_and_exit_1(
    check: Check, tmp_path: Path
) -> None:
    with daemon(tmp_path / "theirs"):
        status, out, err = check(DATABASE_URL=f"sqlite:///{tmp_path}/theirs/clarad.db")
    assert (status, out) == (1, "")
    assert err.startswith("clarad: DATABASE_URL: another clarad (process ")
    assert f"state directory {tmp_path}/theirs) uses the database" in err
    assert len(err.splitlines()) == 1


# --- hooks and tasks -----------------------------------------------------------------------------


@pytest.fixture
def automation(tmp_path: Path) -> Automation:
    """Write hooks.yaml and scheduler.yaml where they belong by default."""

    def write(hooks: str, tasks: str) -> None:
        (tmp_path / "hooks").mkdir(exist_ok=True)
        (tmp_path / "hooks" / "hooks.yaml").write_text(hooks)
        (tmp_path / "scheduler.yaml").write_text(tasks)

    return write


def test_hooks_and_tasks_of_an_older_clara_are_good(check: Check, automation: Automation) -> None:
    automation(HOOKS, TASKS)
    assert check() == (0, "The configuration is good: 2 hooks, 2 tasks.\n", "")


def test_one_hook_is_one_hook(check: Check, automation: Automation) -> None:
    automation(HOOKS.partition("\n\n")[0], TASKS.partition("\n\n")[0])
    assert check() == (0, "The configuration is good: 1 hook, 1 task.\n", "")


def test_hooks_and_tasks_are_where_the_settings_say(
    check: Check, automation: Automation, tmp_path: Path
) -> None:
    automation(HOOKS, TASKS)
    (tmp_path / "hooks").rename(tmp_path / "my hooks")
    status, out, err = check(
        CLARA_HOOKS_DIR=f"{tmp_path}/my hooks", CLARA_SCHEDULER_DIR=f"{tmp_path}/none"
    )
    warning = (
        f"clarad: warning: CLARA_SCHEDULER_DIR: there is no directory {tmp_path}/none; "
        "make it, or name another\n"
    )
    assert (status, out, err) == (0, DOUBTFUL.format("2 hooks, 0 tasks"), warning)


def test_everything_that_is_wrong_with_them_is_said_with_file_and_line(
    check: Check, automation: Automation
) -> None:
    automation(
        HOOKS.replace("tool:error", "tool:eror").replace("command: echo", "comand: echo"),
        TASKS.replace("3600", "0").replace("type: cron", "type: corn"),
    )
    assert check() == (
        1,
        "",
        "clarad: hooks/hooks.yaml:4: comand is not a key of a hook; did you mean command?\n"
        "clarad: hooks/hooks.yaml:7: event is tool:eror; did you mean tool:error?\n"
        "clarad: scheduler.yaml:4: interval is 0; write a number of seconds above 0 and below 1e9, "
        "such as 30 or 0.5\n"
        "clarad: scheduler.yaml:8: type is corn; did you mean "
        "cron? write one of one_shot, interval, "
        "cron\n",
    )


def test_a_bad_hook_is_named_beside_a_bad_setting(check: Check, automation: Automation) -> None:
    automation("hooks: 5", TASKS)
    status, out, err = check(CLARA_GATEWAY_PORT="http")
    assert (status, out) == (1, "")
    assert [line.split(":")[1] for line in err.splitlines()] == [
        " CLARA_GATEWAY_PORT='http'",
        " hooks/hooks.yaml",
    ]


def test_a_hook_with_a_secret_is_named_without_it(check: Check, automation: Automation) -> None:
    automation("hooks: [{name: a, event: tool:end, type: webhook, secret: the-secret}]", "")
    status, _, err = check()
    assert status == 1
    assert "secret is not right" in err
    assert "the-secret" not in err


def test_a_directory_that_is_not_there_yet_is_a_warning(
    check: Check, automation: Automation, tmp_path: Path
) -> None:
    (tmp_path / "scripts").mkdir()
    automation(
        HOOKS.replace("    event", "    working_dir: logs\n    event"),
        TASKS.replace("    type", "    working_dir: scripts\n    type"),
    )
    warning = (
        "clarad: warning: hooks/hooks.yaml: the working_dir of 'log-startup' is no directory; make "
        f"it: {tmp_path}/hooks/logs\n"
    )
    assert check() == (0, DOUBTFUL.format("2 hooks, 2 tasks"), warning)


def test_a_file_that_is_called_a_little_differently_is_a_warning(
    check: Check, automation: Automation, tmp_path: Path
) -> None:
    automation("", TASKS)
    (tmp_path / "scheduler.yaml").rename(tmp_path / "scheduler.yml")
    warning = "clarad: warning: scheduler.yml is not read; call it scheduler.yaml\n"
    assert check() == (0, DOUBTFUL.format(NOTHING), warning)


def test_hooks_that_cannot_be_read_are_one_line_and_exit_1(check: Check, tmp_path: Path) -> None:
    (tmp_path / "hooks").touch()
    status, out, err = check()
    assert (status, out) == (1, "")
    assert err == (
        "clarad: hooks/hooks.yaml: the file cannot be read (Not "
        "a directory): let the daemon's user "
        "read it\n"
    )


# --- commands ------------------------------------------------------------------------------------

COMMANDS = {
    "a script that is not there": ("./nope.sh x", "there is no program {}/nope.sh"),
    "a script that is not executable": (
        "./plain.sh",
        "{}/plain.sh is not executable: `chmod +x` it",
    ),
    "a program that is not there": (
        "no-such-program | cat",
        "there is no program 'no-such-program' on the PATH",
    ),
    "a syntax error": ("if true", "the shell does not understand the command (/bin/sh: "),
    "a builtin": ("echo hello", None),
    "a keyword": ("if true; then ls; fi", None),
    "a function": ("f () { ls; }; f", None),
    "a variable first": ("X=1 no-such-program", None),
    "a script": ("./run.sh x", None),
}
"""Commands where there are a `plain.sh` and an executable `run.sh`, and what is said of them."""


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_cannot_work_is_a_warning(
    check: Check, automation: Automation, tmp_path: Path, name: str
) -> None:
    command, problem = COMMANDS[name]
    (tmp_path / "plain.sh").touch(mode=0o644)
    (tmp_path / "run.sh").touch(mode=0o755)
    automation("", f"tasks: [{{name: a, interval: 60, command: '{command}'}}]")
    status, out, err = check()
    if problem is None:
        assert (status, out, err) == (0, "The configuration is good: 0 hooks, 1 task.\n", "")
        return
    assert (status, out) == (0, DOUBTFUL.format("0 hooks, 1 task"))
    [line] = err.splitlines()
    assert line.startswith(f"clarad: warning: scheduler.yaml: 'a': {problem.format(tmp_path)}")


@pytest.mark.parametrize("command", ["./nope.sh", "fortune |"])
def test_a_responder_that_can_answer_nothing_is_an_error(check: Check, command: str) -> None:
    status, out, err = check(CLARA_RESPONDER="command", CLARA_RESPONDER_COMMAND=command)
    assert (status, out) == (1, "")
    [line] = err.splitlines()
    assert line.startswith("clarad: CLARA_RESPONDER_COMMAND: ")


# --- places --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("no-such-host.invalid", "not known|failure in name resolution|No address"),
        ("192.0.2.1", "this machine has no such address; set CLARA_GATEWAY_HOST to one"),
    ],
)
def test_a_host_that_cannot_be_listened_on_is_named(check: Check, host: str, why: str) -> None:
    status, _, err = check(CLARA_GATEWAY_HOST=host, CLARA_GATEWAY_SECRET="a long random word")
    assert status == 1
    [line] = err.splitlines()
    assert re.search(f"clarad: cannot listen on {host} port 18789: .*({why})", line)


def test_a_port_that_is_taken_is_named(check: Check) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, err = check(CLARA_GATEWAY_PORT=f"{port}")
    assert status == 1
    assert err == (
        f"clarad: cannot listen on 127.0.0.1 port {port}: the port is taken; stop the other "
        "program, or set CLARA_GATEWAY_PORT\n"
    )


def test_the_port_of_the_running_daemon_is_good(check: Check, tmp_path: Path) -> None:
    with daemon(tmp_path / "state") as process:
        port = process.url.rpartition(":")[2]
        assert check(CLARA_GATEWAY_PORT=port) == (0, GOOD, "")


def test_a_file_of_the_state_directory_that_cannot_be_written_is_named(
    check: Check,
) -> None:
    with tempfile.TemporaryDirectory() as state:  # those of pytest are root's alone
        state_dir = Path(state)
        do(f"sqlite:///{state_dir}/clarad.db")
        state_dir.chmod(0o777)
        file = state_dir / "clarad.db"
        file.chmod(0o444)
        with unprivileged():
            status, out, err = check(CLARA_STATE_DIR=state)
    assert (status, out) == (1, "")
    assert err.startswith(f"clarad: CLARA_STATE_DIR: {file} ")
    assert "cannot be written to" in err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can have another user's directory")
def test_root_is_told_to_check_as_the_user_that_the_state_directory_belongs_to(
    check: Check, tmp_path: Path
) -> None:
    (tmp_path / "state").mkdir()
    os.chown(tmp_path / "state", NOBODY, NOBODY)
    status, out, err = check()
    assert (status, out) == (0, DOUBTFUL.format(NOTHING))
    assert err.endswith(
        f"check as that user: sudo -u {pwd.getpwuid(NOBODY).pw_name} clarad check\n"
    )


def test_a_file_of_settings_that_is_wrong_is_named_beside_the_rest(
    clean_settings: None, tmp_path: Path
) -> None:
    file = tmp_path / "clarad.env"
    file.write_text("oops\nCLARA_GATEWAY_PORT=http\n")
    said = Installation(tmp_path, CLARA_ENV_FILE=f"{file}").clarad("check")
    assert (said.status, said.out) == (1, "")
    assert [line.partition("; ")[0] for line in said.err.splitlines()] == [
        f"clarad: {file}:1: this is no assignment",
        "clarad: CLARA_GATEWAY_PORT='http': write a number from 0 (any free port) to 65535",
    ]


# --- nothing touched -----------------------------------------------------------------------------


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_check_makes_no_database_and_no_directory(check: Check, tmp_path: Path) -> None:
    check()
    check(DATABASE_URL=f"sqlite:///{tmp_path}/other/test.db")
    assert list(tmp_path.iterdir()) == []


def test_check_makes_no_table(check: Check, url: str) -> None:
    check(DATABASE_URL=url)
    engine = open_engine(url)
    found = inspect(engine).get_table_names()
    engine.dispose()
    assert found == []


def test_check_leaves_a_migrated_database_as_it_is_byte_for_byte(
    check: Check, tmp_path: Path
) -> None:
    (tmp_path / "state").mkdir()
    do(f"sqlite:///{tmp_path}/state/clarad.db")
    before = contents(tmp_path / "state")
    assert check() == (0, GOOD, "")
    gc.collect()  # a connection that was left open leaves files beside the database
    assert contents(tmp_path / "state") == before


def test_check_leaves_another_program_s_database_as_it_is_byte_for_byte(
    check: Check, tmp_path: Path
) -> None:
    """An older Clara's: it is not ours to turn to write-ahead logging before we use it."""
    old = tmp_path / "old"
    old.mkdir()
    with sqlite3.connect(old / "clara.db") as connection:
        connection.execute("CREATE TABLE sessions (id TEXT)")
    connection.close()
    before = contents(old)
    assert check(DATABASE_URL=f"sqlite:///{old}/clara.db") == (0, GOOD, "")
    assert contents(old) == before


def test_check_leaves_an_empty_file_empty(check: Check, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "test.db").touch()
    check(DATABASE_URL=f"sqlite:///{tmp_path}/empty/test.db")
    assert contents(tmp_path / "empty") == {"test.db": b""}


def test_check_does_not_wait_for_a_daemon_that_writes(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clarad.store.engine.BUSY_TIMEOUT", 0)
    (tmp_path / "state").mkdir()
    do(f"sqlite:///{tmp_path}/state/clarad.db")
    daemon = sqlite3.connect(tmp_path / "state" / "clarad.db", isolation_level=None)
    daemon.execute("BEGIN IMMEDIATE")
    said = check()
    daemon.close()
    assert said == (0, GOOD, "")


# --- sandboxes -----------------------------------------------------------------------------------


def test_an_engine_that_is_not_there_is_said(check: Check) -> None:
    status, out, err = check(SANDBOX_MODE="docker", DOCKER_HOST="unix:///run/no-docker")
    assert (status, out) == (1, "")
    assert err == (
        "clarad: Docker does not answer at unix:///run/no-docker: start it, or set DOCKER_HOST\n"
    )


def test_an_image_that_is_not_there_is_said(check: Check, mode: str) -> None:
    images = {"DOCKER_SANDBOX_IMAGE": "python:0.9", "INCUS_SANDBOX_IMAGE": "images:debian/0/cloud"}
    status, _, err = check(**engines.variables(mode, **images))
    assert status == 1
    assert "fetch it with" in err


def test_an_engine_that_has_all_is_good(check: Check, mode: str) -> None:
    assert check(**engines.variables(mode, CLARA_RESPONDER="tools")) == (0, GOOD, "")


def test_an_engine_that_is_not_wanted_is_not_asked(check: Check) -> None:
    assert check(DOCKER_HOST="unix:///run/no-docker") == (0, GOOD, "")


def test_settings_and_engine_are_complained_of_together(check: Check) -> None:
    _, _, err = check(SANDBOX_MODE="incus", INCUS_SOCKET="/run/no-incus", SANDBOX_PIDS="1")
    assert [line.partition(":")[0] for line in err.splitlines()] == ["clarad"] * 2
    assert "SANDBOX_PIDS" in err
    assert "Incus does not answer at /run/no-incus" in err
