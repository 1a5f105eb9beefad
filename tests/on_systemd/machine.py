"""A machine with systemd in a test's hands: a container that has booted, and its root's shell.

Its images are made by `.ci/engines/machines`. It has no network. Commands run in it one by one,
each to its end; what a test waits for is polled for in there.
"""

import json
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.sandbox import engines

PATIENCE: Final = 60
"""Seconds until something that has to happen counts as not happening."""

DEBIAN_12: Final = "clarad-debian-12"
DEBIAN_13: Final = "clarad-debian-13"


# The journal is begun anew, so that a test finds only what is its own.
_CLEAN: Final = """
systemctl stop clarad.socket clarad.service
systemctl reset-failed clarad.socket clarad.service 2>/dev/null || true
rm -rf /etc/systemd/system/clarad.service.d /var/lib/clarad/* /etc/clarad/*
mkdir -p /etc/clarad/hooks
cp -p /root/clarad.env /etc/clarad/
systemctl daemon-reload
journalctl --rotate --vacuum-time=1us 2>/dev/null
"""


class Said(NamedTuple):
    """How a command has ended, and what it has written."""

    status: int
    out: str
    err: str


class Machine:
    """What can be done in one; paths and users are the container's."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, *words: str, stdin: str = "") -> Said:
        """Run a command as root, without a terminal."""
        done = _incus("exec", "-T", self.name, "--", *words, stdin=stdin)
        return Said(done.returncode, done.stdout, done.stderr)

    def sh(self, script: str, stdin: str = "") -> str:
        """Run a script that has to succeed, and return what it writes."""
        said = self.run("bash", "-ec", script, stdin=stdin)
        assert said.status == 0, f"{script}\n{said.out}{said.err}{self.lines()}"
        return said.out.strip()

    def clean(self) -> None:
        """Stop the daemon, and take everything back that was configured, stored or logged."""
        self.sh(_CLEAN)

    def clarad(self, *words: str) -> str:
        """Run one of the operator's commands, as the daemon's user, with the settings it has."""
        said = self.run("runuser", "-u", "clarad", "--", "clarad", *words)
        assert said.status == 0, said
        return said.out

    def until(self, condition: str) -> None:
        """Wait until a script succeeds."""
        script = f"until {{ {condition}; }} >/dev/null 2>&1; do sleep 0.05; done"
        said = self.run("timeout", str(PATIENCE), "bash", "-c", script)
        assert said.status == 0, f"never: {condition}\n{self.lines()}"

    def write(self, path: str, text: str, mode: str = "644") -> None:
        """Write a file, and make the directories above it."""
        self.sh(f"install -D -m {mode} <(cat) '{path}'", stdin=text)

    def configure(self, *settings: str, hooks: str = "", tasks: str = "", unit: str = "") -> None:
        """Add to the settings and to what overrides the unit, and write hooks and tasks."""
        self.sh("cat >>/etc/clarad/clarad.env", stdin="".join(f"{line}\n" for line in settings))
        if hooks:
            self.write("/etc/clarad/hooks/hooks.yaml", f"hooks:\n{hooks}")
        if tasks:
            self.write("/etc/clarad/scheduler.yaml", f"tasks:\n{tasks}")
        if unit:
            self.write("/etc/systemd/system/clarad.service.d/test.conf", f"[Service]\n{unit}")
            self.sh("systemctl daemon-reload")

    def push(self, source: Path, target: str) -> None:
        """Copy a file, or a directory with all that is in it, into a directory."""
        done = _incus("file", "push", "-q", "-r", "-p", str(source), f"{self.name}{target}/")
        assert done.returncode == 0, done.stderr

    def lines(self, unit: str = "clarad") -> str:
        """What the journal has of a unit, as people read it, from the last test on."""
        return self.run("journalctl", "-u", unit, "-o", "cat", "--no-pager").out

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        """The records of the daemon that have these fields, the oldest first."""
        words = ("journalctl", "-u", "clarad", "-o", "json", "--no-pager", *matches)
        return [json.loads(line) for line in self.run(*words).out.splitlines()]

    def show(self, what: str, unit: str = "clarad") -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", what, unit).out.strip()


@contextmanager
def boot(image: str) -> Iterator[Machine]:
    """Start a machine for the length of a block; nothing is left of it then."""
    machine = Machine(f"{image}-{secrets.token_hex(4)}")
    try:
        launched = _incus("launch", "-q", image, machine.name, "--ephemeral")
        assert launched.returncode == 0, launched.stderr
        machine.until("systemctl is-system-running | grep -E 'running|degraded'")
        yield machine
    finally:
        _incus("delete", "--force", machine.name)


def _incus(*words: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["incus", *words],
        env=engines.environment(),
        input=stdin,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=4 * PATIENCE,
        check=False,
    )
