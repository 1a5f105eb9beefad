"""Several daemons on one PostgreSQL, as processes: what one leaves, another goes on with."""

import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel

from tests.daemon_process import PATIENCE, Marker, Process, clarad, daemon
from tests.network import BACK, THERE, Network
from tests.peer import Peer, connect
from tests.postgres import SHARED, database
from tests.store.conftest import Outside

LEASE = "2"
"""Seconds: long enough for a busy machine, and short enough for a test."""

UNTIL_GATE = "echo started; while [ ! -e {} ]; do sleep 0.01; done; echo done"


@pytest.fixture(params=SHARED)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database that daemons can share."""
    with database(request.param, tmp_path, request.config) as url:
        yield url


@pytest.fixture
def outside(url: str) -> Outside:
    """Another program that uses the database."""
    return Outside(url)


Start = Callable[..., Process]


@pytest.fixture
def start(url: str, tmp_path: Path) -> Iterator[Start]:
    """Start daemons on the database, each on a machine of its own as far as it can know."""
    numbers = count(1)
    (tmp_path / "tasks").mkdir()
    with ExitStack() as stack:

        def start_one(**settings: str) -> Process:
            usual = {"DATABASE_URL": url, "CLARA_LEASE": LEASE}
            usual |= {"CLARA_HOOKS_DIR": str(tmp_path), "CLARA_SCHEDULER_DIR": str(tmp_path)}
            state_dir = tmp_path / f"state-{next(numbers)}"
            return stack.enter_context(daemon(state_dir, **usual | settings))

        yield start_one


async def until(outside: Outside, query: str, wanted: list[tuple[Any, ...]]) -> None:
    """Wait until the query finds this."""
    with trio.move_on_after(PATIENCE):
        while await trio.to_thread.run_sync(outside.rows, query) != wanted:
            await trio.sleep(0.02)
        return
    assert outside.rows(query) == wanted


class Adapters:
    """Those of a test, with any of its daemons; their connections end with it, however it ends."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.peers: list[Peer] = []

    async def reach(self, process: Process) -> Peer:
        """Connect, with patience for a machine that does other things meanwhile."""
        peer = await connect(self._nursery, process.url)
        peer.patience = PATIENCE
        self.peers.append(peer)
        return peer

    async def node(self, process: Process, node_id: str = "node-1") -> Peer:
        peer = await self.reach(process)
        await peer.register(node_id, ("streaming", "accepted"))
        return peer


@pytest.fixture
async def adapters(nursery: trio.Nursery) -> AsyncIterator[Adapters]:
    """Connect to daemons."""
    made = Adapters(nursery)
    yield made
    with trio.CancelScope(shield=True):  # a test that fails is cancelled
        for peer in made.peers:
            await peer.drop()


async def start_message(peer: Peer, request_id: str) -> None:
    await peer.ask(request_id)
    while (await peer.receive())["type"] != "response_chunk":
        pass


OUTCOMES = "SELECT request_id, outcome FROM clarad_messages ORDER BY id"


async def test_what_a_killed_daemon_has_left_is_gone_on_with_by_another(
    start: Start, outside: Outside, tmp_path: Path, adapters: Adapters
) -> None:
    gate = tmp_path / "gate"
    responder = {
        "CLARA_RESPONDER": "command",
        "CLARA_RESPONDER_COMMAND": UNTIL_GATE.format(gate),
    }
    killed, _ = start(**responder), start(**responder)
    peer = await adapters.node(killed)
    await start_message(peer, "begun")
    await peer.ask("waiting")
    while (await peer.receive())["type"] != "status":
        pass
    killed.kill()
    gate.touch()
    await until(outside, OUTCOMES, [("begun", "interrupted"), ("waiting", "completed")])


async def test_a_daemon_that_is_started_again_does_not_wait_for_its_own_lease(
    start: Start, outside: Outside, tmp_path: Path, adapters: Adapters
) -> None:
    responder = {"CLARA_RESPONDER": "command", "CLARA_RESPONDER_COMMAND": "echo; sleep 1000"}
    killed = start(CLARA_LEASE="100000", **responder)
    peer = await adapters.node(killed)
    await start_message(peer, "begun")
    killed.kill()
    with daemon(killed.state_dir, **_settings(killed)):
        await until(outside, OUTCOMES, [("begun", "interrupted")])


