"""Four daemons on one PostgreSQL that are killed, frozen, cut off and locked out: none lost, none
twice.

`CLARAD_FAULTS=200` makes it a long one; `CLARAD_SEED` has another order of them.
"""

import itertools
import os
import random
import secrets
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from trio_websocket import ConnectionClosed, HandshakeError, wrap_client_stream

from clarad.config import discovery
from tests.daemon_process import PATIENCE, Process
from tests.network import BACK, THERE, Network
from tests.peer import TERMINAL, Frame, Peer
from tests.postgres import SHARED, database, lock_table
from tests.store.conftest import Outside

FAULTS: Final = int(os.environ.get("CLARAD_FAULTS", "4"))
SEED: Final = os.environ.get("CLARAD_SEED", "7")

pytestmark = pytest.mark.soak

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


UNFINISHED: Final = """\
SELECT id, channel_id, request_id, owner, received_at, begun_at FROM clarad_messages
WHERE ended_at IS NULL ORDER BY id LIMIT 20"""

CHANNELS: Final = ("a", "b", "c")
ANSWER: Final = 'echo "$CLARA_REQUEST_ID" >> messages.log; sleep 0.05; echo "$CLARA_CONTENT"'

LOST: Final = (
    ConnectionClosed,
    HandshakeError,
    OSError,
    trio.TooSlowError,
    trio.ClosedResourceError,
)
"""What a connection to a daemon in trouble ends with."""


class Machine:
    """A machine with a daemon on it, and a network of its own to the database."""

    def __init__(self, directory: Path, name: str, url: str) -> None:
        self._directory = directory
        self.state_dir = directory / name
        self.network = Network(url)
        self._logs: list[str] = []
        self.process = self._start()

    def _start(self) -> Process:
        return Process(
            self.state_dir,
            DATABASE_URL=self.network.url,
            CLARA_LEASE=str(LEASE),
            CLARA_HOOKS_DIR=str(self._directory),
            CLARA_SCHEDULER_DIR=str(self._directory),
            CLARA_RESPONDER="command",
            CLARA_RESPONDER_COMMAND=f"cd {self._directory}; {ANSWER}",
        )

    def be_killed(self, chance: random.Random) -> None:
        self.process.kill()
        time.sleep(chance.choice([0, LEASE * 2]))
        self._start_again()

    def apply_backpressure(self) -> None:
        """Start a daemon again that has found no database at its start, as systemd would."""
        if self.process.has_ended:
            self.process.kill()
            self._start_again()

    def wait_until_it_listens(self) -> None:
        def listens() -> bool:
            self.apply_backpressure()
            return "listening on" in self.process.log

        wait_until(listens, "the daemon does not start")

    def _start_again(self) -> None:
        self._logs.append(self.process.log)
        self.process = self._start()

    @property
    def log(self) -> str:
        """What all its daemons have logged."""
        return "".join([*self._logs, self.process.log])

    def stand_still(self, chance: random.Random) -> None:
        self.process.signal(signal.SIGSTOP)
        time.sleep(chance.choice([LEASE / 2, LEASE * 2]))
        self.process.signal(signal.SIGCONT)

    def be_cut_off(self, chance: random.Random) -> None:
        self.network.cut()
        time.sleep(chance.choice([0, LEASE * 2]))
        self.network.mend()

    def be_left_without_packets(self, chance: random.Random) -> None:
        self.network.vanish(chance.choice([(THERE,), (BACK,), (THERE, BACK)]))
        time.sleep(chance.choice([LEASE / 2, LEASE * 2]))
        self.network.mend(forgotten=chance.choice([False, True]))

    @property
    def faults(self) -> list[Callable[[random.Random], None]]:
        return [self.be_killed, self.stand_still, self.be_cut_off, self.be_left_without_packets]

    def end(self) -> None:
        self.process.kill()
        self.network.close()


