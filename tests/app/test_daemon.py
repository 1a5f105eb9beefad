"""The daemon as a process: how it starts, what it says when it cannot, and that a stop stops."""

import signal
import socket
import sqlite3
from pathlib import Path

import pytest
import trio

from tests.daemon_process import Marker, Process, clarad, daemon, environment
from tests.peer import Peer, connect
from tests.sandbox import engines


async def node(nursery: trio.Nursery, process: Process) -> Peer:
    peer = await connect(nursery, process.url)
    await peer.register("node-1", ("streaming", "accepted"))
    return peer


async def start_message(peer: Peer, request_id: str = "m1") -> None:
    await peer.ask(request_id)
    while (await peer.receive())["type"] != "response_chunk":
        pass


# --- starting ------------------------------------------------------------------------------------


def test_the_last_line_says_what_to_type_next(tmp_path: Path) -> None:
    with daemon(tmp_path) as process:
        assert process.log.splitlines()[-1].endswith("python -m clarad chat")


def test_each_start_that_cannot_be_is_one_line_and_a_code_of_its_own(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = clarad("run", env=environment(tmp_path, CLARA_GATEWAY_PORT=port))
    assert refused.returncode == 69
    assert_one_line(refused.stderr.splitlines()[-1:], "CLARA_GATEWAY_PORT")
    assert "Traceback" not in refused.stderr


def test_bad_settings_are_all_named_at_once(tmp_path: Path) -> None:
    env = environment(tmp_path, CLARA_GATEWAY_PORT="many", CLARA_SESSION_TIMEOUT="never")
    refused = clarad("run", env=env)
    assert refused.returncode == 78
    assert len(refused.stderr.splitlines()) == 2
    assert "CLARA_GATEWAY_PORT" in refused.stderr
    assert "CLARA_SESSION_TIMEOUT" in refused.stderr


def test_an_address_that_others_can_reach_needs_a_secret(tmp_path: Path) -> None:
    refused = clarad("run", env=environment(tmp_path, CLARA_GATEWAY_HOST="0.0.0.0"))
    assert refused.returncode == 78
    assert_one_line(refused.stderr.splitlines(), "CLARA_GATEWAY_SECRET")


def test_two_daemons_do_not_share_a_state_directory(tmp_path: Path) -> None:
    with daemon(tmp_path) as first:
        refused = clarad("run", env=first.environment)
        assert refused.returncode == 75
        assert_one_line(refused.stderr.splitlines(), str(first.pid))


def test_a_state_directory_that_cannot_be_is_named(tmp_path: Path) -> None:
    refused = clarad("run", env=environment(Path("/dev/null/state")))
    assert refused.returncode == 75
    assert_one_line(refused.stderr.splitlines(), "CLARA_STATE_DIR")


def test_a_database_that_somebody_holds_is_named(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "clarad.db", isolation_level=None) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        refused = clarad("run", env=environment(tmp_path))
        holder.execute("ROLLBACK")
    holder.close()
    assert refused.returncode == 74
    assert_one_line(refused.stderr.splitlines(), "locked")


def test_a_database_that_is_behind_is_refused_if_it_may_not_be_migrated(tmp_path: Path) -> None:
    refused = clarad("run", env=environment(tmp_path, CLARA_AUTO_MIGRATE="0"))
    assert refused.returncode == 74
    assert_one_line(refused.stderr.splitlines(), "clarad migrate")


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "clarad.db").write_text("this is not a database, " * 100)
    refused = clarad("run", env=environment(tmp_path))
    assert refused.returncode == 65
    assert_one_line(refused.stderr.splitlines(), "not a database")


def test_variables_of_the_removed_system_are_warned_about_once(tmp_path: Path) -> None:
    with daemon(tmp_path, ORS_ENABLED="true", PROACTIVE_INTERVAL="5") as process:
        for name in ("ORS_ENABLED", "PROACTIVE_INTERVAL"):
            assert process.log.count(name) == 1


NOWHERE = {"DOCKER_HOST": "unix:///run/no-docker", "INCUS_SOCKET": "/run/no-incus"}
NO_IMAGE = {"DOCKER_SANDBOX_IMAGE": "python:0.9", "INCUS_SANDBOX_IMAGE": "images:debian/0/cloud"}


@pytest.mark.parametrize(
    ("sandbox_mode", "mend"),
    [
        ("docker", "start it, or set DOCKER_HOST"),
        ("incus", "start it, or set INCUS_SOCKET"),
        ("incus-vm", "start it, or set INCUS_SOCKET"),
        ("auto", "start it, or set DOCKER_HOST"),
    ],
)
def test_without_the_engine_that_is_wanted_it_does_not_start(
    tmp_path: Path, sandbox_mode: str, mend: str
) -> None:
    assert_no_sandbox(tmp_path, mend, SANDBOX_MODE=sandbox_mode, **NOWHERE)


def test_without_the_image_it_does_not_start(tmp_path: Path, mode: str) -> None:
    fetch = {"docker": "docker pull python:0.9", "incus": "incus image copy images:debian/0/cloud"}
    assert_no_sandbox(tmp_path, fetch[mode], **engines.variables(mode, **NO_IMAGE))


@pytest.mark.parametrize("mode", engines.only("incus"), indirect=True)
def test_a_container_does_not_stand_in_for_a_virtual_machine(tmp_path: Path, mode: str) -> None:
    settings = engines.variables(mode, SANDBOX_MODE="incus-vm")
    assert_no_sandbox(tmp_path, "cannot run virtual machines: ", **settings)


