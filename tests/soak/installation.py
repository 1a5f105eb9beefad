"""An installation that is soaked, and the daemon in it, which has many lives."""

import os
import random
import re
import secrets
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from tests.daemon_process import LIFE, environment, lives_of
from tests.soak.automation import COMMAND, HOOKS
from tests.soak.clock import Clock
from tests.soak.sandboxes import Sandboxes

TOOLS_OFTEN: Final = 0.3
"""How many of the daemon's lives have the tools for a responder, where there are sandboxes."""

PATIENCE: Final = 120.0
"""Seconds until a daemon that does not start, or end, counts as one that never will."""

REFUSED: Final = 74
"""EX_IOERR of sysexits(3): how a daemon ends that cannot write."""

LEASE: Final = 5.0
"""Seconds of `CLARA_LEASE`: another daemon on the database takes over after them."""

BOUND_BY_MODES: Final = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
"""Has root bound by the modes of files, as everybody else is."""


_REFUSED: Final = re.compile(r"message '([^']+)' is not accepted")


class Installation:
    """A machine with the daemon of the moment on it; `log_path` has what all of them wrote.

    Those that share a database share the directory, with the hooks and tasks, too.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        port: int,
        chance: random.Random,
        sandboxes: str | None,
        database_url: str | None,
    ) -> None:
        """`sandboxes` is the engine for them, if any; without a URL the database is SQLite."""
        self.acts = directory / "acts"
        self.log_path = directory / f"{name}.log"
        self.port = port
        self.broken: list[str] = []
        self.lives = self.lives_with_tools = 0
        self.clock = Clock(directory / f"{name}.clock")
        self._database = directory / "database"
        self._database.mkdir(exist_ok=True)
        self.database_url = database_url or f"sqlite:///{self._database}/clarad.db"
        self._chance = chance
        self._directory = directory
        self._name = secrets.token_hex(8)
        self._process: trio.Process | None = None
        self._versions = 0
        self._webhook = ""
        self._sandboxes = Sandboxes(sandboxes, directory / name) if sandboxes else None
        self._environment = environment(
            directory / name,
            DATABASE_URL=self.database_url,
            CLARA_HOOKS_DIR=f"{directory}",
            CLARA_SCHEDULER_DIR=f"{directory}",
            CLARA_GATEWAY_PORT=f"{port}",
            CLARA_LEASE=f"{LEASE}",
            CLARA_RESPONDER_COMMAND=COMMAND,
            CLARA_MESSAGE_TIMEOUT="3",
            CLARA_SESSION_TIMEOUT="4",
            CLARA_DRAIN_TIMEOUT="1",
            SOAK_ACTS=f"{self.acts}",
            NO_PROXY="127.0.0.1",
            **(self._sandboxes.settings if self._sandboxes else {}),
        )
        self.acts.mkdir(parents=True, exist_ok=True)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def define(self, webhook: str, tasks: str) -> None:
        """Write both files; `webhook` is where to post."""
        self._webhook = webhook
        self.write_hooks()
        self.write_tasks(tasks)

    def write_hooks(self) -> None:
        """Write hooks.yaml anew, as another text that says the same."""
        self._versions += 1
        text = HOOKS.format(version=self._versions, url=self._webhook)
        (self._directory / "hooks.yaml").write_text(text)

    def write_tasks(self, text: str) -> None:
        """Have other tasks from the next start on."""
        (self._directory / "scheduler.yaml").write_text(text)

    async def start(self) -> None:
        """Start the daemon and wait until it listens; then nothing of an earlier one is left."""
        earlier = await self._sandboxes.names() if self._sandboxes and self.lives else set()
        said = await self._begin_life(self._choose_responder())
        with trio.move_on_after(PATIENCE) as patience:
            while "listening on" not in self._said_since(said):
                if self._process is not None and self._process.poll() is not None:
                    self.broken.append(f"the daemon did not start: {self._last_words(said)}")
                    return
                await trio.sleep(0.02)
        if patience.cancelled_caught:
            self.broken.append(f"the daemon did not listen in time: {self._last_words(said)}")
        await self._look_for_leftovers(self.lives, earlier)

    async def fail_to_start(self) -> None:
        """Start the daemon where its database may not be written: it has to say so, and end."""
        self._database.chmod(0o555)
        try:
            prefix = BOUND_BY_MODES if os.geteuid() == 0 else ()
            said = await self._begin_life({"CLARA_RESPONDER": "echo"}, *prefix)
            assert self._process is not None
            with trio.move_on_after(PATIENCE):
                await self._process.wait()
        finally:
            self._database.chmod(0o755)
        text = self._said_since(said)
        if self._process.returncode != REFUSED or f"cannot write to {self._database}" not in text:
            self.broken.append(f"on a read-only database: {self._process.returncode}, {text}")
            self._process.kill()

    async def _begin_life(self, settings: dict[str, str], *prefix: str) -> int:
        """Return where the log of this life begins."""
        self.lives += 1
        life = {LIFE: f"{self._name}-{self.lives}"}
        program = [sys.executable, "-m", "tests.soak.clock", str(self.clock.path), "run"]
        with self.log_path.open("a") as log:
            said = log.tell()
            self._process = await trio.lowlevel.open_process(
                [*prefix, *program], env=self._environment | settings | life, stderr=log
            )
        return said

    def _choose_responder(self) -> dict[str, str]:
        if self._sandboxes is None or self._chance.random() > TOOLS_OFTEN:
            return {"CLARA_RESPONDER": "command"}
        self.lives_with_tools += 1
        return {"CLARA_RESPONDER": "tools"}

    async def end(self, number: signal.Signals) -> None:
        """Have the daemon end, and say so if it had ended by itself, or ends otherwise."""
        process = self._process
        assert process is not None
        if process.poll() is not None:
            self.broken.append(f"the daemon has ended by itself: {process.returncode}")
            return
        process.send_signal(number)
        with trio.move_on_after(PATIENCE) as patience:
            await process.wait()
        if patience.cancelled_caught:
            self.broken.append(f"{number.name} did not end the daemon in time")
            process.kill()
            await process.wait()
        elif number is signal.SIGTERM and process.returncode != 0:
            self.broken.append(f"told to stop, the daemon ended with {process.returncode}")

    def refused(self) -> set[str]:
        """Return the messages that a daemon has refused; its word of that may be lost with it."""
        return set(_REFUSED.findall(self.log_path.read_text()))

    async def stop_for_good(self) -> None:
        """End the daemon; then nothing is left at all."""
        await self.end(signal.SIGTERM)
        left = await self._sandboxes.names() if self._sandboxes else set()
        await self._look_for_leftovers(self.lives + 1, left)

    def clean_up(self) -> None:
        """Kill what is left of a soak that did not come to its end."""
        while left := list(lives_of(self._name)):  # again: what is killed may just have forked
            for _, line in left:
                with suppress(ProcessLookupError):
                    os.kill(int(line.partition(" ")[0]), signal.SIGKILL)
        if self._sandboxes is not None and self.lives:
            trio.run(self._sandboxes.remove)

    def rss(self) -> int | None:
        """Return the daemon's resident set size in KiB, `None` while there is none."""
        with suppress(OSError):
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    return int(line.split()[1])
        return None

    def _last_words(self, offset: int) -> str:
        lines = [line for line in self._said_since(offset).splitlines() if line[:4].isdigit()]
        return lines[-1] if lines else "it said nothing"

    def _said_since(self, offset: int) -> str:
        with self.log_path.open() as log:
            log.seek(offset)
            return log.read()

    async def _look_for_leftovers(self, before_life: int, sandboxes: set[str]) -> None:
        left = [line for life, line in lives_of(self._name) if life < before_life]
        if self._sandboxes is not None:
            left += sorted(await self._sandboxes.left_of(sandboxes))
        self.broken += [f"left by an earlier daemon: {one}" for one in left]
