"""What goes wrong, by kind, at moments that a seed decides."""

import os
import random
import resource
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress

import trio

from tests.postgres import Cluster
from tests.soak.installation import Installation
from tests.soak.line import Line

Fault = Callable[[], Awaitable[None]]


class Faults:
    """Lets one thing go wrong after the other. Each is over when it returns."""

    def __init__(
        self,
        installation: Installation,
        lines: Sequence[Line],
        cluster: Cluster | None,
        chance: random.Random,
        kinds: Collection[str] = (),
    ) -> None:
        """`kinds` are those that there are to be; without, it is all that the database can have."""
        self._installation = installation
        self._lines = lines
        self._cluster = cluster
        self._chance = chance
        self.injected: Counter[str] = Counter()
        self._kinds: dict[str, Fault] = {
            "SIGKILL and restart": self._kill,
            "SIGTERM and restart": self._stop,
            "connection cut": self._cut,
            "all connections cut": self._cut_all,
            "slow reader": self._slow,
            "reload": self._reload,
            "SIGSTOP and SIGCONT": self._pause,
        }
        if cluster is None:
            self._kinds["disk full"] = self._fill_disk
        else:
            self._kinds["database stopped"] = self._stop_database
        if kinds:
            self._kinds = {kind: self._kinds[kind] for kind in kinds}

    async def inject(self, pause: float) -> None:
        """Go on until cancelled; what is under way then is brought to its end first.

        All kinds come equally often, in an order that is another each time round. `pause` is the
        most between two, in seconds.
        """
        while True:
            for kind in self._chance.sample(list(self._kinds), len(self._kinds)):
                await trio.sleep(self._chance.uniform(0, pause))
                with trio.CancelScope(shield=True):
                    await self._kinds[kind]()
                self.injected[kind] += 1

    async def _kill(self) -> None:
        await self._installation.end(signal.SIGKILL)
        if self._chance.random() < 0.3:  # who commands belong to is known after a while, too
            await trio.sleep(self._chance.uniform(0, 1))
        await self._installation.start()

    async def _stop(self) -> None:
        await self._installation.end(signal.SIGTERM)
        await self._installation.start()

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

    async def _reload(self) -> None:
        self._installation.write_hooks()
        self._signal(signal.SIGHUP)

    async def _pause(self) -> None:
        self._signal(signal.SIGSTOP)
        await trio.sleep(self._chance.uniform(0.1, 1.5))
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

    async def _stop_database(self) -> None:
        assert self._cluster is not None
        await trio.to_thread.run_sync(self._cluster.halt)
        await trio.sleep(self._chance.uniform(0.3, 4))
        await trio.to_thread.run_sync(self._cluster.go_on)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # that it has ended is found when it is to end
            os.kill(self._installation.pid, number)
