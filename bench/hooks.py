"""How long it takes from an event until the command of its hook has begun."""

import time
from datetime import datetime
from functools import partial
from uuid import uuid4

import trio
from trio_websocket import WebSocketConnection

from bench import client, wire
from bench.automation import run_bare, write_hooks
from bench.report import Figure, number, percentile, show
from bench.server import clarad_on, empty_state
from bench.witness import Witness, witness

_EVENTS = 500
_WARM_UP = 20
_PAUSE_SECONDS = 0.01
_LIMIT_SECONDS = 120.0


def run() -> list[Figure]:
    """Measure events one after another, and Trio running the same command, and print both.

    The event is a message that has come; its own time, which the command is told, is the beginning.
    """
    floor = _react_bare()
    daemon = _react()
    show(
        "Hooks, one event after another, ms until the command has begun",
        ["", "samples", "p50", "p99", "max"],
        [_row("bare trio.run_process", floor), _row("clarad", daemon)],
    )
    return [
        Figure("event to hook's command, p50", percentile(daemon, 50), "ms"),
        Figure("event to hook's command, p99", percentile(daemon, 99), "ms"),
        Figure("bare trio.run_process, p50", percentile(floor, 50), "ms"),
        Figure("bare trio.run_process, p99", percentile(floor, 99), "ms"),
    ]


def _row(name: str, samples: list[float]) -> list[str]:
    ranks = (percentile(samples, percent) for percent in (50, 99, 100))
    return [name, str(len(samples)), *map(number, ranks)]


def _react() -> list[float]:
    with empty_state() as state, witness(state / "witness") as reader:
        command = reader.command("$CLARA_TIMESTAMP")
        hook = {"name": "witness", "event": "message:received", "command": command}
        write_hooks(state, [hook])
        with clarad_on(state, "echo") as server:
            return trio.run(_send_all, reader, server.port)


async def _send_all(reader: Witness, port: int) -> list[float]:
    with trio.fail_after(_LIMIT_SECONDS):
        async with client.registered(port, 1) as [connection]:
            samples = [await _send(reader, connection) for _ in range(_WARM_UP + _EVENTS)]
    return samples[_WARM_UP:]


async def _send(reader: Witness, connection: WebSocketConnection) -> float:
    """Send a message, wait for its answer and for its hook, and let both settle."""
    await client.send(connection, client.message(uuid4().hex, "channel", "hello"))
    while (frame := await client.receive(connection)).type != "response_end":
        if frame.type == "error":
            raise wire.UnexpectedFrameError(frame)
    [arrival] = await trio.to_thread.run_sync(partial(reader.wait, 1, _LIMIT_SECONDS))
    await trio.sleep(_PAUSE_SECONDS)
    return (arrival.at - datetime.fromisoformat(arrival.text).timestamp()) * 1e3


def _react_bare() -> list[float]:
    with empty_state() as state, witness(state / "witness") as reader:
        return trio.run(_run_all, reader)


async def _run_all(reader: Witness) -> list[float]:
    samples = [await _run_one(reader) for _ in range(_WARM_UP + _EVENTS)]
    return samples[_WARM_UP:]


async def _run_one(reader: Witness) -> float:
    command = reader.command("$CLARA_TIMESTAMP")
    asked_at = await run_bare(command, CLARA_TIMESTAMP=f"{time.time()}")
    [arrival] = reader.wait(1, _LIMIT_SECONDS)
    await trio.sleep(_PAUSE_SECONDS)
    return (arrival.at - asked_at) * 1e3
