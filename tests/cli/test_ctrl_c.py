"""Ctrl-C while a command is still being loaded."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.daemon_process import PATIENCE, environment

IN_THE_WAY: Final = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"

ENTRIES: Final = {
    "module": [sys.executable, "-m", "clarad"],
    "script": [f"{Path(sys.executable).with_name('clarad')}"],
}


@pytest.mark.process
@pytest.mark.parametrize("command", ["run", "send"])
@pytest.mark.parametrize("at", ["argparse", "trio"])
@pytest.mark.parametrize("entry", ENTRIES)
def test_ctrl_c_while_a_module_is_imported_says_nothing(
    tmp_path: Path, entry: str, at: str, command: str
) -> None:
    (tmp_path / f"{at}.py").write_text(IN_THE_WAY)
    done = subprocess.run(
        [*ENTRIES[entry], command],
        env=environment(tmp_path / "state") | {"PYTHONPATH": f"{tmp_path}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.process
def test_ctrl_c_ends_a_command_that_has_begun(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "clarad", "run"]
    env = environment(tmp_path / "state")
    with subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "listening" in line:
                break
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == 0
