"""`clarad send`: one message, for scripts."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from clarad.cli import connect, main
from tests import certificates
from tests.daemon_process import PATIENCE, Process, clarad, daemon, environment

SCRIPT = """
case "$CLARA_CONTENT" in
    fail) echo 'no such luck' >&2; exit 3;;
    hold) echo begun; sleep 1000;;
    *) printf '%s' "$CLARA_CONTENT";;
esac
"""


COUNT = "SELECT count(*) FROM clarad_messages"


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    settings = {"CLARA_RESPONDER": "command", "CLARA_RESPONDER_COMMAND": SCRIPT}
    with daemon(tmp_path_factory.mktemp("state"), **settings) as running:
        yield running


def test_the_answer_is_on_standard_output(process: Process) -> None:
    done = clarad("send", "hello there", env=process.environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello there\n", "")


def test_the_message_may_come_from_standard_input(process: Process) -> None:
    done = clarad("send", env=process.environment, stdin="from a pipe")
    assert (done.returncode, done.stdout) == (0, "from a pipe\n")


def test_an_error_is_on_standard_error_and_in_the_exit_status(process: Process) -> None:
    done = clarad("send", "fail", env=process.environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "clarad: no such luck\n"


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")]
)
def test_a_signal_cancels_the_message_and_is_named(
    process: Process, number: signal.Signals, reason: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "clarad", "send", "hold"],
        env=process.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as sending:
        assert sending.stdout is not None
        assert sending.stdout.readline() == "begun\n"
        sending.send_signal(number)
        _, errors = sending.communicate(timeout=PATIENCE)
    assert sending.returncode == 1
    assert errors == f"clarad: cancelled: {reason}\n"
    process.wait_for_log("message:cancelled")


def test_a_message_that_the_daemon_will_still_run_has_an_exit_status_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(connect, "PATIENCE", 0.1)
    responder = {"CLARA_RESPONDER": "command", "CLARA_RESPONDER_COMMAND": SCRIPT}
    with daemon(tmp_path, **responder, CLARA_DRAIN_TIMEOUT="0") as process:
        for name, value in process.environment.items():
            monkeypatch.setenv(name, value)
        words = [sys.executable, "-m", "clarad", "send", "--channel", "c", "hold"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as first:
            assert first.stdout is not None
            assert first.stdout.readline() == b"begun\n"

            def stop_when_it_waits() -> None:
                with closing(sqlite3.connect(tmp_path / "clarad.db")) as database:
                    while database.execute(COUNT).fetchone() != (2,):
                        time.sleep(0.01)
                process.signal(signal.SIGTERM)

            with ThreadPoolExecutor() as beside:
                beside.submit(stop_when_it_waits)
                status = main(["send", "--channel", "c", "hello"])
            first.wait(PATIENCE)
    assert status == os.EX_TEMPFAIL
    assert "answers it after its next start" in capsys.readouterr().err


def test_a_daemon_with_tls_is_trusted_by_the_certificate_in_its_settings(tmp_path: Path) -> None:
    made = certificates.make(tmp_path)
    settings = {
        "CLARA_GATEWAY_TLS_CERT": f"{made.certificate}",
        "CLARA_GATEWAY_TLS_KEY": f"{made.key}",
    }
    with daemon(tmp_path / "state", **settings) as process:
        done = clarad("send", "hello", env=process.environment)
        assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")
        made_later = certificates.make(tmp_path, "other")
        stranger = process.environment | {
            "CLARA_GATEWAY_TLS_CERT": f"{made_later.certificate}",
            "CLARA_GATEWAY_TLS_KEY": f"{made_later.key}",
        }
        refused = clarad("send", "hello", env=stranger)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "is not trusted: " in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_a_token_can_be_shown_in_place_of_the_secret(tmp_path: Path) -> None:
    with daemon(tmp_path / "state") as process:
        token = clarad("tokens", "create", "mine", "--yes", env=process.environment).stdout.strip()
        refused = clarad("send", "hello", env=process.environment)
        done = clarad("send", "hello", env=process.environment | {"CLARA_GATEWAY_TOKEN": token})
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "A token is needed" in refused.stderr
    assert "set CLARA_GATEWAY_SECRET or CLARA_GATEWAY_TOKEN" in refused.stderr
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")


def test_a_socket_file_will_do(tmp_path: Path) -> None:
    path = tmp_path / "gateway.sock"
    with daemon(tmp_path / "state", CLARA_GATEWAY_SOCKET=f"{path}") as process:
        done = clarad("send", "--url", f"ws+unix:{path}", "hello", env=process.environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")


def test_no_daemon_is_said_in_one_line(tmp_path: Path) -> None:
    done = clarad("send", "hello", env=environment(tmp_path, CLARA_GATEWAY_PORT="1"))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "is the daemon running?" in done.stderr


def test_a_wrong_secret_is_said_in_one_line(tmp_path: Path) -> None:
    with daemon(tmp_path, CLARA_GATEWAY_SECRET="right") as process:
        done = clarad("send", "x", env=process.environment | {"CLARA_GATEWAY_SECRET": "wrong"})
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert "CLARA_GATEWAY_SECRET" in done.stderr
        done = clarad("send", "x", env=process.environment)
        assert (done.returncode, done.stdout) == (0, "x\n")


@pytest.mark.parametrize("url", ["nonsense", "http://127.0.0.1:1", "ws://127.0.0.1:x"])
def test_an_address_that_is_none_is_said_in_one_line(tmp_path: Path, url: str) -> None:
    done = clarad("send", "--url", url, "hello", env=environment(tmp_path))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr
