"""A daemon whose disk is full, or that may not write its database; tests/soak has it under load."""

import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
import trio

from tests.daemon_process import PATIENCE, Process, clarad, daemon, environment
from tests.peer import connect
from tests.systemd.manager import Manager

BOUND_BY_MODES: Final = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
"""Has root bound by the modes of files, as everybody else is."""


@contextmanager
def no_room(process: Process, above: int = 4096) -> Iterator[None]:
    """Let the daemon's files not grow above so many bytes within the block."""
    before = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (above, before[1]))
    yield
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, before)


async def test_on_a_full_disk_a_message_is_refused_and_may_be_sent_again(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    with daemon(tmp_path) as process:
        peer = await connect(nursery, process.url)
        await peer.register()
        with no_room(process):
            await peer.ask("m1", "hello")
            outcome = await peer.outcome_of("m1")
            assert (outcome["code"], outcome["recoverable"]) == ("processing_error", True)
        await peer.ask("m1", "hello")
        assert (await peer.outcome_of("m1"))["full_text"] == "hello"
        await peer.drop()
        assert "Traceback" not in process.log


async def test_while_the_disk_is_full_status_and_systemd_say_so_and_since_when(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    with (
        Manager(tmp_path / "notify") as manager,
        daemon(tmp_path, NOTIFY_SOCKET=manager.address) as process,
    ):
        with no_room(process):
            peer = await connect(nursery, process.url)
            await peer.send("register", node_id="node-1", platform="test")
            refused = await peer.receive()
            assert (refused["code"], refused["recoverable"]) == ("processing_error", True)
            line = (await manager.until("STATUS", "the database fails since ")).assignments
            said = clarad("status", env=process.environment)
            assert (said.returncode, said.stdout) == (1, "")
            fails = re.search(r"the database fails since \d\d:\d\d \(.+\)", said.stderr)
            assert fails is not None, said.stderr
            assert line["STATUS"].startswith(fails[0])
        while "fails" in (await manager.until("STATUS")).assignments["STATUS"]:
            pass
        assert clarad("status", env=process.environment).returncode == 0
        await peer.register()
        await peer.drop()


def test_a_full_disk_that_nobody_has_met_yet_is_found_by_who_asks(tmp_path: Path) -> None:
    with daemon(tmp_path) as process, no_room(process):
        said = clarad("status", env=process.environment)
        assert said.returncode == 1
        assert "the database fails since " in said.stderr


@pytest.mark.parametrize("letter", ["x", "漢"])
async def test_room_for_less_than_what_has_failed_is_not_taken_for_enough(
    tmp_path: Path, nursery: trio.Nursery, letter: str
) -> None:
    with daemon(tmp_path) as process:
        peer = await connect(nursery, process.url)
        await peer.register()
        log = tmp_path / "clarad.db-wal"
        size = len((letter * 200_000).encode())
        with no_room(process, above=log.stat().st_size + size // 2):
            await peer.ask("m1", letter * 200_000)
            assert (await peer.outcome_of("m1"))["code"] == "processing_error"
            for _ in range(2):
                said = clarad("status", env=process.environment)
                assert (said.returncode, said.stdout) == (1, "")
                assert "the database fails since " in said.stderr
        assert clarad("status", env=process.environment).returncode == 0
        await peer.drop()


async def test_an_answer_that_finds_the_disk_full_waits_for_room(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    gate = tmp_path / "gate"
    command = f"printf begun; while [ ! -e {gate} ]; do sleep 0.01; done; printf ' ended'"
    responder = {"CLARA_RESPONDER": "command", "CLARA_RESPONDER_COMMAND": command}
    with daemon(tmp_path / "state", **responder) as process:
        peer = await connect(nursery, process.url)
        await peer.register()
        await peer.ask("m1")
        while (await peer.receive())["type"] != "response_chunk":
            pass
        with no_room(process):
            gate.touch()
            await trio.to_thread.run_sync(process.wait_for_log, "the answer to 'm1' waits")
        assert (await peer.outcome_of("m1"))["full_text"] == "begun ended"
        await peer.drop()


def test_a_command_that_finds_the_disk_full_says_to_make_room(tmp_path: Path) -> None:
    env = environment(tmp_path)
    assert clarad("migrate", env=env).returncode == 0
    done = subprocess.run(
        ["prlimit", "--fsize=4096", sys.executable, "-m", "clarad", "tokens", "create", "x"],
        env=env | {"CLARA_GATEWAY_SECRET": "a long random word"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    said = f"clarad: {tmp_path}/clarad.db: disk I/O error; make room on its disk\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


@pytest.mark.parametrize("which", ["file", "directory"])
def test_a_database_that_may_not_be_written_is_one_line_that_names_it(
    tmp_path: Path, which: str
) -> None:
    database = tmp_path / "database" / "clarad.db"
    database.parent.mkdir()
    env = environment(tmp_path / "state", DATABASE_URL=f"sqlite:///{database}")
    assert clarad("migrate", env=env).returncode == 0
    place = {"file": database, "directory": database.parent}[which]
    place.chmod(0o555)
    done = subprocess.run(
        [*(BOUND_BY_MODES if os.geteuid() == 0 else ()), sys.executable, "-m", "clarad", "run"],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    place.chmod(0o755)
    line, *more = done.stderr.splitlines()
    assert (done.returncode, done.stdout, more) == (74, "", [])
    assert line.startswith(f"clarad: cannot write to {place};")


def test_a_file_of_the_state_directory_that_cannot_be_written_is_one_line_that_names_it(
    tmp_path: Path,
) -> None:
    place = tmp_path / "gateway.json"
    place.mkdir()
    env = environment(tmp_path)
    assert clarad("migrate", env=env).returncode == 0
    done = clarad("run", env=env)
    assert done.returncode == 74
    assert done.stderr == f"clarad: cannot write {place}: Is a directory\n"
