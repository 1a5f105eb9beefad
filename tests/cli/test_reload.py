"""`clarad reload`: other hooks and tasks without a restart, or everything as it was."""

import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.daemon_process import PATIENCE, Process
from tests.fifo import Fifo
from tests.installation import Console, Installation, Said
from tests.unprivileged import unprivileged

HOOKS: Final = "- {name: greet, event: gateway:startup, command: echo hello}\n"
TASKS: Final = """\
- {name: tick, interval: 3600, command: echo tock}
- {name: held, interval: 3600, delay: 3600, command: 'echo begun > begun; read line < go'}
"""


class Beside(NamedTuple):
    """A daemon that runs; its task `held` says when it has begun, and is told when to go on."""

    process: Process
    installation: Installation
    begun: Fifo
    go: Fifo


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    """One daemon for all tests."""
    made = Installation(tmp_path_factory.mktemp("installation"))
    made.write(hooks=HOOKS, tasks=TASKS)
    with (
        Fifo(made.directory / "begun") as begun,
        Fifo(made.directory / "go") as go,
        made.daemon() as process,
    ):
        process.wait_for_log("task tick ran")
        yield Beside(process, made, begun, go)


@pytest.fixture
def clarad(
    running: Beside, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Console]:
    """Commands beside that daemon, which has its own hooks and tasks again at the end."""
    console = Console(running.installation, monkeypatch, capsys)
    yield console
    console.installation.write(hooks=HOOKS, tasks=TASKS)
    assert console("reload").status == 0


def refused(*texts: str) -> Said:
    """How a command ends that cannot do its work."""
    return Said(1, "", "".join(f"clarad: {text}\n" for text in texts))


# --- files that are good -------------------------------------------------------------------------


def test_reload_says_what_is_in_force(clarad: Console) -> None:
    assert clarad("reload") == (0, "reloaded: 1 hook, 2 tasks\n", "")
    clarad.installation.write(hooks="", tasks="- {name: a, interval: 5, command: ls}")
    assert clarad("reload") == (0, "reloaded: 0 hooks, 1 task\n", "")


def test_files_that_are_gone_have_nothing_in_them(clarad: Console) -> None:
    for name in ("hooks.yaml", "scheduler.yaml"):
        (clarad.installation.directory / name).unlink()
    assert clarad("reload") == (0, "reloaded: 0 hooks, 0 tasks\n", "")
    assert clarad("tasks", "run", "tick") == refused("there is no task 'tick'")


def test_when_reload_returns_a_new_task_can_be_run(clarad: Console) -> None:
    task = "- {name: new, interval: 3600, delay: 3600, command: echo}\n"
    clarad.installation.write(tasks=TASKS + task)
    assert clarad("tasks", "run", "new") == refused("there is no task 'new'")
    assert clarad("reload").status == 0
    assert clarad("tasks", "run", "new").status == 0


def test_when_reload_returns_a_changed_hook_is_the_one_that_runs(clarad: Console) -> None:
    run = clarad("hooks", "runs", "--hook", "greet", "--json").rows[-1]["run"]
    clarad.installation.write(hooks=HOOKS.replace("echo hello", "exit 3"))
    assert clarad("reload").status == 0
    assert clarad("hooks", "replay", run).out.endswith("\nhook greet failed: exit status 3\n")


def test_an_interval_that_did_not_change_keeps_its_phase(clarad: Console) -> None:
    before = clarad("tasks", "list", "--json").rows[0]
    clarad.installation.write(tasks=TASKS.replace("echo tock", "echo tack"))
    assert clarad("reload").status == 0
    after = clarad("tasks", "list", "--json").rows[0]
    assert (after["command"], after["next_at"]) == ("echo tack", before["next_at"])


def test_a_pause_outlasts_a_reload(clarad: Console) -> None:
    assert clarad("tasks", "pause", "tick").status == 0
    clarad.installation.write(tasks=TASKS.replace("tick, interval: 3600", "tick, interval: 60"))
    assert clarad("reload").status == 0
    assert clarad("tasks", "list", "--json").rows[0]["paused"] is True
    assert clarad("tasks", "resume", "tick").status == 0


def test_what_runs_runs_on_also_if_its_task_is_changed_and_removed(
    clarad: Console, running: Beside
) -> None:
    with running.installation.start("tasks", "run", "held") as waiting:
        assert running.begun.read() == "begun\n"
        for tasks in (TASKS, TASKS.replace("delay: 3600", "delay: 60"), ""):
            clarad.installation.write(tasks=tasks)
            assert clarad("reload").status == 0
        running.go.write("on\n")
        out, _ = waiting.communicate(timeout=PATIENCE)
    assert (waiting.returncode, out.splitlines()[1]) == (0, "task held ran")


# --- files that are broken -----------------------------------------------------------------------


