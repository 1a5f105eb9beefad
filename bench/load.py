"""The load generator: keeps a number of messages in flight and times each.

A process of its own, so that nothing it does is counted as the server's:
`python -m bench.load --port PORT ... --pid PID ... --connections 20 --in-flight 8 --turns 8000`
prints one JSON object, a `Result`. The server must answer with the message's own text.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from uuid import uuid4

import msgspec
import trio
from trio_websocket import WebSocketConnection

from bench import client, wire
from bench.process import cpu_seconds
from bench.report import percentile
from bench.server import Server

CONTENT = "What is the weather like today? ".ljust(200, ".")
WARM_UP_SHARE = 0.1
_QUIET_SECONDS = 0.1


class Result(msgspec.Struct):
    """What one run of the generator measured."""

    turns_per_second: float
    p50_ms: float
    p99_ms: float
    cpu_us_per_turn: float
    frames_per_turn: float


def run(
    *servers: Server,
    connections: int,
    in_flight: int,
    turns: int,
    limit: float,
    channel: str | None = None,
) -> Result:
    """Run the generator once, in a process of its own, for `limit` seconds at most.

    `connections` are those to each server, `turns` those of all together. Each message in flight
    has a channel of its own, unless `channel` is the one of all.
    """
    arguments: dict[str, Sequence[object]] = {
        "--connections": [connections],
        "--in-flight": [in_flight],
        "--turns": [turns],
        "--limit": [limit],
        "--port": [server.port for server in servers],
        "--pid": [server.pid for server in servers],
        "--channel": [] if channel is None else [channel],
        "--secret": [servers[0].secret],
    }
    words = [str(word) for name, values in arguments.items() if values for word in (name, *values)]
    words += ["--tls"] if servers[0].tls else []
    done = subprocess.run(
        [sys.executable, "-m", "bench.load", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=True,
        start_new_session=True,
    )
    return msgspec.json.decode(done.stdout, type=Result)


@dataclass
class _Phase:
    """A number of turns that the connections share, and what became of them."""

    request_ids: Iterator[str]
    latencies: list[float] = field(default_factory=list)
    frames: int = 0


class _Driver:
    """Keeps one message in flight for each channel that is given, on one connection."""

    def __init__(self, connection: WebSocketConnection, channels: list[str]) -> None:
        self._connection = connection
        self._channels = channels
        self._in_flight: dict[str, tuple[str, float]] = {}

    async def drive(self, phase: _Phase) -> None:
        """Take turns from the phase until it has none left and the last is answered."""
        for channel in self._channels:
            await self._ask(phase, channel)
        while self._in_flight:
            frame = await client.receive(self._connection)
            phase.frames += 1
            if frame.type in ("response_end", "cancelled", "error"):
                await self._ask(phase, self._finish(phase, frame))

    async def _ask(self, phase: _Phase, channel: str) -> None:
        request_id = next(phase.request_ids, None)
        if request_id is not None:
            self._in_flight[request_id] = channel, time.perf_counter()
            await client.send(self._connection, client.message(request_id, channel, CONTENT))

    def _finish(self, phase: _Phase, frame: wire.Received) -> str:
        """Note the latency of an answered message and return its channel."""
        if frame.full_text != CONTENT or frame.request_id is None:
            raise wire.UnexpectedFrameError(frame)
        channel, sent = self._in_flight.pop(frame.request_id)
        phase.latencies.append(time.perf_counter() - sent)
        return channel


async def generate(
    port: list[int],
    pid: list[int],
    connections: int,
    in_flight: int,
    turns: int,
    limit: float,
    channel: str | None,
    *,
    secret: str,
    tls: bool,
) -> Result:
    """Put the load on the servers `pid` that listen on `port`; give up after `limit` seconds."""
    run = uuid4().hex
    with trio.fail_after(limit):
        async with AsyncExitStack() as stack:
            opened = [
                connection
                for each in port
                for connection in await stack.enter_async_context(
                    client.registered(each, connections, secret, tls=tls)
                )
            ]
            drivers = [
                _Driver(connection, [channel or f"channel-{n}-{slot}" for slot in range(in_flight)])
                for n, connection in enumerate(opened)
            ]
            await _run(drivers, _Phase(_ids(f"{run}-warm-up", round(turns * WARM_UP_SHARE))))
            return await _measure(drivers, _Phase(_ids(run, turns)), pid)


def _ids(prefix: str, count: int) -> Iterator[str]:
    return (f"{prefix}-{n}" for n in range(count))


async def _run(drivers: list[_Driver], phase: _Phase) -> None:
    async with trio.open_nursery() as nursery:
        for driver in drivers:
            nursery.start_soon(driver.drive, phase)


async def _measure(drivers: list[_Driver], phase: _Phase, pids: list[int]) -> Result:
    cpu = sum(map(cpu_seconds, pids))
    begin = time.perf_counter()
    await _run(drivers, phase)
    seconds = time.perf_counter() - begin
    await trio.sleep(_QUIET_SECONDS)  # what the server still does for the last turns counts
    cpu = sum(map(cpu_seconds, pids)) - cpu
    turns = len(phase.latencies)
    return Result(
        turns_per_second=turns / seconds,
        p50_ms=percentile(phase.latencies, 50) * 1e3,
        p99_ms=percentile(phase.latencies, 99) * 1e3,
        cpu_us_per_turn=cpu / turns * 1e6,
        frames_per_turn=phase.frames / turns,
    )


def main() -> None:
    """Read the arguments, put the load on, print the result."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description="load generator")
    for name in ("port", "pid"):
        parser.add_argument(f"--{name}", type=int, nargs="+", required=True)
    for name in ("connections", "in-flight", "turns"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--channel", help="of all messages (default: one for each in flight)")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds (default 60)")
    parser.add_argument("--secret", default="")
    parser.add_argument("--tls", action="store_true")
    arguments = vars(parser.parse_args())
    result = trio.run(lambda: generate(**arguments))
    sys.stdout.write(msgspec.json.encode(result).decode() + "\n")


if __name__ == "__main__":
    main()