def assert_no_sandbox(tmp_path: Path, word: str, **settings: str) -> None:
    """Whether it ends with one line that has the reason and the mend, and has not listened."""
    env = environment(tmp_path, CLARA_LOG_LEVEL="WARNING", **settings)
    refused = clarad("run", env=env)
    assert refused.returncode == 71
    assert_one_line(refused.stderr.splitlines(), word)
    assert not (tmp_path / "gateway.json").exists()


def assert_one_line(lines: list[str], word: str) -> None:
    assert len(lines) == 1, lines
    assert lines[0].startswith("clarad: ")
    assert word in lines[0]


# --- stopping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_it_and_says_good_bye(
    tmp_path: Path, nursery: trio.Nursery, number: signal.Signals
) -> None:
    with daemon(tmp_path) as process:
        peer = await node(nursery, process)
        process.signal(number)
        assert await peer.close_code() == 1001
        await peer.drop()
        assert process.wait() == 0
        assert "Traceback" not in process.log
        assert not (tmp_path / "gateway.json").exists()


async def test_a_stop_waits_for_the_answer(tmp_path: Path, nursery: trio.Nursery) -> None:
    gate = tmp_path / "gate"
    command = f"echo started; while [ ! -e {gate} ]; do sleep 0.01; done; echo done"
    settings = {"CLARA_RESPONDER": "command", "CLARA_RESPONDER_COMMAND": command}
    with daemon(tmp_path, **settings) as process:
        peer = await node(nursery, process)
        await start_message(peer)
        process.signal(signal.SIGTERM)
        process.wait_for_log("stopping")
        await peer.ask("late")
        assert (await peer.outcome_of("late"))["code"] == "shutting_down"
        gate.touch()
        assert (await peer.outcome_of("m1"))["full_text"] == "started\ndone\n"
        assert await peer.close_code() == 1001
        await peer.drop()
        assert process.wait() == 0


async def test_a_message_that_waits_when_it_stops_is_answered_after_the_next_start(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    command = "echo started; exec sleep 1000"
    settings = {"CLARA_RESPONDER": "command", "CLARA_RESPONDER_COMMAND": command}
    with daemon(tmp_path, **settings, CLARA_DRAIN_TIMEOUT="0.1") as process:
        peer = await node(nursery, process)
        await start_message(peer, "runs")
        await peer.ask("waits")
        while (await peer.receive())["type"] != "status":
            pass
        process.signal(signal.SIGTERM)
        assert (await peer.outcome_of("runs"))["type"] == "cancelled"
        assert await peer.close_code() == 1001
        await peer.drop()
        assert process.wait() == 0
    with daemon(tmp_path) as process:
        peer = await node(nursery, process)
        assert (await peer.outcome_of("waits"))["full_text"] == "hello"
        await peer.drop()


@pytest.mark.parametrize("how", ["drain timeout", "second signal"])
async def test_a_stop_that_has_to_cancel_leaves_no_process(
    tmp_path: Path, nursery: trio.Nursery, marker: Marker, how: str
) -> None:
    sleep = f"sleep {marker.text}"
    command = f"echo started; (trap '' TERM; {sleep}; :) & {sleep}; :"
    settings = {"CLARA_RESPONDER": "command", "CLARA_RESPONDER_COMMAND": command}
    settings["CLARA_DRAIN_TIMEOUT"] = "0.1" if how == "drain timeout" else "1000"
    with daemon(tmp_path, **settings) as process:
        peer = await node(nursery, process)
        await start_message(peer)
        assert marker.alive
        process.signal(signal.SIGTERM)
        if how == "second signal":
            process.wait_for_log("stopping")
            process.signal(signal.SIGTERM)
        outcome = await peer.outcome_of("m1")
        assert outcome["type"] == "cancelled"
        assert outcome["stopped"]["processes"] >= 3
        assert await peer.close_code() == 1001
        await peer.drop()
        assert process.wait() == 0
        assert marker.alive == []


# --- being killed --------------------------------------------------------------------------------


async def test_after_a_kill_every_accepted_message_has_an_end(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    gate = tmp_path / "gate"
    command = f"echo started; while [ ! -e {gate} ]; do sleep 0.01; done"
    settings = {"CLARA_RESPONDER": "command", "CLARA_RESPONDER_COMMAND": command}
    with daemon(tmp_path, **settings) as process:
        peer = await node(nursery, process)
        await start_message(peer, "begun")
        await peer.ask("waiting")
        while (await peer.receive())["type"] != "status":
            pass
        process.kill()
        await peer.drop()
    gate.touch()
    with daemon(tmp_path, **settings) as process:
        peer = await node(nursery, process)
        await peer.ask("begun")
        await peer.ask("waiting")
        begun, waiting = await peer.outcomes_of("begun", "waiting")
        assert (begun["code"], begun["recoverable"]) == ("interrupted", True)
        assert waiting["type"] == "response_end", process.log
        await peer.drop()
    database = sqlite3.connect(tmp_path / "clarad.db")
    rows = database.execute("SELECT request_id, outcome FROM clarad_messages ORDER BY id")
    assert rows.fetchall() == [("begun", "interrupted"), ("waiting", "completed")]
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
