"""How long clarad takes from the start of its process until it listens."""

from pathlib import Path
from statistics import median

from bench.report import Figure, number, show
from bench.server import bare, clarad, clarad_on, empty_state

_STARTS = 5
_TARGET_SECONDS = 1.0


def run() -> list[Figure]:
    """Measure starts on a migrated and on an empty database, and print them."""
    with empty_state() as state:
        _start(state)  # migrates, and fills the caches of files and of byte code
        migrated = [_start(state) for _ in range(_STARTS)]
    empty = _start_empty()
    floor = [_start_bare() for _ in range(_STARTS)]
    show(
        "Startup, seconds until it listens",
        ["", "starts", "median", "max"],
        [
            _row("bare", floor),
            _row("clarad, migrated database", migrated),
            _row("clarad, empty database", [empty]),
        ],
    )
    return [
        Figure("startup, migrated database", median(migrated), "s", _TARGET_SECONDS),
        Figure("startup, empty database", empty, "s", _TARGET_SECONDS),
    ]


def _row(name: str, samples: list[float]) -> list[str]:
    return [name, str(len(samples)), number(median(samples)), number(max(samples))]


def _start(state: Path) -> float:
    with clarad_on(state, "echo") as server:
        return server.startup_seconds


def _start_empty() -> float:
    with clarad("echo") as server:
        return server.startup_seconds


def _start_bare() -> float:
    with bare() as server:
        return server.startup_seconds
