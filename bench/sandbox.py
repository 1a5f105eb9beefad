"""`python -m bench.sandbox [docker] [incus]`: the sandboxes, beside the engines' own exec.

Measured on the engines of `make engines`, or on those that the environment names.
"""

import argparse
import os
import platform
import random
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Final

import trio

from bench.report import Figure, number, percentile, show, show_figures
from sandbox import Sandbox, SandboxError, Settings, load, open_keeper

ENGINES: Final = ("docker", "incus")

_PRINT: Final = ["python3", "-c", "print(1)"]
_ACQUIRES: Final = 20
_SLOTS: Final = 5
_RUNS: Final = 30
_CANCELS: Final = 20
_RANDOM_CANCELS: Final = 500
_YES_SECONDS: Final = 5.0

_FORK_BOMB: Final = """
import os, time
print("ready", flush=True)
while True:
    try: os.fork()
    except OSError: time.sleep(0.001)
"""
_DEAF: Final = """
import signal, time
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
print("ready", flush=True)
time.sleep(1000)
"""
_KINDS: Final[dict[str, Callable[[str], list[str]]]] = {
    "one process": lambda mark: ["sh", "-c", f"echo; exec sleep {mark}"],
    "five children": lambda mark: [
        "sh", "-c", f"for i in 1 2 3 4 5; do sleep {mark} & done; echo; wait"
    ],
    "setsid, daemonised": lambda mark: [
        "sh", "-c", f"(setsid sh -c 'sleep {mark} & echo' &); exec sleep {mark}"
    ],
    "ignores signals": lambda mark: ["python3", "-c", _DEAF, mark],
    "fork bomb": lambda mark: ["python3", "-c", _FORK_BOMB, mark],
    "yes": lambda mark: ["yes", mark],
}  # fmt: skip


def main() -> int:
    """Run the measurements on the engines that are named, or on both."""
    parser = argparse.ArgumentParser(prog="python -m bench.sandbox", description=__doc__)
    parser.add_argument("engines", nargs="*", choices=[*ENGINES, []], metavar="ENGINE")
    names = parser.parse_args().engines or list(ENGINES)
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} CPUs, "
        f"load {os.getloadavg()[0]:.1f} before",
        flush=True,
    )
    figures: list[Figure] = []
    try:
        for name in names:
            figures += trio.run(_measure, name)
    except SandboxError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    finally:
        if figures:
            show_figures(figures)
    return 0


def _settings(mode: str) -> Settings:
    found: dict[str, str] = {}
    with suppress(OSError):
        lines = Path("/run/clarad-engines/env").read_text().splitlines()
        found = dict(line.split("=", 1) for line in lines)
    return replace(load({**found, **os.environ}), mode=mode, pool=0, max=32)


@contextmanager
def _timed(samples: list[float]) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    samples.append((time.perf_counter() - begin) * 1e3)


async def _measure(mode: str) -> list[Figure]:
    settings = _settings(mode)
    name = f"bench-{secrets.token_hex(3)}"
    figures = await _measure_acquiring(replace(settings, pool=5), name)
    async with open_keeper(settings, name) as keeper:
        sandbox = await keeper.acquire("bench")
        await trio.sleep(3)  # an Incus container boots meanwhile
        figures += await _measure_runs(sandbox, settings)
        figures += await _measure_cancels(mode, sandbox)
        figures += await _measure_flood(sandbox)
    return [figure._replace(name=f"{mode}: {figure.name}") for figure in figures]


async def _measure_acquiring(settings: Settings, name: str) -> list[Figure]:
    acquires: list[float] = []
    slots: list[float] = []
    async with open_keeper(settings, name) as keeper:
        for n in range(_ACQUIRES):
            while not any(status.owner is None for status in keeper.status()):
                await trio.sleep(0.05)
            with _timed(acquires):
                await keeper.acquire(str(n))
            await keeper.delete(str(n))
    async with open_keeper(replace(settings, pool=0), name) as keeper:
        for n in range(_SLOTS):
            with _timed(slots):
                await keeper.acquire(str(n))
            await keeper.delete(str(n))
    return [
        Figure("acquire from the warm pool, p50", median(acquires), "ms", 5),
        Figure("fill a slot, p50", median(slots), "ms"),
    ]


