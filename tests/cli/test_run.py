"""`clarad run` with hooks and tasks: refused as a whole, run without what is wrong, or reloaded."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.daemon_process import daemon
from tests.installation import Console, Installation

BROKEN_HOOKS: Final = """\
- {name: greet, event: gateway:startup, command: echo hello}
- {name: twice, event: tool:edn, comand: ls}
- {name: greet, event: tool:end, command: ls}
"""
BROKEN_TASKS: Final = """\
- {name: tick, interval: 3600, command: echo tock}
- {name: bad, interval: 0, command: ls}
- {name: never, type: cron, cron: 0 0 31 2 *, command: ls}
- {name: nowhere, type: cron, cron: 0 3 * * *, timezone: Berlin, command: ls}
"""


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    """An installation in which some is good and some is not."""
    made = Installation(tmp_path)
    made.write(hooks=BROKEN_HOOKS, tasks=BROKEN_TASKS)
    return made


@pytest.fixture
def clarad(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Console:
    """Commands of that installation."""
    return Console(installation, monkeypatch, capsys)


def problems(installation: Installation) -> list[str]:
    """Return what is wrong there, as far as it is always said in the same words."""
    hooks = installation.directory / "hooks.yaml"
    tasks = installation.directory / "scheduler.yaml"
    return [
        f"{hooks}:3: comand is not a key of a hook; did you mean command?",
        f"{hooks}:3: event is tool:edn; did you mean tool:end?",
        f"{hooks}:4: another hook is called greet, on line 2; rename one of them",
        f"{tasks}:3: interval is 0; ",
        f"{tasks}:4: cron is not right; day of month: 31 is in none of its months",
        f"{tasks}:5: timezone is Berlin; did you mean Europe/Berlin?",
    ]


def test_what_is_wrong_is_all_said_at_once_and_the_daemon_does_not_start(
    installation: Installation,
) -> None:
    status, out, err = installation.clarad("run")
    *lines, last = err.splitlines()
    assert (status, out, last) == (78, "", "clarad: CLARA_STRICT_CONFIG=0 runs what is good")
    assert len(lines) == len(problems(installation))
    for line, problem in zip(sorted(lines), sorted(problems(installation)), strict=True):
        assert line.startswith(f"clarad: {problem}")
    assert not installation.state_dir.exists()


def test_wrong_settings_come_first(clarad: Console) -> None:
    text = "clarad: CLARA_STRICT_CONFIG='perhaps': write 1 or 0\n"
    assert clarad("run", CLARA_STRICT_CONFIG="perhaps") == (78, "", text)


@pytest.mark.parametrize("text", [b"\xff", b"hooks: [", b"\0"], ids=repr)
def test_a_file_that_is_no_yaml_is_one_line_and_exit_78(clarad: Console, text: bytes) -> None:
    clarad.installation.write(tasks="")
    path = clarad.installation.directory / "hooks.yaml"
    path.write_bytes(text)
    status, out, err = clarad("run")
    line, _ = err.splitlines()
    assert (status, out) == (78, "")
    assert line.startswith(f"clarad: {path}:")


def test_without_strict_config_the_good_ones_run_and_the_bad_ones_are_logged(
    clarad: Console,
) -> None:
    with clarad.installation.daemon(CLARA_STRICT_CONFIG="0") as process:
        process.wait_for_log("hook greet ran")
        process.wait_for_log("task tick ran")
        for problem in problems(clarad.installation):
            assert f" ERROR   left out: {problem}" in process.log
        assert process.log.count("left out") == len(problems(clarad.installation))
        # At a reload it is all or nothing, strict or not.
        clarad.installation.write(tasks=BROKEN_TASKS.replace("name: tick", "name: tock"))
        process.signal(signal.SIGHUP)
        process.wait_for_log("not reloaded, nothing has changed: ")
        assert clarad("tasks", "run", "tock").status == 1
        assert clarad("tasks", "run", "tick").status == 0


def test_sighup_reloads_and_logs_what_is_in_force(installation: Installation) -> None:
    installation.write(hooks="", tasks="")
    with installation.daemon() as process:
        installation.write(tasks="- {name: tick, interval: 3600, command: echo tock}")
        process.signal(signal.SIGHUP)
        process.wait_for_log("NOTICE  reloaded: 0 hooks, 1 task")
        process.wait_for_log("task tick ran")


def test_what_is_broken_at_sighup_is_logged_and_changes_nothing(clarad: Console) -> None:
    clarad.installation.write(hooks="", tasks="- {name: old, interval: 3600, command: echo}")
    with clarad.installation.daemon() as process:
        process.wait_for_log("task old ran")
        clarad.installation.write(hooks=BROKEN_HOOKS, tasks=BROKEN_TASKS)
        process.signal(signal.SIGHUP)
        for problem in problems(clarad.installation):
            process.wait_for_log(f" ERROR   not reloaded, nothing has changed: {problem}")
        assert clarad("tasks", "run", "old").status == 0
        assert clarad("tasks", "run", "tick").err == "clarad: there is no task 'tick'\n"
    assert "reloaded: " not in process.log


def test_the_first_line_says_how_to_reach_a_daemon_with_a_state_directory_of_its_own(
    tmp_path: Path,
) -> None:
    state_dir = tmp_path / "my state"
    with daemon(state_dir) as process:
        hint = process.log.partition("now type in another terminal: ")[2].splitlines()[0]
        command = hint.removesuffix("python -m clarad chat") + f"{sys.executable} -m clarad"
        environment = {**process.environment}
        del environment["CLARA_STATE_DIR"]
        done = subprocess.run(
            ["/bin/sh", "-c", f"{command} send hello"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stdout) == (0, "hello\n"), (hint, done.stderr)