def test_a_broken_file_changes_nothing_and_everything_that_is_wrong_is_said(
    clarad: Console,
) -> None:
    clarad.installation.write(
        hooks="- {name: a, event: tool:edn, command: ls}\n"
        "- {name: b, event: tool:end, comand: ls}\n",
        tasks="- {name: new, interval: 3600, command: ls}\n"
        "- {name: bad, interval: 0, command: ls}\n",
    )
    status, out, err = clarad("reload")
    *problems, last = err.splitlines()
    assert (status, out, last) == (1, "", "clarad: nothing has changed")
    hooks, tasks = (
        clarad.installation.directory / name for name in ("hooks.yaml", "scheduler.yaml")
    )
    assert problems[:2] == [
        f"clarad: {hooks}:2: event is tool:edn; did you mean tool:end?",
        f"clarad: {hooks}:3: comand is not a key of a hook; did you mean command?",
    ]
    [interval] = problems[2:]
    assert interval.startswith(f"clarad: {tasks}:3: interval is 0; write a number of seconds")
    assert clarad("tasks", "run", "new") == refused("there is no task 'new'")
    assert clarad("tasks", "run", "tick").status == 0
    run = clarad("hooks", "runs", "--hook", "greet", "--json").rows[-1]["run"]
    assert clarad("hooks", "replay", run).status == 0


@pytest.mark.parametrize("text", [b"hooks: [", b"\xff\xfe\xff", b"\0", b"- \x1b[31m: [", b"5"])
def test_a_file_that_is_no_yaml_is_a_line_with_its_name(clarad: Console, text: bytes) -> None:
    path = clarad.installation.directory / "hooks.yaml"
    path.write_bytes(text)
    status, out, err = clarad("reload")
    problem, last = err.splitlines()
    assert (status, out, last) == (1, "", "clarad: nothing has changed")
    assert problem.startswith(f"clarad: {path}:")
    assert "\x1b" not in problem
    assert clarad("tasks", "run", "tick").status == 0


def test_a_file_that_cannot_be_read_changes_nothing(clarad: Console) -> None:
    path = clarad.installation.directory / "scheduler.yaml"
    path.unlink()
    path.mkdir()
    status, out, err = clarad("reload")
    path.rmdir()
    problem, last = err.splitlines()
    assert (status, out, last) == (1, "", "clarad: nothing has changed")
    assert problem == f"clarad: {path}: this is a directory: put a file in its place"
    assert clarad("tasks", "run", "tick").status == 0


# --- settings ------------------------------------------------------------------------------------


class Configured(NamedTuple):
    """A daemon whose settings are in a file."""

    installation: Installation
    process: Process
    file: Path

    def reload(self, text: str) -> Said:
        """Write other settings, and have them read."""
        self.file.write_text(text)
        return self.installation.clarad("reload")


@pytest.fixture
def configured(tmp_path: Path) -> Iterator[Configured]:
    file = tmp_path / "clarad.env"
    file.write_text("CLARA_LOG_LEVEL=INFO\n")
    made = Installation(tmp_path, CLARA_ENV_FILE=f"{file}")
    made.write(hooks="", tasks="")
    with made.daemon() as process:
        yield Configured(made, process, file)


def connect(url: str, origin: str) -> int:
    """Shake hands as a page of this origin; return the status of the answer."""
    host, port = url.removeprefix("ws://").strip("/").split(":")
    with socket.create_connection((host, int(port)), PATIENCE) as connection:
        connection.sendall(
            f"GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
            f"Origin: {origin}\r\n\r\n".encode()
        )
        return int(connection.makefile("rb").readline().split()[1])


def test_settings_are_reloaded_from_their_file(configured: Configured) -> None:
    assert connect(configured.process.url, "https://chat.example.org") == 403
    said = configured.reload(
        "CLARA_LOG_LEVEL=DEBUG\nCLARA_GATEWAY_ALLOWED_ORIGINS=https://chat.example.org\n"
    )
    assert said == (
        0,
        "reloaded: 0 hooks, 0 tasks; changed: CLARA_GATEWAY_ALLOWED_ORIGINS, CLARA_LOG_LEVEL\n",
        "",
    )
    assert connect(configured.process.url, "https://chat.example.org") == 101


def test_a_limit_is_reloaded(configured: Configured) -> None:
    assert configured.reload("CLARA_MESSAGE_TIMEOUT=0.25\n").status == 0
    assert configured.reload("CLARA_GATEWAY_MAX_CONNECTIONS=1\n").out.endswith(
        "changed: CLARA_GATEWAY_MAX_CONNECTIONS, CLARA_MESSAGE_TIMEOUT\n"
    )
    assert configured.reload("CLARA_RATE_NODE=60\n").status == 0
    assert configured.reload("CLARA_RATE_NODE=60\nCLARA_RATE_USER=20/5\n").out.endswith(
        "changed: CLARA_RATE_USER\n"
    )