async def test_a_daemon_that_stood_still_for_too_long_ends_its_work_and_begins_anew(
    start: Start, outside: Outside, marker: Marker, adapters: Adapters
) -> None:
    stopped = start(
        CLARA_RESPONDER="command", CLARA_RESPONDER_COMMAND=f"echo started; sleep {marker.text}"
    )
    peer = await adapters.node(stopped)
    await start_message(peer, "m1")
    other = start()
    stopped.signal(signal.SIGSTOP)
    await trio.to_thread.run_sync(other.wait_for_log, "taking over")
    await until(outside, OUTCOMES, [("m1", "interrupted")])
    stopped.signal(signal.SIGCONT)
    await trio.to_thread.run_sync(stopped.wait_for_log, "the lease is lost")
    assert await peer.close_code() == 1001
    await peer.drop()
    await trio.to_thread.run_sync(stopped.wait_for_log, "beginning a new epoch")
    assert marker.alive == []
    with trio.fail_after(PATIENCE):
        while stopped.log.count("listening on") < 2:
            await trio.sleep(0.02)
    peer = await adapters.node(stopped, "node-2")
    await start_message(peer, "m2")
    await peer.drop()
    assert "Traceback" not in stopped.log


async def test_a_daemon_that_is_told_to_stop_hands_over_what_waits(
    start: Start, outside: Outside, tmp_path: Path
) -> None:
    (tmp_path / "hooks.yaml").write_text(
        "hooks:\n  - {name: h, event: gateway:startup, retries: 5, command: test -e go}\n"
    )
    stopping = start(CLARA_LEASE="100000")
    await until(outside, "SELECT count(*) > 0 FROM clarad_hook_runs WHERE attempts > 0", [(True,)])
    other = start(CLARA_LEASE="100000")
    (tmp_path / "go").touch()
    stopping.signal(signal.SIGTERM)
    assert await trio.to_thread.run_sync(stopping.wait) == 0
    await until(outside, "SELECT count(*) FROM clarad_hook_runs WHERE ended_at IS NULL", [(0,)])
    assert "Traceback" not in other.log


async def test_a_message_that_waits_when_its_daemon_stops_is_answered_by_another(
    start: Start, outside: Outside, tmp_path: Path, adapters: Adapters
) -> None:
    gate = tmp_path / "gate"
    settings = {
        "CLARA_LEASE": "100000",
        "CLARA_RESPONDER": "command",
        "CLARA_RESPONDER_COMMAND": UNTIL_GATE.format(gate),
    }
    stopping, other = start(**settings), start(**settings)
    peer = await adapters.node(stopping)
    await start_message(peer, "runs")
    await peer.ask("waits")
    while (await peer.receive())["type"] != "status":
        pass
    stopping.signal(signal.SIGTERM)
    await trio.to_thread.run_sync(stopping.wait_for_log, "stopping")
    gate.touch()
    assert (await peer.outcome_of("runs"))["type"] == "response_end"
    assert await peer.close_code() == 1001
    again = await adapters.node(other)
    assert (await again.outcome_of("waits"))["type"] == "response_end"
    assert await trio.to_thread.run_sync(stopping.wait) == 0
    await until(outside, OUTCOMES, [("runs", "completed"), ("waits", "completed")])


async def test_a_daemon_that_stops_leaves_when_all_that_it_has_is_written(
    start: Start, outside: Outside, adapters: Adapters
) -> None:
    stopping = start()
    peer = await adapters.node(stopping)
    await peer.ask("m1")
    await peer.outcome_of("m1")  # that it has arrived is noted last
    stopping.signal(signal.SIGTERM)
    assert await trio.to_thread.run_sync(stopping.wait) == 0
    is_last = "SELECT age(daemon.xmin) < age(message.xmin)"
    assert outside.rows(f"{is_last} FROM clarad_daemons daemon, clarad_messages message") == [
        (True,)
    ]


async def test_one_daemon_has_no_need_to_end_its_work_while_the_database_is_away(
    start: Start, outside: Outside, tmp_path: Path, adapters: Adapters
) -> None:
    gate = tmp_path / "gate"
    alone = start(CLARA_RESPONDER="command", CLARA_RESPONDER_COMMAND=UNTIL_GATE.format(gate))
    peer = await adapters.node(alone)
    await start_message(peer, "m1")
    cut = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    for _ in range(3):
        outside.rows(cut)
        await trio.lowlevel.checkpoint()
    gate.touch()
    assert (await peer.outcome_of("m1"))["full_text"] == "started\ndone\n"


