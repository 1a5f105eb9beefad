"""PostgreSQL that is stopped, and started again, under daemons that run: they lose nothing."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.daemon_process import PATIENCE, Process, clarad, daemon
from tests.peer import Peer, connect
from tests.postgres import BINARIES, SHARED, Cluster
from tests.store.conftest import Outside

INTERVAL = 0.5
TASKS = """\
tasks:
  - {{name: t, interval: {}, catch_up: all, overlap: queue, command: echo "$CLARA_RUN" >> {}/runs}}
"""


@pytest.fixture(params=SHARED)
def server(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A PostgreSQL of the test's own, to be stopped."""
    assert BINARIES is not None
    cluster = Cluster(BINARIES)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop()


async def register(nursery: trio.Nursery, process: Process, node_id: str) -> Peer:
    """Register once the daemon takes connections and has a database."""
    with trio.fail_after(PATIENCE):
        while True:
            try:
                peer = await connect(nursery, process.url)
            except (OSError, AssertionError):  # it is between two lives
                await trio.sleep(0.1)
                continue
            peer.patience = PATIENCE
            about = {"node_id": node_id, "platform": "test", "capabilities": ["accepted"]}
            await peer.send("register", **about)
            answer = await peer.receive()
            if answer["type"] == "registered":
                return peer
            assert answer["recoverable"] is True
            await peer.drop()
            await trio.sleep(0.1)


async def until_answered(peer: Peer, request_id: str) -> str:
    """Send a message until it is taken, and return what it is answered with."""
    with trio.fail_after(PATIENCE):
        while True:
            await peer.ask(request_id, channel=request_id)
            outcome = await peer.outcome_of(request_id)
            if outcome["type"] == "response_end":
                text: str = outcome["full_text"]
                return text
            assert outcome["recoverable"] is True
            await trio.sleep(0.1)


async def until(outside: Outside, query: str, wanted: list[tuple[Any, ...]]) -> None:
    """Wait until the query finds this."""
    with trio.fail_after(PATIENCE):
        while await trio.to_thread.run_sync(outside.rows, query) != wanted:
            await trio.sleep(0.02)


@pytest.mark.parametrize("number", [1, 2], ids=["one daemon", "two daemons"])
async def test_what_was_accepted_is_answered_and_tasks_are_caught_up_with(
    server: Cluster, tmp_path: Path, number: int, nursery: trio.Nursery
) -> None:
    gate = tmp_path / "gate"
    (tmp_path / "scheduler.yaml").write_text(TASKS.format(INTERVAL, tmp_path))
    with server.database() as url, ExitStack() as stack:
        settings = {
            "DATABASE_URL": url,
            "CLARA_LEASE": "2",
            "CLARA_HOOKS_DIR": str(tmp_path),
            "CLARA_SCHEDULER_DIR": str(tmp_path),
            "CLARA_RESPONDER": "command",
            "CLARA_RESPONDER_COMMAND": f"while [ ! -e {gate} ]; do sleep 0.01; done; echo done",
        }
        processes = [
            stack.enter_context(daemon(tmp_path / f"state-{n}", **settings)) for n in range(number)
        ]
        outside = Outside(url)
        await until(outside, "SELECT 1 FROM clarad_task_runs WHERE outcome = 'ran' LIMIT 1", [(1,)])
        peers = [await register(nursery, one, f"node-{n}") for n, one in enumerate(processes)]
        for n, peer in enumerate(peers):
            for request_id in (f"runs-{n}", f"waits-{n}"):
                await peer.ask(request_id, channel=f"channel-{n}")
        accepted = "SELECT count(*), count(begun_at) FROM clarad_messages"
        await until(outside, accepted, [(2 * number, number)])
        server.halt()
        if number == 1:  # it is sure of its lease, being alone; two of them soon are not
            await peers[0].ask("refused", channel="another")
            assert (await peers[0].outcome_of("refused"))["recoverable"] is True
        else:
            for process in processes:
                await trio.to_thread.run_sync(process.wait_for_log, "the lease is lost")
        server.go_on()
        gate.touch()
        again = [await register(nursery, one, f"again-{n}") for n, one in enumerate(processes)]
        for n, peer in enumerate(again):
            assert await until_answered(peer, f"new-{n}") == "done\n"
        for peer in (*peers, *again):
            await peer.drop()
        unfinished = "SELECT request_id FROM clarad_messages WHERE ended_at IS NULL"
        await until(outside, unfinished, [])
        outcomes = dict(outside.rows("SELECT request_id, outcome FROM clarad_messages"))
        began = "completed" if number == 1 else "interrupted"
        assert {outcomes[f"runs-{n}"] for n in range(number)} == {began}
        assert {outcomes[f"waits-{n}"] for n in range(number)} == {"completed"}
        await check_tasks(outside, tmp_path)
        for process in processes:
            assert "Traceback" not in process.log


async def check_tasks(outside: Outside, directory: Path) -> None:
    """Each occurrence has one row, and has run once at the most, and then not in silence."""
    steps = "SELECT nominal_at - lag(nominal_at) OVER (ORDER BY nominal_at) FROM clarad_task_runs"
    left_out = (
        f"SELECT count(*) FROM ({steps}) AS steps (step) WHERE step <> interval '{INTERVAL} s'"
    )
    await until(outside, left_out, [(0,)])
    ran = outside.rows("SELECT run_id FROM clarad_task_runs WHERE outcome = 'ran'")
    runs = Counter((directory / "runs").read_text().split())
    assert set(runs.values()) == {1}
    assert {run_id for (run_id,) in ran} <= runs.keys()


def test_status_fails_while_the_server_is_away_and_is_well_again_after_it_has_come_back(
    server: Cluster, tmp_path: Path
) -> None:
    with server.database() as url, daemon(tmp_path, DATABASE_URL=url) as process:
        assert clarad("status", env=process.environment).returncode == 0
        server.halt()
        said = clarad("status", env=process.environment)
        assert said.returncode == 1
        assert "the database fails since " in said.stderr
        server.go_on()
        while clarad("status", env=process.environment).returncode != 0:
            pass
