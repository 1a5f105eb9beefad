"""What tasks and hooks cost that have nothing to do: at the start, and in each second after it."""

import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from zoneinfo import ZoneInfo

from bench.automation import Entry, write_hooks, write_tasks
from bench.process import cpu_seconds, memory_kib
from bench.report import Figure, number, show
from bench.server import Server, clarad_on, empty_state

_TASKS = 10_000
_HOOKS = 1_000
_STARTS = 3
_IDLE_SECONDS = 60.0
_SETTLE_SECONDS = 2.0
_LOAD_TARGET_SECONDS = 2.0
_ZONE = "Europe/Berlin"
_NOT_BEFORE = timedelta(hours=2)


def run() -> list[Figure]:
    """Measure a daemon that has tasks and hooks, and one that has none, and print both."""
    with empty_state() as many, empty_state() as none:
        write_tasks(many, _tasks())
        write_hooks(many, _hooks())
        first = _start(many)
        _start(none)
        loaded, bare = _starts(many), _starts(none)
        show(
            f"Start with {_TASKS} tasks and {_HOOKS} hooks, seconds until it listens",
            ["", "starts", "median", "max"],
            [
                ["clarad, without any", str(_STARTS), number(median(bare)), number(max(bare))],
                ["clarad, all known", str(_STARTS), number(median(loaded)), number(max(loaded))],
                ["clarad, all new", "1", number(first), number(first)],
            ],
        )
        with clarad_on(many, "echo") as busy, clarad_on(none, "echo") as idle:
            time.sleep(_SETTLE_SECONDS)
            cost, floor = _cpu([busy, idle])
            sizes = [memory_kib(server.pid) for server in (busy, idle)]
    rows = zip(("clarad", "clarad, without any"), (cost, floor), sizes, strict=True)
    show(
        f"Idle for {_IDLE_SECONDS:.0f} s, {_TASKS} tasks and {_HOOKS} hooks of which none is due",
        ["", "CPU %", "CPU ms/s", "memory MiB"],
        [[name, number(cpu / 10), number(cpu), number(kib / 1024)] for name, cpu, kib in rows],
    )
    load = median(loaded) - median(bare)
    return [
        Figure(f"load {_TASKS} tasks and {_HOOKS} hooks", load, "s", _LOAD_TARGET_SECONDS),
        Figure(f"CPU while idle with {_TASKS} tasks", cost, "ms/s"),
        Figure(f"CPU while idle with {_TASKS} tasks", cost / 10, "%"),
    ]


def _tasks() -> Iterator[Entry]:
    """Make daily tasks; none is due for a while."""
    soon = datetime.now(ZoneInfo(_ZONE)) + _NOT_BEFORE
    for n in range(_TASKS):
        at = soon + timedelta(minutes=n % 1_000)
        yield {
            "name": f"task-{n}",
            "description": f"The task with the number {n}.",
            "type": "cron",
            "cron": f"{at.minute} {at.hour} * * *",
            "timezone": _ZONE,
            "command": f"./task.sh {n}",
        }


def _hooks() -> Iterator[Entry]:
    """Make hooks; their events do not occur."""
    for n in range(_HOOKS):
        yield {
            "name": f"hook-{n}",
            "event": "tool:error",
            "match": {"platform": "discord", "channel_id": f"channel-{n}"},
            "command": f'./hook.sh {n} "${{CLARA_USER_ID}}"',
        }


def _starts(state: Path) -> list[float]:
    return [_start(state) for _ in range(_STARTS)]


def _start(state: Path) -> float:
    with clarad_on(state, "echo") as server:
        return server.startup_seconds


def _cpu(servers: list[Server]) -> list[float]:
    """Wait, and return the milliseconds of CPU that each server took in a second, on average."""
    before = [cpu_seconds(server.pid) for server in servers]
    begin = time.perf_counter()
    time.sleep(_IDLE_SECONDS)
    after = [cpu_seconds(server.pid) for server in servers]
    seconds = time.perf_counter() - begin
    return [(b - a) / seconds * 1e3 for a, b in zip(before, after, strict=True)]
