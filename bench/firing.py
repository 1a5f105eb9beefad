"""How late a thousand tasks are that are due at the same moment."""

import time
from datetime import UTC, datetime
from statistics import median

import trio

from bench.automation import run_bare, write_tasks
from bench.report import Figure, number, percentile, show
from bench.server import clarad_on, empty_state
from bench.witness import Witness, witness

_TASKS = 1_000
_AT_ONCE = 256
_ROUNDS = 3
_AHEAD_SECONDS = 5
_LIMIT_SECONDS = 60.0


class LateStartError(Exception):
    """The daemon was not there when the tasks were due."""


def run() -> list[Figure]:
    """Measure from the time at which tasks are due until their commands have begun, and print it.

    The floor is what Trio makes of the same commands, as many at once as the daemon allows.
    """
    floor = [_fire_bare() for _ in range(_ROUNDS)]
    daemon = [_fire() for _ in range(_ROUNDS)]
    show(
        f"Firing, {_TASKS} tasks due at the same moment, ms until their commands have begun",
        ["", "rounds", "p50", "p99", "max"],
        [_row(f"bare trio.run_process, {_AT_ONCE} at once", floor), _row("clarad", daemon)],
    )
    return [
        Figure(f"lateness of {_TASKS} tasks at once, p50", _percentile(daemon, 50), "ms"),
        Figure(f"lateness of {_TASKS} tasks at once, p99", _percentile(daemon, 99), "ms"),
    ]


def _row(name: str, rounds: list[list[float]]) -> list[str]:
    ranks = (_percentile(rounds, percent) for percent in (50, 99, 100))
    return [name, str(len(rounds)), *map(number, ranks)]


def _percentile(rounds: list[list[float]], percent: float) -> float:
    """The median over the rounds, each with tasks of its own that wait for each other."""
    return median(percentile(samples, percent) for samples in rounds)


def _fire() -> list[float]:
    with empty_state() as state, witness(state / "witness") as reader:
        due_at = int(time.time()) + _AHEAD_SECONDS
        run_at = datetime.fromtimestamp(due_at, UTC).isoformat()
        command = reader.command("$CLARA_TASK")
        write_tasks(
            state,
            (
                {"name": f"task-{n}", "type": "one_shot", "run_at": run_at, "command": command}
                for n in range(_TASKS)
            ),
        )
        with clarad_on(state, "echo"):
            if time.time() >= due_at:
                raise LateStartError(f"clarad took more than {_AHEAD_SECONDS} s to start")
            return _lateness(reader, due_at)


def _fire_bare() -> list[float]:
    with empty_state() as state, witness(state / "witness") as reader:
        due_at = time.time()
        trio.run(_run_all, reader)
        return _lateness(reader, due_at)


async def _run_all(reader: Witness) -> None:
    limiter = trio.CapacityLimiter(_AT_ONCE)

    async def run_one(n: int) -> None:
        async with limiter:
            await run_bare(reader.command("$CLARA_TASK"), CLARA_TASK=f"task-{n}")

    async with trio.open_nursery() as nursery:
        for n in range(_TASKS):
            nursery.start_soon(run_one, n)


def _lateness(reader: Witness, due_at: float) -> list[float]:
    """Wait until every task has begun, each of them once, and return how late, in milliseconds."""
    arrivals = reader.wait(_TASKS, _LIMIT_SECONDS)
    assert len({arrival.text for arrival in arrivals}) == _TASKS
    return [(arrival.at - due_at) * 1e3 for arrival in arrivals]
