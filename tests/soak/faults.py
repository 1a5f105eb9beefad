"""What goes wrong, by kind, at moments that a seed decides."""

import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from typing import Final

import trio

from tests.postgres import Cluster, lock_table
from tests.soak.installation import LEASE, Installation
from tests.soak.line import Line
from tests.strangers import PLAIN
from tests.villains import TURNED_AWAY, VILLAINS, Villain

Fault = Callable[[], Awaitable[None]]


class UnknownFault(Exception):  # noqa: N818 - it is an answer, not a fault
    """There is no fault of this name, or the database cannot have it."""


KILL: Final = "SIGKILL and restart"

LONG_OUTAGE: Final = 30.0
"""Seconds that PostgreSQL is gone once in a soak that has room for it; else a tenth of that."""

LONG_LOCK: Final = 12.0
"""The same of a table that somebody has locked."""

TABLES: Final = ("clarad_messages", "clarad_nodes", "clarad_hook_runs", "clarad_task_runs")


@dataclass(frozen=True)
class Happened:
    """A fault that is over; its times are Trio's, in seconds."""

    kind: str
    began: float
    ended: float


class Faults:
    """Lets one thing go wrong after the other. Each is over when it returns."""

    def __init__(
        self,
        installations: Sequence[Installation],
        lines: Sequence[Line],
        cluster: Cluster | None,
        chance: random.Random,
        look: Callable[[], Awaitable[None]],
        *,
        kinds: Collection[str] = (),
        seconds: float,
    ) -> None:
        """`kinds` are those that there are to be; without, it is all that the database can have.

        `look` is called after each restart; `seconds` is the length of the soak. A fault of a
        daemon is one of any of them.
        """
        self._installations = installations
        self._installation = installations[0]
        self._longest_away = 1 if len(installations) == 1 else 2 * LEASE
        """Seconds; others take over from a daemon that is away for that long."""
        self._absences = cycle((self._longest_away, 0, 0))
        self._lines = lines
        self._cluster = cluster
        self._chance = chance
        self._look = look
        self._outage = min(LONG_OUTAGE, seconds / 10)
        self._lock = min(LONG_LOCK, seconds / 10)
        self.happened: list[Happened] = []
        self._kinds: dict[str, Fault] = {
            KILL: self._kill,
            "SIGTERM and restart": self._stop,
            "connection cut": self._cut,
            "all connections cut": self._cut_all,
            "slow reader": self._slow,
            "rubbish": self._rubbish,
            "strangers": self._strangers,
            "reload": self._reload,
            "SIGSTOP and SIGCONT": self._pause,
            "clock stepped": self._step_clock,
        }
        if cluster is None:
            self._kinds |= {"disk full": self._fill_disk, "read-only": self._forbid_writing}
        else:
            self._kinds |= {
                "database stopped": self._stop_database,
                "table locked": self._lock_table,
            }
        if unknown := set(kinds) - set(self._kinds):
            raise UnknownFault(
                f"there is no fault {min(unknown)!r} here; there are: {', '.join(self._kinds)}"
            )
        if kinds:
            self._kinds = {kind: self._kinds[kind] for kind in kinds}

    async def inject(self, pause: float, most: int | None = None) -> None:
        """Go on until cancelled, or there were `most`; one that is under way is brought to its end.

        All kinds come equally often, in an order that is another each time round; only a kill comes
        after each of the others too. `pause` is the most between two, in seconds.
        """
        while True:
            for kind in self._order():
                if len(self.happened) == most:
                    return
                await trio.sleep(self._chance.uniform(0, pause))
                self._installation = self._chance.choice(self._installations)
                began = trio.current_time()
                with trio.CancelScope(shield=True):
                    await self._kinds[kind]()
                self.happened.append(Happened(kind, began, trio.current_time()))

    def _order(self) -> Iterator[str]:
        for kind in self._chance.sample(list(self._kinds), len(self._kinds)):
            yield kind
            if kind != KILL and KILL in self._kinds:
                yield KILL

    async def _kill(self) -> None:
        await self._installation.end(signal.SIGKILL)
        # Whose the commands are is known after a while, too; another daemon takes over meanwhile.
        await trio.sleep(next(self._absences))
        await self._restart()

    async def _stop(self) -> None:
        await self._installation.end(signal.SIGTERM)
        await self._restart()

    async def _restart(self) -> None:
        await self._installation.start()
        await self._look()

    async def _cut(self) -> None:
        self._chance.choice(self._lines).cut()

    async def _cut_all(self) -> None:
        for line in self._lines:
            line.cut()

    async def _slow(self) -> None:
        line = self._chance.choice(self._lines)
        line.pause = 0.05
        await trio.sleep(self._chance.uniform(0.5, 2))
        line.pause = 0
        if self._chance.random() < 0.5:
            line.cut()

    async def _rubbish(self) -> None:
        async with trio.open_nursery() as crowd:
            for villain in VILLAINS:
                crowd.start_soon(self._let_loose, villain)

    async def _strangers(self) -> None:
        """A crowd that never registers, sends what carries nothing, and comes back."""
        where = "127.0.0.1", str(self._installation.port)
        how = self._chance.choice(PLAIN), "60", str(self._chance.uniform(0.5, 2))
        crowd = [sys.executable, "-m", "tests.strangers", *where, *how]
        await trio.run_process(crowd, stdout=subprocess.DEVNULL)

    async def _let_loose(self, villain: Villain) -> None:
        with suppress(*TURNED_AWAY):
            await villain("127.0.0.1", self._installation.port, self._chance)

    async def _reload(self) -> None:
        self._installation.write_hooks()
        self._signal(signal.SIGHUP)

    async def _pause(self) -> None:
        self._signal(signal.SIGSTOP)
        await trio.sleep(self._chance.uniform(0.1, 1.5 * self._longest_away))
        self._signal(signal.SIGCONT)

    async def _fill_disk(self) -> None:
        """Let no file grow beyond a few KiB: the database's log cannot, a command's few bytes can.

        The kernel refuses such a write as it does on a full disk, and no mount is needed
        (RLIMIT_FSIZE in setrlimit(2); Python ignores the signal that comes with it).
        """
        limit = self._chance.choice((16, 64, 256)) * 1024
        with suppress(ProcessLookupError):
            _, hard = resource.prlimit(self._installation.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(self._installation.pid, resource.RLIMIT_FSIZE, (limit, hard))
            await trio.sleep(self._chance.uniform(0.3, 2))
            resource.prlimit(self._installation.pid, resource.RLIMIT_FSIZE, (hard, hard))

    async def _forbid_writing(self) -> None:
        await self._installation.end(self._chance.choice((signal.SIGTERM, signal.SIGKILL)))
        await self._installation.fail_to_start()
        await self._restart()

    async def _step_clock(self) -> None:
        """Set it forward or back, and right again after a while: one of the two is back."""
        self._installation.clock.set_ahead(
            self._chance.uniform(2, 15) * self._chance.choice((1, -1))
        )
        await trio.sleep(self._chance.uniform(0.5, 3))
        self._installation.clock.set_ahead(0)

    async def _stop_database(self) -> None:
        assert self._cluster is not None
        seconds, self._outage = max(self._outage, self._chance.uniform(0.3, 4)), 0
        await trio.to_thread.run_sync(self._cluster.halt)
        await trio.sleep(seconds)
        await trio.to_thread.run_sync(self._cluster.go_on)

    async def _lock_table(self) -> None:
        """Have somebody's shell lock a table: whoever wants to read it waits, and others go on."""
        seconds, self._lock = max(self._lock, self._chance.uniform(0.3, 4)), 0
        table, url = self._chance.choice(TABLES), self._installation.database_url
        await trio.to_thread.run_sync(lock_table, url, table, seconds)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # that it has ended is found when it is to end
            os.kill(self._installation.pid, number)