# --- messages ------------------------------------------------------------------------------------


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """What answers wait for; a file to be made. Those of killed daemons end with the test."""
    gate = tmp_path / "gate"
    yield gate
    gate.touch()


@pytest.fixture
def two(start: Start, gate: Path) -> tuple[Process, Process]:
    """Two daemons whose answers wait for the gate."""
    settings = {
        "CLARA_RESPONDER": "command",
        "CLARA_RESPONDER_COMMAND": UNTIL_GATE.format(gate),
    }
    return start(**settings), start(**settings)


async def test_messages_of_a_channel_run_one_at_a_time_with_whichever_daemon(
    two: tuple[Process, Process], gate: Path, outside: Outside, adapters: Adapters
) -> None:
    here, there = [await adapters.node(daemon, f"node-{n}") for n, daemon in enumerate(two)]
    await start_message(here, "m1")
    await there.ask("m2")
    await there.expect("accepted")
    assert (await there.expect("status"))["queue_length"] == 1
    await here.ask("m3")
    assert await there.is_silent()
    await trio.Path(gate).touch()
    for peer, request_id in ((here, "m1"), (there, "m2"), (here, "m3")):
        assert (await peer.outcome_of(request_id))["full_text"] == "started\ndone\n"
    rows = outside.rows("SELECT begun_at, ended_at FROM clarad_messages ORDER BY id")
    assert all(begun >= ended for (_, ended), (begun, _) in pairwise(rows))


async def test_different_channels_run_side_by_side_with_whichever_daemon(
    two: tuple[Process, Process], gate: Path, adapters: Adapters
) -> None:
    here, there = [await adapters.node(daemon, f"node-{n}") for n, daemon in enumerate(two)]
    await start_message(here, "m1")
    await there.ask("m2", channel="another")
    while (await there.receive())["type"] != "response_chunk":
        pass


async def test_a_message_that_waits_for_another_daemon_s_keeps_no_other_from_running(
    start: Start, gate: Path, adapters: Adapters
) -> None:
    settings = {"CLARA_RESPONDER": "command", "CLARA_MAX_RUNNING": "1"}
    held = start(CLARA_RESPONDER_COMMAND=UNTIL_GATE.format(gate), **settings)
    quick = start(CLARA_RESPONDER_COMMAND="echo done", **settings)
    here, there = await adapters.node(held, "node-1"), await adapters.node(quick, "node-2")
    await start_message(here, "m1")
    await there.ask("m2")
    await there.expect("accepted")
    for n in range(3):
        await there.ask(f"another-{n}", channel=f"another-{n}")
        assert (await there.outcome_of(f"another-{n}"))["full_text"] == "done\n"
    await trio.Path(gate).touch()
    assert (await there.outcome_of("m2"))["full_text"] == "done\n"


async def test_a_message_that_is_sent_to_another_daemon_again_is_not_run_again(
    two: tuple[Process, Process], gate: Path, outside: Outside, adapters: Adapters
) -> None:
    here, there = [await adapters.node(daemon, f"node-{n}") for n, daemon in enumerate(two)]
    await start_message(here, "m1")
    await there.ask("m1")
    assert (await there.expect("accepted"))["duplicate"] is True
    await trio.Path(gate).touch()
    await here.outcome_of("m1")
    assert await there.is_silent()
    assert outside.rows(OUTCOMES) == [("m1", "completed")]


async def test_a_message_is_cancelled_from_whichever_daemon(
    two: tuple[Process, Process], outside: Outside, adapters: Adapters
) -> None:
    here = await adapters.node(two[0])
    await start_message(here, "m1")
    there = await adapters.node(two[1])
    await there.send("cancel", request_id="never")
    assert (await there.expect("error"))["code"] == "not_found"
    await there.send("cancel", request_id="m1")
    await until(outside, OUTCOMES, [("m1", "cancelled")])


async def test_a_node_that_unregisters_leaves_nothing_with_other_daemons(
    two: tuple[Process, Process], outside: Outside, adapters: Adapters
) -> None:
    here = await adapters.node(two[0])
    await start_message(here, "m1")
    there = await adapters.node(two[1])
    await there.send("unregister")
    await until(outside, OUTCOMES, [("m1", "cancelled")])


async def test_a_node_that_registers_with_another_daemon_leaves_the_first(
    two: tuple[Process, Process], adapters: Adapters
) -> None:
    here = await adapters.node(two[0])
    there = await adapters.node(two[1])
    assert await here.close_code() == 4000
    assert await there.is_silent()
    await adapters.node(two[0])
    assert await there.close_code() == 4000


