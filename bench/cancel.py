"""How long a cancel takes, from sending `cancel` to receiving `cancelled`, while 100 run."""

import os
import time
from statistics import median
from typing import NamedTuple

import trio

from bench import client
from bench.process import command_line, descendants
from bench.report import Figure, number, percentile, show
from bench.running import Messages, listening
from bench.server import Server, clarad

_COMMAND = "sleep 1000"
_RUNNING = 100
_CONNECTIONS = 4
_SAMPLES = 300
_ROUNDS_AT_ONCE = 5
_PAUSE_SECONDS = 0.01
_SETTLE_SECONDS = 0.1
_START_SECONDS = 30.0
_LIMIT_SECONDS = 120.0


class _Measured(NamedTuple):
    """Milliseconds of each single cancel and of each cancel of all; commands that still ran."""

    single: list[float]
    at_once: list[float]
    survivors: int


def run() -> list[Figure]:
    """Measure single cancels and cancels of everything at once, and print both."""
    with clarad("command", _COMMAND) as server:
        measured = trio.run(_measure, server)
    show(
        f"Cancel, {_RUNNING} messages running on {_CONNECTIONS} connections, ms",
        ["", "samples", "p50", "p99", "max"],
        [_row("one", measured.single), _row(f"all {_RUNNING}, until the last", measured.at_once)],
    )
    print(f"  commands that outlived their cancelled message: {measured.survivors}", flush=True)
    return [
        Figure(f"cancel one of {_RUNNING}, p50", percentile(measured.single, 50), "ms"),
        Figure(f"cancel one of {_RUNNING}, p99", percentile(measured.single, 99), "ms"),
        Figure(f"cancel all {_RUNNING}, until the last", median(measured.at_once), "ms"),
    ]


def _row(name: str, samples: list[float]) -> list[str]:
    ranks = (percentile(samples, percent) for percent in (50, 99, 100))
    return [name, str(len(samples)), *map(number, ranks)]


async def _measure(server: Server) -> _Measured:
    with trio.fail_after(_LIMIT_SECONDS):
        async with (
            client.registered(server.port, _CONNECTIONS) as connections,
            listening(connections) as messages,
        ):
            await _start_all(messages, server)
            single = [await _cancel_one(messages) for _ in range(_SAMPLES)]
            at_once = [await _cancel_all(messages)]
            for _ in range(_ROUNDS_AT_ONCE - 1):
                await _start_all(messages, server)
                at_once.append(await _cancel_all(messages))
            await trio.sleep(_SETTLE_SECONDS)
            return _Measured(single, at_once, _commands(os.getpid()))


async def _start_all(messages: Messages, server: Server) -> None:
    """Start the messages and wait for their commands: `response_start` may come before those."""
    await messages.start_all(_RUNNING)
    with trio.fail_after(_START_SECONDS):
        while True:
            if _commands(server.pid) >= _RUNNING:
                return
            await trio.sleep(_PAUSE_SECONDS)


async def _cancel_one(messages: Messages) -> float:
    """Cancel the oldest message, start another, and let that settle."""
    begin = time.perf_counter()
    message = await messages.cancel_oldest()
    await message.cancelled.wait()
    await messages.replace(message)
    await trio.sleep(_PAUSE_SECONDS)
    return (message.cancelled_at - begin) * 1e3


async def _cancel_all(messages: Messages) -> float:
    """Cancel all messages in one go and wait for the last of them."""
    begin = time.perf_counter()
    cancelled = await messages.cancel_all()
    for message in cancelled:
        await message.cancelled.wait()
    return (max(message.cancelled_at for message in cancelled) - begin) * 1e3


def _commands(pid: int) -> int:
    """How many processes below the process run the command of a message."""
    words = _COMMAND.split()
    return sum(command_line(below) == words for below in descendants(pid))
