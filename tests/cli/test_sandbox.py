"""`clarad sandbox`: the sandboxes from the operator's side, with a daemon and without, on each
engine.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
import trio

from clarad.config import instance
from clarad.config.instance import lock_state_dir
from sandbox import choose_engine
from tests.daemon_process import PATIENCE, Marker
from tests.installation import Console, Installation, Said
from tests.sandbox import engines


@pytest.fixture(scope="module")
def installation(mode: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A daemon with sandboxes."""
    made = Installation(tmp_path_factory.mktemp(mode))
    with made.daemon(**engines.variables(mode, CLARA_RESPONDER="tools")):
        yield made


@pytest.fixture
def clarad(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Console:
    """Commands beside that daemon; they need none of its settings."""
    return Console(installation, monkeypatch, capsys)


@pytest.fixture
def alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Console:
    """Commands of an installation of the test's own; no daemon runs."""
    return Console(Installation(tmp_path), monkeypatch, capsys)


def refused(text: str) -> Said:
    """How a command ends that cannot do its work."""
    return Said(1, "", f"clarad: {text}\n")


def names(mode: str, label: str) -> list[str]:
    """Return the sandboxes on the engine that have this label."""

    async def ask() -> list[str]:
        engine = await choose_engine(engines.settings(mode), label)
        try:
            return await engine.names()
        finally:
            engine.close()

    return trio.run(ask)


def wait_until_dead(marker: Marker) -> None:
    """Wait for what the daemon does once it sees that a command has gone."""
    give_up_at = time.monotonic() + PATIENCE
    while marker.alive:
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def wait_until_none(mode: str, label: str) -> None:
    """Wait for what sandboxes do when their daemon has gone."""
    give_up_at = time.monotonic() + PATIENCE
    while names(mode, label):
        assert time.monotonic() < give_up_at
        time.sleep(0.05)


def read_until(stream: IO[str] | None, text: str) -> None:
    assert stream is not None
    heard = ""
    while text not in heard:
        line = stream.readline()
        assert line, heard
        heard += line


# --- status --------------------------------------------------------------------------------------


def test_status_shows_whose_sandboxes_there_are(clarad: Console) -> None:
    assert clarad("sandbox", "exec", "test-status", "--", "true").status == 0
    rows = clarad("sandbox", "status", "--json").rows
    [row] = [row for row in rows if row["owner"] == "test-status"]
    assert row.keys() == {"name", "owner", "running", "idle"}
    assert row["running"] == 0
    assert row["idle"] >= 0
    status, out, err = clarad("sandbox", "status")
    assert (status, err) == (0, "")
    head, *lines = out.splitlines()
    assert head.split() == ["name", "owner", "running", "idle"]
    assert [row["name"], "test-status", "0"] in [line.split()[:3] for line in lines]


def test_status_of_no_sandboxes_says_so(mode: str, alone: Console) -> None:
    with alone.installation.daemon(**engines.variables(mode)):
        assert alone("sandbox", "status") == Said(0, "none\n", "")
        assert alone("sandbox", "status", "--json") == Said(0, "", "")


# --- exec ----------------------------------------------------------------------------------------


def test_exec_prints_what_the_command_prints_and_exits_as_it_does(clarad: Console) -> None:
    script = "echo out; echo err >&2; exit 7"
    assert clarad("sandbox", "exec", "test-ann", "--", "sh", "-c", script) == Said(
        7, "out\n", "err\n"
    )


@pytest.mark.parametrize(
    ("argv", "out"),
    [
        (["printf", "%s|", "a b", "", "$HOME", "ä"], "a b||$HOME|ä|"),
        (["echo", "--", "--json", "-x"], "-- --json -x\n"),
        (["sh", "-c", "pwd; id -u"], "/home/sandbox\n1000\n"),
        (["printf", r"a\303"], "a\ufffd"),
        (["printf", r"a\0b"], "a\0b"),
    ],
)
def test_exec_passes_on_what_follows_the_dashes(clarad: Console, argv: list[str], out: str) -> None:
    assert clarad("sandbox", "exec", "test-ann", "--", *argv) == Said(0, out, "")


@pytest.mark.parametrize(("name", "status"), [("KILL", 137), ("TERM", 143)])
def test_a_signal_s_exit_status_is_the_shell_s(clarad: Console, name: str, status: int) -> None:
    said = clarad("sandbox", "exec", "test-ann", "--", "sh", "-c", f"kill -{name} $$")
    assert said.status == status


def test_a_command_that_is_not_there_is_said(clarad: Console) -> None:
    status, out, err = clarad("sandbox", "exec", "test-ann", "--", "no-such-command")
    assert (status, out) == (127, "")
    assert "no-such-command" in err


def test_exec_sees_what_the_owner_s_messages_have_left(clarad: Console) -> None:
    sent = clarad.installation.clarad("send", "--user", "ann", "/sh echo hers > note")
    assert sent.status == 0
    assert clarad("sandbox", "exec", "cli-ann", "--", "cat", "note") == Said(0, "hers\n", "")
    assert clarad("sandbox", "exec", "test-bob", "--", "cat", "note").status == 1


def test_exec_shows_the_beginning_and_the_end_of_much(clarad: Console) -> None:
    status, out, err = clarad("sandbox", "exec", "test-ann", "--", "seq", "100000")
    whole = "".join(f"{n}\n" for n in range(1, 100_001))
    assert status == 0
    assert out.startswith(whole[: 256 << 10])
    assert out.endswith(whole[-(4 << 10) :])
    assert err == f"clarad: {len(whole) - len(out)} bytes were cut out of the output\n"


def test_exec_says_that_memory_ran_out(clarad: Console) -> None:
    eater = "x = [bytearray(1 << 24) for _ in range(100)]"
    status, _, err = clarad("sandbox", "exec", "test-eater", "--", "python3", "-c", eater)
    assert status == 137
    assert err == "clarad: the sandbox ran out of memory\n"


def test_exec_streams(installation: Installation, clarad: Console) -> None:
    script = "echo ready; while [ ! -e gate ]; do sleep 0.01; done; echo done"
    with installation.start("sandbox", "exec", "test-gate", "--", "sh", "-c", script) as process:
        read_until(process.stdout, "ready\n")
        assert clarad("sandbox", "exec", "test-gate", "--", "touch", "gate").status == 0
        assert process.communicate(timeout=PATIENCE) == ("done\n", "")
        assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_exec_is_the_end_of_its_command(
    installation: Installation, marker: Marker, number: signal.Signals
) -> None:
    script = f"trap '' INT TERM; (setsid sleep {marker.text} &); echo ready; sleep {marker.text}"
    with installation.start("sandbox", "exec", "test-ann", "--", "sh", "-c", script) as process:
        read_until(process.stdout, "ready\n")
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
    assert (out, err) == ("", "")
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    wait_until_dead(marker)


def test_when_nobody_reads_the_command_ends(clarad: Console, marker: Marker) -> None:
    words = ("sandbox", "exec", "test-ann", "--", "yes", marker.text)
    assert clarad.installation.print_to_nobody(*words) == (141, "")
    wait_until_dead(marker)


def test_what_a_command_prints_does_not_steer_the_terminal(clarad: Console) -> None:
    ours, theirs = os.openpty()
    words = ("sandbox", "exec", "test-ann", "--", "printf", r"a\033[31m\rb")
    assert clarad.installation.print_to(theirs, *words) == (0, "")
    assert os.read(ours, 100).decode() == "a␛[31m␍b"
    os.close(ours)
    os.close(theirs)


def test_many_small_pieces_all_arrive(clarad: Console) -> None:
    script = "import os\nfor n in range(20000): os.write(1 + n % 2, b'.')"
    said = clarad("sandbox", "exec", "test-ann", "--", "python3", "-c", script)
    assert said == Said(0, "." * 10_000, "." * 10_000)


@pytest.mark.parametrize(
    "words", [[], ["exec"], ["exec", "", "--", "ls"], ["exec", "a" * 256, "ls"], ["reset"]]
)
def test_words_that_are_missing_are_said(alone: Console, words: list[str]) -> None:
    status, out, err = alone("sandbox", *words)
    assert (status, out) == (2, "")
    assert err.startswith("usage: clarad sandbox ")


@pytest.mark.parametrize("words", [["ann"], ["ann", "--"]])
def test_a_command_that_is_missing_is_said(alone: Console, words: list[str]) -> None:
    assert alone("sandbox", "exec", *words) == refused(
        "write the command after --: clarad sandbox exec OWNER -- CMD"
    )


def test_what_is_not_utf_8_is_refused(clarad: Console) -> None:
    said = clarad("sandbox", "exec", "ann", "--", "echo", "\udcff")
    assert said == refused("what is asked for is not UTF-8; write it in UTF-8")
    assert clarad("sandbox", "exec", "\udcff", "--", "echo").status == 2


def test_when_all_sandboxes_are_taken_it_says_so(mode: str, alone: Console) -> None:
    with alone.installation.daemon(**engines.variables(mode, SANDBOX_MAX="1")):
        assert alone("sandbox", "exec", "test-ann", "--", "true").status == 0
        status, out, err = alone("sandbox", "exec", "test-bob", "--", "true")
    assert (status, out) == (1, "")
    assert err.startswith("clarad: all 1 sandboxes are taken: ")


# --- reset ---------------------------------------------------------------------------------------


def test_reset_ends_a_sandbox_with_its_files(clarad: Console) -> None:
    assert clarad("sandbox", "exec", "test-reset", "--", "touch", "file").status == 0
    said = clarad("sandbox", "reset", "test-reset")
    assert said == Said(0, "test-reset has no sandbox any more; the next use makes a new one\n", "")
    assert "test-reset" not in clarad("sandbox", "status").out
    assert clarad("sandbox", "exec", "test-reset", "--", "ls") == Said(0, "", "")


# --- prune ---------------------------------------------------------------------------------------


def test_prune_removes_what_was_left_and_nothing_that_is_used(
    mode: str, installation: Installation, clarad: Console
) -> None:
    assert clarad("sandbox", "exec", "test-ann", "--", "touch", "kept").status == 0
    label = instance.label(installation.state_dir)
    engines.make_leftover(mode, label, f"{label}-left")
    assert clarad("sandbox", "prune").out == "removed 1 sandbox that had been left behind\n"
    assert clarad("sandbox", "prune").out == "removed 0 sandboxes that had been left behind\n"
    assert clarad("sandbox", "exec", "test-ann", "--", "ls", "kept").status == 0


def test_prune_after_a_kill_leaves_nothing_of_ours_and_all_of_others(
    mode: str, installation: Installation, clarad: Console, alone: Console, marker: Marker
) -> None:
    assert clarad("sandbox", "exec", "test-ann", "--", "touch", "kept").status == 0
    settings = engines.variables(mode)
    with alone.installation.daemon(**settings) as process:
        label = instance.label(alone.installation.state_dir)
        words = ("sandbox", "exec", "test-ann", "--", "sh", "-c", f"echo; sleep {marker.text}")
        with alone.installation.start(*words) as running:
            read_until(running.stdout, "\n")
            process.kill()
            running.communicate(timeout=PATIENCE)
    engines.make_leftover(mode, label, f"{label}-left")
    said = alone("sandbox", "prune", **settings)
    assert (said.status, said.err) == (0, "")
    assert names(mode, label) == []
    wait_until_dead(marker)
    assert clarad("sandbox", "exec", "test-ann", "--", "ls", "kept").status == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_a_daemon_is_the_end_of_its_sandboxes(
    mode: str, alone: Console, marker: Marker, number: signal.Signals
) -> None:
    settings = engines.variables(mode, CLARA_DRAIN_TIMEOUT="0")
    with alone.installation.daemon(**settings) as process:
        words = ("sandbox", "exec", "test-ann", "--", "sh", "-c", f"echo; sleep {marker.text}")
        with alone.installation.start(*words) as running:
            read_until(running.stdout, "\n")
            process.signal(number)
            assert process.wait() == (0 if number == signal.SIGTERM else -number)
            running.communicate(timeout=PATIENCE)
        label = instance.label(alone.installation.state_dir)
        if number == signal.SIGTERM:
            assert names(mode, label) == []
        wait_until_none(mode, label)
        wait_until_dead(marker)


def test_the_next_start_prunes_too(mode: str, alone: Console) -> None:
    settings = engines.variables(mode)
    alone.installation.state_dir.mkdir()
    label = instance.label(alone.installation.state_dir)
    engines.make_leftover(mode, label, f"{label}-left")
    with alone.installation.daemon(**settings):
        assert names(mode, label) == []


def test_prune_keeps_away_from_a_daemon_that_starts(alone: Console) -> None:
    """It may have made sandboxes already, and cannot be asked yet."""
    state_dir = alone.installation.state_dir
    with lock_state_dir(state_dir):
        instance.identify(state_dir)
        assert alone("sandbox", "prune", SANDBOX_MODE="docker") == refused(
            f"another clarad (process {os.getpid()}) uses {state_dir}; stop it, or set "
            "CLARA_STATE_DIR"
        )


def test_where_no_daemon_has_ever_run_there_is_nothing_to_prune(alone: Console) -> None:
    said = alone("sandbox", "prune")
    assert said == Said(0, "removed 0 sandboxes that had been left behind\n", "")
    assert not alone.installation.state_dir.exists()


def test_prune_says_that_the_engine_does_not_answer(alone: Console) -> None:
    alone.installation.state_dir.mkdir()
    instance.identify(alone.installation.state_dir)
    nowhere = {"SANDBOX_MODE": "docker", "DOCKER_HOST": "unix:///run/no-docker"}
    assert alone("sandbox", "prune", **nowhere) == refused(
        "Docker does not answer at unix:///run/no-docker: start it, or set DOCKER_HOST"
    )


# --- doctor --------------------------------------------------------------------------------------


def test_every_wall_holds(mode: str, alone: Console) -> None:
    status, out, err = alone("sandbox", "doctor", "--json", **engines.variables(mode))
    rows = Said(status, out, err).rows
    assert {row["wall"]: row["saw"] for row in rows if not row["held"]} == {}
    assert (status, err) == (0, "")
    assert {"user", "capabilities", "network", "memory", "processes", "disk"} <= {
        row["wall"] for row in rows
    }


def test_the_doctor_can_be_interrupted_and_leaves_nothing(mode: str, alone: Console) -> None:
    settings = engines.variables(mode)
    with alone.installation.start("sandbox", "doctor", **settings) as process:
        name = wait_for_doctor(mode)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (130, "", "")
    assert name not in everything(mode)


def everything(mode: str) -> list[str]:
    """Return the names of all that is on the engine, whoever has made it."""
    command = {
        "docker": ["docker", "ps", "--all", "--format", "{{.Names}}"],
        "incus": ["incus", "list", "--format", "csv", "--columns", "n"],
    }
    environment = engines.environment()
    return subprocess.run(
        command[mode], env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.split()


def wait_for_doctor(mode: str) -> str:
    give_up_at = time.monotonic() + PATIENCE
    while True:
        for name in everything(mode):
            if name.startswith("clarad-doctor-"):
                return name
        assert time.monotonic() < give_up_at
        time.sleep(0.05)


def test_the_doctor_says_that_the_engine_does_not_answer(alone: Console) -> None:
    nowhere = {"SANDBOX_MODE": "incus", "INCUS_SOCKET": "/run/no-incus"}
    status, out, err = alone("sandbox", "doctor", **nowhere)
    assert (status, out) == (1, "")
    assert err.startswith("clarad: Incus does not answer at /run/no-incus: ")


# --- without a daemon, and without sandboxes -----------------------------------------------------


@pytest.mark.parametrize("words", [["status"], ["exec", "ann", "--", "ls"], ["reset", "ann"]])
def test_without_a_daemon_it_says_so(alone: Console, words: list[str]) -> None:
    status, out, err = alone("sandbox", *words)
    assert (status, out) == (1, "")
    assert err.startswith("clarad: no daemon runs")


@pytest.mark.parametrize("words", [["prune"], ["doctor"]])
def test_without_sandboxes_it_says_so(alone: Console, words: list[str]) -> None:
    alone.installation.state_dir.mkdir()
    instance.identify(alone.installation.state_dir)
    assert alone("sandbox", *words) == refused(
        "there are no sandboxes: set SANDBOX_MODE to auto, docker or incus"
    )


def test_a_daemon_without_sandboxes_says_so(alone: Console) -> None:
    parts = (["status"], ["exec", "ann", "--", "ls"], ["reset", "ann"], ["prune"])
    with alone.installation.daemon():
        for words in parts:
            assert alone("sandbox", *words) == refused(
                "there are no sandboxes: set SANDBOX_MODE and start the daemon again"
            )


def test_settings_that_are_wrong_are_said(alone: Console) -> None:
    status, _, err = alone("sandbox", "doctor", SANDBOX_MODE="podman", SANDBOX_PIDS="1")
    assert status == 1
    assert [line.split("=")[0] for line in err.splitlines()] == [
        "clarad: SANDBOX_MODE",
        "clarad: SANDBOX_PIDS",
    ]
