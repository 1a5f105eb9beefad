"""`clarad chat` in a terminal of its own."""

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import pexpect
import pytest

from tests.daemon_process import PATIENCE, Process, daemon

SCRIPT = r"""
case "$CLARA_CONTENT" in
    fail) echo 'no such luck' >&2; exit 3;;
    hold) printf 'begun '; sleep 1000;;
    quiet) sleep 1000;;
    steer) printf 'clear \033[2J the screen';;
    turn) printf 'rm \342\200\256fr-';;
    stuck) trap '' TERM; printf 'begun '; sleep 1000;;
    *) printf 'you said %s' "$CLARA_CONTENT";;
esac
"""


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    settings = {"CLARA_RESPONDER": "command", "CLARA_RESPONDER_COMMAND": SCRIPT}
    with daemon(tmp_path_factory.mktemp("state"), **settings) as running:
        yield running


@contextmanager
def terminal(process: Process) -> "Iterator[pexpect.spawn[str]]":
    words = ["-m", "clarad", "chat", "--channel", uuid4().hex]
    spawned = pexpect.spawn(
        sys.executable, words, env=process.environment, encoding="utf-8", timeout=PATIENCE
    )
    try:
        spawned.expect("> ")
        yield spawned
    finally:
        spawned.close(force=True)


def test_an_answer_is_shown_and_the_next_line_is_asked_for(process: Process) -> None:
    with terminal(process) as chat:
        chat.sendline("hello")
        chat.expect("you said hello")
        chat.expect("> ")


def test_ctrl_c_cancels_the_message_and_does_not_leave(process: Process) -> None:
    with terminal(process) as chat:
        chat.sendline("hold")
        chat.expect("begun")
        chat.sendintr()
        chat.expect("cancelling")
        chat.expect("cancelled: Ctrl-C")
        chat.expect("> ")
        chat.sendline("still here")
        chat.expect("you said still here")


def test_ctrl_c_at_the_prompt_says_how_to_leave(process: Process) -> None:
    with terminal(process) as chat:
        chat.sendintr()
        chat.expect("Ctrl-D leaves")
        chat.sendline("hello")
        chat.expect("you said hello")


def test_ctrl_d_leaves(process: Process) -> None:
    with terminal(process) as chat:
        chat.sendeof()
        chat.expect(pexpect.EOF)
        chat.wait()
        assert chat.exitstatus == 0


def test_an_error_is_shown_and_the_conversation_goes_on(process: Process) -> None:
    with terminal(process) as chat:
        chat.sendline("fail")
        chat.expect("error: no such luck")
        chat.expect("> ")


def test_a_spinner_turns_while_nothing_comes(process: Process) -> None:
    with terminal(process) as chat:
        chat.sendline("quiet")
        chat.expect("[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]")
        chat.sendintr()
        chat.expect("cancelled")


def test_an_answer_cannot_steer_the_terminal(process: Process) -> None:
    with terminal(process) as chat:
        chat.sendline("steer")
        chat.expect("clear ␛\\[2J the screen")


def test_an_answer_cannot_turn_the_order_of_what_is_shown(process: Process) -> None:
    with terminal(process) as chat:
        chat.sendline("turn")
        chat.expect("rm �fr-")


def test_a_second_ctrl_c_leaves_at_once(process: Process) -> None:
    with terminal(process) as chat:
        chat.sendline("stuck")
        chat.expect("begun")
        chat.sendintr()
        chat.expect("cancelling")
        chat.sendintr()
        chat.expect(pexpect.EOF)


@pytest.mark.parametrize("key", ["intr", "eof"])
def test_while_the_daemon_is_away_ctrl_c_and_ctrl_d_leave_at_once(
    tmp_path_factory: pytest.TempPathFactory, key: str
) -> None:
    with daemon(tmp_path_factory.mktemp("state")) as process, terminal(process) as chat:
        process.kill()
        chat.expect("trying again")
        chat.sendline("hello")
        chat.expect("[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]")  # it has read the line, which Ctrl-C would take back
        getattr(chat, f"send{key}")()
        assert chat.expect(["was lost", pexpect.EOF]) == 1


def test_a_daemon_that_stops_is_said(tmp_path_factory: pytest.TempPathFactory) -> None:
    with daemon(tmp_path_factory.mktemp("state")) as process, terminal(process) as chat:
        process.kill()
        chat.sendline("hello")
        chat.expect("clarad: the connection to .* was lost")
        chat.expect(pexpect.EOF)
        chat.wait()
        assert chat.exitstatus == 1


def test_a_daemon_that_is_started_anew_goes_on_with_the_conversation(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    state_dir = tmp_path_factory.mktemp("state")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        fixed = {"CLARA_GATEWAY_PORT": f"{taken.getsockname()[1]}"}
    with daemon(state_dir, **fixed) as process, terminal(process) as chat:
        process.kill()
        chat.expect("was lost; trying again")
        chat.sendline("asked meanwhile")
        with daemon(state_dir, **fixed):
            chat.expect("connected to .* again")
            chat.expect("asked meanwhile")