@pytest.mark.parametrize("capability", ["accepted", "resume"])
@pytest.mark.parametrize("when", ["before it comes", "after it came"])
async def test_an_answer_finds_its_node_with_whichever_daemon(
    two: tuple[Process, Process],
    gate: Path,
    outside: Outside,
    adapters: Adapters,
    capability: str,
    when: str,
) -> None:
    here, there = [await adapters.reach(daemon) for daemon in two]
    session = (await here.register("node-1", ("streaming", capability)))["session_id"]
    await start_message(here, "m1")
    await here.drop()
    if when == "before it comes":
        await trio.Path(gate).touch()
        await until(outside, OUTCOMES, [("m1", "completed")])
    await there.register("node-1", ("streaming", capability), session_id=session, last_seq=0)
    await trio.Path(gate).touch()
    assert (await there.outcome_of("m1"))["full_text"] == "started\ndone\n"
    assert await there.is_silent()


async def test_a_node_resumes_with_another_daemon_and_its_numbers_go_up(
    two: tuple[Process, Process], gate: Path, outside: Outside, adapters: Adapters
) -> None:
    await trio.Path(gate).touch()
    last, session, owed = 0, "", ""
    for n, process in enumerate((*two, *two)):
        peer = await adapters.reach(process)
        about = {"session_id": session, "last_seq": last}
        registered = await peer.register("node-1", ("resume",), **about)
        assert registered["resumed"] is (n > 0)
        session = registered["session_id"]
        if owed:
            frame = await peer.outcome_of(owed)
            assert frame["seq"] > last
            last = frame["seq"]
        await peer.ask(f"got-{n}", channel=f"got-{n}")
        frame = await peer.outcome_of(f"got-{n}")
        assert frame["seq"] > last
        last = frame["seq"]
        owed = f"owed-{n}"
        await peer.send("ack", seq=last)
        await peer.ask(owed, channel=owed)
        await until(outside, f"SELECT 1 FROM clarad_messages WHERE request_id = '{owed}'", [(1,)])
        await peer.drop()
    assert len(outside.rows(OUTCOMES)) == 8


async def test_a_channel_is_full_when_all_daemons_together_have_filled_it(
    two: tuple[Process, Process], adapters: Adapters
) -> None:
    here, there = [await adapters.node(daemon, f"node-{n}") for n, daemon in enumerate(two)]
    await start_message(here, "m0")
    for n in range(1, 101):
        await here.ask(f"m{n}")
        await here.expect("accepted")
        await here.expect("status")
    await there.ask("one too many")
    assert (await there.expect("error"))["code"] == "queue_full"


# --- what is said while somebody does not listen -------------------------------------------------


@pytest.fixture
def cut_off(start: Start, url: str, gate: Path) -> Iterator[tuple[Process, Process, Network]]:
    """Two daemons whose answers wait for the gate, and the network of the first one."""
    settings = {
        "CLARA_RESPONDER": "command",
        "CLARA_RESPONDER_COMMAND": UNTIL_GATE.format(gate),
        "CLARA_LEASE": "1000",
    }
    network = Network(url)
    try:
        yield start(DATABASE_URL=network.url, **settings), start(**settings), network
    finally:
        network.close()


async def test_a_token_that_is_revoked_is_good_for_nothing_with_any_daemon(
    two: tuple[Process, Process], adapters: Adapters
) -> None:
    here, there = two
    token = clarad("tokens", "create", "t", "--yes", env=here.environment).stdout.strip()
    clarad("tokens", "create", "another", env=here.environment)
    peer = await adapters.reach(there)
    await peer.register(secret=token)
    assert clarad("tokens", "revoke", "t", env=here.environment).returncode == 0
    assert await peer.close_code() == 1008


async def test_who_does_not_hear_that_a_token_is_revoked_finds_it_in_the_table(
    cut_off: tuple[Process, Process, Network], adapters: Adapters
) -> None:
    here, there, network = cut_off
    shown = [
        clarad("tokens", "create", name, "--yes", env=there.environment).stdout.strip()
        for name in "ab"
    ]
    revoked, other = [await adapters.reach(here) for _ in shown]
    for n, peer in enumerate((revoked, other)):
        await peer.register(f"node-{n}", secret=shown[n])
    network.cut()
    assert clarad("tokens", "revoke", "a", env=there.environment).returncode == 0
    # Another one of the same name is not the same token.
    assert clarad("tokens", "create", "a", env=there.environment).returncode == 0
    network.mend()
    assert await revoked.close_code() == 1008
    assert await other.is_silent()


