"""What a thousand connections that say nothing cost in memory."""

import resource
import time
from typing import NamedTuple

import trio

from bench import client
from bench.process import memory_kib
from bench.report import Figure, number, show
from bench.server import Server, bare, clarad

_CONNECTIONS = 1_000
_FIRST = 20
_SETTLE_SECONDS = 1.0
_LIMIT_SECONDS = 120.0


class _Memory(NamedTuple):
    """Sizes in KiB without and with the connections, and the seconds it took to open those."""

    before: int
    after: int
    opening: float

    @property
    def each(self) -> float:
        return (self.after - self.before) / _CONNECTIONS


def run() -> list[Figure]:
    """Measure both servers, print their sizes, and return clarad's KiB a connection."""
    _allow_many_files()
    with bare() as server:
        floor = trio.run(_measure, server)
    with clarad("echo") as server:
        daemon = trio.run(_measure, server)
    show(
        f"Memory, {_CONNECTIONS} idle registered connections, proportional set size",
        ["", "before KiB", "after KiB", "KiB each", "opening s"],
        [_row("bare", floor), _row("clarad", daemon)],
    )
    return [Figure("memory of an idle connection", daemon.each, "KiB")]


def _allow_many_files() -> None:
    """Raise the limit of open files as far as it goes; the servers inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _row(name: str, memory: _Memory) -> list[str]:
    sizes = [str(memory.before), str(memory.after)]
    return [name, *sizes, number(memory.each), number(memory.opening)]


async def _measure(server: Server) -> _Memory:
    """Open a few connections first, so that what a server needs only once is not counted."""
    with trio.fail_after(_LIMIT_SECONDS):
        async with client.registered(server.port, _FIRST):
            await trio.sleep(_SETTLE_SECONDS)
            before = memory_kib(server.pid)
            begin = time.perf_counter()
            async with client.registered(server.port, _CONNECTIONS):
                opening = time.perf_counter() - begin
                await trio.sleep(_SETTLE_SECONDS)
                return _Memory(before, memory_kib(server.pid), opening)