class Load:
    """Adapters that connect to whichever daemon they find, and send again what was not answered."""

    def __init__(self, machines: list[Machine]) -> None:
        self._machines = machines
        self._chance = random.Random(SEED)
        self.is_over = threading.Event()
        self.waiting: set[str] = set()
        self.answers: defaultdict[str, set[str]] = defaultdict(set)
        self._thread = threading.Thread(target=trio.run, args=(self._run,))
        self._thread.start()

    def end(self, outside: Outside) -> None:
        """Send no more, and wait for the answers that are owed."""
        self.is_over.set()
        self._thread.join(PATIENCE * 3)
        if self.waiting:
            print(sorted(self.waiting)[:5])
            print(*outside.rows("SELECT * FROM clarad_daemons"), sep="\n")
            print(*outside.rows(UNFINISHED), sep="\n")
        assert not self.waiting

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            for n, capability in enumerate(("accepted", "accepted", "resume")):
                nursery.start_soon(self._be_adapter, f"node-{n}", capability)
            while not self.is_over.is_set():
                await trio.sleep(0.1)
            nursery.cancel_scope.deadline = trio.current_time() + PATIENCE * 2

    async def _be_adapter(self, node_id: str, capability: str) -> None:
        asked: dict[str, str] = {}
        about: dict[str, Any] = {"session_id": "", "last_seq": 0}
        while asked or not self.is_over.is_set():
            found = discovery.find(self._chance.choice(self._machines).state_dir)
            if found is not None:
                try:
                    async with trio.open_nursery() as nursery:
                        peer = await reach(nursery, found)
                        try:
                            await self._talk(peer, (node_id, capability), about, asked)
                        finally:
                            await peer.drop()
                except* LOST:
                    pass  # and on to another daemon
            await trio.sleep(0.1)

    async def _talk(
        self,
        peer: Peer,
        who: tuple[str, str],
        about: dict[str, Any],
        asked: dict[str, str],
    ) -> None:
        node_id, capability = who
        whole = {"node_id": node_id, "platform": "test", "capabilities": [capability]}
        await peer.send("register", **whole | about)
        registered = await peer.receive()
        if registered["type"] != "registered":
            raise ConnectionError(registered)
        if not registered["resumed"]:
            about["last_seq"] = 0
        about["session_id"] = registered["session_id"]
        for request_id, channel in asked.items():
            await peer.ask(request_id, channel=channel)
        for n in itertools.count() if not self.is_over.is_set() else range(50):
            if not self.is_over.is_set():
                request_id = f"{node_id}-{secrets.token_hex(4)}"
                asked[request_id] = self._chance.choice(CHANNELS)
                self.waiting.add(request_id)
                await peer.ask(request_id, channel=asked[request_id])
            elif not asked:
                return
            with trio.move_on_after(0.4):
                while True:
                    await self._take(peer, await peer.receive(), about, asked)
            if n % 10 == 9:
                return  # and to another daemon

    async def _take(
        self, peer: Peer, frame: Frame, about: dict[str, Any], asked: dict[str, str]
    ) -> None:
        if "seq" in frame:
            if frame["seq"] <= about["last_seq"]:
                return
            about["last_seq"] = frame["seq"]
            await peer.send("ack", seq=frame["seq"])
        request_id = frame.get("request_id")
        code = str(frame.get("code", frame["type"]))
        if frame["type"] in TERMINAL and code not in REFUSALS and request_id is not None:
            self.answers[request_id].add(code)
            self.waiting.discard(request_id)
            asked.pop(request_id, None)


REFUSALS: Final = ("processing_error", "shutting_down", "queue_full")
"""Codes that say that a message was not taken, and is to be sent again."""


async def reach(nursery: trio.Nursery, where: discovery.Address) -> Peer:
    """Connect to a daemon that may go away meanwhile, which trio-websocket would wait for."""
    stream = await trio.open_tcp_stream(where.host, where.port)
    try:
        with trio.fail_after(PATIENCE / 3):
            return Peer(await wrap_client_stream(nursery, stream, where.host, "/"))
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


@contextmanager
def four_machines(directory: Path, url: str) -> Iterator[list[Machine]]:
    machines: list[Machine] = []
    try:
        for n in range(4):
            machines.append(Machine(directory, f"state-{n}", url))
        for machine in machines:
            machine.wait_until_it_listens()
        yield machines
    finally:
        for machine in machines:
            machine.end()
            machine.state_dir.with_suffix(".log").write_text(machine.log)


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


def check_messages(outside: Outside, directory: Path, load: Load) -> None:
    rows = outside.rows(
        "SELECT channel_id, request_id, outcome, begun_at, ended_at FROM clarad_messages"
        " ORDER BY channel_id, begun_at"
    )
    assert rows
    assert {request_id for _, request_id, *_ in rows} == load.answers.keys()
    assert all(len(codes) == 1 for codes in load.answers.values()), load.answers
    log = Counter((directory / "messages.log").read_text().split())
    for _, request_id, outcome, *_ in rows:
        assert log[request_id] <= 1
        if outcome == "completed":
            assert log[request_id] == 1
            assert load.answers[request_id] == {"response_end"}
    for earlier, later in pairwise(row for row in rows if row[3] is not None):
        if earlier[0] == later[0]:
            assert earlier[4] <= later[3], (earlier, later)


@pytest.mark.parametrize("backend", SHARED)
def test_daemons_that_are_killed_frozen_and_cut_off_account_for_everything_once(
    backend: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    chance = random.Random(SEED)
    (tmp_path / "scheduler.yaml").write_text(TASKS)
    with database(backend, tmp_path, pytestconfig) as url, four_machines(tmp_path, url) as machines:
        outside, load = Outside(url), Load(machines)

        def lock_all_out(chance: random.Random) -> None:
            lock_table(url, "clarad_messages", chance.choice([LEASE / 2, LEASE * 2]))

        for _ in range(FAULTS):
            machine = chance.choice(machines)
            fault = chance.choice([*machine.faults, lock_all_out])
            print(f"{time.strftime('%X')} {fault.__name__} {machines.index(machine)}")
            fault(chance)
            time.sleep(chance.uniform(0, LEASE))
            for machine in machines:
                machine.apply_backpressure()
        load.end(outside)
        unfinished = "SELECT run_id FROM clarad_task_runs WHERE ended_at IS NULL"
        # Who starts while others have forgotten a task would take it for a new one.
        for machine in machines:
            machine.wait_until_it_listens()
        (tmp_path / "scheduler.yaml").write_text("tasks: []\n")
        for machine in machines:
            machine.process.signal(signal.SIGHUP)
        wait_until(lambda: not outside.rows(unfinished), "runs are waiting")
        for machine in machines:
            machine.process.signal(signal.SIGTERM)
            assert machine.process.wait() == 0, machine.process.log
            assert "Traceback" not in machine.process.log, machine.process.log
        check_tasks(outside, tmp_path)
        check_messages(outside, tmp_path, load)