async def test_who_does_not_hear_of_a_cancel_finds_it_in_the_table(
    cut_off: tuple[Process, Process, Network], outside: Outside, adapters: Adapters
) -> None:
    here, there, network = cut_off
    peer = await adapters.node(here)
    await start_message(peer, "m1")
    network.cut()
    elsewhere = await adapters.node(there)
    await elsewhere.send("cancel", request_id="m1", reason="enough")
    await until(outside, "SELECT cancel_reason FROM clarad_messages", [("enough",)])
    network.mend()
    assert (await elsewhere.outcome_of("m1"))["reason"] == "enough"


async def test_who_does_not_hear_that_a_node_is_with_another_daemon_finds_it_in_the_table(
    cut_off: tuple[Process, Process, Network], gate: Path, adapters: Adapters
) -> None:
    here, there, network = cut_off
    peer = await adapters.node(here)
    await start_message(peer, "m1")
    network.cut()
    elsewhere = await adapters.node(there)
    await trio.Path(gate).touch()
    network.mend()
    assert (await elsewhere.outcome_of("m1"))["full_text"] == "started\ndone\n"
    assert await peer.close_code() == 4000


@pytest.mark.parametrize(("frame", "about"), [("cancel", {"request_id": "m2"}), ("unregister", {})])
async def test_a_message_whose_daemon_is_dead_is_cancelled_by_its_heir(
    two: tuple[Process, Process],
    outside: Outside,
    adapters: Adapters,
    frame: str,
    about: dict[str, str],
) -> None:
    killed, other = two
    peer = await adapters.node(killed)
    await start_message(peer, "m1")
    await peer.ask("m2")
    await peer.expect("accepted")
    killed.kill()
    elsewhere = await adapters.node(other)
    await elsewhere.send(frame, **about)
    await until(outside, OUTCOMES, [("m1", "interrupted"), ("m2", "cancelled")])


# --- tasks ---------------------------------------------------------------------------------------

SHARES = "SELECT count(*) FROM clarad_tasks GROUP BY owner ORDER BY 1"


def write_tasks(directory: Path, *names: str, interval: float = 0.1) -> None:
    about = f"interval: {interval}, command: 'true'"
    entries = [f"  - {{name: {name}, {about}}}\n" for name in names]
    (directory / "scheduler.yaml").write_text("tasks:\n" + "".join(entries))


async def test_daemons_share_the_tasks_and_one_takes_those_of_who_dies(
    start: Start, outside: Outside, tmp_path: Path
) -> None:
    write_tasks(tmp_path, "a", "b", "c", "d")
    first = start()
    await until(outside, SHARES, [(4,)])
    start()
    await until(outside, SHARES, [(2,), (2,)])
    first.kill()
    await until(outside, SHARES, [(4,)])


async def test_daemons_that_know_other_tasks_leave_each_other_s_alone(
    start: Start, outside: Outside, tmp_path: Path
) -> None:
    write_tasks(tmp_path, "a", "b")
    start()
    (tmp_path / "other").mkdir()
    write_tasks(tmp_path / "other", "c")
    start(CLARA_SCHEDULER_DIR=str(tmp_path / "other"))
    await until(outside, SHARES, [(1,), (2,)])
    tasks = "SELECT count(DISTINCT task) FROM clarad_task_runs WHERE outcome = 'ran'"
    await until(outside, tasks, [(3,)])


async def test_what_is_remembered_of_a_task_outlives_daemons_that_do_not_know_it(
    start: Start, outside: Outside, tmp_path: Path
) -> None:
    write_tasks(tmp_path, "known", interval=1000)
    (tmp_path / "other").mkdir()
    knows = start()
    await until(outside, SHARES, [(1,)])
    assert clarad("tasks", "pause", "known", env=knows.environment).returncode == 0
    knows.signal(signal.SIGTERM)
    assert await trio.to_thread.run_sync(knows.wait) == 0
    start(CLARA_SCHEDULER_DIR=str(tmp_path / "other"))
    left = "SELECT name, paused_at IS NOT NULL, owner FROM clarad_tasks"
    await until(outside, left, [("known", True, None)])


