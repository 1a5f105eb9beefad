"""The log of a whole daemon: in a terminal, in a pipe, as JSON, and in the journal."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from clarad.systemd import catalogue
from clarad.systemd.catalogue import Entry
from tests import daemon_process
from tests.installation import Installation
from tests.journald import Journald, journald

HOOKS: Final = """\
- {name: greet, event: gateway:startup, command: "echo hello; echo oops >&2; exit 3"}
"""
RUN: Final = """
import sys
from clarad.systemd import journal
journal.SOCKET = sys.argv[1]
from clarad.cli import main
sys.exit(main(["run"]))
"""
SECRET: Final = "a-secret-of-the-gateway"


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    """An installation with a hook that fails."""
    made = Installation(tmp_path)
    made.write(hooks=HOOKS)
    return made


class Journaled:
    """A daemon whose standard error leads into a journal, as systemd would start it."""

    def __init__(self, installation: Installation, socket: str, **settings: str) -> None:
        read_end, write_end = os.pipe()
        found = os.fstat(write_end)
        stream = f"{found.st_dev}:{found.st_ino}"
        self.popen = subprocess.Popen(
            [sys.executable, "-c", RUN, socket],
            env=installation.environment(JOURNAL_STREAM=stream, **settings),
            stderr=write_end,
        )
        os.close(write_end)
        self._stderr = os.fdopen(read_end)

    def stop(self) -> str:
        """Stop it, and return what it wrote to standard error."""
        self.popen.terminate()
        with self._stderr:
            said = self._stderr.read()
        self.popen.wait(daemon_process.PATIENCE)
        return said


def of(records: list[dict[str, str]], entry: Entry) -> list[dict[str, str]]:
    return [record for record in records if record.get("MESSAGE_ID") == entry.message_id]


def read_until(daemon: Journald, text: str) -> list[dict[str, str]]:
    return daemon.read_until(text, daemon_process.PATIENCE)


def test_in_the_journal_records_have_their_fields(
    installation: Installation, tmp_path: Path
) -> None:
    with journald(tmp_path) as daemon:
        clarad = Journaled(installation, daemon.path)
        records = read_until(daemon, "hook greet failed")
        said = clarad.stop()
        records += read_until(daemon, "stopped")
    assert said == ""
    assert clarad.popen.returncode == 0
    (started,) = of(records, catalogue.DAEMON_STARTED)
    assert (started["PRIORITY"], started["SYSLOG_IDENTIFIER"]) == ("5", "clarad")
    assert started["CODE_FILE"].endswith("service.py")
    (failed,) = of(records, catalogue.HOOK_FAILED)
    assert (failed["PRIORITY"], failed["CLARA_HOOK"]) == ("4", "greet")
    out, err = [record for record in records if "CLARA_STREAM" in record]
    assert (out["MESSAGE"], out["PRIORITY"]) == ("hook greet: hello", "6")
    assert (err["MESSAGE"], err["PRIORITY"]) == ("hook greet: oops", "5")
    assert out["CLARA_RUN"] == err["CLARA_RUN"] == failed["CLARA_RUN"]
    (down,) = of(records, catalogue.GATEWAY_SHUTDOWN)
    assert down["CLARA_EVENT_TYPE"] == "gateway:shutdown"


def test_why_the_daemon_does_not_start_is_in_the_journal_with_what_to_do(
    installation: Installation, tmp_path: Path
) -> None:
    with journald(tmp_path) as daemon:
        clarad = Journaled(installation, daemon.path, CLARA_GATEWAY_PORT="x")
        (refused,) = read_until(daemon, "CLARA_GATEWAY_PORT='x': write a number")
        assert clarad.popen.wait(daemon_process.PATIENCE) == 78
        assert clarad.stop() == ""
    assert refused["MESSAGE_ID"] == catalogue.CONFIG_REFUSED.message_id


def test_a_journal_that_stands_still_does_not_hang_the_stop(
    installation: Installation, tmp_path: Path
) -> None:
    with journald(tmp_path) as daemon:
        clarad = Journaled(installation, daemon.path, CLARA_LOG_LEVEL="DEBUG")
        read_until(daemon, "listening on")
        daemon.fill()
        clarad.stop()
        assert clarad.popen.returncode == 0


def test_without_a_journal_the_log_is_text_and_says_why(
    installation: Installation, tmp_path: Path
) -> None:
    clarad = Journaled(installation, str(tmp_path / "nothing"), CLARA_GATEWAY_PORT="x")
    assert clarad.popen.wait(daemon_process.PATIENCE) == 78
    first, second = clarad.stop().splitlines()
    assert "WARNING the journal cannot be reached at " in first
    assert second.startswith("clarad: CLARA_GATEWAY_PORT='x': ")


def test_as_json_every_line_is_an_object(installation: Installation) -> None:
    with installation.daemon(CLARA_LOG_FORMAT="json") as daemon:
        daemon.wait_for_log("hook greet failed")
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        records = [json.loads(line) for line in daemon.log.splitlines()]
    assert "hook greet: hello" in [record["message"] for record in records]
    assert records[-1]["message"] == "stopped"
    assert records[-1]["message_id"] == catalogue.DAEMON_STOPPED.message_id


def test_in_text_what_commands_write_is_shown_at_debug_only(installation: Installation) -> None:
    for level, shown in (("INFO", False), ("DEBUG", True)):
        with installation.daemon(CLARA_LOG_LEVEL=level) as daemon:
            daemon.wait_for_log("hook greet failed")
            assert ("hook greet: hello" in daemon.log) is shown


def test_a_format_that_there_is_not_is_refused(installation: Installation) -> None:
    said = installation.clarad("run", CLARA_LOG_FORMAT="jsno")
    assert said.status == 78
    assert said.err == (
        "clarad: CLARA_LOG_FORMAT='jsno': did you mean json? "
        "write one of auto, text, json, journal\n"
    )


@pytest.mark.parametrize("style", ["text", "json"])
def test_secrets_are_in_no_record(installation: Installation, style: str) -> None:
    url = "postgresql://clara:hunter2-of-the-database@127.0.0.1:1/clara"
    installation.write(
        hooks='- {name: tell, event: gateway:startup, env: {MY_TOKEN: tok-123456}, command: "env"}'
    )
    said = installation.clarad("run", DATABASE_URL=url, CLARA_LOG_FORMAT=style)
    assert said.status == 74
    assert "hunter2" not in said.err
    settings = {
        "CLARA_LOG_FORMAT": style,
        "CLARA_LOG_LEVEL": "DEBUG",
        "WEATHER_API_KEY": "k-987654",
    }
    with installation.daemon(CLARA_GATEWAY_SECRET=SECRET, **settings) as daemon:
        daemon.wait_for_log("hook tell ran")
        assert "hook tell: MY_TOKEN=[secret]" in daemon.log
        assert "hook tell: WEATHER_API_KEY=[secret]" in daemon.log
        for secret in ("tok-123456", "k-987654", SECRET):
            assert secret not in daemon.log


# --- without a daemon ----------------------------------------------------------------------------


def python(program: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=daemon_process.PATIENCE,
    )


def test_the_log_goes_to_standard_error_and_libraries_are_quiet_in_it() -> None:
    done = python(
        "import logging; from clarad import log; log.set_up('INFO');"
        "logging.getLogger('clarad').info('hello');"
        "logging.getLogger('clarad').debug('chatter');"
        "logging.getLogger('alembic.runtime').info('chatter')"
    )
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.endswith(" INFO    hello\n")


def test_what_libraries_say_of_a_webhook_is_not_logged_since_its_address_is_a_secret() -> None:
    done = python(
        "import logging; from clarad.log import set_up; set_up('DEBUG'); "
        "print([logging.getLogger(n).isEnabledFor(logging.INFO) for n in ('httpx', 'httpcore')])"
    )
    assert done.stdout == "[False, False]\n"


def test_warnings_are_records() -> None:
    done = python(
        "import warnings; from clarad import log; log.set_up('INFO'); warnings.warn('old')"
    )
    assert "WARNING" in done.stderr
    assert "UserWarning: old" in done.stderr


def test_the_level_can_be_changed_while_it_runs() -> None:
    done = python(
        "import logging; from clarad import log; log.set_up('ERROR')\n"
        "logging.info('one'); log.set_level('INFO'); logging.info('two')\n"
        "log.set_level('ERROR'); logging.info('three')"
    )
    assert [line.split()[-1] for line in done.stderr.splitlines()] == ["two"]


def test_what_becomes_a_secret_while_it_runs_is_hidden_from_then_on() -> None:
    done = python(
        "import logging; from clarad import log; log.set_up('INFO', secrets=['first-secret'])\n"
        "log.hide(['second-secret']); logging.info('first-secret second-secret')"
    )
    assert done.stderr.endswith(" INFO    [secret] [secret]\n")


def test_what_is_queued_is_written_when_the_process_fails() -> None:
    done = python(
        "import logging; from clarad import log; log.set_up('INFO')\n"
        "for n in range(1000): logging.info('%d', n)\n"
        "raise SystemError('boom')"
    )
    lines = [line for line in done.stderr.splitlines() if " INFO " in line]
    assert [int(line.split()[-1]) for line in lines] == list(range(1000))


def test_a_daemon_without_standard_error_writes_its_log_into_no_other_file(tmp_path: Path) -> None:
    other = tmp_path / "other"
    program = (
        "import logging; from clarad import log\n"
        f"file = open({str(other)!r}, 'w'); assert file.fileno() == 2\n"
        "log.set_up('INFO'); logging.info('hello'); log.close(); file.close()"
    )
    words = ["/bin/sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", program]
    assert subprocess.run(words, check=False, timeout=daemon_process.PATIENCE).returncode == 0
    assert other.read_text() == ""


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_levels_have_colours_in_a_terminal_that_wants_them(
    variables: dict[str, str], coloured: bool
) -> None:
    ours, theirs = os.openpty()
    program = "import logging; from clarad import log; log.set_up('INFO'); logging.error('oh')"
    clean = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm"}
    subprocess.run(
        [sys.executable, "-c", program],
        env=clean | variables,
        stderr=theirs,
        check=True,
        timeout=daemon_process.PATIENCE,
    )
    assert (b"\x1b[31mERROR" in os.read(ours, 4096)) is coloured
    os.close(ours)
    os.close(theirs)


def test_a_terminal_that_is_held_stalls_nobody() -> None:
    ours, theirs = os.openpty()  # of which nobody reads, as after Ctrl-S
    program = (
        "import logging; from clarad import log; log.set_up('INFO')\n"
        "for n in range(30000): logging.info('%d', n)\n"
        "print('went on', flush=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        stderr=theirs,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=daemon_process.PATIENCE,
    )
    os.close(ours)
    os.close(theirs)
    assert (done.returncode, done.stdout) == (0, "went on\n")
