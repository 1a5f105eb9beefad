"""One installation of clarad: hooks, tasks and state, and the commands that see them."""

import gc
import io
import json
import os
import subprocess
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import pytest

from clarad.cli import main
from tests import daemon_process
from tests.daemon_process import Process


class Said(NamedTuple):
    """How a command has ended, and what it has printed."""

    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What `--json` has printed: an object a line."""
        return [json.loads(line) for line in self.out.splitlines()]


def refused(text: str) -> Said:
    """Return how a command ends that cannot do its work."""
    return Said(1, "", f"clarad: {text}\n")


STEERING: Final = "\x1b\r\b\a\x7f\x85\x9b"
"""What a terminal obeys: beginnings of control sequences, what moves back, and what rings."""


class Installation:
    """A directory with hooks.yaml and scheduler.yaml, and below it the state directory."""

    def __init__(self, directory: Path, **settings: str) -> None:
        self.directory = directory
        self.state_dir = directory / "state"
        here = {"CLARA_HOOKS_DIR": f"{directory}", "CLARA_SCHEDULER_DIR": f"{directory}"}
        self._settings = here | settings

    def write(self, *, hooks: str | None = None, tasks: str | None = None) -> None:
        """Write the entries of these files."""
        for name, key, text in (("hooks", "hooks", hooks), ("scheduler", "tasks", tasks)):
            if text is not None:
                (self.directory / f"{name}.yaml").write_text(f"{key}:\n{text}")

    def environment(self, **settings: str) -> dict[str, str]:
        """Return the whole environment that makes a process one of this installation."""
        return daemon_process.environment(self.state_dir, **self._settings | settings)

    def daemon(self, **settings: str) -> AbstractContextManager[Process]:
        """Run its daemon for the length of a block."""
        return daemon_process.daemon(self.state_dir, **self._settings | settings)

    def clarad(self, *words: str, **settings: str) -> Said:
        """Run a command as a process of its own, to its end."""
        done = daemon_process.clarad(*words, env=self.environment(**settings))
        return Said(done.returncode, done.stdout, done.stderr)

    def print_to(self, file: IO[Any] | int, *words: str) -> tuple[int, str]:
        """Run a command that prints to a file; return its exit status and what it says of it."""
        environment = self.environment()
        environment.pop("PYTHONUNBUFFERED", None)
        done = subprocess.run(
            [sys.executable, "-m", "clarad", *words],
            env=environment,
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
            timeout=daemon_process.PATIENCE,
            check=False,
        )
        return done.returncode, done.stderr

    def print_to_nobody(self, *words: str) -> tuple[int, str]:
        """Run a command whose reader has gone, as `head` does."""
        read, write = os.pipe()
        os.close(read)
        with open(write, "w") as pipe:
            return self.print_to(pipe, *words)

    def print_to_nothing(self, *words: str) -> tuple[int, str]:
        """Run a command whose standard output is closed; return as `print_to` does."""
        done = subprocess.run(
            ["/bin/sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "clarad", *words],
            env=self.environment(),
            stderr=subprocess.PIPE,
            text=True,
            timeout=daemon_process.PATIENCE,
            check=False,
        )
        return done.returncode, done.stderr

    def start(self, *words: str, **settings: str) -> "subprocess.Popen[str]":
        """Start a command as a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "clarad", *words],
            env=self.environment(**settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def no_daemon(here: Installation) -> str:
    """Return what `hooks list` and `tasks list` say first where no daemon runs."""
    return (
        f"clarad: no daemon runs with the state directory {here.state_dir}; start it with "
        "`clarad run`; this is what the files say\n"
    )


class Terminal(io.StringIO):
    """A standard input at which somebody sits, who types this."""

    def isatty(self) -> bool:
        """Say that it is a terminal."""
        return True


@dataclass(frozen=True)
class Console:
    """Runs commands in this process, which takes a tenth of the time."""

    installation: Installation
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *words: str, **settings: str) -> Said:
        """Run one to its end."""
        environment = self.installation.environment(**settings)
        with self.monkeypatch.context() as patched:
            for name in os.environ.keys() - environment.keys():
                patched.delenv(name)
            for name, value in environment.items():
                patched.setenv(name, value)
            try:
                status = main(words)
            except SystemExit as left:  # argparse, which has something against the words
                status = left.code if isinstance(left.code, int) else 1
        if "postgres" in environment.get("DATABASE_URL", ""):
            # Psycopg warns of a connection that was left open when it is collected: now, not in
            # somebody else's test.
            gc.collect()
        return Said(status, *self.capsys.readouterr())
