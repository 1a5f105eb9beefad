"""What well-behaved adapters notice of one that floods and one that does not read."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from typing import Final
from uuid import uuid4

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection

from bench import client, load
from bench.load import CONTENT, Result
from bench.process import memory_kib
from bench.report import Figure, number, show
from bench.server import Server, clarad

_CONNECTIONS = 20
_TURNS = 4_000
_LIMIT_SECONDS = 120.0
_LONG = "x" * 100_000
_HEAD: Final = ["", "turns/s", "p50 ms", "p99 ms", "CPU us/turn", "memory MiB"]


def run() -> list[Figure]:
    """Measure the well-behaved alone and beside the others, and print both."""
    with clarad("echo") as server:
        _load(server)  # a round that does not count
        alone, before = _load(server), memory_kib(server.pid)
        with _villains(server):
            beside, after = _load(server), memory_kib(server.pid)
    show(
        f"{_CONNECTIONS} adapters, beside one that floods and one that does not read",
        _HEAD,
        [_row("alone", alone, before), _row("beside them", beside, after)],
    )
    return [
        Figure("p99 without overload", alone.p99_ms, "ms"),
        Figure("p99 under overload", beside.p99_ms, "ms"),
    ]


def _row(name: str, result: Result, kib: int) -> list[str]:
    figures = result.turns_per_second, result.p50_ms, result.p99_ms, result.cpu_us_per_turn
    return [name, *map(number, figures), number(kib / 1024)]


def _load(server: Server) -> Result:
    return load.run(
        server, connections=_CONNECTIONS, in_flight=1, turns=_TURNS, limit=_LIMIT_SECONDS
    )


@contextmanager
def _villains(server: Server) -> Iterator[None]:
    """Run both in a process of their own for the length of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.overload", str(server.port)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()  # both are registered
        yield
    finally:
        process.kill()
        process.communicate()


async def _overload(port: int) -> None:
    async with client.registered(port, 1) as (flooder,):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_flood, flooder)
            nursery.start_soon(_read, flooder)
            nursery.start_soon(_be_slow, port)


async def _flood(connection: WebSocketConnection) -> None:
    """Open a channel for every message, as fast as the gateway reads."""
    run = uuid4().hex
    for n in count():
        await client.send(connection, client.message(f"{run}-{n}", f"{run}-{n}", CONTENT))


async def _read(connection: WebSocketConnection) -> None:
    while True:
        await client.receive(connection)


async def _be_slow(port: int) -> None:
    """Have long answers written and read none; come back when that is over.

    trio-websocket reads by itself until it has one message that nobody takes.
    """
    while True:
        run = uuid4().hex
        with trio.move_on_after(_LIMIT_SECONDS):
            async with client.registered(port, 1) as (slow,):
                with suppress(ConnectionClosed):  # as soon as its outbox is full
                    for n in range(400):
                        await client.send(slow, client.message(f"{run}-{n}", f"{run}-{n}", _LONG))
                await trio.sleep(10)


if __name__ == "__main__":
    trio.run(partial(_overload, int(sys.argv[1])))
