"""What a good client notices of 60 strangers, who have no secret and cost as much as they can."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from bench import load
from bench.load import Result
from bench.process import memory_kib
from bench.report import Figure, number, show
from bench.server import Server, clarad
from tests import certificates
from tests.strangers import COUNT, KINDS, PLAIN

_CONNECTIONS = 4
_TURNS = 600
_LIMIT_SECONDS = 120.0
_TARGET_MS = 250.0
_HEAD: Final = ["", "turns/s", "p50 ms", "p99 ms", "CPU us/turn", "memory MiB"]


def run() -> list[Figure]:
    """Measure good clients alone and beside strangers of each kind, without TLS and with it."""
    with TemporaryDirectory(prefix="clarad-bench-") as directory:
        made = certificates.make(Path(directory))
        tls = {
            "CLARA_GATEWAY_TLS_CERT": f"{made.certificate}",
            "CLARA_GATEWAY_TLS_KEY": f"{made.key}",
        }
        return _measure("plain", {}, PLAIN) + _measure("TLS", tls, KINDS)


def _measure(wire: str, settings: dict[str, str], kinds: Sequence[str]) -> list[Figure]:
    secret = "only the good have it"
    with clarad("echo", CLARA_GATEWAY_SECRET=secret, **settings) as server:
        _load(server)  # a round that does not count
        rows = [_row("nobody", _load(server), server)]
        figures = []
        for kind in kinds:
            with _crowd(server, kind):
                result = _load(server)
            rows.append(_row(kind, result, server))
            name = f"p99 beside {COUNT} strangers, {kind}, {wire}"
            figures.append(Figure(name, result.p99_ms, "ms", _TARGET_MS))
    show(f"{_CONNECTIONS} good clients beside {COUNT} strangers, {wire}", _HEAD, rows)
    return figures


def _row(name: str, result: Result, server: Server) -> list[str]:
    figures = result.turns_per_second, result.p50_ms, result.p99_ms, result.cpu_us_per_turn
    return [name, *map(number, figures), number(memory_kib(server.pid) / 1024)]


def _load(server: Server) -> Result:
    return load.run(
        server, connections=_CONNECTIONS, in_flight=1, turns=_TURNS, limit=_LIMIT_SECONDS
    )


@contextmanager
def _crowd(server: Server, kind: str) -> Iterator[None]:
    """Have strangers come for the length of the block, from a process of their own."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.strangers",
            "127.0.0.1",
            str(server.port),
            kind,
            *(["--tls"] if server.tls else []),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.communicate()
