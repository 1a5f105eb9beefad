"""The installation that is soaked: its hooks, tasks and responder, and a daemon with many lives."""

import os
import secrets
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from tests.process import LIFE, environment, lives_of

HOOKS: Final = """\
# {version}
hooks:
  - name: heard
    event: message:received
    match: {{channel_id: "*-0"}}
    command: printf x >> "$SOAK_ACTS/hook-$CLARA_RUN"
  - name: ended
    event: [message:sent, message:cancelled]
    match: {{channel_id: "*-1"}}
    overlap: queue
    retries: 1
    command: printf x >> "$SOAK_ACTS/hook-$CLARA_RUN"
"""

INTERVALS: Final = {"every": 0.5, "some": 0.4, "hang": 2.0}
"""The tasks, and the seconds between their occurrences."""

TASKS: Final = """\
tasks:
  - name: every
    interval: 0.5
    overlap: queue
    catch_up: all
    command: printf x >> "$SOAK_ACTS/task-$CLARA_RUN"
  - name: some
    interval: 0.4
    overlap: skip
    command: printf x >> "$SOAK_ACTS/task-$CLARA_RUN"; sleep 0.5
  - name: hang
    interval: 2
    overlap: cancel
    command: setsid sleep 1000 & sleep 1000
"""

NO_TASKS: Final = "tasks: []\n"

RESPONDER: Final = r"""
printf x >> "$SOAK_ACTS/begun-$CLARA_REQUEST_ID"
case "$CLARA_CONTENT" in
    hang) setsid sleep 1000 & sleep 1000;;
    slow*) sleep 0.2;;
    big*) head -c 100000 /dev/zero | tr '\0' x;;
    parts*) for part in a b c d; do printf "$part "; sleep 0.02; done;;
esac
printf '%s' "$CLARA_CONTENT"
printf x >> "$SOAK_ACTS/ended-$CLARA_REQUEST_ID"
"""
"""Each thing that runs leaves one byte in a file of its own: so it shows how often it did, and
when, and a full disk that lets small files through does not hide it."""


class Installation:
    """A directory, and the daemon of the moment in it; `log_path` has what all of them wrote."""

    def __init__(self, directory: Path, port: int, **settings: str) -> None:
        self.acts = directory / "acts"
        self.log_path = directory / "clarad.log"
        self.port = port
        self.broken: list[str] = []
        self.lives = 0
        self._directory = directory
        self._name = secrets.token_hex(8)
        self._process: trio.Process | None = None
        self._versions = 0
        self._environment = environment(
            directory / "state",
            CLARA_HOOKS_DIR=f"{directory}",
            CLARA_SCHEDULER_DIR=f"{directory}",
            CLARA_GATEWAY_PORT=f"{port}",
            CLARA_RESPONDER="command",
            CLARA_RESPONDER_COMMAND=RESPONDER,
            CLARA_MESSAGE_TIMEOUT="5",
            CLARA_DRAIN_TIMEOUT="1",
            SOAK_ACTS=f"{self.acts}",
            **settings,
        )
        self.acts.mkdir(parents=True)
        self.write_hooks()
        self.write_tasks(TASKS)

    @property
    def database_url(self) -> str:
        return self._environment.get(
            "DATABASE_URL", f"sqlite:///{self._directory / 'state' / 'clarad.db'}"
        )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def write_hooks(self) -> None:
        """Write hooks.yaml anew, as another text that says the same."""
        self._versions += 1
        (self._directory / "hooks.yaml").write_text(HOOKS.format(version=self._versions))

    def write_tasks(self, text: str) -> None:
        """Have other tasks from the next start on."""
        (self._directory / "scheduler.yaml").write_text(text)

    async def start(self) -> None:
        """Start the daemon and wait until it listens; then nothing of an earlier one is left."""
        self.lives += 1
        with self.log_path.open("a") as log:
            said = log.tell()
            self._process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "clarad", "run"],
                env=self._environment | {LIFE: f"{self._name}-{self.lives}"},
                stderr=log,
            )
        with trio.move_on_after(30) as patience:
            while "listening on" not in self._said_since(said):
                if self._process.poll() is not None:
                    self.broken.append(f"the daemon did not start: {self._said_since(said)!r}")
                    return
                await trio.sleep(0.02)
        if patience.cancelled_caught:
            self.broken.append(f"the daemon did not listen within 30 s: {self._said_since(said)!r}")
        self._look_for_leftovers(self.lives)

    async def end(self, number: signal.Signals) -> None:
        """Have the daemon end, and say so if it had ended by itself, or ends otherwise."""
        process = self._process
        assert process is not None
        if process.poll() is not None:
            self.broken.append(f"the daemon has ended by itself: {process.returncode}")
            return
        process.send_signal(number)
        with trio.move_on_after(30) as patience:
            await process.wait()
        if patience.cancelled_caught:
            self.broken.append(f"{number.name} did not end the daemon within 30 s")
            process.kill()
            await process.wait()
        elif number is signal.SIGTERM and process.returncode != 0:
            self.broken.append(f"told to stop, the daemon ended with {process.returncode}")

    async def stop_for_good(self) -> None:
        """End the daemon; then nothing is left at all."""
        await self.end(signal.SIGTERM)
        self._look_for_leftovers(self.lives + 1)

    def clean_up(self) -> None:
        """Kill what is left of a soak that did not come to its end."""
        for _, line in lives_of(self._name):
            with suppress(ProcessLookupError):
                os.kill(int(line.partition(" ")[0]), signal.SIGKILL)

    def rss(self) -> int | None:
        """Return the daemon's resident set size in KiB, `None` while there is none."""
        with suppress(OSError):
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    return int(line.split()[1])
        return None

    def _said_since(self, offset: int) -> str:
        with self.log_path.open() as log:
            log.seek(offset)
            return log.read()

    def _look_for_leftovers(self, before_life: int) -> None:
        left = [line for life, line in lives_of(self._name) if life < before_life]
        self.broken += [f"left by an earlier daemon: {line}" for line in left]