def test_what_needs_a_restart_is_said(configured: Configured) -> None:
    said = configured.reload("CLARA_GATEWAY_PORT=1234\nSANDBOX_MAX=3\nCLARA_DRAIN_TIMEOUT=5\n")
    assert said.out == (
        "reloaded: 0 hooks, 0 tasks; changed: CLARA_DRAIN_TIMEOUT; changed from the next start on: "
        "CLARA_GATEWAY_PORT, the settings of the sandboxes\n"
    )


def test_the_file_of_hooks_can_move(configured: Configured) -> None:
    elsewhere = configured.file.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "hooks.yaml").write_text(f"hooks:\n{HOOKS}")
    assert configured.reload(f"CLARA_HOOKS_DIR={elsewhere}\n").out.startswith("reloaded: 1 hook,")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("CLARA_LOG_LEVEL=loud\n", "CLARA_LOG_LEVEL='loud': write one of DEBUG"),
        ("CLARA_MESSAGE_TIMEOUT=soon\n", "CLARA_MESSAGE_TIMEOUT='soon': write a number"),
        ("CLARA_GATEWAY_HOST=0.0.0.0\n", "CLARA_GATEWAY_HOST='0.0.0.0' is reachable"),
    ],
)
def test_wrong_settings_change_nothing(configured: Configured, text: str, problem: str) -> None:
    origin = "CLARA_GATEWAY_ALLOWED_ORIGINS=https://chat.example.org\n"
    said = configured.reload(origin + text)
    assert (said.status, said.out) == (1, "")
    assert said.err.startswith(f"clarad: {problem}")
    assert said.err.endswith("\nclarad: nothing has changed\n")
    configured.process.wait_for_log(f"not reloaded, nothing has changed: {problem}")
    assert connect(configured.process.url, "https://chat.example.org") == 403


def test_a_file_that_is_no_file_of_settings_changes_nothing(configured: Configured) -> None:
    configured.file.write_text("CLARA_LOG_LEVEL\n")
    configured.process.signal(signal.SIGHUP)
    configured.process.wait_for_log(
        f"not reloaded, nothing has changed: {configured.file}:1: this is no assignment"
    )


def test_the_daemon_says_and_logs_what_is_wrong_with_the_file(configured: Configured) -> None:
    said = configured.reload("oops\n")
    text = f"{configured.file}:1: this is no assignment; write NAME=value, or # before a comment"
    assert said == refused(text, "nothing has changed")
    configured.process.wait_for_log(f"not reloaded, nothing has changed: {text}")


@pytest.mark.parametrize("text", ["oops\n", "CLARA_MESSAGE_TIMEOUT=soon\n"])
def test_commands_that_ask_the_daemon_leave_its_settings_to_it(
    configured: Configured, text: str
) -> None:
    configured.file.write_text(text)
    assert configured.installation.clarad("status").status == 0
    assert configured.installation.clarad("send", "hello") == (0, "hello\n", "")


def test_a_broken_file_still_says_where_the_state_directory_is(configured: Configured) -> None:
    state_dir = configured.installation.state_dir
    configured.file.write_text(f"CLARA_STATE_DIR={state_dir}\noops\n")
    said = configured.installation.clarad("status", CLARA_STATE_DIR="/nowhere")
    assert said.status == 0


# --- daemons that cannot be reached --------------------------------------------------------------


@pytest.fixture
def alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Console:
    """Commands of an installation whose daemon does not run."""
    return Console(Installation(tmp_path), monkeypatch, capsys)


def test_reload_needs_the_daemon_and_says_so(alone: Console) -> None:
    state_dir = alone.installation.state_dir
    text = f"no daemon runs with the state directory {state_dir}; start it with `clarad run`"
    assert alone("reload") == refused(text)
    assert not state_dir.exists()


def test_a_socket_that_nobody_listens_on_any_more_is_no_daemon(alone: Console) -> None:
    alone.installation.state_dir.mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"{alone.installation.state_dir}/control.sock")
    assert alone("reload").err.startswith("clarad: no daemon runs with the state directory ")


def test_a_socket_that_is_not_ours_is_one_line_that_says_whose(clarad: Console) -> None:
    path = clarad.installation.state_dir / "control.sock"
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        with unprivileged():
            answer = clarad("reload")
    finally:
        path.chmod(mode)
    text = f"{path} belongs to {path.owner()}; run this as that user or with sudo"
    assert answer == refused(text)


def test_a_wrong_state_directory_is_named(alone: Console) -> None:
    said = alone("reload", CLARA_STATE_DIR="~nobody-here/state", CLARA_LOG_LEVEL="loud")
    assert said == refused(
        "CLARA_STATE_DIR='~nobody-here/state': nobody knows where this home is; "
        "write the whole path"
    )


def test_reload_takes_no_words(alone: Console) -> None:
    status, out, err = alone("reload", "hooks")
    assert (status, out) == (2, "")
    assert err.startswith("usage: clarad ")