async def _measure_runs(sandbox: Sandbox, settings: Settings) -> list[Figure]:
    """The same command through the agent and through the engine's SDK, by turns."""
    ours: list[float] = []
    theirs: list[float] = []
    execute = await trio.to_thread.run_sync(_sdk_exec, settings, sandbox.name)
    for _ in range(_RUNS):
        with _timed(ours):
            result = await sandbox.run(_PRINT)
        assert result.stdout.kept == b"1\n"
        with _timed(theirs):
            await trio.to_thread.run_sync(execute)
    return [
        Figure("python3 -c 'print(1)' by the agent, p50", median(ours), "ms"),
        Figure("the same by the SDK's exec, p50", median(theirs), "ms"),
        Figure("agent / SDK", median(ours) / median(theirs), "", 0.5),
    ]


def _sdk_exec(settings: Settings, name: str) -> Callable[[], object]:
    """Return what runs the command as the SDK does it."""
    if settings.mode == "docker":
        import docker

        client = docker.APIClient(base_url=settings.docker_host, version="auto")

        def execute() -> Any:
            made = client.exec_create(name, _PRINT, user="1000:1000")["Id"]
            assert client.exec_start(made) == b"1\n"

        return execute
    import warnings

    import pylxd

    warnings.simplefilter("ignore")  # of attributes that LXD does not have
    instance = pylxd.Client(endpoint=str(settings.incus_socket)).instances.get(name)

    def execute_incus() -> Any:
        assert instance.execute(_PRINT, user=1000, group=1000).stdout == "1\n"

    return execute_incus


async def _measure_cancels(mode: str, sandbox: Sandbox) -> list[Figure]:
    """From the cancel until `run` has returned, when nothing may be left."""
    mark = f"1000.{secrets.randbelow(10**15):015d}"
    rows: list[list[str]] = []
    everything: list[float] = []
    survivors = 0
    for kind, command in _KINDS.items():
        samples: list[float] = []
        for _ in range(_CANCELS):
            settle = 0.3 if kind == "fork bomb" else 0.02
            await _cancel(sandbox, command(mark), samples, settle, wait=True)
            survivors += _alive(mark)
        rows.append([kind, *(number(percentile(samples, p)) for p in (50, 99, 100))])
        everything += samples
    chance = random.Random(1)
    at_random: list[float] = []
    for _ in range(_RANDOM_CANCELS):
        kind = chance.choice([name for name in _KINDS if name != "fork bomb"])
        await _cancel(sandbox, _KINDS[kind](mark), at_random, chance.uniform(0, 0.08))
        survivors += _alive(mark)
    rows.append(
        [f"{_RANDOM_CANCELS} at random", *(number(percentile(at_random, p)) for p in (50, 99, 100))]
    )
    show(f"{mode}: cancel until all are gone, ms", ["", "p50", "p99", "max"], rows)
    return [
        Figure("cancel until all are gone, p50", percentile(everything + at_random, 50), "ms"),
        Figure("cancel until all are gone, p99", percentile(everything + at_random, 99), "ms", 250),
        Figure("cancel until all are gone, max", max(everything + at_random), "ms"),
        Figure(f"survivors of {len(everything + at_random)} cancels", survivors, "", 0),
    ]


async def _cancel(
    sandbox: Sandbox,
    command: list[str],
    samples: list[float],
    settle: float,
    *,
    wait: bool = False,
) -> None:
    """Start a command, and cancel it after `settle` seconds; first `wait` for a word from it."""
    started = trio.Event()
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await sandbox.run(command, on_output=lambda *_: started.set())

        nursery.start_soon(run)
        if wait:
            await started.wait()
        await trio.sleep(settle)
        begin = time.perf_counter()
        nursery.cancel_scope.cancel("measured")
    samples.append((time.perf_counter() - begin) * 1e3)


def _alive(mark: str) -> int:
    """How many processes of this machine have the mark in their command lines."""
    found = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                found += mark.encode() in (entry / "cmdline").read_bytes()
    return found


async def _measure_flood(sandbox: Sandbox) -> list[Figure]:
    before = _resident()
    result = await sandbox.run("yes", timeout=_YES_SECONDS)
    return [
        Figure(f"written by {_YES_SECONDS:.0f} s of yes", result.stdout.total / 1e6, "MB"),
        Figure("memory that it took here", (_resident() - before) / 2**20, "MiB", 8),
    ]


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