async def test_a_copy_of_a_daemon_s_state_directory_is_another_daemon(
    start: Start, outside: Outside, tmp_path: Path, adapters: Adapters
) -> None:
    first = start(CLARA_RESPONDER="command", CLARA_RESPONDER_COMMAND="echo started; sleep 1000")
    peer = await adapters.node(first)
    await start_message(peer, "m1")
    (tmp_path / "state-2").mkdir()
    shutil.copy(first.state_dir / "instance", tmp_path / "state-2")
    start()
    assert await peer.is_silent()
    assert outside.rows(OUTCOMES) == [("m1", None)]


async def test_a_task_is_paused_from_whichever_daemon(
    start: Start, outside: Outside, tmp_path: Path
) -> None:
    write_tasks(tmp_path, "t")
    start()
    await until(outside, SHARES, [(1,)])
    other = start()
    assert clarad("tasks", "pause", "t", env=other.environment).returncode == 0
    paused = "SELECT count(*) > 2 FROM clarad_task_runs WHERE reason = 'paused'"
    await until(outside, paused, [(True,)])
    assert clarad("tasks", "resume", "t", env=other.environment).returncode == 0
    await until(outside, "SELECT paused_at FROM clarad_tasks", [(None,)])


async def test_a_task_is_run_by_hand_where_it_is(
    start: Start, outside: Outside, tmp_path: Path
) -> None:
    write_tasks(tmp_path, "t", interval=1000)
    having = start()
    await until(outside, SHARES, [(1,)])
    other = start()
    refused = clarad("tasks", "run", "t", env=other.environment)
    assert refused.returncode == 1
    assert "another daemon has the task 't' now" in refused.stderr
    assert clarad("tasks", "run", "t", env=having.environment).returncode == 0


def _settings(process: Process) -> dict[str, str]:
    names = ("DATABASE_URL", "CLARA_HOOKS_DIR", "CLARA_SCHEDULER_DIR")
    return {name: process.environment[name] for name in names}


async def test_each_daemon_says_how_many_others_there_are(two: tuple[Process, Process]) -> None:
    one, other = two

    async def until_it_says(text: str) -> None:
        ask = partial(clarad, "status", env=one.environment)
        with trio.fail_after(PATIENCE):
            while text not in (await trio.to_thread.run_sync(ask)).stdout:
                pass

    await until_it_says("0 queued; 1 other daemon on the database\n")
    other.signal(signal.SIGTERM)
    await until_it_says("0 queued\n")


# --- a network that loses everything -------------------------------------------------------------


BOTH_KNOW = """\
SELECT count(*), max(expires_at) < now() + interval '7 seconds'
FROM clarad_daemons WHERE heir IS NULL"""
RUNNING = "SELECT attempts FROM clarad_task_runs WHERE ended_at IS NULL AND begun_at IS NOT NULL"

ONE_AT_A_TIME = """\
tasks:
  - name: t
    interval: 0.1
    overlap: skip
    retries: 5
    command: |
      trap 'rmdir {0}/running; exit 1' TERM
      mkdir {0}/running || touch {0}/twice
      while [ ! -e {0}/over ]; do sleep 0.1; done
"""


@pytest.mark.parametrize(
    ("lost", "forgotten"),
    [((THERE,), False), ((THERE, BACK), True)],
    ids=["there", "both ways, and for good"],
)
async def test_whose_packets_are_lost_ends_its_work_before_another_one_begins(
    start: Start,
    outside: Outside,
    url: str,
    tmp_path: Path,
    lost: tuple[str, ...],
    forgotten: bool,
) -> None:
    # A third of it is for the ending, and a busy machine may need some of that.
    lease = {"CLARA_LEASE": "5"}
    (tmp_path / "scheduler.yaml").write_text(ONE_AT_A_TIME.format(tmp_path))
    network = Network(url)
    try:
        alone = start(DATABASE_URL=network.url, **lease)
        await until(outside, RUNNING, [(1,)])
        other = start(**lease)
        await until(outside, BOTH_KNOW, [(2, True)])
        network.vanish(lost)
        await until(outside, RUNNING, [(2,)])
        assert not (tmp_path / "twice").exists()
        network.mend(forgotten=forgotten)
        await trio.to_thread.run_sync(alone.wait_for_log, "beginning a new epoch")
        await until(outside, BOTH_KNOW, [(2, True)])
        assert "Traceback" not in alone.log + other.log
        assert not (tmp_path / "twice").exists()
    finally:
        (tmp_path / "over").touch()
        network.close()
