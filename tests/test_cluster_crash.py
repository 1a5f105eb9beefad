"""Four daemons on one PostgreSQL that are killed, frozen and cut off: none lost, none twice.

`CLARAD_FAULTS=200` makes it a long one; `CLARAD_SEED` has another order of them.
"""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

from tests.network import Network
from tests.postgres import SHARED, database
from tests.process import PATIENCE, Process
from tests.store.conftest import Outside

FAULTS: Final = int(os.environ.get("CLARAD_FAULTS", "6"))
SEED: Final = os.environ.get("CLARAD_SEED", "7")
LEASE: Final = 2.0

TASKS: Final = """\
tasks:
  - name: every
    interval: 0.25
    overlap: queue
    catch_up: all
    command: echo "$CLARA_RUN" >> tasks.log
  - name: some
    interval: 0.2
    overlap: skip
    command: echo "$CLARA_RUN" >> tasks.log; sleep 0.3
  - name: newest
    interval: 0.3
    overlap: cancel
    command: echo "$CLARA_RUN" >> tasks.log; sleep 0.4
  - name: again
    interval: 0.5
    overlap: queue
    retries: 1
    command: echo "$CLARA_RUN" >> retries.log
"""
INTERVALS: Final = {"every": 0.25, "some": 0.2, "newest": 0.3, "again": 0.5}


class Machine:
    """A machine with a daemon on it, and a network of its own to the database."""

    def __init__(self, directory: Path, name: str, url: str) -> None:
        self._directory = directory
        self._state_dir = directory / name
        self.network = Network(url)
        self.process = self._start()

    def _start(self) -> Process:
        return Process(
            self._state_dir,
            DATABASE_URL=self.network.url,
            CLARA_LEASE=str(LEASE),
            CLARA_HOOKS_DIR=str(self._directory),
            CLARA_SCHEDULER_DIR=str(self._directory),
        )

    def be_killed(self, chance: random.Random) -> None:
        self.process.kill()
        time.sleep(chance.choice([0, LEASE * 2]))
        self.process = self._start()

    def stand_still(self, chance: random.Random) -> None:
        self.process.signal(signal.SIGSTOP)
        time.sleep(chance.choice([LEASE / 2, LEASE * 2]))
        self.process.signal(signal.SIGCONT)

    def be_cut_off(self, chance: random.Random) -> None:
        self.network.cut()
        time.sleep(chance.choice([0, LEASE * 2]))
        self.network.mend()

    def end(self) -> None:
        self.process.kill()
        self.network.close()


@contextmanager
def four_machines(directory: Path, url: str) -> Iterator[list[Machine]]:
    machines: list[Machine] = []
    try:
        for n in range(4):
            machines.append(Machine(directory, f"state-{n}", url))
        for machine in machines:
            machine.process.wait_for_log("listening on")
        yield machines
    finally:
        for machine in machines:
            machine.end()


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def check_tasks(outside: Outside, directory: Path) -> None:
    for task, interval in INTERVALS.items():
        query = f"SELECT nominal_at FROM clarad_task_runs WHERE task = '{task}' ORDER BY nominal_at"
        times = [at for (at,) in outside.rows(query)]
        steps = Counter(later - earlier for earlier, later in pairwise(times))
        assert set(steps) == {timedelta(seconds=interval)}, (task, steps)
    for name, query, attempts in (
        ("tasks.log", "task <> 'again'", 1),
        ("retries.log", "task = 'again'", 2),
    ):
        log = Counter((directory / name).read_text().split())
        rows = outside.rows(f"SELECT run_id, outcome, attempts FROM clarad_task_runs WHERE {query}")
        assert log.keys() <= {run_id for run_id, *_ in rows}
        for run_id, outcome, made in rows:
            assert made <= attempts
            assert log[run_id] <= made, (run_id, outcome, log[run_id])
            if outcome == "ran":
                assert log[run_id] >= 1


@pytest.mark.parametrize("backend", SHARED)
def test_daemons_that_are_killed_frozen_and_cut_off_account_for_everything_once(
    backend: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    chance = random.Random(SEED)
    (tmp_path / "scheduler.yaml").write_text(TASKS)
    with database(backend, tmp_path, pytestconfig) as url, four_machines(tmp_path, url) as machines:
        outside = Outside(url)
        for _ in range(FAULTS):
            machine = chance.choice(machines)
            fault = chance.choice([machine.be_killed, machine.stand_still, machine.be_cut_off])
            print(fault.__name__, machines.index(machine))
            fault(chance)
            time.sleep(chance.uniform(0, LEASE))
        unfinished = "SELECT run_id FROM clarad_task_runs WHERE ended_at IS NULL"
        (tmp_path / "scheduler.yaml").write_text("tasks: []\n")
        for machine in machines:
            machine.process.wait_for_log("listening on")
            machine.process.signal(signal.SIGHUP)
        wait_until(lambda: not outside.rows(unfinished), "runs are waiting")
        for machine in machines:
            machine.process.signal(signal.SIGTERM)
            assert machine.process.wait() == 0, machine.process.log
            assert "Traceback" not in machine.process.log, machine.process.log
        check_tasks(outside, tmp_path)
