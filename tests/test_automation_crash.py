"""Hooks and tasks of a daemon that is killed, again and again: none lost, none twice, none left.

`CLARAD_KILLS=1000` makes it a long one; `CLARAD_SEED` repeats the moments of an earlier one.
"""

import os
import random
import secrets
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest

from tests.daemon_process import LIFE, PATIENCE, Process, lives_of

KILLS: Final = int(os.environ.get("CLARAD_KILLS", "24"))
SEED: Final = os.environ.get("CLARAD_SEED")

pytestmark = pytest.mark.soak

HOOKS: Final = """\
hooks:
  - name: parallel
    event: scheduler:task_run
    match: {task: every}
    command: echo "$CLARA_RUN" >> hooks.log
  - name: queue
    event: scheduler:task_run
    match: {task: every}
    overlap: queue
    command: echo "$CLARA_RUN" >> hooks.log; sleep 0.02
  - name: retries
    event: scheduler:task_run
    match: {task: every}
    retries: 1
    command: echo "$CLARA_RUN" >> retries.log; sleep 0.02
"""

TASKS: Final = """\
tasks:
  - name: every
    interval: 0.1
    overlap: queue
    catch_up: all
    command: echo "$CLARA_RUN" >> tasks.log
  - name: some
    interval: 0.05
    overlap: skip
    command: echo "$CLARA_RUN" >> tasks.log; sleep 0.07
  - name: hang
    interval: 0.3
    overlap: cancel
    command: setsid sleep 1000 & sleep 1000
"""

NO_TASKS: Final = "tasks: []\n"

TABLES: Final = ("clarad_task_runs", "clarad_hook_runs")
INTERVALS: Final = {"every": 0.1, "some": 0.05, "hang": 0.3}


class Installation:
    """A daemon with hooks and tasks, which has many lives."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = secrets.token_hex(8)
        self.lives = 0
        directory.mkdir()
        (directory / "hooks.yaml").write_text(HOOKS)
        (directory / "scheduler.yaml").write_text(TASKS)

    @contextmanager
    def life(self) -> Iterator[Process]:
        """Start the daemon; what is left of it at the end of the block is killed."""
        self.lives += 1
        process = Process(
            self.directory / "state",
            CLARA_HOOKS_DIR=str(self.directory),
            CLARA_SCHEDULER_DIR=str(self.directory),
            CLARA_DRAIN_TIMEOUT="1",
            **{LIFE: f"{self.name}-{self.lives}"},
        )
        try:
            yield process
        finally:
            process.kill()

    def alive(self, *, before_life: int) -> list[str]:
        """Return the processes that earlier lives have left, as `ps` would show them."""
        return [line for life, line in lives_of(self.name) if life < before_life]

    def rows(self, query: str) -> list[Any]:
        with closing(sqlite3.connect(self.directory / "state" / "clarad.db")) as database:
            return database.execute(query).fetchall()

    def log(self, name: str) -> Counter[str]:
        """Return how often each run has written its line."""
        path = self.directory / name
        return Counter(path.read_text().split() if path.exists() else [])


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def live_and_be_killed(installation: Installation, chance: random.Random) -> None:
    """Live for a short while, perhaps not even until the daemon listens."""
    began = datetime.now().astimezone()
    with installation.life() as process:
        if chance.random() < 0.5:
            time.sleep(chance.uniform(0, 1))
        else:
            process.wait_for_log("listening on")
            assert installation.alive(before_life=installation.lives) == []
            if chance.random() < 0.3:
                wait_until(lambda: not lies(installation, began), "what was left does not end")
            time.sleep(chance.uniform(0, 0.4))
        process.signal(signal.SIGKILL)
        process.wait()


def lies(installation: Installation, since: datetime) -> list[Any]:
    """Return the runs that are down as running since before this daemon was there."""
    utc = since.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
    running = f"ended_at IS NULL AND begun_at < '{utc}'"
    return [
        row
        for table in TABLES
        for row in installation.rows(f"SELECT run_id FROM {table} WHERE {running}")
    ]


def unfinished(installation: Installation) -> list[Any]:
    return [
        row
        for table in TABLES
        for row in installation.rows(f"SELECT run_id FROM {table} WHERE ended_at IS NULL")
    ]


def be_stopped(installation: Installation) -> None:
    """Write down what the last kill has kept from it, then live on until no hook waits, and stop.

    Rows need not be written in order: were the tasks removed first, nobody would ask for those that
    a kill has left out.
    """
    with installation.life() as process:
        process.wait_for_log("listening on")
        wait_until(lambda: not gaps(installation), "an occurrence has no row")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    (installation.directory / "scheduler.yaml").write_text(NO_TASKS)
    with installation.life() as process:
        process.wait_for_log("listening on")
        assert installation.alive(before_life=installation.lives) == []
        wait_until(lambda: not unfinished(installation), "runs are waiting")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert "Traceback" not in process.log
    assert installation.alive(before_life=installation.lives + 1) == []


def check(installation: Installation) -> None:
    assert installation.rows("PRAGMA integrity_check") == [("ok",)]
    assert not gaps(installation)
    columns = "run_id, outcome, attempts"
    tasks = installation.rows(f"SELECT {columns}, task FROM clarad_task_runs")
    hooks = installation.rows(f"SELECT {columns}, hook FROM clarad_hook_runs")
    check_runs([row for row in tasks if row[3] != "hang"], installation.log("tasks.log"), 1)
    check_runs([row for row in hooks if row[3] != "retries"], installation.log("hooks.log"), 1)
    check_runs([row for row in hooks if row[3] == "retries"], installation.log("retries.log"), 2)


def gaps(installation: Installation) -> list[str]:
    """Return where occurrences from a task's first to its last have no row, or more than one."""
    found = []
    for task, interval in INTERVALS.items():
        query = f"SELECT nominal_at FROM clarad_task_runs WHERE task = '{task}' ORDER BY nominal_at"
        times = [datetime.fromisoformat(at) for (at,) in installation.rows(query)]
        found += [] if len(times) > 1 else [f"{task} has not run"]
        found += [
            f"{task} from {earlier} to {later}"
            for earlier, later in pairwise(times)
            if later - earlier != timedelta(seconds=interval)
        ]
    return found


def check_runs(rows: list[Any], log: Counter[str], attempts: int) -> None:
    """What ran has done it as often as is written, and nothing ran that is not written down."""
    assert log.keys() <= {run_id for run_id, *_ in rows}
    for run_id, outcome, made, *_ in rows:
        assert made <= attempts
        match outcome:
            case "ran":
                assert 1 <= log[run_id] <= made
            case "skipped":
                assert log[run_id] == made == 0
            case "interrupted" | "cancelled":
                assert log[run_id] <= made
            case _:
                pytest.fail(f"{run_id} has ended as {outcome}")


def test_a_daemon_that_is_killed_again_and_again_accounts_for_every_run(tmp_path: Path) -> None:
    seed = SEED or secrets.token_hex(4)
    print(f"CLARAD_SEED={seed}")

    def live_through(number: int) -> None:
        chance = random.Random(f"{seed}-{number}")
        installation = Installation(tmp_path / f"{number}")
        for _ in range(KILLS // 2):
            live_and_be_killed(installation, chance)
        be_stopped(installation)
        check(installation)

    with ThreadPoolExecutor() as threads:
        for lived in [threads.submit(live_through, number) for number in range(2)]:
            lived.result()
